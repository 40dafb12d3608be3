"""Labels and options by small steps: what select takes where the integer program is too large."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from functools import partial

from convc.plan.energy import REFUSED, Energy, Labels, Pair, Solution, copied

PRICES = (0, 1, 10, 100, 1000, 10**4, 10**5, 10**7)
"""Picoseconds that a byte kept in memory may cost, tried in turn until the limit is met."""

Term = Callable[[Labels], int]


def walk(energy: Energy, *, limit: int | None = None) -> Solution | None:
    """A solution that no single step makes cheaper, of at most `limit` bytes; None where none was found."""
    for price in PRICES if limit is not None else (0,):
        found = [s for s in _walks(energy, price) if limit is None or s.bytes <= limit]
        if found:
            return min(found, key=energy.value)
    return None


def dearest(energy: Energy) -> Solution | None:
    """The same at the highest price of a byte: a solution that keeps few of them."""
    return min(_walks(energy, PRICES[-1]), key=lambda s: (s.bytes, energy.value(s)), default=None)


def _walks(energy: Energy, price: int) -> list[Solution]:
    """From all labels 0, and from all labels 1."""
    ends = (improved(energy, dict.fromkeys(energy.unary, start), price=price) for start in (0, 1))
    return [solution for solution in ends if solution is not None]


def improved(energy: Energy, start: Labels, *, price: int = 0) -> Solution | None:
    """From `start` on, change one label, both of a pair, or that of a value together with all its readers, while the
    cost falls, bytes included. None where labels are left that cannot be had."""
    labels = dict(start)
    touching: dict[Hashable, list[Term]] = {v: [] for v in energy.unary}
    for variables, term in _terms(energy, price):
        for v in dict.fromkeys(variables):
            touching[v].append(term)
    moves = [dict(move) for move in dict.fromkeys(tuple(move.items()) for move in _moves(energy))]
    terms = [list(dict.fromkeys(term for v in move for term in touching[v])) for move in moves]
    falling = True
    while falling:
        falling = False
        for move, affected in zip(moves, terms, strict=True):
            falling |= _improves(labels, move, affected)
    return energy.solution(labels, price=price)


def _improves(labels: dict[Hashable, int], move: Mapping[Hashable, int], terms: list[Term]) -> bool:
    """Make the move if `terms`, all those that it touches, then cost less."""
    before = {v: labels[v] for v in move}
    if before == move:
        return False
    cost = sum(term(labels) for term in terms)
    labels.update(move)
    if sum(term(labels) for term in terms) < cost:
        return True
    labels.update(before)
    return False


def _moves(energy: Energy) -> list[Mapping[Hashable, int]]:
    single = [{v: label} for v in energy.unary for label in (0, 1)]
    pairs = [{pair.a: o.labels[0], pair.b: o.labels[1]} for pair in energy.pairs for o in pair.options]
    values = [dict.fromkeys((v, *wants), label) for v, wants, _ in energy.shared for label in (0, 1)]
    return [*single, *pairs, *values]


def _terms(energy: Energy, price: int) -> list[tuple[tuple[Hashable, ...], Term]]:
    """Every term with the variables it looks at."""
    found: list[tuple[tuple[Hashable, ...], Term]] = [((v,), partial(_one, v, c)) for v, c in energy.unary.items()]
    found += [((pair.a, pair.b), partial(_two, pair, _table(pair, price))) for pair in energy.pairs]
    found += [((source, *wants), partial(_copied, source, wants, cost)) for source, wants, cost in energy.shared]
    return found


def _table(pair: Pair, price: int) -> Mapping[tuple[int, int], int]:
    table: dict[tuple[int, int], int] = {}
    for option in pair.options:
        cost = option.cost + price * option.bytes
        table[option.labels] = min(cost, table.get(option.labels, cost))
    return table


def _one(v: Hashable, costs: tuple[int, int], labels: Labels) -> int:
    return costs[labels[v]]


def _two(pair: Pair, table: Mapping[tuple[int, int], int], labels: Labels) -> int:
    return table.get((labels[pair.a], labels[pair.b]), REFUSED)


def _copied(source: Hashable, wants: tuple[Hashable, ...], cost: int, labels: Labels) -> int:
    return copied(labels, source, wants, cost)
