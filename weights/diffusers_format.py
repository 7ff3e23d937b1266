"""The diffusers layout: what ``WanPipeline.from_pretrained`` runs in the student's four steps."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from lightx2v_sgmd.errors import UserError
from lightx2v_sgmd.tensorfiles import PICKLE_SUFFIXES, schedule_metadata
from weights.card import model_card
from weights.load import Source
from weights.manifest import manifest_for

DTYPES: Final = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
SHARD_SIZE: Final = "5GB"
STEM: Final = "diffusion_pytorch_model"
COPIED: Final = ("vae", "text_encoder", "tokenizer")
"""Parts of the teacher that a student keeps unchanged."""


def stored_dtype(name: str, dtype: str) -> torch.dtype:
    """The type in which a tensor is stored: diffusers keeps norms and time layers in float32."""
    from diffusers import WanTransformer3DModel

    kept = set(WanTransformer3DModel._keep_in_fp32_modules)
    return torch.float32 if kept & set(name.split(".")) else DTYPES[dtype]


def source_tensors(source: Source, dtype: str) -> Iterator[tuple[str, Tensor]]:
    """The student's tensors one by one, in the types in which they are exported.

    Raises:
        UserError: a value is not finite, or too large for fp16.
    """
    with safe_open(source.weights, framework="pt") as file:
        for name in source.header.tensors:
            tensor: Tensor = file.get_tensor(name)
            if not tensor.isfinite().all():
                raise UserError(
                    f"{source.weights}: {name} has values that are not finite: the run diverged; "
                    "export an earlier checkpoint"
                )
            cast = tensor.to(stored_dtype(name, dtype))
            if not cast.isfinite().all():
                raise UserError(f"dtype: {name} has values beyond fp16's range; use bf16 or fp32")
            yield name, cast


def size_bytes(source: Source, dtype: str) -> int:
    """About what the export takes on disk."""
    student = sum(
        torch.Size(info.shape).numel() * stored_dtype(name, dtype).itemsize
        for name, info in source.header.tensors.items()
    )
    copied = sum(
        path.stat().st_size for part in COPIED for path in (source.teacher / part).rglob("*")
    )
    return student + copied


def write(source: Source, folder: Path, dtype: str, advance: Callable[[int], None]) -> None:
    """Writes every file of the export into ``folder``.

    Args:
        source: What to export.
        folder: An empty folder.
        dtype: A key of ``DTYPES``.
        advance: Told of each tensor that is written.
    """
    for part in COPIED:
        shutil.copytree(source.teacher / part, folder / part, ignore=_not_copied)
    _write_transformer(source, folder / "transformer", dtype, advance)
    scheduler = {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        **source.schedule.diffusers_config(),
    }
    (folder / "scheduler").mkdir()
    _write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    index = json.loads((source.teacher / "model_index.json").read_text(encoding="utf-8"))
    index["scheduler"] = ["diffusers", "FlowMatchEulerDiscreteScheduler"]
    _write_json(folder / "model_index.json", index)
    shutil.copyfile(source.checkpoint / "job.yaml", folder / "job.yaml")
    manifest = manifest_for(source, folder, dtype)
    (folder / "README.md").write_text(model_card(manifest), encoding="utf-8")
    manifest.write(folder)


def _write_transformer(
    source: Source, folder: Path, dtype: str, advance: Callable[[int], None]
) -> None:
    """One file, or shards with an index; one shard at a time is in memory."""
    folder.mkdir()
    config = json.loads((source.teacher / "transformer" / "config.json").read_text("utf-8"))
    _write_json(folder / "config.json", {k: v for k, v in config.items() if k != "_name_or_path"})
    sizes = {
        name: torch.Size(info.shape).numel() * stored_dtype(name, dtype).itemsize
        for name, info in source.header.tensors.items()
    }
    split = split_state_dict_into_shards_factory(
        sizes,
        get_storage_size=lambda size: size,
        filename_pattern=STEM + "{suffix}.safetensors",
        max_shard_size=SHARD_SIZE,
    )
    metadata = schedule_metadata(source.schedule)
    shard: dict[str, Tensor] = {}
    for name, tensor in source_tensors(source, dtype):
        shard[name] = tensor.contiguous()
        advance(1)
        file = split.tensor_to_filename[name]
        if len(shard) == len(split.filename_to_tensors[file]):
            save_file(shard, folder / file, metadata=metadata)
            shard = {}
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        _write_json(folder / f"{STEM}.safetensors.index.json", index)


def _not_copied(folder: str, names: list[str]) -> list[str]:
    """Of a teacher's part: pickles, code and caches stay behind."""
    return [n for n in names if n.startswith(".") or Path(n).suffix in (*PICKLE_SUFFIXES, ".py")]


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
