"""Options that several commands share."""

from __future__ import annotations

import json
from dataclasses import fields
from inspect import signature
from pathlib import Path
from typing import Any

import pytest

from infer.options import GenerateOptions, Lora, Options
from lightx2v_sgmd.cli.options import Solver, print_result, read_options, solver_name, with_options


def test_a_command_gets_an_option_for_each_field_and_those_of_the_videos_come_first() -> None:
    @with_options(GenerateOptions, without=("seed",))
    def command(weights: str, **options: Any) -> None: ...

    engine = [item.name for item in fields(Options)]
    videos = [item.name for item in fields(GenerateOptions) if item.name not in engine]
    videos.remove("seed")
    assert list(signature(command).parameters) == ["weights", *videos, *engine]


@pytest.mark.parametrize(
    ("cache", "folder"),
    [
        ("none", None),
        ("here", Path("here")),
        (None, Path("/caches/lightx2v-sgmd/text")),
    ],
)
def test_values_are_read_as_the_options_take_them(
    monkeypatch: pytest.MonkeyPatch, cache: str | None, folder: Path | None
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    given = {"text_cache": cache, "loras": ["x.safetensors:0.5"], "compile": True}
    lora = Lora(Path("x.safetensors"), 0.5)
    assert read_options(given) == {"text_cache": folder, "loras": (lora,), "compile": True}
    assert read_options({"text_cache": cache, "loras": None})["loras"] == ()


def test_auto_leaves_the_solver_to_the_teacher() -> None:
    assert [solver_name(solver) for solver in Solver] == [None, "unipc", "euler"]


def test_a_result_is_text_or_json(capsys: pytest.CaptureFixture[str]) -> None:
    for as_json in (False, True):
        print_result({"pairs": "here"}, "here", as_json)
    text, rest = capsys.readouterr().out.split("\n", 1)
    assert text == "here" and json.loads(rest) == {"pairs": "here"}
