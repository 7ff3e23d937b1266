from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from distill.data import (
    Batch,
    Batches,
    generator,
    image_digests,
    load_images,
    load_prompts,
    prompts_digest,
)
from lightx2v_sgmd.apps.sprites.evaluate import training_captions
from lightx2v_sgmd.families.conditioning import Conditioning, Embedding
from lightx2v_sgmd.families.experts import HIGH_NOISE, LOW_NOISE, Expert
from lightx2v_sgmd.families.text_rows import text_conditioning
from lightx2v_sgmd.files.latents import LatentFolder, write_shard
from lightx2v_sgmd.flow import sample_score_sigmas
from lightx2v_sgmd.job.schema import Job
from lightx2v_sgmd.methods import DMD2
from lightx2v_sgmd.parallel import Ranks
from lightx2v_sgmd.system.errors import UserError
from tests.training import make_job

SHAPE = (4, 2, 8, 8)


def batches(job: Job, ranks: Ranks, prompts: int = 5) -> Batches:
    rows = [Embedding({"text": torch.full((1 + p % 3, 16), float(p))}) for p in range(prompts)]
    return Batches(job, rows, Embedding({"text": torch.zeros(1, 16)}), SHAPE, ranks)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> LatentFolder:
    """Five pairs in two files; every value of pair p is p, and of its noise 100 + p."""
    folder = tmp_path_factory.mktemp("pairs")
    values = torch.arange(5.0).view(5, 1, 1, 1, 1) + torch.zeros(5, *SHAPE)
    for index, part in enumerate((slice(0, 3), slice(3, 5))):
        captions = [f"caption {p}" for p in range(5)][part]
        write_shard(folder, index, values[part], 100 + values[part], captions, {})
    return LatentFolder(folder)


def distance(drawn: Tensor, law: Tensor) -> float:
    """Kolmogorov's distance between a sample and a law's distribution function at the sample."""
    places = torch.arange(1, len(drawn) + 1) / len(drawn)
    return float((law - places).abs().max())


@pytest.fixture
def job(tiny_teacher: Path, tmp_path: Path) -> Job:
    return make_job(tiny_teacher, tmp_path)


def test_a_global_batch_does_not_depend_on_the_number_of_processes(
    tiny_teacher: Path, tmp_path: Path
) -> None:
    layouts = [(1, 4, 2), (2, 2, 2), (4, 1, 2), (8, 1, 1), (2, 4, 1)]
    seen = []
    for size, micro_batch, accumulation in layouts:
        job = make_job(
            tiny_teacher,
            tmp_path,
            f"train.micro_batch={micro_batch}",
            f"train.accumulation={accumulation}",
        )
        parts = [
            batches(job, Ranks(rank, size)).micro_batch(3, micro)
            for micro in range(accumulation)
            for rank in range(size)
        ]
        whole = [
            torch.cat([getattr(part, name) for part in parts])
            for name in ("noise", "score_noise", "time")
        ]
        whole.append(torch.cat([part.fresh_noise(1) for part in parts]))
        seen.append((whole, [prompt for part in parts for prompt in part.prompts]))
    for whole, prompts in seen[1:]:
        assert prompts == seen[0][1]
        assert all(torch.equal(a, b) for a, b in zip(whole, seen[0][0], strict=True))


def test_draws_differ_by_purpose_iteration_sample_and_seed() -> None:
    indices = [(0, "noise", 0, 0), (1, "noise", 0, 0), (0, "score_noise", 0, 0)]
    indices += [(0, "noise", 1, 0), (0, "noise", 0, 1), (0, "noise", 1, 1)]
    draws = [torch.randn(8, generator=generator(*index)) for index in indices]
    again = [torch.randn(8, generator=generator(*index)) for index in indices]
    assert all(torch.equal(a, b) for a, b in zip(draws, again, strict=True))
    assert len({tuple(values.tolist()) for values in draws}) == len(indices)


