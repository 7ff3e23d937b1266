from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from distill.data import Batches, generator, load_prompts
from lightx2v_sgmd.apps.sprites.evaluate import training_captions
from lightx2v_sgmd.flow import sample_score_sigmas
from lightx2v_sgmd.job.schema import Job
from lightx2v_sgmd.parallel import Ranks
from lightx2v_sgmd.system.errors import UserError
from tests.training import make_job

SHAPE = (4, 2, 8, 8)


def batches(job: Job, ranks: Ranks, prompts: int = 5) -> Batches:
    rows = [torch.full((1 + p % 3, 16), float(p)) for p in range(prompts)]
    return Batches(job, rows, torch.zeros(1, 16), SHAPE, ranks)


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
            for name in ("noise", "score_noise", "sigma")
        ]
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
    assert len({tuple(draw.tolist()) for draw in draws}) == len(indices)


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


def test_noise_is_standard_normal_and_score_times_have_their_law(job: Job) -> None:
    data = batches(job, Ranks())
    drawn = [data.micro_batch(i, 0) for i in range(300)]
    noise = torch.cat([b.noise for b in drawn])
    assert abs(float(noise.mean())) < 0.01 and abs(float(noise.std()) - 1) < 0.01
    both = torch.stack([noise.flatten(), torch.cat([b.score_noise for b in drawn]).flatten()])
    assert abs(float(torch.corrcoef(both)[0, 1])) < 0.01
    sigma = torch.cat([b.sigma for b in drawn])
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
    text, negative = batches(job, Ranks()).texts([0, 2])
    assert text.shape == negative.shape == (2, 4, 16)
    assert bool((text[1, :3] == 2).all()) and bool((text[1, 3] == 0).all())


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
