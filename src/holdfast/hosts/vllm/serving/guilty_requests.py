"""Repetitions of guilty requests: found by fingerprint before a request reaches an engine core.

A fingerprint is a keyed hash of prompt and parameters, or of an adapter with the state of its files. The key is secret
and of the instance, so that no prompt can be guessed from a fingerprint. While nothing is remembered, a request costs
one comparison.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any

import msgspec

from holdfast.core.faults.redaction import account_of
from holdfast.core.poison.memory import FoundGuilty, GuiltKind, PoisonMemoryView, Remembered, verdict_in
from holdfast.core.protocol.events import InstanceView
from holdfast.core.protocol.link_messages import GuiltReported, RequestsRefused
from holdfast.core.requests.journal import RequestJournal
from holdfast.hosts.vllm.protocol import DRAWN, HISTORY, ON_TRIAL
from holdfast.hosts.vllm.serving.resumption import put_on_trial

logger = logging.getLogger("holdfast")

FINGERPRINT_BYTES = 16
UNKNOWN_FOR_S = 5.0  # the owner shows a verdict much sooner
MAX_OWN = 16
# How an answer is delivered is no part of what is computed.
_NOT_COMPUTED = ("output_kind", "extra_args", "detokenize", "skip_special_tokens", "spaces_between_special_tokens")

_encoder = msgspec.msgpack.Encoder()


class GuiltyRequests:
    """The memory of the instance as an API server sees it. Event loop's thread, except `follow`.

    Attributes:
        report: tells the owner of verdicts and refusals; does not wait.
    """

    def __init__(self) -> None:
        self.report: Callable[[GuiltReported | RequestsRefused], None] = lambda report: None
        self._view = PoisonMemoryView()
        self._known: dict[str, Remembered] = {}
        self._remembers = False
        self._own: OrderedDict[str, tuple[Remembered, float]] = OrderedDict()  # verdicts that the owner may not know
        self._refusals: Counter[str] = Counter()

    def follow(self, view: InstanceView) -> bool:
        """Take a later view; return whether an entry is new. Any thread."""
        self._remembers = view.settings.poison_memory_s > 0
        if view.guilt == self._view:
            return False
        before, self._view = self._known, view.guilt
        self._known = {entry.fingerprint: entry for entry in view.guilt.entries}
        return bool(self._known.keys() - before.keys())

    def look_up(self, request: Any) -> Remembered | None:
        """Return the entry of a request or of its adapter; None for a request that is not known."""
        if not self._known and not self._own:
            return None
        names = [adapter_fingerprint(self._view.key, request), request_fingerprint(self._view.key, request)]
        return next((entry for name in names if name and (entry := self._entry(name))), None)

    def admit(self, request: Any) -> str:
        """Return the error of a request that is refused; empty for any other, which is marked if on trial."""
        entry = self.look_up(request)
        if entry is not None and entry.is_refused:
            return self.refuse(entry)
        if entry is not None:
            put_on_trial(request)
        return ""

    def _entry(self, fingerprint: str) -> Remembered | None:
        own, since = self._own.get(fingerprint, (None, 0.0))
        if own is None or ((known := self._known.get(fingerprint)) is not None and known.incident == own.incident):
            self._own.pop(fingerprint, None)
            return self._known.get(fingerprint)
        if time.monotonic() - since > UNKNOWN_FOR_S:
            del self._own[fingerprint]
            return self._known.get(fingerprint)
        return own

    def refuse(self, entry: Remembered) -> str:
        """Count a refusal, and return the error for the client. Reports the 1st, 2nd, 4th, 8th and so on."""
        self._refusals[entry.fingerprint] += 1
        count = self._refusals[entry.fingerprint]
        if count & (count - 1) == 0:
            self.report(RequestsRefused(fingerprint=entry.fingerprint, count=max(1, count // 2)))
        return entry.error

    def judge(self, request: Any, error: object, output_tokens: int) -> Remembered | None:
        """Remember a request or its adapter if `error` is a verdict; return the new entry."""
        verdict = verdict_in(error)
        if verdict is None or not self._remembers or not self._view.key:
            return None
        kind, incident = verdict
        make = adapter_fingerprint if kind is GuiltKind.ADAPTER else request_fingerprint
        if not (fingerprint := make(self._view.key, request)):
            return None
        known = self._entry(fingerprint)
        if known is not None and known.is_refused:  # a copy that was on its way
            return None
        guilty = FoundGuilty(
            fingerprint=fingerprint, kind=kind, incident=incident, error=str(error), output_tokens=output_tokens
        )
        entry = Remembered(**msgspec.structs.asdict(guilty))
        self._own[fingerprint] = entry, time.monotonic()
        while len(self._own) > MAX_OWN:
            self._own.popitem(last=False)
        self._refusals.pop(fingerprint, None)
        self.report(GuiltReported(guilty=guilty))
        return entry

    def copies(self, journal: RequestJournal[Any], judged: str) -> list[tuple[str, Remembered]]:
        """Return open requests that are refused by now, but not `judged`. A copy that got further goes on.

        Requests for an adapter go on too: another engine core may have it loaded, and one that has not ends them.
        """
        found = []
        for request_id in journal:
            opened = journal.get(request_id)
            if request_id == judged or opened is None or (entry := self.look_up(opened.request)) is None:
                continue
            is_copy = entry.is_refused and entry.kind is GuiltKind.REQUEST
            if is_copy and len(opened.delivered) <= entry.output_tokens:
                found.append((request_id, entry))
        return found


# ---- fingerprints


def request_fingerprint(key: bytes, request: Any) -> str:
    """Return the fingerprint of prompt and parameters; empty for a streaming session, or a part that has no hash."""
    if request.resumable:
        return ""
    try:
        hashed = hashlib.blake2b(key=key, digest_size=FINGERPRINT_BYTES, person=b"request")
        for part in _parts(request):
            encoded = part if isinstance(part, bytes) else _encoder.encode(_plain(part))
            hashed.update(len(encoded).to_bytes(8, "little"))
            hashed.update(encoded)
        return hashed.hexdigest()
    except Exception as error:  # of whatever a model's inputs are made of
        _tell_once(account_of(error).error_type)
        return ""


def _plain(part: Any) -> Any:
    """Return dicts, lists and scalars in one order. Raises `TypeError` for others: their texts may be shortened."""
    return msgspec.to_builtins(part, str_keys=True, order="deterministic")


@functools.cache
def _tell_once(error_type: str) -> None:
    logger.warning("some requests have no fingerprint, and their repetitions are not known: %s", error_type)


def _parts(request: Any) -> list[Any]:
    embeds = request.prompt_embeds
    return [
        request.prompt_token_ids,
        b"" if embeds is None else embeds.detach().cpu().contiguous().view(-1).numpy().tobytes(),
        [(f.identifier, f.modality) for f in request.mm_features or ()],
        _of_sampling(request.sampling_params),
        request.pooling_params,
        request.cache_salt,  # nobody learns from a refusal what somebody with another salt has sent
        _adapter(request),
    ]


def _of_sampling(params: Any) -> Any:
    if params is None:
        return None
    fields = {name: getattr(params, name) for name in params.__struct_fields__ if name not in _NOT_COMPUTED}
    private = (HISTORY, DRAWN, ON_TRIAL)
    return fields, {key: value for key, value in (params.extra_args or {}).items() if key not in private}


def adapter_fingerprint(key: bytes, request: Any) -> str:
    """Return the fingerprint of the adapter of a request and of the state of its files; empty without an adapter."""
    if (adapter := _adapter(request)) is None:
        return ""
    parts = _encoder.encode((*adapter, _state_of(adapter[2])))
    return hashlib.blake2b(parts, key=key, digest_size=FINGERPRINT_BYTES, person=b"adapter").hexdigest()


def _adapter(request: Any) -> tuple[str, int, str] | None:
    adapter = request.lora_request
    return None if adapter is None else (adapter.lora_name, adapter.lora_int_id, adapter.lora_path)


def _state_of(path: str) -> int:
    """Return when a folder has changed last; 0 without a folder."""
    try:
        return os.stat(path).st_mtime_ns
    except (OSError, ValueError):
        return 0
