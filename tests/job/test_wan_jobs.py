"""The jobs of published models: every value is the one that its source gives, and names it.

The sources are arXiv 2605.30116 ("the paper"), the authors' public trainer in ModelTC/LightX2V at
f8aee98 and GoatWu/Self-Forcing-Plus at 7087227; the tables below were read off them by hand.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from distill.data import Batches
from distill.updates import average_decay, first_batch, first_update
from lightx2v_sgmd.families.conditioning import Embedding
from lightx2v_sgmd.families.opening import open_model
from lightx2v_sgmd.families.teacher import open_teacher, with_defaults
from lightx2v_sgmd.families.wan.opening import open_wan
from lightx2v_sgmd.families.wan.sampling import IMAGE_NEGATIVE_PROMPT, NEGATIVE_PROMPT
from lightx2v_sgmd.job.from_lightx2v.keys import NEGATIVE_PROMPT as LIGHTX2V_NEGATIVE_PROMPT
from lightx2v_sgmd.job.inheritance import read_job_tree
from lightx2v_sgmd.job.loading import load_job
from lightx2v_sgmd.job.schema import Job
from lightx2v_sgmd.parallel import STUDENT, Ranks, expert_role
from lightx2v_sgmd.system.resources import config_path, shipped_jobs

PAPER_JOB, PUBLIC_JOB = "wan2.1_t2v_14b_sgmd.yaml", "wan2.1_t2v_14b_sgmd_public.yaml"
WAN_JOBS = [name for name in shipped_jobs() if name.startswith("wan")]
PUBLISHED = [name for name in shipped_jobs() if not name.startswith(("sprites", "motions"))]

ADAMW = {"lr": 1e-6, "betas": [0.0, 0.999]}
PAPER: dict[str, Any] = {
    "teacher.path": "Wan-AI/Wan2.1-T2V-14B-Diffusers",
    "student.train": "full",
    **{f"student.optimizer.{key}": value for key, value in ADAMW.items()},
    "fake_score.train": "full",
    **{f"fake_score.optimizer.{key}": value for key, value in ADAMW.items()},
    "method.name": "sgmd",
    "method.lambda": 0.1,
    "schedule.base": [1000, 750, 500, 250],
    "schedule.shift": 8.0,
    "video.height": 480,
    "video.width": 832,
    "video.num_frames": 81,
    "train.iterations": 300,
    "parallel.strategy": "zero3",
    "parallel.gradient_checkpointing": True,
}
"""The paper's settings: Sec. 4.1, Table 2 and Alg. 1."""
OPEN: dict[str, Any] = {
    "teacher.guidance_scale": 5.0,
    "teacher.negative_prompt": None,
    "teacher.dtype": "bfloat16",
    "student.optimizer.eps": 1e-8,
    "student.optimizer.weight_decay": 0.01,
    "fake_score.optimizer.eps": 1e-8,
    "fake_score.optimizer.weight_decay": 0.01,
    "method.weighting": "normalized",
    "data.prompts": "prompts/examples.txt",
    "train.micro_batch": 1,
    "train.accumulation": 8,
    "train.clip": 10.0,
    "train.ema": 0.99,
    "train.ema_start": 200,
    "train.warmup": 0,
    "train.score_shift": 8.0,
    "train.sigma_min": 0.02,
    "train.sigma_max": 0.98,
    "train.seed": 0,
    "train.checkpoint_every": 100,
    "train.sample_every": 100,
    "parallel.sequence": 8,
    "parallel.offload": "none",
    "output.dir": "runs/wan2.1_t2v_14b_sgmd",
}
"""Settings that the paper leaves open, with the reason beside each in the job."""
LIGHTX2V: dict[str, Any] = {
    "teacher.path": "Wan-AI/Wan2.1-T2V-14B-Diffusers",
    "teacher.guidance_scale": 3.0,
    "teacher.negative_prompt": f"镜头晃动，{NEGATIVE_PROMPT}",
    "teacher.dtype": "bfloat16",
    "student.train": "full",
    "student.optimizer.lr": 2e-6,
    "fake_score.train": "full",
    "fake_score.optimizer.lr": 4e-7,
    **{
        f"{role}.optimizer.{key}": value
        for role in ("student", "fake_score")
        for key, value in (("betas", [0.0, 0.999]), ("eps", 1e-8), ("weight_decay", 0.01))
    },
    "method.lambda": 0.1,  # fake_correction_weight
    "method.weighting": "normalized",
    "method.fake_score_rollout": "fresh",
    "schedule.base": [1000, 750, 500, 250],
    "schedule.shift": 5.0,  # scheduler.time_shift_settings.time_shift_mu
    "video.height": 480,
    "video.width": 832,
    "video.num_frames": 81,
    "train.iterations": 5000,
    "train.micro_batch": 1,
    "train.accumulation": 4,
    "train.clip": 10.0,
    "train.ema": 0.0,
    "train.warmup": 0,
    "train.exit_step_per": "micro_batch",
    "train.score_shift": 5.0,
    "train.sigma_min": 0.02,
    "train.sigma_max": 0.98,
    "train.checkpoint_every": 100,
    "train.keep_checkpoints": 2,
    "parallel.sequence": 1,
    "parallel.gradient_checkpointing": True,
}
"""lightx2v_train/configs/train/sgmd/wan2_1_t2v_14b_sgmd.yaml and trainers/sgmd.py."""


def leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A job's values by dotted key."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            found |= leaves(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def differences(stated: dict[str, Any], table: dict[str, Any]) -> set[str]:
    """The keys in which a job differs from a table."""
    missing = object()
    keys = stated.keys() | table.keys()
    return {key for key in keys if stated.get(key, missing) != table.get(key, missing)}


def resolved(name: str) -> dict[str, Any]:
    job = load_job(config_path(name))
    return leaves(yaml.safe_load(with_defaults(job, open_teacher(job.teacher)).to_yaml()))


def test_every_value_of_the_14b_job_is_in_the_table() -> None:
    assert not PAPER.keys() & OPEN.keys()
    stated = leaves(read_job_tree(config_path(PAPER_JOB)).tree)
    assert differences(stated, PAPER | OPEN) == set()


def test_the_jobs_defaults_do_not_speak_for_the_paper() -> None:
    """Settings that the file does not state are about this machine or are off."""
    silent = {key: value for key, value in resolved(PAPER_JOB).items() if key not in PAPER | OPEN}
    assert silent == {
        "teacher.base": None,
        "teacher.guidance_scale_2": None,
        "teacher.loras": [],
        "teacher.quantize": "none",
        "student.path": None,
        "student.lora": None,
        "fake_score.path": None,
        "fake_score.lora": None,
        "method.max_weight": 1.0,
        "method.fake_score_rollout": "shared",
        "method.nr_iterations": None,
        "schedule.solver": "euler",
        "data.embeddings": None,
        "data.latents": None,
        "train.decay": 0,
        "train.exit_step_per": "update",
        "train.checkpoint_minutes": None,
        "train.sample_videos": 4,
        "train.teacher_sample_steps": 20,
        "train.keep_checkpoints": 2,
        "output.trackers": ["tensorboard"],
        "parallel.offload_dir": None,
        "parallel.compile": "auto",
        "parallel.timeout_minutes": 10.0,
    }


@pytest.mark.parametrize("key", sorted(PAPER | OPEN))
def test_another_value_is_noticed(key: str) -> None:
    stated = leaves(read_job_tree(config_path(PAPER_JOB)).tree)
    value = stated[key]
    others = {bool: not value, str: f"{value}x", type(None): "", list: [1]}
    stated[key] = others.get(type(value), value * 1.01 if isinstance(value, float) else 7)
    assert differences(stated, PAPER | OPEN) == {key}


def test_the_papers_batch_is_32_on_its_32_gpus() -> None:
    job = load_job(config_path(PAPER_JOB))
    job = with_defaults(job, open_teacher(job.teacher))
    groups = 32 // job.parallel.sequence
    assert groups * job.train.micro_batch * job.train.accumulation == 32
    assert job.steps.timesteps.tolist() == pytest.approx([1000, 960, 889, 727], abs=0.5)


