"""A placed plan and its objects to an artifact: its code, weights, manifest, and a run for the self-test."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from convc import __version__
from convc.ir import Array, Const, Graph, Node, TensorType
from convc.launch import Launch, Usage, aligned
from convc.plan.offers import Measured, bound_of
from convc.plan.plan import Call, Kernel, Packing, Plan
from convc.runtime import container
from convc.runtime.artifact import GOLDEN, HEADER, LIBRARY, MANIFEST, WEIGHTS, Artifact
from convc.runtime.container import Bytes
from convc.runtime.features import runs_here, target_row
from convc.runtime.glue import Glue, glue, scratch_bytes
from convc.runtime.link import link
from convc.runtime.loader import load
from convc.runtime.program import entry_of, rows_of
from convc.runtime.weights import safetensors
from convc.target import Target

SEED = 0

Behind = Callable[[Kernel], Measured | None]
"""What records say of a kernel's choice; None where it came from the model."""


class Compiled(Protocol):
    """What `build` returns: objects, the symbol of each kernel, bytes of temporaries one thread takes per symbol.

    For GPUs an object is the fat binary of a function, in the order of `launches`, which has what that launches; the
    temporaries are those of the whole function. `usage` is by symbol, then by kernel. For CPUs both are empty.
    """

    @property
    def objects(self) -> tuple[bytes, ...]: ...
    @property
    def symbols(self) -> Mapping[Kernel | Packing, str]: ...
    @property
    def scratch(self) -> Mapping[str, int]: ...
    @property
    def launches(self) -> Mapping[str, tuple[Launch, ...]]: ...
    @property
    def usage(self) -> Mapping[str, Mapping[str, tuple[Usage, ...]]]: ...


def package(
    built: Compiled, plan: Plan, target: Target, model: bytes | str | Path, *, name: str = "model",
    options: Mapping[str, Any] | None = None, records: Behind = lambda kernel: None, self_test: bool = True,
) -> Artifact:
    """The artifact of a placed plan. The same arguments give the same bytes.

    `model` is the file it came from, or its bytes; `name` the prefix of its C functions; `options` what the manifest
    shall say of how it was made (JSON values), `records` what these say of a kernel's choice. Without `self_test` it
    has no golden run, which takes as long as the network takes in numpy.
    Raises MissingDependencyError without a C compiler.
    """
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(_digest_of, model)
        weights, offset = safetensors(plan)
        digest = hashlib.sha256(weights)
        source = reading.result()
    manifest = _manifest(built, plan, target, records) | {"weights": {"offset": offset}}
    manifest |= {"name": name, "model": {"sha256": source}, "options": dict(options or {})}
    made = _Made(built, plan, target, name, f"model {source[:16]}", digest.digest(), offset)
    entries = FORMS[target.kind](made) | {WEIGHTS: weights}
    if not self_test:
        return Artifact.of(manifest, entries, hashes={WEIGHTS: digest.hexdigest()})
    here = target.kind == "cpu" and runs_here(target)  # a GPU that happens to be here must not change the bytes
    inputs = golden_inputs(plan)
    manifest["golden"] = {"seed": SEED, "source": "run" if here else "reference"}
    outputs = _run(manifest, entries, inputs) if here else _reference(plan, inputs)
    return Artifact.of(manifest, entries | {GOLDEN: npz(inputs, outputs)}, hashes={WEIGHTS: digest.hexdigest()})


def _digest_of(model: bytes | str | Path) -> str:
    if isinstance(model, bytes):
        return hashlib.sha256(model).hexdigest()
    with Path(model).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class _Made:
    """All that the code of an artifact is made of; `weights` is the digest of their file, `offset` where they start."""

    built: Compiled
    plan: Plan
    target: Target
    name: str
    source: str
    weights: bytes
    offset: int


def _library(made: _Made) -> dict[str, Bytes]:
    sources = _glue(made)
    return {LIBRARY: link(made.built.objects, sources, made.target), HEADER: sources.header.encode()}


def _fat_binaries(made: _Made) -> dict[str, Bytes]:
    rows = zip(made.built.launches, made.built.objects, strict=True)
    return {entry_of(symbol): content for symbol, content in rows}


FORMS: Mapping[str, Callable[[_Made], dict[str, Bytes]]] = {"cpu": _library, "cuda": _fat_binaries}
"""By kind of target, the entries that hold the code."""


def _glue(made: _Made) -> Glue:
    """The C sources."""
    digest = hashlib.sha256(made.source.encode())
    for part in (made.weights, *(hashlib.sha256(content).digest() for content in made.built.objects)):
        digest.update(part)
    return glue(
        made.plan, made.built.symbols, scratch=made.built.scratch, name=made.name,
        version=f"convc {__version__}, {made.target.label}, {made.source}",
        model_id=int.from_bytes(digest.digest()[:8], "little"), weights_offset=made.offset,
    )  # fmt: skip


def _versions() -> dict[str, str]:
    return {"convc": __version__, "numpy": np.__version__, "apache-tvm": _installed("apache-tvm")}


