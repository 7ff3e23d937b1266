"""No hostile folder runs anything, hangs, or fills the memory; each is answered in one line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Dinov2Config, Dinov2Model

from lightx2v_sgmd.families.wan.opening import open_wan
from lightx2v_sgmd.job.schema import AdapterSettings
from tests.apps.evaluation.scores.test_clip import make_clip
from tests.families.original import write_original
from tests.scaled import CONVENTIONS, original, quantised
from tests.tiny import WAN_LAYERS, WEIGHTS, make_tiny_cogvideox, make_tiny_experts, make_tiny_wan
from tests.tiny_sd3 import make_tiny_sd3
from tests.tiny_sdxl import make_tiny_sdxl
from tests.untrusted.hostile import KINDS
from tests.untrusted.kinds import CODE, Hostile
from tests.weights.conftest import write_checkpoint, write_lora_checkpoint
from weights import export

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ("evil.py", "__init__.py", "sitecustomize.py", "conftest.py", "modeling_evil.py")


def make_good(good: Path) -> None:
    """The folders that are changed."""
    teacher = make_tiny_wan(good / "teacher")
    write_original(open_wan(teacher), good / "original", ".pth")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}
    Dinov2Model(Dinov2Config(**sizes, image_size=56, patch_size=14)).save_pretrained(
        good / "vision"
    )
    write_checkpoint(good.parent / "run", teacher, 1)
    export(good.parent / "run", "diffusers", good / "export", dtype="fp32", quiet=True)
    lora = AdapterSettings(rank=4, targets=WAN_LAYERS)
    write_lora_checkpoint(good.parent / "adapters", teacher, 1, lora)
    export(good.parent / "adapters", "lora", good.parent / "lora", dtype="fp32", quiet=True)
    shutil.copytree(good.parent / "run", good / "run")
    (good / "lora").mkdir()
    (exported,) = (good.parent / "lora").glob("*pytorch_lora_weights.safetensors")
    shutil.copyfile(exported, good / "lora" / "x.safetensors")
    weights = load_file(teacher / WEIGHTS)
    for name in ("torch_save", "scaled"):
        (good / name).mkdir()
    torch.save(original(weights), good / "torch_save" / "x.pt")
    scaled = quantised(weights, *CONVENTIONS["lightx2v"])
    save_file(scaled, good / "scaled" / "x.safetensors")
    make_tiny_cogvideox(good / "cogvideox")
    make_tiny_sd3(good / "sd3")
    make_tiny_experts(good / "pair")
    make_tiny_wan(good / "image", kind="image")
    make_tiny_wan(good / "ti2v", kind="text and image")
    make_tiny_sdxl(good / "sdxl")
    make_clip(good / "clip")


def make_hostile(work: Path) -> None:
    lines = []
    for kind in KINDS:
        folder = work / "folders" / kind.name
        shutil.copytree(work / "good" / kind.base, folder)
        for place in (folder, *(path for path in folder.iterdir() if path.is_dir())):
            for program in PROGRAMS:
                (place / program).write_text(CODE)
        kind.damage(folder)
        lines.append(json.dumps([kind.name, kind.base, str(folder)]))
    (work / "cases").write_text("\n".join(lines))


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    work = tmp_path_factory.mktemp("hostile")
    make_good(work / "good")
    make_hostile(work)
    (work / "tmp").mkdir()
    # Any question would be answered with yes, and nothing may come from a cache or go into one.
    environment = {
        **os.environ,
        "HOME": str(work / "home"),
        "HF_HOME": str(work / "home"),
        "TMPDIR": str(work / "tmp"),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    environment.pop("HF_HUB_OFFLINE", None)
    done = subprocess.run(
        [sys.executable, "-m", "tests.untrusted.audited", str(work)],
        cwd=work,
        env=environment,
        input="y\n" * 1_000,
        capture_output=True,
        text=True,
    )
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"name"')]
    found = {row["name"]: row for row in rows}
    left = [kind.name for kind in KINDS if kind.name not in found]
    if left:
        found[left[0]] = {"died": f"ended with {done.returncode}: {done.stderr[-2000:]}"}
    assert not list(work.rglob("executed"))
    return found


def test_there_are_many_kinds() -> None:
    names = [kind.name for kind in KINDS]
    assert len(set(names)) == len(names) >= 60


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_hostile_folder(answers: dict[str, Any], kind: Hostile) -> None:
    assert kind.name in answers, "the process died at another folder"
    found = answers[kind.name]
    assert "died" not in found, found["died"]
    assert found["seen"] == []
    given = {command: answer for command, answer in found["answers"].items() if answer is not None}
    if not kind.refused:
        assert given == {}
        return
    assert given, "not refused"
    for command, answer in given.items():
        code, _, text = answer.partition(": ")
        assert code == ("1" if command == "verify" and not text.startswith("error:") else "2"), (
            answer
        )
        assert "internal error" not in text
        assert "of main memory" not in text  # refused for what the folder is, not for the machine
        assert command == "verify" or text.count("\n") == 0, text
        assert max(map(len, text.splitlines())) <= 300
