"""Replay seeds: `python -m holdfast.chaos.simulation.sentinels FIRST[:END] [--only 0,3]`; prints the coverage."""

from __future__ import annotations

import argparse
import logging
import signal
import time
from typing import NoReturn

from holdfast.chaos.simulation.sentinels import Tally, draw_schedule, explain, simulate
from holdfast.chaos.simulation.world import LawBroken

RUN_S = 60.0  # of real time, which bounds a run that stays at one moment of virtual time


def _run_out(*_: object) -> NoReturn:
    raise LawBroken(f"a run ends within {RUN_S:g} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seeds")
    parser.add_argument("--only", help="numbers of the planned items to keep, or none")
    parser.add_argument("--keep-going", action="store_true")
    parser.add_argument("--first", action="store_true", help="end at the first failure, without shrinking")
    chosen = parser.parse_args()
    signal.signal(signal.SIGALRM, _run_out)
    logging.getLogger("holdfast").setLevel(logging.CRITICAL + 1)
    first, _, end = chosen.seeds.partition(":")
    tally, began, broken = Tally(), time.monotonic(), 0
    for seed in range(int(first), int(end or int(first) + 1)):
        schedule = draw_schedule(seed)
        if chosen.only is not None:
            schedule = schedule.only(tuple(int(i) for i in chosen.only.split(",") if i.isdigit()))
        signal.setitimer(signal.ITIMER_REAL, RUN_S)
        try:
            tally.add(simulate(schedule).tally)
        except LawBroken as error:
            broken += 1
            if chosen.first:
                print(str(error).splitlines()[0])
                raise SystemExit(1) from None
            print(explain(seed, error, schedule) if not chosen.keep_going else f"{seed}: {str(error).splitlines()[0]}")
            if not chosen.keep_going:
                raise SystemExit(1) from None
    print(f"{tally.runs} runs in {time.monotonic() - began:.1f} s, {broken} broken, {tally.faults} faults planned")
    for name in ("transitions", "failed_effects", "events"):
        print(f"{name}: {dict(getattr(tally, name).most_common())}")


if __name__ == "__main__":
    main()
