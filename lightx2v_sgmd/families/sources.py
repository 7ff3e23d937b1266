"""Finds the parts of a model: in folders, on the hub, and for Wan in single files, too."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

from lightx2v_sgmd.families.hub_configs import known_network_class, known_transformer_config
from lightx2v_sgmd.families.model_folder import PROMPTS_FILE, VIDEO_FILE
from lightx2v_sgmd.families.wan import original as wan_original
from lightx2v_sgmd.families.wan.sampling import BOUNDARIES
from lightx2v_sgmd.files.safetensors_files import refuse_outside_links, weight_files
from lightx2v_sgmd.system.errors import UserError, shortened
from lightx2v_sgmd.untrusted.configs import (
    check_image_encoder,
    check_model_index,
    check_scheduler,
    check_text_encoder,
    check_transformer,
    check_vae,
    refuse_code,
)
from lightx2v_sgmd.untrusted.fields import shown
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
_SUFFIXES: Final = (".safetensors", ".pth")
INDEX: Final = "model_index.json"
IMAGE_PROCESSOR: Final = "image_processor"
_SMALL_FILES: Final = (INDEX, VIDEO_FILE, PROMPTS_FILE)
_FETCHED: Final = ("*.json", "*.safetensors", "*.model", "*.txt")
"""The files that are downloaded from a folder on the hub: no programs, and no pickles."""
_ENCODER_PARTS: Final = tuple(
    f"{part}{number}" for part in ("text_encoder", "tokenizer") for number in ("", "_2", "_3")
)
Checks = Mapping[str, Callable[[Mapping[str, Any]], None]]
"""By part, a function that raises ``UserError`` for a configuration out of its limits."""
_CHECKS: Final[Checks] = {
    "vae": check_vae,
    "text_encoder": check_text_encoder,
    "image_encoder": check_image_encoder,
}
_LAYOUTS: Final = (
    "give a folder as Wan2.1-T2V-1.3B-Diffusers (diffusers) or Wan2.1-T2V-1.3B (original) is"
)
_WHOLE: Final = "copy the model again, with all folders that it was published with"


@dataclass(frozen=True)
class Source:
    """The location of a model's parts.

    Attributes:
        root: The model's folder, or the id of a repository on the hub.
        layout: ``diffusers``: a folder for each part. ``original``: as Wan2.1 was released.
        transformer: Files with the transformer's weights, used instead of those in ``root``.
        network: The folder in ``root`` with the transformer; empty is that of a model with one.
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
        patterns = [f"{within}{stem}*{suffix}" for suffix in (*_SUFFIXES, ".index.json")]
        folder = self._folder(patterns) / within
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
            _checked(path, self.checks[part], config)
        return config

    def scheduler(self) -> dict[str, Any]:
        """The configuration of the model's scheduler.

        Raises:
            UserError: the file is missing or damaged.
        """
        name = "scheduler/scheduler_config.json"
        path = self._folder([name]) / name
        config = read_json(path)
        _checked(path, self.checks.get("scheduler", check_scheduler), config)
        return config

    def tokenizer(self, name: str = "tokenizer") -> Path:
        """The folder of a tokenizer.

        Raises:
            UserError: the folder is missing.
        """
        name = name if self.layout == "diffusers" else wan_original.TOKENIZER
        folder = self._folder(_within(name)) / name
        if not folder.is_dir():
            raise UserError(f"{folder}: is missing; {_WHOLE}")
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
        _checked(path, check_model_index, index)
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


def find_source(path: str) -> tuple[Source, dict[str, Any]]:
    """A model's source and the arguments of its ``WanTransformer3DModel``.

    Args:
        path: A folder or a hub id.

    Raises:
        UserError: the path is neither, or no Wan text-to-video model.
    """
    folder = Path(path)
    if folder.is_dir():
        return _in_folder(folder)
    known = known_transformer_config(path)
    if known is not None:
        if path.endswith("-Diffusers"):
            return Source(path, "diffusers"), known
        if known["in_channels"] != wan_original.VAE_CONFIG["z_dim"]:
            raise UserError(
                f"{path} is in the original layout, in which models that take an image are not "
                f"read; use {path}-Diffusers"
            )
        network = _EXPERTS["original"][0] if path in BOUNDARIES else ""
        return Source(path, "original", network=network), known
    if path.count("/") == 1 and not path.startswith((".", "/", "~")):
        return _on_hub(path)
    raise UserError(
        f"{path} is not a folder; {_LAYOUTS}, a hub id, or 'sprites' for the bundled teacher"
    )


