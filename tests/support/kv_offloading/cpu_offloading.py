"""The host's offloading of KV into memory, for the CPU build of the host: the copies alone are Holdfast's own.

The host refuses its own copies (CUDA streams) on CPUs. Everything else is the host's: connector, index and jobs. A
copy is made when it is asked for, and reported as finished `HOLDFAST_TEST_TRANSFER_POLLS` polls later.
"""

import os

from vllm.v1.kv_offload.base import OffloadingWorker, TransferResult
from vllm.v1.kv_offload.cpu.spec import CPUOffloadingSpec

POLLS = "HOLDFAST_TEST_TRANSFER_POLLS"


class CopyingWorker(OffloadingWorker):
    """Copies blocks between the KV cache of a CPU and further memory of the same process."""

    def __init__(self, kv_caches, blocks_per_chunk, chunks):
        import torch

        self._caches, self._per_chunk = kv_caches, blocks_per_chunk
        self._memory = [
            torch.zeros((chunks, blocks_per_chunk, cache.page_size_bytes), dtype=torch.int8)
            for cache in kv_caches.tensors
        ]
        self._delay = int(os.environ.get(POLLS, "1"))
        self._waiting = {}

    def submit_store(self, job_id, src_spec, dst_spec):
        for memory, cache, block, chunk, part in self._pairs(src_spec, dst_spec):
            memory[chunk, part] = cache.tensor[block]
        self._waiting[job_id] = self._delay
        return True

    def submit_load(self, job_id, src_spec, dst_spec):
        for memory, cache, block, chunk, part in self._pairs(dst_spec, src_spec):
            cache.tensor[block] = memory[chunk, part]
        self._waiting[job_id] = self._delay
        return True

    def _pairs(self, on_device, elsewhere):
        blocks, chunks = iter(on_device.block_ids), iter(elsewhere.block_ids)
        for group, (size, first) in enumerate(zip(on_device.group_sizes, on_device.block_indices, strict=True)):
            tensors = {ref.tensor_idx for ref in self._caches.group_data_refs[group]}
            chunk = None
            for offset in range(size):
                part = (first + offset) % self._per_chunk
                if chunk is None or part == 0:
                    chunk = next(chunks)
                block = int(next(blocks))
                for index in tensors:
                    yield self._memory[index], self._caches.tensors[index], block, int(chunk), part

    def get_finished(self):
        for job_id in self._waiting:
            self._waiting[job_id] -= 1
        done = [job_id for job_id, polls in self._waiting.items() if polls <= 0]
        for job_id in done:
            del self._waiting[job_id]
        return [TransferResult(job_id=job_id, success=True) for job_id in done]

    def wait(self, job_ids):
        for job_id in self._waiting.keys() & set(job_ids):
            self._waiting[job_id] = 0


class CpuBuildOffloadingSpec(CPUOffloadingSpec):
    """`CPUOffloadingSpec` with copies that work on CPUs."""

    def get_worker(self, kv_caches):
        if not self._worker:
            self._worker = CopyingWorker(kv_caches, self.blocks_per_chunk, self.num_chunks)
        return self._worker
