"""Rates: what one core does in a cycle, as the analytic models of the algorithms count it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from convc.errors import BadInputError

FILE = "rates.json"


@dataclass(frozen=True)
class Rates:
    """Of one core of a target; `convc doctor --measure` measures all but the last three, which trials tell
    (tools/fit_rates.py).

    clock    cycles/s.
    fma      multiply-adds of whole vectors a cycle.
    load     loads of whole vectors a cycle.
    latency  of a multiply-add, cycles.
    l2       bytes a cycle from L2 beside multiply-adds.
    far      bytes a cycle from the last level and memory, one core, with the hardware's prefetch.
    step     cycles that a step of a reduction loses to everything else.
    room     vector registers that a tile may fill; beyond it the compiler spills some.
    crowd    share of its time that a tile loses with each register beyond.
    """

    clock: float = 3e9
    fma: float = 2.0
    load: float = 2.0
    latency: float = 4.0
    l2: float = 32.0
    far: float = 8.0
    step: float = 0.75
    room: int = 32
    crowd: float = 0.02


MEASURED = ("clock", "fma", "load", "latency", "l2", "far")


def rates_of(label: str, *, default: Rates, folder: Path | None = None) -> Rates:
    """What `folder` (the user's records) or else convc itself knows of a target as cpu/znver5; the rest is `default`'s.

    Raises BadInputError where the folder's file is none of rates.
    """
    own = _rows(folder).get(label, {}) if folder else {}
    known: Any = {**_rows(files("convc.tuning_logs")).get(label, {}), **own}
    return replace(default, **known)


def _rows(folder: Traversable) -> Mapping[str, Mapping[str, float]]:
    path = folder.joinpath(FILE)
    return parse_rates(path.read_text(), str(path)) if path.is_file() else {}


def parse_rates(text: str, where: str) -> Mapping[str, Mapping[str, float]]:
    """Raises BadInputError where the text is not an object of positive numbers by label and name."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise BadInputError(f"{where}: not JSON ({error})") from error
    names = {f.name for f in fields(Rates)}
    for label, row in found.items() if isinstance(found, dict) else [("", None)]:
        if not isinstance(row, dict) or not row.keys() <= names:
            raise BadInputError(f"{where}: '{label[:40]}' is not numbers by the names {', '.join(sorted(names))}")
        if not all(isinstance(v, int | float) and 0 <= v < 1e12 for v in row.values()):
            raise BadInputError(f"{where}: '{label[:40]}' holds something that is no number from 0 to 1e12")
    return dict(found)


def rates_text(rows: Mapping[str, Mapping[str, float]]) -> str:
    """The file of `rows`, sorted, so that measuring again is a readable diff."""
    return json.dumps(rows, indent=1, sort_keys=True) + "\n"
