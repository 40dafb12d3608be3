"""Are the numbers that people read right? Accuracy, timing, gates, single convolutions, peers, tables."""

from __future__ import annotations

import importlib.util
import json
import os
from dataclasses import replace
from pathlib import Path

import handmade
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convc.errors import BadInputError, ConvcError, MissingDependencyError, UnsupportedError, UsageError
from convc.frontend import import_onnx
from convc.ir import Binary, Const, Conv, Input, Node, TensorType, Unary
from convc.peers import PEERS, RUNTIMES, Runner, Runtime, Task, check_installed
from convc.plan.plan import Group, Kernel, Plan
from convc.problem import Problem
from convc.report import peak as peak_module
from convc.report.accuracy import Accuracy, accuracy, worst
from convc.report.apart import Apart, apart, together
from convc.report.gate import Baseline, gate_error, read_baseline, slowdowns
from convc.report.layers import _check, absolute_sum, allowance, check_layers
from convc.report.machine import pick_cpus, pinned
from convc.report.peak import Peak, peak, peak_or_none
from convc.report.profile import _stepping, profile
from convc.report.single import single_convolution, x_shape, y_shape
from convc.report.table import bytes_text, draw, table, us_text
from convc.report.timing import race, rounds_within, timed, timing_of
from convc.runtime.loader import load


def test_accuracy_of_known_errors() -> None:
    reference = np.array([[3.0, 4.0]], np.float32)
    found = accuracy(np.array([[3.0, 4.5]], np.float32), reference)
    assert found == Accuracy(rel_l2=0.1, max_error=0.125, top1=True, equal=False)
    assert found.within(0.125) and not found.within(0.124)
    assert accuracy(reference, reference) == Accuracy(0.0, 0.0, True, True)
    assert accuracy(np.array([[4.0, 3.0]]), reference).top1 is False


@pytest.mark.parametrize(
    ("found", "reference", "fine"),
    [
        ([np.nan, 1], [np.nan, 1], True),
        ([np.inf, 1], [np.inf, 1], True),
        ([np.nan, 1], [0.5, 1], False),
        ([0.5, 1], [np.nan, 1], False),
        ([-np.inf, 1], [np.inf, 1], False),
        ([0.0, 0.0], [0.0, 0.0], True),
        ([0.0, 1e-9], [0.0, 0.0], False),
    ],
)
def test_accuracy_where_numbers_are_not_finite_or_all_zero(
    found: list[float], reference: list[float], fine: bool
) -> None:
    assert accuracy(np.array(found), np.array(reference)).within(1e-3) == fine


def test_half_precision_may_differ_in_its_last_bit() -> None:
    one_step = accuracy(np.array([1.0, 1.0 + 2**-10], np.float16), np.array([1.0, 1.0]))
    assert one_step.within(1e-4, dtype="float16") and not one_step.within(1e-4)


def test_worst_of_several_outputs() -> None:
    good, bad = Accuracy(0.0, 0.0, None, True), Accuracy(0.5, 0.25, False, False)
    assert worst({"a": good, "b": bad}) == Accuracy(0.5, 0.25, False, False)
    assert worst({"a": good}).top1 is None


def test_timing_is_robust_against_one_slow_run() -> None:
    found = timing_of([10.0, 11.0, 12.0, 13.0, 1000.0])
    assert (found.median, found.spread, found.least, found.rounds) == (12.0, 1.0, 10.0, 5)


def test_every_measured_run_follows_one_that_is_not() -> None:
    runs: list[int] = []
    assert timed(lambda: runs.append(0)) >= 0
    assert len(runs) == 2


def test_race_measures_each_once_a_round_in_changing_order() -> None:
    order: list[str] = []

    def measure(name: str, us: float) -> float:
        order.append(name)
        return us

    told: list[tuple[int, int]] = []
    found = race(
        {"a": lambda: measure("a", 1.0), "b": lambda: measure("b", 2.0)},
        rounds=20,
        told=lambda done, total: told.append((done, total)),
    )
    assert {name: timing.median for name, timing in found.items()} == {"a": 1.0, "b": 2.0}
    rounds = [tuple(order[i : i + 2]) for i in range(2, len(order), 2)]
    assert len(rounds) == 20 and set(rounds) == {("a", "b"), ("b", "a")}
    assert told[-1] == (20, 20)


