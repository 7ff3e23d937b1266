"""What does not become an export, and what it leaves on the disk: nothing half written."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lightx2v_sgmd.files.tensors import safetensors_writer
from lightx2v_sgmd.files.tensors.safetensors_files import schedule_metadata
from lightx2v_sgmd.outputs import sync_tree
from lightx2v_sgmd.schedule import Schedule
from lightx2v_sgmd.system.errors import UserError
from tests.tiny import WEIGHTS
from tests.weights.conftest import do_export, write_manifest
from weights import ExportError, export, exporting, publishing
from weights.export_spec import ExportSpec
from weights.formats.registry import FORMATS
from weights.opening import open_source
from weights.publishing import listing
from weights.verify import differences


def test_an_output_that_is_taken_is_kept(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "student"
    out.mkdir()
    (out / "mine.txt").write_text("precious")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="holds mine.txt and was not written by export"):
            do_export(run, out, overwrite=overwrite)
    assert [p.name for p in out.iterdir()] == ["mine.txt"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run", "student", "teacher"]
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file, not a folder"):
        do_export(run, tmp_path / "file")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert (do_export(run, empty) / WEIGHTS).exists()
    with pytest.raises(UserError, match="is not empty; choose another folder, or add --overwrite"):
        do_export(run, empty)
    before = (empty / WEIGHTS).stat().st_ino
    do_export(run, empty, overwrite=True)
    assert (empty / WEIGHTS).stat().st_ino != before


@pytest.mark.parametrize("where", ["save", "copy", "rename"])
@pytest.mark.parametrize("taken", [False, True])
def test_nothing_half_written_on_a_full_disk(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, taken: bool
) -> None:
    out = tmp_path / "student"
    if taken:
        do_export(run, out)
    before = listing(out)

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if where == "save":
        monkeypatch.setattr(safetensors_writer.TensorFile, "write", full)
    elif where == "copy":
        monkeypatch.setattr(shutil, "copytree", full)
    else:
        monkeypatch.setattr(publishing, "rename_new", full)
        monkeypatch.setattr(publishing, "exchange", full)
    with pytest.raises(UserError, match="student: cannot be written: .*No space left") as caught:
        do_export(run, out, overwrite=True)
    assert "\n" not in str(caught.value)
    left = ["run", "student", "teacher"] if taken else ["run", "teacher"]
    assert sorted(p.name for p in tmp_path.iterdir()) == left
    assert listing(out) == before


def test_too_little_space_is_found_beforehand(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 10_000})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match="needs 0.00 GiB and the disk has 0.00 GiB left"):
        do_export(run, tmp_path / "new" / "student")
    assert not (tmp_path / "new").exists()


def flip_a_byte(path: Path, position: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def test_an_export_that_went_wrong_does_not_appear(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = sync_tree

    def sync(folder: Path) -> None:
        flip_a_byte(folder / WEIGHTS)
        real(folder)

    monkeypatch.setattr(exporting, "sync_tree", sync)
    with monkeypatch.context() as unbroken:
        unbroken.setattr(exporting, "sync_tree", real)
        do_export(run, tmp_path / "student")
    before = listing(tmp_path / "student")
    with pytest.raises(ExportError, match=r"has changed .* has other values.*student.failed$"):
        do_export(run, tmp_path / "student", overwrite=True)
    # What was written stays, to be looked at, under a name that nobody takes for an export.
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "run",
        "student",
        "student.failed",
        "teacher",
    ]
    assert listing(tmp_path / "student") == before
    assert (tmp_path / "student.failed" / WEIGHTS).is_file()
    with pytest.raises(ExportError, match="student.failed2$"):
        do_export(run, tmp_path / "student", overwrite=True)


def test_every_kind_of_difference_is_found(run: Path, tmp_path: Path) -> None:
    spec = ExportSpec(
        open_source(run, ema=True), FORMATS["diffusers"], "fp32", tmp_path / "student"
    )

    def problems_after(name: str, change: Any) -> list[str]:
        shutil.rmtree(tmp_path / "student", ignore_errors=True)
        out = do_export(run, tmp_path / "student")
        assert differences(spec, out, None) == []
        change(out / name)
        return differences(spec, out, None)

    def edit(**changes: Any) -> Any:
        def change(path: Path) -> None:
            path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

        return change

    def retype(path: Path) -> None:
        tensors = load_file(path)
        tensors["proj_out.bias"] = tensors["proj_out.bias"].double()
        save_file(tensors, path, schedule_metadata(Schedule()))

    def drop(path: Path) -> None:
        tensors = load_file(path)
        del tensors["proj_out.bias"]
        save_file(tensors, path, schedule_metadata(Schedule()))

    def other_schedule(path: Path) -> None:
        save_file(load_file(path), path, schedule_metadata(Schedule(shift=5.0)))

    vae = "vae/diffusion_pytorch_model.safetensors"
    assert problems_after(vae, flip_a_byte) == [f"{vae} has changed since it was written (sha256)"]
    assert "is missing" in problems_after("tokenizer/tokenizer.json", Path.unlink)[0]
    assert problems_after("lightx2v_sgmd.json", Path.unlink) == ["lightx2v_sgmd.json is missing"]
    scheduler = "scheduler/scheduler_config.json"
    assert any("scheduler takes" in p for p in problems_after(scheduler, edit(shift=3.0)))
    weights = str(WEIGHTS)
    assert any("proj_out.bias is F64" in p for p in problems_after(weights, retype))
    assert "proj_out.bias is missing" in problems_after(weights, drop)
    assert "the weights carry another schedule than the source" in problems_after(
        weights, other_schedule
    )
    config = "transformer/config.json"
    assert any("a forward pass is off" in p for p in problems_after(config, edit(eps=0.5)))
    heads = edit(num_attention_heads=5)
    assert any("the network does not run" in p for p in problems_after(config, heads))


def change_student(run: Path, name: str, value: float) -> None:
    for folder in (run / "checkpoints").iterdir():
        path = folder / "student_ema.safetensors"
        tensors = load_file(path)
        tensors[name].flatten()[0] = value
        save_file(tensors, path, schedule_metadata(Schedule()))
        write_manifest(folder)


@pytest.mark.parametrize("format", ["diffusers", "lora"])
def test_a_diverged_run_is_refused(run: Path, tmp_path: Path, format: str) -> None:
    change_student(run, "proj_out.weight", float("nan"))
    with pytest.raises(UserError, match="proj_out.weight has values that are not finite"):
        export(run, format, tmp_path / "student", quiet=True)
    assert not (tmp_path / "student").exists()


def test_values_beyond_fp16_are_refused(run: Path, tmp_path: Path) -> None:
    change_student(run, "proj_out.weight", 1e5)
    with pytest.raises(UserError, match="proj_out.weight has values beyond fp16's range"):
        do_export(run, tmp_path / "student", dtype="fp16")
    do_export(run, tmp_path / "student", dtype="bf16")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"format": "gguf"}, "format: 'gguf' is unknown; use diffusers, wan, comfyui, lora"),
        (
            {"dtype": "fp8"},
            "dtype: --format diffusers does not support 'fp8'; .*, or --format wan or comfyui",
        ),
        (
            {"dtype": "int4"},
            "dtype: --format diffusers does not support 'int4'; use bf16, fp16 or fp32$",
        ),
        ({"source": "nowhere"}, "nowhere: no such folder"),
        ({"source": "teacher"}, "has no checkpoints"),
    ],
)
def test_wrong_options(run: Path, tmp_path: Path, options: dict[str, str], match: str) -> None:
    values = {"source": "run", "format": "diffusers", "dtype": "fp32", **options}
    with pytest.raises(UserError, match=match):
        export(
            tmp_path / values["source"],
            values["format"],
            tmp_path / "student",
            dtype=values["dtype"],
            quiet=True,
        )
    assert not (tmp_path / "student").exists()


def test_a_checkpoint_that_does_not_fit_its_job_is_refused(run: Path, tmp_path: Path) -> None:
    folder = run / "checkpoints" / "step_000020"
    path = folder / "student_ema.safetensors"
    tensors = load_file(path)
    save_file(tensors, path, schedule_metadata(Schedule(shift=5.0)))
    write_manifest(folder)
    with pytest.raises(UserError, match="carries the schedule .* but its job says"):
        do_export(run, tmp_path / "student")
    del tensors["proj_out.bias"]
    save_file(tensors, path, schedule_metadata(Schedule()))
    write_manifest(folder)
    with pytest.raises(UserError, match="1 missing: proj_out.bias"):
        do_export(run, tmp_path / "student")
    (folder / "trainer.json").write_text("{}")
    save_file(tensors | {"proj_out.bias": torch.zeros(16)}, path, schedule_metadata(Schedule()))
    write_manifest(folder)
    with pytest.raises(UserError, match="does not say the step"):
        do_export(run, tmp_path / "student")
