"""The speed gate: what `bench --json` printed before against what it finds now."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convc.errors import BadInputError, SpeedGateError, UsageError

OURS = "convc"
MAX_BYTES = 16 << 20


@dataclass(frozen=True)
class Baseline:
    """`us` is the median of each runtime; `subject` and `threads` say of what."""

    subject: str
    threads: int
    us: Mapping[str, float]


def read_baseline(path: Path) -> Baseline:
    """Raises BadInputError where the file is not what `convc bench --json` prints."""
    if path.stat().st_size > MAX_BYTES:
        raise BadInputError(f"{path}: too large to be a baseline")
    try:
        found = json.loads(path.read_text())
        return baseline_of(found)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadInputError(f"{path}: not what `convc bench --json` prints; make it again with that") from error


def baseline_of(document: Mapping[str, Any]) -> Baseline:
    rows = {str(row["runtime"]): row["us"] for row in document["results"]}
    us = {name: float(value) for name, value in rows.items() if value is not None}
    if not all(0 < value < float("inf") for value in [*us.values(), us[OURS]]):
        raise ValueError("times must be positive")
    return Baseline(str(document["subject"]), int(document["threads"]), us)


def slowdowns(before: Baseline, now: Baseline, *, tolerance: float, path: Path) -> tuple[str, ...]:
    """Each comparison that got worse by more than `tolerance`, as a sentence.

    Against every peer in the baseline, because ratios on one machine carry over to another; without peers against
    convc's own time.
    """
    if (before.subject, before.threads) != (now.subject, now.threads):
        raise UsageError(
            f"{path} holds times of '{before.subject}' on {before.threads} threads, "
            f"not of '{now.subject}' on {now.threads}"
        )
    peers = [name for name in before.us if name != OURS]
    if absent := [name for name in peers if name not in now.us]:
        names = ", ".join(absent)
        raise UsageError(f"{path} holds times of {names}, which did not run now; add --vs {','.join(peers)}")
    if not peers:
        growth = now.us[OURS] / before.us[OURS] - 1
        return (_sentence(growth, f"{now.us[OURS]:.1f} us", f"{before.us[OURS]:.1f} us"),) if growth > tolerance else ()
    found = []
    for name in peers:
        old, new = before.us[name] / before.us[OURS], now.us[name] / now.us[OURS]
        if old / new - 1 > tolerance:
            found.append(_sentence(old / new - 1, f"x{new:.3f} against {name}", f"x{old:.3f}"))
    return tuple(found)


def _sentence(growth: float, now: str, before: str) -> str:
    return f"{100 * growth:.1f} % slower: {now} now, {before} before"


def gate_error(sentences: tuple[str, ...], *, tolerance: float, path: Path) -> SpeedGateError | None:
    if not sentences:
        return None
    return SpeedGateError(f"slower than {path} allows ({100 * tolerance:g} %): {'; '.join(sentences)}")
