"""Does the shim run what TVM emits for tensor cores, whose layouts others have written, and what convc builds?"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import onnx
import pytest
from cuda_shim import ShimDriver, needs_shim, on_shim
from onnx import TensorProto, helper, numpy_helper

import convc

pytestmark = needs_shim

Array = np.ndarray


def _stack(context: int = 1) -> list[inspect.FrameInfo]:
    """`inspect.stack()` without the source lines, which take it long."""
    rows: list[inspect.FrameInfo] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        rows.append(inspect.FrameInfo(frame, code.co_filename, frame.f_lineno, code.co_name, None, None))
        frame = frame.f_back
    return rows


@pytest.fixture(scope="module")
def tensor_cores() -> Any:
    """TVM's intrinsics of tensor cores: they ask for the stack often enough to take half a minute."""
    patch = pytest.MonkeyPatch()
    patch.setattr(inspect, "stack", _stack)
    from tvm.s_tir.tensor_intrin import cuda

    yield cuda
    patch.undo()


def matmul(a_type: str, c_type: str, n: int = 256, k: int = 128) -> Any:
    """A[n, k] times the transpose of B[n, k]."""
    from tvm import te

    a, b = (te.placeholder((n, k), a_type, name=name) for name in "AB")
    r = te.reduce_axis((0, k), "k")
    c = te.compute((n, n), lambda i, j: te.sum(a[i, r].astype(c_type) * b[j, r].astype(c_type), axis=r), name="C")
    return te.create_prim_func([a, b, c]).with_attr("global_symbol", "main")


