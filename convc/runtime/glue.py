"""The C that walks a plan: the public header and the tables of calls, as text. No name from a model reaches code."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from convc.errors import UnsupportedError, UsageError
from convc.ir import TensorType
from convc.plan.plan import Call, Kernel, Packing, Plan

HERE = Path(__file__).parent
ABI = (
    "packed_bytes", "workspace_bytes", "init", "run", "set_threads", "set_parallel_for", "calls", "call", "close",
    "version",
)
SPACES = {
    "input": "SPACE_INPUT", "output": "SPACE_OUTPUT", "weights": "SPACE_WEIGHTS", "packed": "SPACE_PACKED",
    "arena": "SPACE_ARENA",
}
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,200}")
NAME_CHARS = 120  # of a tensor's name in the header; the manifest has it whole


@dataclass(frozen=True)
class Glue:
    """C sources by file name, with `exports`, the symbols that the library shows. `run.c` includes all others."""

    files: Mapping[str, str]
    exports: tuple[str, ...]

    @property
    def header(self) -> str:
        return self.files["model.h"]


def identifier(text: str) -> str:
    """`text` as a lower-case C identifier of at most 40 letters, for the prefix of the ABI."""
    word = re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")[:40]
    return word if word[:1].isalpha() else f"model_{word}".rstrip("_")


def glue(
    plan: Plan, symbols: Mapping[Kernel | Packing, str], *, scratch: Mapping[str, int], name: str, version: str,
    model_id: int, weights_offset: int,
) -> Glue:
    """The C sources for a placed plan.

    `name` is the ABI's prefix, `version` one line for people, `model_id` a number by which run knows what init packed,
    `weights_offset` where the weights start in their file, in bytes.
    """
    if name != identifier(name):
        raise UsageError(f"'{name}' cannot be the prefix of C functions; '{identifier(name)}' can")
    constants = _constants(plan, weights_offset)
    words = {
        "name": name,
        "NAME": name.upper(),
        "version": comment(version),
        "tensors": "\n".join(f" * {line}" for line in _tensors(plan)),
        "constants": "\n".join(f"#define {name.upper()}_{key} {value}" for key, value in constants),
    }
    header = re.sub(r"@(\w+)@", lambda m: words[m[1]], (HERE / "abi.h").read_text())
    files = {part: (HERE / part).read_text() for part in ("pool.c", "run.c")}
    files |= {"model.h": header, "plan.h": _tables(plan, symbols, scratch, name, version, model_id)}
    return Glue(files, tuple(f"{name}_{function}" for function in ABI))


def comment(text: str) -> str:
    """`text` for a C comment: nothing that could end it or continue a line."""
    return re.sub(r"[^A-Za-z0-9 _.,:;()\[\]/=+-]", "?", text[:NAME_CHARS])


def literal(text: str) -> str:
    """`text` in UTF-8 as a C string."""
    kept = text.encode()[:NAME_CHARS]
    safe = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 _.,:;()[]/=+-"
    return '"' + "".join(chr(b) if b in safe else f"\\{b:03o}" for b in kept) + '"'


def _ports(plan: Plan) -> Iterable[tuple[str, str, TensorType]]:
    for i, node in enumerate(plan.inputs):
        yield f"INPUT_{i}", node.label, node.type
    for i, (label, value) in enumerate(plan.outputs):
        yield f"OUTPUT_{i}", label, value.type


def _tensors(plan: Plan) -> list[str]:
    return [f"{key.lower().replace('_', ' ')}: {type_}  {comment(label)}" for key, label, type_ in _ports(plan)]


def _constants(plan: Plan, weights_offset: int) -> list[tuple[str, str]]:
    found = [("INPUTS", str(len(plan.inputs))), ("OUTPUTS", str(len(plan.outputs)))]
    for key, label, type_ in _ports(plan):
        shape = ", ".join(map(str, type_.shape))
        found += [(f"{key}_BYTES", f"{type_.bytes}u"), (f"{key}_RANK", str(type_.rank))]
        found += [(f"{key}_SHAPE", f"{{{shape}}}"), (f"{key}_DTYPE", literal(type_.dtype))]
        found += [(f"{key}_NAME", literal(label))]
    return [*found, ("WEIGHTS_BYTES", f"{plan.weight_bytes}u"), ("WEIGHTS_OFFSET", f"{weights_offset}u")]


def _tables(
    plan: Plan, symbols: Mapping[Kernel | Packing, str], scratch: Mapping[str, int], name: str, version: str,
    model_id: int,
) -> str:
    calls = (*plan.init, *plan.run)
    arity = {_symbol(symbols[call.kernel]): len(call.args) for call in calls}
    if clash := sorted(symbols[c.kernel] for c in calls if arity[symbols[c.kernel]] != len(c.args)):
        raise UnsupportedError(f"kernel {clash[0]} is called with different numbers of arguments")
    numbers = {
        "INPUTS": len(plan.inputs), "OUTPUTS": len(plan.outputs), "MAX_ARGUMENTS": max((1, *arity.values())),
        "PACKED_BYTES": plan.packed_bytes, "ARENA_BYTES": plan.arena_bytes,
        "SCRATCH_BYTES": scratch_bytes(plan.run, symbols, scratch),
        "INIT_SCRATCH_BYTES": scratch_bytes(plan.init, symbols, scratch),
        "INIT_COUNT": len(plan.init), "RUN_COUNT": len(plan.run),
    }
    return "\n".join([
        f"#define PREFIX(x) {name}_##x",
        f"#define CODE(x) {name.upper()}_STATUS_##x",
        f"#define VERSION {literal(version)}",
        f"#define MODEL_ID UINT64_C({model_id})",
        *(f"#define {key} {value}" for key, value in numbers.items()),
        *(f"int32_t {symbol}({_parameters(n)});" for symbol, n in sorted(arity.items())),
        *(_invoke(n) for n in sorted(set(arity.values()))),
        *_call_tables(plan, symbols),
        "",
    ])


def scratch_bytes(
    calls: Sequence[Call], symbols: Mapping[Kernel | Packing, str], scratch: Mapping[str, int]
) -> int:
    """Temporaries that one thread needs at once for the greediest of these calls, in bytes, a multiple of 64."""
    most = max((scratch.get(symbols[call.kernel], 0) for call in calls), default=0)
    return -(-most // 64) * 64


def _symbol(text: str) -> str:
    if not _IDENTIFIER.fullmatch(text):
        raise ValueError(f"{text!r} is no C identifier")
    return text


def _parameters(count: int) -> str:
    return ", ".join(["void*"] * count) or "void"


def _invoke(count: int) -> str:
    args = ", ".join(f"a[{i}]" for i in range(count))
    return (
        f"static int invoke_{count}(void (*f)(void), void* const* a) {{\n  (void)a;\n"
        f"  return ((int32_t (*)({_parameters(count)}))f)({args});\n}}"
    )


def _call_tables(plan: Plan, symbols: Mapping[Kernel | Packing, str]) -> Iterable[str]:
    slots = [slot for call in (*plan.init, *plan.run) for slot in call.args]
    rows = [f"{{{s.index if s.space in ('input', 'output') else s.offset}, {SPACES[s.space]}}}" for s in slots]
    yield _table("struct argument ARGUMENTS", rows)
    first = 0
    for label, calls in (("INIT_CALLS", plan.init), ("RUN_CALLS", plan.run)):
        rows = []
        for call in calls:
            count = len(call.args)
            rows.append(f"{{(void (*)(void)){symbols[call.kernel]}, invoke_{count}, {first}, {count}}}")
            first += count
        yield _table(f"struct call {label}", rows)


def _table(declaration: str, rows: Sequence[str]) -> str:
    """An array of these rows; an unused zero at the end keeps it from being empty, which C forbids."""
    return f"static const {declaration}[] = {{\n" + "".join(f"    {row},\n" for row in rows) + "    {0}};"
