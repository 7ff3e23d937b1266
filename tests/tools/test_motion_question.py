"""The verdict on the question of rare motions, on differences with known answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tools.figures import motion_question
from tools.figures.motion_question import SHARES, difference, t_interval, verdict


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ([0.06, 0.05, 0.07, 0.06, 0.05], "yes"),
        ([0.02, 0.02, 0.021, 0.02, 0.02], "no"),  # above zero, but too small to matter
        ([0.0, 0.01, -0.01, 0.005, 0.0], "no"),
        ([-0.06, -0.05, -0.07, -0.06, -0.05], "reversed"),
        ([0.15, -0.05, 0.1, 0.0, 0.05], "undecided"),
    ],
)
def test_the_rule(differences: list[float], expected: str) -> None:
    assert verdict(differences) == expected


def test_students_interval_by_hand() -> None:
    """Mean 3, standard deviation sqrt(2.5): 2.776 * sqrt(2.5 / 5) = 1.963."""
    assert t_interval([1, 2, 3, 4, 5]) == pytest.approx((3 - 1.9632, 3 + 1.9632), abs=1e-4)


def test_seeds_are_paired() -> None:
    first, second = {seed: 0.3 for seed in range(5)}, {seed: 0.1 * seed for seed in range(5)}
    assert difference(first, second) == pytest.approx([0.3, 0.2, 0.1, 0.0, -0.1])
    with pytest.raises(ValueError, match="both need the same 5"):
        difference(first, {seed: 0.1 for seed in range(4)})


def results(shares: dict[str, float]) -> dict[str, Any]:
    rows = {
        row: {
            "seeds": [0, 1, 2, 3, 4],
            "equal_iterations": {key: {"values": [share] * 5} for key in SHARES},
        }
        for row, share in shares.items()
    }
    return {"rows": rows}


def test_the_report_takes_dmd2_from_the_first_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "equal").mkdir()
    equal = results({"sgmd": 0.30, "dmd2": 0.20})
    (tmp_path / "equal" / "results.json").write_text(json.dumps(equal))
    (tmp_path / "more.json").write_text(json.dumps(results({"sgmd": 0.21})))
    arguments = ["tool", str(tmp_path / "equal"), str(tmp_path / "more.json")]
    monkeypatch.setattr("sys.argv", arguments)
    assert motion_question.main() == 0
    out = capsys.readouterr().out
    first, second = out.split("At equal compute")
    assert "leave out more: yes" in first and "+0.100" in first
    assert "leave out more: no" in second and "+0.010" in second
    monkeypatch.setattr("sys.argv", [*arguments[:2], str(tmp_path / "none.json")])
    with pytest.raises(SystemExit, match="2"):
        motion_question.main()