def test_rounds_are_odd_and_bounded() -> None:
    assert [rounds_within(s) for s in (1e-6, 0.5, 100.0)] == [99, 21, 9]


BEFORE = Baseline("m", 1, {"convc": 100.0, "ort": 200.0})


@pytest.mark.parametrize(
    ("before", "now", "slower"),
    [
        ({"convc": 100, "ort": 200}, {"convc": 100, "ort": 200}, 0),
        ({"convc": 100, "ort": 200}, {"convc": 200, "ort": 400}, 0),  # another machine, the same ratio
        ({"convc": 100, "ort": 200}, {"convc": 110, "ort": 200}, 1),
        ({"convc": 100, "ort": 200}, {"convc": 104, "ort": 200}, 0),
        ({"convc": 100, "ort": 200, "torch": 300}, {"convc": 120, "ort": 200, "torch": 300}, 2),
        ({"convc": 100}, {"convc": 104}, 0),
        ({"convc": 100}, {"convc": 106, "ort": 1}, 1),
    ],
)
def test_gate_compares_ratios_where_it_can(before: dict[str, float], now: dict[str, float], slower: int) -> None:
    found = slowdowns(Baseline("m", 1, before), Baseline("m", 1, now), tolerance=0.05, path=Path("b.json"))
    assert len(found) == slower
    error = gate_error(found, tolerance=0.05, path=Path("b.json"))
    assert (error.exit_code if error else 0) == (8 if slower else 0)


def test_gate_says_what_got_slower() -> None:
    now = Baseline("m", 1, {"convc": 125.0, "ort": 200.0})
    found = slowdowns(BEFORE, now, tolerance=0.05, path=Path("b.json"))
    assert found == ("25.0 % slower: x1.600 against ort now, x2.000 before",)


@pytest.mark.parametrize(
    ("now", "words"),
    [
        (Baseline("n", 1, BEFORE.us), "b.json holds times of 'm' on 1 threads, not of 'n' on 1"),
        (Baseline("m", 2, BEFORE.us), "not of 'm' on 2"),
        (Baseline("m", 1, {"convc": 1.0}), "add --vs ort"),
    ],
)
def test_gate_refuses_to_compare_different_things(now: Baseline, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        slowdowns(BEFORE, now, tolerance=0.05, path=Path("b.json"))


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "null", "[" * 100_000, '{"results": []}', '{"subject": "m", "threads": 1, "results": 3}',
        '{"subject": "m", "threads": 1, "results": [{"runtime": "convc", "us": 0}]}',
        '{"subject": "m", "threads": 1, "results": [{"runtime": "convc", "us": "fast"}]}',
        '{"subject": "m", "threads": 1, "results": [{"runtime": "convc", "us": 1e999}]}',
        '{"subject": "m", "threads": 1, "results": [{"runtime": "ort", "us": 1}]}',
    ],
)  # fmt: skip
def test_a_bad_baseline_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "baseline.json"
    path.write_text(text)
    with pytest.raises(BadInputError, match=r"baseline\.json: not what `convc bench --json` prints"):
        read_baseline(path)


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    rank = draw(st.integers(1, 3))

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(rank))

    g, k, s, d, p = draw(st.integers(1, 2)), each(1, 3), each(1, 2), each(1, 2), each(0, 2)
    i = tuple((b - 1) * c + 1 + draw(st.integers(0, 4)) for b, c in zip(k, d, strict=True))
    axes = "dhw"[3 - rank :] if rank > 1 else "w"
    letters = {"i": i, "k": k, "s": s, "d": tuple(v - 1 for v in d), "p": p}
    fields = "".join(f"{name}{axis}{v}" for name, vs in letters.items() for axis, v in zip(axes, vs, strict=True))
    kind = draw(st.sampled_from(["", "transposed_"])) if not any(p) else ""
    return Problem.parse(f"{kind}mb{draw(st.integers(1, 2))}g{g}ic{2 * g}oc{3 * g}{fields}")