def test_the_global_generator_is_left_alone(job: Job) -> None:
    state = torch.get_rng_state()
    data = batches(job, Ranks())
    data.micro_batch(0, 0)
    data.exit_step(0)
    data.sample_noise(2)
    assert torch.equal(state, torch.get_rng_state())


def test_exit_steps_are_uniform_and_the_same_on_all_ranks(job: Job) -> None:
    first, other = batches(job, Ranks(0, 4)), batches(job, Ranks(3, 4))
    drawn = [first.exit_step(i) for i in range(4000)]
    assert drawn == [other.exit_step(i) for i in range(4000)]
    counts = Counter(drawn)
    assert set(counts) == {0, 1, 2, 3}
    # Four standard deviations of a binomial(4000, 1/4) are 110.
    assert all(abs(count - 1000) < 110 for count in counts.values())


def test_a_given_order_of_exit_steps_replaces_the_drawn_one(job: Job) -> None:
    rows = [Embedding({"text": torch.zeros(1, 16)})]
    data = Batches(job, rows, rows[0], SHAPE, Ranks(), exit_order=lambda index: index % 4)
    assert [data.exit_step(index) for index in range(6)] == [0, 1, 2, 3, 0, 1]


def test_an_exit_step_is_of_an_update_or_of_a_micro_batch(
    tiny_teacher: Path, tmp_path: Path
) -> None:
    per_update, per_micro_batch = (
        batches(make_job(tiny_teacher, tmp_path, "train.accumulation=3", *settings), Ranks())
        for settings in ((), ("train.exit_step_per=micro_batch",))
    )
    places = [(batch_index, micro) for batch_index in range(3) for micro in range(3)]
    assert [per_update.exit_index(*place) for place in places] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert [per_micro_batch.exit_index(*place) for place in places] == list(range(9))


def test_noise_is_standard_normal_and_score_times_have_their_law(job: Job) -> None:
    data = batches(job, Ranks())
    drawn = [data.micro_batch(i, 0) for i in range(300)]
    noise = torch.cat([b.noise for b in drawn])
    assert abs(float(noise.mean())) < 0.01 and abs(float(noise.std()) - 1) < 0.01
    both = torch.stack([noise.flatten(), torch.cat([b.score_noise for b in drawn]).flatten()])
    assert abs(float(torch.corrcoef(both)[0, 1])) < 0.01
    sigma = torch.cat([b.time for b in drawn])
    assert sigma.dtype == torch.float32
    tolerance = 1e-7  # 0.02 in float32 is a little less
    assert float(sigma.min()) >= 0.02 - tolerance and float(sigma.max()) <= 0.98 + tolerance
    median = float(sample_score_sigmas(torch.tensor([0.5]), 5.0, 0.02, 0.98))
    assert abs(float(sigma.median()) - median) < 0.05


def test_every_epoch_has_every_prompt_once_in_another_order(job: Job) -> None:
    data = batches(job, Ranks(), prompts=10)
    order = [p for i in range(10) for p in data.micro_batch(i, 0).prompts]
    assert sorted(order[:10]) == list(range(10)) == sorted(order[10:])
    assert order[:10] != order[10:]


def test_text_and_negative_text_are_padded_alike(job: Job) -> None:
    text, negative = (each["text"] for each in batches(job, Ranks()).conditioning([0, 2]))
    assert text.shape == negative.shape == (2, 4, 16)
    assert bool((text[1, :3] == 2).all()) and bool((text[1, 3] == 0).all())


def test_a_batch_has_its_prompts_texts_and_the_negative_one(job: Job) -> None:
    """Prompt p's rows are p here, and the negative prompt's are -1."""
    data = batches(job, Ranks(), prompts=6)
    data.negative = Embedding({"text": torch.full((1, 16), -1.0)})
    batch = data.micro_batch(1, 0)
    for row, prompt in enumerate(batch.prompts):
        assert bool((batch.conditioning["text"][row, : 1 + prompt % 3] == prompt).all())
        assert bool((batch.negative["text"][row, 0] == -1).all())
    text, negative = batch.conditioning["text"], batch.negative["text"]
    assert negative.shape == text.shape and not bool((text == -1).any())


