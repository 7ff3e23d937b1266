"""Checking exported folders offline, and what the command line makes of exports."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from lightx2v_sgmd.cli.main import run as run_cli
from lightx2v_sgmd.files.tensors.safetensors_files import schedule_metadata
from lightx2v_sgmd.outputs import sync_tree
from lightx2v_sgmd.schedule import Schedule
from lightx2v_sgmd.system.errors import UserError
from tests.tiny import WEIGHTS, make_tiny_wan
from tests.weights.conftest import do_export, flip_a_byte, write_checkpoint
from weights import export, exporting, verify
from weights.export_spec import ExportSpec
from weights.formats.registry import FORMATS
from weights.opening import open_source
from weights.verify import differences


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("verify")
    write_checkpoint(base / "run", make_tiny_wan(base / "teacher"), 7)
    export(base / "run", "wan", base / "student", quiet=True)
    return base


@pytest.fixture
def student(exported: Path, tmp_path: Path) -> Path:
    return shutil.copytree(exported / "student", tmp_path / "student")


def test_an_export_is_whole_wherever_it_lies(
    student: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("verifying needs no network")

    monkeypatch.setattr(socket, "socket", refuse)
    assert run_cli(["weights", "verify", str(student)]) == 0
    assert run_cli(["weights", "verify", str(student), "--json"]) == 0
    printed = capsys.readouterr().out
    assert json.loads(printed[printed.index("{") :])["whole"] is True
    # What people add to a folder, and what the hub adds, is nobody's damage.
    (student / "metrics.json").write_text("{}")
    (student / ".cache").mkdir()
    (student / ".cache" / "x.safetensors").write_text("")
    assert verify(student) == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("config.json", "config.json has changed since it was written (sha256)"),
        ("README.md", "README.md has changed since it was written (sha256)"),
        ("diffusion_pytorch_model.safetensors", "has changed since it was written"),
    ],
)
def test_a_changed_byte_is_found(
    student: Path, capsys: pytest.CaptureFixture[str], name: str, expected: str
) -> None:
    content = bytearray((student / name).read_bytes())
    content[-2] ^= 1
    (student / name).write_bytes(content)
    assert run_cli(["weights", "verify", str(student)]) == 1
    assert expected in capsys.readouterr().out


def test_missing_and_added_files_are_found(student: Path) -> None:
    (student / "lightx2v.json").unlink()
    (student / "distill_model.pt").write_bytes(b"x")
    (student / "extra.safetensors").write_bytes(b"x")
    assert verify(student) == [
        "lightx2v.json is missing",
        "distill_model.pt is not in lightx2v_sgmd.json",
        "extra.safetensors is not in lightx2v_sgmd.json",
    ]


def edit_manifest(student: Path, change: Any) -> None:
    path = student / "lightx2v_sgmd.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "a/../../b", "..\\x", ""])
def test_names_that_lead_out_are_not_followed(student: Path, name: str) -> None:
    (student.parent / "secret").write_text("s")
    edit_manifest(student, lambda content: content["sha256"].update({name: "0" * 64}))
    assert verify(student) == [f"{name} in lightx2v_sgmd.json points out of the folder"]


def test_a_link_that_leads_out_is_not_followed(student: Path) -> None:
    (student.parent / "secret").write_text("s")
    (student / "README.md").unlink()
    (student / "README.md").symlink_to(student.parent / "secret")
    assert verify(student) == ["README.md in lightx2v_sgmd.json points out of the folder"]


def test_another_schedule_is_found(student: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["schedule"] |= {"shift": 5.0, "timesteps": [1000, 937.5, 833.333, 625]}

    edit_manifest(student, change)
    assert verify(student) == ["the weights carry another schedule than lightx2v_sgmd.json"]


def test_what_is_no_export_is_the_users_mistake(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    for path, match in (("empty", "has no lightx2v_sgmd.json"), ("none", "no such folder")):
        with pytest.raises(UserError, match=match):
            verify(tmp_path / path)
        assert run_cli(["weights", "verify", str(tmp_path / path)]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert run_cli(["weights"]) == 2


def test_a_failed_check_exits_1_and_keeps_what_was_written(
    exported: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    real = sync_tree

    def sync(folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        real(folder)

    monkeypatch.setattr(exporting, "sync_tree", sync)
    out = tmp_path / "out"
    command = ["export", str(exported / "run"), "--format", "wan", "--out", str(out), "--quiet"]
    assert run_cli(command) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "config.json" in line and line.endswith("/out.failed")
    assert not out.exists() and (tmp_path / "out.failed" / "config.json").read_text() == "{}"


def test_the_command_line_says_which_formats_take_fp8(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    command = ["export", str(exported / "run"), "--format", "diffusers", "--dtype", "fp8"]
    assert run_cli([*command, "--out", out]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "or --format wan or comfyui" in line


@pytest.mark.slow
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
