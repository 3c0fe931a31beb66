"""What the doctor says of a host, its hooks and ports, without a host."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

import msgspec
import pytest

from holdfast.api.control_token import ServerRecord
from holdfast.cli.doctor import judge_access, judge_hooks, judge_host, judge_notify_port, judge_port
from holdfast.cli.traps import Severity
from holdfast.core.config import NOTIFY_PORT
from holdfast.hosts.vllm.contract.touchpoint import Touchpoint
from holdfast.hosts.vllm.contract.versions import TESTED
from holdfast.progress.identity import Identity

README = Path(__file__).resolve().parents[3] / "README.md"


@pytest.mark.parametrize(
    ("version", "overridden", "severity"),
    [
        ("0.32.0", False, "fine"),
        ("0.33.1+cpu", False, "fine"),
        ("0.30.2", False, "problem"),
        ("0.30.2", True, "warning"),
        ("0.330.0", False, "problem"),
        (None, True, "problem"),
    ],
)
def test_host(version: str | None, overridden: bool, severity: Severity) -> None:
    """A host that was never tested is a problem unless the risk was accepted; none is always one."""
    assert judge_host("vllm", version, overridden=overridden).severity == severity


@pytest.mark.parametrize("release", TESTED)
def test_the_doctor_and_the_readme_say_how_a_release_was_tested(release: str) -> None:
    """A name in the sources is not a run: each place says which of the two a release has had."""
    assert judge_host("vllm", f"{release}.0", overridden=False).text.endswith(f"(tested: {TESTED[release]})")
    [row] = [line for line in README.read_text().splitlines() if line.startswith(f"| {release} |")]
    assert TESTED[release] in row
    assert TESTED[release] in judge_host("vllm", "0.31.0", overridden=False).text


def test_port_in_use_is_named() -> None:
    """A port with a listener is a problem that names the port; the port is free again afterwards."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        taken = judge_port(port)
    assert taken.severity == "problem"
    assert str(port) in taken.text
    assert judge_port(port).severity == "fine"


def test_each_broken_hook_is_named() -> None:
    """A hook that does not hold is named with what it is needed for; the rest is counted."""
    good = Touchpoint("vllm.a", "A.run", "wrap", (), "running")
    bad = Touchpoint("vllm.b", "B.stop", "call", None, "stopping")
    broken, summary = judge_hooks([(good, None), (bad, "'B' has no 'stop'")])
    assert broken.severity == "problem"
    assert "vllm.b:B.stop" in broken.text
    assert "stopping" in broken.hint
    assert summary.text.startswith("1 ")


def test_a_blank_token_is_a_problem_before_the_start() -> None:
    [finding] = judge_access({b"HOLDFAST_API_KEY": b" "}, [])
    assert (finding.severity, finding.about) == ("problem", "control")


def test_a_running_server_whose_control_is_open_is_a_warning() -> None:
    record = ServerRecord(process=Identity.of(1), host="", port=8000, token=b"t", is_open=True)
    fine, warning = judge_access({}, [record, msgspec.structs.replace(record, is_open=False)])
    assert (fine.severity, warning.severity) == ("fine", "warning")
    assert "port 8000" in warning.text
    assert "--open-control-to-this-machine" in warning.hint


def test_a_taken_port_of_notifications_is_a_problem_only_when_asked_for() -> None:
    with socket.socket() as listener:
        with contextlib.suppress(OSError):  # taken by another process otherwise
            listener.bind(("127.0.0.1", NOTIFY_PORT))
            listener.listen()
        default, asked = judge_notify_port(None), judge_notify_port(NOTIFY_PORT)
    assert (default.severity, asked.severity) == ("warning", "problem")
    assert "take a free port instead" in default.text
    assert judge_notify_port(-1).severity == "fine"
