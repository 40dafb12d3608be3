"""Chains of elementwise and movement nodes as one expression: what epilogues and generic kernels are made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tvm import tirx
from tvm.tirx import Expr

from convc.errors import UnsupportedError
from convc.ir import Binary, Cast, Const, Node, Resize, Unary, Where
from convc.lower import functions, interpolate, movement
from convc.lower.access import Access, Simplify, align, literal_of, simplifier, within
from convc.lower.movement import Ask, Steps
from convc.lower.vector_math import close, dtype_of, named, naming, opaque

ELEMENTWISE = (Unary, Binary, Where, Cast)
MAPS = (*ELEMENTWISE, *movement.RULES)
HALVES = ("float16", "bfloat16")
# A group in which every node reads its argument at two places doubles with each node: code must stay finite.
LARGEST_EXPRESSION = 20_000


def is_elementwise(node: Node) -> bool:
    return isinstance(node, ELEMENTWISE)


def is_map(node: Node) -> bool:
    """Whether `express` takes it: elementwise and movement nodes, and Resize between neighbours."""
    return isinstance(node, MAPS) and (not isinstance(node, Resize) or interpolate.is_map(node))


def apply(node: Unary | Binary | Where | Cast, args: Sequence[Expr]) -> Expr:
    """The value of one element of `node` from those of its arguments. 2-byte floats are computed in float32."""
    match node:
        case Cast(to=to):
            return cast(args[0], to)
        case Where():
            return functions.select(args[0], args[1], args[2])
    wide = [cast(a, "float32") if dtype_of(a) in HALVES else a for a in args]
    if isinstance(node, Unary):
        value = functions.UNARY[node.fn](*wide, *node.params)
    else:
        value = functions.BINARY[node.fn](*wide)
    return value if dtype_of(value) == node.dtype else tirx.Cast(node.dtype, value)


def cast(x: Expr, to: str) -> Expr:
    """Float to integer truncates toward zero; to bool is whether it differs from 0."""
    if dtype_of(x) == to:
        return x
    if to == "bool":
        return tirx.NE(x, tirx.const(0, dtype_of(x)))
    return tirx.Cast(to, x)


def express(nodes: Sequence[Node], leaves: Mapping[Node, Access], *, simplify: Simplify | None = None) -> Access:
    """The last of `nodes`, arguments first, as a function of its logical index; `leaves` give what lies outside.

    Scalar constants are literals. A value with several readers is computed once. Where a node moves elements, a
    channel index past the end (a lane that pads a block) is held at the last channel. `simplify` may know the ranges
    of the loop variables; what it proves of the guards of Concat and Pad leaves no trace in the expression.
    """
    result, known = nodes[-1], simplify or simplifier()
    readers = Counter(arg for node in nodes for arg in node.args)
    moves = any(not is_elementwise(node) for node in nodes)

    def read(index: Sequence[Expr]) -> Expr:
        at = within(index, result.shape, rank=len(index)) if moves else index
        return _Evaluation(leaves, readers, known).run(Ask(result, tuple(map(known, at))))

    return read


@dataclass(eq=False)
class _Scope:
    """Values named where one guard holds. `outer` is where the guard is asked."""

    outer: _Scope | None = None
    names: list[tuple[Expr, Expr]] = field(default_factory=list)
    known: dict[Any, tuple[Any, Expr]] = field(default_factory=dict)

    def find(self, key: Any) -> Expr | None:
        scope: _Scope | None = self
        while scope is not None:
            if key in scope.known:
                return scope.known[key][1]
            scope = scope.outer
        return None

    def close(self, value: Expr) -> Expr:
        return named(self.names, value)


@dataclass(eq=False)
class _Frame:
    steps: Steps
    ask: Ask
    scope: _Scope


@dataclass(eq=False)
class _Evaluation:
    """Runs the generators of the rules on a stack of its own."""

    leaves: Mapping[Node, Access]
    readers: Counter[Node]
    simplify: Simplify
    stack: list[_Frame] = field(default_factory=list)
    spent: int = 0

    def run(self, ask: Ask) -> Expr:
        root = _Scope()
        value = self._start(ask, root)
        while self.stack:
            frame = self.stack[-1]
            try:
                with naming(frame.scope.names):
                    wanted = next(frame.steps) if value is None else frame.steps.send(value)
            except StopIteration as stop:
                value = self._finish(self.stack.pop(), stop.value)
                continue
            scope = frame.scope if wanted.guard is None else _Scope(outer=frame.scope)
            value = self._start(wanted, scope)
        assert value is not None
        return close(root.names, value)

    def _start(self, ask: Ask, scope: _Scope) -> Expr | None:
        """The value where it is at hand, else None with a new frame on the stack."""
        self.spent += 1
        if self.spent > LARGEST_EXPRESSION:
            raise UnsupportedError(
                f"the nodes fused into {'/'.join(ask.node.origin) or type(ask.node).__name__} make an expression of "
                f"over {LARGEST_EXPRESSION} terms: their arguments are moved and read more than once at every step"
            )
        if ask.node in self.leaves:
            return self.leaves[ask.node](ask.index)
        if isinstance(ask.node, Const) and ask.node.value.size == 1:
            return literal_of(ask.node.value)
        found = scope.find(_key(ask))
        if found is None:
            rule = movement.RULES.get(type(ask.node), _elementwise)
            self.stack.append(_Frame(rule(ask.node, ask.index, self.simplify), ask, scope))
        return found

    def _finish(self, frame: _Frame, value: Expr) -> Expr:
        if self.readers[frame.ask.node] > 1 and not isinstance(value, tirx.Var):
            raw, name = (tirx.Var("v", dtype_of(value)) for _ in range(2))
            frame.scope.names += [(raw, value), (name, opaque(raw))]
            value = name
        if self.readers[frame.ask.node] > 1:
            frame.scope.known[_key(frame.ask)] = (frame.ask.index, value)
        return value if frame.ask.guard is None else frame.scope.close(value)


def _key(ask: Ask) -> Any:
    """Indices are told apart by identity: elementwise nodes pass on the very objects. Scopes keep them alive."""
    return ask.node, tuple(i if isinstance(i, int) else id(i) for i in ask.index)


def _elementwise(node: Any, index: Sequence[Any], simplify: Simplify) -> Steps:
    args = []
    for arg in node.args:
        args.append((yield Ask(arg, tuple(align(index, arg.shape)))))
    return apply(node, args)
