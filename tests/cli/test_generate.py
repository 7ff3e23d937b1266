"""The command ``generate``."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lightx2v_sgmd.cli.main import run
from tests.cli.application import install


def outcome_of(files: list[Path], **changes: Any) -> SimpleNamespace:
    """An answer of ``infer.generate_files``."""
    usual = {
        "skipped": 0,
        "failed": [],
        "timings": {"denoise": 1.23456},
        "memory_mode": "the defaults",
    }
    return SimpleNamespace(**{"files": files, **usual, **changes})


def test_generate_passes_options_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from infer.options import GenerateOptions, Lora

    made = outcome_of([Path("a.mp4"), Path("b.mp4")], skipped=1)
    generate = install(monkeypatch, "infer", "generate_files", made)
    size = ["--height", "32", "--width", "48", "--num-frames", "17", "--fps", "8", "--batch", "3"]
    kind = ["--attention", "sdpa-flash", "--dtype", "bf16", "--device", "cpu", "--compile"]
    less = ["--quantize", "int8", "--max-memory-gib", "9.5", "--tile-vae", "--offload"]
    more = ["--lora", "x.safetensors:0.5", "--merge-lora", "--text-cache", "none"]
    trace = ["--profile", "t.json", "--assume-schedule", "sgmd:2"]
    files = ["--weights", "student", "--prompts", "p.txt", "--out", "videos"]
    given = [*size, *kind, *less, *more, *trace]
    assert run(["generate", *files, "--seed", "3", *given, "--quiet", "--json"]) == 0
    ((args, options),) = generate.calls
    assert args[:3] == (Path("student"), Path("p.txt"), Path("videos"))
    assert options == {"quiet": True}
    assert args[3] == GenerateOptions(
        seed=3,
        height=32,
        width=48,
        num_frames=17,
        fps=8.0,
        batch_size=3,
        profile=Path("t.json"),
        assume_schedule="sgmd:2",
        attention="sdpa-flash",
        dtype="bf16",
        device="cpu",
        quantize="int8",
        offload=True,
        tile_vae=True,
        max_memory_gib=9.5,
        compile=True,
        loras=(Lora(Path("x.safetensors"), 0.5),),
        merge_lora=True,
    )
    assert json.loads(capsys.readouterr().out) == {
        "videos": ["a.mp4", "b.mp4"],
        "skipped": 1,
        "failed": [],
        "timings": {"denoise": 1.2346},
        "options": "the defaults",
    }


def test_a_prompt_is_passed_on_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    from infer.options import GenerateOptions

    generate = install(monkeypatch, "infer", "generate_files", outcome_of([]))
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert run(["generate", "--weights", "w", "--out", "o.mp4", "--prompt", "a fox"]) == 0
    (args, options) = generate.calls[0]
    assert args[:3] == (Path("w"), "a fox", Path("o.mp4"))
    cache = Path("/caches/lightx2v-sgmd/text")
    assert args[3] == GenerateOptions(text_cache=cache)


def test_videos_that_failed_are_named_and_the_code_is_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = outcome_of([Path("a.mp4")], failed=[("0001_a", "out of memory")])
    install(monkeypatch, "infer", "generate_files", made)
    assert run(["generate", "--weights", "w", "--out", "o", "--prompts", "p.txt"]) == 1
    assert capsys.readouterr() == ("a.mp4\n", "error: 0001_a: out of memory\n")


@pytest.mark.parametrize("extra", [[], ["--prompt", "a fox", "--prompts", "p.txt"]])
def test_generate_wants_one_kind_of_prompt(
    extra: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["generate", "--weights", "w", "--out", "o", *extra]) == 2
    assert capsys.readouterr().err == "error: --prompt, --prompts: give one of the two\n"
