"""What do the models count with? The shipped rates, and those of the user's folder before them."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from convc.errors import BadInputError
from convc.rates import MEASURED, Rates, parse_rates, rates_of, rates_text
from convc.report.rates import keep, measure
from convc.target import parse_target
from convc.tune.lookup import lookup_for


def test_text_round_trips() -> None:
    rows = {"cpu/b": {"clock": 3e9}, "cpu/a": {"room": 30, "step": 0.5}}
    text = rates_text(rows)
    assert parse_rates(text, "here") == rows
    assert text.index("cpu/a") < text.index("cpu/b")


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"cpu/a": 1}', '{"cpu/a": {"speed": 1}}', '{"cpu/a": {"clock": "3"}}', '{"cpu/a": {"clock": -1}}',
     '{"cpu/a": {"clock": NaN}}', '{"cpu/a": {"clock": 1e400}}'],
)  # fmt: skip
def test_what_is_no_file_of_rates_is_refused(text: str) -> None:
    with pytest.raises(BadInputError, match="^here: "):
        parse_rates(text, "here")


def test_the_users_folder_goes_before_what_is_shipped(tmp_path: Path) -> None:
    default = Rates(room=16)
    (tmp_path / "rates.json").write_text(rates_text({"cpu/znver5": {"clock": 1e9}}))
    shipped = rates_of("cpu/znver5", default=default)
    own = rates_of("cpu/znver5", default=default, folder=tmp_path)
    assert own.clock == 1e9 and own.step == shipped.step
    assert rates_of("cpu/none", default=default, folder=tmp_path) == default


def test_lookups_take_the_rates_of_their_folder(tmp_path: Path) -> None:
    target = parse_target("cpu/znver3")
    assert lookup_for(target, tmp_path).target == target
    (tmp_path / "rates.json").write_text(rates_text({"cpu/znver3": {"step": 0.125}}))
    assert lookup_for(target, tmp_path).target.rates.step == 0.125


def test_measures_this_machine_and_keeps_it_beside_others(tmp_path: Path) -> None:
    target = parse_target("native")
    rates = measure(target)
    assert all(0 < getattr(rates, name) < 1e12 for name in MEASURED)
    (tmp_path / "rates.json").write_text(rates_text({"cpu/other": {"clock": 1e9}}))
    keep(rates, target.label, tmp_path)
    assert rates_of("cpu/other", default=Rates(), folder=tmp_path).clock == 1e9
    kept = rates_of(target.label, default=Rates(), folder=tmp_path)
    assert all(getattr(kept, f.name) == getattr(rates, f.name) for f in fields(Rates) if f.name in MEASURED)
