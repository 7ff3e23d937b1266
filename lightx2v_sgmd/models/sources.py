"""Where the parts of a Wan model are: folders in either layout, the hub, single files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from lightx2v_sgmd.errors import UserError
from lightx2v_sgmd.models import original
from lightx2v_sgmd.models.known import known_transformer_config
from lightx2v_sgmd.tensorfiles import refuse_outside_links, weight_files

Part = Literal["transformer", "vae", "text_encoder"]

_STEMS: Final = {
    "transformer": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}
_ORIGINAL_STEMS: Final = {
    "transformer": original.TRANSFORMER_STEM,
    "vae": original.VAE_STEM,
    "text_encoder": original.TEXT_ENCODER_STEM,
}
_SUFFIXES: Final = (".safetensors", ".pth")
_MAX_CONFIG_BYTES: Final = 1_000_000
_LAYOUTS: Final = (
    "give a folder as Wan2.1-T2V-1.3B-Diffusers (diffusers) or Wan2.1-T2V-1.3B (original) is"
)


@dataclass(frozen=True)
class Source:
    """Where a model's parts are.

    Attributes:
        root: Its folder, or the id of a repository on the hub.
        layout: ``diffusers``: a folder for each part. ``original``: as Wan2.1 was released.
        transformer: A file that has the transformer's weights instead.
    """

    root: str
    layout: Literal["diffusers", "original"]
    transformer: Path | None = None

    def files(self, part: Part) -> list[Path]:
        """The files of a part's weights; downloads them if the model is on the hub.

        Raises:
            UserError: they are not there, or lead out of the folder.
        """
        if part == "transformer" and self.transformer is not None:
            return [self.transformer]
        if self.layout == "diffusers":
            return weight_files(self._folder([f"{part}/*"]) / part, _STEMS[part])
        stem = _ORIGINAL_STEMS[part]
        folder = self._folder([f"{stem}*"])
        if (folder / f"{stem}.safetensors.index.json").is_file():
            return weight_files(folder, stem)
        for suffix in _SUFFIXES:
            # The transformer's name may go on, as "-00001-of-00007" does.
            wide = "*" if part == "transformer" else ""
            found = sorted(folder.glob(f"{stem}{wide}{suffix}"))
            if found:
                refuse_outside_links(folder, found)
                return found
        raise UserError(
            f"{folder}: has no {stem}{_SUFFIXES[0]} or {_SUFFIXES[1]}; give the whole folder of "
            "Wan2.1-T2V-1.3B or -14B"
        )

    def has(self, part: Part) -> bool:
        """Whether a part's weights are on this machine; downloads nothing."""
        here = self
        if not Path(self.root).is_dir():
            from huggingface_hub import snapshot_download

            try:
                here = replace(self, root=snapshot_download(self.root, local_files_only=True))
            except (OSError, ValueError):
                return False
        try:
            return bool(here.files(part))
        except UserError:
            return False

    def config(self, part: Part) -> dict[str, Any] | None:
        """A part's ``config.json``; None where the layout has none."""
        if self.layout == "original":
            return None
        return read_json(self._folder([f"{part}/config.json"]) / part / "config.json")

    def tokenizer(self) -> Path:
        """The tokenizer's folder.

        Raises:
            UserError: it is not there.
        """
        name = "tokenizer" if self.layout == "diffusers" else original.TOKENIZER
        folder = self._folder([f"{name}/*"]) / name
        if not folder.is_dir():
            raise UserError(f"{folder}: is missing; {_LAYOUTS}")
        return folder

    def _folder(self, patterns: Sequence[str]) -> Path:
        folder = Path(self.root)
        if folder.is_dir():
            return folder
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError

        try:
            return Path(snapshot_download(self.root, allow_patterns=list(patterns)))
        except (HfHubHTTPError, OSError, ValueError) as error:
            raise UserError(
                f"{', '.join(patterns)} of {self.root} cannot be fetched "
                f"({type(error).__name__}); check the network, or give a local folder"
            ) from error


