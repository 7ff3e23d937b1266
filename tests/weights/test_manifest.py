"""The manifest of an export."""

from __future__ import annotations

import json
from pathlib import Path

from lightx2v_sgmd.families.wan.opening import open_wan
from lightx2v_sgmd.files.manifest import changed_files, read_manifest
from lightx2v_sgmd.job.loading import load_job
from lightx2v_sgmd.schedule import Schedule
from tests.tiny import WEIGHTS
from tests.weights.conftest import do_export


def test_the_manifest_tells_where_the_weights_come_from(
    run: Path, teacher: Path, tmp_path: Path
) -> None:
    out = do_export(run, tmp_path / "student", dtype="bf16")
    saved = json.loads((out / "lightx2v_sgmd.json").read_text())
    sha256 = saved.pop("sha256")
    assert saved == {
        "format_version": 1,
        "format": "diffusers",
        "method": {
            "name": "sgmd",
            "options": {
                "lambda": 0.1,
                "nr_iterations": None,
                "weighting": "normalized",
                "max_weight": 1.0,
                "fake_score_rollout": "shared",
            },
        },
        "teacher": str(teacher),
        "teacher_dtype": "float32",
        "negative_prompt": open_wan(teacher).negative_prompt,
        "schedule": {
            "timesteps": [1000, 960, 888.889, 727.273],
            "shift": 8.0,
            "base": [1000, 750, 500, 250],
            "solver": "euler",
        },
        "guidance_scale": 3.0,
        "video": {"height": 32, "width": 32, "num_frames": 9, "fps": 16.0},
        "step": 20,
        "ema": True,
        "dtype": "bf16",
    }
    assert WEIGHTS.as_posix() in sha256 and "tokenizer/tokenizer.json" in sha256
    assert changed_files(out, sha256) == []
    manifest = read_manifest(out)
    assert manifest is not None and manifest.schedule == Schedule()
    card = (out / "README.md").read_text()
    assert "1000, 960, 888.889, 727.273 (shift 8" in card and "guidance_scale=1.0" in card
    exported = load_job(out / "job.yaml")
    trained = load_job(run / "checkpoints" / "step_000020" / "job.yaml")
    for section in ("student", "fake_score", "method", "schedule", "video", "train", "parallel"):
        assert getattr(exported, section) == getattr(trained, section)
