"""Touchpoints of the CPU enablement; part of the registry. Attached on the CPU platform only, in worker processes."""

from __future__ import annotations

from holdfast.hosts.vllm.contract.touchpoint import Touchpoint, attributes, wrap

_RUNNER = "vllm.v1.worker.gpu_model_runner"
_CPU_COMMUNICATOR = "vllm.distributed.device_communicators.cpu_communicator"

WORKER_DEVICE = wrap(
    "vllm.v1.worker.worker_base",
    "WorkerWrapperBase.init_device",
    (),
    "a worker is about to make its communicators: what its platform lacks must be there",
)
CPU_SHARED_MEMORY = Touchpoint(
    _CPU_COMMUNICATOR,
    "CpuCommunicator._all_group_ranks_share_shm_group_name",
    "wrap",
    (),
    "over shared memory a rank spins for ever when its peer dies",
    until="the host's shared-memory collectives end when a peer does",
)
CPU_ALL_GATHERV, CPU_REDUCE_SCATTERV = (
    Touchpoint(
        _CPU_COMMUNICATOR,
        f"CpuCommunicator.{name}",
        "wrap",
        ("input_", "dim", "sizes"),
        "what data-parallel ranks of a mixture of experts exchange",
        until="the CPU communicator has it",
    )
    for name in ("all_gatherv", "reduce_scatterv")
)
CPU_EXPERTS = Touchpoint(
    "vllm.model_executor.layers.fused_moe.experts.cpu_moe",
    "CPUUnquantizedExperts.apply",
    "wrap",
    (
        "output",
        "hidden_states",
        "w1",
        "w2",
        "topk_weights",
        "topk_ids",
        "activation",
        "global_num_experts",
        "expert_map",
    ),
    "the CPU's kernel reads beyond its weights for experts of another rank",
    until="the CPU's kernel takes an expert map",
)
CPU_INTERMEDIATE_TENSORS = Touchpoint(
    _RUNNER,
    "GPUModelRunner.sync_and_gather_intermediate_tensors",
    "wrap",
    ("num_tokens", "intermediate_tensors", "sync_self"),
    "a pipeline stage that was not warmed up has nowhere to put what it receives",
    until="the CPU worker makes them without a warm-up",
)
CPU_SAMPLING = Touchpoint(
    _RUNNER,
    "GPUModelRunner.sample_tokens",
    "wrap",
    ("grammar_output",),
    "a seeded prompt that is read in chunks raises: a generator on the CPU has no offset to wind back",
    until="the host winds back generators on the CPU",
)
CPU_TOUCHPOINTS = (
    WORKER_DEVICE,
    CPU_SHARED_MEMORY,
    CPU_ALL_GATHERV,
    CPU_REDUCE_SCATTERV,
    CPU_EXPERTS,
    CPU_INTERMEDIATE_TENSORS,
    CPU_SAMPLING,
    *attributes(
        _CPU_COMMUNICATOR, "CpuCommunicator", "world_size rank_in_group device_group unique_name", "collectives"
    ),
    *attributes(
        _RUNNER, "GPUModelRunner", "intermediate_tensors model max_num_tokens model_config device", "pipeline stages"
    ),
    *attributes(_RUNNER, "GPUModelRunner", "discard_request_mask", "seeded prompts read in chunks"),
    *attributes("vllm.v1.worker.gpu_input_batch", "InputBatch", "generators", "seeded prompts read in chunks"),
)