def test_a_batch_lies_on_its_rank_s_device(job: Job, pairs: LatentFolder) -> None:
    data = batches(job, Ranks(device=torch.device("meta")))
    data.latents = pairs
    for batch in (data.micro_batch(0, 0), data.pair_batch(0, 0, 1)):
        trees = [v for v in vars(batch).values() if isinstance(v, Conditioning)]
        tensors = [value for value in vars(batch).values() if isinstance(value, Tensor)]
        tensors += [tensor for tree in trees for tensor in tree.values()]
        assert {tensor.device.type for tensor in tensors} == {"meta"} and len(tensors) == 6


def test_the_noise_of_later_steps_is_the_samples_own(job: Job) -> None:
    """It is drawn anew for each step and each sample, and again alike."""
    data = batches(job, Ranks())
    batch = data.micro_batch(2, 0)
    first, second = batch.fresh_noise(0), batch.fresh_noise(1)
    assert first.shape == batch.noise.shape and torch.equal(first, batch.fresh_noise(0))
    drawn = [first, second, batch.noise, batch.score_noise, data.micro_batch(3, 0).fresh_noise(0)]
    rows = torch.cat(drawn).flatten(1)
    different = torch.corrcoef(rows) - torch.eye(len(rows))
    assert different.abs().max() < 0.5
    sample = data.sample_fresh_noise(1)(2)
    assert sample.shape == (1, *batch.noise.shape[1:])
    assert torch.equal(sample, data.sample_fresh_noise(1)(2))
    assert not torch.equal(sample, data.sample_fresh_noise(0)(2))


def test_prompts_are_unique_and_in_order(tiny_teacher: Path, tmp_path: Path) -> None:
    job = make_job(tiny_teacher, tmp_path)
    Path(job.data.prompts).write_text("b\na\nb\n", encoding="utf-8")
    assert load_prompts(job) == ["b", "a"]
    Path(job.data.prompts).write_text("\n", encoding="utf-8")
    with pytest.raises(UserError, match="no prompts"):
        load_prompts(job)


def test_captions_of_the_bundled_world(tiny_teacher: Path, tmp_path: Path) -> None:
    prompts = load_prompts(make_job(tiny_teacher, tmp_path, "data.prompts=sprites"))
    assert prompts == training_captions(2048)  # duplicates and order included


def test_prompts_with_images_are_pairs(tiny_teacher: Path, tmp_path: Path) -> None:
    """A prompt with two images counts twice, and the same pair once; some have no image."""
    file = tmp_path / "prompts.jsonl"
    job = make_job(tiny_teacher, tmp_path, f"data.prompts={file}")
    lines = [("b", "1.png"), ("a", "1.png"), ("b", None), ("b", "2.png"), ("b", "1.png")]
    rows = [{"prompt": prompt} | ({"image": image} if image else {}) for prompt, image in lines]
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    for number in (1, 2):
        Image.new("RGB", (16, 16), (number, 0, 0)).save(tmp_path / f"{number}.png")
    assert load_prompts(job) == ["b", "a", "b", "b"]
    images = load_images(job)
    first, second = tmp_path / "1.png", tmp_path / "2.png"
    assert images == [first, first, None, second]
    contents = [hashlib.sha256(image.read_bytes()).hexdigest() for image in (first, second)]
    assert image_digests(images) == [contents[0], contents[0], "", contents[1]]


def test_other_prompts_have_no_images(job: Job, tiny_teacher: Path, tmp_path: Path) -> None:
    shipped = make_job(tiny_teacher, tmp_path, "data.prompts=sprites")
    assert load_images(job) == load_images(shipped) == []