@settings(deadline=None, max_examples=40)
@given(problems())
def test_a_problem_becomes_the_model_of_that_problem(problem: Problem) -> None:
    graph = import_onnx(single_convolution(problem))
    ((_, result),) = graph.outputs
    assert graph.inputs[0].shape == x_shape(problem)
    assert result.shape == y_shape(problem)
    assert Problem.of(result) == problem


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("ic4ih5oc4kh3_float64", "only float32"),
        ("ic4ih9oc4oh3kh3", "a convolution of these extents has"),
        ("transposed_ic4ih5oc4oh30kh3", "not one that a transposed convolution"),
    ],
)
def test_a_problem_that_onnx_cannot_say_is_refused(text: str, why: str) -> None:
    with pytest.raises(UnsupportedError, match=why):
        single_convolution(Problem.parse(text))


CONVOLUTIONS = (
    "mb2_ic4ih7oc6kh3ph1",
    "g2_ic4ih9iw8oc6kh3sh2ph1",
    "ic3ih9oc4oh4kh3sh2",
    "ic3iw9oc4kw3dw1pw2",
    "ic3id5ih4iw6oc4kd3ph1",
    "g4_ic4ih7oc4oh4kh3sh2ph1",
    "transposed_ic4ih5oc3kh3sh2ph1oh10",
    "matmul_ic8iw5oc7",
)


def task_of(problem: Problem, folder: Path) -> tuple[Task, np.ndarray]:
    """Of integers, so that every runtime is exact, and the reference."""
    model = folder / "problem.onnx"
    model.write_bytes(single_convolution(problem))
    graph = import_onnx(model)
    (port,), ((name, result),) = graph.inputs, graph.outputs
    x = np.random.default_rng(0).integers(-3, 4, port.shape).astype(np.float32)
    reference = graph.evaluate({port.label: x.astype(np.float64)})[name]
    return Task(folder / "none.convc", model, {port.label: x}, {name: result.type}, 1, problem), reference


@pytest.mark.parametrize("text", CONVOLUTIONS)
@pytest.mark.parametrize("name", PEERS)
def test_every_peer_computes_the_same(name: str, text: str, tmp_path: Path) -> None:
    if not RUNTIMES[name].is_installed:
        pytest.skip(f"{name} is not installed")
    task, reference = task_of(Problem.parse(text), tmp_path)
    runner = RUNTIMES[name].open(task)
    runner.run()
    ((_, found),) = runner.outputs().items()
    assert accuracy(found, reference).within(1e-5), (found, reference)


def test_peers_say_what_they_cannot_run(tmp_path: Path) -> None:
    task = Task(tmp_path, None, {}, {}, 1)
    assert {name: RUNTIMES[name].refuses(task) for name in RUNTIMES} == {
        "convc": None,
        "ort": "needs the model (--model)",
        "openvino": "needs the model (--model)",
        "torch": "runs single convolutions only, no models",
    }


def test_absent_peers_are_named_with_the_line_that_installs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingDependencyError) as caught:
        check_installed(("ort", "openvino", "torch"))
    assert str(caught.value) == (
        "ONNX Runtime, OpenVINO, PyTorch cannot be found; "
        "run `pip install 'convc[bench]'` and `pip install torch`"
    )  # fmt: skip


def test_a_runtime_in_a_process_of_its_own(tmp_path: Path) -> None:
    if not RUNTIMES["ort"].is_installed:
        pytest.skip("ort is not installed")
    task, reference = task_of(Problem.parse(CONVOLUTIONS[0]), tmp_path)
    with apart("ort", task) as child:
        assert child.measure() > 0
        ((_, found),) = child.outputs().items()
        assert accuracy(found, reference).within(1e-5)
        child._process.kill()
        with pytest.raises(ConvcError, match="ort: its process ended"):
            child.measure()
    assert not child._process.is_alive()


