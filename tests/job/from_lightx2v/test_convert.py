"""A YAML of LightX2V's trainer becomes a job, and what it cannot say is said."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from lightx2v_sgmd.cli import main
from lightx2v_sgmd.families.wan.sampling import NEGATIVE_PROMPT
from lightx2v_sgmd.job.from_lightx2v.convert import convert
from lightx2v_sgmd.job.loading import load_job
from lightx2v_sgmd.job.schema import AdapterSettings
from lightx2v_sgmd.methods import DMD2, SGMD
from lightx2v_sgmd.schedule import Schedule
from lightx2v_sgmd.system.errors import UserError

ADAM = {"learning_rate": 2e-6, "adam_beta1": 0.0, "adam_beta2": 0.999, "weight_decay": 0.02}
CONFIG: dict[str, Any] = {
    "model": {"name": "wan_t2v", "pretrained_model_name_or_path": "wan", "running_dtype": "fp32"},
    "distributed": {
        "fsdp2": {"enabled": True, "size": "${oc.env:LX_RANKS,1}"},
        "sequence_parallel": {"enabled": True, "size": 2},
        "timeout_minutes": 60,
    },
    "data": {"train": {"data_path": ["prompts.txt"], "batch_size": 3, "shuffle": True}},
    "scheduler": {"time_shift_settings": {"time_shift_mu": 8.0}},
    "training": {
        "method": "video_dmd",
        "max_train_iters": 50,
        "gradient_accumulation_iters": 4,
        "gradient_checkpointing": False,
        "max_grad_norm": 7.0,
        "lr_warmup_iters": 9,
        "save_every_iters": 20,
        "save_total_limit": 6,
        "output_dir": "out",
        "dmd": {
            "fake_update_ratio": 5,
            "height": 480,
            "width": 640,
            "num_frames": 17,
            "denoising_step_list": [1000, 750, 500, 250],
            "timestep_shift": 6.0,
            "min_step_ratio": 0.03,
            "max_step_ratio": 0.97,
        },
        "student": {"train_type": "full", "optimizer": ADAM},
        "fake": {
            "train_type": "lora",
            "lora": {"rank": 8, "alpha": 4, "target_modules": ["q", "self_attn.o", "ffn.2"]},
            "optimizer": {"learning_rate": 4e-7, "adam_epsilon": 1e-7},
        },
        "teacher": {"guidance_scale": 3.5},
    },
    "inference": {"infer_every_iters": "${training.save_every_iters}"},
    "resume": {"auto_resume": True},
}


def config(folder: Path, **changes: Any) -> Path:
    """The YAML with other values, by dotted keys with two underscores for dots."""
    tree = copy.deepcopy(CONFIG)
    for name, value in changes.items():
        *sections, last = name.split("__")
        inner = tree
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[last] = value
    path = folder / "theirs.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def test_every_value_arrives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    made = convert(config(tmp_path / "configs"))
    job = made.job
    assert (job.teacher.path, job.teacher.guidance_scale, job.teacher.dtype) == (
        *("wan", 3.5),
        "float32",
    )
    assert job.teacher.negative_prompt == f"镜头晃动，{NEGATIVE_PROMPT}"  # theirs, whatever is said
    assert isinstance(job.method, DMD2) and job.method.fake_score_updates == 5
    # Relative to the current folder, as their trainer reads it, not to the YAML.
    assert job.data.prompts == str(tmp_path / "prompts.txt")
    assert (job.schedule.shift, job.schedule.base) == (8.0, (1000.0, 750.0, 500.0, 250.0))
    assert (job.video.height, job.video.width, job.video.frames) == (480, 640, 17)
    student, fake = job.student, job.fake_score
    assert (student.train, student.optimizer.lr, student.optimizer.weight_decay) == (
        *("full", 2e-6),
        0.02,
    )
    assert student.optimizer.betas == fake.optimizer.betas == (0.0, 0.999)
    # What the fake score leaves out is the student's, and then their default.
    assert (fake.optimizer.lr, fake.optimizer.weight_decay, fake.optimizer.eps) == (
        *(4e-7, 0.02),
        1e-7,
    )
    assert fake.lora == AdapterSettings(8, 4, ("to_q", "attn1.to_out.0", "ffn.net.2"))
    train = job.train
    assert (train.iterations, train.micro_batch, train.accumulation, train.clip) == (50, 3, 4, 7.0)
    assert (train.checkpoint_every, train.keep_checkpoints, train.sample_every) == (20, 6, 20)
    assert (train.score_shift, train.sigma_min, train.sigma_max, train.warmup) == (
        *(6.0, 0.03),
        *(0.97, 0),
    )
    assert train.exit_step_per == "micro_batch"
    parallel = job.parallel
    assert (parallel.strategy, parallel.sequence, parallel.timeout_minutes) == ("zero3", 2, 60.0)
    assert parallel.gradient_checkpointing is False and job.output.dir == Path("out")
    assert made.resume == "auto" and not any(note.differs for note in made.notes)
    assert made.origins["train.iterations"].endswith(" training.max_train_iters")


def test_what_differs_from_their_trainer_is_named(tmp_path: Path) -> None:
    path = config(
        tmp_path,
        training__method="video_sgmd",
        training__dmd__fake_update_ratio=1,
        training__dmd__div_loss={"enabled": True, "weight": 0.05},
        training__max_train_iter=7,
        resume__auto_resume=False,
    )
    made = convert(path)
    assert isinstance(made.job.method, SGMD) and made.resume == "never"
    differing = {note.key: note for note in made.notes if note.differs}
    assert set(differing) == {
        "training.method",
        "training.dmd.div_loss.enabled",
        "training.max_train_iter",
    }
    assert "did you mean training.max_train_iters" in str(differing["training.max_train_iter"])
    line = 1 + path.read_text().splitlines().index("      enabled: true")
    assert differing["training.dmd.div_loss.enabled"].where == f"{path}:{line}"
    (weight,) = [note for note in made.notes if note.key == "training.dmd.div_loss.weight"]
    assert not weight.differs


def test_their_defaults_are_written_into_the_job(tmp_path: Path) -> None:
    path = config(tmp_path)
    tree = yaml.safe_load(path.read_text())
    for section in ("max_grad_norm", "save_total_limit", "gradient_checkpointing"):
        del tree["training"][section]
    del tree["training"]["student"]["optimizer"], tree["training"]["teacher"], tree["scheduler"]
    path.write_text(yaml.safe_dump(tree))
    made = convert(path)
    assert made.job.student.optimizer.lr == 1e-4
    assert made.job.student.optimizer.betas == (0.9, 0.999)
    assert (made.job.teacher.guidance_scale, made.job.train.clip) == (3.0, 1.0)
    assert made.job.parallel.gradient_checkpointing is True
    steps = Schedule(made.job.schedule.base, made.job.schedule.shift or 0)
    assert steps.timesteps.tolist() == pytest.approx([1000, 937.5, 833.333, 625])
    assert not any(note.differs for note in made.notes)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model__name": "wan_ti2v_5b"}, r":\d+ model.name: 'wan_ti2v_5b' is not a teacher"),
        ({"model__fake": {"pretrained_model_name_or_path": "b"}}, "write the same for"),
        ({"model__running_dtype": "fp16"}, "'fp16' is not a precision"),
        ({"model__running_dtype": ["bf16"]}, r"\['bf16'\] is not a precision"),
        ({"training__method": ["video_dmd"]}, r"\['video_dmd'\] is not a method"),
        ({"training__dmd__min_step_ratio": float("inf")}, "min_step_ratio: inf is not a finite"),
        ({"training__dmd__timestep_shift": float("nan")}, "timestep_shift: nan is not a finite"),
        ({"a": ["${b}" * 40], "b": "${c}" * 40, "c": "x"}, r"more than 1000 values of"),
        ({"training__method": "flow"}, "'flow' is not a method of this project"),
        (
            {"scheduler__time_shift_settings__time_shift_mu": 7.0},
            "7 is no shift that engine",
        ),
        ({"training__method": "video_sgmd"}, "5 is not 1, as SGMD has it; write 1"),
        ({"training__max_train_iters": None}, "has no training.max_train_iters"),
        ({"training__max_train_iters": 0}, "training.max_train_iters: train.iterations: 0 is"),
        ({"training__lr_scheduler": "cosine"}, "'cosine' is not a learning-rate curve"),
        ({"training__fake__lora__target_modules": ["head"]}, "'head' is not a linear layer"),
        ({"training__teacher__guidance_scale": "3x"}, "'3x' is not a number"),
        ({"data__train__data_path": ["a.txt", "b.txt"]}, "2 files, and this project reads one"),
        ({"distributed__fsdp2__size": "${oc.env:LX_MISSING}"}, "has no LX_MISSING; set it"),
        ({"training__output_dir": "${training.output_dir}"}, "goes in a circle"),
        ({"training__output_dir": "${training.nothing}"}, "there is no such key"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_a_line(
    changes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=says) as error:
        convert(config(tmp_path, **changes))
    assert str(error.value).startswith(str(tmp_path)) and "\n" not in str(error.value)


def test_the_environment_and_other_keys_are_put_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LX_RANKS", "16")
    made = convert(
        config(tmp_path, training__output_dir="out/${training.method}_${oc.env:LX_RANKS}")
    )
    assert made.job.output.dir == Path("out/video_dmd_16")
    (size,) = [note for note in made.notes if note.key == "distributed.fsdp2.size"]
    assert size.value == 16


def test_no_variable_gets_into_an_id_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LX_TOKEN", "hf_secret")
    monkeypatch.setenv("LX_MODELS", str(tmp_path))
    name = {"model__pretrained_model_name_or_path": "someone/${training.output_dir}"}
    secret = config(tmp_path, training__output_dir="x_${oc.env:LX_TOKEN}", **name)
    with pytest.raises(UserError, match="write the id itself") as error:
        convert(secret)
    assert "hf_secret" not in str(error.value)
    key = "model__pretrained_model_name_or_path"
    folder = config(tmp_path, **{key: "${oc.env:LX_MODELS}/wan"})
    assert convert(folder).job.teacher.path == f"{tmp_path}/wan"
    default = config(tmp_path, **{key: "${oc.env:LX_MISSING,someone/wan}"})
    assert convert(default).job.teacher.path == "someone/wan"


def test_the_command_prints_a_job_that_loads(tmp_path: Path) -> None:
    path = config(tmp_path, training__dmd__div_loss={"enabled": True})
    result = CliRunner().invoke(main.app, ["job", "from-lightx2v", str(path)])
    assert result.exit_code == 0, result.output
    (tmp_path / "ours.yaml").write_text(result.output)
    assert load_job(tmp_path / "ours.yaml") == convert(path).job
    assert "#   training.dmd.div_loss.enabled is True: this trainer has no such" in result.output
    assert "#   data.train.shuffle: prompts are always shuffled" in result.output


def test_a_key_or_a_file_with_a_line_break_stays_in_its_comment(tmp_path: Path) -> None:
    path = config(tmp_path, **{"a\nteacher": 1, "logging__b\nteacher": 2})
    path = path.rename(tmp_path / "their\ns.yaml")
    result = CliRunner().invoke(main.app, ["job", "from-lightx2v", str(path)])
    assert result.exit_code == 0, result.output
    (tmp_path / "ours.yaml").write_text(result.output)
    assert load_job(tmp_path / "ours.yaml") == convert(path).job
    assert "#   a\\nteacher is 1: " in result.output
    assert "#   logging.b\\nteacher: " in result.output
    assert f"{tmp_path}/their\\ns.yaml:" in result.output


def test_the_command_prints_json_too(tmp_path: Path) -> None:
    path = config(tmp_path, training__dmd__div_loss={"enabled": True})
    result = CliRunner().invoke(main.app, ["job", "from-lightx2v", str(path), "--json"])
    printed = json.loads(result.output)
    assert printed["job"]["train"]["iterations"] == 50
    assert {entry["key"]: entry["differs"] for entry in printed["not_mapped"]} == {
        "distributed.fsdp2.size": False,
        "data.train.shuffle": False,
        "training.dmd.div_loss.enabled": True,
    }
