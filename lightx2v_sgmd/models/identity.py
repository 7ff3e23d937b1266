"""Which text encoder a model has: what tells embeddings of one from those of another."""

from __future__ import annotations

import hashlib
import json
from typing import Final

import torch

from lightx2v_sgmd.models.wan import WanModel

_SAMPLES: Final = 64
_SAMPLE_BYTES: Final = 4096


def encoder_kind(model: WanModel, dtype: torch.dtype) -> str:
    """Names the encoder's architecture and the precision; needs no weights and no tokenizer."""
    digest = hashlib.sha256(f"{dtype} {model.text_length}".encode())
    digest.update(json.dumps(model.full_text_encoder_config(), sort_keys=True).encode())
    return digest.hexdigest()[:24]


def encoder_identity(model: WanModel, dtype: torch.dtype) -> str:
    """Names what decides an embedding: the encoder's weights, its tokenizer and the precision.

    Of each weight file it takes the size and 64 places spread over it, the header among them, so
    that 11 GB need not be read.
    """
    digest = hashlib.sha256(f"{dtype} {model.text_length}".encode())
    digest.update(json.dumps(model.full_text_encoder_config(), sort_keys=True).encode())
    tokenizer = sorted(file for file in model.source.tokenizer().rglob("*") if file.is_file())
    for file in (*model.source.files("text_encoder"), *tokenizer):
        size = file.stat().st_size
        digest.update(f"{file.name} {size} ".encode())
        with file.open("rb") as opened:
            if size <= _SAMPLES * _SAMPLE_BYTES:
                digest.update(opened.read())
                continue
            for index in range(_SAMPLES):
                opened.seek(index * (size - _SAMPLE_BYTES) // (_SAMPLES - 1))
                digest.update(opened.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:24]