def low_noise_source(source: Source, config: Mapping[str, Any]) -> tuple[Source, float] | None:
    """The source of the second expert of a model that has two, and the time at which they meet.

    Args:
        source: The model's source, from ``find_source``.
        config: The configuration of its first transformer.

    Raises:
        UserError: an expert is missing, or they do not fit together.
    """
    root = Path(source.root)
    if not root.is_dir() and known_transformer_config(source.root) is not None:
        published = BOUNDARIES.get(source.root)
        second = replace(source, network=_EXPERTS[source.layout][1])
        return None if published is None else (second, published)
    if source.layout == "original":
        if not source.network:
            return None
        boundary = BOUNDARIES["Wan-AI/Wan2.2-T2V-A14B"]
    else:
        index = source.model_index()
        ratio, named = index.get("boundary_ratio"), index.get("transformer_2")
        held = (root / _EXPERTS["diffusers"][1]).is_dir()
        if ratio is None and named in (None, [None, None]) and not held:
            return None
        if not isinstance(ratio, float) or not 0 < ratio < 1:
            raise UserError(
                f"{source.root}: has transformer_2, but boundary_ratio in model_index.json is "
                f"{shown(ratio)}, not a number between 0 and 1; copy the model's own file"
            )
        boundary = ratio
    low_noise = replace(source, network=_EXPERTS[source.layout][1])
    if root.is_dir():
        own = _transformer_config(_expert_config(root, low_noise.network))
    else:
        own = without_private(low_noise.config("transformer") or {})
        check_transformer(own)
    if own != dict(config):
        differing = sorted(
            key for key in own.keys() | config.keys() if own.get(key) != config.get(key)
        )
        raise UserError(
            f"{source.root}: its two experts differ in {differing[0]}; give the folder as it was "
            "published"
        )
    return low_noise, boundary


ORIGINAL_EXPERTS: Final = ("high_noise_model", "low_noise_model")
_EXPERTS: Final = {
    "diffusers": ("transformer", "transformer_2"),
    "original": ORIGINAL_EXPERTS,
}
"""The folders of the two experts, by layout: that of the times next to noise comes first."""


def _expert_config(root: Path, name: str) -> Path:
    """The configuration of one of two experts.

    Raises:
        UserError: it is missing.
    """
    path = root / name / "config.json"
    if not path.is_file():
        raise UserError(
            f"{root}: has no {name}/config.json, and needs both experts of the model; copy the "
            "missing one too"
        )
    return path


def network_class(path: str) -> str | None:
    """The class that a model's ``transformer/config.json`` names; None if no such file is readable.

    Args:
        path: A folder or a hub id; the file of one that is not shipped is downloaded.
    """
    folder = Path(path)
    known = None if folder.is_dir() else known_network_class(path)
    if known is not None:
        return known
    file = folder / "transformer" / "config.json"
    if not folder.exists() and path.count("/") == 1 and not path.startswith((".", "/", "~")):
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError

        try:
            file = Path(hf_hub_download(path, "transformer/config.json"))
        except (HfHubHTTPError, OSError, ValueError):  # whoever opens it says what is wrong
            return None
    try:
        return str(read_json(file).get("_class_name")) if file.is_file() else None
    except UserError:  # as above
        return None


def diffusers_source(root: str, checks: Checks) -> Source:
    """The source of a model in diffusers' layout; its small files are checked, none is loaded.

    Args:
        root: A folder or a hub id.
        checks: The limits of the parts' configurations.

    Raises:
        UserError: a file is damaged, or links lead out of the folder.
    """
    folder = Path(root)
    if folder.is_dir():
        parts = ("transformer", "vae", "scheduler", *_ENCODER_PARTS)
        refuse_outside_links(folder, [folder / name for name in (*parts, *_SMALL_FILES)])
        index = folder / "model_index.json"
        if index.is_file():
            _checked(index, check_model_index, read_json(index))
    return Source(root, "diffusers", checks=checks)


