"""Flags that several verbs share: the same name means the same everywhere."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from convc.dtypes import DTYPES

_UNITS = {"": 1, "B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "KB": 10**3, "MB": 10**6, "GB": 10**9,
          "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}  # fmt: skip
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h)?")
_SECONDS = {"s": 1, "m": 60, "h": 3600, None: 1}
_SHAPE = re.compile(r"\d+(x\d+)*")


NamedShape = tuple[str, tuple[int, ...]]


class Size(click.ParamType[int]):
    """64MiB, 1.5GiB, 4096 -> bytes."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        found = _SIZE.fullmatch(value.strip())
        if found is None or found[2].upper() not in _UNITS:
            self.fail(f"'{value}' is no size, as 64MiB or 65536 is", param, ctx)
        return int(float(found[1]) * _UNITS[found[2].upper()])


class Duration(click.ParamType[float]):
    """60s, 10m, 1.5h -> seconds."""

    name = "TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        found = _DURATION.fullmatch(str(value).strip())
        if found is None or not float(found[1]):
            self.fail(f"'{value}' is no time, as 60s, 10m or 1h is", param, ctx)
        return float(found[1]) * _SECONDS[found[2]]


class Shape(click.ParamType[NamedShape]):
    """NAME:1x3x224x224 -> (NAME, (1, 3, 224, 224)); the name may hold colons."""

    name = "NAME:1x3x224x224"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> NamedShape:
        if isinstance(value, tuple):
            return value
        name, _, extents = value.rpartition(":")
        if not name or not _SHAPE.fullmatch(extents):
            self.fail(f"'{value}' is no shape, as input:1x3x224x224 is", param, ctx)
        return name, tuple(int(extent) for extent in extents.split("x"))


class Fraction(click.ParamType[float]):
    """5% or 0.05 -> 0.05."""

    name = "PERCENT"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        text, scale = (value[:-1], 0.01) if value.endswith("%") else (value, 1.0)
        try:
            found = float(text) * scale
        except ValueError:
            found = -1.0
        if not 0 <= found < 10:
            self.fail(f"'{value}' is no tolerance, as 5% or 0.05 is", param, ctx)
        return found


class Words(click.ParamType[tuple[str, ...]]):
    """a,b,c -> ("a", "b", "c"), each one of `known`."""

    name = "LIST"

    def __init__(self, known: tuple[str, ...]) -> None:
        self.known = known

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        found = tuple(dict.fromkeys(word.strip() for word in value.split(",") if word.strip()))
        if unknown := [word for word in found if word not in self.known]:
            self.fail(f"'{unknown[0]}' is none of {', '.join(self.known)}", param, ctx)
        return found


def building(given: Mapping[str, Any]) -> dict[str, Any]:
    """The flags of a build as `convc.compile` takes them: a bound that nobody gave depends on the type."""
    found = {**given, "shapes": dict(given["shapes"])}
    source = click.get_current_context().get_parameter_source("max_rel_err")
    if "dtype" in found and source is not ParameterSource.COMMANDLINE:
        del found["max_rel_err"]
    return found


FILE = click.Path(path_type=Path)
THREADS = click.IntRange(1, 256)

target = click.option("-t", "--target", default="native", show_default=True, help="Machine; see `convc targets`.")
build_threads = click.option("--threads", type=THREADS, help="Threads to split work for. Default: the target's, or 1.")
run_threads = click.option("--threads", type=THREADS, help="Threads to run on. Default: the processors available.")
shape = click.option(
    "--shape",
    "shapes",
    type=Shape(),
    multiple=True,
    metavar=Shape.name,
    help="Extents of an input with open ones; repeatable.",
)
dtype = click.option(
    "--dtype", type=click.Choice(DTYPES), default="f32", show_default=True,
    help="Type to compute in; all but f32 on GPUs only.",
)  # fmt: skip
max_rel_err = click.option(
    "--max-rel-err", type=click.FloatRange(0, 1, min_open=True), default=1e-4, show_default=True,
    help="Bound on a layer's relative error; by default beside what --dtype rounds.",
)  # fmt: skip
memory_budget = click.option("--memory-budget", type=Size(), help="Most bytes of workspace, as 64MiB.")
records = click.option("--records", type=FILE, help="Folder of tuning logs. Default: the user's.")
rpc_tracker = click.option("--rpc-tracker", metavar="HOST:PORT", help="TVM's RPC tracker; needs --rpc-key.")
rpc_key = click.option("--rpc-key", metavar="KEY", help="The key under which devices are registered there.")
inputs = click.option("--inputs", type=FILE, help="Arrays by input name, as .npz.")
fill = click.option("--fill", type=click.Choice(["random", "zeros"]), help="Make inputs up.")
seed = click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Of --fill random.")
