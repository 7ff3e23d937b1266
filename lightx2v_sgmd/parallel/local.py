"""The strategy ``local``: one process holds everything."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightx2v_sgmd.families.base import Model
from lightx2v_sgmd.families.conditioning import Conditioning
from lightx2v_sgmd.families.experts import boundary_of, expert_at
from lightx2v_sgmd.files.student_weights import student_files
from lightx2v_sgmd.job.schema import Optimizer
from lightx2v_sgmd.methods.base import (
    DISCRIMINATOR,
    FAKE_SCORE,
    PIXEL_DISCRIMINATOR,
    STUDENT,
    TEACHER,
    expert_role,
    role_of,
)
from lightx2v_sgmd.networks.adapters import add_adapters, trained_parameters
from lightx2v_sgmd.networks.compiled_passes import compile_passes
from lightx2v_sgmd.networks.compiling import compile_for_training
from lightx2v_sgmd.networks.fp8_storage import store_in_fp8
from lightx2v_sgmd.networks.gradient_checkpointing import enable_checkpointing
from lightx2v_sgmd.parallel.base import NO_OWN, ScoreLoss, StrategySettings
from lightx2v_sgmd.parallel.discriminator import backbone_features, build_heads
from lightx2v_sgmd.parallel.precision import follow_diffusers
from lightx2v_sgmd.parallel.ranks import Ranks
from lightx2v_sgmd.parallel.shards import SlicedTensors, WholeTensors
from lightx2v_sgmd.system.compilers import compiles
from lightx2v_sgmd.system.console import note

# B batch, C channels, T latent frames, h, w latent height and width


class Local:
    """All networks on one device, the trained weights in float32.

    Networks that are trained by adapters have the weights of the teacher, or of the model that they
    start from in its place, and no copies of them.

    One forward of the fake score serves both updates on one x_t: the generator's gradient goes to
    its inputs, the fake score's own to its weights.

    Args:
        model: The teacher, which networks start from.
        settings: The job's settings.
        device: The device to compute on.
        fold_text: Let the networks attend once to all padding rows of the text.
        own: The models that roles start from in place of the teacher.
    """

    def __init__(
        self,
        model: Model,
        settings: StrategySettings,
        device: torch.device,
        fold_text: bool,
        own: Mapping[str, Model] = NO_OWN,
    ) -> None:
        self.settings = settings
        self.ranks = Ranks(device=device)
        self.interpolant = model.interpolant
        self._model, self._own = model, own
        self._boundary = boundary_of(model.experts)
        self.trained = settings.trained(len(model.experts))
        networks: dict[str, nn.Module] = {}
        for number, expert in enumerate(model.experts):
            for role, network in self._networks(expert.model, number, device):
                # The teacher's as well: some methods send the generator's gradient through it.
                enable_checkpointing(network, settings.checkpointing)
                if role in self.trained and settings.dtype != torch.float32:
                    follow_diffusers(network, device)
                networks[role] = network.eval()
        if fold_text:
            for role, network in networks.items():
                self.model_of(role).fold_text_padding(network)
        if compiles(settings.compile, device):
            for network in networks.values():
                if "fast_blocks" in model.features:
                    compile_passes(network)
                elif settings.compile == "always":
                    compile_for_training(network, note)
        if settings.heads is not None:
            for role, heads in build_heads(model, settings.heads).items():
                networks[role] = heads.to(device)
        self.networks: Mapping[str, nn.Module] = networks
        self._named = {role: trained_parameters(networks[role]) for role in self.trained}
        self._weights: dict[str, list[Tensor]] = {
            role: list(named.values()) for role, named in self._named.items()
        }
        self.shapes: Mapping[str, torch.Size] = {
            name: p.shape for name, p in self._named[STUDENT].items()
        }
        self._optimizers = {
            role: _adamw(self._weights[role], settings.optimizers[role_of(role)])
            for role in self.trained
        }
        self._average: dict[str, list[Tensor]] = {
            role: [p.detach().clone() for p in self._weights[role]]
            for role in self.trained
            if settings.ema and role_of(role) == STUDENT
        }

    def _networks(
        self, teacher: Model, expert: int, device: torch.device
    ) -> Iterator[tuple[str, nn.Module]]:
        """The networks of one expert by role; the teacher's comes first into memory."""
        settings = self.settings
        prepare = _store_block if settings.fp8_storage else None

        def load_frozen(model: Model) -> Any:
            return model.load_transformer(settings.dtype, device, prepare).requires_grad_(False)

        frozen = {(teacher.path, teacher.loras): load_frozen(teacher)}
        for plain in settings.networks:
            role = expert_role(plain, expert)
            model = self._own[plain].experts[expert].model if plain in self._own else teacher
            key = model.path, model.loras
            if plain == TEACHER:
                yield role, frozen[key]
            elif plain in settings.adapters:
                if key not in frozen:
                    frozen[key] = load_frozen(model)
                yield role, _with_adapters(frozen[key], settings, role)
            else:
                yield role, model.load_transformer(torch.float32, device)

    def model_of(self, role: str) -> Model:
        """The model that a role's network started from."""
        return self._own.get(role_of(role), self._model)

    def at(self, role: str, time: Tensor) -> str:
        """The role of the network that serves a batch of times."""
        return expert_role(role, expert_at(self._boundary, time))

    def predict(self, role: str, x_t: Tensor, time: Tensor, conditioning: Conditioning) -> Tensor:
        """Computes a role's prediction; trained roles run under autocast in bfloat16 jobs."""
        dtype, role = self.settings.dtype, self.at(role, time)
        mixed = role in self.trained and dtype != torch.float32
        with torch.autocast(x_t.device.type, dtype, enabled=mixed):
            network = self.networks[role]
            return self.model_of(role).predict(network, x_t, time, conditioning, dtype)

    def fake_score_at(
        self, x0: Tensor, x_t: Tensor, time: Tensor, conditioning: Conditioning
    ) -> _SharedForward:
        """Prepares the fake score, which runs at the first request."""
        return _SharedForward(self, x0, x_t, time, conditioning)

    def logits(self, x_t: Tensor, time: Tensor, conditioning: Conditioning, update: bool) -> Tensor:
        """Computes logits by heads on the teacher's blocks."""
        assert self.settings.heads is not None, "the method has no discriminator"
        with torch.set_grad_enabled(not update):
            run = partial(self.predict, TEACHER, x_t, time, conditioning)
            features = backbone_features(
                self._model, self.networks[TEACHER], run, x_t, self.settings.heads
            )
        logits: Tensor = self.networks[DISCRIMINATOR](features)
        return logits

    def frame_logits(self, features: Sequence[Tensor], update: bool) -> Tensor:
        """Computes logits by heads on a vision encoder's layers."""
        logits: Tensor = self.networks[PIXEL_DISCRIMINATOR](features)
        return logits

    def gradient(self, loss: Callable[[Tensor], Tensor], x0: Tensor) -> Tensor:
        """Computes the gradient at a leaf copy of ``x0``."""
        leaf = x0.detach().requires_grad_()
        return torch.autograd.grad(loss(leaf), leaf)[0]

    def backward(self, role: str, loss: Tensor) -> None:
        """Adds the loss's gradient, divided by the accumulation, to a role's weights alone."""
        torch.autograd.backward(loss / self.settings.accumulation, inputs=self._weights[role])

    def gradient_norm(self, role: str) -> float:
        """Computes the norm over all weights of a role."""
        return float(_norm(self._gradients(role)))

    def _gradients(self, role: str) -> list[Tensor]:
        return [p.grad for p in self._weights[role] if p.grad is not None]

    def step(self, role: str, lr: float) -> float:
        """Clips as DeepSpeed does, ``g / max(1, (|g| + 1e-6) / clip)``, and updates the weights."""
        gradients = self._gradients(role)
        norm = _norm(gradients)
        if norm.isfinite():
            factor = ((norm + 1e-6) / self.settings.clip).clamp(min=1.0)
            torch._foreach_mul_(gradients, 1.0 / factor)
            optimizer = self._optimizers[role]
            optimizer.param_groups[0]["lr"] = lr
            optimizer.step()
        for p in self._weights[role]:
            p.grad = None
        return float(norm)

    @torch.no_grad()
    def update_average(self, decay: float, role: str = STUDENT) -> None:
        """Updates the EMA weights, ``decay * average + (1 - decay) * student``."""
        if self._average:
            torch._foreach_lerp_(self._average[role], self._weights[role], 1 - decay)

    @contextmanager
    def averaged_student(self) -> Iterator[None]:
        """Swaps the EMA weights in."""
        weights = [p for role in self._average for p in self._weights[role]]
        trained = [p.data for p in weights]
        averages = [average for each in self._average.values() for average in each]
        for p, averaged in zip(weights, averages, strict=True):
            p.data = averaged
        try:
            yield
        finally:
            for p, data in zip(weights, trained, strict=True):
                p.data = data

    def whole_tensors(
        self, role: str, averaged: bool = False, to: Mapping[str, int] | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        """Gives each weight, which is whole here."""
        values = self._average.get(role, []) if averaged else self._weights[role]
        for name, value in zip(self._named[role], values, strict=True):
            yield name, value.detach().float().cpu()

    def save_slices(self, role: str) -> dict[str, Tensor]:
        """Copies all of the state: the only slice of the only rank."""
        slices = {}
        for name, p in self._named[role].items():
            state = self._optimizers[role].state[p]
            for kind in ("exp_avg", "exp_avg_sq"):
                moment = state[kind] if state else torch.zeros_like(p)
                slices[f"{name}/{kind}"] = moment.detach().flatten().cpu()
            if role_of(role) != STUDENT:
                slices[f"{name}/master"] = p.detach().flatten().cpu()
        return slices

    @torch.no_grad()
    def load(self, checkpoint: Path, updates: Mapping[str, int]) -> None:
        """Reads weights, EMA weights and optimizer state."""
        students = [expert_role(STUDENT, number) for number in range(len(self._model.experts))]
        held = {
            role: WholeTensors(student_files(checkpoint, expert=number))
            for number, role in enumerate(students)
        }
        for role in self.trained:
            state = SlicedTensors(sorted((checkpoint / "state").glob(f"{role}.*.safetensors")))
            for name, p in self._named[role].items():
                n = p.numel()
                if role in held:
                    values = held[role].read(name, 0, n)
                else:
                    values = state.read(f"{name}/master", n, 0, n)
                p.copy_(values.view_as(p))
                entry = self._optimizers[role].state[p]
                entry["step"] = torch.tensor(float(updates[role]), device=p.device)
                for kind in ("exp_avg", "exp_avg_sq"):
                    moment = torch.empty_like(p, memory_format=torch.preserve_format)
                    entry[kind] = moment.copy_(state.read(f"{name}/{kind}", n, 0, n).view_as(p))
        for number, (_, averages) in enumerate(self._average.items()):
            average = WholeTensors(student_files(checkpoint, averaged=True, expert=number))
            for name, value in zip(self.shapes, averages, strict=True):
                value.copy_(average.read(name, 0, value.numel()).view_as(value))

    def close(self) -> None:
        """Releases the networks."""
        self.networks = {}
        self._named, self._weights, self._optimizers, self._average = {}, {}, {}, {}


def _store_block(name: str, part: nn.Module) -> None:
    """Stores a block in 8 bits as soon as its weights are there."""
    if name:
        store_in_fp8(part)


def _adamw(weights: list[Tensor], options: Optimizer) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        weights,
        lr=options.lr,
        betas=options.betas,
        eps=options.eps,
        weight_decay=options.weight_decay,
        fused=True,
    )


