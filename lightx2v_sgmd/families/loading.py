"""Loads a model's networks from files, whatever family it is of."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from math import prod
from typing import Any, Final

import torch

from lightx2v_sgmd.families.t5 import EMBEDDING_ALIASES
from lightx2v_sgmd.families.t5_streaming import StreamedT5
from lightx2v_sgmd.files.tensors.dtypes import FLOAT_TYPES
from lightx2v_sgmd.files.tensors.safetensors_files import Header, check_keys
from lightx2v_sgmd.files.tensors.tensor_reader import WholeTensors
from lightx2v_sgmd.networks.block_loading import Device, OnPart, fill_network
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.system.host_memory import refuse_too_large
from lightx2v_sgmd.system.optional_packages import prepare_libraries

_SMALL: Final = 2**26
"""Bytes of weights up to which the memory is not asked for."""


def empty_weights() -> Any:
    """A context in which networks are built without weights, but with their constant tables."""
    prepare_libraries()
    from accelerate import init_empty_weights

    return init_empty_weights(include_buffers=False)


def shapes_of(build: Callable[[], Any]) -> dict[str, tuple[int, ...]]:
    """The shapes of the weights of a network that a function builds; takes no memory."""
    with torch.device("meta"):
        state = build().state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def fill(
    network: Any,
    weights: WholeTensors,
    what: str,
    dtype: torch.dtype,
    in_float32: Callable[[str], bool],
    device: Device,
    on_part: OnPart | None = None,
    *,
    aliases: Collection[str] = (),
    refuse: Callable[[Header, Mapping[str, tuple[int, ...]], str], None] | None = None,
) -> Any:
    """Fills an empty network with its weights and returns it in evaluation mode.

    Args:
        network: The network, built in ``empty_weights``.
        weights: The weights, under the network's names.
        what: The weights, for messages.
        dtype: The precision of the weights.
        in_float32: Function of a weight's name; True for those that are float32 anyway.
        device: Device of the weights.
        on_part: See ``block_loading.OnPart``.
        aliases: Second names of weights, which files do not have.
        refuse: Called before the keys are compared; it may name what is wrong better.

    Raises:
        UserError: weights are missing, unexpected, of the wrong shape, or of a type that is not
            loaded; or the main memory does not hold them.
    """
    expected = checked_shapes(network, weights, what, aliases=aliases, refuse=refuse)

    def dtype_of(name: str) -> torch.dtype:
        return torch.float32 if in_float32(name) else dtype

    if torch.device(device).type == "cpu":
        needed = sum(prod(shape) * dtype_of(name).itemsize for name, shape in expected.items())
        if needed > _SMALL:
            remedy = "close other programs, or use a machine with more memory"
            refuse_too_large(needed / 2**30, f"{what}: loading it", remedy)
    fill_network(
        network,
        expected,
        dtype_of,
        weights.load,
        torch.device(device),
        on_part,
    )
    return network.eval()


def checked_shapes(
    network: Any,
    weights: WholeTensors,
    what: str,
    *,
    aliases: Collection[str] = (),
    refuse: Callable[[Header, Mapping[str, tuple[int, ...]], str], None] | None = None,
) -> dict[str, tuple[int, ...]]:
    """The shapes of a network's weights, if these are its weights; arguments as of ``fill``.

    Raises:
        UserError: see ``fill``.
    """
    expected = {
        name: tuple(tensor.shape)
        for name, tensor in network.state_dict().items()
        if name not in aliases
    }
    if refuse is not None:
        refuse(weights.header, expected, what)
    check_keys(weights.header, expected, what)
    for name, info in weights.header.tensors.items():
        if info.dtype not in FLOAT_TYPES:
            raise UserError(
                f"{info.file}: {name} is stored as {info.dtype}, which is not loaded as a "
                "teacher; give the bf16, fp16 or fp32 weights"
            )
    return expected


def load_t5(
    build: Callable[[], Any],
    weights: WholeTensors,
    what: str,
    dtype: torch.dtype,
    device: Device,
    on_part: OnPart | None = None,
    stream: bool = False,
) -> Any:
    """Loads a T5 or umT5 encoder, frozen.

    Args:
        build: Builds the encoder, with random weights.
        weights: The encoder's weights, under transformers' names.
        what: The weights, for messages.
        dtype: The precision of the encoder's weights.
        device: Device of the weights.
        on_part: See ``block_loading.OnPart``.
        stream: True leaves its blocks in the file, see ``t5_streaming``; on the CPU alone.

    Raises:
        UserError: see ``fill``.
    """
    with empty_weights():
        network = build()
    network.set_input_embeddings(network.shared)
    # This product overflows in float16, in every T5.
    in_float32 = partial(within_modules, {"wo"} if dtype == torch.float16 else set())
    aliases = EMBEDDING_ALIASES
    if stream:
        checked_shapes(network, weights, what, aliases=aliases)
        return StreamedT5(network, weights, dtype, in_float32)
    filled = fill(network, weights, what, dtype, in_float32, device, on_part, aliases=aliases)
    filled.requires_grad_(False).set_input_embeddings(filled.shared)
    return filled


def stays_float32(network: Any) -> Callable[[str], bool]:
    """A function of a weight's name: True if diffusers keeps the weight in float32."""
    return partial(within_modules, {*(network._keep_in_fp32_modules or ())})


def within_modules(modules: set[str], name: str) -> bool:
    """True if a weight's name goes through one of these modules."""
    return bool(modules & {*name.split(".")})
