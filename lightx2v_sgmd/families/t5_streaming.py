"""Runs T5 and umT5 with one block in memory at a time, read from the file when it computes.

umT5-XXL takes 11 GB in bfloat16. Run like this it takes one block (0.4 GB) and the rows of the
tokens that a prompt has, and gives the same bits. Several prompts go through a block together, each
by itself, so that a block is read once for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from lightx2v_sgmd.families.t5 import EMBEDDING
from lightx2v_sgmd.files.tensors.tensor_copy import WeightCopier
from lightx2v_sgmd.files.tensors.tensor_reader import WholeTensors
from lightx2v_sgmd.networks.block_loading import put_weight

# S text tokens, D text width

PROMPTS_AT_ONCE: Final = 32
"""Prompts that go through a block together; their hidden states take a few megabytes each."""
_BLOCKS: Final = "encoder.block."


class StreamedT5:
    """A T5 or umT5 encoder on the CPU whose blocks stay in their file.

    Args:
        network: The encoder, built in ``empty_weights``.
        weights: The encoder's weights, which were checked against it.
        dtype: The precision of the weights.
        in_float32: Function of a weight's name; True for those that are float32 anyway.
    """

    device = torch.device("cpu")

    def __init__(
        self,
        network: Any,
        weights: WholeTensors,
        dtype: torch.dtype,
        in_float32: Callable[[str], bool],
    ) -> None:
        self.config, self._network, self._weights = network.config, network, weights
        self._dtype, self._in_float32 = dtype, in_float32
        self._copier = WeightCopier(self.device)
        self._blocks: nn.ModuleList = network.encoder.block
        for name in weights.header.tensors:
            if name != EMBEDDING and not name.startswith(_BLOCKS):
                put_weight(network, name, self._read(name))
        width = weights.header.tensors[EMBEDDING].shape[1]
        network.set_input_embeddings(_RowsInFile(weights, width, dtype))
        network.eval().requires_grad_(False)

    @torch.no_grad()
    def run_each(self, inputs: Sequence[tuple[Tensor, ...]]) -> list[Tensor]:
        """The last hidden states ``[1, S, D]`` of each prompt.

        Args:
            inputs: Each prompt's arguments of the network: token ids ``[1, S]``, and the mask where
                the family gives one.
        """
        at_first_block = [self._first_block(arguments) for arguments in inputs]
        results: list[Any] = [None] * len(inputs)
        is_t5 = self.config.model_type == "t5"
        for index, block in enumerate(self._blocks):
            names = [f"{_BLOCKS}{index}.{name}" for name, _ in block.named_parameters()]
            for name in names:
                put_weight(self._network, name, self._read(name))
            for number, (arguments, keywords) in enumerate(at_first_block):
                result = results[number] = block(*arguments, **keywords)
                arguments[0] = _hidden(result)
                if is_t5:  # the first block computes the positions' bias for all
                    arguments[2] = result[1]
            block.to_empty(device="meta")
        pairs = zip(inputs, results, strict=True)
        return [self._after_blocks(arguments, result) for arguments, result in pairs]

    def _first_block(self, arguments: tuple[Tensor, ...]) -> tuple[list[Any], dict[str, Any]]:
        """The arguments that the network gives to its first block."""
        catch = _Catch()
        self._network.encoder.block = nn.ModuleList([catch])
        try:
            self._network(*arguments)
        except _Caught:
            return catch.arguments, catch.keywords
        finally:
            self._network.encoder.block = self._blocks
        raise AssertionError("the encoder did not run its blocks")

    def _after_blocks(self, arguments: tuple[Tensor, ...], result: Any) -> Tensor:
        """The network's output for the result of its last block."""
        self._network.encoder.block = nn.ModuleList([_Replay(result)])
        try:
            hidden: Tensor = self._network(*arguments)[0]
            return hidden
        finally:
            self._network.encoder.block = self._blocks

    def _read(self, name: str) -> Tensor:
        dtype = torch.float32 if self._in_float32(name) else self._dtype
        return self._weights.load(name, dtype, self._copier)


def run_each(network: Any, inputs: Sequence[tuple[Tensor, ...]]) -> list[Tensor]:
    """The last hidden states of each prompt, whether the encoder is in memory or in its file.

    Args:
        network: The encoder, or a ``StreamedT5``.
        inputs: As for ``StreamedT5.run_each``.
    """
    if isinstance(network, StreamedT5):
        return network.run_each(inputs)
    return [network(*arguments)[0] for arguments in inputs]


class _RowsInFile(nn.Module):
    """An embedding that reads the rows of the tokens that it is asked for.

    Args:
        weights: The weights, of which ``shared.weight`` is the embedding.
        width: Number of values in a row.
        dtype: The precision of the rows.
    """

    def __init__(self, weights: WholeTensors, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self._weights, self._width, self._dtype = weights, width, dtype

    def forward(self, ids: Tensor) -> Tensor:
        rows = {
            token: self._weights.read(EMBEDDING, token * self._width, (token + 1) * self._width)
            for token in {*ids.flatten().tolist()}
        }
        found = torch.stack([rows[token] for token in ids.flatten().tolist()]).to(self._dtype)
        return found.view(*ids.shape, self._width)


class _Caught(Exception):
    """Raised in place of the first block."""


class _Catch(nn.Module):
    """Stands in for the blocks, and keeps the arguments that the first one would get."""

    def __init__(self) -> None:
        super().__init__()
        self.arguments: list[Any] = []
        self.keywords: dict[str, Any] = {}

    def forward(self, *arguments: Any, **keywords: Any) -> Any:
        self.arguments, self.keywords = list(arguments), keywords
        raise _Caught


class _Replay(nn.Module):
    """Stands in for the blocks, and gives the result of the last one.

    Args:
        result: The result.
    """

    def __init__(self, result: Any) -> None:
        super().__init__()
        self._result = result

    def forward(self, *arguments: Any, **keywords: Any) -> Any:
        return self._result


def _hidden(result: Any) -> Tensor:
    """The hidden states in a block's result, which is a tuple in T5 and in older umT5."""
    return result if isinstance(result, Tensor) else result[0]
