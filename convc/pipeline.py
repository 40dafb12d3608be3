"""The compiler. Read `compile` first: each line of it is one step of the chain of types, and one file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from convc.dtypes import LIMITS, STORED, computing, multiplies_int8
from convc.errors import UsageError
from convc.target import parse_target

if TYPE_CHECKING:
    from convc.runtime.artifact import Artifact

T = TypeVar("T")
Observer = Callable[[str, Any], None]
STAGES = ("graph", "simple", "plan", "chosen", "placed")


def compile(  # noqa: A001  the verb of the command line and of the Python interface
    model: str | Path | bytes,
    *,
    target: str = "native",
    threads: int | None = None,
    dtype: str = "f32",
    max_rel_err: float | None = None,
    memory_budget: int | None = None,
    records: str | Path | None = None,
    require_tuned: bool = False,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    dump_code: str | Path | None = None,
    observe: Observer | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Artifact:
    """An ONNX model (path or bytes) to an artifact for `target`.

    `threads` is how many the schedules split work for (default: what the target says, else 1). `dtype` is what is
    computed in: f32, or on GPUs tf32 (float32, products rounded), f16 or bf16; inputs and outputs stay what they are.
    `max_rel_err` bounds
    each layer's error relative to its output range (default: 1e-4, and
    what `dtype` itself rounds); `memory_budget` bounds packed weights and workspace in bytes;
    `records` is a folder of tuning logs (default: the user's), used beside those that convc ships; `require_tuned`
    refuses a problem without a record. `shapes` fixes symbolic input shapes by name; `dump_code` is a folder for the
    lowered and assembled kernels. `observe` sees every stage's name and value, `progress` the number of kernels built
    and their total. The same input gives the same bytes; nothing is measured.
    Raises ConvcError with the reason.
    """
    from convc.frontend import import_onnx
    from convc.lower.objects import build
    from convc.passes import simplify
    from convc.passes.dequantized import sum_integers
    from convc.passes.eight_bits import in_eight_bits
    from convc.passes.narrow import narrow
    from convc.plan import partition, place, select
    from convc.runtime.package import package
    from convc.tune.lookup import lookup_for

    def stage(name: str, value: T) -> T:
        if observe:
            observe(name, value)
        return value

    known = lookup_for(computing(parse_target(target, threads=threads), dtype), Path(records) if records else None)
    machine, limit = known.target, LIMITS[dtype] if max_rel_err is None else max_rel_err
    graph = stage("graph", import_onnx(model, shapes=shapes or {}))
    graph = simplify(sum_integers(graph) if multiplies_int8(machine) and dtype not in STORED else graph)
    graph = narrow(graph, STORED[dtype]) if dtype in STORED else graph
    graph = stage("simple", in_eight_bits(graph) if multiplies_int8(machine) else graph)
    plan = stage("plan", partition(graph))
    chosen = select(plan, machine, max_rel_err=limit, memory_budget=memory_budget, records=known)
    if require_tuned:
        known.check_tuned(chosen)
    plan = stage("chosen", chosen)
    plan = stage("placed", place(plan))
    built = build(plan, machine, dump=Path(dump_code) if dump_code else None, progress=progress)
    options = {
        "target": str(machine), "dtype": dtype, "max_rel_err": limit, "memory_budget": memory_budget,
        "shapes": {name: list(shape) for name, shape in (shapes or {}).items()},
    }
    return package(built, plan, machine, model, options=options, records=known.behind_kernel)


class _Reached(Exception):  # noqa: N818  no error: the stage that was asked for
    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value


def run_until(stage: str, model: str | Path | bytes, **options: Any) -> Any:
    """The value of one of STAGES (a Graph, then Plans), with nothing after it done. Options as for `compile`."""
    if stage not in STAGES:
        raise UsageError(f"'{stage}' is no stage; the stages are {', '.join(STAGES)}")

    def observe(name: str, value: Any) -> None:
        if name == stage:
            raise _Reached(value)

    try:
        compile(model, observe=observe, **options)
    except _Reached as reached:
        return reached.value
    raise AssertionError(f"compile passed '{stage}' by")
