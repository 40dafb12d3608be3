"""Does a node fit the published definition of its operator: how many arguments, of which dtypes, which attributes?

Only onnx's tables of definitions are asked; its checker and its shape inference never see the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import onnx
import onnx.defs

from convc.errors import BadInputError, UnsupportedError
from convc.frontend.call import kind_name
from convc.frontend.limits import OPSETS
from convc.frontend.names import quoted
from convc.ir import Node

ONNX_NAMES = {"float32": ("tensor(float)", "tensor(float16)"), "float64": ("tensor(double)",)}


@cache
def definition(operator: str, opset: int) -> Any:
    """The definition that holds in `opset`, or None for an operator that ONNX does not list (the experimental ones)."""
    if not onnx.defs.has(operator):
        return None
    try:
        found = onnx.defs.get_schema(operator, opset, "")
    except onnx.defs.SchemaError as error:
        raise UnsupportedError(f"opset {opset} does not have this operator yet") from error
    # GroupNormalization 18 is deprecated as well, for another meaning; models of opset 18 keep the first.
    if found.deprecated and onnx.defs.get_schema(operator, OPSETS[1], "").deprecated:
        raise UnsupportedError(f"opset {opset} no longer has this operator")
    return found


def attributes_of(node: onnx.NodeProto) -> Mapping[str, onnx.AttributeProto]:
    found: dict[str, onnx.AttributeProto] = {}
    for attribute in node.attribute:
        if attribute.name in found or attribute.ref_attr_name:
            raise BadInputError(f"attribute {quoted(attribute.name)} is there twice or refers to a function")
        found[attribute.name] = attribute
    return found


def check_signature(node: onnx.NodeProto, schema: Any, args: tuple[Node | None, ...]) -> None:
    check_attributes(node, schema)
    check_counts(node, schema)
    check_dtypes(schema, args)


def check_attributes(node: onnx.NodeProto, schema: Any) -> None:
    for attribute in node.attribute:
        known = schema.attributes.get(attribute.name)
        if known is None:
            raise BadInputError(f"the operator has no attribute {quoted(attribute.name)}")
        if attribute.type != known.type.value:
            raise BadInputError(
                f"attribute {attribute.name} is {kind_name(attribute.type)}, it must be {kind_name(known.type.value)}"
            )
    given = {attribute.name for attribute in node.attribute}
    missing = sorted(name for name, known in schema.attributes.items() if known.required and name not in given)
    if missing:
        raise BadInputError(f"attribute {missing[0]} is missing")


def check_counts(node: onnx.NodeProto, schema: Any) -> None:
    given, made = len(node.input), len(node.output)
    if not schema.min_input <= given <= schema.max_input:
        raise BadInputError(f"{given} arguments; the operator takes {schema.min_input} to {schema.max_input}")
    if not schema.min_output <= made <= schema.max_output:
        raise BadInputError(f"{made} results; the operator has {schema.min_output} to {schema.max_output}")
    for i, name in enumerate(node.input):
        parameter = schema.inputs[min(i, len(schema.inputs) - 1)]
        if not name and parameter.option != onnx.defs.OpSchema.FormalParameterOption.Optional:
            raise BadInputError(f"argument {parameter.name} is left out, it is required")


def check_dtypes(schema: Any, args: tuple[Node | None, ...]) -> None:
    """Each argument has a dtype that the definition lists, and arguments of one type variable share one dtype."""
    bound: dict[str, tuple[str, str]] = {}
    for i, arg in enumerate(args):
        if arg is None:
            continue
        parameter = schema.inputs[min(i, len(schema.inputs) - 1)]
        if not any(name in allowed_types(schema, min(i, len(schema.inputs) - 1)) for name in onnx_names(arg.dtype)):
            raise BadInputError(f"argument {parameter.name} is {arg.type}, a dtype that opset {schema.since_version} "
                                f"of the operator does not allow")  # fmt: skip
        name, dtype = bound.setdefault(parameter.type_str, (parameter.name, arg.dtype))
        if dtype != arg.dtype and parameter.is_homogeneous:
            raise BadInputError(f"argument {parameter.name} is {arg.type}, it must be {dtype} as {name} is")


_ALLOWED: dict[tuple[str, int, int], frozenset[str]] = {}


def allowed_types(schema: Any, index: int) -> frozenset[str]:
    key = (schema.name, schema.since_version, index)
    if key not in _ALLOWED:
        _ALLOWED[key] = frozenset(schema.inputs[index].types)
    return _ALLOWED[key]


def onnx_names(dtype: str) -> tuple[str, ...]:
    return ONNX_NAMES.get(dtype, (f"tensor({dtype})",))
