"""Formats change into one another, and what all of them have in common."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lightx2v_sgmd.families.wan.opening import open_wan
from lightx2v_sgmd.files.manifest import read_manifest
from lightx2v_sgmd.outputs import sha256_file
from lightx2v_sgmd.schedule import Schedule
from lightx2v_sgmd.system.errors import UserError
from tests.tiny import WEIGHTS
from tests.weights.conftest import WAN
from weights import export
from weights.card import model_card
from weights.export_spec import ExportSpec
from weights.formats.comfyui_workflow import workflow
from weights.formats.diffusers import scheduler_problems, write_scheduler
from weights.formats.registry import FORMATS
from weights.opening import open_source


@pytest.mark.parametrize("name", ["diffusers", "wan", "comfyui"])
def test_a_path_of_this_machine_is_in_the_manifest_alone(exports: Any, name: str) -> None:
    """It names the teacher's folder, which a later export on this machine reads."""
    out, machine = exports(name), str(exports.folder).encode()
    holding = {f.name for f in out.rglob("*") if f.is_file() and machine in f.read_bytes()}
    assert holding == {"lightx2v_sgmd.json"}
    saved = json.loads((out / "lightx2v_sgmd.json").read_text())
    assert saved.pop("teacher") == str(exports.teacher_folder)
    assert machine.decode() not in json.dumps(saved)


def test_a_student_that_is_noised_anew_gets_programs_that_do_so(
    exports: Any, tmp_path: Path
) -> None:
    source = open_source(exports.run, ema=True)
    schedule = Schedule(solver="renoise")
    source = replace(source, about=replace(source.about, schedule=schedule))
    model = open_wan("sprites")
    write_scheduler(tmp_path, model, schedule)
    assert scheduler_problems(tmp_path, model, schedule) == []
    assert scheduler_problems(tmp_path, model, Schedule()) == [
        "the scheduler does not take the steps of euler"
    ]
    kinds = {node["class_type"]: node["inputs"] for node in workflow(source.about, "w").values()}
    assert kinds["KSampler"]["sampler_name"] == "lcm"
    for name in ("wan", "lora"):
        spec = ExportSpec(source, FORMATS[name], "bf16", tmp_path / name)
        with pytest.raises(UserError, match=r"LightX2V.*takes Euler's steps, not renoise"):
            FORMATS[name].check(spec)
    card = model_card(replace(spec, format=FORMATS["diffusers"]), None)
    assert "noised anew (renoise) |" in card and "vLLM-Omni" not in card
    euler = replace(source, about=replace(source.about, schedule=Schedule()))
    other = model_card(replace(spec, source=euler, format=FORMATS["diffusers"]), None)
    assert ", Euler |" in other and "vLLM-Omni" in other


def test_formats_change_back_and_forth_without_changing_a_bit(exports: Any) -> None:
    first = exports("diffusers")
    wan = exports("wan", source=first.name)
    back = exports("diffusers", source=wan.name)
    assert sha256_file(first / WEIGHTS) == sha256_file(back / WEIGHTS)
    for part in ("vae", "text_encoder", "tokenizer", "scheduler"):
        for path in (first / part).iterdir():
            assert sha256_file(path) == sha256_file(back / part / path.name)
    comfyui = exports("comfyui", source=wan.name)
    again = exports("wan", source=comfyui.name)
    assert sha256_file(wan / WAN) == sha256_file(again / WAN)
    manifest, original = read_manifest(back), read_manifest(first)
    assert manifest is not None and original is not None
    assert (manifest.step, manifest.ema, manifest.method) == (20, True, original.method)


def test_what_another_precision_makes_of_an_export(exports: Any) -> None:
    narrow = exports("wan", "bf16", source=exports("diffusers", "fp32").name)
    assert sha256_file(narrow / WAN) == sha256_file(exports("wan") / WAN)


def test_a_changed_export_is_no_source(exports: Any, tmp_path: Path) -> None:
    import shutil

    broken = shutil.copytree(exports("wan"), tmp_path / "broken")
    content = bytearray((broken / WAN).read_bytes())
    content[-1] ^= 1
    (broken / WAN).write_bytes(content)
    with pytest.raises(UserError, match=f"{WAN} has changed since it was written"):
        export(broken, "diffusers", tmp_path / "out", quiet=True)
