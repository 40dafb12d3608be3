"""A graph as text, one line a node, for people and for comparing two graphs."""

from __future__ import annotations

import dataclasses
import re
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from convc.ir.graph import Graph
from convc.ir.node import Array, Const, Input, Node

LABEL_LIMIT = 60
SHOWN_ELEMENTS = 4
# The field that names the function, and whether the operation's own name stands before it.
FUNCTION_FIELDS = {"Unary": ("fn", False), "Binary": ("fn", False), "Reduce": ("fn", True), "ArgReduce": ("fn", True)}
FUNCTION_FIELDS |= {"Pool": ("kind", True)}


def show(graph: Graph, *, origin: bool = False) -> str:
    """The graph's text: inputs, then every node after its arguments, then the outputs. Constants show a checksum, and
    their values where these are few. With `origin` each line ends in the names of the ONNX nodes it came from."""
    names = _names(graph)
    lines = [f"{names[i]} = input({label(i.label)}) : {i.type}" for i in graph.inputs]
    lines += [_line(node, names, origin=origin) for node in graph.nodes if not isinstance(node, Input)]
    lines += [f"output({label(name)}) = {names[node]}" for name, node in graph.outputs]
    return "\n".join(lines) + "\n"


def label(text: str) -> str:
    """A name from a model, quoted, in ASCII and of bounded length."""
    quoted = ascii(text[:LABEL_LIMIT])
    return quoted if len(text) <= LABEL_LIMIT else f"{quoted}..."


def checksum(value: Array) -> int:
    """crc32 of the elements in row-major order."""
    return zlib.crc32(np.ascontiguousarray(value).tobytes())


def _names(graph: Graph) -> dict[Node, str]:
    names: dict[Node, str] = {node: f"i{n}" for n, node in enumerate(graph.inputs)}
    counts = {"c": 0, "n": 0}
    for node in graph.nodes:
        if node not in names:
            letter = "c" if isinstance(node, Const) else "n"
            names[node] = f"{letter}{counts[letter]}"
            counts[letter] += 1
    return names


def _line(node: Node, names: Mapping[Node, str], *, origin: bool) -> str:
    text = f"{names[node]} = {_call(node, names)} : {node.type}"
    return f"{text}  # {', '.join(map(label, node.origin))}" if origin and node.origin else text


def _call(node: Node, names: Mapping[Node, str]) -> str:
    if isinstance(node, Const):
        few = f", {node.value.reshape(-1).tolist()}" if node.value.size <= SHOWN_ELEMENTS else ""
        return f"const(crc32={checksum(node.value):08x}{few})"
    name, skip = _name(node)
    parts = [names[a] for a in node.args]
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        if field.name not in (skip, "origin") and not _is_argument(value) and value != field.default:
            parts.append(f"{field.name}={value}")
    return f"{name}({', '.join(parts)})"


def _name(node: Node) -> tuple[str, str]:
    """What the operation is called, and the field that the name has used up."""
    plain = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(node).__name__).lower()
    field, prefixed = FUNCTION_FIELDS.get(type(node).__name__, ("", True))
    function = getattr(node, field) if field else ""
    return (f"{plain}_{function}" if function else plain) if prefixed else function, field


def _is_argument(value: Any) -> bool:
    """An argument of the node, or one that it does without."""
    return (
        value is None
        or isinstance(value, Node)
        or (isinstance(value, tuple) and any(isinstance(v, Node) for v in value))
    )
