"""The floor: bytes that the arena takes at least, whatever the layouts."""

from __future__ import annotations

from collections.abc import Iterator

from networkx.utils import UnionFind

from convc.ir import Concat, Node, Reshape, Slice
from convc.layout import blocked
from convc.plan.layouts import activations
from convc.plan.plan import Copy, Group, Plan
from convc.plan.views import align, buffer_bytes
from convc.plan.work import is_elementwise


def arena_floor(plan: Plan, *, block: int) -> int:
    """The most that must be held at once, each value in the smaller of its layouts.

    Values whose homes may become one, as views or in place, count as the largest of them, and those that may lie in a
    buffer of the caller not at all. From the call that writes a value to the last that reads it, the value or its copy
    is held.
    """
    homes = UnionFind([g.result for g in plan.groups])
    for group in plan.groups:
        homes.union(group.result, *_mergeable(group))
    outside = {homes[node] for node in (*plan.inputs, *(n for _, n in plan.outputs))}
    first: dict[Node, int] = {}
    last: dict[Node, int] = {}
    for t, group in enumerate(plan.groups):
        first[group.result] = t
        last.update((node, t) for node in (*activations(group), group.result))
    held: list[dict[Node, int]] = [{} for _ in plan.groups]
    for node, begin in first.items():
        home, size = homes[node], min(align(buffer_bytes(node, blocked(node.shape, block=b))) for b in (1, block))
        if home not in outside:
            for now in held[begin : last[node] + 1]:
                now[home] = max(now.get(home, 0), size)
    return max((sum(now.values()) for now in held), default=0)


def _mergeable(group: Group) -> Iterator[Node]:
    """The reads in whose buffers the result may lie, as `Homes` decides once layouts are known."""
    view = len(group.nodes) == 1 and isinstance(group.result, Copy | Reshape | Slice | Concat)
    in_place = all(is_elementwise(n) for n in group.nodes)
    yield from (r for r in activations(group) if view or (in_place and r.shape == group.result.shape))