def test_the_public_job_has_the_public_trainers_values() -> None:
    values = resolved(PUBLIC_JOB)
    stated = {key: values[key] for key in LIGHTX2V}
    assert stated["teacher.negative_prompt"] == LIGHTX2V_NEGATIVE_PROMPT
    assert differences(stated, LIGHTX2V) == set()
    assert load_job(config_path(PUBLIC_JOB)).method.fresh_rollouts


def test_published_models_are_matched_at_uniform_score_times() -> None:
    """ADM (arXiv 2507.18569), Alg. 1, line 18, and App. A and B.5 of the same paper."""
    jobs = [load_job(config_path(name)) for name in PUBLISHED]
    matched = [job for job in jobs if job.method.name in ("adm", "dmdx")]
    assert {job.method.name for job in matched} == {"adm", "dmdx"} and len(matched) == 13
    for job in matched:
        assert job.train.score_shift == 1.0, job.output.dir
        assert job.method.guidance_range is not None and job.method.whole_rollouts
        assert job.method.fake_score_updates == 1
        assert job.student.optimizer.betas == job.fake_score.optimizer.betas == (0.0, 0.99)


def test_wan_jobs_guide_away_from_wans_own_negative_prompt() -> None:
    """But the public job, which has the public trainer's; image-to-video has its own."""
    assert NEGATIVE_PROMPT.startswith("色调艳丽") and NEGATIVE_PROMPT.endswith("，倒着走")
    assert len(NEGATIVE_PROMPT) == 137 and NEGATIVE_PROMPT.count("，") == 27
    for name in shipped_jobs():
        job = load_job(config_path(name))
        used = open_model(job.teacher.path).negative_prompt_for(job.teacher.negative_prompt)
        expected = NEGATIVE_PROMPT if name in WAN_JOBS else ""
        if name.startswith("wan2.1_i2v"):
            expected = IMAGE_NEGATIVE_PROMPT
        if name == PUBLIC_JOB:
            expected = LIGHTX2V["teacher.negative_prompt"]
        assert used == expected, name
    assert open_wan("sprites").negative_prompt_for(None) == ""


def undistilled_shares(job: Job, steps: int) -> list[list[float]]:
    """The weight of the teacher's own weights in each expert's moving average, by iteration.

    An expert whose phase has not begun is the teacher's, and left out.
    """
    experts = open_model(job.teacher.path).experts
    negative = Embedding({"text": torch.zeros(1, 1)})
    batches = Batches(job, [], negative, (1, 1, 1, 1), Ranks(), experts=experts)
    shares, found = [1.0] * len(experts), []
    roles = [expert_role(STUDENT, number) for number in range(len(experts))]
    first_updates = [first_update(job.method, role) for role in roles]
    for iteration in range(steps):
        trained = batches.expert(first_batch(job.method, iteration))
        shares[trained] *= average_decay(iteration + 1 - first_updates[trained], job.train)
        found.append([shares[n] for n, first in enumerate(first_updates) if first <= iteration])
    return found


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_a_published_models_job_exports_is_the_student(name: str) -> None:
    job = load_job(config_path(name))
    job = with_defaults(job, open_teacher(job.teacher))
    shares = undistilled_shares(job, min(job.train.iterations, 1000))[99::100]
    assert max(map(max, shares)) <= 0.01, shares


SOURCE = re.compile(
    r"paper|arXiv|LightX2V|Self-Forcing|\b(Wan|ours|ADM|SGMD)\b|authors|as for Wan2.1-1.3B"
)


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_value_of_a_published_models_job_names_its_source(name: str) -> None:
    """In a comment behind it or in the lines right above; a method's name is the file's."""
    above = ""
    for line in Path(config_path(name)).read_text(encoding="utf-8").splitlines():
        content, _, comment = line.partition("#")
        if not content.strip():
            above = f"{above} {comment}" if comment else ""
            continue
        value = content.partition(":")[2].strip()
        if value and content.split(":")[0].strip() not in ("base", "name"):
            assert SOURCE.search(f"{above} {comment}"), f"{name}: {line}"
        above = ""
