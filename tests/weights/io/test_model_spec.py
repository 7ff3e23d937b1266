"""The entries of a header that model managers read."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from lightx2v_sgmd.families.stock_pipeline import Pipeline
from lightx2v_sgmd.schedule import Schedule
from tests.students import manifest_of
from weights.io.model_spec import model_spec, task_of


def described(adapters: bool = True, part: str = "", **model: Any) -> dict[str, str]:
    """The entries for an export of a model with these facts."""
    pipeline = Pipeline("P", "T", "V", "E", architecture="wan2.1", implementation="https://wan")
    rules = SimpleNamespace(images=model.pop("images", False))
    facts = {"takes_image": "never", "pipeline": pipeline, "size_rules": rules} | model
    source = SimpleNamespace(about=manifest_of(Schedule()), model=SimpleNamespace(**facts))
    format = SimpleNamespace(holds_adapters=adapters, described=True)
    spec: Any = SimpleNamespace(source=source, format=format, part=part)
    return model_spec(spec)


@pytest.mark.parametrize("adapters", [True, False])
def test_an_export_is_named(adapters: bool) -> None:
    told = described(adapters)
    assert told["modelspec.sai_model_spec"] == "1.0.0"
    assert told["modelspec.architecture"] == ("wan2.1/lora" if adapters else "wan2.1")
    assert told["modelspec.title"] == f"tiny, 4-step {'LoRA' if adapters else 'student'} by sgmd"
    usage = "4 steps at shift 8, solver euler, guidance scale 1"
    assert told["modelspec.usage_hint"] == usage
    assert told["modelspec.resolution"] == "32x32"
    assert told["modelspec.implementation"] == "https://wan"


def test_experts_and_tasks_are_named() -> None:
    told = described(part="high_noise", takes_image="always")
    assert told["modelspec.title"].endswith(" by sgmd, high_noise expert")
    assert told["modelspec.tags"].startswith("image-to-video, ")
    told = described(images=True)
    assert told["modelspec.description"] == "Makes an image in 4 steps without guidance."


def test_an_architecture_without_a_name_is_not_described() -> None:
    assert described(pipeline=Pipeline("P", "T", "V", "E")) == {}


@pytest.mark.parametrize(
    ("takes", "task"),
    [
        ("never", "text-to-video"),
        ("optionally", "text-to-video"),
        ("always", "image-to-video"),
    ],
)
def test_the_task_follows_from_the_model(takes: str, task: str) -> None:
    model: Any = SimpleNamespace(takes_image=takes, size_rules=SimpleNamespace(images=False))
    assert task_of(model) == task
