"""Is a record exactly what its line says, and is nothing else ever taken for one?"""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from dataclasses import fields, replace
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from record_cases import DIRECT, PROBLEM, VALUES, ZNVER3, forged, record, refused, sealed

from convc.algorithm import algorithms
from convc.plan.epilogue import EPILOGUES
from convc.problem import Problem
from convc.tune.record import (
    MAX_LINE,
    MAX_REASON,
    STATUSES,
    Key,
    Record,
    RecordError,
    parse,
    schedule_hash,
    stale,
    unfit,
)

GOLDEN = (
    '{"problem":"g1mb1_ic64ih56iw56_oc64oh56ow56_kh3kw3_sh1sw1_ph1pw1_dh0dw0","epilogue":"short",'
    '"target":"cpu/znver3","threads":2,"algorithm":"direct","config":{"rw":6,"v":2,"xb":8,"yb":8},'
    '"schedule":"0123456789ab","status":"ok","us":812.25,"us_warm":null,"spread":0.01,"peak":0.9,"error":2.5e-07,'
    '"workspace":4096,"reason":"","tvm":"0.27.0.post1","device":"AMD EPYC 7B13",'
    '"date":"2026-11-24T10:30:00+00:00","crc":"670941c8"}'
)


def test_the_text_of_a_record() -> None:
    assert record(schedule="0123456789ab").line == GOLDEN
    assert parse(GOLDEN) == record(schedule="0123456789ab")


def test_importing_records_is_light() -> None:
    line = "import sys, convc.tune.record, convc.tune.journal, convc.tune.log, convc.cli.records; "
    line += "print([m for m in ('tvm', 'numpy', 'rich', 'networkx') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


EXTENTS = st.integers(1, 300)
PROBLEMS = st.builds(
    lambda head, ic, ih, oc, kh, sh, ph, dh, dtype: f"{head}ic{ic}ih{ih}oc{oc}kh{kh}sh{sh}ph{ph}dh{dh}{dtype}",
    *(st.sampled_from(["", "transposed_", "g1mb7_"]), EXTENTS, st.integers(40, 300), EXTENTS),
    *(st.integers(1, 7), st.integers(1, 3), st.integers(0, 3), st.integers(0, 2)),
    st.sampled_from(["", "_float64", "_int32"]),
).map(lambda text: str(Problem.parse(text).canonical))
TIMES = st.floats(0, 1e9, exclude_min=True, exclude_max=True)
NAMES = st.from_regex(r"[a-z0-9_]{1,24}", fullmatch=True)
CONFIGS = st.builds(
    lambda config, xb, yb: {**config, "xb": xb, "yb": yb},
    st.dictionaries(NAMES, st.integers(1 - 2**31, 2**31 - 1), max_size=30),
    *(st.integers(1, 2**31 - 1), st.integers(1, 2**31 - 1)),
)
RECORDS = st.builds(
    lambda values, status, us, error, reason: Record(
        **values, status=status, reason=reason if status == "ok" else reason + ".",
        us=us if status == "ok" else None, error=error if status == "ok" else None,
    ),
    st.fixed_dictionaries({
        "problem": PROBLEMS, "epilogue": st.sampled_from(EPILOGUES), "threads": st.integers(1, 4096),
        "target": st.from_regex(r"[a-z]{2,8}/[A-Za-z0-9_][A-Za-z0-9_.+-]{0,39}", fullmatch=True), "algorithm": NAMES,
        "config": CONFIGS, "schedule": st.from_regex(r"[0-9a-f]{12}", fullmatch=True), "us_warm": st.none() | TIMES,
        "spread": st.floats(0, 1000), "peak": st.none() | st.floats(0, 100), "workspace": st.integers(0, 2**48),
        "tvm": st.from_regex(r"[0-9A-Za-z.+_-]{1,40}", fullmatch=True),
        "device": st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=100),
        "date": st.datetimes().map(lambda when: when.isoformat()) | st.dates().map(lambda day: day.isoformat()),
    }),
    st.sampled_from(STATUSES), TIMES, st.floats(0, 1), st.text(st.characters(), max_size=MAX_REASON + 10),
)  # fmt: skip


