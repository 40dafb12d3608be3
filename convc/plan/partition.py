"""Partition: which nodes become one kernel."""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

from convc.ir import (
    LRN,
    ArgReduce,
    Binary,
    Concat,
    Const,
    Conv,
    ConvTranspose,
    Graph,
    Input,
    Node,
    Normalize,
    Pool,
    Reduce,
    Reshape,
    Slice,
    Softmax,
    Transpose,
)
from convc.ir.check import DTYPES, FLOATS, SUMS
from convc.plan.plan import Copy, Group, Plan, is_anchor
from convc.plan.views import may_be_view
from convc.plan.work import (
    EXPRESSION_LIMIT,
    evaluations,
    expression_size,
    fits_epilogue,
    is_elementwise,
    is_map,
    is_movement,
    is_trivial,
)

Admits = Callable[[Node, set[Node]], bool]
"""Whether a node may join a group that holds these nodes so far."""


def partition(graph: Graph) -> Plan:
    """Every node but inputs and constants in one group; groups in order of execution, each with one result.

    A bias becomes an add of a constant [1, O, 1, ...] after the convolution. An output that is an input, a constant
    or another output becomes a Copy, so that every output is the result of a group of its own.
    """
    graph = _distinct_outputs(graph.map(_full_rank).map(_bias_as_add))
    groups = _Partition(graph).groups()
    return Plan(graph.inputs, graph.outputs, groups)


def _full_rank(node: Node) -> Node:
    """Constants beside a tensor of higher rank get its rank, so that axis 1 means channels in both."""
    if not is_elementwise(node):
        return node
    rank = node.type.rank
    args = [_led_by_ones(a, rank) if isinstance(a, Const) and a.value.size > 1 else a for a in node.args]
    return node.with_args(tuple(args))


def _led_by_ones(const: Const, rank: int) -> Const:
    missing = rank - const.type.rank
    shape = (1,) * missing + const.shape
    return Const(const.value.reshape(shape), origin=const.origin) if missing and rank > 2 else const


def _bias_as_add(node: Node) -> Node:
    match node:
        case Conv(b=Node() as b) | ConvTranspose(b=Node() as b):
            shape = (1, b.shape[0], *(1,) * (node.type.rank - 2))
            row = Const(b.value.reshape(shape), origin=b.origin) if isinstance(b, Const) else Reshape(b, shape)
            return Binary("add", dataclasses.replace(node, b=None), row, origin=node.origin)
    return node


def _distinct_outputs(graph: Graph) -> Graph:
    seen: set[Node] = set()
    outputs: list[tuple[str, Node]] = []
    for name, node in graph.outputs:
        own = Copy(node) if node in seen or isinstance(node, Input | Const) else node
        seen.add(own)
        outputs.append((name, own))
    return Graph(graph.inputs, tuple(outputs))


