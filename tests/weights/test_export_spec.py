"""Options of an export that will not do, and the description of one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lightx2v_sgmd.system.errors import UserError
from weights import export
from weights.export_spec import ExportSpec
from weights.formats.registry import FORMATS


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"format": "gguf"}, "format: 'gguf' is unknown; use diffusers, wan, comfyui, lora"),
        (
            {"dtype": "fp8"},
            "dtype: --format diffusers does not support 'fp8'; .*, or --format wan or comfyui",
        ),
        (
            {"dtype": "int4"},
            "dtype: --format diffusers does not support 'int4'; use bf16, fp16 or fp32$",
        ),
        ({"source": "nowhere"}, "nowhere: no such folder"),
        ({"source": "teacher"}, "has no checkpoints"),
    ],
)
def test_wrong_options(run: Path, tmp_path: Path, options: dict[str, str], match: str) -> None:
    values = {"source": "run", "format": "diffusers", "dtype": "fp32", **options}
    with pytest.raises(UserError, match=match):
        export(
            tmp_path / values["source"],
            values["format"],
            tmp_path / "student",
            dtype=values["dtype"],
            quiet=True,
        )
    assert not (tmp_path / "student").exists()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"format": "wan", "max_shard_size": "huge"}, "max_shard_size: 'huge' is not a size"),
        (
            {"format": "wan", "rank": 4},
            "only, relative-to: belong to --format lora",
        ),
        ({"format": "lora", "rank": 0}, "rank: 0 is below 1"),
        ({"format": "lora", "energy": 1.5}, r"energy: 1.5 is not in \(0, 1\]"),
        ({"format": "lora", "rank": 4, "energy": 0.5}, "give only one of the two"),
        ({"format": "lora", "dtype": "fp8"}, "or --format wan or comfyui"),
    ],
)
def test_options_that_will_not_do(exports: Any, options: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=match) as caught:
        export(exports.run, out=exports.folder / "no", quiet=True, **options)
    assert "\n" not in str(caught.value)
    assert not (exports.folder / "no").exists()


def test_each_expert_keeps_its_evaluations() -> None:
    """Verifying takes those of writing: to make one again reads all weights of the network."""
    source: Any = SimpleNamespace(second=SimpleNamespace(second=None))
    spec = ExportSpec(source, FORMATS["lora"], "bf16", Path("out"))
    spec.experts[1].probed["student"] = torch.ones(1)
    assert [list(each.probed) for each in spec.experts] == [[], ["student"]]
    assert [each.expert for each in spec.experts] == [0, 1]
