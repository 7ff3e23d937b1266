"""A fingerprint of a model's text encoder, which keeps embeddings of two encoders apart."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch

from lightx2v_sgmd.families.base import Model
from lightx2v_sgmd.families.experts import loras_of
from lightx2v_sgmd.families.sources.parts import Part
from lightx2v_sgmd.outputs import content_hashes


def encoder_kind(model: Model, dtype: torch.dtype) -> str:
    """Names the encoder's architecture and the precision; needs no weights and no tokenizer."""
    digest = hashlib.sha256(f"{dtype} {model.text_length}".encode())
    digest.update(json.dumps(model.full_text_encoder_config(), sort_keys=True).encode())
    return digest.hexdigest()[:24]


def weights_digest(model: Model, *parts: Part) -> str:
    """Names the weights of a model's parts and the transformer's configuration: every byte counts.

    A transformer's weights include the LoRAs that are merged into it, with their strengths.

    ``outputs.content`` stores the hashes of large files, so that each file is read once.
    """
    digest = hashlib.sha256(json.dumps(model.transformer_config, sort_keys=True).encode())
    files = [file for part in parts for file in _files(model, part)]
    for content in content_hashes(files):
        digest.update(content.encode())
    if "transformer" in parts:
        loras = loras_of(model.experts)
        for lora, content in zip(loras, content_hashes([lora.path for lora in loras]), strict=True):
            digest.update(f"{content} {lora.strength}".encode())
    return digest.hexdigest()


def _files(model: Model, part: Part) -> list[Path]:
    """The files of a part; of the transformer, those of all experts."""
    if part != "transformer":
        return model.source.files(part)
    return [file for expert in model.experts for file in expert.model.source.files(part)]


def encoder_identity(model: Model, dtype: torch.dtype) -> str:
    """A name for what decides an embedding: the encoder's weights, its tokenizer and the precision.

    Every byte counts. ``outputs.content`` stores the hashes of large files, so that 11 GB are read
    once and not at every start.
    """
    digest = hashlib.sha256(f"{dtype} {model.text_length}".encode())
    digest.update(json.dumps(model.full_text_encoder_config(), sort_keys=True).encode())
    files = model.text_encoder_files()
    for file, content in zip(files, content_hashes(files), strict=True):
        digest.update(f"{file.name} {content} ".encode())
    return digest.hexdigest()[:24]