def _with_adapters(frozen: Any, settings: StrategySettings, role: str) -> Any:
    """Builds a network that shares frozen weights and has adapters of its own."""
    shared: dict[int, Any] = {id(p): p for p in frozen.parameters()}
    network = copy.deepcopy(frozen, shared)
    seed = settings.adapter_seed(role)
    add_adapters(network, settings.adapters[role_of(role)], seed, torch.float32)
    return network


def _norm(gradients: list[Tensor]) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    return norm


class _SharedForward:
    """The fake score at a leaf copy of x_t; one graph serves both backward passes."""

    def __init__(
        self, local: Local, x0: Tensor, x_t: Tensor, time: Tensor, conditioning: Conditioning
    ) -> None:
        self._local = local
        self._x0 = x0.detach().requires_grad_()
        self._x_t = x_t.detach().requires_grad_()
        self._run = partial(local.predict, FAKE_SCORE, time=time, conditioning=conditioning)
        self._role = local.at(FAKE_SCORE, time)
        self._predicted: Tensor | None = None

    def generator_gradient(
        self, loss: ScoreLoss, through: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        if through:
            predicted = self._predicted = self._run(x_t=self._x_t)
        else:
            with torch.no_grad():
                predicted = self._run(x_t=self._x_t)
        to_x0, to_x_t = torch.autograd.grad(
            loss(self._x0, self._x_t, predicted),
            [self._x0, self._x_t],
            retain_graph=through,
            allow_unused=True,
        )
        return to_x0, to_x_t

    def backward(self, loss: ScoreLoss) -> None:
        x_t = self._x_t.detach()
        predicted = self._run(x_t=x_t) if self._predicted is None else self._predicted
        self._local.backward(self._role, loss(self._x0.detach(), x_t, predicted))
