"""Prompts to what the network reads: umT5 when it must, a cache on disk when it can.

The encoder of Wan2.1 has 5.7 billion parameters, so loading it takes longer than a 4-step video.
What it gives for a prompt is kept in ``DIR/<encoder>/<sha256 of the prompt>.safetensors``. Prompts
themselves are not written.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from infer.network.load_progress import encoder_bar
from infer.network.offload import PartSwitcher
from lightx2v_sgmd.families.wan import TextEncoder, WanModel
from lightx2v_sgmd.files.safetensors_files import open_tensors
from lightx2v_sgmd.outputs import appearing, clean_temporaries
from lightx2v_sgmd.system.console import note
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.system.quiet import no_library_bars
from lightx2v_sgmd.text.encoder_fingerprint import encoder_identity

# S text tokens, D text width

TEXT_ENCODER: Final = "text_encoder"
"""The encoder's name among the parts that take turns."""
CACHE_BYTES: Final = 4 * 2**30
"""A cache larger than this loses the entries that were used longest ago."""
_ENTRY: Final = re.compile(r"[0-9a-f]{24}/[0-9a-f]{64}\.safetensors")


class Texts:
    """Encodes prompts, one at a time, with the encoder loaded when first needed.

    Args:
        model: Whose encoder to use.
        device: Where it computes.
        dtype: Its precision, from ``text_dtype``.
        cache: A folder that keeps embeddings.
        parts: Holds the encoder; other parts may have to leave the device for it.
        quiet: No progress bar while it is loaded.
    """

    def __init__(
        self,
        model: WanModel,
        device: torch.device,
        dtype: torch.dtype,
        cache: Path | None = None,
        parts: PartSwitcher | None = None,
        quiet: bool = True,
    ) -> None:
        self.model, self.device, self.dtype, self.quiet = model, device, dtype, quiet
        self.cache = None if cache is None else cache / encoder_identity(model, dtype)
        self._parts = parts or PartSwitcher(device, alternate=False)

    def encode(self, prompts: Sequence[str], quiet: bool = False) -> list[Tensor]:
        """Each prompt's embedding ``[S_i, D]`` on the CPU; says which prompts are cut."""
        # Each by itself: padding would change the last bits with the company that a prompt keeps.
        known: dict[str, tuple[Tensor, str]] = {}
        for prompt in dict.fromkeys(prompts):
            known[prompt] = self._read(prompt) or self._compute(prompt)
        for number, prompt in enumerate(prompts, start=1):
            if known[prompt][1]:
                note(f"prompt {number} {known[prompt][1]}", quiet)
        return [known[prompt][0] for prompt in prompts]

    def _compute(self, prompt: str) -> tuple[Tensor, str]:
        shared = self.device == self._parts.device
        encoder = self._parts.get(TEXT_ENCODER, self._load, moves=shared)
        cut = self._cut(prompt, encoder.tokenizer)
        rows = encoder.encode([prompt])[0].cpu()
        self._write(prompt, rows, cut)
        return rows, cut

    def _load(self) -> TextEncoder:
        with no_library_bars(), encoder_bar(self.model, self.quiet) as bar:
            return self.model.load_text_encoder(
                self.dtype, self.device, lambda name, part: bar.advance()
            )

    def _cut(self, prompt: str, tokenizer: Any) -> str:
        """What is said of a prompt that is too long, or ""."""
        limit = self.model.text_length
        # A token stands for one byte at least; the first space and the end are tokens, too.
        if len(prompt.encode()) + 2 <= limit:
            return ""
        tokens = tokenizer(" ".join(prompt.split()), verbose=False).input_ids
        if len(tokens) <= limit:
            return ""
        lost = tokenizer.decode(tokens[limit - 1 : -1]).strip()
        return (
            f"has {len(tokens)} tokens, the model reads {limit}; "
            f"cut off: {lost[:80]!r}{' ...' if len(lost) > 80 else ''}"
        )

    def _file(self, prompt: str) -> Path | None:
        if self.cache is None:
            return None
        return self.cache / f"{hashlib.sha256(prompt.encode()).hexdigest()}.safetensors"

    def _read(self, prompt: str) -> tuple[Tensor, str] | None:
        """What the cache has for a prompt; a file that cannot be read counts as absent."""
        file = self._file(prompt)
        if file is None or not file.is_file():
            return None
        try:
            with open_tensors(file) as saved:
                rows, cut = saved.get_tensor("rows"), (saved.metadata() or {}).get("cut", "")
        except (SafetensorError, OSError, UserError):
            return None
        if rows.ndim != 2 or rows.shape[1] != self.model.text_dim:
            return None
        with contextlib.suppress(OSError):
            os.utime(file)  # used now: the last to be pruned
        return rows, cut

    def _write(self, prompt: str, rows: Tensor, cut: str) -> None:
        file = self._file(prompt)
        if file is None:
            return
        try:
            with appearing(file, suffix=".safetensors") as temporary:
                save_file({"rows": rows.contiguous()}, temporary, metadata={"cut": cut})
            clean_temporaries(file.parent)
            prune(file.parent.parent, CACHE_BYTES)
        except (OSError, SafetensorError) as error:
            # A cache is no reason to fail: say it once and go on without.
            note(f"the text cache {self.cache} cannot be written: {error}")
            self.cache = None


def prune(folder: Path, limit: int) -> None:
    """Removes the entries used longest ago until the folder has at most ``limit`` bytes.

    Entries are told by their names, which are hashes: other files may lie in the same folder.
    """
    entries = []
    for file in folder.glob("*/*.safetensors"):
        if not _ENTRY.fullmatch(f"{file.parent.name}/{file.name}"):
            continue
        with contextlib.suppress(OSError):  # another process may be pruning, too
            stat = file.stat()
            entries.append((stat.st_mtime, stat.st_size, file))
    total = sum(size for _, size, _ in entries)
    for _, size, file in sorted(entries):
        if total <= limit:
            return
        file.unlink(missing_ok=True)
        total -= size
