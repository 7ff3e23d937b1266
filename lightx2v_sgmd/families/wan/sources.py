"""Finds the parts of a Wan model: in folders of either layout, and on the hub."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from lightx2v_sgmd.families.sources.hub_configs import (
    known_transformer_config,
)
from lightx2v_sgmd.families.sources.parts import (
    ENCODER_PARTS,
    IMAGE_PROCESSOR,
    LAYOUTS,
    OWN_FILE,
    SMALL_FILES,
    SUFFIXES,
    Source,
    check_config,
    read_json,
    without_private,
)
from lightx2v_sgmd.families.wan import original as wan_original
from lightx2v_sgmd.families.wan.sampling import BOUNDARIES
from lightx2v_sgmd.files.expert_files import expert_files
from lightx2v_sgmd.files.tensors.safetensors_files import (
    PICKLE_SUFFIXES,
    refuse_outside_links,
    weight_files,
)
from lightx2v_sgmd.system.errors import UserError, shortened, with_remedy
from lightx2v_sgmd.untrusted.configs import (
    check_model_index,
    check_scheduler,
    check_text_encoder,
    check_transformer,
    refuse_code,
)
from lightx2v_sgmd.untrusted.fields import shown

ORIGINAL_EXPERTS: Final = ("high_noise_model", "low_noise_model")
_EXPERTS: Final = {
    "diffusers": ("transformer", "transformer_2"),
    "original": ORIGINAL_EXPERTS,
}
"""The folders of the two experts, by layout: that of the times next to noise comes first."""


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
        if path not in BOUNDARIES and known["in_channels"] != wan_original.VAE_CONFIG["z_dim"]:
            raise UserError(
                f"{path} is in the original layout, in which models with an image encoder or "
                f"another VAE are not read; use {path}-Diffusers"
            )
        network = _EXPERTS["original"][0] if path in BOUNDARIES else ""
        return Source(path, "original", network=network), known
    if path.count("/") == 1 and not path.startswith((".", "/", "~")):
        return _on_hub(path)
    raise UserError(
        f"{path} is not a folder; {LAYOUTS}, a hub id, or 'sprites' or 'motions' for a bundled "
        "teacher"
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
        kind = "I2V" if config["in_channels"] != config["out_channels"] else "T2V"
        boundary = BOUNDARIES[f"Wan-AI/Wan2.2-{kind}-A14B"]
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


def check_weights_of_experts(source: Source) -> None:
    """Refuses a folder with the weights of one of its experts alone; none at all are fine to plan.

    Raises:
        UserError: an expert lacks them.
    """
    root, experts = Path(source.root), _EXPERTS[source.layout]
    if not root.is_dir():
        return
    suffixes = (*SUFFIXES, *PICKLE_SUFFIXES)
    held = {name: any(f.suffix in suffixes for f in (root / name).iterdir()) for name in experts}
    if len(set(held.values())) > 1:
        missing = next(name for name in experts if not held[name])
        raise UserError(
            f"{root}: has no weights in {missing}, and needs both experts of the model; copy the "
            "missing ones too"
        )


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


def networks_of_experts(folder: Path) -> list[tuple[list[Path], dict[str, Any] | None]] | None:
    """The files and configurations of two experts in a folder that holds nothing else.

    They have a folder each, as ``export --format wan`` writes them, or a file each with
    ``high_noise`` and ``low_noise`` in its name, as ``--format comfyui`` does.

    Returns:
        The high-noise expert's and the low-noise one's, as ``network_in``; None if the folder does
        not hold two experts.

    Raises:
        UserError: files are missing, incomplete, or links out of the folder.
    """
    if all((folder / name).is_dir() for name in ORIGINAL_EXPERTS):
        refuse_outside_links(folder, [folder / name for name in ORIGINAL_EXPERTS])
        return [network_in(folder / name) for name in ORIGINAL_EXPERTS]
    files = expert_files(sorted(folder.glob("*.safetensors")))
    if files is None:
        return None
    refuse_outside_links(folder, files)
    return [([file], None) for file in files]


def _in_folder(folder: Path) -> tuple[Source, dict[str, Any]]:
    if (folder / "transformer" / "config.json").is_file():
        parts = ("transformer", "transformer_2", "vae", "scheduler", *ENCODER_PARTS)
        inside = (*parts, "image_encoder", IMAGE_PROCESSOR, *SMALL_FILES)
        refuse_outside_links(folder, [folder / name for name in inside])
        _check_pipeline(folder)
        return Source(str(folder), "diffusers"), _transformer_config(
            folder / "transformer" / "config.json"
        )
    high, low = _EXPERTS["original"]
    if (folder / high).is_dir() or (folder / low).is_dir():
        weights = [path for name in (high, low) for path in (folder / name).glob("*")]
        others = [path for path in folder.iterdir() if path.suffix in SUFFIXES]
        refuse_outside_links(folder, [*weights, *others, folder / wan_original.TOKENIZER])
        plain = _transformer_config(_expert_config(folder, high))
        return Source(str(folder), "original", network=high), plain
    config = folder / "config.json"
    if config.is_file():
        files = [path for path in folder.iterdir() if path.suffix in (*SUFFIXES, ".json")]
        refuse_outside_links(folder, [*files, folder / wan_original.TOKENIZER])
        return Source(str(folder), "original"), _of_text_alone(config)
    if (folder / _EXPERTS["diffusers"][1]).is_dir():
        _expert_config(folder, _EXPERTS["diffusers"][0])
    raise UserError(f"{folder}: has neither transformer/config.json nor config.json; {LAYOUTS}")


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
            f"{repository} is neither a folder here nor a model that the hub gives "
            f"({type(error).__name__}); check the name or the network"
        ) from error
    file = Path(config)
    return source, (_of_text_alone if source.layout == "original" else _transformer_config)(file)


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
            check_config(path, refuse_code if other else check, config)


def _of_text_alone(path: Path) -> dict[str, Any]:
    """Reads the ``config.json`` of a whole model in the original layout, with one network.

    Raises:
        UserError: the model takes an image: Wan2.1's has an image encoder, which no map covers.
    """
    config = _transformer_config(path)
    taken, given = config["in_channels"], config["out_channels"]
    if taken != given:
        raise UserError(
            f"{path}: takes {taken} channels and gives {given}; {wan_original.IN_DIFFUSERS_ALONE}"
        )
    return config


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
                f"describes a {shortened(str(kind))}, not a WanTransformer3DModel, a WanModel or "
                "the network of CogVideoX, SD3 or SDXL; give one of these models"
            )
        check_transformer(plain)
    except UserError as error:
        raise UserError(f"{path}: {with_remedy(str(error), OWN_FILE)}") from error
    return plain
