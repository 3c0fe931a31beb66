"""To look for whoever holds a process group walks the whole heap: it is done only where a group may be rebuilt."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm")

from holdfast.hosts.vllm.communicators import holders
from holdfast.hosts.vllm.communicators.tracking import TrackedGroups
from holdfast.hosts.vllm.communicators.worker import WorkerCommunicators


class Groups(TrackedGroups):
    """No group of torch's, of which some are said to have peers."""

    def __init__(self, *, shared: bool) -> None:
        super().__init__()
        self._shared = shared


@pytest.mark.parametrize(
    ("shared", "limits"), [(True, ("somebody holds a process group and cannot be given another",)), (False, ())]
)
def test_holders_are_looked_for_where_a_group_has_a_peer(
    shared: bool, limits: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holders, "fixed_holders", lambda _groups: ["somebody"])
    assert WorkerCommunicators(tracked=Groups(shared=shared)).unrebuildable() == limits
