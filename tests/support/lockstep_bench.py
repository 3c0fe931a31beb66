"""One lockstep group in threads: the real sentinels over the in-memory wire, pretend engine cores and ranks."""

import os
import threading
import time

from holdfast.core.config import HoldfastConfig
from holdfast.core.faults.injection import InjectionSpec
from holdfast.core.protocol import messages as m
from holdfast.core.protocol.commands import InjectFault, Pause, RestartWorkers
from holdfast.core.protocol.events import EventKind
from holdfast.core.protocol.messages import Rendezvous
from holdfast.core.states import EngineState
from holdfast.hosts.fake import EngineOptions, FakeEngineCore, fault_free_output
from holdfast.hosts.fake.communicators import FakeNetwork
from holdfast.sentinel import ClientSentinel, EngineCoreSentinel, EngineDefeated, WorkerSentinel
from holdfast.wire import MemoryNetwork

WAIT_S = 20.0
SETTLED = (EngineState.HEALTHY, EngineState.DEAD)
PROMPTS = {"a": range(1, 14), "b": range(1, 10), "c": [7, 7, 7]}
LENGTHS = {"a": 9, "b": 12, "c": 15}


class Rank:
    """Worker as the sentinel sees it. In epochs of silence, the worker follows orders and reports nothing."""

    def __init__(self, worker):
        self.worker = worker
        self.reporter = None
        self.silent_from = self.silent_until = float("inf")
        self.broke = []

    def report(self, fault, epoch, *, finishes=False):
        if not self._is_silent(epoch):
            self.reporter.report(fault, epoch)

    def arm(self, spec):
        self.worker.arm(spec)

    def break_collectives(self, epoch):
        connections = self.worker.break_collectives(epoch)
        self.broke.append(epoch)
        return None if self._is_silent(epoch) else connections

    def _is_silent(self, epoch):
        return self.silent_from <= epoch < self.silent_until


class EngineThread:
    """Engine core with ranks and sentinels; the busy loop runs on a separate thread."""

    def __init__(self, bench, engine_id, options):
        config, network = bench.config, bench.network
        data_parallel = bench.data_parallel.rank(engine_id) if bench.data_parallel.size > 1 else None
        self.core = FakeEngineCore(engine_id, options, None, data_parallel)
        address = f"engine-{engine_id}"
        self.sentinel = EngineCoreSentinel(engine_id, config, network.station(), "client", address)
        self.ranks = [Rank(worker) for worker in self.core.workers]
        self.workers = [WorkerSentinel(rank, i, network.station(), address) for i, rank in enumerate(self.ranks)]
        self.streams = {name: [] for name in PROMPTS}
        self.expected = {n: fault_free_output(list(p), LENGTHS[n], options.ranks) for n, p in PROMPTS.items()}
        self.defeat = None
        self.before_step = {}  # number of a step: what happens before it, on the busy loop's thread
        self._steps = 0
        self._options = options
        self._thread = threading.Thread(target=self._run, name=address, daemon=True)
        for name, prompt in PROMPTS.items():
            self.core.add(name, list(prompt), LENGTHS[name])

    def attach(self):
        self.sentinel.start()
        for rank, sentinel in zip(self.ranks, self.workers, strict=True):
            rank.reporter, rank.worker.reporter = sentinel, rank
            sentinel.start(())
        self.sentinel.announce(self.core, (), self.sentinel.await_workers(self._options.ranks, WAIT_S))

    def start(self):
        self._thread.start()

    def join(self):
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive(), f"engine {self.core.engine_id} never ends"

    def close(self):
        for sentinel in (*self.workers, self.sentinel):
            sentinel.close()
        self.core.ranks.close()

    def _run(self):
        try:
            self.sentinel.run(self._busy_loop, lambda: True)
        except EngineDefeated as defeat:
            self.defeat = str(defeat)

    def _busy_loop(self):
        goes_on = True
        while goes_on:
            self._steps += 1
            self.before_step.pop(self._steps, lambda: None)()
            try:
                goes_on = self.core.step()
            finally:
                for output in self.core.take_outputs():
                    self.streams[output.request_id].append(output.token)


