"""Inline PTX into C++: every `asm` statement of a CUDA text becomes a block that calls the models of tests/shim/shim.h.

A statement may hold several instructions, predicates, registers of its own and vectors of operands. An instruction that
has no model is a `ValueError` that names it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

STATEMENT = re.compile(r"\b(?:asm|__asm__)\s*(?:(?:volatile|__volatile__)\s*)?\(")
STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')
INSTRUCTION = re.compile(r"(?:@(?P<guard>!?[%\w]+)\s+)?(?P<name>[a-z][\w.:]*)\s*(?P<operands>.*)$", re.S)
C_TYPE = {
    "pred": "bool", "b16": "unsigned short", "u16": "unsigned short", "s16": "short", "f16": "unsigned short",
    "b32": "unsigned", "u32": "unsigned", "s32": "int", "f32": "float", "f16x2": "unsigned", "f64": "double",
    "b64": "unsigned long long", "u64": "unsigned long long", "s64": "long long", "b8": "unsigned char",
    "u8": "unsigned char", "s8": "signed char",
}  # fmt: skip
COMPARE = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
SPECIAL = {
    "%laneid": "cuda_lane()", "%tid.x": "threadIdx.x", "%tid.y": "threadIdx.y", "%tid.z": "threadIdx.z",
    "%ctaid.x": "blockIdx.x", "%ctaid.y": "blockIdx.y", "%ctaid.z": "blockIdx.z", "%nsmid": "1u",
}  # fmt: skip


def translate(text: str) -> str:
    """`text` with every asm statement replaced, its lines kept where they are."""
    out, at = [], 0
    while match := STATEMENT.search(text, at):
        end = closing(text, match.end() - 1)
        tail = re.compile(r"\s*;").match(text, end)
        if not tail:
            raise ValueError(f"An asm statement does not end in a semicolon: {text[match.start():end]!r}.")
        line = text.count("\n", 0, match.start()) + 1
        block = _block(text[match.end() : end - 1], line)
        out += [text[at : match.start()], block, "\n" * text.count("\n", match.start(), tail.end())]
        at = tail.end()
    return "".join(out) + text[at:]


@dataclass(frozen=True)
class Call:
    """One instruction: its name's parts, its operands as C++ expressions (a tuple for a vector), its line."""

    parts: tuple[str, ...]
    operands: tuple[str | tuple[str, ...], ...]
    line: int

    def one(self, i: int) -> str:
        operand = self.operands[i]
        return operand if isinstance(operand, str) else operand[0]

    def many(self, i: int) -> tuple[str, ...]:
        operand = self.operands[i]
        return (operand,) if isinstance(operand, str) else operand


def closing(text: str, opening: int) -> int:
    """The place after the parenthesis that closes the one at `opening`, strings left out."""
    depth, at = 0, opening
    while at < len(text):
        if text[at] == '"' and (string := STRING.match(text, at)):
            at = string.end()
            continue
        depth += {"(": 1, ")": -1}.get(text[at], 0)
        at += 1
        if not depth:
            return at
    raise ValueError(f"A parenthesis is not closed: {text[opening : opening + 80]!r}.")


def _split(text: str, separator: str) -> list[str]:
    """`text` at the separators outside brackets and strings."""
    parts, depth, start, at = [], 0, 0, 0
    while at < len(text):
        if text[at] == '"' and (string := STRING.match(text, at)):
            at = string.end()
            continue
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(text[at], 0)
        if text[at] == separator and not depth:
            parts.append(text[start:at])
            start = at + 1
        at += 1
    return [*parts, text[start:]]


def _block(inside: str, line: int) -> str:
    """The C++ of one statement; `inside` is what stands between its parentheses."""
    sections = [part.strip() for part in _split(inside, ":")]
    template = "".join(STRING.findall(sections[0])).replace("\\n", "\n").replace("\\t", " ").replace('\\"', '"')
    bound, number = [], 0
    for is_input, section in enumerate(sections[1:3]):
        for operand in _split(section, ",") if section else ():
            expression = operand.strip()[operand.strip().index("(") :]
            bound.append(f"auto{'' if is_input else '&'} cu_{number} = {expression};")
            number += 1
    statements = [*bound, *(_instruction(text, line) for text in _instructions(template))]
    return "{ " + " ".join(statements) + " }"


