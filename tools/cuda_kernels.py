"""The table of kernels of networks: what convc launches on a GPU, what that takes of it, and what the models expect.

    python tools/cuda_kernels.py model.onnx other.convc --target cuda/sm_80 --dtype f16
    python tools/cuda_kernels.py zoo light --target cuda/sm_80 --target cuda/sm_90a --dtype f32 --dtype f16 --json out

`zoo` are the networks of $CONVC_MODELS/zoo, `light` the onnx wheel's topologies, `light:squeezenet` is one of them.

A row is a function: the calls of a network that run the same code. Of several kernels of a function the most registers
and shared memory, and all spills. Predicted times are those of the algorithms' models; of functions without an
algorithm what moving their bytes takes (marked *).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bench import subjects
from cuda_tables import markdown
from light import load, topologies

from convc.algorithm import Choice
from convc.dtypes import DTYPES, computing
from convc.errors import ConvcError
from convc.lower.objects import build
from convc.pipeline import run_until
from convc.problem import Problem
from convc.report.table import bytes_text, us_text
from convc.runtime.artifact import Artifact, Layer
from convc.runtime.package import package
from convc.schedules._gpu import streamed
from convc.target import GpuTarget, parse_target

COLUMNS = (
    ">calls", "computes", "algorithm", "problem", ">kernels", ">registers", ">shared", ">spills", ">us", "limit",
)  # fmt: skip
Row = dict[str, Any]


def artifact_of(subject: str | Path, target: str, dtype: str) -> Artifact:
    """An artifact is opened, a model compiled; nothing is run."""
    if str(subject).endswith(".convc"):
        return Artifact.open(subject)
    name = str(subject)
    model: str | bytes = load(name[6:]).SerializeToString() if name.startswith("light:") else name
    machine = computing(parse_target(target), dtype)
    plan = run_until("placed", model, target=target, dtype=dtype)
    options = {"target": str(machine), "dtype": dtype}
    return package(build(plan, machine), plan, machine, b"", options=options, self_test=False)


def rows(artifact: Artifact) -> list[Row]:
    """In order of the first call."""
    machine = parse_target(artifact.manifest["target"]["text"])
    assert isinstance(machine, GpuTarget)
    calls: dict[str, list[Layer]] = {}
    for layer in artifact.layers:
        calls.setdefault(layer.symbol, []).append(layer)
    return [_row(artifact, machine, symbol, layers) for symbol, layers in calls.items()]


def _row(artifact: Artifact, machine: GpuTarget, symbol: str, layers: Sequence[Layer]) -> Row:
    function, first = artifact.program.functions[symbol], layers[0]
    usages = [(launch, u) for launch in function.launches for u in function.usage.get(launch.kernel, ())]
    by_arch = {
        arch: {
            "registers": max(u.registers for _, u in here), "shared": max(u.shared + each.shared for each, u in here),
            "stack": max(u.stack for _, u in here), "spills": sum(u.spill_stores + u.spill_loads for _, u in here),
        }
        for arch in artifact.program.archs if (here := [(each, u) for each, u in usages if u.arch == arch])
    }  # fmt: skip
    us, limit = _predicted(first, len(function.launches), machine)
    return {
        "symbol": symbol, "calls": len(layers), "ops": list(first.ops), "origin": list(first.origin),
        "algorithm": first.algorithm, "config": dict(first.config) if first.config else None,
        "problem": first.problem, "launches": len(function.launches), "kernels": [k.kernel for k in function.launches],
        "scratch": function.scratch, "usage": by_arch, "us": us, "limit": limit, "flops": first.flops,
        "bytes": first.bytes,
    }  # fmt: skip


def _predicted(layer: Layer, launches: int, machine: GpuTarget) -> tuple[float, str]:
    """us of a call, and the limit of the machine that they come from."""
    if layer.algorithm is None or layer.problem is None:
        return 1e6 * streamed(layer.bytes, machine.gpu), "bytes*"
    choice, p = Choice(layer.algorithm, layer.config or {}, "cuda"), Problem.parse(layer.problem)
    limit = choice.entry.limit
    return 1e6 * choice.entry.cost(p, machine, choice.config), limit(p, machine, choice.config) if limit else ""


def totals(found: Sequence[Row]) -> Row:
    usages = [u for row in found for u in row["usage"].values()]
    return {
        "calls": sum(r["calls"] for r in found), "functions": len(found),
        "launches": sum(r["calls"] * r["launches"] for r in found),
        "us": sum(r["calls"] * r["us"] for r in found), "gflop": sum(r["calls"] * r["flops"] for r in found) / 1e9,
        "registers": max((u["registers"] for u in usages), default=0),
        "shared": max((u["shared"] for u in usages), default=0),
        "spilling": sum(any(u["spills"] for u in r["usage"].values()) for r in found),
    }  # fmt: skip


def shown(name: str, artifact: Artifact, found: Sequence[Row]) -> Iterator[str]:
    """The network's table in Markdown. Where there are several architectures their figures are joined by /."""
    all_ = totals(found)
    yield f"\n## {name}, {artifact.manifest['target']['text']}, {artifact.manifest['options'].get('dtype', '')}\n"
    cells = [
        [
            str(r["calls"]), "+".join(dict.fromkeys(r["ops"])), r["algorithm"] or "", r["problem"] or "",
            str(r["launches"]), _each(r, "registers", str), _each(r, "shared", bytes_text), _each(r, "spills", str),
            us_text(r["us"]), r["limit"],
        ]
        for r in found
    ]  # fmt: skip
    yield from markdown(COLUMNS, cells)
    yield (
        f"\n{all_['functions']} functions, {all_['calls']} calls, {all_['launches']} launches, "
        f"{us_text(all_['us'])} us predicted for {all_['gflop']:.2f} GFLOP; at most {all_['registers']} registers and "
        f"{bytes_text(all_['shared'])} of shared memory; {all_['spilling']} functions spill"
    )


