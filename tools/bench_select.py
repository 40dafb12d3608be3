"""The choice over whole networks: the integer program beside other ways to choose, in predicted time and search time.

    python tools/bench_select.py                              # every network of $CONVC_MODELS/zoo
    python tools/bench_select.py model.onnx --target cpu/znver3 --threads 2
    python tools/bench_select.py --scatter 0.3                # times scattered by exp(0.3 * normal), as if measured
    python tools/bench_select.py --keep 0.5                   # half of the packed weights that could be saved are
    python tools/bench_select.py --run                        # the plans are built and timed in turns on one CPU, too

`alone` gives every kernel its fastest offer and then the best layouts to the rest. `walk` improves labels step by step.
`cut` is a minimum cut, exact where equal labels go together in all pairs, with other pairs truncated and a walk after
it. Under a limit of bytes `walk` and `cut` try prices for a byte.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Hashable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import networkx as nx
from bench import subjects
from bench_tuning import task_of
from networkx.algorithms.flow import boykov_kolmogorov

from convc.lower.objects import build
from convc.peers import RUNTIMES
from convc.pipeline import run_until
from convc.plan.arena import choice_bytes, place
from convc.plan.energy import REFUSED, Energy, Pair, Solution
from convc.plan.offers import Offer, unasked
from convc.plan.plan import Plan
from convc.plan.program import Model, cheapest, smallest
from convc.plan.relayout import relayout
from convc.plan.select import blocks_of, energies_of, offers_of
from convc.plan.walk import PRICES, improved, walk
from convc.report.machine import pick_cpus, pinned
from convc.report.timing import race as take_turns
from convc.report.timing import timed
from convc.runtime.package import package
from convc.target import Target, parse_target

Table = tuple[int, int, int, int]
"""Cost of a pair by its labels: 00, 01, 10, 11."""


def program(energy: Energy, limit: int | None) -> Solution | None:
    return cheapest(energy, limit=limit)


def steps(energy: Energy, limit: int | None) -> Solution | None:
    return walk(energy, limit=limit)


def alone(energy: Energy, limit: int | None) -> Solution | None:
    """Kernels know nothing of each other, nor of a limit."""
    return cheapest(Energy(energy.unary, [_fastest(pair) for pair in energy.pairs], energy.shared))


def _fastest(pair: Pair) -> Pair:
    anchored = [o for o in pair.options if o.choice is not None]
    return replace(pair, options=(min(anchored, key=lambda o: o.cost),)) if anchored else pair


def cut(energy: Energy, limit: int | None) -> Solution | None:
    for price in (0,) if limit is None else PRICES:
        labels = (minimum_cut(energy, truncate, price) for truncate in (raise_mixed, lower_equal))
        ends = [s for start in labels if (s := improved(energy, start, price=price)) is not None]
        within = [s for s in ends if limit is None or s.bytes <= limit]
        if within:
            return min(within, key=energy.value)
    return None


METHODS: Mapping[str, Callable[[Energy, int | None], Solution | None]] = {
    "alone": alone, "walk": steps, "cut": cut, "program": program,
}  # fmt: skip


def raise_mixed(t: Table) -> Table:
    """Mixed labels made dearer until equal ones go together."""
    short = max(0, t[0] + t[3] - t[1] - t[2])
    return t[0], t[1] + short - short // 2, t[2] + short // 2, t[3]


def lower_equal(t: Table) -> Table:
    """The dearer pair of equal labels made cheaper until equal ones go together."""
    short = max(0, t[0] + t[3] - t[1] - t[2])
    return (t[0] - short, *t[1:]) if t[0] > t[3] else (*t[:3], t[3] - short)


def minimum_cut(energy: Energy, truncate: Callable[[Table], Table], price: int) -> dict[Hashable, int]:
    """Label 1 is the source's side (Kolmogorov and Zabih 2004)."""
    cost = {v: list(costs) for v, costs in energy.unary.items()}
    flow = nx.DiGraph()
    flow.add_nodes_from(["source", "sink"])

    def pay(one: Hashable, zero: Hashable, capacity: int) -> None:
        before = flow.get_edge_data(("v", one), ("v", zero), {"capacity": 0})["capacity"]
        flow.add_edge(("v", one), ("v", zero), capacity=before + capacity)

    for pair in energy.pairs:
        options = [pair.best({pair.a: a, pair.b: b}, price=price) for a in (0, 1) for b in (0, 1)]
        t00, t01, t10, t11 = truncate(tuple(o.cost + price * o.bytes if o else REFUSED for o in options))  # type: ignore
        cost[pair.a][1] += t10 - t00
        cost[pair.b][1] += t11 - t10
        pay(pair.b, pair.a, t01 + t10 - t00 - t11)
    for index, (source, wants, price_of_copy) in enumerate(energy.shared):
        pay(("any", index), source, price_of_copy)
        pay(source, ("all", index), price_of_copy)
        for want in wants:
            pay(want, ("any", index), REFUSED)
            pay(("all", index), want, REFUSED)
    for v, (zero, one) in cost.items():
        least = min(zero, one)
        flow.add_edge("source", ("v", v), capacity=zero - least)
        flow.add_edge(("v", v), "sink", capacity=one - least)
    _, (ones, _) = nx.minimum_cut(flow, "source", "sink", flow_func=boykov_kolmogorov)
    return {v: int(("v", v) in ones) for v in energy.unary}