def test_guidance_leads_away_from_the_negative_prompt_and_not_from_the_image(job: Job) -> None:
    data = batches(job, Ranks())
    data.rows = [
        row.with_image({"image_latents": torch.full((2,), 10.0 + p)})
        for p, row in enumerate(data.rows)
    ]
    data._batched = lambda embeddings: Conditioning(
        {
            "text": text_conditioning(embeddings)["text"],
            "image_latents": torch.stack([each["image_latents"] for each in embeddings]),
        }
    )
    conditioning, negative = data.conditioning([3, 1])
    for found in (conditioning, negative):
        assert found["image_latents"].tolist() == [[13.0, 13.0], [11.0, 11.0]]
    assert conditioning["text"][:, 0, 0].tolist() == [3.0, 1.0]
    assert negative["text"][:, 0, 0].tolist() == [0.0, 0.0]
    data.ranks = Ranks(device=torch.device("meta"))
    moved = [tensor for found in data.conditioning([3, 1]) for tensor in found.values()]
    assert {tensor.device.type for tensor in moved} == {"meta"}


def test_a_batch_trains_the_expert_of_its_exit_step(job: Job) -> None:
    """The steps 1000, 960 and 888.889 are the first expert's, 727.273 is the second's."""
    data = batches(job, Ranks())
    assert {data.expert(index) for index in range(20)} == {0}
    model: Any = None  # the networks are not looked at
    data.experts = (
        Expert(HIGH_NOISE, 0.875, 1.0, model),
        Expert(LOW_NOISE, 0.0, 0.875, model),
    )
    for index in range(20):
        expected = 1 if data.exit_step(index) == 3 else 0
        batch = data.micro_batch(index, 0)
        assert data.expert(index) == batch.expert == expected
        assert bool(((batch.time >= 0.875) == (expected == 0)).all())
    assert {data.expert(index) for index in range(20)} == {0, 1}


def test_phases_train_one_expert_each(job: Job) -> None:
    """The first three of the steps 1000, 960, 888.889 and 727.273 are the first expert's."""
    data = batches(replace(job, method=DMD2(high_noise_iterations=4)), Ranks())
    model: Any = None  # the networks are not looked at
    data.experts = (
        Expert(HIGH_NOISE, 0.875, 1.0, model),
        Expert(LOW_NOISE, 0.0, 0.875, model),
    )
    first, second = range(24), range(24, 48)  # an iteration of dmd2 has six batches

    def drawn(batch_index: int, steps: int) -> int:
        source = generator(job.train.seed, "exit_step", batch_index)
        return int(torch.randint(steps, (), generator=source))

    assert [data.exit_step(index) for index in first] == [drawn(index, 3) for index in first]
    assert {data.exit_step(index) for index in first} == {0, 1, 2}
    assert {data.exit_step(index) for index in second} == {3}
    for index in (0, 23):
        assert data.phase_end(index) == data.micro_batch(index, 0).phase_end
        assert data.phase_end(index) == pytest.approx(0.727273, abs=1e-6)
    for index in (24, 47):
        assert data.phase_end(index) == data.micro_batch(index, 0).phase_end == 0.0


def test_without_phases_samples_are_data(job: Job) -> None:
    data = batches(job, Ranks())
    batch = data.micro_batch(0, 0)
    assert data.phase_end(0) == batch.phase_end == 0.0
    stated = {field.name: getattr(batch, field.name) for field in fields(batch)}
    del stated["phase_end"]
    assert Batch(**stated).phase_end == 0.0


def test_samples_of_a_batch_differ(job: Job, pairs: LatentFolder) -> None:
    """Each sample has noise and times of its own, and each kind of draw is its own."""
    data = batches(job, Ranks())
    data.latents = pairs
    batch, pair = data.micro_batch(2, 0), data.pair_batch(2, 0, 2)
    for drawn in (batch.noise, batch.score_noise, batch.time, pair.time):
        assert not torch.equal(drawn[0], drawn[1])
    for drawn in (pair.discriminator_noise, pair.discriminator_time):
        assert not torch.equal(drawn[0], drawn[1])
    assert not torch.equal(batch.noise, batch.score_noise)
    assert not torch.equal(pair.time, pair.discriminator_time)
    for other in (data.micro_batch(3, 0), batches(job, Ranks(1, 2)).micro_batch(2, 0)):
        assert not torch.equal(other.noise, batch.noise)
        assert not torch.equal(other.time, batch.time)