def is_whole_model(folder: Path) -> bool:
    """True if a folder has a model's other parts beside its transformer, in either layout."""
    original = any(folder.glob(f"{wan_original.VAE_STEM}.*"))
    networks = _EXPERTS["diffusers"]
    return original or any((folder / name / "config.json").is_file() for name in networks)


def network_in(folder: Path) -> tuple[list[Path], dict[str, Any] | None]:
    """The files of a folder that holds a transformer alone, and its configuration if it has one.

    Args:
        folder: As ``export --format wan`` or ``comfyui`` writes it, or as a trainer does.

    Raises:
        UserError: the files are missing, incomplete, or links out of the folder.
    """
    config = folder / "config.json"
    files = weight_files(folder, wan_original.TRANSFORMER_STEM, by_name=True)
    return files, _transformer_config(config) if config.is_file() else None


def _in_folder(folder: Path) -> tuple[Source, dict[str, Any]]:
    if (folder / "transformer" / "config.json").is_file():
        parts = ("transformer", "transformer_2", "vae", "scheduler", *_ENCODER_PARTS)
        inside = (*parts, "image_encoder", IMAGE_PROCESSOR, *_SMALL_FILES)
        refuse_outside_links(folder, [folder / name for name in inside])
        _check_pipeline(folder)
        return Source(str(folder), "diffusers"), _transformer_config(
            folder / "transformer" / "config.json"
        )
    high, low = _EXPERTS["original"]
    if (folder / high).is_dir() or (folder / low).is_dir():
        weights = [path for name in (high, low) for path in (folder / name).glob("*")]
        others = [path for path in folder.iterdir() if path.suffix in _SUFFIXES]
        refuse_outside_links(folder, [*weights, *others, folder / wan_original.TOKENIZER])
        plain = _transformer_config(_expert_config(folder, high))
        return Source(str(folder), "original", network=high), plain
    config = folder / "config.json"
    if config.is_file():
        files = [path for path in folder.iterdir() if path.suffix in (*_SUFFIXES, ".json")]
        refuse_outside_links(folder, [*files, folder / wan_original.TOKENIZER])
        return Source(str(folder), "original"), _transformer_config(config)
    if (folder / _EXPERTS["diffusers"][1]).is_dir():
        _expert_config(folder, _EXPERTS["diffusers"][0])
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


def _check_pipeline(folder: Path) -> None:
    """Checks the small files that describe how the parts fit together, if they exist."""
    for name, check in (
        ("model_index.json", check_model_index),
        ("scheduler/scheduler_config.json", check_scheduler),
        ("text_encoder/config.json", check_text_encoder),
    ):
        path = folder / name
        if path.is_file():
            config = read_json(path)
            # An encoder of another kind is refused where it is asked for.
            other = name.startswith("text_encoder") and config.get("model_type") != "umt5"
            _checked(path, refuse_code if other else check, config)


def _checked(
    path: Path, check: Callable[[Mapping[str, Any]], None], config: Mapping[str, Any]
) -> None:
    try:
        check(config)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _transformer_config(path: Path) -> dict[str, Any]:
    """Reads a transformer's ``config.json`` of either layout as diffusers' arguments."""
    config = read_json(path)
    kind = config.get("_class_name")
    try:
        refuse_code(config)
        if kind == "WanModel":
            plain = wan_original.diffusers_config(config)
        elif kind == "WanTransformer3DModel":
            plain = without_private(config)
        else:
            raise UserError(
                f"describes a {shortened(str(kind))}, not a WanTransformer3DModel or a WanModel"
            )
        check_transformer(plain)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return plain


def without_private(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration's arguments, without the private keys that diffusers adds."""
    return {key: value for key, value in config.items() if not key.startswith("_")}


def read_json(path: Path) -> dict[str, Any]:
    """Reads a small JSON object.

    Raises:
        UserError: the file is missing or does not hold a JSON object.
    """
    if not path.is_file():
        raise UserError(f"{path}: is missing; {_WHOLE}")
    return read_json_object(path, remedy="copy the model again")
