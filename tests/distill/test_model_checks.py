from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest

from distill.model_checks import check_against_model
from lightx2v_sgmd.families.opening import open_model
from lightx2v_sgmd.interpolants import FLOW
from lightx2v_sgmd.job.loading import load_job
from lightx2v_sgmd.job.schema import Job, Parallel
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.system.resources import config_path


@pytest.mark.parametrize(
    ("heads", "degree", "degrees"),
    [(12, 8, "1, 2, 3, 4, 6 or 12"), (40, 3, "1, 2, 4, 5, 8, 10, 20 or 40")],
)
def test_a_sequence_degree_must_divide_the_heads(heads: int, degree: int, degrees: str) -> None:
    job = load_job(config_path("sprites_sgmd.yaml"))
    shapes: list[tuple[int, int, int]] = []
    model = SimpleNamespace(
        num_heads=heads,
        latent_shape=lambda *size: shapes.append(size),
        interpolant=FLOW,
        student_shifts=(8.0,),
        features={"sequence"},
        experts=(None,),
    )

    def with_degree(degree: int) -> Job:
        return dataclasses.replace(job, parallel=Parallel(strategy="zero3", sequence=degree))

    with pytest.raises(UserError) as caught:
        check_against_model(with_degree(degree), model)
    assert str(caught.value) == (
        f"parallel.sequence: {degree} does not divide the {heads} attention heads of sprites; "
        f"use {degrees}"
    )
    check_against_model(with_degree(4), model)
    assert shapes == [(job.video.height, job.video.width, job.video.frames)]


def test_images_have_no_encoded_videos(tiny_sdxl: Path, tmp_path: Path) -> None:
    """Pairs of such a teacher are latents too, and would pass for real ones."""
    term = "method={name: dmd2, gan_weight: 0.1}"
    latents = ["data.prompts=latents", f"data.latents={tmp_path}"]
    job = load_job(config_path("sdxl_dmdx.yaml"), [term, *latents])
    with pytest.raises(UserError, match="^method.gan_weight: dmd2 reads .* makes images.*(0)"):
        check_against_model(job, open_model(tiny_sdxl))