def test_draws_are_those_of_their_own_seeds(job: Job, pairs: LatentFolder) -> None:
    """So that a run of an earlier version can be resumed: the seeds are written out here."""

    def drawn(purpose: str, *index: int) -> torch.Generator:
        text = "/".join(map(str, [job.train.seed, purpose, *index]))
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "little") // 2)

    data = batches(job, Ranks(1, 2))
    data.latents = pairs
    batch, pair = data.micro_batch(3, 0), data.pair_batch(3, 0, 2)
    assert batch.samples == pair.samples == (2, 3)
    for row, sample in enumerate((2, 3)):
        for name in ("noise", "score_noise"):
            expected = torch.randn(SHAPE, generator=drawn(name, 3, sample))
            assert torch.equal(getattr(batch, name)[row], expected)
        again = torch.randn(SHAPE, generator=drawn("score_noise", 3, sample))
        assert torch.equal(pair.discriminator_noise[row], again)
        u = float(torch.rand(1, generator=drawn("u", 3, sample)))
        assert float(pair.time[row]) == pytest.approx(max(1 - u**3, 0.02))
        shifted = 5 * u / (1 + 4 * u)
        assert float(batch.time[row]) == pytest.approx(min(max(shifted, 0.02), 0.98))
        u = float(torch.rand(1, generator=drawn("critic_u", 3, sample)))
        assert float(pair.discriminator_time[row]) == pytest.approx(min(max(u, 0.02), 0.98))
    assert data.exit_step(3) == int(torch.randint(4, (), generator=drawn("exit_step", 3)))
    assert torch.equal(
        data.sample_noise(2)[1], torch.randn(SHAPE, generator=drawn("samples", 0, 1))
    )
    assert torch.equal(
        data.sample_fresh_noise(1)(2)[0],
        torch.randn(SHAPE, generator=drawn("sample_steps", 0, 1, 2)),
    )
    u = float(torch.rand((), generator=drawn("guidance", 3)))
    assert data.uniform("guidance", 3, 5.0, 7.0) == pytest.approx(5 + 2 * u)
    order = torch.randperm(5, generator=drawn("prompts", 2))  # positions 12 to 15 of 5 prompts
    assert batch.prompts == pair.prompts
    assert batch.prompts[0] == int(order[4])


def test_a_student_s_times_are_cubic_and_a_discriminator_s_uniform(
    job: Job, pairs: LatentFolder
) -> None:
    """arXiv 2507.18569, Sec. 4.2.1 and 4.2.2: ``1 - u^3`` and ``u``, independent of each other."""
    data = batches(job, Ranks())
    data.latents = pairs
    drawn = [data.pair_batch(i, 0, 1) for i in range(400)]
    student = torch.cat([b.time for b in drawn])
    discriminator = torch.cat([b.discriminator_time for b in drawn])
    assert student.dtype == discriminator.dtype == torch.float32
    # Four hundredths above the 0.1 % point of Kolmogorov's distance for 800 draws, 0.069, and the
    # two laws are 0.38 apart.
    increasing = student.sort().values
    assert distance(increasing, 1 - (1 - increasing).clamp(min=0) ** (1 / 3)) < 0.07
    increasing = discriminator.sort().values
    assert distance(increasing, increasing) < 0.07
    assert abs(float(torch.corrcoef(torch.stack([student, discriminator]))[0, 1])) < 0.15
    assert 0.98 < float(student.max()) <= 1.0 and float(student.min()) >= 0.019999
    assert float(discriminator.max()) <= 0.9800001 and float(discriminator.min()) >= 0.019999


def test_score_times_are_clamped_to_their_range(tiny_teacher: Path, tmp_path: Path) -> None:
    settings = ("train.sigma_min=0.4", "train.sigma_max=0.6", "train.score_shift=1")
    job = make_job(tiny_teacher, tmp_path, *settings)
    drawn = torch.cat([batches(job, Ranks()).micro_batch(i, 0).time for i in range(50)])
    assert float(drawn.min()) == pytest.approx(0.4) and float(drawn.max()) == pytest.approx(0.6)
    assert ((drawn > 0.41) & (drawn < 0.59)).any()


