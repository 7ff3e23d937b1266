"""One model's sizes and memory, measured without its weights, and each result remembered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from distill.planning.discriminators import DiscriminatorMeter
from distill.planning.flops import Operations
from distill.planning.metering import (
    Pass,
    PassMemory,
    fused_attention,
    meter_decoding,
    meter_forward,
    meter_pass,
    prepare_pass,
)
from distill.planning.remembered_shapes import RememberedShapes
from lightx2v_sgmd.families.base import Model
from lightx2v_sgmd.families.teacher import open_own_models
from lightx2v_sgmd.files.prompts import read_images
from lightx2v_sgmd.files.tensors.dtypes import torch_type
from lightx2v_sgmd.job.schema import AdapterSettings, Job
from lightx2v_sgmd.networks.adapters import trained_shapes
from lightx2v_sgmd.networks.block_loading import repeated_blocks
from lightx2v_sgmd.networks.gradient_checkpointing import Checkpointing
from lightx2v_sgmd.parallel import FAKE_SCORE, STUDENT

ROLES = (STUDENT, FAKE_SCORE)
"""The roles that may start from a model of their own."""
WHOLE = 100_000
"""Weights of so many numbers or fewer stay whole (``stage3_param_persistence_threshold``)."""


@dataclass(frozen=True)
class Weights:
    """The number of a network's weights: all, those in small tensors, and the largest tensor."""

    count: int
    small: int
    largest: int

    @classmethod
    def of(cls, sizes: Sequence[int]) -> Weights:
        """Counts tensors of the given sizes."""
        return cls(sum(sizes), sum(n for n in sizes if n <= WHOLE), max(sizes))


