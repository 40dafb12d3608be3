"""Are weights that come from memory asked for ahead, all of them and none of the others?"""

from __future__ import annotations

import re

import numpy as np
import pytest
from test_algorithms import convolution, machine

from convc.algorithm import Choice, algorithms
from convc.ir import Const
from convc.lower.build import assembly
from convc.lower.kernel import lower
from convc.plan.plan import Group, Kernel
from convc.problem import Problem


def code(text: str, algorithm: str) -> str:
    """Assembly of the first guess."""
    p, target = Problem.parse(text).canonical, machine("native")
    x, anchor = convolution(p, np.zeros(p.weights, np.float32))
    assert isinstance(anchor.args[1], Const)
    choice = Choice(algorithm, algorithms()[algorithm].space(p, target)[0])
    group = Group((anchor,), (x, anchor.args[1]))
    layouts = (choice.x_layout, choice.x_layout)
    return assembly(lower(Kernel(group, layouts, choice.y_layout, choice), target), "kernel", target)


@pytest.mark.parametrize(
    ("text", "algorithm"),
    [
        ("mb1_ic2048ih7_oc512oh7_kh1", "pointwise"),
        ("mb1_ic512ih14_oc512oh7_kh3sh2ph1", "direct"),
        ("mb1_ic256ih14_oc256oh14_kh3ph1", "winograd"),
    ],
)
def test_large_weights_are_asked_for_ahead(text: str, algorithm: str) -> None:
    assert re.search(r"\bprefetch(t0|t1|t2)?\b|\bprfm\b", code(text, algorithm))


@pytest.mark.parametrize(
    ("text", "algorithm"), [("mb1_ic64ih56_oc64oh56_kh1", "pointwise"), ("mb1_ic64ih56_oc64oh56_kh3ph1", "direct")]
)
def test_weights_that_stay_in_cache_are_not(text: str, algorithm: str) -> None:
    assert "prefetch" not in code(text, algorithm)
