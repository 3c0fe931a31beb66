"""The control token: where a server takes it from, and how commands of the same user find it.

A server without a configured token makes one at start. The token lies in the private folder of the instance, for all
API servers of the instance, and in a file for each serving process in the user's runtime folder, for the `holdfast`
commands of the same user. All files have mode 0600; a folder that another user could write to is never used.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from holdfast.api.access import is_loopback
from holdfast.core.errors import BadConfiguration
from holdfast.core.protocol.commands import Credential
from holdfast.progress.identity import Identity
from holdfast.progress.places import is_private_folder
from holdfast.progress.records import read_record

VARIABLE = "HOLDFAST_API_KEY"
FILE_SETTING = "control_token_file"
MAX_TOKEN_BYTES = 4096
_IN_INSTANCE = "control-token"
_PAGE_KEY = "page-key"
_SUFFIX = ".json"
_WILDCARDS = ("", "0.0.0.0", "::")
_BLANK = b" \t\r\n"


class ServerRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Address and token of a serving process, for commands of the same user.

    `token` is base64 in JSON. `is_open`: the server takes commands from every process of this machine.
    """

    process: Identity
    host: str
    port: int
    token: bytes
    is_open: bool = False


def configured_token(token_file: str, environ: Mapping[bytes, bytes]) -> bytes | None:
    """Return the token that the operator configured; None when the server has to make a token.

    Raises:
        BadConfiguration: the variable or the file is blank, unreadable or unfit for a header; or both are set.
    """
    stated = environ.get(VARIABLE.encode())
    if stated is not None and token_file:
        raise BadConfiguration(f"both {VARIABLE} and {FILE_SETTING} are set", hint="set one of them")
    if stated is not None:
        return _fit(stated, VARIABLE)
    return _fit(_read_token(Path(token_file)), f"the file {token_file}") if token_file else None


def token_source(token_file: str, environ: Mapping[bytes, bytes]) -> Credential:
    """Return where a server has its token from; `configured_token` refuses a server with two tokens."""
    if VARIABLE.encode() in environ:
        return Credential.TOKEN_FROM_ENVIRONMENT
    return Credential.TOKEN_FROM_FILE if token_file else Credential.TOKEN_MADE_AT_START


def instance_token(folder: Path, token_file: str, environ: Mapping[bytes, bytes]) -> bytes:
    """Return the token of the instance with the private folder `folder`.

    The first API server stores the configured token there, or one that is made then. Replacements read that file: the
    operator's own file may be gone by then. Raises `BadConfiguration` as `configured_token` does.
    """
    path = folder / _IN_INSTANCE
    if not path.exists():
        configured = configured_token(token_file, environ)
        _write_once(path, configured if configured is not None else secrets.token_urlsafe(32).encode())
    return _fit(_read_token(path), f"the file {path}")


def instance_page_key(folder: Path) -> bytes:
    """Return the key that signs the page's cookies: drawn by the first API server of the instance, for all of them."""
    path = folder / _PAGE_KEY
    if not path.exists():
        _write_once(path, secrets.token_hex(32).encode())
    return _fit(_read_token(path), f"the file {path}")


def _write_once(path: Path, content: bytes) -> None:
    draft = _write_private(path.parent / f".{path.name}-{os.getpid()}", content)
    try:
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)  # whole from the first moment, and never written twice
    finally:
        draft.unlink()


def _read_token(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_TOKEN_BYTES + 1)
    except OSError as error:
        raise BadConfiguration(f"the control token in {path} cannot be read: {error.strerror}") from None


def _fit(token: bytes, origin: str) -> bytes:
    token = token.strip(_BLANK)
    if not token:
        raise BadConfiguration(f"{origin} holds a blank control token", hint=f"set a token, or unset {VARIABLE}")
    if len(token) > MAX_TOKEN_BYTES:
        raise BadConfiguration(f"{origin} holds a control token of more than {MAX_TOKEN_BYTES} bytes")
    if any(byte < ord(" ") or byte == 0x7F for byte in token):
        raise BadConfiguration(f"{origin} holds a control token with control characters, which no header can carry")
    return token


# ---- files for commands of the same user


def announce(host: str | None, port: int, token: bytes, *, is_open: bool) -> Path | None:
    """Write the record of the current process, and remove records of ended processes.

    Returns the file; None when no private folder can be written.
    """
    for folder in _folders():
        with contextlib.suppress(OSError):
            folder.mkdir(mode=0o700, exist_ok=True)
            if not is_private_folder(folder):
                continue
            _remove_stale(folder)
            process = Identity.of(os.getpid())
            record = ServerRecord(process=process, host=host or "", port=port, token=token, is_open=is_open)
            draft = _write_private(folder / f".{os.getpid()}", msgspec.json.encode(record))
            return draft.rename(folder / f"{port}-{os.getpid()}{_SUFFIX}")
    return None


def withdraw(file: Path) -> None:
    """Remove the record of the current process, and the folder when no other record is there. Idempotent."""
    with contextlib.suppress(OSError):
        file.unlink(missing_ok=True)
        file.parent.rmdir()


def running_servers() -> list[ServerRecord]:
    """Return the records of all living servers of the current user."""
    folders = [folder for folder in _folders() if is_private_folder(folder)]
    return [
        record for folder in folders for _, record in _records(folder) if record is not None and record.process.is_alive
    ]


def find_token(host: str, port: int) -> bytes | None:
    """Return the token of the current user's server at an address; None for an unknown server.

    A server on a wildcard address is found under a loopback address only: a name may lead to another machine.
    """
    records = [record for record in running_servers() if record.port == port]
    for record in records:
        if record.host == host:  # another server may have the same port of another address
            return record.token
    for record in records:
        if _is_here(host) and (record.host in _WILDCARDS or _is_here(record.host)):
            return record.token
    return None


def _is_here(host: str) -> bool:
    return host == "localhost" or is_loopback(host)


def _folders() -> Iterator[Path]:
    """Yield the places for records, best first; a service and a login of the same user may see different places."""
    if given := os.environ.get("XDG_RUNTIME_DIR"):
        yield Path(given) / "holdfast"
    yield Path(f"/run/user/{os.getuid()}/holdfast")
    yield Path(tempfile.gettempdir()) / f"holdfast-{os.getuid()}"


def _records(folder: Path) -> Iterator[tuple[Path, ServerRecord | None]]:
    """Yield each record's file and content; None for an unreadable file."""
    with contextlib.suppress(OSError):
        for path in sorted(folder.glob(f"*{_SUFFIX}")):
            yield path, read_record(path, ServerRecord)


def _remove_stale(folder: Path) -> None:
    """Remove the records of processes that have ended for certain."""
    for path, record in _records(folder):
        if record is not None and record.process.has_ended:
            path.unlink(missing_ok=True)


def _write_private(path: Path, content: bytes) -> Path:
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
    return path
