"""Low-rank adapters beside a frozen network's weights: PEFT's layers, and their names in files.

Files use diffusers' names, ``transformer.blocks.0.attn1.to_q.lora_A.weight``, and state rank and
alpha in the metadata that diffusers reads, so ``load_lora_weights`` takes them as they are.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from torch import Tensor, nn

from lightx2v_sgmd.files.tensors.safetensors_files import check_keys
from lightx2v_sgmd.files.tensors.tensor_reader import WholeTensors
from lightx2v_sgmd.job.schema import AdapterSettings
from lightx2v_sgmd.networks.block_loading import blocks_of
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.system.optional_packages import why_unusable
from lightx2v_sgmd.system.quiet import no_logging
from lightx2v_sgmd.untrusted.json_text import METADATA, parse_json

PREFIX: Final = "transformer."
METADATA_KEY: Final = "lora_adapter_metadata"
"""diffusers' key in a safetensors header: a JSON object whose keys begin with ``PREFIX``."""
_ADAPTER: Final = "default"
_NUMBERED: Final = re.compile(r".*\.\d+\.")
"""The part of a layer's name up to its last number, as of the ResNets of a U-Net."""
_KINDS: Final = ("lora_A", "lora_B")


class Builds(Protocol):
    """A model whose network can be built without weights."""

    @property
    def path(self) -> str:
        """The model's path, for messages."""
        ...

    def build_transformer(self) -> Any:
        """The network, with random weights or none."""
        ...


def check_adapters(lora: AdapterSettings, model: Builds, role: str) -> None:
    """Checks that a job's adapters can be made; loads no weights.

    Args:
        lora: The job's settings.
        model: The teacher.
        role: Role of the network that gets the adapters, for messages.

    Raises:
        UserError: PEFT is missing, or a target is no linear layer of the network.
    """
    problem = why_unusable("peft")
    if problem is not None:
        raise UserError(
            f"{role}.train: lora needs PEFT, which {problem}; install it "
            f"(pip install 'lightx2v-sgmd[lora]') or use {role}.train=full"
        )
    with torch.device("meta"):
        network = model.build_transformer()
    modules = dict(network.named_modules())
    linear = [name for name, module in modules.items() if isinstance(module, nn.Linear)]
    for target in lora.layers:
        found = [name for name in modules if f".{name}".endswith(f".{target}")]
        if not found or not set(found) <= set(linear):
            blocks = tuple(f"{name}." for name in blocks_of(network))
            known = {_in_block(name, blocks) for name in linear}
            raise UserError(
                f"{role}.lora.targets: {target} is not a linear layer of {model.path}; use some of "
                f"{', '.join(sorted(known))}"
            )


def _in_block(name: str, blocks: Sequence[str]) -> str:
    """A layer's name without that of the block, or of the numbered part, that it is in."""
    found = next((name.removeprefix(block) for block in blocks if name.startswith(block)), None)
    return _NUMBERED.sub("", name) if found is None else found


def add_adapters(network: Any, lora: AdapterSettings, seed: int, dtype: torch.dtype) -> None:
    """Puts trainable adapters beside a network's linear layers and freezes everything else.

    The network first computes the same as before, because each product starts as zero.

    Args:
        network: A ``WanTransformer3DModel``; its weights may be sharded by ZeRO-3.
        lora: Rank, alpha and layers.
        seed: Random seed of the first factors; the global generator does not change.
        dtype: Precision of the adapters' weights.
    """
    with no_logging():  # PEFT imports accelerate, and that DeepSpeed where it is installed
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.lora import LoraLayer

    device = next(network.parameters()).device
    network.requires_grad_(False)
    config = LoraConfig(**_settings(lora))
    inject_adapter_in_model(config, network, _ADAPTER, low_cpu_mem_usage=True)  # without values
    for module in network.modules():
        if isinstance(module, LoraLayer):
            # Autocast gives both factors the input's precision; PEFT would copy it to theirs.
            module.cast_input_dtype_enabled = False
    adapters = {name: p for name, p in network.named_parameters() if is_adapter(name)}
    values: Iterable[tuple[str, Tensor]] = adapters.items()
    if device.type != "meta":
        values = initial_values({name: p.shape for name, p in adapters.items()}, seed)
    for name, value in values:
        owner, _, attribute = name.rpartition(".")
        weight = nn.Parameter(value.detach().to(device, dtype))
        setattr(network.get_submodule(owner), attribute, weight)