def _instructions(template: str) -> list[str]:
    """The instructions of a template, without the braces that only make a scope."""
    texts = []
    for piece in re.sub(r"//[^\n]*", "", template).split(";"):
        text = piece.strip()
        while text.startswith("{"):
            text = text[1:].strip()
        if text.strip("{} \n"):
            texts.append(" ".join(text.split()))
    return texts


def _operand(text: str) -> str | tuple[str, ...]:
    text = text.strip()
    if text.startswith("{"):
        return tuple(str(_operand(part)) for part in text[1:-1].split(","))
    if text.startswith("["):
        return _address(text[1:-1])
    if text.startswith("%%"):
        return SPECIAL.get(text[1:], "r_" + text[2:].replace(".", "_"))
    if text in SPECIAL:
        return SPECIAL[text]
    if re.fullmatch(r"%\d+", text):
        return "cu_" + text[1:]
    if re.fullmatch(r"-?(0[xX][\da-fA-F]+|\d+(\.\d+)?)", text):
        return text
    if match := re.fullmatch(r"0[fF]([\da-fA-F]{8})", text):
        return f"__uint_as_float(0x{match[1]}u)"
    return "r_" + text.removeprefix("%").replace(".", "_")


def _address(text: str) -> str:
    base, plus, offset = text.partition("+")
    address = str(_operand(base))
    if not plus:
        return address
    return f"cuda_shim::offset({address}, {_operand(offset)})"


def _instruction(text: str, line: int) -> str:
    if text.startswith(".reg"):
        kind, _, names = text[len(".reg") :].strip().partition(" ")
        return f"{C_TYPE[kind.removeprefix('.')]} {', '.join(str(_operand(name)) for name in names.split(','))};"
    match = INSTRUCTION.match(text)
    if not match:
        raise ValueError(f"{text!r} is no PTX instruction that the shim can read.")
    operands = tuple(_operand(part) for part in _split(match["operands"], ",")) if match["operands"].strip() else ()
    parts = tuple(match["name"].split("."))
    model = next((model for start, model in MODELS if parts[: len(start)] == start), None)
    if model is None:
        raise ValueError(f"The shim has no model of the PTX instruction {match['name']!r}.")
    done = model(Call(parts, operands, line))
    guard = match["guard"]
    if not guard:
        return done
    return f"if ({'!' * guard.startswith('!')}{_operand(guard.removeprefix('!'))}) {{ {done} }}"


def _set(to: str, value: str) -> str:
    return f"cuda_shim::set({to}, cuda_shim::bits({value}));"


def _as(kind: str, value: str) -> str:
    return f"cuda_shim::as<{C_TYPE[kind]}>({value})"


def _copy(call: Call) -> str:
    given = call.one(3) if len(call.operands) > 3 else call.one(2)
    return f"cuda_copy_async((unsigned){call.one(0)}, (const void*){call.one(1)}, {call.one(2)}, {given});"


def _width(parts: Sequence[str]) -> int:
    return next((int(part[1]) for part in parts if part in ("v2", "v4")), 1)


def _memory(call: Call, pointer: str) -> str:
    shared = any(part.startswith("shared") for part in call.parts)
    return f"cuda_from_shared((unsigned){pointer})" if shared else f"(void*){pointer}"


def _load(call: Call) -> str:
    kind, to = C_TYPE[call.parts[-1]], call.many(0)
    store = " ".join(_set(name, f"v[{i}]") for i, name in enumerate(to))
    return f"{{ {kind} v[{len(to)}]; cuda_load(v, {_memory(call, call.one(1))}, sizeof(v)); {store} }}"


def _store(call: Call) -> str:
    kind, values = call.parts[-1], call.many(1)
    given = ", ".join(_as(kind, value) for value in values)
    return f"{{ {C_TYPE[kind]} v[] = {{{given}}}; cuda_store({_memory(call, call.one(0))}, v, sizeof(v)); }}"


