"""A bar is shown for parts that take long to load, one step for each block and one for the rest."""

from __future__ import annotations

import pytest

from infer.network.load_progress import encoder_bar, network_bar
from lightx2v_sgmd.families.wan.opening import open_wan

LARGE = "Wan-AI/Wan2.1-T2V-14B-Diffusers"


def test_a_large_network_has_a_step_for_each_block(capsys: pytest.CaptureFixture[str]) -> None:
    with network_bar(open_wan(LARGE), quiet=False) as bar:
        for _ in range(41):
            bar.advance()
    said = capsys.readouterr().err
    assert "loading the network 1/41" in said and "41/41" in said
    with encoder_bar(open_wan(LARGE), quiet=False) as bar:
        bar.advance(25)
    assert "loading the text encoder 25/25" in capsys.readouterr().err


@pytest.mark.parametrize(("model", "quiet"), [("sprites", False), (LARGE, True)])
def test_small_parts_and_quiet_loading_show_nothing(
    capsys: pytest.CaptureFixture[str], model: str, quiet: bool
) -> None:
    for bar_of in (network_bar, encoder_bar):
        with bar_of(open_wan(model), quiet) as bar:
            bar.advance(3)
    assert capsys.readouterr().err == ""