def trained_shapes(model: Builds, lora: AdapterSettings | None) -> dict[str, torch.Size]:
    """The shapes of a network's trained weights: the adapters, or all weights if there are none."""
    with torch.device("meta"):
        network = model.build_transformer()
    if lora is not None:
        add_adapters(network, lora, 0, torch.float32)
    return {name: p.shape for name, p in trained_parameters(network).items()}


def initial_values(shapes: Mapping[str, torch.Size], seed: int) -> Iterator[tuple[str, Tensor]]:
    """The adapters' first values, float32: A uniform as a linear layer's weights, B zero.

    Args:
        shapes: The adapters' shapes by name; the values of each depend on its own name.
        seed: See ``add_adapters``.
    """
    for name, shape in shapes.items():
        value = torch.zeros(shape)
        if ".lora_A." in name:
            source = torch.Generator().manual_seed(seed ^ zlib.crc32(saved_name(name).encode()))
            nn.init.kaiming_uniform_(value, a=math.sqrt(5), generator=source)
        yield name, value


def is_adapter(name: str) -> bool:
    """True if a parameter of a network belongs to an adapter."""
    return any(f".{kind}." in name for kind in _KINDS)


def saved_name(name: str) -> str:
    """A parameter's name in files: diffusers' own; PEFT's adapter name is left out."""
    if not is_adapter(name):
        return name
    return PREFIX + name.removeprefix(PREFIX).replace(f".{_ADAPTER}.", ".")


def trained_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """The trained parameters of a network, by their names in files."""
    return {saved_name(name): p for name, p in network.named_parameters() if p.requires_grad}


def adapter_metadata(lora: AdapterSettings) -> dict[str, str]:
    """The entry about adapters in the header of their file."""
    settings = {f"{PREFIX}{key}": value for key, value in _settings(lora).items()}
    return {METADATA_KEY: json.dumps(settings, sort_keys=True)}


def adapters_in(metadata: Mapping[str, str]) -> AdapterSettings | None:
    """The adapters that a file's header describes; None if it has none.

    Raises:
        UserError: the entry cannot be read.
    """
    if METADATA_KEY not in metadata:
        return None
    try:
        told = parse_json(metadata[METADATA_KEY], METADATA)
        return AdapterSettings(
            rank=told[f"{PREFIX}r"],
            alpha=told[f"{PREFIX}lora_alpha"],
            targets=told[f"{PREFIX}target_modules"],
        )
    except (ValueError, KeyError, TypeError) as error:  # pydantic's are ValueErrors
        raise UserError(
            f"{METADATA_KEY} in the header does not say rank, alpha and layers; use another file"
        ) from error


@torch.no_grad()
def load_trained(network: Any, files: Sequence[Path]) -> None:
    """Loads a checkpoint's files into a network: all weights, or adapters beside its own.

    Args:
        network: A ``WanTransformer3DModel``; it has the teacher's weights if the files hold
            adapters, and may have such adapters already.
        files: Files of a student.

    Raises:
        UserError: the file is damaged or does not fit the network.
    """
    whole = WholeTensors(files)
    header = whole.header
    lora = adapters_in(header.metadata)
    ranks = {
        info.shape[0] if info.shape else 0
        for name, info in header.tensors.items()
        if ".lora_A." in name
    }
    if lora is not None and ranks != {lora.rank}:  # before memory is taken for it
        raise UserError(
            f"{files[0]}: has adapters of ranks {sorted(ranks)}, not the {lora.rank} it says; use "
            "another file"
        )
    if lora is not None and not any(is_adapter(name) for name, _ in network.named_parameters()):
        add_adapters(network, lora, 0, network.dtype)
    held = {
        saved_name(name): p
        for name, p in network.named_parameters()
        if lora is None or is_adapter(name)
    }
    check_keys(header, {name: tuple(p.shape) for name, p in held.items()}, str(files[0]))
    for name, p in held.items():
        p.copy_(whole.tensor(name))
    network.requires_grad_(False)


def _settings(lora: AdapterSettings) -> dict[str, Any]:
    """The settings under PEFT's names."""
    return {
        "r": lora.rank,
        "lora_alpha": lora.scale * lora.rank,
        "target_modules": list(lora.layers),
        "lora_dropout": 0.0,
        "bias": "none",
    }
