from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from infer import Cancelled
from infer.vae.decoding import videos_at_once
from lightx2v_sgmd.families.text_rows import pad_text
from lightx2v_sgmd.families.wan.forward import velocity
from lightx2v_sgmd.families.wan.opening import open_wan
from lightx2v_sgmd.files.video import read_video
from lightx2v_sgmd.rollout import rollout
from lightx2v_sgmd.schedule import Schedule
from lightx2v_sgmd.system.errors import UserError
from tests.stock import run_stock, stock_pipe
from tests.students import load_student

PROMPTS = ["a red circle moving left", "a blue square and a red circle moving right slowly", "a"]


def generator(seed: int) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(seed)


def test_engine_diffusers_and_training_rollout_agree(shared_student: Path) -> None:
    made = load_student(shared_student).generate(PROMPTS[:2], [5, 11], decode=False)
    stock = run_stock(stock_pipe(shared_student), PROMPTS[:2], [5, 11])
    torch.testing.assert_close(made.latents, stock, atol=1e-4, rtol=0)

    model = open_wan(shared_student)
    network = model.load_transformer()
    text = pad_text(model.load_text_encoder(torch.float32).rows(PROMPTS[:2]))
    noise = torch.stack([torch.randn(4, 3, 8, 8, generator=generator(s)) for s in (5, 11)])
    with torch.no_grad():
        trained = rollout(
            lambda x_t, sigma: velocity(network, x_t, sigma, text), noise, Schedule(), exit_step=3
        )
    torch.testing.assert_close(made.latents, trained, atol=1e-4, rtol=0)
    # Different prompts and seeds do give different videos, by far more than the tolerance.
    assert (made.latents[0] - made.latents[1]).abs().max() > 0.1


def test_a_student_that_is_noised_anew_runs_as_it_was_trained(shared_student: Path) -> None:
    student = load_student(shared_student)
    student.checked = replace(student.checked, schedule=Schedule(solver="renoise"))
    made = student.generate(PROMPTS[:2], [5, 11], batch_size=1, decode=False)
    text = student.model.conditioning(student.encode(PROMPTS[:2]))["text"]
    sources = [generator(seed) for seed in (5, 11)]

    def noise_at(step: int) -> torch.Tensor:
        return torch.stack([torch.randn(4, 3, 8, 8, generator=source) for source in sources])

    with torch.no_grad():
        trained = rollout(
            lambda x_t, sigma: velocity(student.transformer, x_t, sigma, text),
            noise_at(-1),
            student.schedule,
            exit_step=3,
            fresh_noise=noise_at,
        )
    torch.testing.assert_close(made.latents, trained, atol=1e-4, rtol=0)


def test_frames_are_those_of_diffusers(shared_student: Path) -> None:
    made = load_student(shared_student).generate(PROMPTS[0], 5)
    assert (made.prompt, made.seed, made.fps) == (PROMPTS[0], 5, 8)
    (stock,) = run_stock(stock_pipe(shared_student), PROMPTS[:1], [5], output_type="np")
    assert made.frames.shape == (9, 32, 32, 3) and made.frames.dtype == np.uint8
    difference = np.abs(made.frames.astype(int) - np.round(stock * 255).astype(int))
    assert difference.max() <= 1


def test_the_batch_does_not_change_a_video(shared_student: Path) -> None:
    student = load_student(shared_student)
    together = student.generate(PROMPTS, [3, 4, 5], batch_size=3, decode=False)
    alone = student.generate(PROMPTS, [3, 4, 5], batch_size=1, decode=False)
    last = student.generate(PROMPTS[2], 5, decode=False)
    torch.testing.assert_close(together.latents, alone.latents, atol=2e-5, rtol=0)
    torch.testing.assert_close(together.latents[2], last.latents, atol=2e-5, rtol=0)
    again = student.generate(PROMPTS, 3, batch_size=3, decode=False)
    assert torch.equal(again.latents, together.latents)
    assert again.seeds == (3, 4, 5)


def test_noise_is_what_diffusers_draws(shared_student: Path) -> None:
    from diffusers.utils.torch_utils import randn_tensor

    noise = load_student(shared_student).noise(9, (4, 3, 8, 8))
    assert torch.equal(noise[None], randn_tensor((1, 4, 3, 8, 8), generator=generator(9)))


def test_stages_are_timed_and_steps_reported(shared_student: Path) -> None:
    steps: list[tuple[int, int]] = []
    made = load_student(shared_student).generate(
        PROMPTS, batch_size=2, on_step=lambda step, x_t: steps.append((step, len(x_t)))
    )
    assert steps == [(0, 2), (1, 2), (2, 2), (3, 2), (0, 1), (1, 1), (2, 1), (3, 1)]
    assert set(made.timings) == {"text", "denoise", "decode"}
    assert all(seconds > 0 for seconds in made.timings.values())
    assert len(made.videos) == 3 and made.fps == 8


def test_on_step_can_cancel(shared_student: Path) -> None:
    class Cancelled(Exception):
        pass

    def stop(step: int, x_t: torch.Tensor) -> None:
        if step == 1:
            raise Cancelled

    with pytest.raises(Cancelled):
        load_student(shared_student).generate("a red circle", on_step=stop)


