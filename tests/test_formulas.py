"""Do functions that exporters write out get their names back, and do their neighbours keep theirs?"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from graphs import C1, X, const, conv, f, kinds, simplified

from convc.ir import (
    Binary,
    Node,
    Reduce,
    Unary,
)


def erf_term(x: Node) -> Node:
    return f("add", Unary("erf", f("div", x, math.sqrt(2))), 1.0)


def cubic(x: Node) -> Node:
    return f("mul", f("add", x, f("mul", f("pow", x, 3.0), 0.044715)), 0.7978845608)


FORMULAS: dict[str, tuple[str, Callable[[Node], Node]]] = {
    "gelu, half first": ("gelu", lambda x: f("mul", f("mul", x, 0.5), erf_term(x))),
    "gelu, half last": ("gelu", lambda x: f("mul", f("mul", x, erf_term(x)), 0.5)),
    "gelu, half inside": ("gelu", lambda x: f("mul", x, f("mul", 0.5, erf_term(x)))),
    "gelu, over two": ("gelu", lambda x: f("div", f("mul", erf_term(x), x), 2.0)),
    "gelu, product of roots": (
        "gelu",
        lambda x: f("mul", f("mul", f("add", 1.0, Unary("erf", f("mul", x, 0.70710678))), x), 0.5),
    ),
    "gelu, tanh": ("gelu_tanh", lambda x: f("mul", f("mul", x, 0.5), f("add", Unary("tanh", cubic(x)), 1.0))),
    "gelu, tanh of a product": (
        "gelu_tanh",
        lambda x: f(
            "mul",
            0.5,
            f(
                "mul",
                x,
                f(
                    "add",
                    1.0,
                    Unary(
                        "tanh", f("mul", f("mul", 0.7978845608, x), f("add", 1.0, f("mul", f("mul", 0.044715, x), x)))
                    ),
                ),
            ),
        ),
    ),
    "swish": ("swish", lambda x: f("mul", x, Unary("sigmoid", x))),
    "swish, other order": ("swish", lambda x: f("mul", Unary("sigmoid", x), x)),
    "swish, slope": ("swish", lambda x: f("mul", x, Unary("sigmoid", f("mul", x, 1.702)))),
    "swish, as a quotient": ("swish", lambda x: f("div", x, f("add", Unary("exp", Unary("neg", x)), 1.0))),
    "hard_swish": ("hard_swish", lambda x: f("mul", x, Unary("hard_sigmoid", x, (1 / 6, 0.5)))),
    "hard_swish, relu6": (
        "hard_swish",
        lambda x: f("mul", x, f("div", Unary("clip", f("add", x, 3.0), (0.0, 6.0)), 6.0)),
    ),
    "hard_swish, sixth last": (
        "hard_swish",
        lambda x: f("div", f("mul", x, Unary("clip", f("add", x, 3.0), (0.0, 6.0))), 6.0),
    ),
    "hard_sigmoid": ("hard_sigmoid", lambda x: f("mul", Unary("clip", f("add", x, 3.0), (0.0, 6.0)), 1 / 6)),
    "mish": ("mish", lambda x: f("mul", x, Unary("tanh", Unary("softplus", x)))),
    "mish, written out": (
        "mish",
        lambda x: f("mul", x, Unary("tanh", Unary("log", f("add", Unary("exp", x), 1.0)))),
    ),
    "sigmoid": ("sigmoid", lambda x: f("div", 1.0, f("add", 1.0, Unary("exp", Unary("neg", x))))),
    "softplus": ("softplus", lambda x: Unary("log", f("add", Unary("exp", x), 1.0))),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_formulas_get_their_names(name: str) -> None:
    fn, formula = FORMULAS[name]
    for x in (X, conv(X, 4), Binary("add", X, const(*C1))):
        graph = simplified(formula(x), tolerance=1e-7)
        assert kinds(graph)[fn] == 1 and len(kinds(graph)) == len(kinds(simplified(x))) + 1


@pytest.mark.parametrize(
    "formula",
    [
        lambda x: f("mul", f("mul", x, 0.5), f("add", Unary("erf", f("div", x, 1.5)), 1.0)),
        lambda x: f("mul", f("mul", x, 0.4), erf_term(x)),
        lambda x: f("mul", x, f("div", Unary("clip", f("add", x, 3.0), (0.0, 6.5)), 6.0)),
        lambda x: f("mul", x, Unary("sigmoid", f("add", x, 0.1))),
        lambda x: f("mul", Unary("abs", x), Unary("sigmoid", x)),
        lambda x: f("mul", Unary("abs", x), erf_term(x)),
    ],
)
def test_other_formulas_do_not(formula: Callable[[Node], Node]) -> None:
    names = {"gelu", "gelu_tanh", "swish", "hard_swish", "mish"}
    assert not names & set(kinds(simplified(formula(X))))


def mean(x: Node, axes: tuple[int, ...]) -> Node:
    return Reduce("mean", x, axes)


@pytest.mark.parametrize("axes", [(3,), (1,), (1, 2, 3)])
def test_written_out_layer_norm(axes: tuple[int, ...]) -> None:
    centred = f("sub", X, mean(X, axes))
    again = f("sub", X, mean(X, axes))
    variances = [
        mean(f("pow", centred, 2.0), axes),
        mean(f("mul", again, again), axes),
        f("sub", mean(f("mul", X, X), axes), f("pow", mean(X, axes), 2.0)),
    ]
    for variance in variances:
        radicand = f("add", variance, 1e-3)
        for y in (
            f("div", centred, Unary("sqrt", radicand)),
            f("mul", centred, Unary("reciprocal", Unary("sqrt", radicand))),
            f("mul", f("div", 1.0, f("pow", radicand, 0.5)), centred),
            f("mul", centred, f("pow", radicand, -0.5)),
        ):
            graph = simplified(y)
            assert kinds(graph) == {"Normalize": 1}
            assert graph.outputs[0][1].axes == axes  # type: ignore[attr-defined]


def test_what_is_not_a_layer_norm() -> None:
    centred = f("sub", X, mean(X, (3,)))
    for y in (
        f("div", centred, Unary("sqrt", f("add", mean(f("mul", centred, centred), (2,)), 1e-3))),
        f("div", centred, Unary("sqrt", f("add", mean(f("mul", X, X), (3,)), 1e-3))),
        f("div", f("sub", X, mean(X, (2,))), Unary("sqrt", f("add", mean(f("mul", centred, centred), (3,)), 1e-3))),
    ):
        assert "Normalize" not in kinds(simplified(y))
