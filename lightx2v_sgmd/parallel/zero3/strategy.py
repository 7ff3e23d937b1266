"""The strategy ``zero3``: each network, trained or frozen, is sharded over all ranks.

Two rules separate the two updates (the isolation tests break each and see the effect):

- the generator's gradient is taken by ``autograd.grad`` at the fake score's inputs, through its
  module with its weights frozen. A backward pass through the engine would reduce gradients into
  the fake score's next update, without any error;
- so the fake score runs twice: weights gathered for one backward pass are gone for the next.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lightx2v_sgmd.families.base import Model
from lightx2v_sgmd.families.conditioning import Conditioning
from lightx2v_sgmd.families.experts import boundary_of, expert_at
from lightx2v_sgmd.files.student_weights import student_files
from lightx2v_sgmd.files.tensors.safetensors_files import check_keys
from lightx2v_sgmd.methods.base import (
    DISCRIMINATOR,
    PIXEL_DISCRIMINATOR,
    STUDENT,
    TEACHER,
    expert_role,
    role_of,
)
from lightx2v_sgmd.networks.adapters import add_adapters, initial_values, trained_parameters
from lightx2v_sgmd.networks.compiled_passes import compile_passes
from lightx2v_sgmd.networks.gradient_checkpointing import enable_checkpointing
from lightx2v_sgmd.parallel.base import NO_OWN, StrategySettings
from lightx2v_sgmd.parallel.discriminator import backbone_features, build_heads
from lightx2v_sgmd.parallel.precision import by_precision
from lightx2v_sgmd.parallel.ranks import Ranks
from lightx2v_sgmd.parallel.sequence import enable_sequence_parallel, open_sequence_group
from lightx2v_sgmd.parallel.shards import (
    SlicedTensors,
    WholeTensors,
    fill_shards,
    owned,
    put,
    share_frozen,
)
from lightx2v_sgmd.parallel.zero3.engines import (
    build_sharded,
    deepspeed_config,
    disconnect,
    make_engine,
    read_constants,
)
from lightx2v_sgmd.parallel.zero3.master_weights import MasterWeights
from lightx2v_sgmd.parallel.zero3.moving_average import MovingAverage
from lightx2v_sgmd.parallel.zero3.nvme import SwapFolder, check_swapping
from lightx2v_sgmd.parallel.zero3.prefetch import PrefetchByPass
from lightx2v_sgmd.parallel.zero3.two_forwards import TwoForwards
from lightx2v_sgmd.system.compilers import compiles

# B batch, C channels, T latent frames, h, w latent height and width


@dataclass
class _Source:
    """A model on disk whose weights networks start from.

    Attributes:
        whole: The network's weights.
        frozen: The shards of its frozen copy by name, if some network has it.
        trained: The roles that train all of its weights.
        checked: True once its weights were compared with a network's.
    """

    whole: WholeTensors
    frozen: dict[str, Any] | None = None
    trained: list[str] = field(default_factory=list)
    checked: bool = False


class Zero3:
    """Training engines and a sharded teacher.

    Networks are built shard by shard: no process ever holds a whole one. Those that are trained by
    adapters have the shards of the teacher, or of the model that they start from in its place, and
    no copies of them.

    Args:
        model: The teacher, which networks start from.
        settings: The job's settings.
        ranks: The result of ``connect``; ranks that share a video's tokens hold shards, too.
        fold_text: True if the networks attend once to all padding rows of the text.
        own: The models that roles start from in place of the teacher.
    """

    def __init__(
        self,
        model: Model,
        settings: StrategySettings,
        ranks: Ranks,
        fold_text: bool,
        own: Mapping[str, Model] = NO_OWN,
    ) -> None:
        self.settings, self.ranks = settings, ranks
        self.interpolant = model.interpolant
        self._model, self._own = model, own
        self._boundary = boundary_of(model.experts)
        self.trained = settings.trained(len(model.experts))
        self._swap = SwapFolder(settings.offload_dir) if settings.offload_dir else None
        group = open_sequence_group(ranks.share) if ranks.share > 1 else None
        self._named: dict[str, dict[str, Any]] = {}
        self._engines: dict[str, Any] = {}
        self._optimizers: dict[str, torch.optim.AdamW] = {}
        self._prefetch: dict[str, PrefetchByPass] = {}
        sources = [self._open_expert(number, fold_text, group) for number in self._experts]
        if settings.heads is not None:
            for role, heads in build_heads(model, settings.heads).items():
                self._engines[role] = self._engine(role, heads)
        self.shapes: Mapping[str, torch.Size] = {
            name: torch.Size(p.ds_shape) for name, p in self._named[STUDENT].items()
        }
        self.networks: Mapping[str, nn.Module] = {
            role: engine.module for role, engine in self._engines.items()
        }
        self._micro = dict.fromkeys(self.trained, 0)
        for number, opened in enumerate(sources):
            for source in opened:
                self._read_source(source)
            for role in settings.adapters:
                self._write_first_adapters(expert_role(role, number))
        self._average: MovingAverage | None = None
        if settings.ema:
            self._average = MovingAverage(self._masters, self._students)

    @property
    def _experts(self) -> range:
        return range(len(self._model.experts))

    @property
    def _students(self) -> list[str]:
        """The student's roles, one for each expert."""
        return [expert_role(STUDENT, number) for number in self._experts]

    def at(self, role: str, time: Tensor) -> str:
        """The role of the network that serves a batch of times."""
        return expert_role(role, expert_at(self._boundary, time))

    def model_of(self, role: str) -> Model:
        """The model that a role's network started from."""
        return self._own.get(role_of(role), self._model)

    def _open_expert(self, number: int, fold_text: bool, group: Any) -> list[_Source]:
        """Opens the engines of an expert's networks; returns the models to read weights from.

        Args:
            number: The expert's index.
            fold_text: True if the networks attend once to all padding rows of the text.
            group: The ranks that share a video's tokens; None if each has its own.
        """
        settings, networks = self.settings, dict[str, nn.Module]()
        opened: dict[Any, _Source] = {}
        for plain in sorted(settings.networks, key=lambda plain: plain != TEACHER):
            role = expert_role(plain, number)
            model = self.model_of(role).experts[number].model
            key = model.path, model.loras
            if key not in opened:
                opened[key] = _Source(model.transformer_weights())
            source = opened[key]
            network = build_sharded(model, self._config(role)).eval()
            constants = read_constants(network, source.whole)
            if not source.checked:
                shapes = {name: tuple(p.ds_shape) for name, p in network.named_parameters()}
                named = plain if plain in self._own else TEACHER
                check_keys(source.whole.header, shapes | constants, f"{named}.path: {model.path}")
                source.checked = True
            if plain == TEACHER or plain in settings.adapters:
                if source.frozen is None:
                    source.frozen = dict(network.requires_grad_(False).named_parameters())
                else:
                    share_frozen(network, source.frozen)
            else:
                source.trained.append(role)
            if plain in settings.adapters:
                adapters, seed = settings.adapters[plain], settings.adapter_seed(role)
                add_adapters(network, adapters, seed, settings.dtype)
            if fold_text:
                model.fold_text_padding(network)
            # The teacher's as well: some methods send the generator's gradient through it.
            enable_checkpointing(network, settings.checkpointing)
            if group is not None:
                enable_sequence_parallel(network, group)
            fast = "fast_blocks" in self._model.features
            if fast and compiles(settings.compile, self.ranks.device):
                compile_passes(network)
            networks[plain] = network
        for plain in settings.networks:
            role = expert_role(plain, number)
            self._engines[role] = self._engine(role, networks[plain])
        return list(opened.values())

    def _read_source(self, source: _Source) -> None:
        """Reads a model once, into the shards and master weights of all that start from it."""
        masters = [self._masters(role) for role in source.trained]
        names = source.frozen
        if source.trained:  # the order of the optimizers
            names = self._named[source.trained[0]]
        assert names is not None
        held = names if source.frozen is None else {name: source.frozen[name] for name in names}
        copies = [(part for _, _, part in each.parts(write=True)) for each in masters]
        fill_shards(held, source.whole, self.ranks, copies)
        for each in masters:
            each.publish()

    def _write_first_adapters(self, role: str) -> None:
        named, masters = self._named[role], self._masters(role)
        shapes = {name: p.ds_shape for name, p in named.items()}
        first = {
            name: value.flatten()[slice(*self._owned(named[name]))].clone()
            for name, value in initial_values(shapes, self.settings.adapter_seed(role))
        }
        for name, _, master in masters.parts(write=True):
            put(master, first[name])
        masters.publish()

    def _config(self, role: str) -> dict[str, Any]:
        # A folder for each role: DeepSpeed's file names are unique in one engine only.
        folder = None if self._swap is None else self._swap.path / role
        trained, on_gpu = role in self.trained, self.ranks.device.type == "cuda"
        return deepspeed_config(self.settings, trained, on_gpu, folder)

    def _engine(self, role: str, network: nn.Module) -> Any:
        optimizer = None
        if role in self.trained:
            options = self.settings.optimizers[role_of(role)]
            groups = by_precision(trained_parameters(network))
            self._named[role] = {name: p for group in groups for name, p in group.items()}
            optimizer = torch.optim.AdamW(
                [{"params": list(group.values())} for group in groups],
                lr=options.lr,
                betas=options.betas,
                eps=options.eps,
                weight_decay=options.weight_decay,
                fused=True,
            )
            self._optimizers[role] = optimizer
        engine = make_engine(network, optimizer, self._config(role))
        if self._swap is not None and role in self.trained:
            check_swapping(engine.optimizer.optimizer_swapper)
        self._prefetch[role] = PrefetchByPass(engine)
        return engine

    def predict(self, role: str, x_t: Tensor, time: Tensor, conditioning: Conditioning) -> Tensor:
        """Computes a role's prediction; trained roles run through their engines."""
        if role == TEACHER:  # its engine takes no part in a backward pass, its module does
            return self.predict_inside(role, x_t, time, conditioning)
        engine = self._engines[self.at(role, time)]
        return self.model_of(role).predict(engine, x_t, time, conditioning)

    def fake_score_at(
        self, x0: Tensor, x_t: Tensor, time: Tensor, conditioning: Conditioning
    ) -> TwoForwards:
        """Prepares the fake score, which runs once for each update."""
        return TwoForwards(self, x0, x_t, time, conditioning)

    def predict_inside(
        self, role: str, x_t: Tensor, time: Tensor, conditioning: Conditioning
    ) -> Tensor:
        """Computes a role's prediction without its engine's gradient hooks."""
        network = self._engines[self.at(role, time)].module
        return self.model_of(role).predict(network, x_t, time, conditioning)

    def logits(self, x_t: Tensor, time: Tensor, conditioning: Conditioning, update: bool) -> Tensor:
        """Computes logits by heads on the teacher's blocks; in an update, through their engine."""
        assert self.settings.heads is not None, "the method has no discriminator"
        with torch.set_grad_enabled(not update), self._prefetch[TEACHER].labelled("features"):
            run = partial(self.predict_inside, TEACHER, x_t, time, conditioning)
            features = backbone_features(
                self._model, self.networks[TEACHER], run, x_t, self.settings.heads
            )
        heads = self._engines[DISCRIMINATOR] if update else self.networks[DISCRIMINATOR]
        logits: Tensor = heads(features)
        return logits

    def frame_logits(self, features: Sequence[Tensor], update: bool) -> Tensor:
        """Computes logits by heads on a vision encoder; in an update, through their engine."""
        role = PIXEL_DISCRIMINATOR
        logits: Tensor = (self._engines[role] if update else self.networks[role])(features)
        return logits

    def gradient(self, loss: Callable[[Tensor], Tensor], x0: Tensor) -> Tensor:
        """Computes the gradient at a leaf copy of ``x0``, with the heads frozen."""
        leaf = x0.detach().requires_grad_()
        with self.frozen(*(role for role in self.trained if role != STUDENT)):
            return torch.autograd.grad(loss(leaf), leaf)[0]

    @contextmanager
    def frozen(self, *roles: str) -> Iterator[None]:
        """Inside, these roles' weights require no gradient."""
        weights = [p for role in roles for p in self._named[role].values()]
        for p in weights:
            p.requires_grad_(False)
        try:
            yield
        finally:
            for p in weights:
                p.requires_grad_(True)

    def backward(self, role: str, loss: Tensor) -> None:
        """Reduces and adds a micro-batch's gradient; DeepSpeed divides by the accumulation."""
        engine = self._engines[role]
        engine.backward(loss)
        self._micro[role] += 1
        if self._micro[role] < self.settings.accumulation:
            engine.step()  # only counts the micro-batch

    def gradient_norm(self, role: str) -> float:
        """Computes the norm as DeepSpeed's step does, which masks one that is not finite to -1."""
        groups = torch.stack([n.float() for n in self._engines[role].optimizer._get_norm_groups()])
        invalid = bool((groups < 0).any())
        return float("nan") if invalid else float(torch.linalg.vector_norm(groups))

    def step(self, role: str, lr: float) -> float:
        """Clips and updates; DeepSpeed skips the update if the norm is not finite."""
        engine = self._engines[role]
        self._micro[role] = 0
        for group in self._optimizers[role].param_groups:
            group["lr"] = lr
        engine.step()
        if engine.optimizer.overflow:
            return float("nan")
        return float(engine.get_global_grad_norm())

    def update_average(self, decay: float, role: str = STUDENT) -> None:
        """Updates this rank's EMA weights, ``decay * average + (1 - decay) * student``."""
        if self._average is not None:
            self._average.update(decay, role)

    @contextmanager
    def averaged_student(self) -> Iterator[None]:
        """Swaps the EMA weights into the student's master weights."""
        if self._average is None:
            yield
            return
        self._average.exchange()
        try:
            yield
        finally:
            self._average.exchange()

    def whole_tensors(
        self, role: str, averaged: bool = False, to: Mapping[str, int] | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        """Gathers one weight at a time."""
        masters, ranks = self._masters(role), self.ranks
        parts = masters.parts()
        if averaged:
            assert self._average is not None, "the run keeps no EMA weights"
            parts = self._average.parts(role)
        for name, p, part in parts:
            part = part.detach().to(ranks.device)
            mine = to is None or to[name] == ranks.rank
            slices = [torch.empty_like(part) for _ in range(ranks.size)] if mine else None
            if to is None:
                dist.all_gather(slices, part)
            else:
                dist.gather(part, slices, dst=to[name])
            if slices is not None:
                yield name, torch.cat(slices)[: p.ds_numel].view(p.ds_shape).cpu()

    def save_slices(self, role: str) -> dict[str, Tensor]:
        """Copies this rank's part of the state, without padding."""
        masters, slices = self._masters(role), {}
        for group, flat in enumerate(masters.flats()):
            flats = masters.moments(flat)
            if role_of(role) != STUDENT:
                flats["master"] = flat
            for kind, values in flats.items():
                for name, p, part in masters.split(group, values):
                    start, stop = self._owned(p)
                    # A copy, because the next group uses the same buffers.
                    slices[f"{name}/{kind}"] = part.detach()[: stop - start].to("cpu", copy=True)
        return slices

    @torch.no_grad()
    def load(self, checkpoint: Path, updates: Mapping[str, int]) -> None:
        """Reads this rank's part of weights, EMA weights and optimizer state."""
        held = {
            role: WholeTensors(student_files(checkpoint, expert=number))
            for number, role in enumerate(self._students)
        }
        for role in self.trained:
            state = SlicedTensors(sorted((checkpoint / "state").glob(f"{role}.*.safetensors")))
            masters = self._masters(role)
            for group, flat in enumerate(masters.flats(write=True)):
                for name, p, master in masters.split(group, flat):
                    start, stop = self._owned(p)
                    if role in held:
                        put(master, held[role].read(name, start, stop))
                    else:
                        put(master, state.read(f"{name}/master", p.ds_numel, start, stop))
                masters.set_updates(flat, updates[role])
                for kind, moment in masters.moments(flat, start=True).items():
                    for name, p, part in masters.split(group, moment):
                        put(part, state.read(f"{name}/{kind}", p.ds_numel, *self._owned(p)))
            masters.publish()
        for number, role in enumerate(self._students if self._average is not None else ()):
            assert self._average is not None
            average = WholeTensors(student_files(checkpoint, averaged=True, expert=number))
            for name, p, part in self._average.parts(role):
                put(part, average.read(name, *self._owned(p)))

    def close(self) -> None:
        """Releases the engines and leaves the process group; without that, the exit aborts."""
        for engine in self._engines.values():
            engine.destroy()
        self._engines, self._optimizers, self._average = {}, {}, None
        self.networks, self._named = {}, {}
        gc.collect()
        if self._swap is not None:
            self._swap.close()
        disconnect()

    def _masters(self, role: str) -> MasterWeights:
        sharded = self._engines[role].optimizer
        return MasterWeights(sharded, self._optimizers[role], self._named[role])

    def _owned(self, p: Any) -> tuple[int, int]:
        return owned(p.ds_numel, self.ranks.rank, self.ranks.size)