def test_a_runtime_that_fails_in_its_process_says_why(tmp_path: Path) -> None:
    with pytest.raises(ConvcError, match=r"convc: .*no\.convc' cannot be read"):
        Apart("convc", Task(tmp_path / "no.convc", None, {}, {}, 2))


def test_foreign_errors_become_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(task: Task) -> Runner:
        raise RuntimeError(f"cannot on {task.threads}")

    fake = Runtime("Fake", "json", "fake", "pip install fake", fail)
    monkeypatch.setitem(RUNTIMES, "fake", fake)  # type: ignore[misc]
    with (
        pytest.raises(ConvcError, match="RuntimeError: cannot on 1"),
        together("fake", Task(tmp_path, None, {}, {}, 1)),
    ):
        pass


def test_peak_is_measured_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def measure(threads: int) -> Peak:
        calls.append(threads)
        return Peak(100.0 * threads, 10.0, threads)

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr(peak_module, "measure", measure)
    assert peak(threads=1) == peak(threads=1) == Peak(100.0, 10.0, 1)
    assert peak(threads=2).gflops == 200.0
    assert calls == [1, 2]
    peak(threads=1, fresh=True)
    assert calls == [1, 2, 1]
    (kept,) = tmp_path.rglob("peak.json")
    assert len(json.loads(kept.read_text())) == 2
    kept.write_text('{"torn')
    assert peak_or_none(threads=1) == Peak(100.0, 10.0, 1)
    assert calls == [1, 2, 1, 1]


def test_the_peak_program_compiles_and_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peak_module, "TRIAD_BYTES", 1 << 20)
    monkeypatch.setattr(peak_module, "TRIES", 1)
    found = peak_module.measure(1)
    assert 0.1 < found.gflops < 10_000 and 0.1 < found.gbytes < 10_000


def test_each_call_is_judged_by_what_it_got() -> None:
    x, _ = handmade.example()
    module = load(handmade.artifact(), threads=1)
    found = list(check_layers(module, handmade.plan(), {"x": x}))
    assert [(check.layer.index, check.accuracy.equal, check.within(0.0)) for check in found] == [
        (0, True, True),
        (1, True, True),
    ]


def test_a_wrong_call_does_not_taint_the_next() -> None:
    x, _ = handmade.example()
    module = load(handmade.artifact(), threads=1)
    found = list(check_layers(module, with_other_factors(handmade.plan()), {"x": x}))
    assert [check.within(1e-3) for check in found] == [False, True]


def with_other_factors(plan: Plan) -> Plan:
    """The plan, with a first call that ought to multiply by something else."""
    first, second = (call.kernel for call in plan.run)
    assert isinstance(first, Kernel) and isinstance(second, Kernel)
    (scaled,), (shifted, z) = first.group.nodes, second.group.nodes
    other = scaled.with_args((scaled.args[0], Const(handmade.weights(2)[0])))
    moved = shifted.with_args((other, shifted.args[1]))
    groups = Group.of([other]), Group.of([moved, z.with_args((moved,))])
    kernels = [replace(kernel, group=group) for kernel, group in zip((first, second), groups, strict=True)]
    run = tuple(replace(call, kernel=kernel) for call, kernel in zip(plan.run, kernels, strict=True))
    return replace(plan, run=run, groups=groups)


def convolution_group() -> tuple[Group, dict[Node, np.ndarray]]:
    """relu(scale * conv(x)) with one output, so that bounds can be told by hand."""
    x, scale = Input("x", TensorType((1, 2, 1))), Input("s", TensorType((1, 1, 1)))
    conv = Conv(x, Const(np.array([[[3.0], [-4.0]]], np.float32)), None, (1,), ((0, 0),), (1,), 1)
    scaled = Binary("mul", conv, scale)
    reads = {x: np.ones((1, 2, 1)), scale: np.full((1, 1, 1), 10.0)}
    return Group.of([conv, scaled, Unary("relu", scaled)]), reads


