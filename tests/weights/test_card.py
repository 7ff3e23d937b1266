"""The model card of an export."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightx2v_sgmd.job.loading import load_job
from lightx2v_sgmd.schedule import Schedule
from tests.students import manifest_of
from tests.weights.conftest import do_export
from weights.card import _license, model_card
from weights.export_spec import ExportSpec
from weights.formats.registry import FORMATS
from weights.opening import open_source


@pytest.mark.parametrize(
    ("format", "dtype", "library", "relation"),
    [
        ("wan", None, "lightx2v", "finetune"),
        ("comfyui", "fp8", "diffusion-single-file", "quantized"),
        ("lora", None, "diffusers", "adapter"),
    ],
)
def test_the_cards_front_matter(
    exports: Any, format: str, dtype: str | None, library: str, relation: str
) -> None:
    out = exports(format, dtype)
    head = yaml.safe_load((out / "README.md").read_text().split("---")[1])
    assert (head["library_name"], head["pipeline_tag"]) == (library, "text-to-video")
    assert head["license"] == "other" and "base_model" not in head  # the teacher is a folder here
    assert {"lightx2v-sgmd", format, "sgmd"} <= set(head["tags"])
    parameters = {"num_inference_steps": 4, "guidance_scale": 1, "height": 32, "width": 32}
    assert parameters.items() <= head["inference"]["parameters"].items()
    spec = ExportSpec(open_source(exports.run, ema=True), FORMATS[format], dtype or "bf16", out)
    about = replace(spec.source.about, teacher="Wan-AI/Wan2.1-T2V-1.3B-Diffusers")
    published = replace(spec, source=replace(spec.source, about=about))
    head = yaml.safe_load(model_card(published, None).split("---")[1])
    assert head["base_model"] == about.teacher and head["license"] == "apache-2.0"
    assert head["base_model_relation"] == relation


def test_card_and_job_have_no_path_of_this_machine(
    run: Path, teacher: Path, tmp_path: Path
) -> None:
    job = run / "checkpoints" / "step_000020" / "job.yaml"
    assert str(tmp_path) in job.read_text() and str(teacher) in job.read_text()
    out = do_export(run, tmp_path / "student")
    for name in ("README.md", "job.yaml"):
        text = (out / name).read_text()
        assert str(tmp_path) not in text and teacher.name in text
    again = do_export(out, tmp_path / "again")
    assert load_job(again / "job.yaml").teacher.path == teacher.name


@pytest.mark.parametrize(
    ("teacher", "base", "license"),
    [
        ("sprites", None, "apache-2.0"),
        ("Wan-AI/Wan2.2-I2V-A14B-Diffusers", None, "apache-2.0"),
        ("Wan-AI/Wan2.1-T2V-14B", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "apache-2.0"),
        ("stabilityai/stable-diffusion-xl-base-1.0", None, "openrail++"),
        ("stabilityai/stable-diffusion-3-medium-diffusers", None, "other"),
        ("Wan-AI/Wan2.1-T2V-14B", "runs/fine-tune", "other"),
        ("someone/Wan-AI/Wan2.1-T2V-14B", None, "other"),
    ],
)
def test_the_licence_is_the_teachers(teacher: str, base: str | None, license: str) -> None:
    about = replace(manifest_of(Schedule()), teacher=teacher, student_base=base)
    assert _license(about) == license
