"""App. C's numbers as printed in the paper, and what hooks count on a tiny teacher."""

import json
from pathlib import Path

import pytest

from tools.figures import cost_model


def test_the_papers_count_is_the_papers() -> None:
    sgmd, dmd2 = cost_model.paper_costs()
    assert (sgmd.forwards, sgmd.short, sgmd.long, sgmd.seconds) == (6.5, 1, 1, 77.5)
    assert (dmd2.forwards, dmd2.short, dmd2.long, dmd2.seconds) == (33, 6, 0, 255)
    (ratio,) = cost_model.ratios([sgmd, dmd2]).values()
    assert ratio == pytest.approx(3.29, abs=0.01)


def test_ours_by_hooks(tiny_teacher: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By hand: 2.5 rollout steps a video, and ten teacher passes fewer than the paper charges."""
    cost_model.main(["--teacher", str(tiny_teacher), "--json"])
    told = json.loads(capsys.readouterr().out)
    sgmd, dmd2 = told["ours"]["costs"]
    assert sgmd["by_role"] == {"student": 2.5, "fake_score": 1, "teacher": 2}
    assert dmd2["by_role"] == {"student": 6 * 2.5, "fake_score": 6, "teacher": 2}
    assert told["paper"]["costs"][1]["forwards"] - dmd2["forwards"] == 10
    assert (sgmd["short"], sgmd["long"], sgmd["seconds"]) == (1, 1, 5.5 * 5 + 15 + 30)
    assert (dmd2["short"], dmd2["long"], dmd2["seconds"]) == (6, 0, 23 * 5 + 6 * 15)
    # Rollout 2.5 and its backward 3; teacher 2; fake score forward, to the inputs, then for both.
    assert sgmd["forward_equivalents"] == 13.5
    assert dmd2["forward_equivalents"] == (2.5 + 3 + 2 + 1) + 5 * (2.5 + 1 + 3)
    assert min(told["ours"]["ratios"].values()) > 2.8


def test_a_method_without_a_job_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cost_model.main(["--methods", "sgdm"])
    assert caught.value.code == 2 and "sprites_sgdm.yaml" in capsys.readouterr().err
