"""float32 functions as straight-line arithmetic, so that a vectorised loop stays one: no call, no branch, no table.

Every polynomial is a minimax fit. Recipe: Lawson's iteration (400 rounds of least squares in Chebyshev form on 4000
Chebyshev points, each point's weight multiplied by its error) with errors weighted by what they do to the result, the
target function in extended precision, coefficients rounded to float32 last. Largest errors over samples of the whole
range, in units of the last place, are those that tests/test_vector_math.py holds the functions to:

    exp 1.5   expm1 3   log 1.5   log1p_exp 3   tanh 3   sigmoid 3   erf 2   sin, cos 2 (|x| < 2^29)   pow 1.5

TVM's simplifier treats floats as reals: (x + c) - c and x != x are folded, not (x <= y) becomes x > y. And its
vectoriser turns a loop with isnan or nearbyint into a scalar one. So rounding is LLVM's own and NaN is
found by its bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from tvm import tirx
from tvm.tirx import Expr

SIGN_BIT = -(1 << 31)
LN2_HIGH, LN2_LOW = 0.693145751953125, 1.428606765330187e-06  # 17 bits, so that n * LN2_HIGH is exact

# (e^r - 1 - r) / r^2, |r| <= ln(2)/2: 5e-11 of e^r
EXP = (
    0.5, 0.1666666567325592, 0.04166629537940025, 0.008333497680723667, 0.0013944758102297783, 0.00019790243823081255,
)  # fmt: skip
# (2^r - 1) / r, |r| <= 1/2: 5e-11 of 2^r
EXP2 = (
    0.6931471824645996, 0.24022650718688965, 0.055504102259874344, 0.009618038311600685, 0.0013333935057744384,
    0.00015466756303794682, 1.5196156709862407e-05,
)  # fmt: skip
# (log(1 + f) - f + f^2/2) / f^3, sqrt(1/2) - 1 <= f <= sqrt(2) - 1: 7e-10 of the logarithm
LOG = (
    0.3333331346511841, -0.25000008940696716, 0.2000211924314499, -0.1666799634695053, 0.14219552278518677,
    -0.1240558847784996, 0.11888163536787033, -0.11675656586885452, 0.06746643781661987,
)  # fmt: skip
# (2 atanh(s) / s - 2) / s^2 in z = s^2 <= 1/9: 1e-10 of the result
ATANH = (0.6666667461395264, 0.3999887704849243, 0.2861688435077667, 0.21427656710147858, 0.24300937354564667)
# 2 atanh(s) / (s ln 2) in z = s^2, |s| <= (sqrt(2)-1)/(sqrt(2)+1), in float64: 3e-14 of the result
LOG2 = (
    2.8853900817778495, 0.9617966941143495, 0.5770779421083272, 0.4122092764187235, 0.3199047629360844,
    0.28291293291469877,
)  # fmt: skip
# (tanh(x) / x - 1) / z in z = x^2, |x| < 0.625: 2e-10 of the result
TANH = (
    -0.3333333134651184, 0.13333210349082947, -0.05394720286130905, 0.021702967584133148, -0.008182676509022713,
    0.002147539285942912,
)  # fmt: skip
# erf(x) / x - 1 in z = x^2, |x| < 0.92: 4e-10 of the result
ERF_NEAR = (
    0.12837916612625122, -0.37612634897232056, 0.11283703148365021, -0.026859799399971962, 0.005201960448175669,
    -0.000815262901596725, 8.409923611907288e-05,
)  # fmt: skip
# -log(erfc(x)), 0.92 <= x <= 3.95: 5e-11 of erf(x)
ERF_FAR = (
    -0.00017468287842348218, 1.1295149326324463, 0.6333469152450562, 0.10828007012605667, -0.025119414553046227,
    0.004171058069914579, -0.00043446148629300296, 2.109494926116895e-05,
)  # fmt: skip
# (sin(r) / r - 1) / z and (cos(r) - 1 + z/2) / z^2 in z = r^2, |r| <= pi/4: 5e-12 and 1e-13
SIN = (-0.1666666716337204, 0.008333329111337662, -0.00019839256128761917, 2.7175644845556235e-06)
COS = (0.0416666679084301, -0.0013888883404433727, 2.4799372113193385e-05, -2.719862663980166e-07)


def dtype_of(x: Expr) -> str:
    return str(x.ty)


def literal(value: float, dtype: str = "float32") -> Expr:
    return tirx.const(value, dtype)


_NAMES: ContextVar[list[tuple[Expr, Expr]] | None] = ContextVar("names", default=None)


def let(x: Expr, body: Callable[[Expr], Expr]) -> Expr:
    """body(x) with x evaluated once, however often the body names it.

    What holds a Let must stand in one place only: TVM refuses a second definition of its variable.
    """
    if isinstance(x, tirx.Var | tirx.FloatImm | tirx.IntImm):
        return body(x)
    names = _NAMES.get()
    if names is None:
        return flat(lambda: let(x, body))
    raw = tirx.Var("t", dtype_of(x))
    name = tirx.Var("t", dtype_of(x))
    names += [(raw, x), (name, opaque(raw))]
    return body(name)


def opaque(x: Expr) -> Expr:
    """x, as x * 1 - 0 or unsigned max(x, 0), which LLVM drops and TVM does not see through.

    TVM's analyzer puts the values of names in for the names, over and over: exponential in a chain of them.
    """
    dtype = dtype_of(x)
    if dtype in ("float32", "float64"):
        return tirx.call_llvm_intrin(dtype, "llvm.fma", x, literal(1, dtype), literal(-0.0, dtype))
    if dtype.startswith(("int", "uint")):
        return tirx.call_llvm_intrin(dtype, "llvm.umax", x, literal(0, dtype))
    return x


@contextmanager
def naming(names: list[tuple[Expr, Expr]]) -> Iterator[None]:
    """What `let` names inside goes to the end of `names`."""
    token = _NAMES.set(names)
    try:
        yield
    finally:
        _NAMES.reset(token)


def close(names: Sequence[tuple[Expr, Expr]], value: Expr) -> Expr:
    """`value` with `names` bound: by whoever collects names, else here."""
    outer = _NAMES.get()
    if outer is None:
        return named(names, value)
    outer += names
    return value


def named(names: Sequence[tuple[Expr, Expr]], value: Expr) -> Expr:
    """`value`, which uses `names`, with all of them bound."""
    for name, bound in reversed(names):
        value = tirx.Let(name, bound, value)
    return value


def flat(build: Callable[[], Expr]) -> Expr:
    """What `build` returns, its names in one chain around it: TVM cannot vectorise a Let in the argument of a call."""
    names: list[tuple[Expr, Expr]] = []
    with naming(names):
        value = build()
    return named(names, value)


def horner(x: Expr, coefficients: Sequence[float], *, dtype: str = "float32") -> Expr:
    """The polynomial with the constant first."""
    total = literal(coefficients[-1], dtype)
    for c in reversed(coefficients[:-1]):
        total = total * x + literal(c, dtype)
    return total


def at_least(x: Expr, low: float) -> Expr:
    """max(x, low) that keeps NaN; one instruction."""
    bound = literal(low, dtype_of(x))
    return let(x, lambda x: tirx.Select(x < bound, bound, x))


def at_most(x: Expr, high: float) -> Expr:
    """min(x, high) that keeps NaN; one instruction."""
    bound = literal(high, dtype_of(x))
    return let(x, lambda x: tirx.Select(x > bound, bound, x))


def is_nan(x: Expr) -> Expr:
    """Whether a float32 or float64 is NaN."""
    if dtype_of(x) == "float64":
        wide = tirx.bitwise_and(tirx.reinterpret("int64", x), literal(2**63 - 1, "int64"))
        return wide > literal(0x7FF << 52, "int64")
    return tirx.bitwise_and(bits(x), literal(~SIGN_BIT, "int32")) > literal(0x7F800000, "int32")


def unless_nan(x: Expr, value: Expr) -> Expr:
    """`value`, or x where x is NaN."""
    return tirx.Select(x <= literal(math.inf, dtype_of(x)), value, x)


def nearest(x: Expr) -> Expr:
    """The whole number nearest to x, the even one at halves; one instruction, unlike TVM's round and nearbyint."""
    return tirx.call_llvm_pure_intrin(dtype_of(x), "llvm.roundeven", x)


