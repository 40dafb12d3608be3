"""From an ONNX model to a Graph: one walk over the nodes in their order, each by its function in the table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import onnx

from convc.errors import BadInputError, UnsupportedError
from convc.frontend.call import Call
from convc.frontend.container import load
from convc.frontend.fold import Folder
from convc.frontend.names import brief, located, quoted, shown
from convc.frontend.operators import NOT_FOLDED, OPERATORS
from convc.frontend.shapes import bind_symbols, check_given, given_inputs, input_type
from convc.frontend.signature import attributes_of, check_signature, definition
from convc.frontend.structure import check_structure, plain_domain
from convc.frontend.tensor import DTYPES, TensorReader, dtype_name
from convc.ir import Cast, Const, Graph, Input, Node

MAX_SHOWN = 16  # arguments of a node in a message


@dataclass(frozen=True)
class Failure:
    """A part of the model that convc does not compile: `where` names it, `arguments` are the types it gets."""

    where: str
    operator: str
    domain: str
    opset: int
    arguments: tuple[str, ...]
    reason: str

    def __str__(self) -> str:
        if not self.operator:
            return f"{self.where}: {self.reason}"
        domain = f", domain '{self.domain}'" if self.domain else ""
        given = ", ".join(self.arguments) or "none"
        return f"{self.where} ({self.operator}{domain}, opset {self.opset}, arguments {given}): {self.reason}"


class UnsupportedModelError(UnsupportedError):
    """`failures` holds everything that keeps the model from being compiled."""

    def __init__(self, failures: tuple[Failure, ...]) -> None:
        self.failures = failures
        lines = "\n".join(f"  {failure}" for failure in failures)
        what = "1 part" if len(failures) == 1 else f"{len(failures)} parts"
        super().__init__(f"{what} of the model cannot be compiled ('convc ops' lists what can):\n{lines}")


@dataclass(frozen=True)
class Absent:
    """A result that its operator does not make, with the index among its results and the node that should have."""

    node: onnx.NodeProto
    index: int

    @property
    def reason(self) -> str:
        return f"result {self.index} is used, it is not supported"


def import_onnx(
    source: str | Path | bytes | onnx.ModelProto, *, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> Graph:
    """The graph of an ONNX model: a path, the bytes of a file, or a parsed model (these two without external data).

    `shapes` fixes open dimensions, input name to extents. An open batch that is not given becomes 1, with an
    OpenBatchWarning. Raises BadInputError where the model breaks ONNX's rules, UnsupportedModelError with every part
    that is not supported, UsageError where `shapes` does not fit the model.
    """
    model, folder = load(source)
    opset = check_structure(model)
    return Importer(model.graph, opset, TensorReader(folder)).run(shapes or {})


@dataclass
class Importer:
    """The state of one import: what each name stands for so far. None stands for what a failure keeps unknown."""

    graph: onnx.GraphProto
    opset: int
    reader: TensorReader
    values: dict[str, Node | Absent | None] = field(default_factory=dict)
    failures: dict[tuple[str, str], Failure] = field(default_factory=dict)
    folder: Folder = field(default_factory=Folder)

    def run(self, shapes: Mapping[str, tuple[int, ...]]) -> Graph:
        self.read_constants()
        inputs = self.read_inputs(shapes)
        for node in self.graph.node:
            self.read_node(node)
        outputs = [(value.name, self.output(value)) for value in self.graph.output]
        if self.failures:
            raise UnsupportedModelError(tuple(self.failures.values()))
        return Graph(tuple(inputs), tuple((name, node) for name, node in outputs if node is not None))

    def fail(self, where: str, name: str, reason: str) -> None:
        self.failures[where, name] = Failure(f"{where} {quoted(name)}", "", "", self.opset, (), brief(reason))

    def fail_node(self, node: onnx.NodeProto, reason: str) -> None:
        known = [self.values.get(name) for name in node.input[:MAX_SHOWN] if name]
        types = tuple(str(v.type) if isinstance(v, Node) else "unknown" for v in known)
        domain = shown(plain_domain(node.domain))
        where, operator = f"node {quoted(label_of(node))}", shown(node.op_type)
        self.failures["node", first_result(node) or node.name] = Failure(
            where, operator, domain, self.opset, types, brief(reason)
        )

    def settled(self, node: Node) -> Node:
        self.folder.settled.add(node)
        return node

    def read_constants(self) -> None:
        for tensor in self.graph.initializer:
            self.values[tensor.name] = None
            with located(f"initializer {quoted(tensor.name)}"):
                try:
                    self.values[tensor.name] = self.settled(Const(self.reader.read(tensor)))
                except UnsupportedError as error:
                    self.fail("initializer", tensor.name, str(error))
        for sparse in self.graph.sparse_initializer:
            self.values[sparse.values.name] = None
            self.fail("initializer", sparse.values.name, "sparse tensors are not supported")

    def read_inputs(self, shapes: Mapping[str, tuple[int, ...]]) -> list[Input]:
        values = given_inputs(self.graph)
        check_given(shapes, values)
        bound, found = bind_symbols(values, shapes), []
        for value in values:
            self.values[value.name] = None
            with located(f"input {quoted(value.name)}"):
                try:
                    node = Input(value.name, input_type(value, shapes.get(value.name), bound))
                except UnsupportedError as error:
                    self.fail("input", value.name, str(error))
                    continue
            found.append(node)
            self.values[value.name] = self.settled(node)
            if node.dtype == "float16":
                self.values[value.name] = self.settled(Cast(self.settled(node), "float32", origin=(shown(value.name),)))
        return found

    def read_node(self, node: onnx.NodeProto) -> None:
        args = [self.values[name] if name else None for name in node.input]
        for arg in args:
            if isinstance(arg, Absent):
                self.fail_node(arg.node, arg.reason)
        results: tuple[Node, ...] | None = None
        # Behind a failure all is unknown; what fails by itself is still worth telling.
        if plain_domain(node.domain) or node.op_type not in OPERATORS:
            self.fail_node(node, "the operator is not supported")
        elif all(isinstance(arg, Node) or not name for arg, name in zip(args, node.input, strict=True)):
            with located(f"node {quoted(label_of(node))} ({node.op_type})"):
                try:
                    results = self.build(node, tuple(a if isinstance(a, Node) else None for a in args))
                except UnsupportedError as error:
                    self.fail_node(node, str(error))
        for i, name in enumerate(node.output):
            if name:
                self.values[name] = None if results is None else results[i] if i < len(results) else Absent(node, i)

    def build(self, node: onnx.NodeProto, args: tuple[Node | None, ...]) -> tuple[Node, ...]:
        operator = str(node.op_type)
        schema = definition(operator, self.opset)
        if schema is not None:
            check_signature(node, schema, args)
        version = self.opset if schema is None else int(schema.since_version)
        call = Call(operator, version, args, attributes_of(node), tuple(node.output), self.reader)
        made = OPERATORS[operator](call)
        origin, fold = shown(label_of(node)), operator not in NOT_FOLDED
        return tuple(self.folder.settle(n, origin, fold=fold) for n in (made if isinstance(made, tuple) else (made,)))

    def output(self, value: onnx.ValueInfoProto) -> Node | None:
        """The node behind an output; float16 is restored here."""
        node = self.values[value.name]
        if isinstance(node, Absent):
            self.fail_node(node.node, node.reason)
        if not isinstance(node, Node):
            return None
        kind = value.type.tensor_type.elem_type
        declared = DTYPES.get(kind, dtype_name(kind)) if kind else node.dtype
        if declared == "float16" and node.dtype == "float32":
            return Cast(node, "float16", origin=(shown(value.name),))
        if declared != node.dtype:
            raise BadInputError(f"output {quoted(value.name)} is declared {declared}, it is {node.dtype}")
        return node


def label_of(node: onnx.NodeProto) -> str:
    """What people know the node by. Results have names of their own even where nodes have none."""
    return str(node.name or first_result(node))


def first_result(node: onnx.NodeProto) -> str:
    return next(filter(None, node.output), "")
