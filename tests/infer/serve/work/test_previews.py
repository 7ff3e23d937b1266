"""Previews: a linear map learned from finished videos, and the data prediction of a step."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from multiprocessing import Pipe
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

from infer.serve.work.latent_colours import (
    FrameMeans,
    animation,
    data_prediction,
    renoised_prediction,
)
from infer.serve.work.maker import Maker
from infer.serve.work.previews import LEARN_FROM, Previews
from lightx2v_sgmd.families.wan.opening import open_wan
from lightx2v_sgmd.files.video import read_video
from lightx2v_sgmd.flow import add_noise
from lightx2v_sgmd.interpolants import FLOW, Interpolant, VariancePreserving, scaled_linear_alphas
from lightx2v_sgmd.sampling.sampler import fresh_noise_for
from lightx2v_sgmd.schedule import Schedule
from tests.infer.serve.standin import WANTED, OneStudent, make_backend
from tests.students import load_student


@pytest.mark.parametrize("path", [FLOW, VariancePreserving(scaled_linear_alphas(), "epsilon")])
def test_the_data_prediction_of_a_step_is_its_data(path: Interpolant) -> None:
    x0, noise = torch.randn(2, 1, 4, 2, 3, 3).unbind()
    first, second, end = torch.tensor([[0.96], [0.7], [0.0]])
    before, after = path.add_noise(x0, noise, first), path.add_noise(x0, noise, second)
    for state, time in ((after, second), (x0, end)):
        found = data_prediction(before, state, path, torch.cat([first, time]))
        assert torch.allclose(found, x0, atol=1e-4)
    assert torch.allclose(renoised_prediction(after, noise, path, second), x0, atol=1e-5)
    assert torch.equal(renoised_prediction(x0, noise, path, end), x0)


@pytest.mark.parametrize("hidden", [(), (0,)])
def test_a_student_that_is_noised_anew_is_shown_by_its_own_noise(
    hidden: tuple[int, ...], tmp_path: Path
) -> None:
    """The engine's noise for each seed: what it adds, the preview takes away again.

    A step that follows too fast is not shown, and the next one has its own noise all the same.
    """
    backend, shape = make_backend(tmp_path / "data"), (4, 3, 4, 4)
    seen: list[torch.Tensor] = []
    jobs = [backend.store.add(replace(WANTED, seed=seed), 10) for seed in (1, 2)]
    schedule = Schedule(solver="renoise")
    model = open_wan("sprites")
    student: Any = SimpleNamespace(
        model=model,
        schedule=schedule,
        latent_shape=lambda *size: shape,
        noise=lambda seed, shape: torch.ones(shape),
    )
    previews = Previews(backend.results, every_s=0)
    stand_in: Any = SimpleNamespace(decode=seen.append, videos=1)
    previews._decoders = {WANTED.model: stand_in}
    previews.begin(student, jobs)
    fresh = fresh_noise_for(model, [1, 2], shape)
    for step in (0, 1):
        x0 = torch.full((2, *shape), float(step))
        state = add_noise(x0, fresh(step), schedule.times[step + 1].expand(2))
        previews._shown_at = math.inf if step in hidden else -math.inf
        previews.step(jobs, step, state)
    assert [round(x.mean().item(), 4) for x in seen] == [0, 0, 1, 1][2 * len(hidden) :]
    assert max(x.std().item() for x in seen) < 1e-4


def test_an_animation_has_a_picture_for_each_latent_frame() -> None:
    pictures = np.zeros((3, 8, 8, 3), np.uint8)
    pictures[1] = 200
    film: Any = Image.open(io.BytesIO(animation(pictures, 16.0)))
    assert (film.n_frames, film.size) == (3, (8, 8))
    film.seek(1)
    assert abs(int(np.asarray(film.convert("RGB")).mean()) - 200) < 8


def test_a_step_shows_every_video_of_its_batch(tmp_path: Path) -> None:
    backend = make_backend(tmp_path / "data")
    jobs = [backend.store.add(WANTED, 10) for _ in range(2)]
    shape = (4, 3, 4, 4)
    student: Any = SimpleNamespace(
        model=open_wan("sprites"),
        schedule=Schedule(),
        latent_shape=lambda *size: shape,
        noise=lambda seed, shape: torch.ones(shape),
    )
    previews, states = Previews(backend.results, every_s=0), torch.ones(2, *shape)
    previews.begin(student, jobs)
    previews.step(jobs, 0, 0.9 * states)
    assert not any(backend.results.preview(job.id).exists() for job in jobs)
    means = previews.means(states[0])
    list(means.watching(iter([np.full((9, 32, 32, 3), 90, np.uint8)])))
    previews.learn(jobs[0], states[0], means)
    # The next step goes from 0.9 to 0.9: its velocity is 0, and the prediction a latent of 0.9.
    previews.step(jobs, 1, 0.9 * states)
    for job in jobs:
        film = Image.open(backend.results.preview(job.id)).convert("RGB")
        assert abs(np.asarray(film).mean() - 85) < 8
    backend.delete(jobs[0].id)
    assert not backend.results.preview(jobs[0].id).exists()
    backend.results.sweep(backend.store)
    assert not backend.results.preview(jobs[1].id).exists()


def test_steps_that_follow_fast_are_shown_once_and_few_videos_are_learned(tmp_path: Path) -> None:
    backend = make_backend(tmp_path / "data")
    shown: list[str] = []
    results = Mock(wraps=backend.results, show=lambda name, picture: shown.append(name))
    job, shape = backend.store.add(WANTED, 10), (4, 3, 4, 4)
    student: Any = SimpleNamespace(
        model=open_wan("sprites"),
        schedule=Schedule(),
        latent_shape=lambda *size: shape,
        noise=lambda seed, shape: torch.ones(shape),
    )
    previews, state = Previews(results, every_s=1e9), torch.ones(1, *shape)
    for _ in range(LEARN_FROM):
        assert previews.learns(job)
        means = previews.means(state[0])
        list(means.watching(iter([np.full((9, 32, 32, 3), 90, np.uint8)])))
        previews.learn(job, state[0], means)
    assert not previews.learns(job) and previews.learns(replace(job, model="other"))
    previews.begin(student, [job])
    for step in range(4):
        previews.step([job], step, state)
    assert shown == [job.id]


def test_a_real_student_shows_every_step_of_its_second_video(
    shared_student: Path, tmp_path: Path
) -> None:
    backend, student = make_backend(tmp_path / "data"), load_student(shared_student)
    shown: list[tuple[str, bytes]] = []
    results = Mock(wraps=backend.results, folder=backend.results.folder)
    results.show = lambda name, picture: shown.append((name, picture))
    ours, theirs = Pipe()
    previews = Previews(results, every_s=0)
    maker = Maker(OneStudent(student), backend.store, results, "w", theirs, previews)
    jobs = [backend.store.add(replace(WANTED, seed=seed), 10) for seed in (1, 2)]
    for _ in jobs:
        maker._make(backend.store.claim("w", lambda job: 1))
    ours.close()
    statuses = [job.status for job in backend.store.page(10, None, False)[0]]
    assert statuses == ["completed"] * 2
    assert [name for name, _ in shown] == [jobs[1].id] * 4
    # After the last step the data prediction is the video, which the map shows roughly.
    film: Any = Image.open(io.BytesIO(shown[-1][1]))
    frames, _ = read_video(backend.results.video(jobs[1].id))
    assert film.n_frames == (len(frames) + 3) // 4
    means = FrameMeans((film.n_frames, film.height, film.width))
    list(means.watching(iter([frames])))
    colours = means.colours
    assert colours is not None
    seen = np.asarray(film.convert("RGB")).astype(float)
    wanted = 255 * colours[:, 0].permute(1, 2, 0).numpy()
    assert np.abs(seen - wanted).mean() < 20