class _Partition:
    """The groups of one graph as they form. Node order is the graph's; `position` looks it up."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.nodes = [n for n in graph.nodes if not isinstance(n, Input | Const)]
        self.position: Mapping[Node, int] = {n: i for i, n in enumerate(graph.nodes)}
        self.outputs = {node for _, node in graph.outputs}
        self.taken: set[Node] = set()

    def groups(self) -> tuple[Group, ...]:
        """Anchors first, the last one first: what joins two of them goes to the later, whose operand is then ready.

        No group can wait for itself: every node of a group leads to its one result, so a cycle of groups would be
        a cycle of nodes. The order of their results is therefore an order of execution.
        """
        found = [self._anchored(n) for n in reversed(self.nodes) if is_anchor(n)]
        cores = [n for n in reversed(self.nodes) if not is_anchor(n) and not is_map(n)]
        found += [self._with_producers(nodes) for nodes in [self._core(n) for n in cores]]
        found += [self._mapped(n) for n in reversed(self.nodes) if n not in self.taken]
        found.sort(key=lambda nodes: self.position[nodes[-1]])
        return tuple(Group.of(nodes) for nodes in found)

    def _anchored(self, anchor: Node) -> list[Node]:
        x, weights = anchor.args[:2]
        numbers = (*FLOATS, *SUMS, anchor.dtype) if x.dtype in SUMS else FLOATS

        def admits(node: Node, inside: set[Node]) -> bool:
            outer = [a for a in node.args if a not in inside]
            readable = all(isinstance(a, Const) or fits_epilogue(a.shape, anchor.shape) for a in outer)
            computed = all(n.dtype in (*numbers, "bool") for n in (node, *node.args))
            return readable and computed and weights not in outer and node.shape == anchor.shape

        return self._take(self._extend(anchor, admits, ends=numbers if x.dtype in SUMS else (anchor.dtype,)))

    def _core(self, core: Node) -> list[Node]:
        if isinstance(core, Concat | Copy):
            return self._take([core])
        return self._take(self._extend(core, lambda node, _: node.shape == core.shape))

    def _extend(self, seed: Node, admits: Admits, *, ends: Collection[str] = DTYPES) -> list[Node]:
        """`seed` and the longest run of elementwise nodes after it that ends in one value, of a type of `ends`, the
        only one read from outside. Branches that meet again within the run are part of it."""
        nodes, trial, inside = [seed], [seed], {seed}
        users = self._users(seed)
        while users:
            _, node = heapq.heappop(users)
            if node in inside:
                continue
            if node in self.taken or not is_elementwise(node) or not admits(node, inside):
                break
            trial.append(node)
            inside.add(node)
            if expression_size(trial) > EXPRESSION_LIMIT or len(trial) > EXPRESSION_LIMIT:
                break
            for user in self._users(node):
                heapq.heappush(users, user)
            if node.dtype in ends and self._enclosed(trial[:-1], inside):
                nodes = list(trial)
        return nodes

    def _users(self, node: Node) -> list[tuple[int, Node]]:
        return [(self.position[u], u) for u in self.graph.users[node]]

    def _enclosed(self, nodes: Iterable[Node], inside: set[Node]) -> bool:
        """Nobody outside reads any of `nodes`."""
        return not any(n in self.outputs or any(u not in inside for u in self.graph.users[n]) for n in nodes)

    def _with_producers(self, nodes: list[Node]) -> list[Node]:
        """Elementwise nodes of which only this core reads the results, where computing them there is cheap."""
        core = nodes[0]
        if not isinstance(core, Pool | Reduce | ArgReduce | Softmax | Normalize | LRN):
            return nodes
        once = _reads_once(core)
        inside = set(nodes)
        before: list[Node] = []
        for node in self._producers(core, inside):
            if is_elementwise(node) and node.shape == core.x.shape and (once or is_trivial(node)):
                before.append(node)
                inside.add(node)
        return self._take(self._shortened(self._ordered(before), core) + nodes)

    def _shortened(self, before: Sequence[Node], core: Node) -> list[Node]:
        """All of `before`, or none where their expression is too long to inline."""
        return list(before) if not before or expression_size([*before, core]) <= EXPRESSION_LIMIT else []

    def _producers(self, node: Node, inside: set[Node]) -> Iterator[Node]:
        """Nodes that only `inside` reads, users before arguments; `inside` may grow by what was yielded meanwhile."""
        queue = [(-self.position[a], a) for a in dict.fromkeys(node.args)]
        heapq.heapify(queue)
        seen: set[Node] = set()
        while queue:
            _, found = heapq.heappop(queue)
            if found in seen:
                continue
            seen.add(found)
            if isinstance(found, Input | Const) or found in self.taken or not self._enclosed([found], inside):
                continue
            yield found
            if found in inside:
                for a in found.args:
                    heapq.heappush(queue, (-self.position[a], a))

    def _mapped(self, result: Node) -> list[Node]:
        """`result` and the map nodes before it that only it needs, as far as none is computed more than once."""
        if result in self.taken:
            return []
        nodes, inside = [result], {result}
        counts: dict[Node, float] = {result: float(result.type.elements)}
        alone = self._is_view(result)
        for node in () if alone else self._producers(result, inside):
            if not is_map(node) or self._is_view(node):
                continue
            count = evaluations(node, [u for u in self.graph.users[node] if u in inside], counts)
            grown = self._ordered([*nodes, node])
            if (is_movement(node) or count <= node.type.elements) and expression_size(grown) <= EXPRESSION_LIMIT:
                nodes = grown
                inside.add(node)
                counts[node] = count
        return self._take(nodes)

    def _is_view(self, node: Node) -> bool:
        """A Slice or Reshape that the arena may serve without moving anything. A Reshape beside a Transpose is part of
        it (a shuffle of channels reads and writes any layout; its three steps alone do not)."""
        match node:
            case Reshape():
                return not self._beside_transpose(node)
            case Slice():
                return may_be_view(node)
        return False

    def _beside_transpose(self, node: Reshape) -> bool:
        users = self.graph.users[node]
        before = isinstance(node.x, Transpose) and self._private(node.x)
        return before or (len(users) == 1 and isinstance(users[0], Transpose) and self._private(node))

    def _private(self, node: Node) -> bool:
        return len(self.graph.users[node]) == 1 and node not in self.outputs

    def _ordered(self, nodes: Iterable[Node]) -> list[Node]:
        return sorted(nodes, key=self.position.__getitem__)

    def _take(self, nodes: list[Node]) -> list[Node]:
        self.taken.update(nodes)
        return nodes


def _reads_once(core: Node) -> bool:
    """Whether each element of x is needed for one window or sum only, in one pass."""
    match core:
        case Pool(kernel=kernel, stride=stride):
            return all(k <= s for k, s in zip(kernel, stride, strict=True))
        case Reduce(fn=fn):
            return fn != "log_sum_exp"
        case ArgReduce():
            return True
    return False
