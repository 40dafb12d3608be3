"""The subjects of a plan file on this machine's GPU: first right, then fast."""

from __future__ import annotations

import gc
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from cuda_check import DISTINCT, Verdict, images, judge, judge_network, sample, weight_of
from cuda_networks import NETWORKS, Array
from cuda_peers import Peer, convolutions, networks, sampled, torch_or_none
from cuda_slim import Draws, open_slim
from cuda_time import Buffers, Contender, Loaded, sets_for, take_turns, timings

from convc.errors import ConvcError
from convc.ir import TensorType
from convc.problem import Problem

Row = dict[str, Any]
PEERLESS = ("ablation", "points")  # groups that convc has for itself
IM2COL = ("twelve", "four")  # groups that this peer is for


@dataclass
class Run:
    """`folder` holds the slim files; `seconds` is what the rounds of a subject take; `footprint` bytes of x and y take
    turns. `known` are the outputs of networks by name, of each image, once they were found right."""

    folder: Path
    seconds: float
    footprint: int
    peers: bool = True
    timed: bool = True
    known: dict[str, Array] = field(default_factory=dict)

    @property
    def torch(self) -> Any:
        return torch_or_none() if self.peers and self.timed else None

    def subject(self, row: Row) -> Row:
        """What was found of it, with everything that it took given back."""
        draws = Draws()
        found = (self._layer if row["kind"] == "layer" else self._network)(row, draws)
        gc.collect()
        if torch := self.torch:
            torch.cuda.empty_cache()
        return found

    def _layer(self, row: Row, draws: Draws) -> Row:
        p = Problem.parse(row["problem"])
        x, w = images((p.mb, p.ic, *p.i), p.dtype), draws[weight_of(row["weight"])].astype(p.dtype)
        wanted = sample(p, x, w)
        y_shape = (p.mb, p.oc, *p.o)
        y_bytes = math.prod(y_shape) * x.itemsize
        sets = sets_for(p.mb * x[0].nbytes + y_bytes, self.footprint)
        entries: dict[str, Row] = {}
        contenders: list[Contender] = []
        buffers: Buffers | None = None
        for made in row["artifacts"]:
            entry = entries[made["label"]] = _of_convc(made)
            try:
                loaded = Loaded(open_slim(self.folder / made["file"], draws))
                if buffers is None:
                    buffers = Buffers(loaded.driver, loaded.stream)
                    buffers.fill(x, p.mb, y_bytes, sets)
                buffers.spoil(y_shape, p.dtype)
                loaded.bind([buffers.x[0].value], [buffers.y[0].value])
                found = buffers.sampled(wanted, y_shape, p.dtype)
                verdict = judge(found, wanted, row["dtype"], p.dtype, mixes=made["mixes"], bound=made["bound"])
                entry |= verdict.row
                if verdict.reason is None and self.timed:
                    entry |= _prepared(loaded, made["label"], buffers, contenders)
            except ConvcError as error:
                entry["wrong"] = f"{type(error).__name__}: {error}"
        if self.torch and row["group"] not in PEERLESS:
            peers = convolutions(self.torch, p, row["dtype"], x, w, sets, im2col=row["group"] in IM2COL)

            def judged(peer: Peer) -> Verdict:
                return judge(sampled(peer.y, wanted), wanted, peer.dtype, p.dtype, mixes=True, bound=None)

            self._add_peers(peers, judged, entries, contenders)
        return self._timed(row, p.flops, entries, contenders) | {"sets": sets}

    def _network(self, row: Row, draws: Draws) -> Row:
        (made,), batch, name = row["artifacts"], row["batch"], row["name"]
        entries = {made["label"]: _of_convc(made)}
        contenders: list[Contender] = []
        loaded = Loaded(open_slim(self.folder / made["file"], draws))
        x = images((batch, *NETWORKS[name][1]), "float32")
        (port,) = loaded.artifact.outputs
        buffers = Buffers(loaded.driver, loaded.stream)
        buffers.fill(x, batch, port.type.bytes, 1)
        buffers.spoil(port.type.shape, port.type.dtype)
        loaded.bind([buffers.x[0].value], [buffers.y[0].value])
        verdict = self._judged(row, buffers.first(port.type.shape, port.type.dtype))
        entry = entries[made["label"]]
        entry |= verdict.row
        if verdict.reason is None and batch == 1 and row["dtype"] == "f32":
            self.known[name] = _one_by_one(loaded, buffers, images((DISTINCT, *x.shape[1:]), "float32"), port.type)
        if verdict.reason is None and self.timed:
            entry |= _prepared(loaded, made["label"], buffers, contenders, whole=True)
        if self.torch:
            peers = networks(self.torch, name, batch, row["dtype"], x)

            def judged(peer: Peer) -> Verdict:
                return self._judged(row | {"dtype": peer.dtype}, peer.y.float().cpu().numpy())

            self._add_peers(peers, judged, entries, contenders)
        flops = sum(layer.flops for layer in loaded.artifact.layers)
        return self._timed(row, flops, entries, contenders) | {"sets": 1}

    def _judged(self, row: Row, y: Array) -> Verdict:
        """The first image beside float64, and all beside what the network of one image in float32 gives for each."""
        dtype, golden, known = row["dtype"], np.array(row["golden"], np.float64), self.known.get(row["name"])
        verdicts = [judge_network(y[0].reshape(-1), golden, dtype)] if golden.size else []
        if known is not None:
            verdicts.append(judge_network(y, known[np.arange(len(y)) % len(known)], dtype))
        worst = max(verdicts, key=lambda v: (v.reason is not None, v.error), default=None)
        return worst or Verdict(math.nan, "there is nothing to compare it with")

    def _add_peers(
        self, peers: Iterable[Callable[[], Peer]], judged: Callable[[Peer], Verdict], entries: dict[str, Row],
        contenders: list[Contender],
    ) -> None:  # fmt: skip
        for make in _as_far(peers):
            try:
                peer = make()
                verdict = judged(peer)
            except Exception as error:  # out of memory, or no graph of it; convc's own figures do not depend on it
                entries[f"peer {len(entries)}"] = {"kind": "peer", "wrong": _first_line(error)}
                continue
            name = peer.contender.name
            entries[name] = {"kind": "peer", "dtype": peer.dtype, "extra_bytes": peer.extra, **verdict.row}
            contenders.append(peer.contender)

    def _timed(self, row: Row, flops: int, entries: dict[str, Row], contenders: list[Contender]) -> Row:
        if self.timed and contenders:
            for name, timing in timings(take_turns(contenders, self.seconds), flops).items():
                entries[name] |= timing
        summary = {key: row[key] for key in ("id", "group", "kind", "dtype", "problem", "name", "batch") if key in row}
        return summary | {"flops": flops, "contenders": entries, **compared(row["dtype"], entries)}


