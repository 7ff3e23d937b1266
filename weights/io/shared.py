"""Copies the parts that a student shares with its teacher: VAE, text encoder and tokenizer.

They go into diffusers exports unchanged: copied where the teacher is in that layout, under
diffusers' names, tensor by tensor, where it is in the original one.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from lightx2v_sgmd.families.base import Model
from lightx2v_sgmd.families.experts import boundary_of
from lightx2v_sgmd.families.sources.parts import IMAGE_PROCESSOR, read_json
from lightx2v_sgmd.families.sources.parts import Part as NetworkPart
from lightx2v_sgmd.files.tensors.dtypes import TORCH_TYPES
from lightx2v_sgmd.files.tensors.safetensors_files import PICKLE_SUFFIXES
from lightx2v_sgmd.files.tensors.safetensors_writer import Part, ShardWriter, split
from lightx2v_sgmd.files.tensors.tensor_reader import WholeTensors
from weights.io.json_files import write_json

_SHARD_SIZE: Final = "5GB"
_STEMS: Final = {"vae": "diffusion_pytorch_model", "text_encoder": "model"}
_TOKENIZER: Final = "tokenizer"


def shared_bytes(model: Model) -> int:
    """The size of the shared parts on disk, in bytes.

    Raises:
        UserError: a part is not on this machine and cannot be fetched, or is damaged.
    """
    networks, tokenizers = _parts(model)
    files = [file for part in networks for file in model.source.files(part)]
    for part in networks:
        _weights(model, part)
    if "image_encoder" in model.image_encoder_parts:
        files += model.source.files("image_encoder")
    for name in tokenizers:
        files += [file for file in model.source.tokenizer(name).rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def write_shared(model: Model, folder: Path, scheduler: str) -> None:
    """Writes the parts as diffusers has them, and the index of the pipeline.

    Args:
        model: The teacher.
        folder: The export.
        scheduler: The class of the student's scheduler in diffusers.
    """
    networks, tokenizers = _parts(model)
    for name in tokenizers:
        shutil.copytree(model.source.tokenizer(name), folder / name, ignore=_not_copied)
    for part in networks:
        if model.source.layout == "diffusers":
            held = model.source.files(part)[0].parent
            model.source.config(part)  # on the hub: fetches it beside the weights
            shutil.copytree(held, folder / part, ignore=_not_copied)
            if part == "vae" and "image_encoder" in model.image_encoder_parts:
                _copy_image_encoder(model, folder)
        else:
            (folder / part).mkdir()
            write_json(folder / part / "config.json", _config(model, part))
            _convert(_weights(model, part), folder / part, _STEMS[part])
    write_json(folder / "model_index.json", _index(model, scheduler))


def _copy_image_encoder(model: Model, folder: Path) -> None:
    held = model.source.files("image_encoder")[0].parent
    model.source.config("image_encoder")  # on the hub: fetches it beside the weights
    shutil.copytree(held, folder / "image_encoder", ignore=_not_copied)
    processor = model.source.image_processor()
    shutil.copytree(processor, folder / IMAGE_PROCESSOR, ignore=_not_copied)


def _parts(model: Model) -> tuple[list[NetworkPart], list[str]]:
    """The networks and the tokenizers that are shared."""
    networks: list[Any] = [p for p in model.pipeline.shared if not p.startswith(_TOKENIZER)]
    return networks, [part for part in model.pipeline.shared if part.startswith(_TOKENIZER)]


def _weights(model: Model, part: NetworkPart) -> WholeTensors:
    if part == "vae":
        return model.vae_weights()
    if part == "text_encoder":
        return model.text_encoder_weights()
    return WholeTensors(model.source.files(part))


def _config(model: Model, part: str) -> Mapping[str, Any]:
    if part == "vae":
        return {"_class_name": model.pipeline.vae, **model.vae_config}
    return model.full_text_encoder_config()


def _convert(weights: WholeTensors, folder: Path, stem: str) -> None:
    parts = [
        Part(name, TORCH_TYPES[info.dtype], info.shape)
        for name, info in weights.header.tensors.items()
    ]
    shards = split(parts, stem, _SHARD_SIZE)
    index = f"{stem}.safetensors.index.json"
    writer = ShardWriter(folder, shards, parts, {"format": "pt"}, index)
    try:
        for part in parts:
            writer.write({part.name: weights.tensor(part.name)})
        writer.finish()
    finally:
        writer.close()


def _index(model: Model, scheduler: str) -> dict[str, Any]:
    """``model_index.json``: the teacher's, or that of its family, with the student's scheduler."""
    pipeline = model.pipeline
    index: dict[str, Any] = {
        "_class_name": pipeline.name,
        "text_encoder": ["transformers", pipeline.text_encoder],
        "tokenizer": ["transformers", _tokenizer_class(model)],
        pipeline.folder: ["diffusers", pipeline.transformer],
        "vae": ["diffusers", pipeline.vae],
    }
    if model.source.layout == "diffusers":
        own = model.source.files("vae")[0].parent.parent / "model_index.json"
        if own.is_file():
            index |= read_json(own)
    boundary = boundary_of(model.experts)
    if boundary is not None:
        index |= {"transformer_2": index[pipeline.folder], "boundary_ratio": boundary}
    index["scheduler"] = ["diffusers", scheduler]
    return index


def _tokenizer_class(model: Model) -> str:
    """The class that diffusers loads the tokenizer with, where the teacher has no index."""
    config = model.source.tokenizer() / "tokenizer_config.json"
    named = read_json(config).get("tokenizer_class") if config.is_file() else None
    return model.pipeline.tokenizer if named in (None, "T5Tokenizer") else str(named)


def _not_copied(folder: str, names: list[str]) -> list[str]:
    """The files that are not copied from a teacher's folder: pickles, code and caches."""
    return [n for n in names if n.startswith(".") or Path(n).suffix in (*PICKLE_SUFFIXES, ".py")]
