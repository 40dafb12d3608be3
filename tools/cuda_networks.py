"""Four networks, each written once: as ONNX for convc, and as calls of torch for its peer, with the same weights.

Batch norms are folded into the convolutions, and what layer norms and layer scales multiply by into the matrices, as
compilers fold them, so that a peer has no work that convc has not.
A weight is a seeded draw by its name, so that a machine with a GPU makes it again and nothing of it travels.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

Array = np.ndarray[Any, Any]
CLASSES = 1000
EPSILON = 1e-6


@dataclass(frozen=True)
class Weight:
    """Normal of this mean and deviation; `name` is the seed."""

    name: str
    shape: tuple[int, ...]
    mean: float
    deviation: float

    def draw(self) -> Array:
        """float32."""
        random = np.random.default_rng(zlib.crc32(self.name.encode()))
        return random.standard_normal(self.shape, np.float32) * np.float32(self.deviation) + np.float32(self.mean)


class Net(Protocol):
    """What a definition is written in. Values are whatever a reading of it makes of them; images are NCHW."""

    def conv(self, x: Any, name: str, out: int, k: int, *, s: int = 1, p: int = 0, g: int = 1, gain: float = 2) -> Any:
        """Weights of variance gain / products."""

    def linear(self, x: Any, name: str, out: int, *, gain: float = 2) -> Any:
        """Along the last axis."""

    def norm(self, x: Any) -> Any:
        """Of layers, along the last axis, without factors."""

    def relu(self, x: Any) -> Any: ...
    def relu6(self, x: Any) -> Any: ...
    def gelu(self, x: Any) -> Any: ...
    def add(self, x: Any, y: Any) -> Any: ...
    def max_pool(self, x: Any, k: int, s: int, p: int) -> Any: ...
    def mean(self, x: Any) -> Any:
        """Of each channel: a matrix."""

    def flat(self, x: Any) -> Any:
        """All of an image in a row."""

    def last(self, x: Any) -> Any:
        """Channels behind the pixels."""

    def first(self, x: Any) -> Any:
        """And in front of them again."""


def resnet50(n: Net, x: Any) -> Any:
    x = n.max_pool(n.relu(n.conv(x, "stem", 64, 7, s=2, p=3)), 3, 2, 1)
    for stage, (width, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3))):
        for block in range(blocks):
            name, s = f"{stage}.{block}", 2 if stage and not block else 1
            y = n.relu(n.conv(x, f"{name}.a", width, 1))
            y = n.relu(n.conv(y, f"{name}.b", width, 3, s=s, p=1))
            y = n.conv(y, f"{name}.c", 4 * width, 1, gain=0.5)
            x = x if block else n.conv(x, f"{name}.d", 4 * width, 1, s=s, gain=1)
            x = n.relu(n.add(y, x))
    return n.linear(n.mean(x), "classes", CLASSES, gain=1)


def vgg16(n: Net, x: Any) -> Any:
    for stage, (width, count) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))):
        for i in range(count):
            x = n.relu(n.conv(x, f"{stage}.{i}", width, 3, p=1))
        x = n.max_pool(x, 2, 2, 0)
    x = n.relu(n.linear(n.flat(x), "first", 4096))
    return n.linear(n.relu(n.linear(x, "second", 4096)), "classes", CLASSES, gain=1)


def mobilenet_v2(n: Net, x: Any) -> Any:
    x, had = n.relu6(n.conv(x, "stem", 32, 3, s=2, p=1)), 32
    stages = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    for stage, (wider, out, blocks, stride) in enumerate(stages):
        for block in range(blocks):
            name, s = f"{stage}.{block}", 1 if block else stride
            y = n.relu6(n.conv(x, f"{name}.a", wider * had, 1)) if wider > 1 else x
            y = n.relu6(n.conv(y, f"{name}.b", wider * had, 3, s=s, p=1, g=wider * had))
            y = n.conv(y, f"{name}.c", out, 1, gain=1)
            x, had = n.add(x, y) if block else y, out
    return n.linear(n.mean(n.relu6(n.conv(x, "top", 1280, 1))), "classes", CLASSES, gain=1)


def convnext_tiny(n: Net, x: Any) -> Any:
    for stage, (width, blocks) in enumerate(((96, 3), (192, 3), (384, 9), (768, 3))):
        if stage:
            x = n.conv(n.first(n.norm(n.last(x))), f"{stage}.down", width, 2, s=2, gain=1)
        else:
            x = n.first(n.norm(n.last(n.conv(x, "stem", width, 4, s=4, gain=1))))
        for block in range(blocks):
            name = f"{stage}.{block}"
            y = n.norm(n.last(n.conv(x, f"{name}.a", width, 7, p=3, g=width, gain=1)))
            y = n.linear(n.gelu(n.linear(y, f"{name}.b", 4 * width)), f"{name}.c", width, gain=0.2)
            x = n.add(x, n.first(y))
    return n.linear(n.norm(n.mean(x)), "classes", CLASSES, gain=1)


def tiny(n: Net, x: Any) -> Any:
    """To try the tools with."""
    x = n.relu(n.conv(x, "a", 8, 3, p=1))
    return n.linear(n.mean(n.add(x, n.conv(x, "b", 8, 1))), "classes", 4)


PHOTO = (3, 224, 224)
NETWORKS: Mapping[str, tuple[Callable[[Net, Any], Any], tuple[int, ...]]] = {
    "resnet50": (resnet50, PHOTO), "vgg16": (vgg16, PHOTO), "mobilenet_v2": (mobilenet_v2, PHOTO),
    "convnext_tiny": (convnext_tiny, PHOTO), "tiny": (tiny, (3, 6, 6)),
}  # fmt: skip
"""By name: the definition, and the extents of an image."""


def conv_weights(name: str, out: int, each: int, k: int, gain: float) -> tuple[Weight, Weight]:
    """The weights of `each` input channels a group, and the bias."""
    deviation = math.sqrt(gain / (each * k * k))
    return Weight(f"{name}.w", (out, each, k, k), 0.0, deviation), Weight(f"{name}.b", (out,), 0.0, 0.05)


def linear_weights(name: str, out: int, width: int, gain: float) -> tuple[Weight, Weight]:
    """As ONNX's MatMul has them: [width, out]."""
    return Weight(f"{name}.w", (width, out), 0.0, math.sqrt(gain / width)), Weight(f"{name}.b", (out,), 0.0, 0.05)