def test_the_bound_goes_through_the_epilogue() -> None:
    group, reads = convolution_group()
    y = np.array([[[-1.0]]])
    assert float(absolute_sum(group.nodes[0], reads).max()) == 7.0
    # y may be off by 0.1 * 7: below zero before the scale, relu(10 * (-1 + 0.7)) is still 0
    assert float(allowance(group, reads, y, np.zeros((1, 1, 1)), 0.1).max()) == pytest.approx(0, abs=1e-3)
    # by 0.2 * 7: relu(10 * (-1 + 1.4)) = 4
    assert float(allowance(group, reads, y, np.zeros((1, 1, 1)), 0.2).max()) == pytest.approx(4, rel=1e-3)


def test_bound_and_error_are_relative_to_the_same() -> None:
    group, reads = convolution_group()
    scale = group.nodes[1].args[1]
    layer = load(handmade.artifact(), threads=1).layers[0]
    layer = replace(layer, type=TensorType((1, 1, 1), "float32"), error=0.1 * 2**24)
    found = _check(layer, group, {**reads, scale: np.full((1, 1, 1), -10.0)}, np.full((1, 1, 1), 10.5, np.float32))
    # relu(-10 * -1) = 10; y may be off by 0.1 * 7, so the result by 7, which is 0.7 of it
    assert (found.accuracy.max_error, found.bound) == (0.05, pytest.approx(0.7, rel=1e-3))
    assert found.used == pytest.approx(0.5 / 7, rel=1e-3) and found.within(0.1)


def test_profile_counts_every_call() -> None:
    x, z = handmade.example()
    bound = load(handmade.artifact(), threads=1).bind({"x": x})
    found = profile(bound, gflops_peak=100.0, rounds=3)
    assert found.whole.rounds == 3 and len(found.rows) == 2
    assert found.total == pytest.approx(sum(row.us for row in found.rows), abs=0.01)
    assert found.stepping >= 0
    assert sum(row.share for row in found.rows) == pytest.approx(1) == found.generic
    assert (found.relayout, found.overhead) == (0, pytest.approx(1 - found.total / found.whole.median))
    np.testing.assert_array_equal(bound.outputs["z"], z)


@pytest.mark.parametrize(
    ("calls", "whole", "stepping"),
    [((5.0, 7.0), 9.0, 1.5), ((5.0, 7.0), 13.0, 0.0), ((1.0, 20.0), 5.0, 1.0), ((), 1.0, 0.0)],
)
def test_what_stepping_costs_is_taken_off(calls: tuple[float, ...], whole: float, stepping: float) -> None:
    assert _stepping([timing_of([us]) for us in calls], timing_of([whole])) == stepping


def test_pinning_ends() -> None:
    before = os.sched_getaffinity(0)
    with pinned(pick_cpus(1)):
        assert len(os.sched_getaffinity(0)) == 1
    assert os.sched_getaffinity(0) == before
    assert set(pick_cpus(1)) <= set(pick_cpus(10_000)) == before


def test_a_table_is_aligned_and_obeys_no_name() -> None:
    rows = [("conv[red]1[/red]", 1.5, "x"), ("evil\x1b[2J\u202e", 22, "")]
    text = draw(table(("name", ">us", ""), rows))
    assert text == (
        "name                us\n"
        "conv[red]1[/red]   1.5  x\n"
        "evil\\x1b[2J\\u202e   22"
    )  # fmt: skip


def test_numbers_for_people() -> None:
    assert [bytes_text(n) for n in (0, 1023, 1536, 5 << 20, 3 << 30)] == [
        "0 B", "1023 B", "1.5 KiB", "5.0 MiB", "3.00 GiB",
    ]  # fmt: skip
    assert [us_text(t) for t in (0.123, 12.34, 12345.6)] == ["0.12", "12.3", "12346"]
