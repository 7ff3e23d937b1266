"""The adversarial methods' gradients, against their papers' equations written out once more.

ADM and ADP are arXiv 2507.18569 (Alg. 1, Eq. 7 to 10), DMD2's GAN term is arXiv 2405.14867, Sec.
4.3. The rewrite here knows networks and draws, and none of the trainer's, the methods' or the
discriminator's code: one graph through all networks, loops in place of batches, hooks of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus
from transformers import SamVisionConfig, SamVisionModel

from distill.pixels import PixelFeatures
from distill.trainer import Trainer
from lightx2v_sgmd.families.conditioning import Conditioning
from lightx2v_sgmd.families.wan.opening import open_wan
from lightx2v_sgmd.files.latents import LatentFolder, write_shard
from lightx2v_sgmd.methods import ADM, ADP, DMD2, DMDX
from lightx2v_sgmd.methods.base import Discriminator
from lightx2v_sgmd.parallel import (
    DISCRIMINATOR,
    FAKE_SCORE,
    PIXEL_DISCRIMINATOR,
    STUDENT,
    TEACHER,
    Ranks,
)
from tests.training import make_job, make_trainer

HEADS = Discriminator(head_every=2, head_channels=64)
SHAPE = (4, 2, 12, 12)
"""Latents of 48x48: a head's last norm then has 16 values, and not 2, which rounding would rule."""
GUIDANCE = 8.0
LATE = "train.sigma_min=0.3"
"""With ADM's usual small step its heads' gradient is a small difference of large numbers, which
rounding would rule; a large step needs times above it."""

Gradients = dict[str, list[Tensor]]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small vision encoder of SAM's kind."""
    folder = tmp_path_factory.mktemp("sam")
    torch.manual_seed(0)
    config = SamVisionConfig(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=48,
        patch_size=8,
        output_channels=16,
        mlp_dim=64,
        window_size=2,
        global_attn_indexes=[1, 3],
        initializer_range=0.2,
    )
    SamVisionModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> LatentFolder:
    return write_latents(tmp_path_factory.mktemp("latents"))


def write_latents(folder: Path) -> LatentFolder:
    """Eight captions, with data and noise that know nothing of one another."""
    x0, noise = torch.randn(2, 8, *SHAPE, generator=torch.Generator().manual_seed(5))
    write_shard(folder, 0, 0.5 * x0 + 0.3, noise, [f"a red circle {i}" for i in range(8)], {})
    return LatentFolder(folder)


def trainer_for(
    method: Any,
    teacher: Path,
    folder: Path,
    latents: LatentFolder,
    *settings: str,
    ranks: Ranks | None = None,
) -> Trainer:
    size = ("video.height=48", "video.width=48")
    job = replace(make_job(teacher, folder, *size, *settings), method=method)
    plain = make_trainer(job, ranks, job.parallel.strategy)
    plain.batches.rows = [row for row in plain.batches.rows for _ in range(2)]
    plain.batches.latents = latents
    pixels = None
    if method.pixel_discriminator is not None:
        model = open_wan(str(teacher))
        pixels = PixelFeatures.load(
            model, method.pixel_discriminator.vision_encoder, torch.device("cpu")
        )
    return Trainer(job, plain.strategy, plain.batches, pixels)


def gradients_of(trainer: Trainer, iteration: int) -> tuple[list[int], Gradients]:
    """The batches that the updates of an iteration use, and the gradients that they add."""
    indices, received = [], set()
    for index, update in trainer.updates(iteration):
        indices.append(index)
        received |= {*update(0)}
    networks = trainer.strategy.networks
    for role, network in networks.items():
        assert role in received or all(p.grad is None for p in network.parameters()), role
    return indices, {
        role: [p.grad for p in networks[role].parameters() if p.grad is not None]
        for role in received
    }


