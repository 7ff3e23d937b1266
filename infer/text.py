"""Text embeddings for generation: from the cache if it has them, else from the text encoder.

The encoder of Wan2.1 has 5.7 billion parameters, so loading it takes longer than a 4-step video.
``lightx2v_sgmd.text.cache`` says how embeddings are stored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError

from infer.network.load_progress import encoder_bar
from infer.network.offload import PartSwitcher
from lightx2v_sgmd.families.base import Model
from lightx2v_sgmd.families.conditioning import Embedding
from lightx2v_sgmd.families.encoders import PromptEncoder
from lightx2v_sgmd.outputs import clean_temporaries
from lightx2v_sgmd.system.console import note
from lightx2v_sgmd.text.cache import EmbeddingCache, is_embedding, prune_entries
from lightx2v_sgmd.text.encoder_fingerprint import encoder_identity
from lightx2v_sgmd.text.encoding import encode_each
from lightx2v_sgmd.text.loading import load_encoder

TEXT_ENCODER: Final = "text_encoder"
"""The encoder's name among the parts that take turns."""
CACHE_BYTES: Final = 4 * 2**30
"""Size limit of the cache; above it the entries used longest ago are removed."""


class Texts:
    """Encodes prompts, one at a time, with the encoder loaded when first needed.

    Args:
        model: The model whose encoder is used.
        device: The device of the encoder.
        dtype: The precision of the encoder, from ``Model.text_dtype``.
        cache: A folder of cached embeddings; None to store nothing.
        parts: Holds the encoder; other parts may have to leave the device for it.
        quiet: True to show no progress bar while the encoder is loaded.
        stream: True leaves the encoder's blocks in their file until they compute.
    """

    def __init__(
        self,
        model: Model,
        device: torch.device,
        dtype: torch.dtype,
        cache: Path | None = None,
        parts: PartSwitcher | None = None,
        quiet: bool = True,
        stream: bool = False,
    ) -> None:
        self._stream = stream
        self.model, self.device, self.dtype, self.quiet = model, device, dtype, quiet
        self.cache = (
            None if cache is None else EmbeddingCache(cache / encoder_identity(model, dtype))
        )
        self._parts = parts or PartSwitcher(device, alternate=False)

    def encode(self, prompts: Sequence[str], quiet: bool = False) -> list[Embedding]:
        """Each prompt's embedding on the CPU; says which prompts are cut."""
        known = {
            prompt: saved
            for prompt in dict.fromkeys(prompts)
            if (saved := self._read(prompt)) is not None
        }
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in known]
        if missing:
            encoder = self._parts.get(
                TEXT_ENCODER, self._load, moves=self.device == self._parts.device
            )
            for prompt, row in zip(missing, encode_each(encoder, missing), strict=True):
                known[prompt] = row, self._cut(prompt, lambda: encoder.tokenizer)
                self._write(prompt, *known[prompt])
        for number, prompt in enumerate(prompts, start=1):
            if known[prompt][1]:
                note(f"prompt {number} {known[prompt][1]}", quiet)
        return [known[prompt][0] for prompt in prompts]

    @cached_property
    def _tokenizer(self) -> Any:
        """The tokenizer, for prompts whose embeddings are cached."""
        return self.model.load_tokenizer()

    def _load(self) -> PromptEncoder:
        with encoder_bar(self.model, self.quiet) as bar:
            return load_encoder(
                self.model,
                self.dtype,
                self.device,
                lambda name, part: bar.advance(),
                self._stream,
                self.quiet,
            )

    def _cut(self, prompt: str, load_tokenizer: Callable[[], Any]) -> str:
        """The note about a prompt that is too long; "" if it is not."""
        limit = self.model.text_length
        # A token stands for one byte at least; the first space and the end are tokens, too.
        if len(prompt.encode()) + 2 <= limit:
            return ""
        tokenizer = load_tokenizer()
        tokens = tokenizer(" ".join(prompt.split()), verbose=False).input_ids
        if len(tokens) <= limit:
            return ""
        lost = tokenizer.decode(tokens[limit - 1 : -1]).strip()
        return (
            f"has {len(tokens)} tokens, the model reads {limit}; "
            f"cut off: {lost[:80]!r}{' ...' if len(lost) > 80 else ''}"
        )

    def _read(self, prompt: str) -> tuple[Embedding, str] | None:
        """The cached embedding of a prompt, and the note if the prompt is cut."""
        saved = None if self.cache is None else self.cache.read(prompt)
        if saved is None or not is_embedding(self.model, saved[0], self.dtype):
            return None
        row, metadata = saved
        if "cut" not in metadata:  # training and ``embed`` do not note it, but a tokenizer tells
            return row, self._cut(prompt, lambda: self._tokenizer)
        return row, metadata["cut"]

    def _write(self, prompt: str, row: Embedding, cut: str) -> None:
        if self.cache is None:
            return
        try:
            self.cache.write_entry(prompt, row, {"cut": cut})
            clean_temporaries(self.cache.folder)
            prune_entries(self.cache.folder.parent, CACHE_BYTES)
        except (OSError, SafetensorError) as error:
            # A cache is no reason to fail: say it once and go on without.
            note(f"the text cache {self.cache.folder} cannot be written: {error}")
            self.cache = None
