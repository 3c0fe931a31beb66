"""The shipped sentinels (client, engine cores, workers, links) in a simulation: virtual processes, time and wire."""

from holdfast.chaos.simulation.sentinels.failures import explain, fails, shrink_failure
from holdfast.chaos.simulation.sentinels.plan import EFFECTS, Kind, Planned, Schedule, draw_schedule, shrink
from holdfast.chaos.simulation.sentinels.result import RunResult, Tally
from holdfast.chaos.simulation.sentinels.run import simulate

__all__ = [
    "EFFECTS",
    "Kind",
    "Planned",
    "RunResult",
    "Schedule",
    "Tally",
    "draw_schedule",
    "explain",
    "fails",
    "shrink",
    "shrink_failure",
    "simulate",
]
