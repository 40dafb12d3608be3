"""What Winograd in float16 and int8 does to a whole network, by the points it is evaluated at, as a Markdown table.

    python tools/study_winograd.py model.onnx
    python tools/study_winograd.py model.onnx --inputs images.npz --most 8

Every 3x3 convolution of stride 1 is computed in the models of convc.numerics.study, all else in float64. Inputs are
those of an .npz, stacked along its first axis, else the test data beside the model, else standard normal.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx

from convc.frontend import import_onnx
from convc.ir import Array, Cast, Const, Conv, Graph, Input, Node, Reshape, Softmax
from convc.numerics.bilinear import Bilinear, direct
from convc.numerics.known import known
from convc.numerics.objective import spread
from convc.numerics.points import chosen, points_text
from convc.numerics.study import nested
from convc.passes import simplify

FORMATS = (("f16", True), ("f16", False), ("i8", True))  # the second: rows scaled by powers of two
OUTPUTS = (4, 6, 8)
Convolve = Callable[[Array, Array], Array]


@dataclass
class Tally:
    """Sums over inputs, for one set of points in one format."""

    squares: float = 0.0
    reference: float = 0.0
    agreed: int = 0
    inputs: int = 0
    nonfinite: int = 0
    layer_errors: list[float] = field(default_factory=list)

    def add(self, found: Array, wanted: Array) -> None:
        self.squares += float(np.sum((found - wanted) ** 2))
        self.reference += float(np.sum(wanted**2))
        self.agreed += int(np.argmax(found) == np.argmax(wanted))
        self.inputs += 1

    @property
    def error(self) -> float:
        """Relative, in the 2-norm of all outputs."""
        return float(np.sqrt(self.squares / self.reference))


@dataclass(frozen=True)
class Case:
    label: str
    b: Bilinear
    format: str
    is_scaled: bool

    def convolve(self, tally: Tally, exact: Array, x: Array, w: Array) -> Array:
        """Of x [1, C, H, W], padded. What is not finite is counted and goes on as zero, so that the layers behind it
        still tell something."""
        found = convolved(self.b, x, w, self.format, is_scaled=self.is_scaled)
        finite = np.isfinite(found)
        tally.nonfinite += int(np.count_nonzero(~finite))
        found = np.where(finite, found, 0.0)
        tally.layer_errors.append(float(np.linalg.norm(found - exact) / max(np.linalg.norm(exact), 1e-30)))
        return found


def convolved(b: Bilinear, x: Array, w: Array, format: str, *, is_scaled: bool) -> Array:  # noqa: A002
    """Tile by tile; float64 [1, O, H - r + 1, W - r + 1]."""
    extents = [extent - b.r + 1 for extent in x.shape[2:]]
    tiles = [-(-extent // b.m) for extent in extents]
    missing = [(0, t * b.m + b.r - 1 - had) for t, had in zip(tiles, x.shape[2:], strict=True)]
    padded = np.pad(x[0], ((0, 0), *missing)).astype(np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (b.span, b.span), axis=(1, 2))[:, :: b.m, :: b.m]
    stacked = windows.transpose(1, 2, 0, 3, 4).reshape(-1, x.shape[1], b.span, b.span)
    y = nested(b, stacked, w.astype(np.float32), format, is_scaled=is_scaled)
    y = y.reshape(*tiles, -1, b.m, b.m).transpose(2, 0, 3, 1, 4).reshape(-1, tiles[0] * b.m, tiles[1] * b.m)
    return y[None, :, : extents[0], : extents[1]].astype(np.float64)


def takes_winograd(node: Node) -> bool:
    if not (isinstance(node, Conv) and isinstance(node.w, Const)):
        return False
    steps = (node.stride, node.dilation, node.w.shape[2:], node.group)
    return steps == ((1, 1), (1, 1), (3, 3), 1) and node.shape[0] == 1


def wide(value: Array) -> Array:
    return value.astype(np.float64) if value.dtype.kind == "f" else value


def evaluated(graph: Graph, inputs: Mapping[str, Array], case: Case | None, tally: Tally) -> Array:
    """The first output in float64, with `case` for what takes Winograd."""
    values: dict[Node, Array] = {}
    for node in graph.nodes:
        args = [values[a] for a in node.args]
        match node:
            case Input(label):
                values[node] = wide(inputs[label])
            case Const(value):
                values[node] = wide(value)
            case Cast() if node.to.startswith("float"):
                values[node] = wide(args[0])
            case Conv() if case is not None and takes_winograd(node):
                x, w = np.pad(args[0], ((0, 0), (0, 0), *node.pad)), args[1]
                bias = args[2].reshape(1, -1, 1, 1) if len(args) > 2 else 0.0
                exact = node.reference(*args[:2])
                values[node] = case.convolve(tally, exact, x, w) + bias
            case _:
                values[node] = node.reference(*args)
    return values[graph.outputs[0][1]]


def scores(graph: Graph) -> Graph:
    """Without the softmax at the end, which hides errors where it is sure."""
    name, node = graph.outputs[0]
    seen = node
    while isinstance(seen, Cast | Reshape):
        seen = seen.args[0]
    return Graph(graph.inputs, ((name, seen.x if isinstance(seen, Softmax) else node),))


def inputs_of(graph: Graph, model: Path, archive: Path | None, most: int) -> list[Mapping[str, Array]]:
    (port,) = graph.inputs
    if archive is not None:
        (stacked,) = np.load(archive).values()
        return [{port.label: one.reshape(port.shape)} for one in stacked[:most]]
    if files := sorted(model.parent.glob("test_data_set_*/input_0.pb")):
        return [{port.label: onnx.numpy_helper.to_array(onnx.load_tensor(file))} for file in files[:most]]
    random = np.random.default_rng(0)
    return [{port.label: random.standard_normal(port.shape)} for _ in range(most)]


def cases() -> Iterator[Case]:
    sets = [("definition", direct(3))]
    for m in OUTPUTS:
        others = {k.name.split(",")[0]: k.b for k in known(m, 3)}
        sets += [(f"F({m},3) {name}", others[name]) for name in ("integers", "NOVA")]
        sets.append((f"F({m},3) convc", chosen(m, 3)))
    for format_, is_scaled in FORMATS:
        yield from (Case(label, b, format_, is_scaled) for label, b in sets)


def line(case: Case, tally: Tally) -> str:
    kind = case.format if case.is_scaled else f"{case.format}, not scaled"
    layers = np.array(tally.layer_errors)
    cells = (
        kind, case.label, points_text(case.b.points), f"{spread(case.b) ** 2:.4g}", f"{np.median(layers):.1e}",
        f"{tally.error:.1e}", f"{tally.agreed}/{tally.inputs}", tally.nonfinite,
    )  # fmt: skip
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--inputs", type=Path, metavar="NPZ", help="one array, inputs stacked along its first axis")
    parser.add_argument("--most", type=int, default=4, help="how many inputs")
    given = parser.parse_args()
    begun = time.monotonic()
    graph = scores(simplify(import_onnx(given.model, shapes={})))
    inputs = inputs_of(graph, given.model, given.inputs, given.most)
    layers = [node for node in graph.nodes if takes_winograd(node)]
    share = sum(node.flops for node in layers) / max(1, sum(node.flops for node in graph.nodes))
    print(f"{given.model.parent.name}: {len(layers)} layers by Winograd, {100 * share:.0f} % of the FLOPs; ", end="")
    wanted = [evaluated(graph, one, None, Tally()) for one in inputs]
    print(f"{len(inputs)} inputs\n")
    print("| format | algorithm | points | lambda | layer error, median | output error | top-1 kept | not finite |")
    print("|---|---|---|--:|--:|--:|--:|--:|")
    for case in cases():
        tally = Tally()
        for one, reference in zip(inputs, wanted, strict=True):
            tally.add(evaluated(graph, one, case, tally), reference)
        print(line(case, tally), flush=True)
    print(f"\n{time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    main()
