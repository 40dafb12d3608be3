"""The problem: the one key that schedules, records, tests, the command line and benchmarks share."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace

import numpy as np

from convc.errors import UsageError
from convc.ir import Const, Conv, ConvTranspose, Input, MatMul, Node, TensorType
from convc.ir.check import FLOATS, SUMS

AXES = {1: "w", 2: "hw", 3: "dhw"}
_FIELD = re.compile(r"([a-z]+)(\d+)")


@dataclass(frozen=True)
class Problem:
    """y[n,o,i,j] = sum over c,u,v of x[n, c, i*s0 + u*d0 - p0, j*s1 + v*d1 - p1] * w[o,c,u,v], per group, 1 to 3 axes.

    All extents are in elements and per axis; `ic`, `oc` count the channels of all groups; `d` is the distance between
    taps (1 is dense; benchdnn's text writes it as 0); `p` is the padding before, `after` the padding behind, which
    follows from the extents (negative where the window does not use the last input elements). `kind` is conv, or
    transposed (the gradient of conv: i and o change places in the formula), or matmul (a convolution of one tap over
    mb = 1, iw = rows, channels-last). `dtype` is that of x.

    >>> Problem.parse("mb1_ic64ih56_oc64oh56_kh3ph1").macs
    115605504
    """

    mb: int
    g: int
    ic: int
    oc: int
    i: tuple[int, ...]
    o: tuple[int, ...]
    k: tuple[int, ...]
    s: tuple[int, ...]
    p: tuple[int, ...]
    d: tuple[int, ...]
    kind: str = "conv"
    dtype: str = "float32"

    @property
    def rank(self) -> int:
        """Spatial axes: 1, 2 or 3."""
        return len(self.i)

    @property
    def after(self) -> tuple[int, ...]:
        if self.kind == "transposed":
            return self.p
        span = zip(self.o, self.s, self.k, self.d, self.i, self.p, strict=True)
        return tuple((o - 1) * s + (k - 1) * d + 1 - i - p for o, s, k, d, i, p in span)

    @property
    def icg(self) -> int:
        """Input channels of one group."""
        return self.ic // self.g

    @property
    def ocg(self) -> int:
        """Output channels of one group."""
        return self.oc // self.g

    @property
    def taps(self) -> int:
        return math.prod(self.k)

    @property
    def weights(self) -> tuple[int, ...]:
        """Extents of w as the model has it."""
        if self.kind == "matmul":
            return (self.ic, self.oc)
        return (self.ic, self.ocg, *self.k) if self.kind == "transposed" else (self.oc, self.icg, *self.k)

    @property
    def w_dtype(self) -> str:
        """That of w: int8 where x is int8 or uint8, else x's."""
        return "int8" if self.dtype in SUMS else self.dtype

    @property
    def macs(self) -> int:
        pixels = self.i if self.kind == "transposed" else self.o
        return self.mb * self.oc * math.prod(pixels) * self.icg * self.taps

    @property
    def flops(self) -> int:
        """2 x MAC of the direct algorithm, whatever the algorithm executes."""
        return 2 * self.macs

    @property
    def reduction(self) -> int:
        """Products summed for one output element."""
        return self.icg * self.taps

    @property
    def is_depthwise(self) -> bool:
        return self.g == self.ic and self.icg == 1 and self.ocg == 1 and self.g > 1

    @property
    def is_pointwise(self) -> bool:
        """One tap and no padding."""
        return self.kind != "transposed" and self.taps == 1 and not any(self.p) and not any(a > 0 for a in self.after)

    @property
    def canonical(self) -> Problem:
        """The same problem in the form in which algorithms and records see it: one tap, stride 1 and no padding make
        all pixels one axis."""
        if self.kind != "conv" or not self.is_pointwise or any(s > 1 for s in self.s) or self.rank == 1:
            return self
        pixels, one = (math.prod(self.o),), (1,)
        return replace(self, i=pixels, o=pixels, k=one, s=one, p=(0,), d=one)

    def __str__(self) -> str:
        axes = AXES[self.rank]

        def each(letter: str, values: tuple[int, ...]) -> str:
            return "".join(f"{letter}{axis}{value}" for axis, value in zip(axes, values, strict=True))

        kind = "" if self.kind == "conv" else f"{self.kind}_"
        dtype = "" if self.dtype == "float32" else f"_{self.dtype}"
        dilation = each("d", tuple(d - 1 for d in self.d))
        return (
            f"{kind}g{self.g}mb{self.mb}_ic{self.ic}{each('i', self.i)}_oc{self.oc}{each('o', self.o)}"
            f"_{each('k', self.k)}_{each('s', self.s)}_{each('p', self.p)}_{dilation}{dtype}"
        )

    @classmethod
    def parse(cls, text: str) -> Problem:
        """benchdnn's text: what is left out is 1 (0 for padding and dilation), `h` stands for `w`, o follows from i.

        Raises UsageError where the text is no problem.
        """
        words = text.strip().split("_")
        kind = words.pop(0) if words[0] in ("transposed", "matmul") else "conv"
        dtype = words.pop() if words and words[-1] in (*FLOATS, *SUMS, "int32") else "float32"
        fields: dict[str, int] = {}
        for word in words:
            if "".join(a + b for a, b in _FIELD.findall(word)) != word or not word:
                raise UsageError(f"'{word}' in '{text}' is not a benchdnn problem, as mb1_ic64ih56_oc64oh56_kh3ph1 is")
            fields.update((name, int(value)) for name, value in _FIELD.findall(word))
        return cls._from_fields(fields, kind, dtype, text)

    @classmethod
    def _from_fields(cls, fields: dict[str, int], kind: str, dtype: str, text: str) -> Problem:
        rank = 3 if any(n in fields for n in ("id", "kd")) else 2 if any(n in fields for n in ("ih", "kh")) else 1
        known = {"mb", "g", "ic", "oc"} | {letter + axis for letter in "iokspd" for axis in AXES[rank]}
        if unknown := sorted(set(fields) - known):
            raise UsageError(f"'{', '.join(unknown)}' in '{text}' is no letter of a problem; known: {sorted(known)}")
        if missing := [n for n in ("ic", "oc") if n not in fields]:
            raise UsageError(f"'{text}' lacks {' and '.join(missing)}")

        def each(letter: str, default: int) -> tuple[int, ...]:
            values = [fields.get(letter + axis) for axis in AXES[rank]]
            first = next((v for v in values if v is not None), default)
            return tuple(first if v is None else v for v in values)

        i, k, s, p = each("i", 1), each("k", 1), each("s", 1), each("p", 0)
        d = tuple(v + 1 for v in each("d", 0))
        if kind == "transposed":
            natural = tuple((a - 1) * c + (b - 1) * e + 1 - 2 * f for a, b, c, e, f in zip(i, k, s, d, p, strict=True))
        else:
            natural = tuple(
                (a + 2 * f - (b - 1) * e - 1) // max(c, 1) + 1 for a, b, c, e, f in zip(i, k, s, d, p, strict=True)
            )
        given = [fields.get("o" + axis) for axis in AXES[rank]]
        first = next((v for v in given if v is not None), None)
        o = tuple(n if first is None else first if v is None else v for v, n in zip(given, natural, strict=True))
        found = cls(fields.get("mb", 1), fields.get("g", 1), fields["ic"], fields["oc"], i, o, k, s, p, d, kind, dtype)
        found._check(text)
        return found

    def _check(self, text: str) -> None:
        if min(self.mb, self.g, self.ic, self.oc, *self.i, *self.o, *self.k, *self.s, *self.d) < 1:
            raise UsageError(f"'{text}': every extent, stride and group count must be at least 1")
        if self.ic % self.g or self.oc % self.g:
            raise UsageError(f"'{text}': g{self.g} must divide ic{self.ic} and oc{self.oc}")

    @classmethod
    def _windowed(cls, node: Conv | ConvTranspose, kind: str) -> Problem:
        (mb, ic, *i), (_, oc, *o), (_, _, *k) = node.x.shape, node.shape, node.w.shape
        before = tuple(lo for lo, _ in node.pad)
        extents = tuple(i), tuple(o), tuple(k)
        return cls(mb, node.group, ic, oc, *extents, node.stride, before, node.dilation, kind, node.x.dtype)

    def node(self) -> Conv | ConvTranspose | MatMul:
        """The convolution of an input "x" by zero weights whose problem this is."""
        w = Const(np.zeros(self.weights, self.w_dtype))
        if self.kind == "matmul":
            return MatMul(Input("x", TensorType((*self.i, self.ic), self.dtype)), w)
        x = Input("x", TensorType((self.mb, self.ic, *self.i), self.dtype))
        if self.kind == "conv":
            pad = tuple((before, max(0, after)) for before, after in zip(self.p, self.after, strict=True))
            return Conv(x, w, None, self.s, pad, self.d, self.g)
        axes = zip(self.i, self.k, self.s, self.p, self.d, self.o, strict=True)
        extra = tuple(o - ((i - 1) * s + (k - 1) * d + 1 - 2 * p) for i, k, s, p, d, o in axes)
        return ConvTranspose(x, w, None, self.s, tuple((p, p) for p in self.p), self.d, extra, self.g)

    @classmethod
    def of(cls, node: Node) -> Problem:
        """The problem of a Conv, ConvTranspose, or MatMul by one matrix."""
        match node:
            case Conv():
                return cls._windowed(node, "conv")
            case ConvTranspose():
                return cls._windowed(node, "transposed")
            case MatMul():
                rows, (depth, width) = math.prod(node.shape[:-1]), node.b.shape[-2:]
                one = (1,)
                return cls(1, 1, depth, width, (rows,), (rows,), one, one, (0,), one, kind="matmul", dtype=node.a.dtype)
        raise TypeError(f"{type(node).__name__} is no convolution")
