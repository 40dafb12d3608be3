"""A placed plan and its objects to an artifact: glue, link, weights, manifest, and a run for the self-test."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from convc import __version__
from convc.ir import Array, Const, Graph, Node, TensorType
from convc.plan.offers import Measured, bound_of
from convc.plan.plan import Call, Kernel, Packing, Plan
from convc.runtime import container
from convc.runtime.artifact import GOLDEN, HEADER, LIBRARY, MANIFEST, WEIGHTS, Artifact
from convc.runtime.container import Bytes
from convc.runtime.features import machine_of, required_features, runs_here
from convc.runtime.glue import Glue, glue, scratch_bytes
from convc.runtime.link import link
from convc.runtime.loader import load
from convc.runtime.weights import safetensors
from convc.target import Target

SEED = 0

Behind = Callable[[Kernel], Measured | None]
"""What records say of a kernel's choice; None where it came from the model."""


class Compiled(Protocol):
    """What `build` returns: objects, the symbol of each kernel, bytes of temporaries one thread takes per symbol."""

    @property
    def objects(self) -> tuple[bytes, ...]: ...
    @property
    def symbols(self) -> Mapping[Kernel | Packing, str]: ...
    @property
    def scratch(self) -> Mapping[str, int]: ...


def package(
    built: Compiled, plan: Plan, target: Target, model: bytes | str | Path, *, name: str = "model",
    options: Mapping[str, Any] | None = None, records: Behind = lambda kernel: None,
) -> Artifact:
    """The artifact of a placed plan. The same arguments give the same bytes.

    `model` is the file it came from, or its bytes; `name` the prefix of its C functions; `options` what the manifest
    shall say of how it was made (JSON values), `records` what these say of a kernel's choice.
    Raises MissingDependencyError without a C compiler.
    """
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(_digest_of, model)
        weights, offset = safetensors(plan)
        digest = hashlib.sha256(weights)
        source = reading.result()
    sources = _glue(built, plan, target, name, f"model {source[:16]}", digest.digest(), offset)
    library = link(built.objects, sources, target)
    manifest = _manifest(built, plan, target, records) | {"weights": {"offset": offset}}
    manifest |= {"name": name, "model": {"sha256": source}, "options": dict(options or {})}
    entries: dict[str, Bytes] = {LIBRARY: library, HEADER: sources.header.encode(), WEIGHTS: weights}
    here = runs_here(target)
    inputs = golden_inputs(plan)
    manifest["golden"] = {"seed": SEED, "source": "run" if here else "reference"}
    outputs = _run(manifest, entries, inputs) if here else _reference(plan, inputs)
    return Artifact.of(manifest, entries | {GOLDEN: npz(inputs, outputs)}, hashes={WEIGHTS: digest.hexdigest()})


def _digest_of(model: bytes | str | Path) -> str:
    if isinstance(model, bytes):
        return hashlib.sha256(model).hexdigest()
    with Path(model).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _glue(
    built: Compiled, plan: Plan, target: Target, name: str, source: str, weights: bytes, offset: int
) -> Glue:
    """The C sources; `weights` is the digest of their file."""
    digest = hashlib.sha256(source.encode())
    for part in (weights, *(hashlib.sha256(content).digest() for content in built.objects)):
        digest.update(part)
    return glue(
        plan, built.symbols, scratch=built.scratch, name=name, version=f"convc {__version__}, {target.label}, {source}",
        model_id=int.from_bytes(digest.digest()[:8], "little"), weights_offset=offset,
    )


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
    return {
        "versions": _versions(),
        "target": {
            "label": target.label, "text": str(target), "machine": machine_of(target),
            "features": required_features(target),
        },
        "inputs": [{"name": node.label, **_type(node)} for node in plan.inputs],
        "outputs": [{"name": label, **_type(node)} for label, node in plan.outputs],
        "memory": {
            "weights": plan.weight_bytes, "packed": plan.packed_bytes, "arena": plan.arena_bytes,
            "scratch_per_thread": scratch_bytes(plan.run, built.symbols, built.scratch),
        },
        "init": [_packing(call, built.symbols[call.kernel]) for call in plan.init],
        "calls": [_layer(call, built.symbols[call.kernel], records) for call in plan.run],
    }


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
