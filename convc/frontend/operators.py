"""The table of ONNX operators: name to the function that turns a node into our graph's nodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx.defs

from convc.frontend import (
    ops_conv,
    ops_elementwise,
    ops_experimental,
    ops_index,
    ops_movement,
    ops_norm,
    ops_pool,
    ops_quant,
    ops_reduce,
    ops_resize,
    ops_shape,
)
from convc.frontend.call import Call
from convc.frontend.limits import LIMITATIONS, OPSETS
from convc.ir import Node

Build = Callable[[Call], Node | tuple[Node, ...]]

OPERATORS: Mapping[str, Build] = {
    **ops_elementwise.OPERATORS, **ops_conv.OPERATORS, **ops_pool.OPERATORS, **ops_norm.OPERATORS,
    **ops_reduce.OPERATORS, **ops_movement.OPERATORS, **ops_index.OPERATORS, **ops_resize.OPERATORS,
    **ops_shape.OPERATORS, **ops_quant.OPERATORS, **ops_experimental.OPERATORS,
}  # fmt: skip

# The passes need the integers of a dequantized constant, so it is not folded.
NOT_FOLDED = frozenset({"DequantizeLinear"})


@dataclass(frozen=True)
class OperatorRow:
    """One operator of `convc ops`: `opsets` is the first and last that has it, `limitation` what is left out, or ""."""

    name: str
    opsets: tuple[int, int]
    limitation: str


def operators() -> list[OperatorRow]:
    """Every supported operator of ONNX's own domain, by name; the row "" says what holds for all of them."""
    spans = opset_spans()
    rows = [OperatorRow(name, spans.get(name, OPSETS), LIMITATIONS.get(name, "")) for name in sorted(OPERATORS)]
    return [OperatorRow("", OPSETS, LIMITATIONS[""]), *rows]


def opset_spans() -> dict[str, tuple[int, int]]:
    """The supported opsets of each operator that ONNX defines."""
    spans: dict[str, tuple[int, int]] = {}
    history = (s for s in onnx.defs.get_all_schemas_with_history() if s.domain == "" and s.name in OPERATORS)
    for schema in sorted(history, key=lambda s: int(s.since_version)):
        first = spans.get(schema.name, (max(schema.since_version, OPSETS[0]), 0))[0]
        spans[schema.name] = (first, schema.since_version - 1 if schema.deprecated else OPSETS[1])
    return spans