def _each(row: Row, key: str, text: Any) -> str:
    return "/".join(dict.fromkeys(text(usage[key]) for usage in row["usage"].values()))


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subjects", nargs="+", help="models, artifacts, zoo, light, light:NAME")
    parser.add_argument("--target", action="append", dest="targets", help="as often as wanted (cuda/sm_80)")
    parser.add_argument("--dtype", action="append", dest="dtypes", choices=DTYPES, help="likewise (f32)")
    parser.add_argument("--json", type=Path)
    return parser.parse_args(arguments)


def _named(asked: Sequence[str], folder: Path) -> Iterator[str]:
    for name in asked:
        yield from (f"light:{t}" for t in topologies()) if name == "light" else subjects([name], folder)


def main(arguments: Iterable[str]) -> int:
    """1 where a network could not be compiled; the others are in the table."""
    options = parsed(list(arguments))
    kinds = [(target, dtype) for target in options.targets or ["cuda/sm_80"] for dtype in options.dtypes or ["f32"]]
    found: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for subject in _named(options.subjects, Path(folder)):
            for target, dtype in kinds[:1] if subject.endswith(".convc") else kinds:
                found.append(_network(subject, target, dtype))
                if options.json:
                    options.json.write_text(json.dumps(found, indent=1))
    if len(found) > 1:
        print("\n".join(_summary(found)))
    return int(any("failed" in row for row in found))


def _network(subject: str, target: str, dtype: str) -> Row:
    name = Path(subject).stem
    row: Row = {"network": name, "target": target, "dtype": dtype}
    try:
        artifact = artifact_of(subject, target, dtype)
    except ConvcError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return row | {"failed": str(error)}
    here = rows(artifact)
    print("\n".join(shown(name, artifact, here)), flush=True)
    return row | {"target": artifact.manifest["target"]["text"], "totals": totals(here), "rows": here}


def _summary(found: Sequence[Row]) -> Iterator[str]:
    keys = ("functions", "calls", "launches", "registers", "spilling")
    yield "\n## All\n"
    cells = []
    for row in found:
        cells.append([row["network"], row["target"], row["dtype"]])
        if all_ := row.get("totals"):
            cells[-1] += [*(str(all_[k]) for k in keys), bytes_text(all_["shared"]), us_text(all_["us"])]
        else:
            cells[-1] += ["cannot be compiled", *[""] * 6]
    yield from markdown(["network", "target", "dtype", *(f">{k}" for k in keys), ">shared", ">us"], cells)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
