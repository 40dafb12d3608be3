"""Transposes that surround an island of another layout go, and the island is computed in the layout around it.

Which values to hold in the other layout is a minimum cut: every transpose that stays costs the elements it moves. So
the result never moves more than before, and the least that is possible for one permutation at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import networkx as nx

from convc.ir import Const, Graph, MatMul, Node, Reduce, Transpose
from convc.passes.flip import (
    Perm,
    flipped,
    flipped_const,
    flipped_reduce,
    flips,
    inverse,
    is_channels_last,
    reads_either,
)
from convc.passes.rewrite import origins

# An island with more values than this is left as it is: the cut is not linear.
LARGEST_ISLAND = 2000
MOST_PERMS = 16
PLAIN, FLIPPED = "plain", "flipped"


def flip_islands(graph: Graph) -> Graph:
    """The graph with fewer elements transposed; the same object where there is nothing to gain."""
    perms = Counter(n.perm for n in graph.nodes if isinstance(n, Transpose) and not isinstance(n.x, Const))
    results = {node for _, node in graph.outputs}
    order = sorted(perms, key=lambda p: (not is_channels_last(p), -perms[p], p))
    for perm in order[:MOST_PERMS]:
        chosen: set[Node] = set()
        for island in islands(graph, perm):
            found = cheapest(graph, island, perm, results=results)
            if not any(touches(graph, node, chosen) for node in found):
                chosen |= found
        flipped_graph = held_flipped(graph, chosen, perm) if chosen else graph
        if moved(flipped_graph) < moved(graph):
            return flipped_graph
    return graph


def moved(graph: Graph) -> int:
    """How many elements the graph transposes."""
    return sum(n.type.elements for n in graph.nodes if isinstance(n, Transpose) and not isinstance(n.x, Const))


def touches(graph: Graph, node: Node, chosen: set[Node]) -> bool:
    """A transpose lies between `node` and one that is chosen: both would count on its going."""
    if isinstance(node, Transpose):
        return node.x in chosen
    return any(isinstance(u, Transpose) and u in chosen for u in graph.users[node])


def islands(graph: Graph, perm: Perm) -> Iterator[list[Node]]:
    """Sets of values that touch and could be held flipped, each with the transposes that lead into it."""
    seen: set[Node] = set()
    for start in graph.nodes:
        if start in seen or not enters(start, perm):
            continue
        island, stack = [], [start]
        seen.add(start)
        while stack:
            node = stack.pop()
            island.append(node)
            near = [] if enters(node, perm) else list(node.args)
            near += [u for u in graph.users[node] if not isinstance(u, Transpose)]
            fresh = [n for n in dict.fromkeys(near) if n not in seen and (enters(n, perm) or flips(n, perm))]
            seen.update(fresh)
            stack.extend(fresh)
        if len(island) <= LARGEST_ISLAND:
            yield island


def enters(node: Node, perm: Perm) -> bool:
    """A transpose whose result is flipped for nothing: its argument is what would be stored."""
    return isinstance(node, Transpose) and node.perm == perm and not isinstance(node.x, Const)


def leaves(node: Node, perm: Perm) -> bool:
    """A transpose that a flipped argument makes superfluous."""
    return isinstance(node, Transpose) and node.perm == inverse(perm)


def cheapest(graph: Graph, island: list[Node], perm: Perm, *, results: set[Node]) -> set[Node]:
    """The values of the island to hold flipped, so that the fewest elements are transposed; of equals, the fewest.

    `results` are outputs of the graph, which are plain.
    """
    inside = set(island)
    price = {node: price_of_flipping(graph, node, inside, perm) for node in island}
    for node in results & inside:
        price[node] += node.type.elements
    if not any(price.values()):
        return inside
    cuts = nx.DiGraph()
    cuts.add_nodes_from((PLAIN, FLIPPED))
    for node in island:
        size = node.type.elements
        _raise(cuts, PLAIN, node, price[node])
        _raise(cuts, node, FLIPPED, price_of_leaving(graph, node, perm))
        for user in graph.users[node]:
            if user in inside and not enters(user, perm):
                _raise(cuts, node, user, size)
                _raise(cuts, user, node, size)
    _, (_, flipped_side) = nx.minimum_cut(cuts, PLAIN, FLIPPED)
    return inside.intersection(flipped_side)


def price_of_flipping(graph: Graph, node: Node, inside: set[Node], perm: Perm) -> int:
    """Elements to transpose because others give or want this value plain. A further transpose takes it either way."""
    given = [] if enters(node, perm) else [a for a in node.args if a not in inside and not isinstance(a, Const)]
    others = (u for u in graph.users[node] if u not in inside and not isinstance(u, Transpose))
    wanted = any(not reads_either(u, perm) for u in others)
    return sum(a.type.elements for a in given) + (node.type.elements if wanted else 0)


def price_of_leaving(graph: Graph, node: Node, perm: Perm) -> int:
    """Elements that are transposed because this value is plain: on its way in, and on its way out."""
    out = any(leaves(u, perm) for u in graph.users[node])
    return node.type.elements * (enters(node, perm) + out)


def _raise(cuts: nx.DiGraph, a: object, b: object, by: int) -> None:
    """Make it dearer by `by` to have `a` plain and `b` flipped."""
    if not by:
        return
    if cuts.has_edge(a, b):
        cuts[a][b]["capacity"] += by
    else:
        cuts.add_edge(a, b, capacity=by)


def held_flipped(graph: Graph, chosen: set[Node], perm: Perm) -> Graph:
    """The graph with the values `chosen` computed flipped, and transposes only where the two layouts meet."""
    plain: dict[Node, Node] = {}
    turned: dict[Node, Node] = {}

    def as_plain(node: Node) -> Node:
        if node not in plain:
            plain[node] = Transpose(turned[node], perm, origin=node.origin)
        return plain[node]

    def as_turned(node: Node) -> Node:
        if node not in turned:
            turned[node] = (
                flipped_const(node.value, perm)
                if isinstance(node, Const)
                else Transpose(plain[node], inverse(perm), origin=node.origin)
            )
        return turned[node]

    for node in graph.nodes:
        if node in chosen and isinstance(node, Transpose):
            turned[node] = as_plain(node.x)
        elif node in chosen:
            args = node.args[:1] if isinstance(node, MatMul) else node.args
            turned[node] = flipped(node, [as_turned(a) for a in args], perm)
        elif isinstance(node, Transpose) and node.x in chosen:
            plain[node] = _transposed(turned[node.x], node, perm)
        elif isinstance(node, Reduce) and node.x in chosen and reads_either(node, perm):
            plain[node] = flipped_reduce(node, turned[node.x], perm)
        else:
            plain[node] = node.with_args(tuple(as_plain(a) for a in node.args))
    return Graph(graph.inputs, tuple((name, as_plain(node)) for name, node in graph.outputs))


def _transposed(stored: Node, node: Transpose, perm: Perm) -> Node:
    """The transpose of a flipped value, straight from what is stored."""
    direct = tuple(perm[a] for a in node.perm)
    return stored if direct == tuple(range(len(direct))) else Transpose(stored, direct, origin=origins(node))
