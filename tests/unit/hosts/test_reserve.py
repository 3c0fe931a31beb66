"""What a repair needs is there although nothing else is left: shown in processes with a small limit on open files."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
import threading

import pytest

from holdfast.hosts.vllm.process import limits, reserve
from holdfast.hosts.vllm.process.reserve import Reserve

WITHIN_S = 10.0
# Uses up every descriptor, as clients of a server do, and then does what the replacement of an engine core does.
REPAIRS = """
import multiprocessing, os, resource, sys, tempfile, zmq
resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
from holdfast.hosts.vllm.process.reserve import Reserve

def main():
    kept = Reserve(*map(int, sys.argv[1:]))
    spawn = multiprocessing.get_context("spawn")
    path = tempfile.mkdtemp()
    queue = spawn.Lock()  # starts what the first spawned process starts
    try:
        while True:
            os.dup(0)
    except OSError:
        pass
    with kept.released():
        handshake = kept.context.socket(zmq.ROUTER)
        handshake.bind(f"ipc://{path}/handshake")
        process = spawn.Process(target=answer, args=(f"ipc://{path}/handshake",))
        process.start()
        assert handshake.poll(100_000), process.exitcode
        assert handshake.recv_multipart()[1] == b"ready"
        process.join()
        handshake.close(0)
    left = 0  # what ZeroMQ's own thread closes later than the reserve was taken again
    try:
        while left < len(kept._held):
            os.dup(0)
            left += 1
    except OSError:
        print("taken again" if left < 8 <= len(kept._held) else f"{left} left", flush=True)
    os._exit(0)

def answer(address):
    from holdfast.hosts.vllm.process.limits import raise_descriptor_limit
    socket = zmq.Context.instance().socket(zmq.DEALER)
    socket.connect(address)
    socket.send(b"ready")
    socket.close(-1)
    zmq.Context.instance().term()  # waits until all is sent

if __name__ == "__main__":
    main()
"""
NEW_CONTEXT = """
import os, resource, zmq
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
held = []
try:
    while True:
        held.append(os.dup(0))
except OSError:
    for descriptor in held[:2]:
        os.close(descriptor)
zmq.Context().socket(zmq.ROUTER)
"""


def run(program: str, *arguments: str, tmp_path: str = ".") -> subprocess.CompletedProcess[str]:
    with open(f"{tmp_path}/program.py", "w") as file:
        file.write(program)
    command = [sys.executable, f"{tmp_path}/program.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_an_engine_core_is_replaced_where_all_descriptors_are_used_up(tmp_path: str) -> None:
    done = run(REPAIRS, tmp_path=tmp_path)
    assert (done.returncode, done.stdout) == (0, "taken again\n"), done.stderr


def test_without_a_reserve_the_same_fails(tmp_path: str) -> None:
    done = run(REPAIRS, "0", tmp_path=tmp_path)
    assert done.returncode != 0
    assert "Too many open files" in done.stderr


def test_a_new_context_of_zeromq_ends_a_process_without_descriptors(tmp_path: str) -> None:
    """The reason for the context of the reserve."""
    assert run(NEW_CONTEXT, tmp_path=tmp_path).returncode == -signal.SIGABRT


@pytest.fixture
def kept() -> object:
    made = Reserve()
    yield made
    made.close()


def test_a_loan_ends_by_itself_and_only_the_last_repair_gives_back(kept: Reserve) -> None:
    assert len(kept._held) == reserve.DESCRIPTORS
    ended = threading.Event()
    give_back = kept._give_back

    def note(lent: int = 0) -> None:
        give_back(lent)
        ended.set()

    kept._give_back = note  # type: ignore[method-assign]
    with kept.released():
        kept.lend(0.0)
        assert ended.wait(WITHIN_S)
        assert kept._held == []
    assert len(kept._held) == reserve.DESCRIPTORS


def test_a_reserve_takes_a_quarter_of_a_low_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (100, 100))
    low = Reserve()
    assert len(low._held) == 25
    low.close()
    low.close()
    assert low._held == []


def test_work_needs_no_new_thread_until_the_reserve_is_busy(kept: Reserve, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []
    done, go = threading.Semaphore(0), threading.Event()

    def work() -> None:
        names.append(threading.current_thread().name)
        done.release()
        assert go.wait(WITHIN_S)
        if threading.current_thread().name != "Repair":
            raise ValueError("costs the reserve nothing")

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as without_threads:
        without_threads.setattr(threading.Thread, "start", refuse)
        for _ in range(reserve.THREADS):
            kept.run("Repair", work)
            assert done.acquire(timeout=WITHIN_S)
        with pytest.raises(RuntimeError):
            kept.run("Repair", work)
        kept.lend(60.0)  # no thread would end the loan: it ends at once
        assert len(kept._held) == reserve.DESCRIPTORS
    assert sorted(names) == [f"Reserve-{number}" for number in range(reserve.THREADS)]
    kept.run("Repair", work)
    assert done.acquire(timeout=WITHIN_S)
    assert names[-1] == "Repair"
    go.set()


def test_the_limit_on_open_files_is_raised_as_far_as_the_system_allows() -> None:
    program = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (100, 300));"
        "from holdfast.hosts.vllm.process.limits import raise_descriptor_limit as up; up();"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "(300, 300)\n"


@pytest.mark.parametrize(
    ("soft", "hard", "wanted"),
    [(1024, resource.RLIM_INFINITY, limits.WANTED_DESCRIPTORS), (resource.RLIM_INFINITY, resource.RLIM_INFINITY, None)],
)
def test_a_limit_is_never_lowered(monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, wanted: int | None) -> None:
    told: list[int] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, to: told.append(to[0]))
    limits.raise_descriptor_limit()
    assert told == ([wanted] if wanted is not None else [])
