"""torch as a peer of tools/bench_cuda.py: cuDNN's convolutions, im2col with cuBLAS, and whole networks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from cuda_check import Sample
from cuda_networks import NETWORKS, Array, Torch
from cuda_time import Contender

from convc.problem import Problem

WARM = 3  # executions before a graph is captured: cudnn.benchmark tries its algorithms in the first
DTYPES = {"f32": "float32", "tf32": "float32", "f16": "float16"}


@dataclass
class Peer:
    """`dtype` is what it computes in; `extra` bytes that an execution takes beside x, w and y; `y` its result."""

    contender: Contender
    dtype: str
    extra: int
    y: Any


def torch_or_none() -> Any:
    try:
        import torch
    except ImportError:
        return None
    return torch if torch.cuda.is_available() else None


@contextlib.contextmanager
def computing(torch: Any, dtype: str) -> Iterator[None]:
    """What cuDNN and cuBLAS may round. Graphs keep it from when they are captured."""
    backends = torch.backends
    backends.cudnn.benchmark = True
    backends.cudnn.allow_tf32 = backends.cuda.matmul.allow_tf32 = dtype == "tf32"
    with torch.inference_mode():
        yield


def graphed(torch: Any, name: str, calls: Sequence[Callable[[], Any]], dtype: str) -> Peer:
    """All calls, one after the other, in a graph; each has its own result."""
    stream = torch.cuda.Stream()
    with computing(torch, dtype):
        with torch.cuda.stream(stream):
            calls[0]()
            torch.cuda.synchronize()
            extra = _extra(torch, calls[0])
            for call in (*calls, *calls[:1] * WARM):
                call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = [call() for call in calls]
        graph.replay()
        torch.cuda.synchronize()
    contender = _contender(torch, name, graph.replay, len(calls), keep=(graph, results, calls))
    return Peer(contender, dtype, extra, results[0])


def eager(torch: Any, name: str, call: Callable[[], Any], dtype: str) -> Peer:
    """As most programs run it: call by call."""

    def run() -> None:
        with computing(torch, dtype):
            call()

    with computing(torch, dtype):
        for _ in range(WARM):
            y = call()
        torch.cuda.synchronize()
        extra = _extra(torch, call)
    return Peer(_contender(torch, name, run, 1, keep=call), dtype, extra, y)


def _extra(torch: Any, call: Callable[[], Any]) -> int:
    """Most bytes that torch had at once in a call, without the result."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    result = call()
    torch.cuda.synchronize()
    return int(torch.cuda.max_memory_allocated() - before - result.nbytes)


def _contender(torch: Any, name: str, run: Callable[[], object], count: int, keep: Any) -> Contender:
    def mark() -> Any:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def elapsed(first: Any, last: Any) -> float:
        last.synchronize()
        return float(first.elapsed_time(last)) * 1e3

    def started(kept: Any = keep) -> object:
        return run()

    return Contender(name, started, count, mark, elapsed)


def convolutions(
    torch: Any, p: Problem, dtype: str, x: Array, w: Array, sets: int, *, im2col: bool
) -> Iterator[Callable[[], Peer]]:
    """The peers of a layer, not yet run: in both of torch's layouts, in tf32 too where float32 is asked for."""
    distinct = torch.from_numpy(x).cuda()
    images = distinct[torch.arange(p.mb, device="cuda") % len(distinct)]
    weights = torch.from_numpy(np.ascontiguousarray(w)).cuda()
    kinds = ("f32", "tf32") if dtype == "f32" else (dtype,)
    f = torch.nn.functional

    def conv(x: Any, w: Any) -> Callable[[], Any]:
        return lambda: f.conv2d(x, w, None, p.s, p.p, p.d, p.g)

    for last in (False, True):
        form = torch.channels_last if last else torch.contiguous_format
        for kind in kinds:
            name = f"cuDNN {kind}{' channels_last' if last else ''}"

            def made(form: Any = form, kind: str = kind, name: str = name) -> Peer:
                shaped = weights.contiguous(memory_format=form)
                # clone keeps the strides of a dense tensor, so each set is in the layout that is asked for
                calls = [conv(images.contiguous(memory_format=form).clone(), shaped) for _ in range(sets)]
                return graphed(torch, name, calls, kind)

            yield made
    if im2col and dtype == "f32":
        yield lambda: graphed(torch, "im2col + cuBLAS", [_im2col(torch, p, images, weights)], "f32")


def _im2col(torch: Any, p: Problem, x: Any, w: Any) -> Callable[[], Any]:
    matrix = w.reshape(p.oc, -1)

    def run() -> Any:
        columns = torch.nn.functional.unfold(x, p.k, dilation=p.d, padding=p.p, stride=p.s)
        return torch.matmul(matrix, columns).view(p.mb, p.oc, *p.o)

    return run


def sampled(y: Any, wanted: Sample) -> Array:
    """The sampled elements of a peer's result."""
    found = [y[n].float().contiguous().cpu().numpy() for n in wanted.images]
    at = {n: i for i, n in enumerate(wanted.images)}
    return np.array([found[at[int(n)]][tuple(rest)] for n, *rest in wanted.places])


def networks(torch: Any, name: str, batch: int, dtype: str, x: Array) -> Iterator[Callable[[], Peer]]:
    """Eager and as a graph, in both layouts; in tf32 too where float32 is asked for, as a graph."""
    define, _ = NETWORKS[name]
    stored = getattr(torch, DTYPES[dtype])
    images = torch.from_numpy(np.ascontiguousarray(x[np.arange(batch) % len(x)])).cuda().to(stored)

    def call(last: bool) -> Callable[[], Any]:
        form = torch.channels_last if last else torch.contiguous_format
        net, shaped = Torch(torch, dtype=stored, channels_last=last), images.contiguous(memory_format=form)
        return lambda: define(net, shaped)

    for last in (True, False):
        suffix = " channels_last" if last else ""
        yield lambda last=last, s=suffix: graphed(torch, f"torch {dtype} graph{s}", [call(last)], dtype)
        yield lambda last=last, s=suffix: eager(torch, f"torch {dtype} eager{s}", call(last), dtype)
        if dtype == "f32":
            yield lambda last=last, s=suffix: graphed(torch, f"torch tf32 graph{s}", [call(last)], "tf32")
