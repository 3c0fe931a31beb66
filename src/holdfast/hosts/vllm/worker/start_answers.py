"""What a worker answered while it was made ready, for an engine core that takes the place of a dead one.

The new engine core runs the host's own start over the living workers. Calls of that start which measure, allocate or
compile are answered from here and not carried out: so the new engine core arrives at the same KV cache. A call that
differs from the first start is refused, because the engine core then has another configuration than the workers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from holdfast.core.errors import RecoveryFailed
from holdfast.core.faults.redaction import PublicText
from holdfast.hosts.vllm.contract.name_touchpoints import READING_CALLS

Call = Callable[..., Any]


class StartAnswers:
    """The calls of a worker's start with their answers. Main thread."""

    def __init__(self) -> None:
        self._noted: dict[str, list[tuple[tuple[Any, ...], dict[str, Any], Any]]] = {}

    def note(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], answer: Any) -> None:
        """Note a call that was carried out, with its answer."""
        if method not in READING_CALLS:
            self._noted.setdefault(method, []).append((args, kwargs, answer))

    def answer(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the noted answer to an equal call. Raises `RecoveryFailed` where there is none."""
        for known_args, known_kwargs, answer in self._noted.get(method, ()):
            if (known_args, known_kwargs) == (args, kwargs):
                return answer
        raise RecoveryFailed(PublicText(f"the workers were not made ready by this call of {method}"))

    # ---- attached to a worker

    def note_calls(self, proc: Any) -> None:
        """Note the calls of a worker from now on, until `end`."""
        self._through(proc, self._carry_out)

    def answer_calls(self, proc: Any) -> None:
        """Answer the calls of a worker from now on, until `end`."""
        self._through(proc, lambda act, method, args, kwargs: self.answer(method, args, kwargs))

    @staticmethod
    def end(proc: Any) -> None:
        """Let a worker carry out every call again, as the host does."""
        vars(proc).pop("_execute_worker_rpc", None)

    def _carry_out(self, act: Call, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        asked = copy.deepcopy((args, kwargs))  # the host may write into the arguments
        answer = act(*args, **kwargs)
        self.note(method, *asked, answer)
        return answer

    def _through(self, proc: Any, around: Callable[[Call, str, tuple[Any, ...], dict[str, Any]], Any]) -> None:
        execute = type(proc)._execute_worker_rpc

        def run(request: tuple[Any, ...]) -> None:
            method, *_ = request
            if not isinstance(method, str) or method.startswith("holdfast_") or method in READING_CALLS:
                execute(proc, request)
                return
            act = getattr(proc.worker, method)
            own = vars(proc.worker).get(method)
            setattr(proc.worker, method, lambda *args, **kwargs: around(act, method, args, kwargs))
            try:
                execute(proc, request)
            finally:
                delattr(proc.worker, method) if own is None else setattr(proc.worker, method, own)

        proc._execute_worker_rpc = run
