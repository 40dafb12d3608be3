"""Homes: which values share a buffer, and where in it each begins."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from convc.ir import Concat, Const, Node, Reshape, Slice
from convc.layout import PLAIN, Layout
from convc.plan.plan import Copy, Group, Plan, Slot
from convc.plan.views import buffer_bytes, view_offsets
from convc.plan.work import is_elementwise

Block = tuple[int, int, int]
"""Bytes, and the first and last call that need them."""


@dataclass(eq=False)
class Home:
    """One buffer. `begin` has every value's first byte in it; `written` the byte ranges that callers and kernels write
    (the other values are views of those). `fixed` is the caller's buffer that it is, with the value that is all of it.
    """

    begin: dict[Node, int]
    end: dict[Node, int]
    written: list[tuple[int, int]]
    fixed: tuple[Slot, Node] | None = None

    @property
    def start(self) -> int:
        return min(self.begin.values())

    @property
    def bytes(self) -> int:
        return max(self.end.values()) - self.start


class Homes:
    """The home of every value, after all views that fit have been taken.

    A view is taken where the ranges that are written stay apart (so every value in a home keeps its bytes, whatever
    else is written there) and where nothing reaches beyond a buffer of the caller. It is checked for one group after
    the other, so that concats which each continue the one before end up in one buffer. Parts of a concat that do not
    fit are copied into it; one that no part fits is a kernel.
    """

    def __init__(self, plan: Plan) -> None:
        self.layouts: dict[Node, Layout] = dict(plan.layouts)
        self.calls: list[Group] = []
        self.of: dict[Node, Home] = {}
        outputs = {node: Slot("output", index=i) for i, (_, node) in enumerate(plan.outputs)}
        for i, node in enumerate(plan.inputs):
            self._add(node, Slot("input", index=i))
        for group in plan.groups:
            self._add(group.result, outputs.get(group.result))
        for group in plan.groups:
            self._place(group)

    def _add(self, node: Node, slot: Slot | None) -> None:
        size = self._bytes(node)
        self.of[node] = Home({node: 0}, {node: size}, [(0, size)], (slot, node) if slot else None)

    def _place(self, group: Group) -> None:
        """Append the group to the calls, or take its result as a view, for which no kernel runs."""
        node = group.result
        if len(group.nodes) > 1 or not self._as_view(node):
            self.calls.append(group)

    def _as_view(self, node: Node) -> bool:
        if not isinstance(node, Copy | Reshape | Slice | Concat):
            return False
        offsets = view_offsets(node, [self.layouts.get(a, PLAIN) for a in node.args], self.layouts[node])
        if offsets is None:
            return False
        own = self.of[node]
        self.of[node] = Home(own.begin, own.end, [], own.fixed)
        apart = self._join(node, [(x, -offset) for x, offset in zip(node.args, offsets, strict=True)])
        if len(apart) == len(node.args):
            self.of[node] = own
            return False
        for x, begin in apart:
            self._copy_into(node, x, begin)
        return True

    def _join(self, node: Node, parts: Sequence[tuple[Node, int]]) -> list[tuple[Node, int]]:
        """Put each of `parts` where it begins in `node`, which begins at 0. Those that cannot be there are returned.

        A home that holds several parts (slices of one value) comes with all of them. What it writes beside them must
        not reach into the places of other parts.
        """
        apart = list(parts)
        for x, begin in parts:
            home = self.of.get(x)
            if home is None or home is self.of[node] or (x, begin) not in apart:
                continue
            shift = begin - home.begin[x]
            others = [(y, b) for y, b in apart if self.of.get(y) is not home or b - home.begin[y] != shift]
            kept = [(b, b + self._bytes(y)) for y, b in others] if isinstance(node, Concat) else []
            if self._merge({self.of[node]: 0, home: shift}, kept):
                apart = others
        return apart

    def _bytes(self, node: Node) -> int:
        return buffer_bytes(node, self.layouts.get(node, PLAIN))

    def _copy_into(self, node: Node, x: Node, begin: int) -> None:
        """A part that must stay where it is: copied to its place in the whole once all parts are there."""
        copy, home = Copy(x, origin=node.origin), self.of[node]
        self.layouts[copy] = self.layouts.get(x, PLAIN)
        home.begin[copy], home.end[copy] = begin, begin + self._bytes(x)
        home.written.append((home.begin[copy], home.end[copy]))
        self.of[copy] = home
        self.calls.append(Group.of([copy]))

    def _merge(self, shifts: Mapping[Home, int], kept: Sequence[tuple[int, int]]) -> bool:
        """Lay these homes over each other, each moved by its shift, without writing to `kept`; False, and nothing
        done, where they do not fit."""
        written = [(b + s, e + s) for home, s in shifts.items() for b, e in home.written]
        ranges = sorted(r for r in (*written, *kept) if r[0] < r[1])
        if any(end > begin for (_, end), (begin, _) in zip(ranges, ranges[1:], strict=False)):
            return False
        fixed = [home.fixed for home in shifts if home.fixed]
        merged = self._union(shifts, written)
        if len(fixed) > 1 or (fixed and not _is_all(fixed[0][1], merged)):
            return False
        self._settle(merged)
        return True

    def _union(self, shifts: Mapping[Home, int], written: Iterable[tuple[int, int]]) -> Home:
        begin = {node: b + s for home, s in shifts.items() for node, b in home.begin.items()}
        end = {node: e + s for home, s in shifts.items() for node, e in home.end.items()}
        return Home(begin, end, list(written), next((home.fixed for home in shifts if home.fixed), None))

    def _settle(self, home: Home) -> None:
        self.of.update(dict.fromkeys(home.begin, home))

    def lives(self) -> dict[Home, tuple[int, int]]:
        """The first and the last call that touches each home."""
        found: dict[Home, tuple[int, int]] = {}
        for t, group in enumerate(self.calls):
            for node in (*group.reads, group.result):
                if not isinstance(node, Const):
                    home = self.of[node]
                    found[home] = (found.get(home, (t, t))[0], t)
        return found

    def overwrite(self) -> dict[Group, int]:
        """Let elementwise kernels write their result where a read dies; which read it is, by group."""
        lives = self.lives()
        found: dict[Group, int] = {}
        for t, group in enumerate(self.calls):
            index = self._dying(group, t, lives)
            if index is None:
                continue
            before, after = self.of[group.reads[index]], self.of[group.result]
            shift = after.begin[group.result] - before.begin[group.reads[index]]
            merged = self._union({after: 0, before: shift}, after.written)
            lives[merged] = (lives[before][0], lives[after][1])
            self._settle(merged)
            found[group] = index
        return found

    def _dying(self, group: Group, t: int, lives: Mapping[Home, tuple[int, int]]) -> int | None:
        """The first read whose elements are needed for the same element of the result only, and never again."""
        if not all(is_elementwise(n) for n in group.nodes):
            return None
        homes = [self.of.get(r) for r in group.reads]
        for index, (read, home) in enumerate(zip(group.reads, homes, strict=True)):
            if home is None or home.fixed or lives[home][1] != t or homes.count(home) > 1:
                continue
            if self._alike(read, group.result) and _is_all(read, home) and _is_all(group.result, self.of[group.result]):
                return index
        return None

    def _alike(self, a: Node, b: Node) -> bool:
        same_form = a.shape == b.shape and self.layouts[a] == self.layouts[b]
        return same_form and self._bytes(a) == self._bytes(b)


def _is_all(node: Node, home: Home) -> bool:
    return home.begin[node] == home.start and home.end[node] - home.begin[node] == home.bytes


def allocate(blocks: Sequence[Block], *, align: int) -> tuple[list[int], int]:
    """Offsets such that blocks alive at the same time lie apart, and the total.

    Greedy: the largest first, each into the tightest gap between those that share its time; then the same with other
    orders, and the smallest total is taken (interval packing is NP-hard; the largest first is rarely 5 % from the
    sum of what is alive at once).
    """
    sizes = [-(-size // align) * align for size, _, _ in blocks]
    orders = [
        sorted(range(len(blocks)), key=lambda i: (-sizes[i], blocks[i][1])),
        sorted(range(len(blocks)), key=lambda i: (blocks[i][1] - blocks[i][2], -sizes[i])),
        sorted(range(len(blocks)), key=lambda i: (-sizes[i] * (blocks[i][2] - blocks[i][1] + 1), blocks[i][1])),
        sorted(range(len(blocks)), key=lambda i: (blocks[i][1], -sizes[i])),
    ]
    return min((_packed(blocks, sizes, order) for order in orders), key=lambda found: found[1])


def _packed(blocks: Sequence[Block], sizes: Sequence[int], order: Sequence[int]) -> tuple[list[int], int]:
    offsets = [0] * len(blocks)
    placed: list[int] = []
    for i in order:
        _, first, last = blocks[i]
        beside = [j for j in placed if blocks[j][1] <= last and first <= blocks[j][2]]
        offsets[i] = _gap(sorted((offsets[j], offsets[j] + sizes[j]) for j in beside), sizes[i])
        placed.append(i)
    return offsets, max((o + s for o, s in zip(offsets, sizes, strict=True)), default=0)


def _gap(taken: Sequence[tuple[int, int]], size: int) -> int:
    """The start of the smallest gap that holds `size`, else the end of all."""
    best: tuple[int, int] | None = None
    top = 0
    for begin, end in taken:
        room = begin - top
        if room >= size and (best is None or room < best[0]):
            best = (room, top)
        top = max(top, end)
    return top if best is None else best[1]