def find_source(path: str) -> tuple[Source, dict[str, Any]]:
    """A model's source and the arguments of its ``WanTransformer3DModel``.

    Args:
        path: A folder or a hub id.

    Raises:
        UserError: it is neither, or no Wan text-to-video model.
    """
    folder = Path(path)
    if folder.is_dir():
        return _in_folder(folder)
    known = known_transformer_config(path)
    if known is not None:
        return Source(path, "diffusers" if path.endswith("-Diffusers") else "original"), known
    if path.count("/") == 1 and not path.startswith((".", "/", "~")):
        return _on_hub(path)
    raise UserError(
        f"{path} is not a folder; {_LAYOUTS}, a hub id, or 'sprites' for the bundled teacher"
    )


def _in_folder(folder: Path) -> tuple[Source, dict[str, Any]]:
    if (folder / "transformer" / "config.json").is_file():
        parts = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")
        refuse_outside_links(folder, [folder / name for name in (*parts, "model_index.json")])
        return Source(str(folder), "diffusers"), _transformer_config(
            folder / "transformer" / "config.json"
        )
    config = folder / "config.json"
    if config.is_file():
        files = [path for path in folder.iterdir() if path.suffix in (*_SUFFIXES, ".json")]
        refuse_outside_links(folder, [*files, folder / original.TOKENIZER])
        return Source(str(folder), "original"), _transformer_config(config)
    raise UserError(f"{folder}: has neither transformer/config.json nor config.json; {_LAYOUTS}")


def _on_hub(repository: str) -> tuple[Source, dict[str, Any]]:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    try:
        try:
            config = hf_hub_download(repository, "transformer/config.json")
            source = Source(repository, "diffusers")
        except EntryNotFoundError as error:
            if isinstance(error, LocalEntryNotFoundError):  # the network, not the repository
                raise
            config = hf_hub_download(repository, "config.json")
            source = Source(repository, "original")
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise UserError(
            f"{repository} is neither a folder here nor a Wan model that the hub gives "
            f"({type(error).__name__}); check the name or the network"
        ) from error
    return source, _transformer_config(Path(config))


def _transformer_config(path: Path) -> dict[str, Any]:
    """A transformer's ``config.json`` of either layout as diffusers' arguments."""
    config = read_json(path)
    kind = config.get("_class_name")
    try:
        if kind == "WanModel":
            plain = original.diffusers_config(config)
        elif kind == "WanTransformer3DModel":
            plain = without_private(config)
        else:
            raise UserError(f"describes a {kind}, not a WanTransformer3DModel or a WanModel")
        _check_transformer(plain)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return plain


def without_private(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration's arguments, without what diffusers notes beside them."""
    return {key: value for key, value in config.items() if not key.startswith("_")}


def read_json(path: Path) -> dict[str, Any]:
    """A small JSON object.

    Raises:
        UserError: the file is missing or holds something else.
    """
    if not path.is_file():
        raise UserError(f"{path}: is missing; {_LAYOUTS}")
    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise UserError(f"{path}: is too large for a configuration")
        config = json.loads(path.read_text(encoding="utf-8"))
    except UserError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise UserError(f"{path}: is not a JSON object")
    return config


_SIZES: Final = {
    "num_attention_heads": 1024,
    "attention_head_dim": 1024,
    "num_layers": 1024,
    "ffn_dim": 2**20,
    "text_dim": 2**16,
    "freq_dim": 2**16,
    "in_channels": 1024,
    "out_channels": 1024,
}
"""The largest believable value of each size; the published 14B is far below all of them."""


def _check_transformer(config: dict[str, Any]) -> None:
    """Refuses sizes that are none, and models that are not text-to-video."""
    for name, largest in _SIZES.items():
        value = config.get(name)
        if type(value) is not int or not 1 <= value <= largest:
            raise UserError(f"{name} is {value!r}, not a whole number from 1 to {largest}")
    patch = config.get("patch_size")
    if not _three_sizes(patch):
        raise UserError(f"patch_size is {patch!r}, not three whole numbers from 1 to 16")
    for name in ("image_dim", "added_kv_proj_dim"):
        if config.get(name) is not None:
            raise UserError("describes an image-to-video model; only text-to-video is supported")
    if config["in_channels"] != config["out_channels"]:
        raise UserError(
            f"takes {config['in_channels']} channels and gives {config['out_channels']}, as no "
            "text-to-video model does"
        )


def _three_sizes(value: object) -> bool:
    if not isinstance(value, Iterable) or isinstance(value, str):
        return False
    sizes = list(value)
    return len(sizes) == 3 and all(type(n) is int and 1 <= n <= 16 for n in sizes)