def integer(x: Expr) -> Expr:
    return tirx.Cast("int32", x)


def bits(x: Expr) -> Expr:
    return tirx.reinterpret("int32", x)


def from_bits(x: Expr) -> Expr:
    return tirx.reinterpret("float32", x)


def magnitude(x: Expr) -> Expr:
    return from_bits(tirx.bitwise_and(bits(x), literal(~SIGN_BIT, "int32")))


def with_sign(x: Expr, sign: Expr) -> Expr:
    """x, not negative, with the sign bit of `sign`."""
    return from_bits(tirx.bitwise_or(bits(x), tirx.bitwise_and(bits(sign), literal(SIGN_BIT, "int32"))))


def power_of_two(n: Expr) -> Expr:
    """2^n of an int32, -126 <= n <= 127."""
    return from_bits(tirx.shift_left(n + 127, literal(23, "int32")))


def scaled(x: Expr, n: Expr) -> Expr:
    """x * 2^n for -252 <= n <= 254, in two steps so that neither factor leaves the range."""

    def halves(n: Expr) -> Expr:
        return let(tirx.shift_right(n, literal(1, "int32")), lambda h: x * power_of_two(h) * power_of_two(n - h))

    return let(n, halves)


def _reduced(x: Expr, body: Callable[[Expr, Expr], Expr]) -> Expr:
    """body(n, r) with x = n ln 2 + r, |r| <= ln(2)/2."""

    def split(x: Expr, n: Expr) -> Expr:
        return let(x - n * literal(LN2_HIGH) - n * literal(LN2_LOW), lambda r: body(n, r))

    return let(x, lambda x: let(nearest(x * literal(1 / math.log(2))), lambda n: split(x, n)))


