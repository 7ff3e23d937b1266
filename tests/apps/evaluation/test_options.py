"""Options and metrics that are refused, and what is computed by default."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lightx2v_sgmd.apps.evaluation.options import METRICS, OUTSIDE, EvaluateOptions, chosen_metrics
from lightx2v_sgmd.system.errors import UserError


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"metrics": ("optflw",)}, "did you mean optflow"),
        ({"metrics": ("xyzzy",)}, "use optflow, dyndeg"),
        ({"seeds": 0}, "--seeds"),
        ({"steps": 10**12}, "--steps: 1000000000000 is more than 1000; use fewer"),
        ({"guidance_scale": 0.5}, "--guidance-scale: 0.5"),
        ({"guidance_scale_2": 0.5}, "--guidance-scale-2: 0.5"),
        ({"i3d": Path("none.pt")}, "--i3d: none.pt does not exist"),
        ({"clip": Path("none")}, "--clip: none has no config.json"),
    ],
)
def test_mistakes_are_one_line(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        EvaluateOptions(**given)


def test_the_default_is_all_that_can_be_computed(tmp_path: Path) -> None:
    alone = chosen_metrics(EvaluateOptions(), against=False, model=True)
    assert set(METRICS) - set(alone) == {"motion", "frechet", "diversity", *OUTSIDE}
    i3d = tmp_path / "i3d.pt"
    i3d.touch()
    (tmp_path / "config.json").touch()
    options = EvaluateOptions(seeds=2, i3d=i3d, clip=tmp_path)
    every = chosen_metrics(options, against=True, model=True)
    assert every == tuple(name for name in METRICS if not name.startswith("videoalign"))
    some = chosen_metrics(EvaluateOptions(metrics=("contrast", "optflow")), True, True)
    assert some == ("optflow", "contrast")
