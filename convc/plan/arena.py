"""Place: the calls with their slots. Buffers of values that never live together share the arena; constants are stored
once, and packed once for all that read them in the same form."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from convc.algorithm import Choice
from convc.ir import Array, Const, Node
from convc.layout import PLAIN, Layout
from convc.plan.homes import Home, Homes, allocate
from convc.plan.layouts import const_layout
from convc.plan.plan import Call, Group, Kernel, Packing, Plan, Slot
from convc.plan.text import kernel_text
from convc.plan.views import ALIGNMENT, align, buffer_bytes, is_row_major
from convc.problem import Problem

HEAD = 256  # bytes by which most constants of one size differ, so that few are read whole to find equal ones


def place(plan: Plan) -> Plan:
    """The chosen plan with `init`, `run`, `weights` and the sizes.

    Kernels with the same text are one object. Every slot is a multiple of 64 bytes. Results of views have no call.
    """
    homes = Homes(plan)
    in_place = homes.overwrite()
    offsets, arena_bytes = _arena(homes)
    constants = _Constants()
    kernels: dict[str, Kernel] = {}
    run: list[Call] = []
    for group in homes.calls:
        kernel = _kernel(homes.layouts, group, plan.choices.get(group), in_place.get(group))
        args = []
        for read, layout in zip(group.reads, kernel.layouts, strict=True):
            if isinstance(read, Const):
                args.append(constants.slot(read, group, layout, kernel.choice))
            else:
                args.append(_slot(read, homes.of[read], offsets))
        args.append(_slot(group.result, homes.of[group.result], offsets))
        run.append(Call(kernels.setdefault(kernel_text(kernel), kernel), tuple(args), group.origin))
    return dataclasses.replace(
        plan,
        init=tuple(constants.init),
        run=tuple(run),
        weights=tuple(constants.weights),
        weight_bytes=constants.weight_bytes,
        packed_bytes=constants.packed_bytes,
        arena_bytes=arena_bytes,
    )


def _arena(homes: Homes) -> tuple[Mapping[Home, int], int]:
    lives = {home: life for home, life in homes.lives().items() if not home.fixed}
    found, total = allocate([(home.bytes, *life) for home, life in lives.items()], align=ALIGNMENT)
    return dict(zip(lives, found, strict=True)), total


def _slot(node: Node, home: Home, offsets: Mapping[Home, int]) -> Slot:
    inner = home.begin[node] - home.start
    if home.fixed:
        return dataclasses.replace(home.fixed[0], offset=inner)
    return Slot("arena", offsets[home] + inner)


def _kernel(given: Mapping[Node, Layout], group: Group, choice: Choice | None, in_place: int | None) -> Kernel:
    result = given[group.result]
    layouts = tuple(const_layout(group, r, result) if isinstance(r, Const) else given[r] for r in group.reads)
    return Kernel(group, layouts, result, choice, in_place)


class _Constants:
    """The constants that calls read: each distinct one once in the file, each distinct form of it once in memory."""

    def __init__(self) -> None:
        self.weights: list[tuple[str, int, Const]] = []
        self.init: list[Call] = []
        self.weight_bytes = 0
        self.packed_bytes = 0
        self._contents: dict[Const, Const] = {}
        self._heads: dict[tuple[str, int, bytes], Const] = {}
        self._digests: dict[tuple[str, bytes], Const] = {}
        self._stored: dict[Const, Slot] = {}
        self._packed: dict[tuple[Const, str], Slot] = {}
        self._kernels: dict[str, Packing] = {}

    def slot(self, const: Const, group: Group, layout: Layout, choice: Choice | None) -> Slot:
        """Where `group` finds `const`: packed by the choice where it is the anchor's weights, else in `layout`."""
        if choice is not None and const is group.weights:
            return self._pack(Packing(const, group.problem, choice))
        if is_row_major(const.shape, layout):
            return self._store(const)
        return self._pack(Packing(const, layout=layout))

    def _pack(self, packing: Packing) -> Slot:
        text = kernel_text(packing)
        key = (self._content(packing.weight), text)
        if key not in self._packed:
            slot = Slot("packed", self.packed_bytes)
            kernel = self._kernels.setdefault(text, packing)
            self.init.append(Call(kernel, (self._store(packing.weight), slot), packing.weight.origin))
            self.packed_bytes += align(packed_bytes(packing))
            self._packed[key] = slot
        return self._packed[key]

    def _store(self, const: Const) -> Slot:
        content = self._content(const)
        if content not in self._stored:
            self._stored[content] = Slot("weights", self.weight_bytes)
            self.weights.append((f"w{len(self.weights)}", self.weight_bytes, const))
            self.weight_bytes += align(buffer_bytes(const, PLAIN))
        return self._stored[content]

    def _content(self, const: Const) -> Const:
        """The first constant with the same bytes in the file, whatever the shape."""
        if const not in self._contents:
            data = _data(const)
            found = first = self._heads.setdefault((const.dtype, data.size, data[:HEAD].tobytes()), const)
            if first is not const:
                for one in (first, const):
                    found = self._digests.setdefault((one.dtype, hashlib.sha256(_data(one).data).digest()), one)
            self._contents[const] = found
        return self._contents[const]


def _data(const: Const) -> Array:
    """The bytes in the file."""
    return np.ascontiguousarray(const.value).reshape(-1).view(np.uint8)


def packed_bytes(packing: Packing) -> int:
    """Bytes of the packed form of a constant, without the rounding up to 64."""
    weight = packing.weight
    if packing.choice is None or packing.problem is None:
        return math.prod(packing.layout.physical(weight.shape)) * np.dtype(weight.dtype).itemsize
    return choice_bytes(packing.problem, packing.choice)


def choice_bytes(problem: Problem, choice: Choice) -> int:
    """Bytes of a problem's weights as `choice` packs them, without the rounding up to 64."""
    config, item = tuple(sorted(choice.config.items())), np.dtype(problem.w_dtype).itemsize
    return _algorithm_elements(problem.weights, problem.w_dtype, problem, choice.algorithm, choice.kind, config) * item


@lru_cache(maxsize=1 << 14)
def _algorithm_elements(
    shape: tuple[int, ...], dtype: str, problem: Problem, algorithm: str, kind: str, config: tuple[tuple[str, int], ...]
) -> int:
    from convc.lower.packed import packed_shape  # of a later step: `pack` is TVM's to evaluate

    weight = Const(np.broadcast_to(np.zeros((), dtype), shape))
    return math.prod(packed_shape(Packing(weight, problem, Choice(algorithm, dict(config), kind))))
