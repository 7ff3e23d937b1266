"""The checks of `doctor`, on this machine and on broken ones."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from lightx2v_sgmd.cli.doctor import checks
from lightx2v_sgmd.cli.doctor.report import Check, DoctorReport
from lightx2v_sgmd.families import opening
from lightx2v_sgmd.files import video
from lightx2v_sgmd.system import host_memory


def by_name(report: DoctorReport) -> dict[str, Check]:
    return {check.name: check for check in report.checks}


@pytest.mark.slow
def test_this_machine_is_described() -> None:
    report = checks.run()
    found = by_name(report)
    assert {"python", "torch", "attention sdpa", "deepspeed ops", "video", "memory"} <= set(found)
    assert found["video"].state == "ok" and "H.264" in found["video"].detail
    assert found[f"attention {report.attention}"].state == "ok"
    assert json.loads(json.dumps(report.to_dict()))["attention"] == report.attention
    text = report.text()
    assert all(check.name in text for check in report.checks)
    assert f"generate would choose attention {report.attention}" in text


@pytest.mark.slow
def test_no_compiler_names_the_command_that_adds_one(monkeypatch: pytest.MonkeyPatch) -> None:
    tools = {"apt-get": "/usr/bin/apt-get"}
    monkeypatch.setattr(shutil, "which", lambda name, **kw: tools.get(name))
    check = {c.name: c for c in checks._deepspeed()}["deepspeed ops"]
    assert check.state == "missing" and "no C++ compiler" in check.detail
    assert check.remedy.startswith("sudo apt-get install -y build-essential python3.")


def test_a_missing_deepspeed_only_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    check = {c.name: c for c in checks._deepspeed()}["deepspeed"]
    assert check.state == "missing" and check.remedy.endswith("-m pip install deepspeed")


@pytest.mark.slow
def test_a_check_that_breaks_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("No ffmpeg exe could be found\nand more")

    monkeypatch.setattr(video, "write_video", fails)
    report = checks.run()
    check = by_name(report)["video"]
    assert (check.state, check.detail) == ("broken", "RuntimeError: No ffmpeg exe could be found")
    assert not report.ok and "not ready" in report.text()


def test_a_codec_that_garbles_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real = video.read_video
    monkeypatch.setattr(video, "read_video", lambda path: (real(path)[0] // 2, 8.0))
    assert [c.state for c in checks._video()] == ["broken"]


def test_a_container_limit_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(host_memory, "_GROUPS", tmp_path)
    (tmp_path / "memory.max").write_text(str(2**30))
    (tmp_path / "memory.current").write_text(str(2**29))
    memory = host_memory.host_memory_gib()
    assert memory is not None and memory[0] == 1.0 and memory[1] <= 0.5
    check = checks._resources()[-1]
    assert check.state == "missing" and "close other programs" in check.remedy


@pytest.mark.slow
def test_a_damaged_teacher_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from tests.tiny import make_tiny_wan

    folder = make_tiny_wan(tmp_path / "sprites")
    monkeypatch.setattr(opening, "bundled_teacher", lambda: folder)
    assert [c.state for c in checks._teacher()] == ["ok"]
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert "cut short" in by_name(checks.run())["bundled teacher"].detail


def test_a_deepspeed_that_does_not_import_only_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_import_elsewhere", lambda module: f"OSError: no {module}.so")
    check = checks._deepspeed()[0]
    assert (check.name, check.state) == ("deepspeed", "missing")
    assert "is installed but does not import: OSError: no deepspeed.so" in check.detail
    assert check.remedy.endswith("-m pip install --force-reinstall --no-deps deepspeed")


def test_importing_elsewhere_tells_the_last_line() -> None:
    assert checks._import_elsewhere("json") == ""
    problem = checks._import_elsewhere("no_such_package")
    assert problem == "ModuleNotFoundError: No module named 'no_such_package'"
    assert "code 3" in checks._import_elsewhere("os; os._exit(3)")


@pytest.mark.slow
def test_a_class_that_is_gone_stops_the_main_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(opening.LIBRARY_CLASSES["Wan"], "transformers", ("NoSuchModel",))
    report = checks.run()
    check = by_name(report)["models"]
    assert check.state == "broken" and "NoSuchModel" in check.detail and not report.ok


def test_the_classes_of_every_family_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is gone costs the models of its family, and no others."""
    every = ", ".join(opening.LIBRARY_CLASSES)
    assert "CogVideoX" in every and "SD3" in every and "SDXL" in every
    found = {check.name: check for check in checks._models()}
    for library in ("diffusers", "transformers"):
        assert found[library].detail.endswith(f": the classes of {every} import")
    monkeypatch.setitem(opening.LIBRARY_CLASSES["SDXL"], "diffusers", ("DDIMScheduler", "NoSuch"))
    found = {check.name: check for check in checks._models()}
    assert found["diffusers"].state == "ok" and "SDXL" not in found["diffusers"].detail
    assert "SDXL" in found["transformers"].detail
    check = found["SDXL"]
    assert check.state == "missing" and check.detail.startswith("NoSuch of diffusers does not ")
    assert check.remedy.endswith("-m pip install --upgrade diffusers")
