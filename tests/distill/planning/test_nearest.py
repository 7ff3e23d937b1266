"""Jobs that do not fit, and the changes that are offered."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distill.planning import discriminators, model_meter, nearest
from distill.planning.model_meter import ModelMeter
from distill.planning.nearest import check_plan, check_possible
from distill.planning.plan import Machine, make_plan
from distill.planning.rank_memory import Memory, lasting_bytes, rank_memory
from lightx2v_sgmd.families.wan.model import WanModel
from lightx2v_sgmd.families.wan.opening import open_wan
from lightx2v_sgmd.job.loading import load_job
from lightx2v_sgmd.job.schema import Job
from lightx2v_sgmd.system.errors import UserError, short_line
from lightx2v_sgmd.system.resources import config_path
from tests.training import make_job


@pytest.mark.slow
@pytest.mark.parametrize(
    "memory_gib",
    [30.0, pytest.param(20.0, marks=pytest.mark.slow), pytest.param(17.0, marks=pytest.mark.slow)],
)
def test_what_does_not_fit_is_refused_with_what_does(
    wan_1_3b: tuple[Job, Any, ModelMeter], memory_gib: float
) -> None:
    job, model, meter = wan_1_3b
    off = replace(job, parallel=replace(job.parallel, gradient_checkpointing=False))
    machine = Machine(gpus=8, memory_gib=memory_gib)
    plan = make_plan(off, model, machine, meter)
    assert not plan.fits
    with pytest.raises(UserError, match=r"of a GPU's .*; nearest that fits: ") as caught:
        check_plan(plan, model, meter)
    assert short_line(str(caught.value)) == str(caught.value)  # nothing of the remedy is cut
    offers = [
        offer.split(" (")[0].split()
        for offer in str(caught.value).rpartition("fits: ")[2].split(", or ")
    ]
    # On these GPUs and on more.
    assert ["--gpus" in words for words in offers] == [False, True]
    for words in offers:
        changed = dict(word.split("=") for word in words if "=" in word)
        gpus = int(words[words.index("--gpus") + 1]) if "--gpus" in words else 8
        values = {
            key.removeprefix("parallel."): json.loads(_quoted(v)) for key, v in changed.items()
        }
        mended = replace(off, parallel=replace(off.parallel, **values))
        assert make_plan(mended, model, replace(machine, gpus=gpus), meter).fits
        for key in values:  # each of the changes is needed
            without = replace(mended.parallel, **{key: getattr(off.parallel, key)})
            less = make_plan(
                replace(mended, parallel=without), model, replace(machine, gpus=gpus), meter
            )
            assert not less.fits, key


def _quoted(value: str) -> str:
    return value if value in ("true", "false") or value.isdigit() else f'"{value}"'


def test_what_nothing_helps_is_said(wan_1_3b: tuple[Job, Any, ModelMeter]) -> None:
    job, model, meter = wan_1_3b
    plan = make_plan(job, model, Machine(gpus=8, memory_gib=6.7), meter)
    with pytest.raises(UserError, match=r"the least found, .* in the phase 'samples'"):
        check_plan(plan, model, meter)


@pytest.mark.slow
def test_one_layout_tells_that_none_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(Path("sprites"), tmp_path, "train.micro_batch=65536")
    model = open_wan("sprites")
    meter, asked = ModelMeter(model), []
    plan = make_plan(job, model, Machine(gpus=1, memory_gib=80), meter)
    usual = rank_memory

    def counted(*args: Any) -> Memory:
        asked.append(args)
        return usual(*args)

    monkeypatch.setattr(nearest, "rank_memory", counted)
    with pytest.raises(UserError, match=r"the least found, with other layouts .* is [0-9.]+ GiB"):
        check_plan(plan, model, meter)
    assert len(asked) == 1


def test_changes_of_a_quantized_job_are_jobs_too(tmp_path: Path) -> None:
    quantized = "teacher.quantize=fp8-storage"
    job = make_job(Path("sprites"), tmp_path, quantized)
    meter = ModelMeter(open_wan("sprites"))
    changes = nearest._changes(job, Machine(gpus=1, memory_gib=80), meter)
    offered = {
        tuple(word.removeprefix("--set ") for word in words if "=" in word): other
        for words, other, _ in changes
    }
    strategies = {other.parallel.strategy for other in offered.values()}
    assert strategies == {"local", "zero3"}
    for settings, other in offered.items():
        assert make_job(Path("sprites"), tmp_path, quantized, *settings) == other


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("video={height: 8192, width: 8192, num_frames: 21}", "needs at least .* with any layout"),
        ("video={height: 32, width: 48, num_frames: 100001}", "gives 25001 positions"),
    ],
)
def test_absurd_videos_are_refused_from_the_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, says: str
) -> None:
    """At once: building a network, even without weights, imports libraries for seconds."""
    monkeypatch.setattr(WanModel, "build_transformer", None)
    model = open_wan("sprites")
    job = make_job(Path("sprites"), tmp_path, setting)
    with pytest.raises(UserError, match=says):
        check_possible(job, model, Machine(gpus=1, memory_gib=10), ModelMeter(model))


def test_hopeless_layouts_are_not_metered(
    wan_1_3b: tuple[Job, Any, ModelMeter], monkeypatch: pytest.MonkeyPatch
) -> None:
    job, model, meter = wan_1_3b
    huge = replace(job, train=replace(job.train, micro_batch=65_536))
    plan = make_plan(job, model, Machine(gpus=8), meter)
    lasting = lasting_bytes(huge, meter, 8)
    assert lasting > 10_000 * 2**30
    monkeypatch.setattr(model_meter, "meter_pass", None)
    monkeypatch.setattr(model_meter, "meter_forward", None)
    too_large = replace(plan, job=huge, memory=replace(plan.memory, always={"latents": lasting}))
    with pytest.raises(UserError, match=r"with any other layout .*, at least .* would be taken"):
        check_plan(too_large, model, meter)
    with pytest.raises(UserError, match=r"needs at least [0-9.]+ GiB of a GPU's 80, with any lay"):
        check_possible(huge, model, Machine(gpus=8), meter)
    many = replace(job, train=replace(job.train, micro_batch=256))
    assert lasting_bytes(many, meter, 8) < 80 * 2**30  # it is the activations that cannot fit
    with pytest.raises(UserError, match="with any layout"):
        check_possible(many, model, Machine(gpus=8), meter)
    check_possible(job, model, Machine(gpus=8), meter)


def test_hopeless_jobs_with_a_pixel_discriminator_decode_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Metering its decoded frames takes ten times as long as all the rest."""
    monkeypatch.setattr(discriminators, "meter_pixels", None)
    job = load_job(config_path("wan2.1_t2v_1.3b_adp.yaml"), ["train.micro_batch=256"])
    model = open_wan(job.teacher.path)
    with pytest.raises(UserError, match="with any layout"):
        check_possible(job, model, Machine(gpus=8), ModelMeter(model))