def test_a_prompt_that_is_too_long_is_cut_aloud(
    shared_student: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student = load_student(shared_student)
    prompt = "a " * 511 + "red circle moving"
    student.encode([prompt])
    assert "has 515 tokens, the model reads 512; cut off: 'red circle moving'" in (
        capsys.readouterr().err
    )
    student.encode(["a " * 511])
    assert capsys.readouterr().err == ""
    # Spelt out letter by letter: a token each, and one for the first space and one for the end.
    student.encode(["x" * 510])
    assert capsys.readouterr().err == ""
    student.encode(["x" * 511])
    assert "has 513 tokens" in capsys.readouterr().err


def test_a_text_too_long_to_fold_gives_the_same_as_stock(shared_student: Path) -> None:
    student = load_student(shared_student)
    short = student.generate("a red circle", 1, decode=False)
    prompt = "a red circle moving left " * 12  # 60 tokens, the network is 48 wide
    made = student.generate(prompt, 1, decode=False)
    (stock,) = run_stock(stock_pipe(shared_student), [prompt], [1])
    torch.testing.assert_close(made.latents, stock, atol=1e-4, rtol=0)
    again = student.generate("a red circle", 1, decode=False)
    assert torch.equal(short.latents, again.latents)


def test_sizes_come_from_the_weights_and_are_checked(shared_student: Path) -> None:
    student = load_student(shared_student)
    assert student.generate("a", num_frames=5, decode=False).latents.shape == (4, 2, 8, 8)
    with pytest.raises(UserError, match=r"num_frames: 10 is not 4k \+ 1"):
        student.generate("a", num_frames=10)
    with pytest.raises(UserError, match="height: 40 is not divisible by 16"):
        student.generate("a", height=40)


@pytest.mark.parametrize("seeds", [[1], [1, 2, 3], -1, 2**63])
def test_seeds_must_fit(shared_student: Path, seeds: int | list[int]) -> None:
    with pytest.raises(UserError, match="^seed: "):
        load_student(shared_student).generate(["a", "a red circle"], seeds)


def test_bfloat16_keeps_what_diffusers_keeps(shared_student: Path) -> None:
    student = load_student(shared_student, dtype=torch.bfloat16)
    block = student.transformer.blocks[0]
    assert block.attn1.to_qkv.weight.dtype == torch.bfloat16
    assert block.ffn.net[2].weight.dtype == torch.bfloat16
    assert block.norm2.weight.dtype == torch.float32
    made = student.generate("a red circle", decode=False)
    assert made.latents.dtype == torch.float32 and made.latents.isfinite().all()


def test_neither_order_nor_company_changes_a_video(shared_student: Path) -> None:
    """One at a time bit for bit; in batches to 2e-5, since matrix products add in another order."""
    student = load_student(shared_student)
    alone = [
        student.generate(p, s, decode=False).latents
        for p, s in zip(PROMPTS, (3, 4, 5), strict=True)
    ]
    order = [2, 0, 1]
    texts, seeds = [PROMPTS[i] for i in order], [3 + i for i in order]
    one_by_one = student.generate(texts, seeds, batch_size=1, decode=False).latents
    together = student.generate(texts, seeds, batch_size=2, decode=False).latents
    for place, index in enumerate(order):
        assert torch.equal(one_by_one[place], alone[index])
        torch.testing.assert_close(together[place], alone[index], atol=2e-5, rtol=0)


def test_small_videos_are_decoded_together(
    shared_student: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = load_student(shared_student)
    latents = student.generate(PROMPTS, [3, 4, 5], decode=False).latents
    sizes = []
    real = student.decoder.forward

    def decode(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        sizes.append(len(x))
        if len(x) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(x, *args, **kwargs)

    monkeypatch.setattr(student.decoder, "forward", decode)
    alone = [np.concatenate(list(student.decode(one))) for one in latents]
    for videos in (latents[:2], latents):  # the second does not fit together
        sizes.clear()
        each = [np.concatenate(list(chunks)) for chunks in student.decode_each(videos)]
        assert sizes == ([2, 2] if len(videos) == 2 else [3] + 6 * [1])
        for one, other in zip(each, alone, strict=False):
            assert np.abs(one.astype(int) - other.astype(int)).max() <= 1
    assert videos_at_once(480, 832) == videos_at_once(256, 257) == 1
    assert videos_at_once(128, 128) == 4


def test_several_videos_can_be_taken_one_by_one(shared_student: Path, tmp_path: Path) -> None:
    made = load_student(shared_student).generate(PROMPTS[:2], 3)
    assert len(made) == 2
    second = made[1]
    assert (second.prompt, second.seed, second.fps) == (PROMPTS[1], 4, 8)
    assert np.array_equal(second.frames, made.videos[1])
    frames, fps = read_video(second.save(tmp_path / "a.mp4"))
    assert frames.shape == (9, 32, 32, 3) and fps == 8
    undecoded = load_student(shared_student).generate(PROMPTS[0], decode=False)
    assert undecoded.frames.size == 0


@pytest.mark.parametrize("after", [0, 2, 5])
def test_cancel_stops_between_steps_and_chunks(shared_student: Path, after: int) -> None:
    asked = [0]

    def cancel() -> bool:
        asked[0] += 1
        return asked[0] > after

    student = load_student(shared_student)
    with pytest.raises(Cancelled):
        student.generate("a red circle", cancel=cancel)
    assert asked[0] == after + 1
    assert student.generate("a red circle").frames.shape[0] == 9  # it can be used again


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("[enforce fail] can't allocate")],
)
def test_running_out_of_memory_says_what_would_fit(
    shared_student: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    student = load_student(shared_student)

    def full(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(student.transformer, "forward", full)
    with pytest.raises(UserError, match=r"out of memory on cpu \(denoising\): 2 x 32x32, 9 frames"):
        student.generate(["a", "a red circle"], batch_size=2)
    monkeypatch.setattr(student.decoder, "forward", full)
    with pytest.raises(UserError, match=r"\(decoding\): 1 x 32x32, 9 frames needs about .* GiB"):
        list(student.decode(torch.zeros(4, 3, 8, 8)))


def test_other_errors_are_not_taken_for_memory(
    shared_student: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = load_student(shared_student)

    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(student.transformer, "forward", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        student.generate("a")