@dataclass
class Written:
    """The papers' equations on a trainer's networks, one sample at a time.

    Args:
        trainer: Gives networks and draws.
        teacher: Folder of the model.
        guidance: The guidance scale, in the Ho-Salimans form.
    """

    trainer: Trainer
    teacher: Path
    guidance: float = GUIDANCE

    def network(self, role: str, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        return self.trainer.strategy.predict(role, x, t, Conditioning({"text": text}))

    def rollout(self, noise: Tensor, text: Tensor, last: int) -> Tensor:
        """Alg. 1, lines 16 and 17: Euler steps without gradient, the last one to t = 0 with it."""
        steps = [1.0, 0.96, 8 / 9, 8 / 11]
        x = noise
        for n in range(last + 1):
            velocity = self.network(STUDENT, x, torch.full((len(x),), steps[n]), text)
            if n == last:
                return x - steps[n] * velocity
            x = (x + (steps[n + 1] - steps[n]) * velocity).detach()
        raise AssertionError("there is a last step")

    def guided(self, x: Tensor, t: Tensor, text: Tensor, negative: Tensor) -> Tensor:
        cond, uncond = (self.network(TEACHER, x, t, rows) for rows in (text, negative))
        return (uncond + self.guidance * (cond - uncond)).detach()

    def latent_d(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        """D(x, t) of each sample: the mean over all outputs of all heads."""
        teacher: Any = self.trainer.strategy.networks[TEACHER]
        heads: Any = self.trainer.strategy.networks[DISCRIMINATOR]
        seen: list[Tensor] = []
        block = teacher.blocks[HEADS.head_every - 1]
        hook = block.register_forward_hook(lambda module, args, output: seen.append(output))
        self.network(TEACHER, x, t, text)
        hook.remove()
        # Patches of 1x2x2 latents, in the order frame, row, column; one head on two blocks.
        (tokens,), (head,) = seen, heads.heads
        volume = tokens.permute(0, 2, 1).reshape(len(x), -1, SHAPE[1], 6, 6)
        logits: Tensor = head(volume)
        return logits

    def pixel_d(self, x0: Tensor, frames: Sequence[int], encoder: Path) -> Tensor:
        """D(x0): the VAE's frames, then the vision encoder's layers 1, 2, 3 and 4 of 4."""
        vae: Any = open_wan(str(self.teacher)).load_vae()
        mean, std = (
            torch.tensor(values)[None, :, None, None, None]
            for values in (vae.config.latents_mean, vae.config.latents_std)
        )
        video = vae.decode(x0 * std + mean).sample
        vision: Any = SamVisionModel.from_pretrained(encoder).eval()
        heads: Any = self.trainer.strategy.networks[PIXEL_DISCRIMINATOR]
        outputs = []
        for frame in frames:
            red_green_blue = (video[:, :, frame] + 1) / 2
            mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
            std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
            states = vision((red_green_blue - mean) / std, output_hidden_states=True).hidden_states
            maps = [states[layer].permute(0, 3, 1, 2) for layer in (1, 2, 3, 4)]
            outputs.append([head(m) for head, m in zip(heads.heads, maps, strict=True)])
        return torch.cat([torch.cat(logits, 1) for logits in outputs], 1)

    def gradient(self, role: str, loss: Tensor) -> list[Tensor]:
        weights = list(self.trainer.strategy.networks[role].parameters())
        found = torch.autograd.grad(loss, weights, allow_unused=True)
        return [g for g in found if g is not None]

    def fake_score(self, indices: Sequence[int], whole: bool) -> list[Tensor]:
        """Flow matching on rollouts of their own (Alg. 1, lines 8 to 11)."""
        total = torch.zeros(())
        for index in indices:
            batch = self.trainer.batches.micro_batch(index, 0)
            last = 3 if whole else self.trainer.batches.exit_step(index)
            x0 = self.rollout(batch.noise, batch.conditioning["text"], last).detach()
            t = batch.time[:, None, None, None, None]
            x_t = (1 - t) * x0 + t * batch.score_noise
            velocity = self.network(FAKE_SCORE, x_t, batch.time, batch.conditioning["text"])
            total = total + (velocity - (batch.score_noise - x0)).square().mean()
        return self.gradient(FAKE_SCORE, total)

    def adm(self, index: int, own: Sequence[int], delta: float) -> Gradients:
        """Alg. 1, lines 15 to 26."""
        batch = self.trainer.batches.micro_batch(index, 0)
        text, sigma = batch.conditioning["text"], batch.time
        x0 = self.rollout(batch.noise, text, self.trainer.batches.exit_step(index))
        t = sigma[:, None, None, None, None]
        x_t = (1 - t) * x0 + t * batch.score_noise
        fake = x_t - delta * self.network(FAKE_SCORE, x_t, sigma, text)
        real = x_t - delta * self.guided(x_t, sigma, text, batch.negative["text"])
        student = -self.latent_d(fake, sigma - delta, text).mean()
        on_fake = self.latent_d(fake.detach(), sigma - delta, text)
        on_real = self.latent_d(real.detach(), sigma - delta, text)
        discriminator_loss = (1 + on_fake).clamp(min=0).mean() + (1 - on_real).clamp(min=0).mean()
        return {
            STUDENT: self.gradient(STUDENT, student),
            FAKE_SCORE: self.fake_score(own, whole=True),
            DISCRIMINATOR: self.gradient(DISCRIMINATOR, discriminator_loss),
        }

    def dmd2(self, index: int, own: Sequence[int], weight: float) -> Gradients:
        """DMD's gradient at x0, and the non-saturating GAN on noised data."""
        batch = self.trainer.batches.micro_batch(index, 0)
        assert batch.real is not None
        text, sigma = batch.conditioning["text"], batch.time
        x0 = self.rollout(batch.noise, text, self.trainer.batches.exit_step(index))
        t = sigma[:, None, None, None, None]
        x_t = (1 - t) * x0 + t * batch.score_noise
        real_t = (1 - t) * batch.real + t * batch.score_noise
        x_fake = x_t - t * self.network(FAKE_SCORE, x_t, sigma, text)
        x_real = x_t - t * self.guided(x_t, sigma, text, batch.negative["text"])
        student = weight * softplus(-self.latent_d(x_t, sigma, text)).mean()
        for sample in range(len(x0)):
            scale = (x0[sample] - x_real[sample]).abs().mean()
            direction = ((x_fake[sample] - x_real[sample]) / scale).detach()
            student = student + (x0[sample] * direction).mean() / len(x0)
        on_fake, on_real = (self.latent_d(x.detach(), sigma, text) for x in (x_t, real_t))
        discriminator_loss = softplus(on_fake).mean() + softplus(-on_real).mean()
        return {
            STUDENT: self.gradient(STUDENT, student),
            FAKE_SCORE: self.fake_score(own, whole=False),
            DISCRIMINATOR: self.gradient(DISCRIMINATOR, discriminator_loss),
        }

    def adp(self, index: int, encoder: Path | None, frames: int) -> Gradients:
        """Eq. 9, with the sign that its text gives, and Eq. 10."""
        batch = self.trainer.batches.pair_batch(index, 0, frames)
        t = batch.time[:, None, None, None, None]
        x_t = (1 - t) * batch.x0 + t * batch.noise
        made = x_t - t * self.network(STUDENT, x_t, batch.time, batch.conditioning["text"])
        later = batch.discriminator_time
        t = later[:, None, None, None, None]

        def noisy(x0: Tensor) -> Tensor:
            return (1 - t) * x0 + t * batch.discriminator_noise

        student = -0.85 * self.latent_d(noisy(made), later, batch.conditioning["text"]).mean()
        on_fake = self.latent_d(noisy(made).detach(), later, batch.conditioning["text"])
        on_real = self.latent_d(noisy(batch.x0), later, batch.conditioning["text"])
        discriminator_loss = (1 + on_fake).clamp(min=0).mean() + (1 - on_real).clamp(min=0).mean()
        found = {DISCRIMINATOR: self.gradient(DISCRIMINATOR, 0.85 * discriminator_loss)}
        if encoder is not None:
            student = student - 0.15 * self.pixel_d(made, batch.frames, encoder).mean()
            on_fake = self.pixel_d(made.detach(), batch.frames, encoder)
            on_real = self.pixel_d(batch.x0, batch.frames, encoder)
            pixels = (1 + on_fake).clamp(min=0).mean() + (1 - on_real).clamp(min=0).mean()
            found[PIXEL_DISCRIMINATOR] = self.gradient(PIXEL_DISCRIMINATOR, 0.15 * pixels)
        return {STUDENT: self.gradient(STUDENT, student), **found}


def assert_same(found: Gradients, expected: Gradients) -> None:
    """Gradients to a hundredth of their tensor's largest, norms of a role's to two thousandths.

    The trainer batches what is apart here, and float32 rounds differently in the heads' norms.
    """
    assert found.keys() == expected.keys()
    for role, theirs in expected.items():
        assert len(found[role]) == len(theirs), role
        norms = [nn.utils.get_total_norm(gradients) for gradients in (found[role], theirs)]
        assert norms[1] > 0, role
        torch.testing.assert_close(norms[0], norms[1], rtol=2e-3, atol=0)
        for mine, other in zip(found[role], theirs, strict=True):
            atol = 1e-2 * float(other.abs().max()) + 1e-6 * float(norms[1])
            torch.testing.assert_close(mine, other, rtol=1e-3, atol=atol, msg=role_message(role))


def role_message(role: str) -> Callable[[str], str]:
    return lambda text: f"{role}: {text}"


@pytest.mark.parametrize("iteration", [0, 1])
def test_adm(iteration: int, tiny_teacher: Path, tmp_path: Path, latents: LatentFolder) -> None:
    """Two fake-score updates for one of the student, so that each uses a batch of its own."""
    method = ADM(delta=0.25, fake_score_updates=2, discriminator=HEADS)
    trainer = trainer_for(method, tiny_teacher, tmp_path, latents, LATE)
    indices, found = gradients_of(trainer, iteration)
    assert indices == [3 * iteration, 3 * iteration + 1, 3 * iteration + 2]
    assert_same(found, Written(trainer, tiny_teacher).adm(indices[0], indices[1:], 0.25))


def test_adm_under_its_own_guidance(
    tiny_teacher: Path, tmp_path: Path, latents: LatentFolder
) -> None:
    """Drawn for each iteration; the job's own scale is not used."""
    method = ADM(delta=0.2, guidance_range=(2.0, 3.0), discriminator=HEADS)
    trainer = trainer_for(method, tiny_teacher, tmp_path, latents, LATE)
    scale = trainer.batches.uniform("guidance", 4, 2.0, 3.0)
    assert 2 < scale < 3
    indices, found = gradients_of(trainer, 4)
    assert indices == [8, 9]
    assert_same(found, Written(trainer, tiny_teacher, scale).adm(8, [9], 0.2))


def test_dmd2_with_its_gan(tiny_teacher: Path, tmp_path: Path, latents: LatentFolder) -> None:
    method = DMD2(fake_score_updates=2, gan_weight=0.7, discriminator=HEADS)
    trainer = trainer_for(method, tiny_teacher, tmp_path, latents)
    indices, found = gradients_of(trainer, 1)
    assert indices == [3, 4, 5]
    assert_same(found, Written(trainer, tiny_teacher).dmd2(3, [4, 5], 0.7))


def test_adp_in_latent_space(tiny_teacher: Path, tmp_path: Path, latents: LatentFolder) -> None:
    method = ADP(pixel_weight=0, discriminator=HEADS)
    trainer = trainer_for(method, tiny_teacher, tmp_path, latents)
    indices, found = gradients_of(trainer, 2)
    assert indices == [2]
    assert_same(found, Written(trainer, tiny_teacher).adp(2, None, 0))


@pytest.mark.slow
def test_adp_in_both_spaces(
    tiny_teacher: Path, tmp_path: Path, latents: LatentFolder, encoder: Path
) -> None:
    method = ADP(vision_encoder=str(encoder), pixel_frames=2, discriminator=HEADS)
    trainer = trainer_for(method, tiny_teacher, tmp_path, latents)
    _, found = gradients_of(trainer, 0)
    assert_same(found, Written(trainer, tiny_teacher).adp(0, encoder, 2))


@pytest.mark.parametrize("name", ["adp", "adm", "dmd2"])
def test_heads_learn_without_a_graph_through_the_frozen_networks(
    name: str,
    tiny_teacher: Path,
    tmp_path: Path,
    latents: LatentFolder,
    encoder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Such a graph would change no gradient, but a large teacher's has no room in memory.

    Only the generator's loss needs one, and its heads come first. Each loss is one of each sample.
    """
    method = {
        "adp": ADP(vision_encoder=str(encoder), pixel_frames=2, discriminator=HEADS),
        "adm": ADM(discriminator=HEADS),
        "dmd2": DMD2(gan_weight=1.0, discriminator=HEADS),
    }[name]
    trainer = trainer_for(method, tiny_teacher, tmp_path, latents)
    carried: dict[str, list[bool]] = {}
    networks = trainer.strategy.networks

    def seen(role: str) -> Any:
        found = carried.setdefault(role, [])
        return lambda module, args: found.append(any(x.requires_grad for x in args[0]))

    for role in {DISCRIMINATOR, PIXEL_DISCRIMINATOR} & {*method.roles}:
        networks[role].register_forward_pre_hook(seen(role))
    total = trainer.losses.total
    shapes: list[tuple[int, ...]] = []

    def noted(losses: dict[str, Tensor], batch: Any) -> Tensor:
        shapes.extend(tuple(values.shape) for values in losses.values())
        return total(losses, batch)

    trainer.losses.total = noted  # type: ignore[method-assign]
    losses_of = type(method).discriminator_losses

    def without_graph(self: Any, sample: Any) -> Any:
        tensors = [value for value in vars(sample).values() if isinstance(value, Tensor)]
        assert len(tensors) >= 6 and not any(value.requires_grad for value in tensors)
        return losses_of(self, sample)

    monkeypatch.setattr(type(method), "discriminator_losses", without_graph)
    strategy: Any = trainer.strategy
    logits, updates = strategy.logits, []

    def told(x: Tensor, sigma: Tensor, text: Tensor, update: bool) -> Tensor:
        updates.append(update)
        found: Tensor = logits(x, sigma, text, update)
        return found

    monkeypatch.setattr(strategy, "logits", told)
    trainer.updates(0)[0][1](0)
    assert updates == [False, True]  # under ZeRO-3 the heads' engine takes part in the update
    assert all(found == [True, False] for found in carried.values()) and carried
    assert set(shapes) == {(2,)} and len(shapes) > 1


@pytest.mark.parametrize("iteration", [1, 3])
def test_dmdx_is_adp_and_then_adm(
    iteration: int, tiny_teacher: Path, tmp_path: Path, latents: LatentFolder
) -> None:
    """The first stage uses batches 0 and 1, and the second goes on from there, two at a time."""
    method = DMDX(adp=ADP(pixel_weight=0), adm=ADM(delta=0.3), pretraining=2, discriminator=HEADS)
    trainer = trainer_for(method, tiny_teacher, tmp_path, latents, LATE)
    indices, found = gradients_of(trainer, iteration)
    written = Written(trainer, tiny_teacher)
    if iteration == 1:
        assert indices == [1]
        assert_same(found, written.adp(1, None, 0))
    else:
        assert indices == [4, 5]
        assert_same(found, written.adm(4, [5], 0.3))