@given(RECORDS)
def test_every_record_survives_its_text(found: Record) -> None:
    line = found.line
    assert "\n" not in line and line.isascii() and len(line) < MAX_LINE // 4
    again = parse(line)
    assert again == found and again.line == line and hash(again) == hash(found)
    assert pickle.loads(pickle.dumps(found)) == found


def test_the_key_is_what_competes() -> None:
    assert record().key == Key(PROBLEM, "short", "cpu/znver3", 2, 8, 8)
    others = {"us": 1.0, "algorithm": "im2win", "schedule": "0" * 12, "tvm": "1", "device": "x", "workspace": 0}
    assert {record(**{name: value}).key for name, value in others.items()} == {record().key}
    apart = {"epilogue": "long", "target": "cpu/znver4", "threads": 1, "config": {"xb": 8, "yb": 16}}
    assert len({record(**{name: value}).key for name, value in apart.items()} | {record().key}) == 5


BAD = [
    ("problem", "ic64ih56oc64kh3ph1", "in canonical form g1mb1_ic64"),
    ("problem", PROBLEM.replace("oh56", "oh056"), "in canonical form"),
    ("problem", " " + PROBLEM, "in canonical form"),
    ("problem", PROBLEM + "_float32", "in canonical form"),
    ("problem", PROBLEM.replace("ic64", "ic\u0666\u0664"), "in canonical form"),
    ("problem", "g1mb1_ic64ih7iw7_oc64oh7ow7_kh1kw1_sh1sw1_ph0pw0_dh0dw0", "in canonical form g1mb1_ic64iw49"),
    ("problem", "g2mb1_ic3iw1_oc2ow1_kw1_sw1_pw0_dw0", "must divide"),
    ("problem", "", "is none: "),
    ("problem", "transposed", "is none: "),
    ("problem", f"ic{'9' * 5000}oc1", "longer than 512"),
    ("problem", 1, "not text"),
    ("epilogue", "Short", "none of none, short, residual, long"),
    ("target", "znver3", "not a target's label"),
    ("target", "cpu/../znver3", "not a target's label"),
    ("target", "cpu/znver3\n", "not a target's label"),
    ("threads", 0, "not from 1 to 4096"),
    ("threads", True, "not from 1 to 4096"),
    ("threads", 2.0, "not from 1 to 4096"),
    ("algorithm", "../direct", "not 1 to 24"),
    ("algorithm", "x" * 25, "not 1 to 24"),
    ("config", None, "not up to 32 numbers"),
    ("config", {"xb": 8}, "lacks xb or yb"),
    ("config", {"xb": 8, "yb": 0}, "lacks xb or yb"),
    ("config", {"xb": 8, "yb": 8, "Rw": 1}, "has the name 'Rw'"),
    ("config", {"xb": 8, "yb": 8, "": 1}, "has the name ''"),
    ("config", {"xb": 8, "yb": 8, "r": 2**31}, "below 2^31"),
    ("config", {"xb": 8, "yb": 8, "r": -(2**31)}, "below 2^31"),
    ("config", {"xb": 8, "yb": 8, "r": True}, "below 2^31"),
    ("config", {"xb": 8, "yb": 8, "r": [1]}, "below 2^31"),
    ("config", {"xb": 8, "yb": 8, **{f"n{i}": i for i in range(31)}}, "not up to 32 numbers"),
    ("schedule", "0123456789AB", "not 12 hex digits"),
    ("status", "fine", "none of ok, wrong"),
    ("us", 0, "not from 0 to 1e+09 without the ends"),
    ("us", -1.0, "not from 0 to 1e+09"),
    ("us", 1e9, "not from 0 to 1e+09"),
    ("us", float("nan"), "not from 0 to 1e+09"),
    ("us", float("inf"), "not from 0 to 1e+09"),
    ("us", True, "not from 0 to 1e+09"),
    ("us", "1", "not from 0 to 1e+09"),
    ("us", None, "status is ok, and us null"),
    ("us_warm", 0.0, "not from 0 to 1e+09"),
    ("spread", None, "status is ok, and spread null"),
    ("spread", -0.1, "not from 0 to 1000"),
    ("peak", 10**400, "not from 0 to 100"),
    ("error", None, "status is ok, and error null"),
    ("error", 1.5, "not from 0 to 1"),
    ("status", "wrong", "status is wrong, and us or error not null"),
    ("workspace", -1, "not from 0 to"),
    ("workspace", 0.5, "not from 0 to"),
    ("reason", None, "not text"),
    ("tvm", "", "not a version"),
    ("device", "a\tb", "printable"),
    ("date", "yesterday", "not ISO 8601"),
    ("date", 20261124, "not ISO 8601"),
]


