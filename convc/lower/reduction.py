"""Kernels around one reduction: Reduce, ArgReduce, Softmax, Normalize."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tvm import tirx
from tvm.tirx import Expr, Stmt

from convc.ir import ArgReduce, Normalize, Reduce, Softmax
from convc.lower.core import Core, wide
from convc.lower.elementwise import cast
from convc.lower.fold import Fold, Lanes, Space, State
from convc.lower.functions import LIBRARIES, is_integer, maximum, minimum
from convc.lower.nest import as_index, block, get, put, scratch
from convc.lower.team import folds
from convc.lower.vector_math import dtype_of, is_nan, let


def lowest(dtype: str) -> float | int:
    return int(np.iinfo(dtype).min) if is_integer(dtype) else -math.inf


def highest(dtype: str) -> float | int:
    return int(np.iinfo(dtype).max) if is_integer(dtype) else math.inf


def _plain(dtype: str, start: float, join: Callable[[Expr, Expr], Expr]) -> Fold:
    return Fold((dtype,), (start,), lambda _k, s, x, _at: join(s[0], x), lambda _k, a, b: join(a[0], b[0]))


def sums(dtype: str) -> Fold:
    return _plain(dtype, 0, lambda a, b: a + b)


def largest(dtype: str) -> Fold:
    return _plain(dtype, lowest(dtype), maximum)


FOLDS: dict[str, Callable[[str], Fold]] = {
    "max": largest,
    "min": lambda dtype: _plain(dtype, highest(dtype), minimum),
    "prod": lambda dtype: _plain(dtype, 1, lambda a, b: a * b),
}
BEFORE: dict[str, Callable[[Expr], Expr]] = {
    "l1": lambda x: x if dtype_of(x).startswith("uint") else tirx.abs(x),
    "l2": lambda x: let(x, lambda x: x * x),
    "sum_square": lambda x: let(x, lambda x: x * x),
}
AFTER: dict[str, Callable[[Expr, int], Expr]] = {
    "mean": lambda total, count: _quotient(total, count),
    "l2": lambda total, _count: tirx.sqrt(total),
    "log_sum": lambda total, _count: LIBRARIES[dtype_of(total)].log(total),
}


def _same(x: Expr, *_rest: int) -> Expr:
    return x


def _quotient(total: Expr, count: int) -> Expr:
    number = tirx.const(count, dtype_of(total))
    return tirx.truncdiv(total, number) if is_integer(dtype_of(total)) else tirx.Div(total, number)


def _sum_dtype(node: Reduce) -> str:
    return "int64" if node.fn == "mean" and is_integer(node.x.dtype) else wide(node.x.dtype)


def _lane(buffer: Any, over: Space, lane: Any) -> Expr:
    return get(buffer, 0 if over.across else lane)


def _reader(core: Core, over: Space, ids: Sequence[Any], dtype: str) -> Callable[[Sequence[Any], Any], Expr]:
    return lambda folded, at: cast(core.args[0].value(over.index(ids, folded, at)), dtype)


def write_reduce(core: Core) -> Stmt:
    node = core.node
    assert isinstance(node, Reduce)
    over, dtype = folds(core, node.axes), _sum_dtype(node)
    count = math.prod(node.x.shape[a] for a in node.axes)

    def body(ids: Sequence[Any], at: Lanes) -> Stmt:
        read = _reader(core, over, ids, dtype)
        if node.fn == "log_sum_exp":
            return _log_sum_exp(core, over, ids, at, read)
        before, after = BEFORE.get(node.fn, _same), AFTER.get(node.fn, _same)
        total, fold = over.fold(FOLDS.get(node.fn, sums)(dtype), at, lambda f, a: before(read(f, a)))
        return block([fold, _write_kept(core, over, ids, at, lambda lane: after(_lane(total[0], over, lane), count))])

    return over.each_kept(body)


def _log_sum_exp(
    core: Core, over: Space, ids: Sequence[Any], at: Lanes, read: Callable[[Sequence[Any], Any], Expr]
) -> Stmt:
    dtype = dtype_of(read([0] * len(over.others(folded=True)), 0))
    math_of = LIBRARIES[dtype]
    top, first = over.fold(largest(dtype), at, read)
    bound, make = scratch(at.lanes, dtype, "bound")

    def finite(lane: Any) -> Stmt:
        zero, x = tirx.const(0, dtype), get(top[0], lane)
        return put(bound, lane, lambda: tirx.Select(tirx.abs(x) < tirx.const(math.inf, dtype), x, zero))

    def term(folded: Sequence[Any], place: Any) -> Expr:
        return math_of.exp(read(folded, place) - _lane(bound, over, place - at.first))

    total, second = over.fold(sums(dtype), at, term)
    value = lambda lane: math_of.log(_lane(total[0], over, lane)) + _lane(bound, over, lane)  # noqa: E731
    return block([first, make, over.nest.vector(at.lanes, finite), second, _write_kept(core, over, ids, at, value)])


def _write_kept(core: Core, over: Space, ids: Sequence[Any], at: Lanes, value: Callable[[Any], Expr]) -> Stmt:
    """Write one result, or one for each lane."""
    node = core.node
    assert isinstance(node, Reduce | ArgReduce)
    axes = node.axes if isinstance(node, Reduce) else (node.axis,)
    folded = [0] * len(over.others(folded=True))

    def element(lane: Any) -> Stmt:
        index = over.index(ids, folded, 0 if over.across else over.nest.simplify(at.first + lane))
        kept = [0 if a in axes else i for a, i in enumerate(index)]
        place = kept if node.keepdims else [i for a, i in enumerate(kept) if a not in axes]
        return core.store(place, lambda: cast(value(lane), node.dtype))

    return over.once(at, element(0) if over.across else over.nest.vector(at.lanes, element))


def write_arg_reduce(core: Core) -> Stmt:
    """The state is (position, value). Positions are int32 inside: no axis is longer."""
    node = core.node
    assert isinstance(node, ArgReduce)
    over, dtype = folds(core, (node.axis,)), wide(node.x.dtype)
    rule = _positions(dtype, largest=node.fn == "max", last=node.last)

    def body(ids: Sequence[Any], at: Lanes) -> Stmt:
        read = _reader(core, over, ids, dtype)

        def position(folded: Sequence[Any], place: Any) -> Any:
            return over.index(ids, folded, place)[node.axis]

        state, fold = over.fold(rule, at, read, position)
        return block([fold, _write_kept(core, over, ids, at, lambda lane: _lane(state[0], over, lane))])

    return over.each_kept(body)


def _positions(dtype: str, *, largest: bool, last: bool) -> Fold:
    worst = lowest(dtype) if largest else highest(dtype)
    nowhere = -1 if last else 2**31 - 1

    def part(k: int, a: State, b: State) -> Expr:
        return let(b[1], lambda value: tirx.Select(wins(a, [b[0], value]), b[0] if k == 0 else value, a[k]))

    def wins(a: State, b: State) -> Expr:
        """Whether b is better: NaN beats all, equals are told apart by position."""
        ahead = b[1] > a[1] if largest else b[1] < a[1]
        equal = tirx.EQ(a[1], b[1])
        if not is_integer(dtype) and dtype != "bool":
            ahead = tirx.any(ahead, tirx.all(is_nan(b[1]), tirx.Not(is_nan(a[1]))))
            equal = tirx.any(equal, tirx.all(is_nan(b[1]), is_nan(a[1])))
        return tirx.any(ahead, tirx.all(equal, b[0] > a[0] if last else b[0] < a[0]))

    def step(k: int, state: State, x: Expr, at: Any) -> Expr:
        return part(k, state, [as_index(at), x])

    return Fold(("int32", dtype), (nowhere, worst), step, part)


def write_softmax(core: Core) -> Stmt:
    node = core.node
    assert isinstance(node, Softmax)
    over, dtype = folds(core, (node.axis,)), wide(node.dtype)
    math_of = LIBRARIES[dtype]

    def body(ids: Sequence[Any], at: Lanes) -> Stmt:
        read = _reader(core, over, ids, dtype)
        top, first = over.fold(largest(dtype), at, read)

        def shifted(folded: Sequence[Any], place: Any) -> Expr:
            return read(folded, place) - _lane(top[0], over, over.nest.simplify(place - at.first))

        total, second = over.fold(sums(dtype), at, lambda f, p: math_of.exp(shifted(f, p)))
        scale, make = scratch(at.lanes, dtype, "scale")

        def prepare(lane: Any) -> Stmt:
            sum_of = get(total[0], lane)
            return put(scale, lane, lambda: math_of.log(sum_of) if node.log else tirx.Div(tirx.const(1, dtype), sum_of))

        def element(folded: Sequence[Any], place: Any) -> Stmt:
            def value() -> Expr:
                factor, x = _lane(scale, over, over.nest.simplify(place - at.first)), shifted(folded, place)
                return cast(x - factor if node.log else math_of.exp(x) * factor, node.dtype)

            return core.store(over.index(ids, folded, place), value)

        final = prepare(0) if over.across else over.nest.vector(at.lanes, prepare)
        return block([first, second, make, final, over.each_folded(at, element)])

    return over.each_kept(body)


def write_normalize(core: Core) -> Stmt:
    """Two passes, the mean and then the variance of what is centred: one pass would cancel."""
    node = core.node
    assert isinstance(node, Normalize)
    over, dtype = folds(core, node.axes), wide(node.dtype)
    count = tirx.const(math.prod(node.x.shape[a] for a in node.axes), dtype)

    def body(ids: Sequence[Any], at: Lanes) -> Stmt:
        read = _reader(core, over, ids, dtype)
        mean, first = over.fold(sums(dtype), at, read)

        def centred(folded: Sequence[Any], place: Any) -> Expr:
            return read(folded, place) - _lane(mean[0], over, over.nest.simplify(place - at.first))

        square = lambda f, p: let(centred(f, p), lambda d: d * d)  # noqa: E731
        variance, second = over.fold(sums(dtype), at, square)
        scale, make = scratch(at.lanes, dtype, "scale")

        def divide(lane: Any) -> Stmt:
            return put(mean[0], lane, lambda: tirx.Div(get(mean[0], lane), count))

        def prepare(lane: Any) -> Stmt:
            spread = tirx.Div(get(variance[0], lane), count) + tirx.const(node.epsilon, dtype)
            return put(scale, lane, lambda: tirx.Div(tirx.const(1, dtype), tirx.sqrt(spread)))

        def element(folded: Sequence[Any], place: Any) -> Stmt:
            factor = _lane(scale, over, over.nest.simplify(place - at.first))
            index = over.index(ids, folded, place)
            return core.store(index, lambda: cast(centred(folded, place) * factor, node.dtype))

        each = over.nest.vector
        lanes = 1 if over.across else at.lanes
        statements = [first, each(lanes, divide), second, make, each(lanes, prepare), over.each_folded(at, element)]
        return block(statements)

    return over.each_kept(body)