def exp(x: Expr) -> Expr:
    """e^x: inf above 88.72, denormal and then 0 below -87.33."""
    inside = at_most(at_least(x, -104.5), 89.0)
    return _reduced(inside, lambda n, r: scaled(literal(1) + (r + r * r * horner(r, EXP)), integer(n)))


def expm1(x: Expr) -> Expr:
    """e^x - 1, relatively exact at 0: 2^n * (e^r - 1) + (2^n - 1), halved on the way so that 2^n stays in range."""

    def join(n: Expr, r: Expr) -> Expr:
        half = let(power_of_two(integer(n) - 1), lambda s: s * (r + r * r * horner(r, EXP)) + (s - literal(0.5)))
        return half * literal(2)

    return _reduced(at_most(at_least(x, -30.0), 89.0), join)


def log(x: Expr) -> Expr:
    """Natural logarithm, with denormals: -inf of 0, NaN below."""
    return let(x, lambda x: _log_edges(x, _log_split(x, lambda e, f: _log_sum(e, f))))


def _log_edges(x: Expr, value: Expr) -> Expr:
    above = tirx.Select(x < literal(math.inf), value, x)
    below = tirx.Select(x < literal(0.0), literal(math.nan), literal(-math.inf))
    return tirx.Select(x <= literal(0.0), below, above)


def _log_split(x: Expr, body: Callable[[Expr, Expr], Expr]) -> Expr:
    """body(e, f) with x = 2^e * (1 + f), sqrt(1/2) <= 1 + f < sqrt(2), both float32; x positive and finite."""
    small = x < literal(2.0**-126)
    normal = bits(tirx.Select(small, x * literal(2.0**23), x))
    shift = tirx.Select(small, literal(23, "int32"), literal(0, "int32"))

    def split(b: Expr, e: Expr) -> Expr:
        f = from_bits(b - tirx.shift_left(e, literal(23, "int32"))) - literal(1)
        return let(f, lambda f: body(tirx.Cast("float32", e - shift), f))

    root = literal(0x3F3504F3, "int32")
    return let(normal, lambda b: let(tirx.shift_right(b - root, literal(23, "int32")), lambda e: split(b, e)))


def _log_sum(e: Expr, f: Expr) -> Expr:
    tail = f * f * f * horner(f, LOG) + e * literal(LN2_LOW) - literal(0.5) * f * f
    return (tail + f) + e * literal(LN2_HIGH)


def log1p_of_fraction(u: Expr) -> Expr:
    """log(1 + u) for 0 <= u <= 1, relatively exact at 0: 2 atanh(u / (2 + u))."""
    s = let(u, lambda u: u / (u + literal(2)))
    return let(s, lambda s: let(s * s, lambda z: s * literal(2) + s * z * horner(z, ATANH)))


def log1p_exp(x: Expr) -> Expr:
    """log(1 + e^x), softplus."""
    return let(x, lambda x: at_least(x, 0.0) + log1p_of_fraction(exp(literal(0) - magnitude(x))))


def sigmoid(x: Expr) -> Expr:
    return literal(1) / (literal(1) + exp(literal(0) - x))


def tanh(x: Expr) -> Expr:
    def join(x: Expr, a: Expr) -> Expr:
        near = let(x * x, lambda z: x + x * z * horner(z, TANH))
        far = literal(1) - literal(2) / (exp(a + a) + literal(1))
        return tirx.Select(a < literal(0.625), near, with_sign(far, x))

    return let(x, lambda x: let(magnitude(x), lambda a: join(x, a)))


