"""When are two kernels the same, and how does a plan read?"""

from __future__ import annotations

import dataclasses

import numpy as np
from plan_cases import TARGET, add, conv, fake, graph_of, image, integers, library, relu

from convc.algorithm import Choice
from convc.ir import Binary, Const, Node, Reduce, Unary
from convc.layout import PLAIN, Layout
from convc.plan import kernel_text, partition, place, select, show
from convc.plan.plan import Group, Kernel, Packing
from convc.problem import Problem


def kernel_of(*nodes: Node, layout: Layout = PLAIN) -> Kernel:
    group = Group.of(nodes)
    return Kernel(group, (layout,) * len(group.reads), layout)


def test_kernels_are_the_same_where_code_is_and_differ_where_it_differs() -> None:
    def text(seed: int = 0, *, origin: str = "n", slope: float = 0.1, layout: Layout = PLAIN, plus: float = 1.0) -> str:
        x = dataclasses.replace(conv(image(1, 8, 4, 4, label=origin), 8, bias=False, seed=seed), origin=(origin,))
        y = Unary("leaky_relu", x, (slope,))
        return kernel_text(kernel_of(x, y, add(y, Const(np.array(plus, np.float32))), layout=layout))

    assert text() == text(seed=5, origin="other")
    nearest = float(np.nextafter(np.float32(1), np.float32(2)))
    assert len({text(), text(slope=float(np.nextafter(0.1, 1))), text(layout=Layout(8)), text(plus=nearest)}) == 4


def test_writing_in_place_is_other_code() -> None:
    kernel = kernel_of(relu(image(1, 8, 4, 4)))
    assert kernel_text(kernel) != kernel_text(dataclasses.replace(kernel, in_place=0))


def test_the_text_of_a_kernel() -> None:
    x = image(1, 8, 4, 4, label="any name; even \n this")
    total = add(x, image(1, 8, 1, 1, label="b"))
    clipped = Unary("clip", Binary("mul", total, Const(np.array(0.5, np.float32))), (0.0, 6.0))
    assert kernel_text(kernel_of(total, clipped.x, clipped)) == (
        "%0 = read float32[1x8x4x4] plain\n"
        "%1 = read float32[1x8x1x1] plain\n"
        "%2 = Binary(fn=add, a=%0, b=%1) -> float32[1x8x4x4]\n"
        "%3 = Binary(fn=mul, a=%2, b=float32[]=0x1.0000000000000p-1) -> float32[1x8x4x4]\n"
        "%4 = Unary(fn=clip, x=%3, params=(0x0.0p+0 0x1.8000000000000p+2)) -> float32[1x8x4x4]\n"
        "result plain choice None\n"
    )


def test_packings_differ_by_type_and_form_and_not_by_value() -> None:
    a, b, c = Const(integers(0, 8, 8)), Const(integers(1, 8, 8)), Const(integers(1, 8, 4))
    problem, choice = Problem.parse("mb1_ic8ih4_oc8oh4"), Choice("fake", {"xb": 1, "yb": 8})
    assert kernel_text(Packing(a, problem, choice)) == kernel_text(Packing(b, problem, choice))
    packings = (Packing(a, problem, choice), Packing(c, problem, choice), Packing(a, layout=Layout(8)))
    assert len({kernel_text(packing) for packing in packings}) == 3


def test_show_has_a_line_for_every_group_and_call() -> None:
    graph = graph_of(Reduce("max", relu(conv(image(1, 8, 4, 4), 8)), (2, 3)))
    plan = partition(graph)
    assert show(plan).splitlines()[2:] == [
        "%0: float32[1x8x4x4] = conv+add+relu [g1mb1_ic8iw16_oc8ow16_kw1_sw1_pw0_dw0] of in0, float32[8x8x1x1], "
        "float32[1x8x1x1]",
        "%1: float32[1x8x1x1] = max of %0",
    ]
    with library(fake(blocks=(1,))):
        ready = place(select(plan, TARGET, max_rel_err=1.0))
    lines = show(ready).splitlines()
    assert [line.split()[0] for line in lines] == ["input", "output", "weights", "init", "run", "run"]
    assert "fake(xb=1,yb=1)" in lines[-2]
    assert lines[-1].startswith("run  output0: float32[1x8x1x1] plain = max of arena+0")
