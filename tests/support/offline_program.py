"""A program around `vllm.LLM`: a killed worker, then a killed engine core. Prints what happened, line by line.

Argument: the folder of a model.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable

from session_program import kill


def raised(call: Callable[[], object]) -> str:
    """Return the error of a call, with its type."""
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def main(model: str) -> None:
    from vllm import LLM, SamplingParams

    llm = LLM(model=model, dtype="float32", enforce_eager=True, max_model_len=1024, additional_config={"holdfast": {}})
    params = SamplingParams(max_tokens=400, temperature=0.0, ignore_eos=True)

    def ask() -> list[list[int]]:
        answers = llm.generate(["The keeper", "and the sea"], params, use_tqdm=False)
        return [list(answer.outputs[0].token_ids) for answer in answers]

    def killing(title: str) -> threading.Timer:
        timer = threading.Timer(0.5, kill, [title])
        timer.start()
        return timer

    expected = ask()
    killing("Worker")
    print("worker", "exact" if ask() == expected else "differs", flush=True)
    killing("EngineCore")
    began_at = time.monotonic()
    print("under way", raised(ask), flush=True)
    print("later", raised(ask), flush=True)
    print("call", raised(lambda: llm.collective_rpc("list_loras")), flush=True)
    print("within", round(time.monotonic() - began_at, 1), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
