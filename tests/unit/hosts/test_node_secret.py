"""The secret that nodes share: from the environment or a private file, never short, never missing beyond loopback."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest.importorskip("vllm")

from holdfast.core.config import HoldfastConfig
from holdfast.core.errors import BadConfiguration, WorldError
from holdfast.hosts.vllm.process import nodes

GOOD = "sixteen bytes and more"


@pytest.fixture(autouse=True)
def no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (nodes.SECRET, nodes.METHOD, nodes.NODE, nodes.ENGINE_ADDRESS):
        monkeypatch.delenv(name, raising=False)


def in_file(tmp_path: Path, text: str, mode: int = 0o600) -> HoldfastConfig:
    file = tmp_path / "secret"
    file.write_text(text)
    file.chmod(mode)
    return HoldfastConfig(node_secret_file=str(file))


def test_a_secret_comes_from_a_private_file_or_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert nodes.node_secret(in_file(tmp_path, f"{GOOD}\n")) == GOOD.encode()
    monkeypatch.setenv(nodes.SECRET, GOOD)
    assert nodes.node_secret(HoldfastConfig()) == GOOD.encode()


def test_a_bad_secret_is_refused_with_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for config, why in (
        (in_file(tmp_path, "short"), "has 5 bytes, not 16"),
        (HoldfastConfig(node_secret_file=str(tmp_path / "none")), "cannot be read"),
    ):
        with pytest.raises(BadConfiguration, match=why):
            nodes.node_secret(config)
    with pytest.raises(BadConfiguration, match="can be read by others"):
        nodes.node_secret(in_file(tmp_path, GOOD, 0o640))
    monkeypatch.setenv(nodes.SECRET, GOOD)
    with pytest.raises(BadConfiguration, match="both HOLDFAST_NODE_SECRET and node_secret_file"):
        nodes.node_secret(in_file(tmp_path, GOOD))


def test_a_wire_without_a_secret_is_refused_where_other_machines_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes.refuse_open_wire(HoldfastConfig(), "127.0.0.1")
    with pytest.raises(BadConfiguration, match=r"share no secret, and 192\.0\.2\.1 is reached"):
        nodes.refuse_open_wire(HoldfastConfig(), "192.0.2.1")
    monkeypatch.setenv(nodes.SECRET, GOOD)
    nodes.refuse_open_wire(HoldfastConfig(), "192.0.2.1")


def test_where_the_engine_core_is_reached() -> None:
    assert nodes.wire_address("192.0.2.1", 22868) == "tcp://192.0.2.1:22868"
    assert nodes.wire_address("2001:db8::1", 22868) == "tcp://[2001:db8::1]:22868"
    with pytest.raises(WorldError, match="is not known"):
        nodes.wire_address("no such host", 22868)
    assert (nodes.node_number(), nodes.engine_address_elsewhere()) == (0, None)


def test_processes_are_spawned_unless_the_operator_wants_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(nodes.METHOD, "fork")
    with pytest.raises(BadConfiguration, match="has to be spawn"):
        nodes.spawn_processes()
    monkeypatch.delenv(nodes.METHOD)
    nodes.spawn_processes()
    assert os.environ.pop(nodes.METHOD) == "spawn"
