"""Two ranks that a test commands: real processes with the host's coordinators over gloo, or threads over the fake.

Each rank does one thing after another on its main thread, and takes part in a break or a question meanwhile.
"""

from __future__ import annotations

import functools
import itertools
import multiprocessing
import os
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

from holdfast.hosts.fake.communicators import FakeNetwork

LONG_S = 60.0  # a bound that a passing test never reaches
WORLD = 2
HOST_TIMEOUT = timedelta(seconds=1234)  # the host's own bound for its collectives


@dataclass
class Outcome:
    """How a command ended, and when: on the monotonic clock, which all processes share."""

    value: Any
    error: str
    message: str
    ended_at: float
    took_s: float


def outcome_of(do: Callable[..., Any], *args: Any) -> Outcome:
    began = time.monotonic()
    value, error, message = None, "", ""
    try:
        value = do(*args)
    except Exception as caught:
        error, message = type(caught).__name__, str(caught)
    ended = time.monotonic()
    return Outcome(value, error, message, ended, ended - began)


class Rank:
    """The commands of a rank: `call` and `start` run on its main thread, `now` beside the main thread."""

    def __init__(self, main: Callable[..., Outcome], aside: Callable[..., Outcome]) -> None:
        self._pools = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._main, self._aside = main, aside

    def start(self, do: Callable[..., Any], *args: Any) -> Future[Outcome]:
        return self._pools[0].submit(self._main, do, *args)

    def call(self, do: Callable[..., Any], *args: Any) -> Outcome:
        return self.start(do, *args).result(LONG_S)

    def now(self, do: Callable[..., Any], *args: Any) -> Outcome:
        return self._pools[1].submit(self._aside, do, *args).result(LONG_S)

    def close(self) -> None:
        for pool in self._pools:
            pool.shutdown(wait=False, cancel_futures=True)


# ---- what a rank can be told; `self` is what holds its communicators


def all_reduce(member: Any, value: float) -> float:
    return member.all_reduce(value)


def all_reduce_on_and_on(member: Any, numbers: int) -> None:
    """Ends with the error of a break."""
    import torch

    while True:
        torch.distributed.all_reduce(torch.ones(numbers), group=member.group)


def waits_in(member: Any) -> str | None:
    """Return the collective in which the main thread of this process waits."""
    from holdfast.hosts.vllm.communicators.gloo import collective_under_way

    return collective_under_way(threading.main_thread().ident or 0)


def break_all(member: Any) -> int:
    return member.communicators.break_all()


def broken(member: Any) -> bool:
    return member.communicators.broken


def rebuild(member: Any, rendezvous: Any, timeout_s: float = 10.0) -> None:
    member.communicators.rebuild(rendezvous, timeout_s)


def unrebuildable(member: Any) -> tuple[str, ...]:
    return member.communicators.unrebuildable()


# ---- the fake


class FakeMember:
    def __init__(self, network: FakeNetwork, rank: int) -> None:
        self.communicators = network.rank(rank)

    def all_reduce(self, value: float) -> float:
        return self.communicators.all_reduce(value, LONG_S)


class FakeWorld:
    def __init__(self) -> None:
        network = FakeNetwork(WORLD)
        self.open, self.close_rendezvous = network.open, network.close
        self._network = network
        members = [FakeMember(network, rank) for rank in range(WORLD)]
        # A rank's function comes first, the member it is done on second.
        self.ranks = [Rank(*(functools.partial(_on, member),) * 2) for member in members]

    def close(self) -> None:
        for rank in self.ranks:
            rank.close()

    def traces(self, epoch: int) -> int:
        """How much ranks have left in an open rendezvous: none before the first has come."""
        group = self._network.group(epoch)
        return len(group.joined) if group is not None else 0


def _on(member: Any, do: Callable[..., Any], *args: Any) -> Outcome:
    return outcome_of(do, member, *args)


# ---- processes


class TorchMember:
    """Torch's groups without the host, over gloo: a default group, a group of both ranks, a group of this rank."""

    def __init__(self, rank: int, port: int) -> None:
        import torch.distributed

        from holdfast.hosts.vllm.communicators import WorkerCommunicators
        from holdfast.hosts.vllm.communicators.tracking import watch_torch_groups

        watch_torch_groups()
        torch.distributed.init_process_group(
            "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=WORLD, timeout=HOST_TIMEOUT
        )
        self.group = torch.distributed.new_group(list(range(WORLD)), timeout=HOST_TIMEOUT)
        self.own = [torch.distributed.new_group([r]) for r in range(WORLD)][rank]
        self.communicators = WorkerCommunicators()
        self.kept: dict[str, Any] = {}

    def all_reduce(self, value: float) -> float:
        import torch

        tensor = torch.full((4,), value)
        torch.distributed.all_reduce(tensor, group=self.group)
        return float(tensor[0])


