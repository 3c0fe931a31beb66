"""An instance of one rank whose sinks all hang: prints how long each decision took, to descriptor `sys.argv[2]`.

The log goes to a pipe that nobody reads, notifications to subscribers that read nothing and flood, a third sink never
returns, evidence goes to a folder that hangs, and strangers flood the sentinels' sockets. The sentinels, their wire,
the log, its drain and the publisher are the shipped ones; the engine core raises in every step and recovers at once.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from pathlib import Path

import zmq

from holdfast.api.notify import Publisher, log_event
from holdfast.core.config import HoldfastConfig
from holdfast.core.protocol import messages as m
from holdfast.core.stalls.stalls import Stall
from holdfast.hosts.vllm.process.logs import divert
from holdfast.hosts.vllm.process.output import never_block_output
from holdfast.sentinel import ClientSentinel, EngineCoreSentinel, WorkerSentinel
from holdfast.sentinel.beside import dropped_items
from holdfast.sentinel.incident_files import MAX_WRITERS, StallFiles
from holdfast.wire import ZmqStation

DECISIONS, ROUNDS = 150, 3
LINES = 10_000  # more than the pipe and the drain hold


class Host:
    """Worker, engine core and front end in one: notes when a recovery begins."""

    engine_id, in_lockstep, compiles_in_steps, step_ended_well, devices, requests = 0, False, False, True, None, None
    pipeline_stages = 1

    def __init__(self) -> None:
        self.began_s: list[float] = []

    def recover(self, error: Exception, epoch: int, rendezvous: object, replace: object = ()) -> m.RecoveryReport:
        self.began_s.append(time.monotonic())
        return m.RecoveryReport(requests=1)

    def unrebuildable(self) -> tuple[str, ...]:
        return ()

    def unrecoverable_reason(self) -> str:
        return ""

    def unfinished_requests(self) -> int:
        return 1

    def __getattr__(self, name: str) -> object:
        return lambda *args, **options: None


def hang(*_: object) -> None:
    threading.Event().wait()


def fill_the_log() -> None:
    for number in range(LINES):
        os.write(2, b"line %06d " % number + b"-" * 1000 + b"\n")


def flood(addresses: list[str]) -> None:
    """Send garbage as a stranger and as a peer, without end."""
    with zmq.Context() as context:
        senders = []
        for address in addresses:
            sender = context.socket(zmq.DEALER)
            sender.setsockopt(zmq.LINGER, 0)
            sender.connect(address)
            senders.append(sender)
        while True:
            for sender in senders:
                sender.send(os.urandom(50))
            time.sleep(0.002)


def hang_evidence() -> list[float]:
    """Let every writer of evidence hang; return how long each call took."""
    files, took = StallFiles("", "", 0), []
    files._keep = hang  # type: ignore[method-assign,assignment]
    for _ in range(MAX_WRITERS + 2):
        began = time.monotonic()
        files.keep_within(Stall(0, 1, True, "stopped"), {}, lambda: None)
        took.append(time.monotonic() - began)
    return took


def main(folder: str, answers: int) -> None:
    never_block_output()
    log = logging.getLogger("holdfast")
    log.handlers, log.propagate = [logging.StreamHandler()], False
    log.setLevel(logging.DEBUG)
    divert(log)
    publisher = Publisher("127.0.0.1", 0)
    sinks = {"log": log_event, "notifications": publisher.publish, "hangs": hang}
    config, host = HoldfastConfig(max_retries=10**6, stall_detection=False, poison_detection=False), Host()
    addresses = [f"ipc://{folder}/client", f"ipc://{folder}/engine-0"]
    client = ClientSentinel([(0,)], config, host, ZmqStation(), addresses[0], sinks=sinks)  # type: ignore[arg-type]
    engine = EngineCoreSentinel(0, config, ZmqStation(), *addresses)
    worker = WorkerSentinel(host, 0, ZmqStation(), addresses[1])  # type: ignore[arg-type]
    client.start()
    engine.start()
    worker.start(("step",))
    engine.announce(host, ("step",), engine.await_workers(1, 20.0))  # type: ignore[arg-type]
    client.await_attached(20.0)
    os.write(answers, f"{publisher.address}\n".encode())
    fill_the_log()
    threading.Thread(target=flood, args=(addresses,), daemon=True).start()
    evidence_s = hang_evidence()
    rounds = [decide(engine, host) for _ in range(ROUNDS)]
    told = {"evidence_s": evidence_s, "rounds": rounds, "dropped": dropped_items()}
    os.write(answers, f"{json.dumps(told)}\n".encode())
    os._exit(0)


def decide(engine: EngineCoreSentinel, host: Host) -> list[float]:
    """Return the seconds from each error of a step to the begin of its recovery."""
    raised_s: list[float] = []
    host.began_s.clear()

    def busy_loop() -> None:
        if len(raised_s) < DECISIONS:
            raised_s.append(time.monotonic())
            raise ValueError("a step has failed")

    engine.run(busy_loop, lambda: True)
    return [began - raised for began, raised in zip(host.began_s, raised_s, strict=True)]


if __name__ == "__main__":
    Path(sys.argv[1]).mkdir(exist_ok=True)
    main(sys.argv[1], int(sys.argv[2]))
