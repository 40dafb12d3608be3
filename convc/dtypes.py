"""The types that a network may be computed in, and what each of them rounds."""

from __future__ import annotations

from dataclasses import replace

from convc.errors import UsageError
from convc.target import GpuTarget, Target

DTYPES = ("f32", "tf32", "f16", "bf16")
HALVES = ("float16", "bfloat16")
STORED = {"f16": "float16", "bf16": "bfloat16"}  # in memory; the others are float32 there
ROUNDING = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}

MAX_REL_ERR = 1e-4  # that a convolution may be off by where nobody says otherwise, relative to its output range
# The same beside what the type itself rounds: a result once, of tf32 both factors of each product, and then the sum as
# tensor cores do it, which is as much again for the longest.
LIMITS = {
    "f32": MAX_REL_ERR, "tf32": 2.0**-9, "f16": MAX_REL_ERR + ROUNDING["float16"],
    "bf16": MAX_REL_ERR + ROUNDING["bfloat16"],
}  # fmt: skip
TF32_CAPABILITY = (8, 0)
BF16_CAPABILITY = (8, 0)
INT8_CAPABILITY = (8, 0)
SUMMATION = 4  # roundings of float32 a term, at most, of any order of summation: tensor cores truncate (schedules/_gpu)


def computing(target: Target, dtype: str) -> Target:
    """`target` for a network in `dtype`. Raises UsageError where it has no such type."""
    if dtype not in DTYPES:
        raise UsageError(f"dtype '{dtype}' is none of {', '.join(DTYPES)}")
    if dtype == "f32":
        return target
    if not isinstance(target, GpuTarget):
        raise UsageError(f"dtype {dtype} is for GPUs, as --target cuda/sm_80; {target.label} computes in f32")
    least = {"tf32": TF32_CAPABILITY, "bf16": BF16_CAPABILITY}.get(dtype, (0, 0))
    if target.capability < least:
        raise UsageError(f"dtype {dtype} needs GPUs from sm_{least[0]}{least[1]} on; {target.label} is older")
    return replace(target, tf32=True) if dtype == "tf32" else target


def multiplies_int8(target: Target) -> bool:
    """Whether it has instructions for products of 8-bit integers that GPUs' algorithms use."""
    return isinstance(target, GpuTarget) and target.capability >= INT8_CAPABILITY


def definition_error(dtype: str, reduction: int) -> float:
    """What summing `reduction` products one by one promises, in units of the type's rounding, relative to the sum of
    their magnitudes: a rounding a term; of the 2-byte types, which are summed in float32, one more at the end; of
    integers none."""
    if dtype not in ROUNDING:
        return 0.0
    if dtype not in HALVES:
        return float(reduction)
    return 1.0 + SUMMATION * reduction * ROUNDING["float32"] / ROUNDING[dtype]