def _installed(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "absent"


def golden_inputs(plan: Plan) -> dict[str, Array]:
    """Seeded random inputs: standard normal, the whole range of 8-bit integers, 0 and 1 for wider ones."""
    random = np.random.default_rng(SEED)
    return {node.label: _fill(random, node.type) for node in plan.inputs}


def _fill(random: np.random.Generator, type_: TensorType) -> Array:
    dtype = np.dtype(type_.dtype)
    if dtype.kind == "f":
        return random.standard_normal(type_.shape).astype(dtype)
    if dtype.kind in "iu" and dtype.itemsize == 1:
        limits = np.iinfo(dtype)
        return random.integers(limits.min, limits.max, type_.shape, dtype, endpoint=True)
    if dtype.kind in "iub":
        return random.integers(0, 2, type_.shape).astype(dtype)
    return np.ones(type_.shape, dtype)


def npz(inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> bytes:
    """numpy's archive with input_0, ... and output_0, ... in order; the same bytes for the same arrays."""
    arrays = {f"input_{i}": value for i, value in enumerate(inputs.values())}
    arrays |= {f"output_{i}": value for i, value in enumerate(outputs.values())}
    return container.pack({f"{key}.npy": _npy(value) for key, value in arrays.items()})


def _npy(value: Array) -> bytes:
    file = io.BytesIO()
    np.save(file, value, allow_pickle=False)
    return file.getvalue()


def _run(manifest: Mapping[str, Any], entries: Mapping[str, Bytes], inputs: Mapping[str, Array]) -> dict[str, Array]:
    """The outputs of what is all but an artifact: its manifest has no hashes yet."""
    return load(Artifact({MANIFEST: json.dumps(manifest).encode(), **entries}), threads=1).run(inputs)


def _reference(plan: Plan, inputs: Mapping[str, Array]) -> dict[str, Array]:
    found = Graph(plan.inputs, plan.outputs).evaluate(inputs)
    return {name: np.asarray(found[name], node.dtype) for name, node in plan.outputs}


def _manifest(built: Compiled, plan: Plan, target: Target, records: Behind) -> dict[str, Any]:
    code = {"kernels": rows_of(built.scratch, built.launches, built.usage)} if target.kind == "cuda" else {}
    return {
        "versions": _versions(),
        "target": target_row(target),
        "inputs": [{"name": node.label, **_type(node)} for node in plan.inputs],
        "outputs": [{"name": label, **_type(node)} for label, node in plan.outputs],
        "memory": {
            "weights": plan.weight_bytes, "packed": plan.packed_bytes, "arena": plan.arena_bytes,
            **_scratch(built, plan, target),
        },
        **code,
        "init": [_packing(call, built.symbols[call.kernel]) for call in plan.init],
        "calls": [_layer(call, built.symbols[call.kernel], records) for call in plan.run],
    }


def _scratch(built: Compiled, plan: Plan, target: Target) -> dict[str, int]:
    """Temporaries: each thread of a CPU has its own, a function on a GPU has them once."""
    most = scratch_bytes(plan.run, built.symbols, built.scratch)
    return {"scratch": aligned(most)} if target.kind == "cuda" else {"scratch_per_thread": most}


def _type(node: Node) -> dict[str, Any]:
    return {"dtype": node.dtype, "shape": list(node.shape)}


def _slots(call: Call) -> list[dict[str, Any]]:
    """As the C tables have them: a place in bytes, or the number of an input or output."""
    return [{"space": s.space, "at": s.index if s.space in ("input", "output") else s.offset} for s in call.args]


def _packing(call: Call, symbol: str) -> dict[str, Any]:
    kernel = call.kernel
    assert isinstance(kernel, Packing)
    choice = None if kernel.choice is None else str(kernel.choice)
    return {"symbol": symbol, "weight": _type(kernel.weight), "choice": choice, "args": _slots(call)}


def _layer(call: Call, symbol: str, records: Behind) -> dict[str, Any]:
    kernel = call.kernel
    assert isinstance(kernel, Kernel)
    group, choice, problem = kernel.group, kernel.choice, kernel.group.problem
    *_, result = slots = _slots(call)
    known = records(kernel) if choice else None
    error = choice.entry.error(problem, choice.config) if choice and problem else None
    return {
        "symbol": symbol,
        "ops": [type(node).__name__ for node in group.nodes],
        "origin": list(call.origin),
        "problem": None if problem is None else str(problem),
        "algorithm": choice.algorithm if choice else None,
        "config": dict(choice.config) if choice else None,
        "source": (known.origin if known else "modelled") if choice else None,
        "error": error,
        "bound": bound_of(problem, choice) if choice and problem else None,
        "measured": known.error if known else None,
        "flops": sum(node.flops for node in group.nodes),
        "bytes": group.result.type.bytes + sum(node.type.bytes for node in group.reads),
        "constants": sum(node.type.bytes for node in group.reads if isinstance(node, Const)),
        "reads": [str(layout) for layout in kernel.layouts],
        "args": slots,
        "result": {**_type(group.result), "block": kernel.result.block, **result},
    }
