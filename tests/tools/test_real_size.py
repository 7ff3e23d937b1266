"""The check of a real size writes a model that opens, and measures a command within its limit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightx2v_sgmd.families.wan.opening import open_wan
from tools.checks.real_size import _JOB, Row, run
from tools.models.published_size import write_published_size


def test_the_written_folder_is_a_model_of_the_same_sizes(
    tiny_teacher: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    size = write_published_size(folder, open_wan(tiny_teacher))
    files = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
    assert 0 < size <= files
    model = open_wan(folder)
    assert model.transformer_shapes() == open_wan(tiny_teacher).transformer_shapes()
    weights = model.transformer_weights()
    assert {info.dtype for info in weights.header.tensors.values()} == {"BF16"}
    spread = weights.tensor("blocks.0.attn1.to_q.weight").float().std()
    assert 0.015 < spread < 0.025
    model.load_vae()
    rows = model.load_text_encoder(torch.bfloat16).encode(["a red circle"])
    assert rows[0].text.isfinite().all()


@pytest.mark.slow
def test_a_command_that_does_not_fit_says_so_in_its_row(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    job = tmp_path / "job.yaml"
    job.write_text(_JOB.format(teacher="sprites", folder=tmp_path))
    row = run("plan", ["plan", str(job)], 4.0, threads=1)
    assert row.code == 0 and 0.05 < row.peak_gib < 4 and row.seconds > 0
    assert row.line().endswith("| yes |")
    failed = Row("x", 4, "memory", 1.0, 2.0, 2, "error: out of memory")
    assert failed.line() == "| x | 4, memory | 1.0 | 2 | no, error: out of memory |"
