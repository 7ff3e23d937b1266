"""Low-rank adapters beside a frozen network's weights: PEFT's layers, and their names in files.

Files have diffusers' names, ``transformer.blocks.0.attn1.to_q.lora_A.weight``, and say how the
adapters count in the metadata that diffusers reads: ``load_lora_weights`` takes them as they are.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from torch import Tensor, nn

from lightx2v_sgmd.files.safetensors_files import check_keys
from lightx2v_sgmd.files.tensor_reader import WholeTensors
from lightx2v_sgmd.job.schema import Lora
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.system.optional_packages import why_unusable
from lightx2v_sgmd.system.quiet import no_logging
from lightx2v_sgmd.untrusted.json_text import METADATA, parse_json

PREFIX: Final = "transformer."
METADATA_KEY: Final = "lora_adapter_metadata"
"""Of a safetensors file, diffusers' name for it: JSON, its keys behind ``PREFIX``."""
_ADAPTER: Final = "default"
_KINDS: Final = ("lora_A", "lora_B")


class Builds(Protocol):
    """A model whose network can be built without weights."""

    @property
    def path(self) -> str:
        """Where it is, for messages."""
        ...

    def build_transformer(self) -> Any:
        """The network."""
        ...


def check_adapters(lora: Lora, model: Builds, role: str) -> None:
    """Makes sure that a job's adapters can be made; loads no weights.

    Args:
        lora: The job's settings.
        model: The teacher.
        role: Of the network that gets them, for messages.

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
        modules = dict(model.build_transformer().named_modules())
    linear = [name for name, module in modules.items() if isinstance(module, nn.Linear)]
    for target in lora.targets:
        found = [name for name in modules if f".{name}".endswith(f".{target}")]
        if not found or not set(found) <= set(linear):
            known = {n.split(".", 2)[2] if n.startswith("blocks.") else n for n in linear}
            raise UserError(
                f"{role}.lora.targets: {target} is no linear layer of {model.path}; it has "
                f"{', '.join(sorted(known))}"
            )


def add_adapters(network: Any, lora: Lora, seed: int, dtype: torch.dtype) -> None:
    """Puts trainable adapters beside a network's linear layers and freezes everything else.

    The network computes what it did before: each product starts as zero.

    Args:
        network: A ``WanTransformer3DModel``; its weights may be sharded by ZeRO-3.
        lora: Rank, alpha and layers.
        seed: Of the first factors' values; the global generator is left alone.
        dtype: Of the adapters' weights.
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
    made = {name: p for name, p in network.named_parameters() if is_adapter(name)}
    values: Iterable[tuple[str, Tensor]] = made.items()
    if device.type != "meta":
        values = initial_values({name: p.shape for name, p in made.items()}, seed)
    for name, value in values:
        owner, _, attribute = name.rpartition(".")
        weight = nn.Parameter(value.detach().to(device, dtype))
        setattr(network.get_submodule(owner), attribute, weight)


def trained_shapes(model: Builds, lora: Lora | None) -> dict[str, torch.Size]:
    """The shapes of what is trained of a model's network: adapters, or without those all of it."""
    with torch.device("meta"):
        network = model.build_transformer()
    if lora is not None:
        add_adapters(network, lora, 0, torch.float32)
    return {name: p.shape for name, p in trained_parameters(network).items()}


def initial_values(shapes: Mapping[str, torch.Size], seed: int) -> Iterator[tuple[str, Tensor]]:
    """What adapters start from, float32: A uniform as a linear layer's weights, B zero.

    Args:
        shapes: Of the adapters, by any names; the values of each depend on its own name.
        seed: See ``add_adapters``.
    """
    for name, shape in shapes.items():
        value = torch.zeros(shape)
        if ".lora_A." in name:
            draw = torch.Generator().manual_seed(seed ^ zlib.crc32(saved_name(name).encode()))
            nn.init.kaiming_uniform_(value, a=math.sqrt(5), generator=draw)
        yield name, value


def is_adapter(name: str) -> bool:
    """Whether a parameter of a network is an adapter's."""
    return any(f".{kind}." in name for kind in _KINDS)


def saved_name(name: str) -> str:
    """A parameter's name in files: diffusers' own, of adapters without PEFT's name for them."""
    if not is_adapter(name):
        return name
    return PREFIX + name.removeprefix(PREFIX).replace(f".{_ADAPTER}.", ".")


def trained_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """What is trained of a network, by its names in files."""
    return {saved_name(name): p for name, p in network.named_parameters() if p.requires_grad}


def adapter_metadata(lora: Lora) -> dict[str, str]:
    """What a file of adapters says about them in its header."""
    settings = {f"{PREFIX}{key}": value for key, value in _settings(lora).items()}
    return {METADATA_KEY: json.dumps(settings, sort_keys=True)}


def adapters_in(metadata: Mapping[str, str]) -> Lora | None:
    """What a file's header says about the adapters in it; None if it has none.

    Raises:
        UserError: it cannot be read.
    """
    if METADATA_KEY not in metadata:
        return None
    try:
        told = parse_json(metadata[METADATA_KEY], METADATA)
        return Lora(
            rank=told[f"{PREFIX}r"],
            alpha=told[f"{PREFIX}lora_alpha"],
            targets=told[f"{PREFIX}target_modules"],
        )
    except (ValueError, KeyError, TypeError) as error:  # pydantic's are ValueErrors
        raise UserError(
            f"{METADATA_KEY} in the header does not say rank, alpha and layers"
        ) from error


@torch.no_grad()
def load_trained(network: Any, files: Sequence[Path]) -> None:
    """Gives a network what a checkpoint's files hold: all its weights, or adapters beside them.

    Args:
        network: A ``WanTransformer3DModel``, for adapters with the teacher's weights. It may have
            adapters of such a file already.
        files: Of a student.

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
            f"{files[0]}: has adapters of ranks {sorted(ranks)}, not the {lora.rank} it says"
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


def _settings(lora: Lora) -> dict[str, Any]:
    """PEFT's names."""
    return {
        "r": lora.rank,
        "lora_alpha": lora.scale * lora.rank,
        "target_modules": list(lora.targets),
        "lora_dropout": 0.0,
        "bias": "none",
    }