def fp16(cuda: Any, *, piped: bool = False) -> Any:
    from tvm.testing.tir import mma_schedule

    def layout(i: Any, j: Any) -> tuple[Any, ...]:
        return (i // 16, j // 16, *cuda.shared_16x16_to_ldmatrix_32x8_layout(i % 16, j % 16))

    loads = ("LDMATRIX_f16_A_DYN_INTRIN", "LDMATRIX_f16_B_TRANS_DYN_INTRIN") if piped else (
        "LDMATRIX_f16_A_INTRIN", "LDMATRIX_f16_B_TRANS_INTRIN"
    )  # fmt: skip
    sch = mma_schedule(
        matmul("float16", "float32"), 16, "float16", True, [None, 2, 2, 4, 1], [None, 2, 2, 1, 4], [4, 2, 1], layout,
        layout, layout, *(getattr(cuda, name) for name in loads), cuda.MMA_f16f16f32_TRANS_B_INTRIN,
        cuda.MMA_fill_16x16_f32_INTRIN, cuda.MMA_store_16x16_f32_global_INTRIN, "shared.dyn" if piped else "shared",
    )  # fmt: skip
    if piped:
        outer = sch.get_loops(sch.get_sblock("A_shared.dyn"))[3]
        sch.annotate(outer, "software_pipeline_stage", [0, 0, 2])
        sch.annotate(outer, "software_pipeline_order", [0, 1, 2])
        sch.annotate(outer, "software_pipeline_async_stages", [0])
    return sch


def int8(cuda: Any) -> Any:
    from tvm.testing.tir import mma_schedule

    def outs(i: Any, j: Any) -> tuple[Any, ...]:
        return (i // 16, j // 16, *cuda.shared_16x16_to_ldmatrix_32x8_layout(i % 16, j % 16))

    def ins(i: Any, j: Any) -> tuple[Any, ...]:
        return (i // 16, j // 32, *cuda.shared_16x32_to_ldmatrix_32x16_layout(i % 16, j % 32))

    return mma_schedule(
        matmul("int8", "int32"), 32, "int8", True, [None, 2, 2, 4, 1], [None, 2, 2, 1, 4], [2, 2, 1], ins, ins, outs,
        cuda.LDMATRIX_i8_A_INTRIN, cuda.LDMATRIX_i8_B_TRANS_INTRIN, cuda.MMA_i8i8i32_TRANS_B_INTRIN,
        cuda.MMA_fill_16x16_i32_INTRIN, cuda.MMA_store_16x16_i32_global_INTRIN,
    )  # fmt: skip


def dp4a(cuda: Any) -> Any:
    import tvm
    from tvm.s_tir import Schedule
    from tvm.s_tir.tensor_intrin.dot_product_common import DP4A_S8S8S32_INTRIN

    sch = Schedule(tvm.IRModule({"main": matmul("int8", "int32", 64, 64)}))
    block = sch.get_sblock("C")
    local = sch.cache_write(block, 0, "local")
    i, j, k = sch.get_loops(block)
    (bi, ti, ii), (bj, tj, jj), (k0, k1, ki) = (
        sch.split(loop, [None, *inner]) for loop, inner in ((i, (16, 2)), (j, (16, 2)), (k, (4, 4)))
    )
    sch.reorder(bi, bj, ti, tj, k0, k1, ii, jj, ki)
    for loop, axis in ((bi, "blockIdx.y"), (bj, "blockIdx.x"), (ti, "threadIdx.y"), (tj, "threadIdx.x")):
        sch.bind(loop, axis)
    sch.reverse_compute_at(local, tj)
    for index in (0, 1):
        shared = sch.cache_read(block, index, "shared")
        sch.compute_at(shared, k0)
        _, ty, tx, _ = sch.split(sch.fuse(*sch.get_loops(shared)[-2:]), [None, 16, 16, 2])
        sch.bind(ty, "threadIdx.y")
        sch.bind(tx, "threadIdx.x")
    sch.decompose_reduction(block, k0)
    sch.tensorize(ki, DP4A_S8S8S32_INTRIN)
    return sch


def emitted(sch: Any, *, copies: bool) -> tuple[str, dict[str, int]]:
    """TVM's text of the one kernel of a schedule, and its extents by TVM's names."""
    import tvm
    import tvm_ffi
    from tvm import tirx

    os.environ["TVM_COMPILE_FORCE_FALLBACK"] = "1"
    target = tvm.target.Target({"kind": "cuda", "arch": "sm_80", "host": {"kind": "llvm"}})
    with tvm.transform.PassContext(config={"tirx.use_async_copy": copies}):
        lower, _, finish = tirx.get_tir_pipeline("s_tir")
        split = tvm.tirx.build.__globals__["split_host_device_mods"]
        host, devices = split(lower(tirx.transform.BindTarget(target)(sch.mod)))
        kernels = {name: f for module in devices.values() for name, f in finish()(module).functions.items()}
        text = tvm.get_global_func("target.build.cuda")(tvm.IRModule(kernels), target).inspect_source("cuda")
    extents: dict[str, int] = {}

    def visit(call: Any) -> None:
        if getattr(call.op, "name", "") == "tirx.call_ffi_kernel":
            names = [str(name) for name in call.attrs.launch_params]
            extents.update(zip(names, (int(e) for e in list(call.args)[-len(names) :]), strict=True))

    for function in host.functions.values():
        tvm_ffi.structural_walk(function.body, (tvm.ir.Call, visit))
    return text, extents


CASES: dict[str, tuple[Callable[[Any], Any], str, tuple[str, ...]]] = {
    "float16": (fp16, "float16", ("mma.sync.aligned.m16n8k16", "ldmatrix")),
    "float16, pipelined": (lambda cuda: fp16(cuda, piped=True), "float16", ("cp.async.cg", "cp.async.wait_group")),
    "int8": (int8, "int8", ("mma.sync.aligned.m16n8k32", "ldmatrix")),
    "int8, dp4a": (dp4a, "int8", ("__dp4a(",)),
}


@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_tvm_s_matrix_products_are_right_and_without_fault(name: str, checked: bool, tensor_cores: Any) -> None:
    schedule, kind, instructions = CASES[name]
    sch = schedule(tensor_cores)
    text, extents = emitted(sch, copies="pipelined" in name)
    assert all(instruction in text for instruction in instructions)
    n, k = (64, 64) if "dp4a" in name else (256, 128)
    a, b = np.random.default_rng(0).integers(-100, 100, (2, n, k)).astype(kind)
    c_type = "float32" if kind == "float16" else "int32"
    c = np.empty((n, n), c_type)
    driver = ShimDriver(checked=checked)
    shared = extents.get("tirx.use_dyn_shared_memory", 0)
    module = driver.load(text.encode())
    pointers = [driver.allocate(each.nbytes) for each in (a, b, c)]
    for pointer, each in zip(pointers, (a, b), strict=False):
        driver.copy_in(pointer, each)
    grid, block = (
        tuple(extents.get(f"{unit}.{axis}", 1) for axis in "xyz") for unit in ("blockIdx", "threadIdx")
    )
    driver.launch(driver.function(module, "main_kernel", shared), grid, block, shared, pointers)
    driver.copy_out(c, pointers[2])
    assert np.array_equal(c, (a.astype(np.int64) @ b.astype(np.int64).T).astype(c_type))


def small_network() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    shapes = {"w": (8, 3, 3, 3), "v": (8, 8, 3, 3), "b": (8,)}
    weights = {name: rng.integers(-4, 5, shape) for name, shape in shapes.items()}
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Conv", ["r", "v", "b"], ["d"], pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["d", "r"], ["s"]),
        helper.make_node("MaxPool", ["s"], ["y"], kernel_shape=[2, 2], strides=[2, 2]),
    ]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in
             (("x", [1, 3, 12, 12]), ("y", [1, 8, 3, 3]))]  # fmt: skip
    consts = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "small", ports[:1], ports[1:], consts)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.mark.parametrize("capability", [(8, 0), (9, 0)])
def test_a_network_compiled_for_a_gpu_runs_on_the_shim(capability: tuple[int, int], tmp_path: Path) -> None:
    model = str(tmp_path / "small.onnx")
    onnx.save(small_network(), model)
    x = np.random.default_rng(1).integers(-4, 5, (1, 3, 12, 12)).astype(np.float32)
    exactly = {"max_rel_err": 1e-9}  # no algorithm that transforms: whole numbers then stay whole
    convc.compile(model, target="native", **exactly).save(tmp_path / "host.convc")
    wanted = convc.load(tmp_path / "host.convc").run({"x": x})["y"]
    with on_shim(capability=capability) as driver:
        artifact = convc.compile(model, target=f"cuda/sm_{capability[0]}{capability[1]}", **exactly)
        artifact.save(tmp_path / "small.convc")
        found = convc.load(tmp_path / "small.convc").run({"x": x})["y"]
        assert driver.launches > 2
    assert np.array_equal(found, wanted)