def erf(x: Expr) -> Expr:
    def join(x: Expr, a: Expr) -> Expr:
        near = let(x * x, lambda z: x + x * horner(z, ERF_NEAR))
        far = literal(1) - exp(literal(0) - let(at_most(a, 3.95), lambda c: horner(c, ERF_FAR)))
        return tirx.Select(a < literal(0.92), near, with_sign(far, x))

    return let(x, lambda x: let(magnitude(x), lambda a: join(x, a)))


def sin(x: Expr) -> Expr:
    return _circular(x, quarter=0)


def cos(x: Expr) -> Expr:
    return _circular(x, quarter=1)


def _circular(x: Expr, *, quarter: int) -> Expr:
    """sin(x + quarter * pi/2), the reduction by pi/2 in float64: good to 1e-7 for |x| < 2^29, beyond within [-1, 1]."""

    def reduce(wide: Expr, n: Expr) -> Expr:
        exact = wide - n * literal(math.pi / 2, "float64") - n * literal(6.123233995736766e-17, "float64")
        rest = at_most(at_least(exact, -1.0), 1.0)
        turn = tirx.Cast("int32", n) + quarter
        single = tirx.Cast("float32", rest)
        return let(turn, lambda turn: let(single, lambda r: let(r * r, lambda z: _turned(turn, r, z))))

    def start(wide: Expr) -> Expr:
        return let(nearest(wide * literal(2 / math.pi, "float64")), lambda n: reduce(wide, n))

    def finite(x: Expr) -> Expr:
        return tirx.Select(magnitude(x) < literal(math.inf), let(tirx.Cast("float64", x), start), literal(math.nan))

    return let(x, finite)


def _turned(turn: Expr, r: Expr, z: Expr) -> Expr:
    one = literal(1, "int32")
    sine = r + r * z * horner(z, SIN)
    cosine = literal(1) - literal(0.5) * z + z * z * horner(z, COS)
    value = tirx.Select(tirx.EQ(tirx.bitwise_and(turn, one), literal(0, "int32")), sine, cosine)
    flip = tirx.shift_left(tirx.bitwise_and(tirx.shift_right(turn, one), one), literal(31, "int32"))
    return from_bits(tirx.bitwise_xor(bits(value), flip))


def tan(x: Expr) -> Expr:
    return let(x, lambda x: sin(x) / cos(x))


def pow(x: Expr, y: Expr) -> Expr:  # noqa: A001  the function's name in every library
    """x^y as C99 has it: any x^0 and 1^y are 1, negative x only with whole y. The logarithm is taken in float64."""
    return let(x, lambda x: let(y, lambda y: let(magnitude(x), lambda a: _pow_signed(x, y, a))))


def _pow_signed(x: Expr, y: Expr, a: Expr) -> Expr:
    one, zero = literal(1), literal(0)
    edges = tirx.Select(a < literal(math.inf), _log2_wide(a), tirx.Cast("float64", a))
    lg = tirx.Select(tirx.EQ(a, zero), literal(-math.inf, "float64"), edges)
    whole = tirx.EQ(tirx.floor(y), y)
    half = y * literal(0.5)
    odd = tirx.all(whole, tirx.NE(tirx.floor(half), half), magnitude(y) < literal(math.inf))
    flip = tirx.all(odd, bits(x) < literal(0, "int32"))

    def signed(r: Expr) -> Expr:
        real = tirx.Select(flip, literal(0) - r, r)
        undefined = tirx.all(x < zero, x > literal(-math.inf), tirx.Not(whole))
        return tirx.Select(undefined, literal(math.nan), real)

    value = let(_exp2_wide(lg * tirx.Cast("float64", y)), signed)
    endless = tirx.all(tirx.EQ(a, one), tirx.EQ(magnitude(y), literal(math.inf)))
    return tirx.Select(tirx.any(tirx.EQ(y, zero), tirx.EQ(x, one), endless), one, value)


def _log2_wide(x: Expr) -> Expr:
    """log2 in float64 of a positive finite float32."""

    def series(e: Expr, f: Expr) -> Expr:
        wide = tirx.Cast("float64", f)
        s = wide / (wide + literal(2, "float64"))
        return tirx.Cast("float64", e) + let(s, lambda s: s * let(s * s, lambda z: horner(z, LOG2, dtype="float64")))

    return _log_split(x, series)


def _exp2_wide(t: Expr) -> Expr:
    """2^t in float32 of a float64."""

    def join(t: Expr, n: Expr) -> Expr:
        r = tirx.Cast("float32", t - n)
        return let(r, lambda r: scaled(literal(1) + r * horner(r, EXP2), tirx.Cast("int32", n)))

    return let(at_most(at_least(t, -151.0), 129.0), lambda t: let(nearest(t), lambda n: join(t, n)))
