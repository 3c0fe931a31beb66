"""Find the objects that reference an old process group, and give them the new group.

First along the host's known objects, which takes milliseconds; then, where the reference count shows a remaining
reference, through the garbage collector, which walks the whole heap. The frame of a finished call, kept by the
traceback of an exception, does no harm and is ignored.
"""

from __future__ import annotations

import gc
import sys
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch.distributed import distributed_c10d as c10d

# Reference count of a group that only a list references: the list, a loop variable, the argument.
_REFERENCES_OF_LIST = 3

Renewed = Mapping[int, Any]  # id of an old group -> the new group; the caller keeps the old groups alive


def replace_reachable(roots: Iterable[Any], renewed: Renewed) -> int:
    """Replace every reference to an old group that is reachable from `roots`; return how many."""
    return sum(_replace_in(vars(holder), renewed) for holder in _reachable(roots))


def still_referenced(groups: list[Any]) -> list[Any]:
    """Return the groups that any object besides the list references."""
    return [group for group in groups if sys.getrefcount(group) > _REFERENCES_OF_LIST]


def replace_everywhere(groups: list[Any], renewed: Renewed) -> list[str]:
    """Replace every reference to an old group in the whole heap; describe the objects that cannot be changed."""
    left = []
    for holder in _referrers(groups):
        if not _replace_in(holder, renewed):
            left.append(_describe(holder))
    return left


def fixed_holders(groups: list[Any]) -> list[str]:
    """Describe the objects that reference a group and cannot be changed. Changes nothing."""
    return [_describe(holder) for holder in _referrers(groups) if not _can_replace_in(holder)]


def _reachable(roots: Iterable[Any]) -> Iterator[Any]:
    """Yield the host's own objects, each once. Skips further packages: reading attributes may have effects there."""
    queue, seen = list(roots), set()
    while queue:
        found = queue.pop()
        if isinstance(found, list | tuple | set):
            queue.extend(found)
        elif isinstance(found, dict):
            queue.extend(found.values())
        elif id(found) not in seen and _is_hosts(found):
            seen.add(id(found))
            yield found
            queue.extend(vars(found).values())


def _is_hosts(found: Any) -> bool:
    if isinstance(found, type | types.ModuleType) or not hasattr(found, "__dict__"):
        return False
    return type(found).__module__.startswith(("vllm", "torch.nn.modules", "holdfast")) or hasattr(found, "_modules")


def _can_replace_in(holder: Any) -> bool:
    return isinstance(holder, dict | list | set | types.CellType) or _has_attributes(holder)


def _has_attributes(holder: Any) -> bool:
    return hasattr(holder, "__dict__") and not isinstance(holder, type | types.FunctionType)


def _replace_in(holder: Any, renewed: Renewed) -> int:
    match holder:
        case dict():
            stale: Any = [key for key, value in holder.items() if id(value) in renewed]
            holder.update({key: renewed[id(holder[key])] for key in stale})
        case list():
            stale = [index for index, value in enumerate(holder) if id(value) in renewed]
            for index in stale:
                holder[index] = renewed[id(holder[index])]
        case set():
            stale = [value for value in holder if id(value) in renewed]
            holder.difference_update(stale)
            holder.update(renewed[id(value)] for value in stale)
        case types.CellType():
            stale = [holder.cell_contents]
            holder.cell_contents = renewed[id(stale[0])]
        case _ if _has_attributes(holder):
            return _replace_in(vars(holder), renewed)
        case _:
            return 0
    return len(stale)


def _referrers(groups: list[Any]) -> list[Any]:
    """Return the objects that reference a group, without `groups`, frames and torch's own tables.

    Unfreezes a heap that the host froze: the collector does not see frozen objects.
    """
    frozen = gc.get_freeze_count() > 0
    if frozen:
        gc.unfreeze()
    try:
        found = gc.get_referrers(*groups)
    finally:
        if frozen:
            gc.freeze()
    own = {id(groups), *map(id, _torch_tables())}
    return [holder for holder in found if id(holder) not in own and not isinstance(holder, types.FrameType)]


def _torch_tables() -> Iterator[Any]:
    world = c10d._world
    yield from (world, world.pg_map, world.pg_names, world.pg_group_ranks, world.pg_backend_config, world.pg_to_tag)
    yield from (world.pg_coalesce_state, *world.tags_to_pg.values())


def _describe(holder: Any) -> str:
    owner = type(holder)
    text = f"{owner.__module__}.{owner.__qualname__}"
    if isinstance(holder, dict | list | tuple | set):
        text += f" of {len(holder)}"
    return text
