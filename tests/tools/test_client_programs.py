"""The runs of exports in other programs' code: what can be tested without those programs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lightx2v_sgmd.schedule import Schedule
from tools.checks import client_runs
from tools.checks.client_programs import ROWS, main
from tools.checks.client_students import Bench
from tools.models.standard_wan import Kind
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
    bench.folder, bench.config, bench.kind = tmp_path, {}, "t2v"
    bench.schedule, bench.teacher = Schedule(), tmp_path
    folders = {"lora": tmp_path / "run_lora", "comfyui": tmp_path / "base"}
    (folders["lora"] / "workflow_api.json").write_text('{"1": {}}')
    monkeypatch.setattr(bench, "exported", lambda run, format, dtype: folders[format])
    request = bench.request("comfyui", "comfyui", "fp32", lora=True)
    assert request["loras"] == [str(tmp_path / "run_lora" / "a_pytorch_lora_weights.safetensors")]
    assert request["weights"] == [str(tmp_path / "base" / "base.safetensors")]
    assert request["workflow"] == {"1": {}} and request["settings"] == str(folders["lora"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["i2v", "i2v pair", "ti2v"])
def test_students_of_images_are_exported_with_what_programs_are_given(
    kind: Kind, tmp_path: Path
) -> None:
    bench = Bench(tmp_path, kind)
    request = bench.request("comfyui", "comfyui", "fp32", lora=True)
    inputs = client_runs.Inputs(request)
    pair = kind == "i2v pair"
    assert len(inputs.weights) == len(inputs.loras) == 1 + pair
    assert all("high" in files[0].as_posix() for files in (inputs.loras, inputs.weights) if pair)
    assert (inputs.image_rows is not None) == (kind == "i2v")
    assert inputs.pixels.shape == (*bench.size[:2], 3) and bench.latents.shape == inputs.noise.shape
    loaded = [n for n in inputs.workflow.values() if n["class_type"] == "LoraLoaderModelOnly"]
    assert [node["inputs"]["lora_name"] for node in loaded] == [f.name for f in inputs.loras]
    video = torch.zeros(1, 3, 5, *bench.size[:2])
    latents = inputs.normalized(inputs.encoded(video))
    assert latents.shape[1:3] == (len(bench.latents), 2)


@pytest.fixture
def inputs(tmp_path: Path) -> client_runs.Inputs:
    file = tmp_path / "inputs.safetensors"
    noise, text = torch.ones(2, 1, 2, 2), torch.ones(3, 5)
    save_file({"noise": noise, "text": text, "sigmas": Schedule().times}, file)
    paths = dict.fromkeys(("image", "vae", "settings"), "unused")
    request = {"inputs": file, "weights": ["w"], "loras": [], "config": {}, "shift": 8.0}
    return client_runs.Inputs(request | paths | {"workflow": None})


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