@pytest.mark.parametrize(("name", "value", "words"), BAD, ids=lambda v: ascii(v)[:30])
def test_values_that_make_no_record(name: str, value: Any, words: str) -> None:
    with pytest.raises(RecordError, match="^no record: ") as made:
        record(**{name: value})
    with pytest.raises(RecordError, match="^no record: ") as read:
        parse(forged(record().line, **{name: value}))
    for caught in (made, read):
        assert words in str(caught.value) and len(str(caught.value)) < 500


def test_refused_ones_say_why_and_claim_no_time() -> None:
    with pytest.raises(RecordError, match="status is crash, and reason empty"):
        refused("crash", reason="")
    for name in ("us", "error"):
        with pytest.raises(RecordError, match="us or error not null"):
            refused("crash", **{name: 0.5})


def test_a_long_reason_is_cut() -> None:
    found = refused("build", reason="\u2603" * 100_000 + "\udc80")
    assert found.reason == "\u2603" * MAX_REASON and parse(found.line) == found
    assert refused("build", reason="no \udc80").reason == "no \\udc80"


LINE = record().line
BODY = LINE[: LINE.index(',"crc"')] + "}"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", "does not end in a crc"),
        ("{}", "does not end in a crc"),
        (LINE[:-1], "does not end in a crc"),
        (LINE + "\n", "does not end in a crc"),
        (" " + LINE, "damaged or was edited"),
        (LINE.replace("812.25", "12.25"), "damaged or was edited"),
        (LINE.replace("znver3", "znver4"), "damaged or was edited"),
        (LINE.replace("oc64", "oc65"), "damaged or was edited"),
        (LINE.replace(DIRECT, "0123456789ab"), "damaged or was edited"),
        (LINE.replace("EPYC", "\u0415PYC"), "damaged or was edited"),
        ("x" * (MAX_LINE + 1 - len(LINE)) + LINE, "longer than 65536 bytes"),
        (sealed("[]}"), "not JSON"),
        (sealed('"text}'), "not JSON"),
        (sealed("[" * 60_000 + "}"), "not JSON"),
        (sealed('{"us":' + "9" * 5000 + "}"), "not JSON"),
        (sealed("{}"), "lacks problem, epilogue"),
        (sealed(BODY.replace('"us":', '"us":1.5,"us":')), "the same key twice"),
        (sealed(BODY.replace('"v":2', '"v":2,"v":2')), "the same key twice"),
        (forged(LINE, more=1), "unknown key 'more'"),
        (forged(LINE, **{"__class__": "os.system"}), "unknown key '__class__'"),
        (sealed(BODY.replace('"us_warm":null,', "")), "lacks us_warm"),
        (sealed(BODY.replace(',"', ', "')), "convc writes these values as another line"),
        (sealed(BODY.replace("812.25", "812.250")), "convc writes these values as another line"),
        (sealed(BODY.replace("812.25", "812")), "convc writes these values as another line"),
        (sealed(BODY.replace('"rw":6,"v":2', '"v":2,"rw":6')), "convc writes these values as another line"),
        (sealed(BODY.replace("EPYC", "\\u0045PYC")), "convc writes these values as another line"),
        (forged(LINE, us=float("nan")), "not from 0 to 1e+09"),
    ],
    ids=range(27),
)
def test_lines_that_are_no_record(line: str, words: str) -> None:
    with pytest.raises(RecordError, match="^no record: ") as caught:
        parse(line)
    assert words in str(caught.value)