class Onnx:
    """The reading that makes an ONNX graph. Values are names."""

    def __init__(self, image: tuple[int, ...], batch: int) -> None:
        self.nodes: list[Any] = []
        self.weights: dict[str, Weight] = {}
        self.ones: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, ...]] = {"x": (batch, *image)}

    def _node(self, kind: str, inputs: list[str], shape: tuple[int, ...], **attributes: Any) -> str:
        from onnx import helper

        name = f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        self.shapes[name] = shape
        return name

    def _weights(self, *weights: Weight) -> list[str]:
        self.weights.update({w.name: w for w in weights})
        return [w.name for w in weights]

    def conv(self, x: str, name: str, out: int, k: int, *, s: int = 1, p: int = 0, g: int = 1, gain: float = 2) -> str:
        n, c, *image = self.shapes[x]
        shape = (n, out, *((i + 2 * p - k) // s + 1 for i in image))
        names = self._weights(*conv_weights(name, out, c // g, k, gain))
        attributes = {"strides": [s, s], "pads": [p] * 4, "group": g, "kernel_shape": [k, k]}
        return self._node("Conv", [x, *names], shape, **attributes)

    def linear(self, x: str, name: str, out: int, *, gain: float = 2) -> str:
        shape = (*self.shapes[x][:-1], out)
        w, b = self._weights(*linear_weights(name, out, self.shapes[x][-1], gain))
        return self._node("Add", [self._node("MatMul", [x, w], shape), b], shape)

    def norm(self, x: str) -> str:
        width = self.shapes[x][-1]
        self.ones[f"ones{width}"] = width
        return self._node("LayerNormalization", [x, f"ones{width}"], self.shapes[x], axis=-1, epsilon=EPSILON)

    def relu(self, x: str) -> str:
        return self._node("Relu", [x], self.shapes[x])

    def relu6(self, x: str) -> str:
        return self._node("Clip", [x, "zero", "six"], self.shapes[x])

    def gelu(self, x: str) -> str:
        erf = self._node("Erf", [self._node("Div", [x, "root"], self.shapes[x])], self.shapes[x])
        half = self._node("Mul", [x, "half"], self.shapes[x])
        return self._node("Mul", [half, self._node("Add", [erf, "one"], self.shapes[x])], self.shapes[x])

    def add(self, x: str, y: str) -> str:
        return self._node("Add", [x, y], self.shapes[x])

    def max_pool(self, x: str, k: int, s: int, p: int) -> str:
        n, c, *image = self.shapes[x]
        shape = (n, c, *((i + 2 * p - k) // s + 1 for i in image))
        return self._node("MaxPool", [x], shape, kernel_shape=[k, k], strides=[s, s], pads=[p] * 4)

    def mean(self, x: str) -> str:
        n, c, *_ = self.shapes[x]
        return self.flat(self._node("GlobalAveragePool", [x], (n, c, 1, 1)))

    def flat(self, x: str) -> str:
        n, *rest = self.shapes[x]
        return self._node("Flatten", [x], (n, math.prod(rest)))

    def last(self, x: str) -> str:
        n, c, h, w = self.shapes[x]
        return self._node("Transpose", [x], (n, h, w, c), perm=[0, 2, 3, 1])

    def first(self, x: str) -> str:
        n, h, w, c = self.shapes[x]
        return self._node("Transpose", [x], (n, c, h, w), perm=[0, 3, 1, 2])

    def model(self, y: str) -> bytes:
        from onnx import TensorProto, helper, numpy_helper

        numbers = {"zero": 0.0, "six": 6.0, "half": 0.5, "one": 1.0, "root": math.sqrt(2)}
        used = {name for node in self.nodes for name in node.input}
        constants = [numpy_helper.from_array(w.draw(), name) for name, w in self.weights.items()]
        constants += [numpy_helper.from_array(np.float32(v), n) for n, v in numbers.items() if n in used]
        constants += [numpy_helper.from_array(np.ones(width, np.float32), n) for n, width in self.ones.items()]
        ports = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, self.shapes[value])
            for name, value in (("x", "x"), (y, y))
        ]
        graph = helper.make_graph(self.nodes, "network", ports[:1], ports[1:], constants)
        opsets = [helper.make_opsetid("", 17)]
        return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())


def onnx_of(name: str, batch: int) -> tuple[bytes, Mapping[str, Weight]]:
    """The model, and its weights by name."""
    define, image = NETWORKS[name]
    net = Onnx(image, batch)
    y = define(net, "x")
    return net.model(y), net.weights


class Torch:
    """The reading that computes it with torch. `weights` keeps them on the GPU, as the first run draws them."""

    def __init__(self, torch: Any, *, dtype: Any, channels_last: bool) -> None:
        self.torch, self.f = torch, torch.nn.functional
        self.dtype, self.channels_last = dtype, channels_last
        self.weights: dict[str, Any] = {}

    def _weight(self, weight: Weight, *, image: bool = False) -> Any:
        if weight.name not in self.weights:
            found = self.torch.from_numpy(weight.draw()).to("cuda", self.dtype)
            if image and self.channels_last:
                found = found.contiguous(memory_format=self.torch.channels_last)
            self.weights[weight.name] = found
        return self.weights[weight.name]

    def conv(self, x: Any, name: str, out: int, k: int, *, s: int = 1, p: int = 0, g: int = 1, gain: float = 2) -> Any:
        w, b = conv_weights(name, out, x.shape[1] // g, k, gain)
        return self.f.conv2d(x, self._weight(w, image=True), self._weight(b), s, p, 1, g)

    def linear(self, x: Any, name: str, out: int, *, gain: float = 2) -> Any:
        w, b = linear_weights(name, out, x.shape[-1], gain)
        if (key := f"{w.name}.transposed") not in self.weights:
            self.weights[key] = self._weight(w).t().contiguous()
            del self.weights[w.name]
        return self.f.linear(x, self.weights[key], self._weight(b))

    def norm(self, x: Any) -> Any:
        return self.f.layer_norm(x, x.shape[-1:], None, None, EPSILON)

    def relu(self, x: Any) -> Any:
        return self.torch.relu_(x)

    def relu6(self, x: Any) -> Any:
        return self.f.hardtanh_(x, 0.0, 6.0)

    def gelu(self, x: Any) -> Any:
        return self.f.gelu(x)

    def add(self, x: Any, y: Any) -> Any:
        return x + y

    def max_pool(self, x: Any, k: int, s: int, p: int) -> Any:
        return self.f.max_pool2d(x, k, s, p)

    def mean(self, x: Any) -> Any:
        return self.f.adaptive_avg_pool2d(x, 1).flatten(1)

    def flat(self, x: Any) -> Any:
        return x.contiguous().flatten(1)

    def last(self, x: Any) -> Any:
        return x.permute(0, 2, 3, 1)

    def first(self, x: Any) -> Any:
        return x.permute(0, 3, 1, 2)