class Lockstep:
    """Engine cores that share collectives, and the front end that owns the engine cores."""

    def __init__(self, engines=1, ranks=2, unsafe_skip_fence=False, **settings):
        self.config = HoldfastConfig(
            enable_fault_injection=True, max_retries=20, unsafe_skip_fence=unsafe_skip_fence, **settings
        )
        self.network, self.data_parallel = MemoryNetwork(), FakeNetwork(engines)
        self.reason, self.ended = "", threading.Event()
        group = tuple(range(engines))
        self.client = ClientSentinel([group], self.config, self, self.network.station(), "client")
        options = EngineOptions(
            ranks=ranks, steps_in_flight=2, rank_threads=True, unsafe_skip_fence=self.config.unsafe_skip_fence
        )
        self.engines = [EngineThread(self, engine_id, options) for engine_id in group]
        self.client.start()
        for engine in self.engines:
            engine.attach()
        self.client.await_attached(WAIT_S)

    # ---- orders of a test

    def arm(self, phase, engine=0, rank=0, after_steps=0, times=1, **about):
        spec = InjectionSpec(phase=phase, engine_id=engine, rank=rank, after_steps=after_steps, times=times, **about)
        command = InjectFault(command_id=f"{phase}-{engine}-{rank}-{after_steps}", spec=spec)
        self.client.submit(command).result(WAIT_S)

    def pause_before_step(self, step, soft=False):
        """Pause the whole group by command before a step of the first engine core; return a list for the future."""
        core, paused = self.engines[0].core, []

        def pause():
            paused.append(self.client.submit(Pause(command_id="pause", soft=soft)))
            self._await_stop(core)

        self.engines[0].before_step[step] = pause
        return paused

    def _await_stop(self, core):
        deadline = time.monotonic() + WAIT_S
        while not core.is_told_to_stop and time.monotonic() < deadline:
            time.sleep(0.0005)

    def restart_workers_before_step(self, step):
        """Restart every worker of the first engine core before a step; return a list for the future."""
        core, restarting = self.engines[0].core, []

        def restart():
            restarting.append(self.client.submit(RestartWorkers(command_id="restart", engine_id=0)))
            self._await_stop(core)

        self.engines[0].before_step[step] = restart
        return restarting

    def lose_before_step(self, step, rank):
        """End the process of a rank of the first engine core before a step."""
        engine = self.engines[0]

        def lose():
            engine.core.kill_rank(rank)
            engine.sentinel.rank_lost(rank, os.getpid(), "killed by SIGKILL")

        engine.before_step[step] = lose

    def run(self):
        """Run every engine core until the requests or the engine core have ended."""
        self.start()
        self.join()

    def start(self):
        for engine in self.engines:
            engine.start()

    def join(self):
        """Wait until every engine core has ended and the client has taken the last report."""
        for engine in self.engines:
            engine.join()
        with self.client._changed:
            self.client._changed.wait_for(lambda: all(e.state in SETTLED for e in self.client.view().engines), WAIT_S)

    def wait_until(self, holds):
        """Wait until the events that the client has published make a condition true."""
        with self.client._changed:
            assert self.client._changed.wait_for(holds, WAIT_S)

    def is_exact(self):
        return all(engine.streams == engine.expected for engine in self.engines)

    def happened(self, kind):
        return [e for e in self.client.history() if e.kind is kind]

    @property
    def recoveries(self):
        return len(self.happened(EventKind.ENGINE_RECOVERED))

    def say(self, engine, message):
        """Send a message of a worker that the sentinel would not send now."""
        sentinel = self.engines[engine].workers[message.rank]
        assert isinstance(message, m.CollectivesBroken)
        sentinel._thread.post(lambda: sentinel._send(message))

    def close(self):
        for engine in self.engines:
            engine.close()
        self.client.close()

    # ---- FrontEndHost

    def unrecoverable_reason(self):
        return ""

    def end_instance(self, order):
        self.reason = order.reason
        self.ended.set()

    def open_rendezvous(self, group, epoch):
        meet = Rendezvous("memory", 0, epoch)
        for network in self._networks():
            network.open(epoch)
        return meet

    def close_rendezvous(self, group, epoch):
        for network in self._networks():
            network.close(epoch)

    def _networks(self):
        return [self.data_parallel, *(engine.core.ranks.network for engine in self.engines)]
