"""Where a control token comes from, and who finds the token."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from holdfast.api import control_token
from holdfast.api.control_token import (
    ServerRecord,
    announce,
    configured_token,
    find_token,
    instance_token,
    token_source,
    withdraw,
)
from holdfast.api.notify import notification_password
from holdfast.core.errors import BadConfiguration

KEY = b"HOLDFAST_API_KEY"


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The user's runtime folder, and no other place."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(control_token.tempfile, "gettempdir", lambda: str(tmp_path / "nowhere"))
    return tmp_path / "holdfast"


@pytest.mark.parametrize("blank", [b"", b" ", b"\n", b" \t\r\n"])
def test_a_blank_token_is_an_error_and_not_an_unset_one(tmp_path: Path, blank: bytes) -> None:
    with pytest.raises(BadConfiguration, match="blank"):
        configured_token("", {KEY: blank})
    (tmp_path / "token").write_bytes(blank)
    with pytest.raises(BadConfiguration, match="blank"):
        configured_token(str(tmp_path / "token"), {})


@pytest.mark.parametrize("token", [b"plain", b"\xa0odd\x85", "schlüssel".encode(), b"two words"])
def test_a_token_is_taken_byte_for_byte_without_the_last_newline(tmp_path: Path, token: bytes) -> None:
    assert configured_token("", {KEY: token}) == token
    (tmp_path / "token").write_bytes(token + b"\n")
    assert configured_token(str(tmp_path / "token"), {}) == token


def test_nothing_configured_is_no_token() -> None:
    assert configured_token("", {}) is None


@pytest.mark.parametrize("bad", [b"two\nlines", b"a\x00b", b"\x7f", b"x" * 5000])
def test_a_token_that_no_header_can_carry_is_an_error(bad: bytes) -> None:
    with pytest.raises(BadConfiguration):
        configured_token("", {KEY: bad})


def test_the_source_of_a_token_is_known_without_the_token() -> None:
    assert token_source("", {}) == "token-made-at-start"
    assert token_source("gone", {}) == "token-from-file"
    assert token_source("", {KEY: b"x"}) == "token-from-environment"


def test_a_missing_file_and_two_tokens_are_errors(tmp_path: Path) -> None:
    with pytest.raises(BadConfiguration, match="cannot be read"):
        configured_token(str(tmp_path / "none"), {})
    with pytest.raises(BadConfiguration, match="both"):
        configured_token(str(tmp_path / "none"), {KEY: b"x"})


def test_all_api_servers_of_an_instance_have_one_token_that_only_the_user_can_read(tmp_path: Path) -> None:
    first = instance_token(tmp_path, "", {})
    assert len(first) >= 32
    assert instance_token(tmp_path, "", {}) == first
    assert [stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()] == [0o600]
    assert instance_token(tmp_path / ".." / tmp_path.name, "", {}) == first


def test_two_instances_have_two_tokens(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a", "b")]
    for folder in folders:
        folder.mkdir()
    assert len({instance_token(folder, "", {}) for folder in folders}) == 2


def test_a_replaced_api_server_needs_the_operators_file_no_more(tmp_path: Path) -> None:
    file = tmp_path / "mine"
    file.write_bytes(b"mine\n")
    (folder := tmp_path / "instance").mkdir()
    assert instance_token(folder, str(file), {}) == b"mine"
    file.unlink()
    assert instance_token(folder, str(file), {}) == b"mine"


@pytest.mark.parametrize(
    ("listens", "asked", "found"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        (None, "localhost", True),
        ("0.0.0.0", "127.0.0.1", True),
        ("::", "::1", True),
        ("192.0.2.7", "192.0.2.7", True),
        ("192.0.2.7", "127.0.0.1", False),
        ("0.0.0.0", "example.org", False),
        ("127.0.0.1", "203.0.113.9", False),
    ],
)
def test_a_token_is_found_by_address_and_never_sent_elsewhere(
    runtime: Path, listens: str | None, asked: str, found: bool
) -> None:
    file = announce(listens, 8000, b"\xfftoken", is_open=False)
    assert file is not None and file.parent == runtime
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(runtime.stat().st_mode) == 0o700
    assert find_token(asked, 8000) == (b"\xfftoken" if found else None)
    assert find_token(asked, 8001) is None


def test_of_two_servers_with_one_port_number_each_is_found_by_its_address(runtime: Path) -> None:
    addresses = ("127.0.0.1", "127.0.0.2", "::1", "0.0.0.0")
    for number, address in enumerate(addresses):
        file = announce(address, 8000, address.encode(), is_open=False)
        assert file is not None
        file.rename(runtime / f"8000-{number}.json")
    assert [find_token(address, 8000) for address in addresses] == [address.encode() for address in addresses]


def with_process(record: ServerRecord, **differs: int) -> ServerRecord:
    return msgspec.structs.replace(record, process=msgspec.structs.replace(record.process, **differs))


def test_the_record_of_an_ended_process_is_not_believed_and_is_removed(runtime: Path) -> None:
    file = announce("127.0.0.1", 8000, b"token", is_open=False)
    assert file is not None
    old = msgspec.json.decode(file.read_bytes(), type=ServerRecord)
    file.write_bytes(msgspec.json.encode(with_process(old, start_ticks=old.process.start_ticks - 1)))
    assert find_token("127.0.0.1", 8000) is None
    announce("127.0.0.1", 8001, b"other", is_open=False)
    assert [p.name for p in runtime.iterdir()] == [f"8001-{os.getpid()}.json"]


def test_the_record_of_a_process_of_another_namespace_is_left_alone(runtime: Path) -> None:
    file = announce("127.0.0.1", 8000, b"token", is_open=False)
    assert file is not None
    mine = msgspec.json.decode(file.read_bytes(), type=ServerRecord)
    foreign = with_process(mine, pid=2**30, pid_namespace=mine.process.pid_namespace + 1)
    (runtime / "8002-1.json").write_bytes(msgspec.json.encode(foreign))
    announce("127.0.0.1", 8001, b"other", is_open=False)
    assert (runtime / "8002-1.json").exists()
    assert find_token("127.0.0.1", 8002) is None


@pytest.mark.parametrize("harm", ["readable", "link", "file"])
def test_a_folder_that_others_could_have_prepared_is_not_used(runtime: Path, harm: str) -> None:
    match harm:
        case "readable":
            runtime.mkdir()
            runtime.chmod(0o755)
        case "link":
            (runtime.parent / "elsewhere").mkdir(mode=0o700)
            runtime.symlink_to(runtime.parent / "elsewhere")
        case "file":
            runtime.write_text("")
    file = announce("127.0.0.1", 8000, b"token", is_open=False)
    assert file is None or file.parent != runtime
    assert not list(runtime.parent.glob("elsewhere/*"))


def test_a_withdrawn_record_leaves_no_folder_behind_but_for_the_records_of_others(runtime: Path) -> None:
    first = announce("127.0.0.1", 8000, b"token", is_open=False)
    second = announce("127.0.0.1", 8001, b"token", is_open=False)
    assert first is not None and second is not None
    withdraw(first)
    assert find_token("127.0.0.1", 8001) == b"token"
    withdraw(second)
    withdraw(second)
    assert not runtime.exists()


def test_garbage_in_the_folder_is_no_record(runtime: Path) -> None:
    announce("127.0.0.1", 8000, b"token", is_open=True)
    (runtime / "1-1.json").write_bytes(b"\xff{")
    (runtime / "2-2.json").mkdir()
    assert find_token("127.0.0.1", 8000) == b"token"
    assert [record.is_open for record in control_token.running_servers()] == [True]


def test_the_command_prints_the_token_byte_for_byte(runtime: Path) -> None:
    announce("127.0.0.1", 8000, b"\xa0odd\x85", is_open=False)
    command = [sys.executable, "-c", "from holdfast.cli.main import main; main()", "token"]
    environment = {k: v for k, v in os.environ.items() if k != "HOLDFAST_API_KEY"}
    done = subprocess.run(command, capture_output=True, env=environment, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, b"\xa0odd\x85\n"), done.stderr
    derived = subprocess.run(
        [*command, "--notifications"], capture_output=True, env=environment, timeout=60, check=False
    )
    assert derived.stdout == notification_password(b"\xa0odd\x85") + b"\n"
    other = subprocess.run(
        [*command, "--url", "http://127.0.0.1:1"], capture_output=True, env=environment, timeout=60, check=False
    )
    assert other.returncode == 1
    assert b"no server of this user" in other.stderr