def _one_by_one(loaded: Loaded, buffers: Buffers, each: Array, type_: TensorType) -> Array:
    """What a network of one image gives for each of several; the first one is there again afterwards."""
    found = []
    for image in (*each[1:], each[0]):
        buffers.set_first(image)
        loaded.again()
        found.append(buffers.first(type_.shape, type_.dtype).astype(np.float64))
    return np.concatenate([found[-1], *found[:-1]])


def _as_far(peers: Iterable[Callable[[], Peer]]) -> Iterator[Callable[[], Peer]]:
    """As many as there are before something fails that all share."""
    try:
        yield from peers
    except Exception as error:
        print(f"no more peers: {_first_line(error)}", file=sys.stderr)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]


def _of_convc(made: Mapping[str, Any]) -> Row:
    kept = ("algorithm", "config", "predicted_us", "limit", "usage")
    return {"kind": "convc", "error": None, "wrong": None, **{key: made[key] for key in kept if key in made}}


def _prepared(
    loaded: Loaded, label: str, buffers: Buffers, contenders: list[Contender], *, whole: bool = False
) -> Row:
    """Its graph among the contenders, over all sets; what it takes beside x, w and y."""
    for x, y in zip(buffers.x[1:], buffers.y[1:], strict=True):
        loaded.bind([x.value], [y.value])
    contenders.append(loaded.contender(label, loaded.steps if whole else loaded.core))
    program = loaded.artifact.program
    extra = program.workspace if whole else loaded.extra
    whole_us = None if whole else _number(loaded.whole_us())
    return {"extra_bytes": extra, "packed_bytes": program.packed, "whole_us": whole_us}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def compared(dtype: str, entries: Mapping[str, Row]) -> Row:
    """The best of convc's and of the peers that compute in the same type; ratios above 1 mean that convc is faster."""

    def best(kind: str) -> str | None:
        timed = {name: entry for name, entry in entries.items() if entry["kind"] == kind and "us" in entry}
        same = [name for name, entry in timed.items() if entry.get("dtype", dtype) == dtype]
        return min(same, key=lambda name: timed[name]["us"], default=None)

    ours, peer = best("convc"), best("peer")
    ratio = entries[peer]["us"] / entries[ours]["us"] if ours and peer else None
    wrong = {n: e["wrong"] for n, e in entries.items() if e["kind"] == "convc" and e.get("wrong")}
    return {"best": ours, "best_peer": peer, "ratio": ratio, "wrong": wrong}