def mutated(line: str, random: Random) -> str:
    """`line` after one to three edits, as damage, a careless person or a fuzzer makes them."""
    for _ in range(random.choice((1, 1, 2, 3))):
        at, to = sorted(random.randrange(len(line) + 1) for _ in range(2))
        to = min(to, at + random.choice((1, 1, 2, 8, 1000)))
        what = random.randrange(6)
        if what == 0:
            line = line[:at] + chr(random.randrange(256)) + line[at + 1 :]
        elif what == 1:
            line = line[:at] + line[to:]
        elif what == 2:
            line = line[:to] + line[at:]
        elif what == 3:
            token = random.choice(("null", "NaN", "-1", "1e999", "9" * 30, '"', "{", "[[", "true", "\\ud800", ",", "0"))
            line = line[:at] + token + line[to:]
        elif what == 4 and (digits := [i for i, c in enumerate(line) if c.isdigit()]):
            at = random.choice(digits)
            line = line[:at] + str(random.randrange(10)) + line[at + 1 :]
        else:
            names = [f'"{f.name}"' for f in fields(Record)]
            line = line.replace(random.choice(names), random.choice(names))
    return line


def test_ten_thousand_damaged_lines() -> None:
    """Nothing but RecordError, and no changed record under the old crc."""
    random, lines = Random(0), [record().line, refused("crash").line, record(us=3.0, reason="x1.2 of direct").line]
    for _ in range(10_000):
        line = random.choice(lines)
        damaged = mutated(line, random)
        try:
            assert parse(damaged).line == damaged == line
        except RecordError as error:
            assert damaged != line, error


def test_ten_thousand_forged_lines() -> None:
    """With a crc that fits: nothing but RecordError, and what is taken is what the line says."""
    random, taken = Random(1), 0
    for _ in range(10_000):
        forgery = sealed(mutated(BODY, random))
        try:
            found = parse(forgery)
        except RecordError:
            continue
        taken += 1
        assert found.line == forgery
        assert json.loads(forgery) == {**vars(found), "crc": forgery[-10:-2]}
    assert taken > 100, "the edits are too wild to test anything"


def test_hashes_of_the_library() -> None:
    hashes = {name: schedule_hash(algorithm) for name, algorithm in algorithms().items()}
    assert len(set(hashes.values())) == len(hashes)
    line = "from convc.algorithm import algorithms; from convc.tune.record import schedule_hash; import json; "
    line += "print(json.dumps({name: schedule_hash(found) for name, found in algorithms().items()}))"
    done = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, check=True, cwd="/")
    assert json.loads(done.stdout) == hashes, "the same in every process"


def offered(problem: str) -> dict[str, int]:
    return dict(algorithms()["direct"].space(Problem.parse(problem), ZNVER3)[0])


def test_stale_and_unfit() -> None:
    good = record(config=offered(PROBLEM))
    assert stale(good) is None and unfit(good, ZNVER3) is None
    for bad, words in (
        (replace(good, algorithm="no_such"), "algorithm no_such is not installed"),
        (replace(good, schedule="0" * 12), f"algorithm direct was 000000000000 when it was measured and is {DIRECT}"),
        (replace(good, algorithm="im2win"), "algorithm im2win was"),
    ):
        assert words in (stale(bad) or "") and unfit(bad, ZNVER3) == stale(bad)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"problem": PROBLEM.replace("56", "7")}, "is not in the algorithm's space"),
        ({"problem": "matmul_" + str(Problem.parse("ic64iw49oc64"))}, "the problem is matmul"),
        ({"target": "cpu/znver4"}, "it is of cpu/znver4 with 2 threads"),
        ({"threads": 64}, "it is of cpu/znver3 with 64 threads"),
        ({"schedule": "0123456789ab"}, "was 0123456789ab when it was measured"),
        ({"algorithm": "pointwise"}, "algorithm pointwise was"),
        ({"algorithm": "pointwise", "schedule": schedule_hash(algorithms()["pointwise"])}, "taps"),
        ({"config": {"rw": 1_000_000, "xb": 8, "yb": 8}}, "is not in the algorithm's space"),
        ({"config": {"xb": 8, "yb": 8}}, "is not in the algorithm's space"),
        ({"status": "wrong", "us": None, "error": None, "reason": "0.5 off"}, "it is wrong: 0.5 off"),
    ],
)  # fmt: skip
def test_what_a_forger_wrote_is_a_record_and_is_not_applied(changes: dict[str, Any], words: str) -> None:
    found = parse(forged(record(config=offered(PROBLEM)).line, **changes))
    assert words in (unfit(found, ZNVER3) or "")


def test_every_value_is_in_the_text() -> None:
    assert [f.name for f in fields(Record)] == list(VALUES) == [*json.loads(LINE)][:-1]
