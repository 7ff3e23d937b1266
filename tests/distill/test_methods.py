"""Every method through the training loop: its gradients, its updates, and what it costs."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distill.counting import PassCounter
from distill.predictions import teacher_x0
from distill.trainer import Trainer
from lightx2v_sgmd.families.base import Model
from lightx2v_sgmd.families.conditioning import Conditioning
from lightx2v_sgmd.families.wan.model import WanModel
from lightx2v_sgmd.families.wan.opening import open_wan
from lightx2v_sgmd.interpolants import Interpolant, VariancePreserving, scaled_linear_alphas
from lightx2v_sgmd.methods import ADM, DMD2, SGMD, TSGSIM, Sample, SiD, TSGFisher
from lightx2v_sgmd.methods.base import Discriminator
from lightx2v_sgmd.parallel import DISCRIMINATOR, FAKE_SCORE, STUDENT, TEACHER, expert_role
from lightx2v_sgmd.rollout import rollout
from tests.families.wan.test_image_to_video import write_prompts
from tests.tiny import Kind, make_tiny_experts, make_tiny_wan
from tests.training import make_job, make_trainer

HEADS = Discriminator(head_every=1, head_channels=32)
METHODS: list[Any] = [
    SGMD(),
    SGMD(weighting="paper"),
    SGMD(fake_score_rollout="fresh"),
    TSGFisher(fake_score_updates=2),
    TSGSIM(),
    SiD(),
    SiD(form="paper", alpha=1.2),
    DMD2(fake_score_updates=2),
    DMD2(fake_score_updates=2, gan_weight=0.1, discriminator=HEADS),
    ADM(guidance_range=(5.0, 7.0), discriminator=HEADS),
]


IN_VP: list[Any] = [
    SGMD(weighting="paper"),
    DMD2(fake_score_updates=2, gan_weight=0.1, discriminator=HEADS),
    ADM(discriminator=HEADS),
]
DISCRETE = VariancePreserving(scaled_linear_alphas(snr_shift=3.0, zero_snr=True), "v")


class DiscreteWan(WanModel):
    """A family of its own: Wan's network, as if it predicted v on a discrete noise schedule."""

    @property
    def interpolant(self) -> Interpolant:
        return DISCRETE

    def predict(
        self, network: Any, x_t: Tensor, time: Tensor, conditioning: Conditioning, dtype: Any = None
    ) -> Tensor:
        return super().predict(network, x_t, DISCRETE.timestep(time) / 1000, conditioning, dtype)


def name_of(method: Any) -> str:
    options = ("form", "gan_weight", "fake_score_rollout")
    return f"{method.name}-{''.join(str(getattr(method, name, '')) for name in options)}"


def trainer_for(
    method: Any, teacher: Path, folder: Path, *settings: str, model: Model | None = None
) -> Trainer:
    """A trainer of that method; real latents, where it reads them, are made up."""
    job = replace(make_job(teacher, folder, *settings), method=method)
    trainer = make_trainer(job, model=model)
    original = trainer.batches.micro_batch

    def with_real(number: int, micro: int) -> Any:
        batch = original(number, micro)
        real = torch.randn(batch.noise.shape, generator=torch.Generator().manual_seed(number))
        return replace(batch, real=real)

    trainer.batches.micro_batch = with_real  # type: ignore[assignment, method-assign]
    return trainer


@pytest.mark.parametrize("method", METHODS, ids=name_of)
def test_gradients_are_those_of_one_plain_graph(
    method: Any, tiny_teacher: Path, tmp_path: Path
) -> None:
    """The leaves and the carried gradient are the chain rule: compare with no such thing."""
    assert_plain_gradients(trainer_for(method, tiny_teacher, tmp_path), method)


@pytest.mark.parametrize("method", IN_VP, ids=name_of)
def test_so_are_those_of_a_family_with_a_discrete_diffusion(
    method: Any, tiny_teacher: Path, tmp_path: Path
) -> None:
    model = DiscreteWan(**vars(open_wan(tiny_teacher)))
    trainer = trainer_for(method, tiny_teacher, tmp_path, "schedule.solver=ddim", model=model)
    assert trainer.strategy.interpolant is DISCRETE
    assert_plain_gradients(trainer, method)


@pytest.mark.slow
@pytest.mark.parametrize("method", [SGMD(weighting="paper"), ADM(discriminator=HEADS)], ids=name_of)
def test_so_are_those_of_a_u_net(method: Any, tiny_sdxl: Path, tmp_path: Path) -> None:
    """SDXL predicts noise, has blocks of several sizes, and makes images in one step."""
    settings = (
        "schedule={base: [1000], shift: 1.0, solver: ddim}",
        "video={height: 32, width: 32}",
    )
    trainer = trainer_for(method, tiny_sdxl, tmp_path, *settings)
    assert trainer.strategy.interpolant.prediction == "epsilon"
    assert_plain_gradients(trainer, method)


