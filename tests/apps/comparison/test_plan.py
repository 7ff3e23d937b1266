"""Refusals before anything runs, and the parts of each row's job."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lightx2v_sgmd.apps.comparison import plan as planned
from lightx2v_sgmd.apps.comparison.folder import captions, inputs, writing_report
from lightx2v_sgmd.apps.comparison.plan import Settings, file_name
from lightx2v_sgmd.apps.comparison.planning import make_plan
from lightx2v_sgmd.apps.comparison.saved import saved_plan, write_plan
from lightx2v_sgmd.apps.sprites.evaluate import held_out_motion_captions, training_motion_captions
from lightx2v_sgmd.apps.sprites.motions import MotionCaption
from lightx2v_sgmd.families.sources.model_folder import shipped_prompts
from lightx2v_sgmd.files.latents import write_shard
from lightx2v_sgmd.files.prompts import read_prompts
from lightx2v_sgmd.outputs.record import NAME as RECORD
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.system.resources import config_path
from tests.families.wan.test_image_to_video import write_prompts
from tests.families.wan.test_images import picture
from tests.tiny import make_tiny_wan
from tests.training import PROMPTS


def test_each_row_has_its_methods_sections_and_the_rest_of_the_named_job(
    job: Path, tmp_path: Path
) -> None:
    plan = make_plan(
        job,
        tmp_path / "out",
        methods=["sgmd", "dmd2", "tsg_sim"],
        seeds=2,
        overrides=["train.seed=7"],
        method_overrides=["tsg_sim:student.optimizer.lr=5e-5"],
    )
    assert plan.seeds == (7, 8) and list(plan.jobs) == ["sgmd", "dmd2", "tsg_sim"]
    sgmd, dmd2, tsg_sim = plan.jobs.values()
    assert dmd2.method.fake_score_updates == 2 and dmd2.student.optimizer.lr == 3e-4
    assert dmd2.train == sgmd.train and dmd2.train.iterations == 5
    assert (sgmd.student.optimizer.lr, tsg_sim.student.optimizer.lr) == (1e-4, 5e-5)
    assert tsg_sim.fake_score == sgmd.fake_score
    assert plan.rows == ("teacher", "undistilled", "sgmd", "dmd2", "tsg_sim")
    assert plan.settings.prompts == 64 and not plan.checkable
    assert not (tmp_path / "out").exists()


def test_a_start_image_comes_with_the_prompt(tmp_path: Path) -> None:
    """Where the teacher needs one, and nowhere else."""
    job = config_path("wan2.1_i2v_14b_480p_sgmd.yaml")
    with pytest.raises(UserError, match="has prompts without an image, .* give a .jsonl file"):
        make_plan(job, tmp_path / "out")
    prompts = write_prompts(tmp_path / "in", "a.png", "b.jpg")
    teacher = make_tiny_wan(tmp_path / "teacher", kind="image")
    video = "video={height: 32, width: 48, num_frames: 5}"
    small = [f"teacher.path={teacher}", video, "parallel.sequence=1"]
    settings = Settings(evaluation=str(prompts))
    plan = make_plan(job, tmp_path / "out", overrides=small, settings=settings)
    assert [file.name for file in plan.start_images.values()] == ["a.png", "b.jpg"]
    before = inputs(plan.job, str(prompts))
    picture().rotate(180).save(tmp_path / "in" / "a.png")
    assert inputs(plan.job, str(prompts))["images"] != before["images"]
    text = config_path("wan2.1_t2v_14b_sgmd.yaml")
    with pytest.raises(UserError, match="names images, and .* makes videos from text alone"):
        make_plan(text, tmp_path / "out", settings=settings)


def test_a_method_brings_its_score_times(job: Path, tmp_path: Path) -> None:
    """ADM's are uniform in its paper; a setting of the command still comes before the job's."""
    adm = "method: {name: adm}\ntrain: {score_shift: 1.0, iterations: 99}\nbase: base_sgmd.yaml\n"
    job.with_name("base_adm.yaml").write_text(adm)
    methods = ["sgmd", "dmd2", "adm"]
    plan = make_plan(job, tmp_path / "out", methods=methods)
    assert [each.train.score_shift for each in plan.jobs.values()] == [5.0, 5.0, 1.0]
    assert {each.train.iterations for each in plan.jobs.values()} == {5}
    plan = make_plan(job, tmp_path / "out", methods=methods, overrides=["train.score_shift=3"])
    assert {each.train.score_shift for each in plan.jobs.values()} == {3.0}


def test_only_a_shipped_models_captions_of_the_world_are_checked(job: Path, tmp_path: Path) -> None:
    shipped = make_plan(job, tmp_path / "out", overrides=["data.prompts=sprites"])
    assert shipped.checkable and shipped.settings.prompts == Settings().prompts
    copy = tmp_path / "copy.txt"
    copy.write_text("\n".join(shipped_prompts("sprites") or []))
    assert not make_plan(job, tmp_path / "out", overrides=[f"data.prompts={copy}"]).checkable


def test_captions_of_motions_are_checked_on_held_out_ones(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = training_motion_captions(200)
    plan = make_plan(job, tmp_path / "out", overrides=["data.prompts=sprites"])
    assert planned.world_of(plan.job) == "sprites"
    monkeypatch.setattr(planned, "shipped_prompts", lambda name: trained)
    assert planned.world_of(plan.job) == "motions" and plan.checkable and plan.on_captions
    found = plan.held_out_captions
    assert found == held_out_motion_captions(plan.settings.prompts)
    assert not {*plan.evaluation_prompts} & {*trained}
    opened = [c for c in found or [] if isinstance(c, MotionCaption) and c.motion is None]
    assert len(opened) == pytest.approx(plan.settings.prompts / 2, abs=25)
    monkeypatch.setattr(planned, "shipped_prompts", lambda name: [*trained, "a dog"])
    assert planned.world_of(plan.job) is None and plan.held_out_captions is None


def test_no_row_is_measured_on_its_training_prompts(job: Path, tmp_path: Path) -> None:
    shipped = config_path("prompts/evaluation.txt")
    plan = make_plan(job, tmp_path / "out")
    assert plan.settings.evaluation == str(shipped)
    assert plan.evaluation_prompts == read_prompts(shipped) and not plan.on_captions
    assert not {*plan.evaluation_prompts} & {*read_prompts(config_path("prompts/examples.txt"))}
    assert plan.about_prompts() == (
        "The prompts are from evaluation.txt, and no row trained on any of them."
    )
    sprites = make_plan(config_path("sprites_sgmd.yaml"), tmp_path / "out")
    assert sprites.on_captions and sprites.settings.evaluation is None
    assert not {*sprites.evaluation_prompts} & {*(shipped_prompts("sprites") or [])}

    own = tmp_path / "own.txt"
    own.write_text("a dog\na cat\n")
    settings = Settings(evaluation=str(own))
    assert make_plan(job, tmp_path / "out", settings=settings).evaluation_prompts == [
        "a dog",
        "a cat",
    ]
    own.write_text(f"a dog\n{PROMPTS[0]}\n")
    with pytest.raises(
        UserError, match=r"own\.txt has 1 of sgmd's training prompts .* remove them"
    ):
        make_plan(job, tmp_path / "out", settings=settings)
    with pytest.raises(UserError, match="--evaluation-prompts: .*missing"):
        missing = Settings(evaluation=str(tmp_path / "missing.txt"))
        make_plan(job, tmp_path / "out", settings=missing)


def test_the_teachers_row_says_how_it_is_sampled(job: Path, tmp_path: Path) -> None:
    wan = ["teacher.path=Wan-AI/Wan2.1-T2V-14B-Diffusers", "teacher.guidance_scale=5"]
    for override, prompt in (
        ("null", "its authors' negative prompt"),
        ('""', "no negative prompt"),
    ):
        overrides = [*wan, f"teacher.negative_prompt={override}"]
        plan = make_plan(job, tmp_path / "out", overrides=overrides)
        assert plan.about_teacher() == (
            f"The teacher samples with UniPC, 50 steps, shift 5, guidance 5 and {prompt}."
        )
    euler = replace(plan, settings=replace(plan.settings, solver="euler"))
    assert "with Euler, 50 steps, shift 5, guidance 5" in euler.about_teacher()


def test_rows_may_store_their_frozen_weights_in_two_ways(job: Path, tmp_path: Path) -> None:
    """The teacher that all of them distil, and that is measured, is the same."""
    adapters = ["student.train=lora", "fake_score.train=lora"]
    plan = make_plan(
        job, tmp_path / "out", overrides=adapters, sweep="teacher.quantize=none,fp8-storage"
    )
    stored = {label: row.teacher.quantize for label, row in plan.jobs.items()}
    assert stored == {"sgmd quantize=none": "none", "sgmd quantize=fp8-storage": "fp8-storage"}
    with pytest.raises(UserError, match="guidance_scale: .* set it alike"):
        make_plan(job, tmp_path / "other", sweep="teacher.guidance_scale=2,3")


def test_a_sweep_has_a_row_for_each_value(job: Path, tmp_path: Path) -> None:
    plan = make_plan(job, tmp_path / "out", sweep="method.lambda=0.05, 0.5")
    assert list(plan.jobs) == ["sgmd lambda=0.05", "sgmd lambda=0.5"]
    assert [j.method.lambda_ for j in plan.jobs.values()] == [0.05, 0.5]  # type: ignore[attr-defined]
    assert file_name("sgmd lambda=0.05") == "sgmd_lambda=0.05"


@pytest.mark.parametrize(("every", "expected"), [(2, [2, 4, 5]), (5, [5]), (9, [5]), (None, None)])
def test_the_last_iteration_is_a_snapshot(
    job: Path, tmp_path: Path, every: int | None, expected: list[int] | None
) -> None:
    plan = make_plan(job, tmp_path / "out", every=every)
    assert plan.snapshots() == (expected or [1, 2, 3, 4, 5])


def test_captions_may_come_from_latents(job: Path, tmp_path: Path) -> None:
    x0 = torch.zeros(3, 16, 2, 4, 4)
    write_shard(tmp_path / "latents", 0, x0, None, ["a circle", "a square", "a circle"], {"of": 1})
    settings = [f"data.latents={tmp_path / 'latents'}", "data.prompts=latents"]
    plan = make_plan(job, tmp_path / "out", overrides=settings)
    assert captions(plan.job) == ["a circle", "a square"]
    before = inputs(plan.job, None)["prompts"]
    write_shard(tmp_path / "latents", 1, x0[:1], None, ["a star"], {"of": 1})
    assert inputs(plan.job, None)["prompts"] != before


def refused(job: Path, out: Path, text: str, **options: object) -> None:
    existed = out.exists()
    with pytest.raises(UserError) as caught:
        make_plan(job, out, **options)  # type: ignore[arg-type]
    assert text in str(caught.value), str(caught.value)
    assert out.exists() == existed


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"methods": ["sgmd", "dmd3"]}, "--methods: 'dmd3' is unknown; use adm, "),
        ({"methods": ["sgmd", "sgmd"]}, "sgmd is given twice"),
        ({"seeds": 0}, "--seeds: 0 is too few"),
        ({"every": 0}, "--every: 0 is too few"),
        ({"settings": Settings(prompts=1)}, "--prompts: 1 is too few"),
        ({"settings": Settings(prompts=10**12)}, "--prompts: 1000000000000 is too many"),
        ({"settings": Settings(curve_prompts=-3)}, "--curve-prompts: -3 is too few"),
        ({"seeds": 10**12}, "--seeds: 1000000000000 is too many"),
        ({"every": 1, "overrides": ["train.iterations=1000000000"]}, "snapshots of a run; use a l"),
        ({"overrides": ["output.dir=x"]}, "--set output.dir=x: runs go below --out"),
        ({"overrides": ["train.sed=1"]}, "train.sed: unknown key"),
        ({"overrides": ["train.checkpoint_every=3"]}, "--every says when"),
        ({"sweep": "method.lambda"}, "is not KEY=A,B,C"),
        ({"sweep": "method.lambda=0.1,,0.2"}, "is not KEY=A,B,C"),
        ({"sweep": "method.lambda=0.1,0.10"}, "has a value twice"),
        ({"sweep": "train.seed=" + ",".join(map(str, range(1001)))}, "1,001 values"),
        ({"sweep": "method.lambda=-1,0.1"}, "method.lambda: -1 is too small"),
        ({"sweep": "train.iterations=3,5"}, "set it alike"),
        ({"methods": ["dmd2"], "sweep": "method.lambda=0.1"}, "dmd2: --set: method.lambda"),
        ({"method_overrides": ["dmd2:train.ema=0"]}, "dmd2 is not compared; use sgmd"),
        ({"method_overrides": ["train.ema=0"]}, "is not METHOD:KEY=VALUE"),
        ({"method_overrides": ["sgmd:train.micro_batch=8"], "methods": ["dmd2", "sgmd"]}, "alike"),
    ],
)
def test_mistakes_are_refused_before_anything_is_written(
    job: Path, tmp_path: Path, options: dict[str, object], text: str
) -> None:
    refused(job, tmp_path / "out", text, **options)


def test_a_mistake_in_a_methods_own_job_is_told_under_its_name(job: Path, tmp_path: Path) -> None:
    beside = job.with_name("base_dmd2.yaml")
    beside.write_text(beside.read_text().replace("fake_score_updates", "fake_score_update"))
    refused(job, tmp_path / "out", "base_dmd2.yaml", methods=["sgmd", "dmd2"])


def test_folders_that_hold_something_else_are_refused(job: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(job, tmp_path / "file", "is a file, not a folder")
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.tex").write_text("")
    refused(job, full, "holds other things and no comparison")


@pytest.mark.parametrize(
    "change",
    [
        {"rows": []},
        {"rows": {}},
        {"rows": {"sgmd": {}}},
        {"rows": {"sgmd": {"method.name": 1}}},
        {"shared": None},
        {"settings": {"evil": 1}},
        {"settings": {"every": 0}},
        {"settings": {"prompts": 10**12}},
        {"settings": {"copies": "3"}},
        {"settings": {"evaluation": [1]}},
        {"settings": {"solver": "evil.py"}},
    ],
    ids=str,
)
def test_a_comparison_that_is_not_as_it_was_written_is_refused(
    job: Path, tmp_path: Path, change: dict[str, object]
) -> None:
    out = tmp_path / "out"
    write_plan(make_plan(job, out))
    (out / "measured" / "sgmd" / "seed_x").mkdir(parents=True)
    assert saved_plan(out).seeds == ()
    file = out / "comparison.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UserError, match=r"comparison\.json: cannot be read"):
        saved_plan(out)


def test_an_edited_table_is_kept_also_where_the_record_is_lost(job: Path, tmp_path: Path) -> None:
    plan = make_plan(job, tmp_path / "out")
    write_plan(plan)
    (plan.out / RECORD).unlink()
    (plan.out / "table.md").write_text("mine")
    with pytest.raises(UserError, match=r"table\.md would be replaced"):
        with writing_report(plan.out, quiet=True):
            pass
    file = plan.out / "comparison.json"  # version 0.1 kept no record, and noted no inputs
    saved = json.loads(file.read_text())
    del saved["inputs"]
    file.write_text(json.dumps(saved))
    with writing_report(plan.out, quiet=True):
        pass


def test_a_folder_goes_on_with_its_own_comparison_only(job: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_plan(make_plan(job, out, methods=["sgmd"]))
    # More seeds and more methods belong to the same comparison.
    write_plan(make_plan(job, out, methods=["dmd2", "sgmd"], seeds=3))
    assert set(json.loads((out / "comparison.json").read_text())["rows"]) == {"sgmd", "dmd2"}
    refused(job, out, "train.iterations: 6 is not the 5", overrides=["train.iterations=6"])
    refused(job, out, "method.lambda: 0.3 is not the 0.1", overrides=["method.lambda=0.3"])
    refused(job, out, "--every: 3 is not the 1", every=3)
    changed = "sgmd:student.optimizer.lr=2e-4"
    refused(job, out, "student.optimizer.lr: 0.0002", method_overrides=[changed])
    other = ["teacher.guidance_scale=2"]
    refused(job, out, "teacher.guidance_scale", methods=["sid"], overrides=other)
    (out / "comparison.json").write_text("{")
    refused(job, out, "comparison.json: cannot be read")