def _ldmatrix(call: Call) -> str:
    count = next(int(part[1]) for part in call.parts if part in ("x1", "x2", "x4"))
    done = " ".join(_set(name, f"v[{i}]") for i, name in enumerate(call.many(0)))
    transposed = int("trans" in call.parts)
    return f"{{ unsigned v[4]; cuda_ldmatrix({call.line}, {count}, {transposed}, v, (unsigned){call.one(1)}); {done} }}"


def _mma(call: Call) -> str:
    shape = re.fullmatch(r"m(8|16)n8k(\d+)", call.parts[3])
    if not shape or call.parts[4:6] != ("row", "col"):
        raise ValueError(f"The shim has no model of {'.'.join(call.parts)!r}.")
    d_type, a_type, b_type, c_type = call.parts[-4:]
    known = {("f16", "f16"): 16, ("bf16", "bf16"): 16, ("tf32", "tf32"): 32}
    known |= {(a, b): 8 for a in ("s8", "u8") for b in ("s8", "u8")}
    if d_type != c_type or (a_type, b_type) not in known or (d_type == "s32") != (known[a_type, b_type] == 8):
        raise ValueError(f"The shim has no model of {'.'.join(call.parts)!r}.")
    m, k = int(shape[1]), int(shape[2])
    registers = {"d": m // 8 * (1 if d_type == "f16" else 2), "a": m * k * known[a_type, b_type] // 1024}
    registers |= {"b": 8 * k * known[a_type, b_type] // 1024, "c": registers["d"]}
    for i, (name, count) in enumerate(registers.items()):
        if len(call.many(i)) != count:
            raise ValueError(f"{'.'.join(call.parts)!r} wants {count} registers of {name}, got {len(call.many(i))}.")
    arrays = "".join(
        f"unsigned {name}[] = {{{', '.join(_as('b32', value) for value in call.many(i))}}}; "
        for i, name in ((1, "a"), (2, "b"), (3, "c"))
    )
    kinds = ", ".join(f"CUDA_{kind.upper()}" for kind in (a_type, b_type, d_type))
    done = " ".join(_set(name, f"d[{i}]") for i, name in enumerate(call.many(0)))
    saturate = int("satfinite" in call.parts)
    return f"{{ {arrays}unsigned d[4]; cuda_mma({call.line}, {m}, {k}, {kinds}, {saturate}, d, a, b, c); {done} }}"


def _wgmma(call: Call) -> str:
    shape = re.fullmatch(r"m64n(\d+)k(\d+)", call.parts[4])
    d_type, a_type, b_type = call.parts[-3:]
    depths = {("f32", "f16", "f16"): 16, ("f32", "bf16", "bf16"): 16}
    depths |= {("s32", a, b): 32 for a in ("s8", "u8") for b in ("s8", "u8")}
    plain = ("1", "1", "0", "0") if d_type == "f32" else ()
    if not shape or depths.get((d_type, a_type, b_type)) != int(shape[2]) or call.operands[4:] != plain:
        raise ValueError(f"The shim has no model of {'.'.join(call.parts)!r}.")
    n, sums = int(shape[1]), call.many(0)
    if n % 8 or not 8 <= n <= 256 or len(sums) != n // 2:
        raise ValueError(f"{'.'.join(call.parts)!r} wants {n // 2} sums of a multiple of 8 columns, got {len(sums)}.")
    places = ", ".join(f"(unsigned*)&{name}" for name in sums)
    rest = f"CUDA_{a_type.upper()}, CUDA_{b_type.upper()}, d, {call.one(1)}, {call.one(2)}, {call.one(3)}"
    return f"{{ unsigned* d[] = {{{places}}}; cuda_wgmma({call.line}, {n}, {rest}); }}"


def _compare(call: Call) -> str:
    kind = call.parts[-1]
    return f"{call.one(0)} = {_as(kind, call.one(1))} {COMPARE[call.parts[1]]} {_as(kind, call.one(2))};"


def _dp4a(call: Call) -> str:
    signs = ", ".join("int8_t" if part == "s32" else "uint8_t" for part in call.parts[1:3])
    a, b, c = (_as("b32", call.one(i)) for i in (1, 2, 3))
    return _set(call.one(0), f"cuda_dp4a<{signs}>({a}, {b}, {c})")


def _binary(sign: str) -> Callable[[Call], str]:
    def model(call: Call) -> str:
        kind = call.parts[-1]
        return _set(call.one(0), f"({C_TYPE[kind]})({_as(kind, call.one(1))} {sign} {_as(kind, call.one(2))})")

    return model


def _unary(function: str) -> Callable[[Call], str]:
    return lambda call: _set(call.one(0), f"{function}({_as(call.parts[-1], call.one(1))})")


def _pack(kind: str) -> Callable[[Call], str]:
    def model(call: Call) -> str:
        high, low = (f"unsigned(__float2{kind}_rn({_as('f32', call.one(i))}).__x)" for i in (1, 2))
        return _set(call.one(0), f"unsigned({high} << 16 | {low})")

    return model


def _convert(call: Call) -> str:
    to, source = call.parts[-2:]
    return _set(call.one(0), f"({C_TYPE[to]})({_as(source, call.one(1))})")


# By the first parts of an instruction's name, the most particular first.
MODELS: tuple[tuple[tuple[str, ...], Callable[[Call], str]], ...] = (
    (("cp", "async", "commit_group"), lambda call: "cuda_copy_commit();"),
    (("cp", "async", "wait_group"), lambda call: f"cuda_copy_wait({call.one(0)});"),
    (("cp", "async", "wait_all"), lambda call: "cuda_copy_wait(-1);"),
    (("cp", "async", "ca", "shared", "global"), _copy),
    (("cp", "async", "cg", "shared", "global"), _copy),
    (("ldmatrix", "sync", "aligned", "m8n8"), _ldmatrix),
    (("mma", "sync", "aligned"), _mma),
    (("wgmma", "mma_async", "sync", "aligned"), _wgmma),
    (("wgmma", "fence", "sync", "aligned"), lambda call: ""),
    (("wgmma", "commit_group", "sync", "aligned"), lambda call: "cuda_wgmma_commit();"),
    (("wgmma", "wait_group", "sync", "aligned"), lambda call: f"cuda_wgmma_wait({call.line}, {call.one(0)});"),
    (("fence", "proxy", "async"), lambda call: "cuda_proxy_fence();"),
    (("bar", "sync"), lambda call: f"cuda_barrier({call.line}, 0);"),
    (("bar", "warp", "sync"), lambda call: f"cuda_warp_barrier({call.line}, {call.one(0)});"),
    (("cvta", "to", "shared"), lambda call: _set(call.one(0), f"(uint64_t)cuda_to_shared((const void*){call.one(1)})")),
    (("cvt", "rna", "tf32", "f32"), lambda call: _set(call.one(0), f"cuda_shim::to_tf32({_as('f32', call.one(1))})")),
    (("cvt", "rn", "f16x2", "f32"), _pack("half")),
    (("cvt", "rn", "bf16x2", "f32"), _pack("bfloat16")),
    (("cvt", "u32", "u64"), _convert),
    (("cvt", "u64", "u32"), _convert),
    (("cvt", "rn", "f32", "s32"), _convert),
    (("mov",), lambda call: _set(call.one(0), _as(call.parts[1], call.one(1)))),
    (("setp",), _compare),
    (("dp4a",), _dp4a),
    (("ld",), _load),
    (("st",), _store),
    (("add",), _binary("+")),
    (("sub",), _binary("-")),
    (("mul", "lo"), _binary("*")),
    (("and",), _binary("&")),
    (("or",), _binary("|")),
    (("xor",), _binary("^")),
    (("shl",), _binary("<<")),
    (("shr",), _binary(">>")),
    (("ex2", "approx"), _unary("exp2f")),
    (("lg2", "approx"), _unary("log2f")),
    (("rcp", "approx"), _unary("1.0f / ")),
    (("rsqrt", "approx"), _unary("rsqrtf")),
    (("tanh", "approx"), _unary("tanhf")),
)
