"""Folders of latents with their captions: a teacher's ODE pairs, or encoded videos.

FOLDER/latents_00000.safetensors holds ``x0 [N, C, T, h, w]`` float32, normalised as the network
sees them, and for ODE pairs the ``noise`` that each was sampled from; its metadata holds the
captions and what made them. Shards appear by rename, so a folder that is still being written, or
whose writing was interrupted, is sound as far as it goes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from lightx2v_sgmd.files.prompts import prompt_problem
from lightx2v_sgmd.files.tensors.safetensors_files import open_tensors
from lightx2v_sgmd.files.tensors.safetensors_writer import write_tensors
from lightx2v_sgmd.outputs import appearing
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.untrusted.json_text import Limits, parse_json

_KEY = "lightx2v_sgmd"


def shard_path(folder: Path, index: int) -> Path:
    """The path of a shard."""
    return folder / f"latents_{index:05d}.safetensors"


def write_shard(
    folder: Path,
    index: int,
    x0: Tensor,
    noise: Tensor | None,
    prompts: Sequence[str],
    origin: Mapping[str, Any],
) -> Path:
    """Writes a shard whole or not at all.

    Args:
        folder: The folder, which is made if it is not there.
        index: Number of the shard, which must not be there yet.
        x0: ``[N, C, T, h, w]``.
        noise: The same, or None for encoded videos.
        prompts: N captions.
        origin: The settings that they were made with; every shard of a folder has the same.
    """
    tensors = {"x0": x0.float()}
    if noise is not None:
        tensors["noise"] = noise.float()
    metadata = {_KEY: json.dumps({"prompts": list(prompts), "origin": dict(origin)})}
    final = shard_path(folder, index)
    try:
        with appearing(final, replace=False, suffix=".safetensors") as temporary:
            write_tensors(temporary, tensors, metadata)
    except FileExistsError as error:
        raise UserError(
            f"{final}: appeared meanwhile and is not replaced; let one command write to a folder"
        ) from error
    return final


def check_origin(folder: Path, origin: Mapping[str, Any]) -> None:
    """Raises if a folder holds latents that something else made, or by other settings.

    Raises:
        UserError: names the first thing that differs.
    """
    if not any(folder.glob("latents_*.safetensors")):
        return
    saved = LatentFolder(folder).origin
    for key in [*origin, *(key for key in saved if key not in origin)]:
        if saved.get(key) != origin.get(key):
            raise UserError(
                f"--out: {folder} holds latents of other settings ({key}); name another folder"
            )


_LIMITS = Limits(size=64_000_000, values=4_000_000, depth=8)
"""Limits of a shard's captions: those of 100,000 videos and more."""


def _about(text: str) -> dict[str, Any]:
    """The metadata of a shard: its captions, and how it was made.

    Raises:
        ValueError: it does not.
    """
    about = parse_json(text, _LIMITS)
    if not isinstance(about, dict) or not isinstance(about.get("origin"), dict):
        raise ValueError("it does not say how it was made")
    prompts = about.get("prompts")
    if not isinstance(prompts, list) or not all(isinstance(p, str) for p in prompts):
        raise ValueError("it has no list of captions")
    problem = next(filter(None, map(prompt_problem, prompts)), None)
    if problem is not None:
        raise ValueError(f"a caption {problem}")
    return about


class LatentFolder:
    """Reads a folder of latents, one at a time.

    Args:
        folder: A folder that ``write_shard`` has filled.

    Raises:
        UserError: there is none, or its shards do not belong together.
    """

    def __init__(self, folder: Path) -> None:
        files = sorted(Path(folder).glob("latents_*.safetensors"))
        if not files:
            raise UserError(
                f"data.latents: {folder} has no latents_*.safetensors; make them with "
                "`lightx2v-sgmd collect-pairs` or `lightx2v-sgmd encode-videos`"
            )
        self.folder = Path(folder)
        self.prompts: list[str] = []
        self.origin: dict[str, Any] = {}
        self._rows: list[tuple[Path, int]] = []
        shapes = set()
        for file in files:
            try:
                with open_tensors(file) as handle:
                    about = _about((handle.metadata() or {})[_KEY])
                    shape = handle.get_slice("x0").get_shape()
                    if not shape or shape[0] != len(about["prompts"]):
                        count = len(about["prompts"])
                        raise ValueError(f"it has {count} captions for latents {shape}")
                    shapes.add((*shape[1:], "noise" in handle.keys()))
            except (SafetensorError, OSError, KeyError, ValueError) as error:
                raise UserError(
                    f"data.latents: {file} cannot be read ({error}); make it again"
                ) from error
            if self.origin and about["origin"] != self.origin:
                raise UserError(
                    f"data.latents: {file} was made in another way than {files[0]}; "
                    "keep one set of latents in a folder"
                )
            self.origin = about["origin"]
            self.prompts += about["prompts"]
            self._rows += [(file, row) for row in range(shape[0])]
        if len(shapes) > 1 or len(self.prompts) != len(self._rows):
            raise UserError(f"data.latents: the shards of {folder} differ in shape; make it again")
        *self.shape, self.has_noise = shapes.pop()
        self._open: dict[Path, Any] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, name: str, indices: Sequence[int]) -> Tensor:
        """``[B, C, T, h, w]`` of ``x0`` or ``noise``."""
        rows = []
        for index in indices:
            file, row = self._rows[index]
            if file not in self._open:
                self._open[file] = open_tensors(file)
            rows.append(self._open[file].get_slice(name)[row : row + 1])
        return torch.cat(rows)
