"""Options of an export that will not do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lightx2v_sgmd.system.errors import UserError
from weights import export


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
