"""A failing schedule as a line that replays it, with the fewest planned items that break the law."""

from __future__ import annotations

from holdfast.chaos.simulation.sentinels.plan import Schedule, draw_schedule, shrink
from holdfast.chaos.simulation.sentinels.run import simulate
from holdfast.chaos.simulation.world import LawBroken


def fails(schedule: Schedule) -> LawBroken | None:
    """Return the law that a schedule breaks, None for none."""
    try:
        simulate(schedule)
    except LawBroken as broken:
        return broken
    return None


def shrink_failure(schedule: Schedule) -> tuple[tuple[int, ...], LawBroken]:
    """Return the planned items that suffice to break a law, and the law."""
    kept = shrink(tuple(range(len(schedule.planned))), lambda some: fails(schedule.only(some)) is not None)
    broken = fails(schedule.only(kept))
    assert broken is not None
    return kept, broken


def explain(seed: int, broken: LawBroken, schedule: Schedule | None = None) -> str:
    """Return a failure as a command line that replays it with the fewest items, the items, and the law."""
    schedule = schedule or draw_schedule(seed)
    kept, broken = shrink_failure(schedule)
    items = "\n".join(f"  {i}: {schedule.planned[i]}" for i in kept)
    line = f"python -m holdfast.chaos.simulation.sentinels {seed} --only {','.join(map(str, kept)) or 'none'}"
    return f"replay: {line}\nof {len(schedule.planned)} planned items {len(kept)} suffice:\n{items}\n{broken}"