def test_a_pair_s_ends_belong_together(job: Job, pairs: LatentFolder) -> None:
    """Data is ``x0`` and noise is ``noise``, of the pair whose caption the student reads."""
    data = batches(job, Ranks())
    data.latents = pairs
    seen: list[int] = []
    for index in range(5):
        batch = data.pair_batch(index, 0, 1)
        for row, pair in enumerate(batch.prompts):
            assert bool((batch.x0[row] == pair).all())
            assert bool((batch.noise[row] == 100 + pair).all())
            assert bool((batch.conditioning["text"][row, : 1 + pair % 3] == pair).all())
        assert batch.conditioning.batch == 2
        seen += batch.prompts
    assert Counter(seen) == dict.fromkeys(range(5), 2)
    real = data.micro_batch(1, 0)
    assert real.real is not None
    assert torch.equal(real.real[:, 0, 0, 0, 0], torch.tensor([float(p) for p in real.prompts]))
    assert batches(job, Ranks()).micro_batch(1, 0).real is None
    with pytest.raises(AssertionError, match="reads no latents"):
        batches(job, Ranks()).pair_batch(0, 0, 1)


def test_frames_for_a_pixel_discriminator(job: Job, pairs: LatentFolder) -> None:
    """In order, without repetition, drawn anew each time, the same on all ranks: 2 of 5."""
    first, other = batches(job, Ranks(0, 2)), batches(job, Ranks(1, 2))
    first.latents = other.latents = pairs
    chosen = [first.pair_batch(i, 0, 2).frames for i in range(100)]
    assert chosen == [other.pair_batch(i, 0, 2).frames for i in range(100)]
    assert all(0 <= a < b < 5 for a, b in chosen)
    assert set(Counter(frame for pair in chosen for frame in pair)) == set(range(5))
    assert len(set(chosen)) == 10
    assert first.pair_batch(0, 0, 0).frames == ()
    assert first.pair_batch(0, 0, 9).frames == (0, 1, 2, 3, 4)


def test_micro_batches_share_a_global_batch(tiny_teacher: Path, tmp_path: Path) -> None:
    job = make_job(tiny_teacher, tmp_path, "train.micro_batch=2", "train.accumulation=3")
    samples = [
        [batches(job, Ranks(rank, 2)).micro_batch(1, micro).samples for rank in range(2)]
        for micro in range(3)
    ]
    assert samples == [[(0, 1), (2, 3)], [(4, 5), (6, 7)], [(8, 9), (10, 11)]]
    data = batches(job, Ranks(0, 2), prompts=100)
    assert data.global_batch == 12
    order = [
        p
        for index in range(8)
        for micro in range(3)
        for rank in range(2)
        for p in batches(job, Ranks(rank, 2), prompts=96).micro_batch(index, micro).prompts
    ]
    assert sorted(order) == list(range(96))


def test_guidance_is_uniform_in_its_range(job: Job) -> None:
    data = batches(job, Ranks())
    drawn = torch.tensor([data.uniform("guidance", i, 5.0, 7.0) for i in range(800)])
    increasing = drawn.sort().values
    assert distance(increasing, (increasing - 5) / 2) < 0.07


def test_captions_of_latents_are_the_prompts(
    tiny_teacher: Path, tmp_path: Path, pairs: LatentFolder
) -> None:
    settings = ("data.prompts=latents", f"data.latents={pairs.folder}")
    job = make_job(tiny_teacher, tmp_path, *settings, "method={name: adp, pixel_weight: 0}")
    assert load_prompts(job) == [f"caption {p}" for p in range(5)]


def test_a_digest_tells_lists_of_prompts_apart() -> None:
    lists = (["a", "b"], ["b", "a"], ["ab"], ["a", "b", ""], ["a"])
    assert len({prompts_digest(prompts) for prompts in lists}) == len(lists)
    assert prompts_digest(["a", "b"]) == hashlib.sha256(b"a\0b").hexdigest()
