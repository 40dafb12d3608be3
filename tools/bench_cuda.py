"""convc on a GPU beside cuDNN, im2col with cuBLAS, and torch: built without a GPU, then measured where one is.

    python tools/bench_cuda.py build OUT_DIR --archs sm_80,sm_90a       # artifacts and a plan file; needs no GPU;
                                                                        # with --only 'twelve/*' into what is there
    python tools/bench_cuda.py run OUT_DIR -o results.json --minutes 8  # needs one, cuda-bindings, and torch for peers
    python tools/bench_cuda.py show results.json                        # the tables again

The twelve layers of the im2win papers, ResNet-50's convolutions at batch 1 and 32 in float32, tf32 and float16, whole
networks, im2win step by step, and Winograd in float16. Each artifact is compared with sums in float64 before it is
timed; a wrong one never is. Times are those of graphs between events, in turns and in random order, each execution
with an x and y that the last level cache has lost; medians and median absolute deviations. Weights do not travel: they
are seeded draws.

`run` works in a process of its own, which is started anew behind a subject that crashed the GPU's context or hung.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from convc.errors import ConvcError

PLAN = "plan.json"
DEAD = 75  # exit code of a process that the GPU takes no more from
FOOTPRINT = 128 << 20  # twice the last level cache of the GPUs up to now, at least


def build(options: argparse.Namespace) -> None:
    from cuda_build import rows
    from cuda_subjects import subjects

    from convc.runtime.features import target_row
    from convc.target import parse_target

    target = f"cuda/{options.archs}"
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    order = subjects(batch=options.batch, quick=options.quick)
    wanted = [s for s in order if fnmatch.fnmatch(s.id, options.only)]
    row, had = target_row(parse_target(target)), {}
    if (folder / PLAN).exists():
        earlier = json.loads((folder / PLAN).read_text())
        had = {r["id"]: r for r in earlier["subjects"]} if earlier["target"] == row else {}
    sizes = {"jobs": options.jobs, "tries": options.tries, "best": options.best}
    for found in rows(wanted, target, folder, told=_told, **sizes):
        had[found["id"]] = found
        ordered = [had[s.id] for s in order if s.id in had]
        _write(folder / PLAN, {"schema": 1, "target": row, "subjects": ordered})
    artifacts = [artifact for found in had.values() for artifact in found["artifacts"]]
    size = sum(artifact["bytes"] for artifact in artifacts) / 2**20
    print(f"{len(artifacts)} artifacts of {len(had)} subjects, {size:.1f} MiB, in {folder}")


def run(options: argparse.Namespace) -> int:
    """The exit code: 7 where an artifact was wrong, DEAD where the GPU takes no more from this process."""
    from convc.runtime.features import open_gpu

    folder: Path = options.folder
    plan = json.loads((folder / PLAN).read_text())
    gpu = open_gpu(plan["target"])
    from cuda_run import Run

    state = Run(
        folder, seconds=options.seconds, footprint=int(options.footprint * 2**20), peers=options.peers,
        timed=not options.check,
    )  # fmt: skip
    results: dict[str, Any] = {
        "schema": 1, "gpu": gpu.name, "capability": list(gpu.capability), "target": plan["target"]["label"],
        "versions": _versions(state.torch), "footprint": state.footprint, "subjects": [], "dropped": [],
    }  # fmt: skip
    if options.resume and options.output.exists():
        results["subjects"] = json.loads(options.output.read_text())["subjects"]
    done = {found["id"] for found in results["subjects"]}
    wanted = [r for r in plan["subjects"] if fnmatch.fnmatch(r["id"], options.only) and r["id"] not in done]
    end = time.monotonic() + 60 * options.minutes
    for row in wanted:
        if time.monotonic() > end:
            results["dropped"].append(row["id"])
            continue
        _write(options.output, results | {"running": row["id"]})
        start = time.monotonic()
        found: dict[str, Any] = {"id": row["id"], "group": row["group"], "contenders": {}}
        try:
            found = state.subject(row) if row["artifacts"] else found
        except (ConvcError, RuntimeError, MemoryError, ValueError) as error:
            found["failed"] = f"{type(error).__name__}: {error}"
        found |= {"refused": row["refused"], "seconds": round(time.monotonic() - start, 1)}
        results["subjects"].append(found)
        _told(_line(found))
        if (found.get("failed") or found.get("wrong")) and not _is_alive(gpu):
            _write(options.output, results)
            return DEAD
    _write(options.output, results)
    show(results)
    return 7 if any(found.get("wrong") or found.get("failed") for found in results["subjects"]) else 0


def _is_alive(gpu: Any) -> bool:
    """Whether it still takes work: a kernel that went wild takes the whole context with it."""
    try:
        gpu.free(gpu.allocate(256))
    except ConvcError:
        return False
    return True


def _write(path: Path, results: dict[str, Any]) -> None:
    """What is there stays there if time runs out."""
    path.write_text(json.dumps(results, indent=1))


def guarded(arguments: Sequence[str], options: argparse.Namespace) -> int:
    """`run` in a process of its own, and in a new one behind each subject that ends it or takes too long."""
    output: Path = options.output
    if not options.resume:
        output.unlink(missing_ok=True)
    end = time.monotonic() + 60 * options.minutes
    while True:
        left = max(0.0, (end - time.monotonic()) / 60)
        command = [sys.executable, __file__, *arguments, "--here", "--resume", "--minutes", f"{left:.3f}"]
        code = _watched(subprocess.Popen(command), output, options.patience)
        results = json.loads(output.read_text()) if output.exists() else {}
        if code != DEAD and "running" not in results:
            return code
        if name := results.pop("running", None):
            why = f"the process ended with {code}" if code else "it took too long"
            group = name.partition("/")[0]
            results["subjects"].append({"id": name, "group": group, "contenders": {}, "failed": why, "refused": {}})
            _write(output, results)


def _watched(child: subprocess.Popen[bytes], output: Path, patience: float) -> int:
    """The child's exit code; 0 where it was ended because nothing new was written for `patience` seconds."""
    start = time.time()
    while True:
        try:
            return child.wait(timeout=1)
        except subprocess.TimeoutExpired:
            last = max(start, output.stat().st_mtime if output.exists() else 0.0)
            if time.time() - last > patience:
                child.kill()
                child.wait()
                return 0


