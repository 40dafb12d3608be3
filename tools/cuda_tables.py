"""The results of tools/bench_cuda.py as tables in Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from convc.report.table import bytes_text, us_text

Found = dict[str, Any]
TITLES = {
    "twelve": "The twelve layers of the im2win papers", "resnet50": "ResNet-50's convolutions", "networks": "Networks",
    "ablation": "Im2win step by step", "four": "The fourth layer with 32 input channels",
    "points": "Winograd in float16",
}  # fmt: skip


def tables(results: Found) -> Iterator[str]:
    yield f"{results['gpu']}, artifacts for {results['target']}, {_words(results['versions'])}"
    for group, title in TITLES.items():
        rows = [found for found in results["subjects"] if found["group"] == group]
        for dtype in dict.fromkeys(found.get("dtype") for found in rows if found.get("dtype")):
            same = [found for found in rows if found.get("dtype") == dtype]
            yield f"\n## {title}, {dtype}\n"
            yield from KINDS.get(group, _compared)(same)
    yield from _troubles(results)


def _words(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Columns that begin with ">" are aligned to the right."""
    yield "| " + " | ".join(c.removeprefix(">") for c in columns) + " |"
    yield "|" + "|".join("---:" if c.startswith(">") else "---" for c in columns) + "|"
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def name_of(found: Found) -> str:
    return str(found["id"]).split("/", 1)[1].rpartition("/")[0]


def _compared(rows: Sequence[Found]) -> Iterator[str]:
    """A column of us for each contender, then GFLOP/s of convc's best, its ratio to the best peer, and memory."""
    names = list(dict.fromkeys(n for found in rows for n, e in found["contenders"].items() if "us" in e))
    if not names:
        yield from markdown(["", "checks"], [[name_of(found), _verdict(found)] for found in rows])
        return
    columns = ["", *(f">{n} us" for n in names), ">convc GFLOP/s", ">peer GFLOP/s", ">convc is", ">memory", ">peer's"]
    cells = []
    for found in rows:
        each, best, peer = found["contenders"], found.get("best"), found.get("best_peer")
        row = [name_of(found), *(_us(each.get(n)) for n in names)]
        row += [f"{each[n]['gflops']:.0f}" if n else "" for n in (best, peer)]
        row += [f"x{found['ratio']:.2f}" if found.get("ratio") else ""]
        row += [bytes_text(each[n]["extra_bytes"]) if n else "" for n in (best, peer)]
        cells.append(row)
    cells.append(["geometric mean", *(_mean(rows, n) for n in names), "", "", _geomean(rows), "", ""])
    yield from markdown(columns, cells)


def _us(entry: Found | None) -> str:
    if entry is None:
        return ""
    return f"{us_text(entry['us'])} ±{us_text(entry['spread'])}" if "us" in entry else "wrong" if entry["wrong"] else ""


def _mean(rows: Sequence[Found], name: str) -> str:
    """Of how many times as long as convc's best it takes, over the rows that have it."""
    pairs = [(f["contenders"].get(name, {}), f["contenders"].get(f.get("best"), {})) for f in rows]
    found = [a["us"] / b["us"] for a, b in pairs if "us" in a and "us" in b]
    return f"x{statistics.geometric_mean(found):.2f} ({len(found)})" if found else ""


def _geomean(rows: Sequence[Found]) -> str:
    found = [f["ratio"] for f in rows if f.get("ratio")]
    return f"x{statistics.geometric_mean(found):.3f}, least x{min(found):.2f}" if found else ""


def _steps(rows: Sequence[Found]) -> Iterator[str]:
    """A row for each step: us and error of each subject, and what it gains over the step before."""
    labels = list(dict.fromkeys(label for found in rows for label in found["contenders"]))
    cells = []
    for i, label in enumerate(labels):
        entries = [found["contenders"].get(label, {}) for found in rows]
        gains = [
            before["us"] / e["us"] for e, found in zip(entries, rows, strict=True)
            if i and "us" in e and "us" in (before := found["contenders"].get(labels[i - 1], {}))
        ]  # fmt: skip
        gain = f"x{statistics.geometric_mean(gains):.2f}" if gains else ""
        errors = [e["error"] for e in entries if e.get("error") is not None]
        cells.append([label, *map(_us, entries), gain, f"{max(errors):.1e}" if errors else ""])
    yield from markdown(["", *(f">{name_of(f)} us" for f in rows), ">gain", ">error"], cells)


def _points(rows: Sequence[Found]) -> Iterator[str]:
    """A row for each F(m, r) and its points: us of each subject, its time beside F(2, 3)'s, and of the errors relative
    to the root mean square of y their own and the largest."""
    labels = list(dict.fromkeys(label for found in rows for label in found["contenders"]))
    first = next((label for label in labels if label.startswith("F(")), "")
    cells = []
    for label in labels:
        entries = [found["contenders"].get(label, {}) for found in rows]
        pairs = [(e.get("us"), f["contenders"].get(first, {}).get("us")) for e, f in zip(entries, rows, strict=True)]
        times = [us / beside for us, beside in pairs if us and beside]
        time = f"x{statistics.geometric_mean(times):.2f}" if times else ""
        worst = [max((e[key] for e in entries if e.get(key) is not None), default=None) for key in ("rms", "error")]
        cells.append([label, *map(_us, entries), time, *("" if w is None else f"{w:.1e}" for w in worst)])
    yield from markdown(["", *(f">{name_of(f)} us" for f in rows), ">time", ">rms error", ">largest"], cells)


KINDS = {"ablation": _steps, "points": _points}


def _verdict(found: Found) -> str:
    wrong = found.get("wrong") or {}
    errors = {n: e["error"] for n, e in found["contenders"].items() if e.get("error") is not None and n not in wrong}
    right = [f"{name} {error:.1e}" for name, error in errors.items()]
    return ", ".join([*right, *(f"{n} WRONG" for n in wrong)])


def _troubles(results: Found) -> Iterator[str]:
    lines = [f"{f['id']}: {f['failed']}" for f in results["subjects"] if f.get("failed")]
    lines += [f"{f['id']}: {n}: {why}" for f in results["subjects"] for n, why in (f.get("wrong") or {}).items()]
    if lines:
        yield "\n## Wrong, and not timed\n"
        yield from (f"- {line}" for line in lines)
    if results["dropped"]:
        yield f"\n## Dropped for want of time: {len(results['dropped'])}\n"
        yield ", ".join(results["dropped"])
