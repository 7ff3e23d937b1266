"""The parts of a loaded student, each on its device: its networks and its VAE."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Final

from infer.checks import Checked
from infer.engine_plan import EnginePlan, memory_explained, torch_dtype
from infer.network.loading import load_network
from infer.network.offload import PartSwitcher
from infer.vae.decoder import DecodeSettings, VaeDecoder
from lightx2v_sgmd.parallel.ranks import Ranks

NETWORK: Final = "transformer"
VAE: Final = "vae"
TEXT_ROWS = 16
"""Compiled networks that take any number of text rows get multiples of this, so that few shapes
are compiled."""


def _part(expert: int) -> str:
    """The name of an expert's network among the parts."""
    return NETWORK if expert == 0 else f"{NETWORK}_{expert + 1}"


class StudentParts:
    """Loads a student's networks and its VAE when they are first asked for.

    Args:
        checked: The student.
        plan: The settled options.
        ranks: The processes that make a video together.
        quiet: True for no progress bars.
        switcher: Holds the parts; where they take turns, it sends the others away.
    """

    def __init__(
        self, checked: Checked, plan: EnginePlan, ranks: Ranks, quiet: bool, switcher: PartSwitcher
    ) -> None:
        self.model, self.plan = checked.model, plan
        self._video = checked.video
        self._ranks, self._quiet, self._switcher = ranks, quiet, switcher

    def _load_network(self, expert: int) -> Any:
        video = self._video
        explained: AbstractContextManager[None] = nullcontext()
        if video is not None:
            size = (video.height, video.width, video.num_frames)
            explained = memory_explained(self.model, self.plan, size, 1, "loading")
        with explained:
            model = self.model.experts[expert].model
            number = expert if len(self.model.experts) > 1 else None
            return load_network(model, self.plan, self._ranks, self._quiet, number)

    def network_of(self, expert: int) -> Any:
        """An expert's network, on its device. Where parts take turns, the other expert leaves it.

        Args:
            expert: The expert's index in ``Model.experts``.
        """
        return self._switcher.get(
            _part(expert),
            partial(self._load_network, expert),
            moves=not self.plan.memory_mode.offload,
        )

    def network_for(self, text_rows: int, expert: int = 0) -> Any:
        """An expert's network, with the text's padding folded where that helps.

        That is on a CPU, with plain SDPA.

        Folding needs the text to have no more rows than the network is wide; a longer one gets the
        network as it is.
        """
        network = self.network_of(expert)
        if self.plan.device.type != "cpu" or self.plan.attention != "sdpa":
            return network
        if self.plan.compile:
            text_rows += TEXT_ROWS
        if text_rows <= self.model.width:
            self.model.fold_text_padding(network)
        elif getattr(network, "text_padding_is_folded", False):
            self._switcher.drop(_part(expert))
        return self.network_of(expert)

    @property
    def decoder(self) -> Any:
        """The VAE's decoder, in float32 unless asked: bfloat16 shows as banding.

        It is a ``VaeDecoder``, or the VAE itself in families without streamed decoding.
        """
        return self._switcher.get(VAE, self._load_decoder)

    def _load_decoder(self) -> Any:
        dtype = torch_dtype(self.plan.options.vae_dtype)
        if "streamed_decoding" not in self.model.features:
            vae = self.model.load_vae(dtype, self.plan.device)
            if self.plan.memory_mode.tile_vae:
                vae.enable_tiling()
            return vae
        vae = self.model.load_vae(dtype)
        return VaeDecoder(vae, DecodeSettings(compile=self.plan.compile), self.plan.device)

    def release(self, part: str) -> None:
        """Says that a part (``NETWORK``, ``TEXT_ENCODER``) is not needed again.

        Where parts take turns it is then not kept in the main memory. If it is needed after all, it
        is loaded again.
        """
        experts = range(len(self.model.experts))
        for name in map(_part, experts) if part == NETWORK else (part,):
            self._switcher.release(name)