class HostMember:
    """The host's coordinators over gloo, for a tensor-parallel rank of two."""

    def __init__(self, rank: int, port: int) -> None:
        from vllm.config import VllmConfig, set_current_vllm_config
        from vllm.distributed import parallel_state
        from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator

        from holdfast.hosts.vllm.communicators import WorkerCommunicators, attach_communicator_hooks

        attach_communicator_hooks()
        CpuCommunicator._all_group_ranks_share_shm_group_name = lambda _: False  # gloo, as on several machines
        self.vllm_config = VllmConfig()
        with set_current_vllm_config(self.vllm_config):
            address = f"tcp://127.0.0.1:{port}"
            parallel_state.init_distributed_environment(WORLD, rank, address, rank, "gloo", HOST_TIMEOUT)
            parallel_state.initialize_model_parallel(WORLD)
        self.state = parallel_state
        self.communicators = WorkerCommunicators(self)
        self.kept: dict[str, Any] = {}

    def all_reduce(self, value: float) -> float:
        import torch

        return float(self.state.get_tp_group().all_reduce(torch.full((4,), value))[0])


MEMBERS = {"torch": TorchMember, "host": HostMember}


def serve(kind: str, rank: int, port: int, theirs: list[Connection], ours: list[Connection]) -> None:
    """Run the process of a rank until the test closes the pipes; `ours` are the ends of the test."""
    main, aside = theirs
    for end in ours:
        end.close()
    os.environ.update(OMP_NUM_THREADS="1", VLLM_CPU_OMP_THREADS_BIND="nobind")
    try:
        member = MEMBERS[kind](rank, port)
        threading.Thread(target=_obey, args=(aside, member), daemon=True).start()
        _obey(main, member)
    except EOFError:
        return


def _obey(orders: Connection, member: Any) -> None:
    while True:
        do, args = orders.recv()
        orders.send(outcome_of(do, member, *args))


def _ask(orders: Connection, do: Callable[..., Any], *args: Any) -> Outcome:
    orders.send((do, args))
    if not orders.poll(LONG_S):
        raise TimeoutError(f"a rank did not finish {do.__name__}")
    return orders.recv()


class GlooWorld:
    def __init__(self, kind: str) -> None:
        from holdfast.hosts.vllm.communicators import RendezvousHost

        self._host = RendezvousHost()
        self.open, self.close_rendezvous = self._host.open, self._host.close

        from holdfast.hosts.vllm.communicators import WorkerCommunicators, tracking  # noqa: F401

        pipes = [[multiprocessing.Pipe() for _ in range(2)] for _ in range(WORLD)]
        port = free_port()
        ours = [our for ends in pipes for our, _ in ends]
        self._processes = [_start(kind, rank, port, [their for _, their in pipes[rank]], ours) for rank in range(WORLD)]
        self.ranks = [Rank(*(functools.partial(_ask, ours) for ours, _ in ends)) for ends in pipes]

    def close(self) -> None:
        for rank in self.ranks:
            rank.close()
        for process in self._processes:
            process.kill()
            process.join(LONG_S)
        self._host.close_all()

    def traces(self, epoch: int) -> int:
        """How much ranks have left in an open rendezvous, beside what its owner put there."""
        keys: int = self._host._stores[epoch].num_keys()
        return keys - self._keys_of_the_owner

    @functools.cached_property
    def _keys_of_the_owner(self) -> int:
        from holdfast.hosts.vllm.communicators import RendezvousHost

        host, epoch = RendezvousHost(), 0
        host.open(epoch)
        keys: int = host._stores[epoch].num_keys()
        host.close_all()
        return keys


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _start(kind: str, rank: int, port: int, theirs: list[Connection], ours: list[Connection]) -> Any:
    context = multiprocessing.get_context("fork")  # before this process has made a thread of torch's
    process = context.Process(target=serve, args=(kind, rank, port, theirs, ours), daemon=True)
    process.start()
    for end in theirs:
        end.close()
    return process


# ---- a test's view of a world

EPOCHS = itertools.count(1)


class Stage:
    """A world with the epochs of a test."""

    def __init__(self, world):
        self.world = world
        self.ranks = world.ranks
        self.first, self.second = world.ranks

    def rendezvous(self):
        opened = self.world.open(next(EPOCHS))
        assert self.world.traces(opened.epoch) == 0
        return opened

    def await_come(self, rendezvous):
        """Wait until a rank is in the rendezvous, where it waits for its peer."""
        deadline = time.monotonic() + LONG_S
        while not self.world.traces(rendezvous.epoch):
            assert time.monotonic() < deadline, "nobody came"
            time.sleep(0.005)

    def rebuild(self, timeout_s=10.0):
        rendezvous = self.rendezvous()
        attempts = [rank.start(rebuild, rendezvous, timeout_s) for rank in self.ranks]
        return [attempt.result() for attempt in attempts]

    def both(self, do, *args):
        attempts = [rank.start(do, *args) for rank in self.ranks]
        return [attempt.result() for attempt in attempts]


def whole(world):
    stage = Stage(world)
    assert [outcome.error for outcome in stage.rebuild()] == ["", ""]
    return stage