class ModelMeter:
    """Measures a model without its weights, and remembers each result.

    Args:
        model: The teacher.
        text_rows: Text rows that its network attends to; default all that it can.
        on_gpu: True if runs would be on GPUs, where ``parallel.compile: auto`` compiles.
    """

    def __init__(self, model: Model, text_rows: int | None = None, on_gpu: bool = True) -> None:
        self.model, self.on_gpu = model, on_gpu
        self.text_rows = model.text_length if text_rows is None else text_rows
        self._passes: dict[Pass, PassMemory] = {}
        self._forwards: dict[Pass, int] = {}
        self._operations: dict[tuple[int, ...], Operations] = {}
        self._decoding: dict[tuple[int, ...], int] = {}
        self.discriminators = DiscriminatorMeter(model)
        self._trained: dict[AdapterSettings, Weights] = {}
        self._own: dict[str, ModelMeter] = {}
        self._images: dict[str, bool] = {}

    def of(self, job: Job, role: str) -> ModelMeter:
        """The meter of the model that a role of a job starts from: of the teacher, or its own."""
        path = {STUDENT: job.student.path, FAKE_SCORE: job.fake_score.path}.get(role)
        if path is None or role not in job.method.roles:
            return self
        if path not in self._own:
            model = open_own_models(job, self.model).get(role)
            own = self if model is None else ModelMeter(model, self.text_rows, self.on_gpu)
            self._own[path] = own
        return self._own[path]

    def others(self, job: Job) -> list[ModelMeter]:
        """The meters of the models other than the teacher that roles of a job start from."""
        found = {id(meter): meter for role in ROLES if (meter := self.of(job, role)) is not self}
        return list(found.values())

    @cached_property
    def network(self) -> Any:
        """The model's network on the meta device.

        The first use of it imports diffusers and transformers, which takes some seconds.
        """
        with torch.device("meta"):
            return self.model.build_transformer()

    @cached_property
    def weights(self) -> Weights:
        """The network's weights."""
        return Weights.of([p.numel() for p in self.network.parameters()])

    @cached_property
    def text_encoder(self) -> int:
        """Numbers in the text encoder."""
        with torch.device("meta"):
            encoder = self.model.build_text_encoder()
        return sum(p.numel() for p in encoder.parameters())

    def frozen(self, job: Job) -> int:
        """Bytes of the frozen network's weights as the job stores them."""
        size = torch_type(job.teacher.dtype).itemsize
        if job.teacher.quantize == "none":
            return size * self.weights.count
        layers = [m for m in repeated_blocks(self.network).modules() if isinstance(m, nn.Linear)]
        matrices = sum(layer.weight.numel() for layer in layers)
        rows = sum(layer.out_features for layer in layers)
        return matrices + 4 * rows + size * (self.weights.count - matrices)

    def operations(self, job: Job) -> Operations:
        """The operations of a forward of the network for one video of a job.

        Where all blocks are alike, one and two of them tell what any number needs.
        """
        key = self.latents(job)
        if key not in self._operations and not self.model.blocks_are_alike:
            whole = count_operations(self.model, key, self.text_rows, self.model.num_blocks)
            self._operations[key] = whole
        if key not in self._operations:
            one, two = (count_operations(self.model, key, self.text_rows, n) for n in (1, 2))
            more = self.model.num_blocks - 1
            self._operations[key] = Operations(
                one.linear + more * (two.linear - one.linear),
                one.attention + more * (two.attention - one.attention),
            )
        return self._operations[key]

    def trained(self, job: Job) -> dict[str, Weights]:
        """The trained weights of the student and, if the method has one, of the fake score."""
        found = {}
        for role, settings in ((STUDENT, job.student), (FAKE_SCORE, job.fake_score)):
            if role in job.method.roles:
                found[role] = self.of(job, role)._trained_weights(settings.adapters)
        return found

    def _trained_weights(self, lora: AdapterSettings | None) -> Weights:
        if lora is None:
            return self.weights
        if lora not in self._trained:
            shapes = trained_shapes(self.model, lora)
            self._trained[lora] = Weights.of([shape.numel() for shape in shapes.values()])
        return self._trained[lora]

    def shares(self, job: Job) -> dict[str, float]:
        """The share of its network's weights that a role trains, by role."""
        return {
            role: weights.count / self.of(job, role).weights.count
            for role, weights in self.trained(job).items()
        }

    def latents(self, job: Job) -> tuple[int, int, int, int]:
        """The latent shape ``(C, T, h, w)`` of a job's videos."""
        return self.model.latent_shape(job.video.height, job.video.width, job.video.frames)

    def image(self, job: Job) -> dict[str, Tensor]:
        """Zeros in place of what an image becomes, if a job's videos start from one.

        Where a video may start from text alone the job's prompts decide, and without their file the
        image does, because it needs more.
        """
        model, prompts = self.model, job.data.prompts
        if prompts not in self._images:
            given = model.takes_image != "never"
            if model.takes_image == "optionally" and Path(prompts).is_file():
                given = bool(read_images(prompts))
            self._images[prompts] = given
        return model.empty_image(self.latents(job)[1:]) if self._images[prompts] else {}

    def passes(
        self,
        job: Job,
        batch: int,
        checkpointing: Checkpointing,
        keeping: bool,
        adapters: AdapterSettings | None = None,
    ) -> PassMemory:
        """The memory of a network's passes in a job, ``batch`` videos at once."""
        planned = self.planned_pass(job, batch)
        what = replace(
            planned,
            checkpointing=checkpointing,
            keeping=keeping,
            adapters=adapters,
            fp8_storage=planned.fp8_storage and adapters is not None,
        )
        if what not in self._passes:
            self._passes[what] = meter_pass(self.model, what)
        return self._passes[what]

    def forward(self, job: Job, batch: int) -> int:
        """Returns the peak of a forward pass of the frozen network, ``batch`` videos at once."""
        what = self.planned_pass(job, batch)
        if what not in self._forwards:
            self._forwards[what] = meter_forward(self.model, what)
        return self._forwards[what]

    def planned_pass(self, job: Job, batch: int) -> Pass:
        """A pass of a job's network, ``batch`` videos at once, without checkpointing."""
        return Pass(
            latents=self.latents(job),
            batch=batch,
            dtype=torch_type(job.teacher.dtype),
            text_rows=self.text_rows,
            checkpointing=False,
            degree=job.parallel.sequence,
            compiled="fast_blocks" in self.model.features
            and job.parallel.compile in (("auto", "always") if self.on_gpu else ("always",)),
            fp8_storage=job.teacher.quantize != "none",
            image=bool(self.image(job)),
        )

    def decoding(self, job: Job) -> int:
        """The memory of the float32 VAE while it decodes a sample video, its weights included."""
        latents = self.latents(job)
        if latents not in self._decoding:
            self._decoding[latents] = meter_decoding(self.model, latents)
        return self._decoding[latents]


def count_operations(
    model: Model, latents: tuple[int, int, int, int], text_rows: int, layers: int
) -> Operations:
    """Counts the operations of a forward of a model's network with so many blocks.

    Args:
        model: The model.
        latents: ``(C, T, h, w)`` of the video.
        text_rows: Text rows that the network attends to, padding included.
        layers: Number of blocks.
    """
    image = model.takes_image == "always"  # what else needs one computes the same without it
    what = Pass(latents, 1, torch.float32, text_rows, checkpointing=False, image=image)
    _, run, x_t = prepare_pass(model, what, layers)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), fused_attention(), RememberedShapes(), counter:
        run(x_t)
    counts = counter.get_flop_counts()["Global"]
    attention = sum(n for operator, n in counts.items() if "attention" in str(operator))
    return Operations(counter.get_total_flops() - attention, attention)
