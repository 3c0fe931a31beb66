"""Errors of grammars name their request, so that a request whose grammar always raises ends alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from holdfast.core.faults.classification import NAMES_CAUSE


def name_requests_of_grammar_errors(manager: Any) -> None:
    """Have the host's manager of structured output name the request whose grammar raises."""
    manager.accept_tokens = _naming(manager.accept_tokens)


def _naming(accept: Callable[[Any, Sequence[int]], bool]) -> Callable[[Any, Sequence[int]], bool]:
    def accept_tokens(request: Any, new_token_ids: Sequence[int]) -> bool:
        try:
            return accept(request, new_token_ids)
        except Exception as error:
            vars(error).update({"request_ids": (request.request_id,), NAMES_CAUSE: True})
            raise

    return accept_tokens
