"""Plans and kernels as text: for people, and as the key by which compiled kernels are shared."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from convc.ir import Const, Node
from convc.plan.plan import Call, Group, Kernel, Packing, Plan, Slot, is_literal


def kernel_text(kernel: Kernel | Packing) -> str:
    """All that decides the generated code, and nothing else: equal texts are one function.

    Nodes are numbered from the reads on; numbers are exact; constants that are read from memory appear as types only.
    """
    if isinstance(kernel, Packing):
        how = f"{kernel.problem} {kernel.choice}" if kernel.choice else f"layout {kernel.layout}"
        return f"pack {kernel.weight.type} {how}\n"
    names: dict[Node, str] = {}
    lines = []
    for read, layout in zip(kernel.group.reads, kernel.layouts, strict=True):
        names[read] = f"%{len(names)}"
        lines.append(f"{names[read]} = read {read.type} {layout}")
    for node in kernel.group.nodes:
        line = f"{node_text(node, names)} -> {node.type}"
        names[node] = f"%{len(names)}"
        lines.append(f"{names[node]} = {line}")
    lines.append(f"result {kernel.result} choice {kernel.choice}" + _in_place(kernel))
    return "\n".join(lines) + "\n"


def _in_place(kernel: Kernel) -> str:
    return "" if kernel.in_place is None else f" over %{kernel.in_place}"


def node_text(node: Node, names: Mapping[Node, str]) -> str:
    """The operation with every attribute; arguments by name, constants of one element by value."""
    fields = (f for f in dataclasses.fields(node) if f.name != "origin")
    body = ", ".join(f"{f.name}={_value(getattr(node, f.name), names)}" for f in fields)
    return f"{type(node).__name__}({body})"


def _value(value: Any, names: Mapping[Node, str]) -> str:
    if isinstance(value, Node):
        return names.get(value) or _outside(value)
    if isinstance(value, tuple):
        return "(" + " ".join(_value(v, names) for v in value) + ")"
    return value.hex() if isinstance(value, float) else str(value)


def _outside(node: Node) -> str:
    if isinstance(node, Const) and is_literal(node):
        return f"{node.type}={_number(node.value.reshape(-1)[0])}"
    return f"unnamed {node.type}"


def _number(value: Any) -> str:
    """A numpy scalar without loss. Complex numbers do not occur; the 2-byte floats are exact in float64."""
    return str(int(value)) if value.dtype.kind in "iub" else float(value).hex()


def show(plan: Plan) -> str:
    """One line for every group, or for every call once the plan is placed."""
    return "\n".join([*_head(plan), *(_calls(plan) if plan.run else _groups(plan))]) + "\n"


def _head(plan: Plan) -> Iterator[str]:
    for node in plan.inputs:
        yield f"input {node.label}: {node.type}"
    for name, result in plan.outputs:
        yield f"output {name}: {result.type}"
    if plan.run:
        yield f"weights {plan.weight_bytes} bytes, packed {plan.packed_bytes} bytes, arena {plan.arena_bytes} bytes"


def _groups(plan: Plan) -> Iterator[str]:
    names: dict[Node, str] = {node: f"in{i}" for i, node in enumerate(plan.inputs)}
    for i, group in enumerate(plan.groups):
        names[group.result] = f"%{i}"
        reads = ", ".join(_read(read, names) for read in group.reads)
        layout = f" {plan.layouts[group.result]}" if plan.layouts else ""
        yield f"%{i}: {group.result.type}{layout} = {_how(group, plan.choices.get(group))} of {reads}{_origin(group)}"


def _read(node: Node, names: Mapping[Node, str]) -> str:
    return names.get(node, str(node.type))


def _how(group: Group, choice: object) -> str:
    kinds = "+".join(str(getattr(n, "fn", type(n).__name__)).lower() for n in group.nodes)
    return kinds if group.problem is None else f"{kinds} [{group.problem}] {choice or ''}".rstrip()


def _origin(named: Group | Call) -> str:
    return f"  # {', '.join(named.origin)}" if named.origin else ""


def _calls(plan: Plan) -> Iterator[str]:
    for call in plan.init:
        yield "init " + _call(call)
    for call in plan.run:
        yield "run  " + _call(call)


def _call(call: Call) -> str:
    kernel = call.kernel
    *reads, result = (_slot(slot) for slot in call.args)
    if isinstance(kernel, Packing):
        how = f"pack {kernel.weight.type} {kernel.choice or kernel.layout}"
        return f"{result} = {how} of {', '.join(reads)}"
    given = ", ".join(f"{slot}:{layout}" for slot, layout in zip(reads, kernel.layouts, strict=True))
    over = " in place" if kernel.in_place is not None else ""
    head = f"{result}: {kernel.group.result.type} {kernel.result}{over}"
    return f"{head} = {_how(kernel.group, kernel.choice)} of {given}{_origin(call)}"


def _slot(slot: Slot) -> str:
    index = str(slot.index) if slot.space in ("input", "output") else ""
    return f"{slot.space}{index}+{slot.offset}" if slot.offset or not index else f"{slot.space}{index}"
