"""The runs of exports in other programs' code: what can be tested without those programs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lightx2v_sgmd.schedule import Schedule
from tools.checks import client_runs
from tools.checks.client_programs import ROWS, Bench, Row, main
from weights import FORMATS


def test_every_row_can_be_exported_and_run() -> None:
    assert len(set(ROWS)) == len(ROWS)
    for row in ROWS:
        assert row.program in client_runs.PROGRAMS and row.dtype in FORMATS[row.format].dtypes


def test_a_checkout_that_is_not_there_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--wan", "no/checkout"])
    assert "--wan: no/checkout is not a folder" in capsys.readouterr().err


def test_an_exported_lora_is_one_file_of_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one is for PEFT."""
    for name in ("run_lora/a_pytorch_lora_weights", "run_lora/adapter_model", "base/base"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.safetensors").touch()
    bench = object.__new__(Bench)
    bench.folder, bench.config = tmp_path, {}
    folders = {"lora": tmp_path / "run_lora", "comfyui": tmp_path / "base"}
    monkeypatch.setattr(bench, "_export", lambda run, format, dtype: folders[format])
    request = bench.request(Row("comfyui", "comfyui", "fp32", lora=True))
    assert request["lora"] == str(tmp_path / "run_lora" / "a_pytorch_lora_weights.safetensors")
    assert request["weights"] == str(tmp_path / "base" / "base.safetensors")


@pytest.fixture
def inputs(tmp_path: Path) -> client_runs.Inputs:
    file = tmp_path / "inputs.safetensors"
    noise, text = torch.ones(2, 1, 2, 2), torch.ones(3, 5)
    save_file({"noise": noise, "text": text, "sigmas": Schedule().times}, file)
    request = {"inputs": file, "weights": "w", "lora": None, "config": {}, "shift": 8.0}
    return client_runs.Inputs(request)


def test_eulers_steps_of_a_constant_velocity_go_all_the_way(inputs: client_runs.Inputs) -> None:
    seen: list[float] = []

    def velocity(x_t: torch.Tensor, sigma: float) -> torch.Tensor:
        seen.append(round(1000 * sigma, 3))
        return torch.full_like(x_t, 3.0)

    assert torch.allclose(inputs.euler(velocity), inputs.noise - 3)
    assert seen == [1000, 960, 888.889, 727.273] and inputs.steps == 4


def test_text_is_padded_as_other_encoders_pad_it(inputs: client_runs.Inputs) -> None:
    padded = inputs.padded_text
    assert padded.shape == (1, 512, 5) and padded.sum() == 15 and not padded[0, 3:].any()


def test_absent_packages_are_replaced_for_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    client_runs._stub("no_such_package")
    try:
        import no_such_package.deep.inside as module  # type: ignore[import-not-found]

        assert module.anything is not None
    finally:
        for name in [n for n in sys.modules if n.startswith("no_such_package")]:
            del sys.modules[name]