def energies(plan: Plan, target: Target, options: argparse.Namespace) -> dict[int, Energy]:
    """By channel block."""
    size, r = unasked if options.keep is None else choice_bytes, random.Random(options.seed)

    def scattered(offer: Offer) -> Offer:
        return replace(offer, seconds=offer.seconds * r.lognormvariate(0.0, options.scatter))

    found = offers_of(plan, target, max_rel_err=options.max_rel_err, size=size)
    alike = {id(had): [scattered(o) for o in had] for had in found.values()}
    found = {group: alike[id(had)] for group, had in found.items()}
    return energies_of(plan, found, blocks_of(found, target))


def limit_of(energy: Energy, keep: float | None) -> int | None:
    """Bytes between the fewest and those of the fastest plan: 0 and 1 of `keep`."""
    fewest, fastest = smallest(energy), cheapest(energy)
    if keep is None or fewest is None or fastest is None:
        return None
    return fewest.bytes + round(keep * (fastest.bytes - fewest.bytes))


def race(energy: Energy, options: argparse.Namespace) -> dict[str, tuple[Solution | None, float]]:
    """Solution and search seconds of each method."""
    limit, found = limit_of(energy, options.keep), {}
    for name, find in METHODS.items():
        begin = time.perf_counter()
        solution = find(energy, limit)
        found[name] = (solution, time.perf_counter() - begin)
    return found


def run(subject: str, plans: Mapping[str, Plan], target: Target) -> dict[str, float]:
    """us of each plan, in turns on one CPU."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(pinned(pick_cpus(1)))
        runs: dict[str, Callable[[], float]] = {}
        for name, chosen in plans.items():
            placed = place(chosen)
            path = folder / f"{name}.convc"
            package(build(placed, target), placed, target, subject).save(path)
            runs[name] = partial(timed, RUNTIMES["convc"].open(task_of(path, Path(subject))).run)
        return {name: timing.median for name, timing in take_turns(runs).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subjects", nargs="*", default=["zoo"])
    parser.add_argument("--target", default="native")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--max-rel-err", type=float, default=1e-4)
    parser.add_argument("--scatter", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=float)
    parser.add_argument("--run", action="store_true")
    options = parser.parse_args()
    target = parse_target(options.target, threads=options.threads)
    cheapest(Energy({"first": (0, 1)}))  # what it imports is no search time
    heads = "".join(f"{name + ' us':>12} {'ms':>5}" for name in METHODS)
    print(f"{target}\n{'':32} {'columns':>7} {'rows':>6}{heads}")
    ratios: dict[str, list[float]] = {name: [] for name in METHODS}
    measured: dict[str, list[float]] = {name: [] for name in METHODS}
    with tempfile.TemporaryDirectory() as folder:
        for subject in subjects(options.subjects, Path(folder)):
            plan = run_until("plan", subject)
            for block, energy in energies(plan, target, options).items():
                found, size = race(energy, options), Model(energy).program
                value = {m: energy.value(s) * 1e-12 if s else float("inf") for m, (s, _) in found.items()}
                line = "".join(f"{value[m] * 1e6:12.1f} {spent * 1e3:5.0f}" for m, (_, spent) in found.items())
                name = f"{Path(subject).stem[:28]} c{block}"
                print(f"{name:32} {len(size.cost):7} {len(size.least):6}{line}", flush=True)
                for method in found:
                    ratios[method].append(value[method] / value["program"])
                if options.run:
                    plans = {m: relayout(plan, energy, s, block=block) for m, (s, _) in found.items() if s}
                    us = run(subject, plans, target)
                    print(f"{'  measured':47}" + "".join(f"{us[m]:12.1f} {'':5}" for m in us), flush=True)
                    for method in us:
                        measured[method].append(us[method] / us["program"])
    means = "".join(f"{statistics.geometric_mean(r):12.5f} {'':5}" for r in ratios.values())
    print(f"{'geometric mean of time / program':47}{means}")
    if options.run:
        means = "".join(f"{statistics.geometric_mean(r):12.5f} {'':5}" for r in measured.values())
        print(f"{'measured':47}{means}")


if __name__ == "__main__":
    main()