PAPER = SGMD(weighting="paper")
CASES: list[tuple[Kind, int, Any]] = [
    *((kind, expert, PAPER) for kind in ("text", "image latents") for expert in (0, 1)),
    ("text", 1, TSGSIM()),
    ("text and image", 0, PAPER),
    ("text and image", 0, ADM(discriminator=HEADS)),
    *(
        ("image", 0, method)
        for method in (
            PAPER,
            DMD2(fake_score_updates=2),
            SiD(),
            TSGSIM(),
            TSGFisher(fake_score_updates=2),
            ADM(discriminator=HEADS),
        )
    ),
]
"""A kind of model, the index of the expert that is trained, and a method."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "expert", "method"), CASES, ids=[f"{k}-{e}-{name_of(m)}" for k, e, m in CASES]
)
def test_so_are_those_of_experts_and_of_videos_that_start_from_an_image(
    kind: Kind, expert: int, method: Any, tmp_path: Path
) -> None:
    """Each of two experts is trained in batches of its own; a given first frame is held."""
    settings = ["video.width=48", "teacher.guidance_scale=4"]
    if kind in ("text", "image latents"):
        teacher = make_tiny_experts(tmp_path / "teacher", kind=kind)
        settings.append("teacher.guidance_scale_2=3")
    else:
        teacher = make_tiny_wan(tmp_path / "teacher", kind=kind)
    if kind != "text":
        second = None if kind == "text and image" else "b.jpg"
        settings.append(f"data.prompts={write_prompts(tmp_path / 'in', 'a.png', second)}")
    trainer = trainer_for(method, teacher, tmp_path, *settings)
    index = next(n for n in range(20) if trainer.batches.expert(n) == expert)
    assert_plain_gradients(trainer, method, index)


def assert_plain_gradients(trainer: Trainer, method: Any, index: int = 0) -> None:
    """Compares the gradients of an update, on the batch of an index, with those of whole graphs."""
    strategy: Any = trainer.strategy
    got = trainer.add_gradients(0, batch_index=index, iteration=0)
    plain = {STUDENT, *({FAKE_SCORE} if not method.fresh_rollouts else ())}
    plain |= {DISCRIMINATOR} & {*method.roles}
    assert set(got) == {expert_role(role, trainer.batches.expert(index)) for role in plain}
    ours = {role: gradients(network) for role, network in strategy.networks.items()}
    for network in strategy.networks.values():
        network.zero_grad(set_to_none=True)
    expected = plain_gradients(trainer, method, index)
    for role, network in strategy.networks.items():
        if role not in got:
            assert all(g is None for g in ours[role]), f"{role} has gradient"
            continue
        assert sum(float(g.abs().sum()) for g in ours[role]) > 0
        for mine, theirs, p in zip(ours[role], expected[role], network.parameters(), strict=True):
            scale = float(theirs.abs().max())
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5 * scale + 1e-9)
            assert mine.shape == p.shape


def gradients(network: nn.Module) -> list[Any]:
    return [p.grad for p in network.parameters()]


def plain_gradients(trainer: Trainer, method: Any, index: int) -> dict[str, list[Tensor]]:
    """By role, from whole graphs through every network, built without the trainer's parts."""
    strategy: Any = trainer.strategy
    path: Interpolant = strategy.interpolant
    batch = trainer.batches.micro_batch(index, 0)
    sigma, told = batch.time, batch.conditioning
    scale = trainer.job.teacher.guidance_of(batch.expert)
    if method.guidance_range is not None:
        scale = trainer.batches.uniform("guidance", index, *method.guidance_range)
        assert method.guidance_range[0] < scale < method.guidance_range[1]

    def student() -> Tensor:
        velocity = partial(strategy.predict, STUDENT, conditioning=told)
        steps, last = trainer.job.steps, trainer.batches.exit_step(index)
        return rollout(velocity, batch.noise, steps, last, interpolant=path)

    def sample(x0: Tensor, update: bool) -> Sample:
        x_t = path.add_noise(x0, batch.score_noise, sigma)
        seen = x_t if method.through_fake_score else x_t.detach()
        velocity = strategy.predict(FAKE_SCORE, seen, sigma, told)
        real = teacher_x0(
            trainer.strategy, x_t if method.through_teacher else x_t.detach(), batch, scale
        )
        if update:
            velocity, x_t, real = velocity.detach(), x_t.detach(), real.detach()
        return Sample(
            x0=x0,
            noise=batch.score_noise,
            time=sigma,
            x_t=x_t,
            predicted_fake=velocity,
            x_fake=path.x0(x_t, velocity, sigma),
            interpolant=path,
            x_real=real,
            discriminate=lambda x, s: strategy.logits(
                x, s, told.repeated(len(x) // told.batch), update
            ),
            real=batch.real,
        )

    def gradient(role: str, losses: dict[str, Tensor]) -> list[Tensor]:
        total = torch.stack([values.mean() for values in losses.values()]).sum()
        weights = list(strategy.networks[expert_role(role, batch.expert)].parameters())
        found = torch.autograd.grad(total, weights, allow_unused=True)
        return [
            g if g is not None else torch.zeros_like(p) for g, p in zip(found, weights, strict=True)
        ]

    result = {STUDENT: gradient(STUDENT, method.generator_losses(sample(student(), False)))}
    fixed = student().detach()
    result[FAKE_SCORE] = gradient(FAKE_SCORE, method.fake_score_losses(sample(fixed, False)))
    if DISCRIMINATOR in method.roles:
        discriminator_loss = method.discriminator_losses(sample(fixed, True))
        result[DISCRIMINATOR] = gradient(DISCRIMINATOR, discriminator_loss)
    return {expert_role(role, batch.expert): found for role, found in result.items()}


@pytest.mark.parametrize("method", METHODS, ids=name_of)
def test_an_iteration_updates_the_roles_it_declares(
    method: Any, tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_for(method, tiny_teacher, tmp_path)
    strategy: Any = trainer.strategy
    steps: list[str] = []
    original = strategy.step

    def noted(role: str, lr: float) -> float:
        steps.append(role)
        return float(original(role, lr))

    monkeypatch.setattr(strategy, "step", noted)
    before = {r: [p.detach().clone() for p in n.parameters()] for r, n in strategy.networks.items()}
    result = trainer.iterate(0)
    assert steps.count(STUDENT) == 1 and steps.count(FAKE_SCORE) == method.fake_score_updates
    assert set(result.grad_norm) == set(result.lr) == {*method.roles} == {*steps}
    for role, network in strategy.networks.items():
        changed = any(
            not torch.equal(old, new)
            for old, new in zip(before[role], network.parameters(), strict=True)
        )
        assert changed == (role in method.roles), role
        assert all(p.grad is None for p in network.parameters())


def passes(method: Any, teacher: Path, folder: Path, *settings: str) -> dict[str, Any]:
    trainer = trainer_for(method, teacher, folder, *settings)
    trainer.batches.exit_step = lambda exit_index: 1  # type: ignore[method-assign]
    counter = PassCounter(trainer.strategy.networks, samples=2)
    trainer.iterate(0)
    return counter.take()


def test_what_sgmd_costs(tiny_teacher: Path, tmp_path: Path) -> None:
    """With the second step differentiable: 2 forwards of the student instead of the mean 2.5."""
    counts = passes(SGMD(), tiny_teacher, tmp_path)
    assert counts["forwards"] == {STUDENT: 2, FAKE_SCORE: 1, TEACHER: 2}
    assert counts["backwards"] == {STUDENT: 1, FAKE_SCORE: 2, TEACHER: 0}
    assert counts["weight_backwards"] == {STUDENT: 1, FAKE_SCORE: 1, TEACHER: 0}
    assert counts["forward_equivalents"] == 10
    again = passes(SGMD(), tiny_teacher, tmp_path, "parallel.gradient_checkpointing=true")
    assert again["recomputed"] == {STUDENT: 1, FAKE_SCORE: 2, TEACHER: 0}
    assert again["forward_equivalents"] == 13  # 13.5 with the mean exit step


def test_what_sgmd_costs_as_the_public_trainer_runs_it(tiny_teacher: Path, tmp_path: Path) -> None:
    """A second rollout for the fake score, whose one forward is then its own."""
    counts = passes(SGMD(fake_score_rollout="fresh"), tiny_teacher, tmp_path)
    assert counts["forwards"] == {STUDENT: 2 + 2, FAKE_SCORE: 1 + 1, TEACHER: 2}
    assert counts["weight_backwards"] == {STUDENT: 1, FAKE_SCORE: 1, TEACHER: 0}


def test_what_dmd2_costs(tiny_teacher: Path, tmp_path: Path) -> None:
    counts = passes(DMD2(), tiny_teacher, tmp_path, "parallel.gradient_checkpointing=true")
    assert counts["forwards"] == {STUDENT: 2 + 5 * 2, FAKE_SCORE: 1 + 5, TEACHER: 2}
    assert counts["backwards"] == {STUDENT: 1, FAKE_SCORE: 5, TEACHER: 0}
    assert counts["forward_equivalents"] == 8 + 5 * 6  # 41 with the mean exit step


def test_fresh_rollouts_and_guidance_differ_from_update_to_update(
    tiny_teacher: Path, tmp_path: Path
) -> None:
    trainer = trainer_for(DMD2(fake_score_updates=3), tiny_teacher, tmp_path)
    draws: list[int] = []
    original = trainer.batches.micro_batch

    def noted(batch_index: int, micro: int) -> Any:
        draws.append(batch_index)
        return original(batch_index, micro)

    trainer.batches.micro_batch = noted  # type: ignore[method-assign]
    trainer.iterate(0)
    trainer.iterate(1)
    assert draws == list(range(8))
    drawn = {trainer.batches.uniform("guidance", i, 5.0, 7.0) for i in range(50)}
    assert len(drawn) == 50 and min(drawn) >= 5 and max(drawn) < 7
