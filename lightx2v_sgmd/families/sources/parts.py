"""The parts of a model: where the files of each are, in a folder or on the hub."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

from lightx2v_sgmd.families.sources.hub_configs import (
    known_network_class,
)
from lightx2v_sgmd.families.sources.model_folder import PROMPTS_FILE, VIDEO_FILE
from lightx2v_sgmd.families.wan import original as wan_original
from lightx2v_sgmd.files.tensors.safetensors_files import refuse_outside_links, weight_files
from lightx2v_sgmd.system.errors import UserError, with_remedy
from lightx2v_sgmd.untrusted.configs import (
    check_image_encoder,
    check_model_index,
    check_scheduler,
    check_text_encoder,
    check_vae,
)
from lightx2v_sgmd.untrusted.json_text import read_json_object

Part = Literal[
    "transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3", "image_encoder"
]

_STEMS: Final = {
    "transformer": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
    "text_encoder_3": "model",
    "image_encoder": "model",
}
_ORIGINAL_STEMS: Final = {
    "transformer": wan_original.TRANSFORMER_STEM,
    "vae": wan_original.VAE_STEM,
    "text_encoder": wan_original.TEXT_ENCODER_STEM,
}
_PROGRAMS: Final = (".py", ".pyc", ".so")
SUFFIXES: Final = (".safetensors", ".pth")
INDEX: Final = "model_index.json"
IMAGE_PROCESSOR: Final = "image_processor"
SMALL_FILES: Final = (INDEX, VIDEO_FILE, PROMPTS_FILE)
_FETCHED: Final = ("*.json", "*.safetensors", "*.model", "*.txt")
"""The files that are downloaded from a folder on the hub: no programs, and no pickles."""
ENCODER_PARTS: Final = tuple(
    f"{part}{number}" for part in ("text_encoder", "tokenizer") for number in ("", "_2", "_3")
)
Checks = Mapping[str, Callable[[Mapping[str, Any]], None]]
"""Functions that raise ``UserError`` for a configuration out of its limits, by part."""
_CHECKS: Final[Checks] = {
    "vae": check_vae,
    "text_encoder": check_text_encoder,
    "image_encoder": check_image_encoder,
}
LAYOUTS: Final = (
    "give a folder with Wan2.1 or 2.2, CogVideoX, SD3 or SDXL in diffusers' layout, as "
    "Wan2.1-T2V-1.3B-Diffusers is, or in Wan's original layout, as Wan2.1-T2V-1.3B is"
)
OWN_FILE: Final = "give the file that came with the weights"
WHOLE: Final = "copy the model again, with all folders that it was published with"


@dataclass(frozen=True)
class Source:
    """The location of a model's parts.

    Attributes:
        root: The model's folder, or the id of a repository on the hub.
        layout: ``diffusers``: a folder for each part. ``original``: as Wan2.1 was released.
        transformer: Files with the transformer's weights, used instead of those in ``root``.
        network: The folder in ``root`` with the network; empty is ``transformer`` in diffusers'
            layout, and ``root`` itself in the original one.
        checks: The limits of the parts' configurations; they differ from family to family.
    """

    root: str
    layout: Literal["diffusers", "original"]
    transformer: tuple[Path, ...] = ()
    network: str = ""
    checks: Checks = field(default_factory=lambda: _CHECKS, compare=False, repr=False)

    def files(self, part: Part) -> list[Path]:
        """The files of a part's weights; downloads them if the model is on the hub.

        Raises:
            UserError: the files are missing, or links lead out of the folder.
        """
        if part == "transformer" and self.transformer:
            return list(self.transformer)
        if self.layout == "diffusers":
            name = self.folder_name(part)
            return weight_files(self._folder(_within(name)) / name, _STEMS[part], by_name=True)
        stem = _ORIGINAL_STEMS[part]
        within = f"{self.network}/" if part == "transformer" and self.network else ""
        patterns = [f"{within}{stem}*{suffix}" for suffix in (*SUFFIXES, ".index.json")]
        folder = self._folder(patterns) / within
        if (folder / f"{stem}.safetensors.index.json").is_file():
            return weight_files(folder, stem)
        for suffix in SUFFIXES:
            # The transformer's name may go on, as "-00001-of-00007" does.
            wide = "*" if part == "transformer" else ""
            found = sorted(folder.glob(f"{stem}{wide}{suffix}"))
            if found:
                refuse_outside_links(folder, found)
                return found
        raise UserError(
            f"{folder}: has no {stem}{SUFFIXES[0]} or {SUFFIXES[1]}; give the whole folder of "
            "Wan2.1-T2V-1.3B or -14B"
        )

    def has(self, part: Part) -> bool:
        """True if a part's weights are on this machine; downloads nothing."""
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
        """A part's ``config.json``; None if the layout has none."""
        if self.layout == "original":
            return None
        name = self.folder_name(part)
        path = self._folder([f"{name}/config.json"]) / name / "config.json"
        config = read_json(path)
        if part in self.checks:
            check_config(path, self.checks[part], config)
        return config

    def scheduler(self) -> dict[str, Any]:
        """The configuration of the model's scheduler.

        Raises:
            UserError: the file is missing or damaged.
        """
        name = "scheduler/scheduler_config.json"
        path = self._folder([name]) / name
        config = read_json(path)
        check_config(path, self.checks.get("scheduler", check_scheduler), config)
        return config

    def tokenizer(self, name: str = "tokenizer") -> Path:
        """The folder of a tokenizer.

        Raises:
            UserError: the folder is missing.
        """
        name = name if self.layout == "diffusers" else wan_original.TOKENIZER
        folder = self._folder(_within(name)) / name
        if not folder.is_dir():
            raise UserError(f"{folder}: is missing; {WHOLE}")
        return folder

    def folder_name(self, part: Part) -> str:
        """The name of a part's folder in diffusers' layout."""
        return self.network if part == "transformer" and self.network else part

    def tokenizer_files(self, name: str = "tokenizer") -> list[Path]:
        """The files of a tokenizer that are no programs, sorted; raises as ``tokenizer``."""
        files = sorted(self.tokenizer(name).rglob("*"))
        return [f for f in files if f.is_file() and f.suffix not in _PROGRAMS]

    def image_processor(self) -> Path:
        """The folder with the image encoder's preprocessing.

        Raises:
            UserError: the folder is missing.
        """
        folder = self._folder(_within(IMAGE_PROCESSOR)) / IMAGE_PROCESSOR
        if not folder.is_dir():
            raise UserError(f"{folder}: is missing; copy the model again")
        return folder

    def model_index(self) -> dict[str, Any]:
        """The content of ``model_index.json``; empty without one."""
        if self.layout == "original":
            return {}
        path = self._folder([INDEX]) / INDEX
        if not path.is_file() and Path(self.root).is_dir():
            return {}
        index = read_json(path)
        check_config(path, check_model_index, index)
        return index

    def _folder(self, patterns: Sequence[str]) -> Path:
        folder = Path(self.root)
        if folder.is_dir():
            return folder
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError

        try:
            return Path(snapshot_download(self.root, allow_patterns=list(patterns)))
        except (HfHubHTTPError, OSError, ValueError) as error:
            what = patterns[0].partition("/")[0]
            raise UserError(
                f"{what} of {self.root} cannot be fetched "
                f"({type(error).__name__}); check the network, or give a local folder"
            ) from error


