"""The rules of the ONNX file itself: versions, names, order. Linear in the size of the model, and without recursion."""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from convc.errors import BadInputError, UnsupportedError
from convc.frontend.limits import IR_VERSIONS, MAX_SUBGRAPH_DEPTH, OPSETS
from convc.frontend.names import quoted


def check_structure(model: onnx.ModelProto) -> int:
    """Check versions, names and order of the whole model; the opset of ONNX's own operators.

    Raises BadInputError where the model breaks ONNX's rules, UnsupportedError for versions outside the limits.
    """
    if not model.HasField("graph") or not (model.graph.node or model.graph.output):
        raise BadInputError("not an ONNX model: it has no graph")
    check_texts(model)
    opset = check_versions(model)
    check_names(model.graph)
    check_order(model.graph)
    check_depth(model.graph)
    return opset


def check_texts(model: onnx.ModelProto) -> None:
    """protobuf hands out bytes where a text is not UTF-8."""
    if not all(isinstance(text, str) for text in texts(model)):
        raise BadInputError("a name in the model is not UTF-8")


def texts(model: onnx.ModelProto) -> Iterator[object]:
    """Every text that is read later."""
    graph = model.graph
    yield model.producer_name
    yield from (entry.domain for entry in model.opset_import)
    for node in graph.node:
        yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
        for attribute in node.attribute:
            yield from (attribute.name, attribute.ref_attr_name)
    for value in (*graph.input, *graph.output):
        yield from (value.name, *(dim.dim_param for dim in value.type.tensor_type.shape.dim))
    for tensor in (*graph.initializer, *(sparse.values for sparse in graph.sparse_initializer)):
        yield tensor.name


def check_versions(model: onnx.ModelProto) -> int:
    if not model.HasField("ir_version"):
        raise BadInputError("the model has no ir_version")
    if not IR_VERSIONS[0] <= model.ir_version <= IR_VERSIONS[1]:
        raise UnsupportedError(f"ir_version {model.ir_version}; supported are {IR_VERSIONS[0]} to {IR_VERSIONS[1]}")
    opsets: dict[str, int] = {}
    for entry in model.opset_import:
        domain = plain_domain(entry.domain)
        if domain in opsets:
            raise BadInputError(f"opset_import names domain {quoted(entry.domain)} twice")
        opsets[domain] = int(entry.version)
    if "" not in opsets:
        raise BadInputError("the model imports no opset of ONNX's own operators (opset_import)")
    if not OPSETS[0] <= opsets[""] <= OPSETS[1]:
        raise UnsupportedError(
            f"opset {opsets['']}; supported are {OPSETS[0]} to {OPSETS[1]}: export the model again with one of these"
        )
    return opsets[""]


def plain_domain(domain: str) -> str:
    """ONNX's own operators have two names for their domain."""
    return "" if domain == "ai.onnx" else domain


def check_names(graph: onnx.GraphProto) -> None:
    check_unique("input", (v.name for v in graph.input))
    check_unique("initializer", initializer_names(graph))
    check_unique("output", (v.name for v in graph.output))
    if not graph.output:
        raise BadInputError("the graph has no output")


def initializer_names(graph: onnx.GraphProto) -> Iterator[str]:
    yield from (t.name for t in graph.initializer)
    yield from (t.values.name for t in graph.sparse_initializer)


def check_unique(what: str, names: Iterator[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if not name:
            raise BadInputError(f"an {what} of the graph has no name")
        if name in seen:
            raise BadInputError(f"two {what}s of the graph are called {quoted(name)}")
        seen.add(name)


def check_order(graph: onnx.GraphProto) -> None:
    """Every value is defined once, and before it is read: so there are no cycles."""
    known = {v.name for v in graph.input} | set(initializer_names(graph))
    made = {name for node in graph.node for name in node.output}
    for node in graph.node:
        for name in node.input:
            if name and name not in known:
                why = "before the node that makes it: the nodes are out of order or form a cycle"
                raise BadInputError(
                    f"node {quoted(node.name)} ({quoted(node.op_type)}) reads {quoted(name)} "
                    + (why if name in made else "which nothing defines")
                )
        for name in filter(None, node.output):
            if name in known:
                raise BadInputError(f"node {quoted(node.name)} defines {quoted(name)}, which is defined already")
            known.add(name)
    for value in graph.output:
        if value.name not in known:
            raise BadInputError(f"the graph's output {quoted(value.name)} is defined by nothing")


def check_depth(graph: onnx.GraphProto) -> None:
    level = [graph]
    for _ in range(MAX_SUBGRAPH_DEPTH + 1):
        level = [inner for outer in level for inner in subgraphs(outer)]
        if not level:
            return
    raise UnsupportedError(f"graphs inside graphs more than {MAX_SUBGRAPH_DEPTH} deep")


def subgraphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield attribute.g
            yield from attribute.graphs
