"""A program around the host's `AsyncLLM`: streaming sessions through killed processes, against sessions without.

Arguments: the folder of a model, then cases `PROCESS:PLACE:SEED`. Prints a line `CASE exact` or `CASE differs` each.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import psutil

TURNS = (("The keeper of the light", 30), (" and then the sea", 30), (" so at last", 40))
SESSION_S = 120.0


class Session:
    """One session; harm is done after the second turn (`between`), or in its middle (`within`, `ahead`).

    With `ahead` all inputs are sent at once, else each after the answer to the one before.
    """

    def __init__(self, place: str, seed: int | None, harm: Callable[[], Awaitable[None]]) -> None:
        self._place, self._seed, self._harm = place, seed, harm
        self._answered = asyncio.Semaphore(0)

    async def answers(self, llm: Any, name: str) -> list[list[int]]:
        from vllm.sampling_params import SamplingParams

        answers: list[list[int]] = [[]]
        first = SamplingParams(max_tokens=1, temperature=0.0, output_kind=_delta())
        async for output in llm.generate(self._inputs(), first, request_id=name):
            [said] = output.outputs
            answers[-1] += said.token_ids
            if said.finish_reason is not None:
                answers.append([])
                self._answered.release()
            elif self._place != "between" and len(answers) == 2 and len(answers[-1]) == 10:
                await self._harm()
        return answers[:-1]

    async def _inputs(self) -> AsyncGenerator[Any, None]:
        from vllm.engine.protocol import StreamingInput
        from vllm.sampling_params import SamplingParams

        for number, (text, tokens) in enumerate(TURNS):
            params = SamplingParams(
                max_tokens=tokens,
                temperature=0.0 if self._seed is None else 1.0,
                seed=self._seed,
                ignore_eos=True,
                output_kind=_delta(),
            )
            yield StreamingInput(prompt=text, sampling_params=params)
            if self._place != "ahead":
                await self._answered.acquire()
            if self._place == "between" and number == 1:
                await self._harm()


def _delta() -> Any:
    from vllm.sampling_params import RequestOutputKind

    return RequestOutputKind.DELTA


def kill(title: str) -> None:
    """Kill the first process below this one whose title holds `title`."""
    for process in psutil.Process().children(recursive=True):
        if title in (" ".join(process.cmdline()) or process.name()):
            os.kill(process.pid, signal.SIGKILL)
            return
    raise SystemExit(f"no process {title}")


async def main(model: str, cases: list[str]) -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    from holdfast.hosts.vllm.serving.client_hooks import request_router

    arguments = AsyncEngineArgs(
        model=model, dtype="float32", enforce_eager=True, max_model_len=1024, additional_config={"holdfast": {}}
    )
    llm = AsyncLLM.from_engine_args(arguments)

    async def nothing() -> None: ...

    for case in cases:
        process, place, seed_text = case.split(":")
        seed = int(seed_text) if seed_text else None

        async def harm(process: str = process) -> None:
            kill(process)
            await asyncio.sleep(0.2)  # the loss may be noticed before the next input, or after

        expected = await asyncio.wait_for(Session(place, seed, nothing).answers(llm, f"{case} expected"), SESSION_S)
        found = await asyncio.wait_for(Session(place, seed, harm).answers(llm, f"{case} found"), SESSION_S)
        print(case, "exact" if found == expected else f"differs: {found} is not {expected}", flush=True)
    router = request_router(llm.engine_core)
    assert router is not None
    print("journal", "empty" if not len(router.journal) else list(router.journal), flush=True)
    llm.shutdown()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2:]))
