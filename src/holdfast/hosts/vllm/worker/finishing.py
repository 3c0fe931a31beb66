"""The rest of a failed step: a rank whose exception lies outside a collective takes part in it for its peers' sake.

Peers that wait in a collective for the failed rank come to the end of their step, so that no group has to be broken and
made anew. Their result is wrong, and nobody takes it: the rank has raised its flag first. The host's own dummy run of
the same size carries the collectives out, in the same order and with the same shapes, and writes no KV. What peers
write to their KV from it must be finite: the host reads such slots again, with weight zero. So zeros are sent.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from vllm.distributed.parallel_state import get_pp_group, get_tp_group
from vllm.v1.kv_cache_interface import FullAttentionSpec

from holdfast.core.faults.faults import FaultClass
from holdfast.hosts.vllm.process.collective_count import COUNT, CollectiveCount

logger = logging.getLogger("holdfast")

# The classes that say nothing about device or communicator.
FINISHED_CLASSES = frozenset({FaultClass.TRANSIENT, FaultClass.NUMERICAL, FaultClass.UNKNOWN})


class StepFinisher:
    """The collectives that a rank owes to its peers. Main thread.

    Args:
        worker: the host's worker, with its model loaded.
        count: the collectives of the step under way.
    """

    def __init__(self, worker: Any, count: CollectiveCount = COUNT) -> None:
        self._worker = worker
        self._count = count
        self._planned: Any = None
        self._has_ended = True

    def begin(self, planned: Any = None) -> None:
        """Begin a step with the argument of `execute_model`; without one, a dummy step."""
        self._planned, self._has_ended = planned, False
        self._count.begin_step()

    def end(self) -> None:
        """Note that the forward pass has ended: no collective of the step is left."""
        self._has_ended = True

    def why_not(self, fault_class: FaultClass, *, is_in_step: bool = True) -> str | None:
        """Return why the rest of the step cannot be finished after an exception; None where it can.

        Any thread for an exception that did not end the step of the main thread.
        """
        if fault_class not in FINISHED_CLASSES:
            return f"an error of class {fault_class} leaves no rank that could take part"
        if self._has_ended or not is_in_step:
            return self._unfit()
        if self._count.entered != self._count.left:
            return "the exception lies inside a collective"
        if self._count.is_opaque:
            return "the step had a collective that cannot be left out"
        return self._unfit() or self._unfit_step()

    def finish(self) -> None:
        """Take part in what is left of the step under way. Raises what the dummy run raises."""
        if not self._has_ended:
            self._run()

    def join(self, planned: Any = None) -> None:
        """Take part in a whole step that was queued before the peers knew."""
        self.begin(planned)
        self._run()

    def _run(self) -> None:
        tokens, rows = self._size()
        if not tokens:
            return
        if get_pp_group().world_size > 1:
            self._run_stage(tokens)
            return
        runner, done, began = self._worker.model_runner, self._count.left, time.monotonic()
        with self._count.finishing():
            hidden, _ = runner._dummy_run(tokens, uniform_decode=tokens == rows)
            type(runner.model).compute_logits(runner.model, hidden[:rows])  # not what is attached to the instance
        self._has_ended = True
        joined, elapsed_ms = self._count.left - done, 1e3 * (time.monotonic() - began)
        text = "took part in %d of the %d collectives of a step of %d tokens for the peers, in %.0f ms"
        logger.info(text, joined, self._count.left, tokens, elapsed_ms)

    def _run_stage(self, tokens: int) -> None:
        """Receive from the stage before and send to the stage behind, unless this was done; the model is not run."""
        stages, worker, count = get_pp_group(), self._worker, self._count
        for handle in worker._pp_send_work:
            handle.wait()
        worker._pp_send_work = []
        if not stages.is_first_rank:
            if count.received is None:
                stages.irecv_tensor_dict(all_gather_group=get_tp_group())
            for handle in count.received or ():
                handle.wait()
        if not stages.is_last_rank and not count.is_sent:
            runner = worker.model_runner
            sent = runner.model.make_empty_intermediate_tensors(
                tokens, runner.model_config.dtype, runner.device
            ).tensors
            for tensor in sent.values():
                tensor.fill_(count.fill)
            worker._pp_send_work = stages.isend_tensor_dict(sent, all_gather_group=get_tp_group())[1:]
        self._has_ended = True
        logger.info("took part in a step of %d tokens for the neighbouring stages", tokens)

    def _size(self) -> tuple[int, int]:
        """Return the tokens and the requests of the step."""
        planned = self._planned
        return (
            (planned.total_num_scheduled_tokens, len(planned.num_scheduled_tokens)) if planned is not None else (1, 1)
        )

    def _unfit_step(self) -> str | None:
        if self._planned is not None and self._planned.scheduled_encoder_inputs:
            return "the step encodes inputs, which a dummy run does not"
        if self._worker.model_runner.num_prompt_logprobs:
            return "the step gathers logprobs of prompts, which a dummy run does not"
        return None

    def _unfit(self) -> str | None:
        """Return what about this server was never shown to be exact with a step that is finished; None for nothing."""
        runner, config = self._worker.model_runner, self._worker.vllm_config
        if self._worker.use_v2_model_runner:
            return "model runner V2"
        parallel = config.parallel_config
        unfit = {
            "a device other than the CPU": runner.device.type != "cpu",
            "compiled models": not config.model_config.enforce_eager,
            "more than two stages": parallel.pipeline_parallel_size > 2,
            "stages of several ranks": parallel.pipeline_parallel_size > 1 and parallel.tensor_parallel_size > 1,
            "data parallelism in lockstep": parallel.data_parallel_size > 1,
            "context parallelism": max(parallel.decode_context_parallel_size, parallel.prefill_context_parallel_size)
            > 1,
            "balancing of experts": runner.eplb_state is not None,
            "speculative decoding": config.speculative_config is not None,
            "adapters": config.lora_config is not None,
            "a KV connector": config.kv_transfer_config is not None or config.ec_transfer_config is not None,
            "pooling models": runner.is_pooling_model,
            "multimodal models": runner.supports_mm_inputs,
            "prompt embeddings": runner.enable_prompt_embeds,
            "layers without full attention": any(
                type(group.kv_cache_spec) is not FullAttentionSpec for group in runner.kv_cache_config.kv_cache_groups
            ),
        }
        found = next((what for what, is_there in unfit.items() if is_there), None)
        return None if found is None else f"{found}: steps are not finished there"