def _versions(torch: Any) -> dict[str, str]:
    from convc import __version__

    found = {"convc": __version__}
    if torch:
        found |= {"torch": torch.__version__, "cuda": torch.version.cuda, "cudnn": str(torch.backends.cudnn.version())}
    return found


def _line(found: dict[str, Any]) -> str:
    if found.get("failed"):
        return f"{found['id']}: {found['failed']}"
    parts = [f"{n} {e['us']:.1f} us" if "us" in e else f"{n} {e.get('wrong') or 'right'}" for n, e in
             found["contenders"].items()]  # fmt: skip
    return f"{found['id']} ({found['seconds']} s): {', '.join(parts) or 'nothing'}"


def show(results: dict[str, Any]) -> None:
    from cuda_tables import tables

    print("\n".join(tables(results)))


def _told(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("build", help="artifacts and a plan file")
    verb.add_argument("folder", type=Path)
    verb.add_argument("--archs", default="sm_80,sm_90a")
    verb.add_argument("--quick", action="store_true", help="as little as shows that the tools work")
    verb.add_argument("--only", default="*", metavar="PATTERN", help="of subjects, as 'twelve/*/f32'")
    verb.add_argument("--batch", type=int, default=64, help="of the twelve layers")
    verb.add_argument("--tries", type=int, default=1, help="configs of each algorithm, best guess first")
    verb.add_argument("--best", type=int, default=2, help="algorithms of each of ResNet-50's layers, by the model")
    verb.add_argument("--jobs", type=int, default=2, help="processes")
    verb = verbs.add_parser("run", help="check and measure; needs a GPU")
    verb.add_argument("folder", type=Path)
    verb.add_argument("-o", "--output", type=Path, required=True)
    verb.add_argument("--only", default="*", metavar="PATTERN")
    verb.add_argument("--minutes", type=float, default=60.0, help="then the rest, the least important, is dropped")
    verb.add_argument("--seconds", type=float, default=1.0, help="of the rounds of a subject")
    verb.add_argument("--footprint", type=float, default=FOOTPRINT / 2**20, help="MiB of x and y that take turns")
    verb.add_argument("--no-peers", dest="peers", action="store_false")
    verb.add_argument("--check", action="store_true", help="check everything, time nothing")
    verb.add_argument("--patience", type=float, default=150.0, help="seconds that a subject may take")
    verb.add_argument("--resume", action="store_true", help="go on where the output ends")
    verb.add_argument("--here", action="store_true", help="in this process")
    verb = verbs.add_parser("show", help="the tables of a result")
    verb.add_argument("results", type=Path)
    return parser.parse_args(arguments)


def main(arguments: Iterable[str]) -> int:
    given = list(arguments)
    options = parsed(given)
    try:
        match options.verb:
            case "build":
                build(options)
            case "run":
                return run(options) if options.here else guarded(given, options)
            case _:
                show(json.loads(options.results.read_text()))
    except ConvcError as error:
        print(f"convc: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