def _within(folder: str) -> list[str]:
    return [f"{folder}/{pattern}" for pattern in _FETCHED]


UNET: Final = "unet"
"""The folder of the network of models with a U-Net."""


def network_class(path: str) -> str | None:
    """The class that the ``config.json`` of a model's network names; None if none is readable.

    It is in ``transformer/``, or in ``unet/``.

    Args:
        path: A folder or a hub id; the file of one that is not shipped is downloaded.
    """
    folder = Path(path)
    known = None if folder.is_dir() else known_network_class(path)
    if known is not None:
        return known
    on_hub = not folder.exists() and path.count("/") == 1 and not path.startswith((".", "/", "~"))
    for name in ("transformer", UNET):
        file = folder / name / "config.json"
        if on_hub:
            from huggingface_hub import hf_hub_download
            from huggingface_hub.errors import HfHubHTTPError

            try:
                file = Path(hf_hub_download(path, f"{name}/config.json"))
            except (HfHubHTTPError, OSError, ValueError):  # whoever opens it says what is wrong
                continue
        try:
            if file.is_file():
                return str(read_json(file).get("_class_name"))
        except UserError:  # as above
            return None
    return None


def diffusers_source(root: str, checks: Checks, network: str = "") -> Source:
    """The source of a model in diffusers' layout; its small files are checked, none is loaded.

    Args:
        root: A folder or a hub id.
        checks: The limits of the parts' configurations.
        network: The folder of the network; empty is ``transformer``.

    Raises:
        UserError: a file is damaged, or links lead out of the folder.
    """
    folder = Path(root)
    if folder.is_dir():
        parts = (network or "transformer", "vae", "scheduler", *ENCODER_PARTS)
        refuse_outside_links(folder, [folder / name for name in (*parts, *SMALL_FILES)])
        index = folder / "model_index.json"
        if index.is_file():
            check_config(index, check_model_index, read_json(index))
    return Source(root, "diffusers", network=network, checks=checks)


def check_config(
    path: Path, check: Callable[[Mapping[str, Any]], None], config: Mapping[str, Any]
) -> None:
    """Checks a configuration that was read from ``path``.

    Raises:
        UserError: ``check`` raises one; the file's name is put before it.
    """
    try:
        check(config)
    except UserError as error:
        raise UserError(f"{path}: {with_remedy(str(error), OWN_FILE)}") from error


def without_private(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration's arguments, without the private keys that diffusers adds."""
    return {key: value for key, value in config.items() if not key.startswith("_")}


def read_json(path: Path) -> dict[str, Any]:
    """Reads a small JSON object.

    Raises:
        UserError: the file is missing or does not hold a JSON object.
    """
    if not path.is_file():
        raise UserError(f"{path}: is missing; {WHOLE}")
    return read_json_object(path, remedy="copy the model again")
