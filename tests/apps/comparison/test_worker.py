"""One task's work, in this process: what it leaves, and that it does only what is missing."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from distill.ode_pairs import PairPlan, collect_pairs
from lightx2v_sgmd.apps.comparison import compare, measuring, worker
from lightx2v_sgmd.apps.comparison.plan import Plan, Settings
from lightx2v_sgmd.apps.comparison.planning import make_plan
from lightx2v_sgmd.apps.comparison.saved import write_plan
from lightx2v_sgmd.apps.comparison.tasks import Task, all_tasks, is_done, outputs, units, units_done
from lightx2v_sgmd.files.checkpoint import checkpoints
from lightx2v_sgmd.files.student_weights import student_files
from lightx2v_sgmd.job.loading import load_job
from lightx2v_sgmd.sampling.sampler import VideoSampler
from tests.families.wan.test_image_to_video import write_prompts
from tests.tiny import WEIGHTS, make_tiny_cogvideox, make_tiny_experts, make_tiny_wan
from tests.tiny_sd3 import make_tiny_sd3
from tests.tiny_sdxl import make_tiny_sdxl
from tests.training import job_file


@pytest.fixture(scope="module")
def trained(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """A comparison of which one run is done, and the teacher of that seed."""
    folder = tmp_path_factory.mktemp("comparison")
    plan = make_plan(
        job_file(tiny_teacher, folder),
        folder / "out",
        seeds=2,
        overrides=["train.iterations=3", "train.micro_batch=1"],
        settings=Settings(prompts=4),
        every=1,
    )
    write_plan(plan)
    for row in ("sgmd", "teacher"):
        worker.work(plan.out, Task(row, 0))
    return plan


@pytest.mark.slow
def test_a_run_leaves_snapshots_and_measurements(trained: Plan) -> None:
    assert is_done(trained, Task("sgmd", 0)) and not is_done(trained, Task("sgmd", 1))
    run = trained.run("sgmd", 0)
    assert [f.name for f in sorted((run / "snapshots").iterdir())] == [
        "step_000001",
        "step_000002",
        "step_000003",
    ]
    (newest,) = checkpoints(run)
    last, average = (
        load_file(path / "student_ema.safetensors")
        for path in (trained.snapshot("sgmd", 0, 3), newest)
    )
    assert all((last[name] == average[name]).all() for name in average)
    first = load_file(trained.snapshot("sgmd", 0, 1) / "student_ema.safetensors")
    assert any((last[name] != first[name]).any() for name in first)
    full, curve = (
        measuring.load(trained.measurement("sgmd", 0, step, full=step == 3)) for step in (3, 2)
    )
    assert full.nfe == curve.nfe == 4 and full.seconds > 0
    assert len(full.flow) == 4 and len(full.distances) == 4 and not curve.distances
    assert len(list(trained.videos("sgmd", 0).glob("*.mp4"))) == 4


@pytest.mark.slow
def test_rows_share_their_noise(trained: Plan, tiny_teacher: Path) -> None:
    """The teacher's own weights, loaded as a snapshot is, make the undistilled row's videos."""
    bench = worker.Bench(trained, 0)
    sampler = bench.student()
    texts, seeds = bench.wanted()
    assert len(texts) == 4 + 4 * 3 and len(set(seeds)) == len(seeds)
    before = sampler(texts[:2], seeds[:2])
    sampler.load_weights(student_files(trained.snapshot("sgmd", 0, 3), averaged=True))
    after = sampler(texts[:2], seeds[:2])
    sampler.load_weights([tiny_teacher / WEIGHTS])
    np.testing.assert_array_equal(sampler(texts[:2], seeds[:2]), before)
    assert (after != before).any()
    undistilled = measuring.load(trained.measurement("undistilled", 0, 0))
    again = measuring.measure_videos(before, None, bench.fps, nfe=4)
    np.testing.assert_allclose(again.features, undistilled.features[:2], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_only_what_is_missing_is_done(trained: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    task = Task("sgmd", 0)
    kept = {path: path.read_text() for path in outputs(trained, task)}
    gone = trained.measurement("sgmd", 0, 2, full=False)
    gone.unlink()
    assert not is_done(trained, task) and 0 < units_done(trained, task) < units(trained, task)
    monkeypatch.setattr("distill.distill", None)  # training again would fail
    times = {path: path.stat().st_mtime_ns for path in kept if path != gone}
    worker.work(trained.out, task)
    assert times == {path: path.stat().st_mtime_ns for path in times}
    without_time = [json.loads(text) for text in (gone.read_text(), kept[gone])]
    for tree in without_time:
        del tree["seconds"]
    assert without_time[0] == without_time[1]
    assert units_done(trained, task) == units(trained, task)


@pytest.mark.slow
def test_the_teacher_goes_on_with_the_batch_where_it_was_stopped(
    trained: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "TEACHER_BATCH", 6)
    sampled: list[int] = []
    sample = VideoSampler.__call__

    def stopped_once(self: VideoSampler, prompts: Any, seeds: Any) -> Any:
        if len(sampled) == 2:
            sampled.append(0)
            raise KeyboardInterrupt
        sampled.append(len(prompts))
        return sample(self, prompts, seeds)

    monkeypatch.setattr(VideoSampler, "__call__", stopped_once)
    task = Task("teacher", 1)
    with pytest.raises(KeyboardInterrupt):
        worker.work(trained.out, task)
    assert not is_done(trained, task)
    worker.work(trained.out, task)
    # The few steps are one batch; then the teacher's 16 videos, the second batch of which waits.
    assert is_done(trained, task) and sampled == [16, 6, 0, 6, 4]
    assert measuring.load(trained.measurement("teacher", 1, 0)).nfe == 100


@pytest.mark.slow
def test_the_teacher_is_measured_before_anything_is_trained(trained: Plan) -> None:
    rows = [(task.row, task.seed) for task in all_tasks(trained)]
    assert rows == [("teacher", 0), ("teacher", 1), ("sgmd", 0), ("sgmd", 1)]


def test_checkpoints_are_thinned_out_after_their_weights_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        folder = tmp_path / "checkpoints" / f"step_{step:06d}"
        folder.mkdir(parents=True)
        (folder / "student.safetensors").write_text("x" * step)
        if step == 4:
            (folder / "student_ema.safetensors").write_text("average")
    for _ in range(2):
        worker.collect(tmp_path, steps=(2, 4), keep=2)
        folder = tmp_path / "snapshots"
        kept = {str(f.relative_to(folder)): f.read_text() for f in folder.glob("*/*")}
        assert kept == {
            "step_000002/student.safetensors": "xx",
            "step_000004/student_ema.safetensors": "average",
        }
        assert [f.name for f in checkpoints(tmp_path)] == ["step_000004", "step_000003"]


@pytest.mark.slow
def test_students_that_are_adapters_are_measured_as_others_are(
    tiny_teacher: Path, tmp_path: Path
) -> None:
    settings = ["student={train: lora, lora: {rank: 4}}", "train.iterations=1"]
    job = job_file(tiny_teacher, tmp_path)
    plan = make_plan(job, tmp_path / "out", overrides=[*settings, "train.micro_batch=1"], every=1)
    write_plan(plan)
    worker.work(plan.out, Task("sgmd", 0))
    assert is_done(plan, Task("sgmd", 0))
    snapshot = load_file(plan.snapshot("sgmd", 0, 1) / "student_ema.safetensors")
    assert all(name.startswith("transformer.") for name in snapshot)


IMAGES = ["video={height: 32, width: 32}", "schedule={base: [1000, 500], shift: 3}"]
EXPERTS = ["schedule.shift=5", "teacher.guidance_scale_2=2"]
VIDEO = ["schedule={base: [1000, 750, 500, 250], shift: 1, solver: ddim}", "video.num_frames=9"]
KINDS: dict[str, tuple[Callable[[Path], Path], list[str]]] = {
    "sd3: images": (make_tiny_sd3, IMAGES),
    "sd3.5: images": (partial(make_tiny_sd3, qk_norm=True), IMAGES),
    "t2v-a14b: experts": (make_tiny_experts, EXPERTS),
    "i2v-a14b: experts, start images": (
        partial(make_tiny_experts, boundary=0.9, kind="image latents"),
        [*EXPERTS, "video.width=48"],
    ),
    "i2v-14b: start images": (partial(make_tiny_wan, kind="image"), ["video.width=48"]),
    "ti2v-5b: start images": (partial(make_tiny_wan, kind="text and image"), ["video.width=48"]),
    "cogvideox-5b": (partial(make_tiny_cogvideox, rotary=True), VIDEO),
}
"""Teachers by their names, with what is special about them."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_teacher_is_compared(kind: str, tmp_path: Path) -> None:
    """Images have no motion; of two experts both are loaded; a start image is the prompt's."""
    make, settings = KINDS[kind]
    job, evaluation = job_file(make(tmp_path / "teacher"), tmp_path / "job"), None
    if "start images" in kind:
        prompts = write_prompts(tmp_path / "in", "a.png", "b.jpg")
        lines = [{"prompt": text, "image": "a.png"} for text in ("a blue circle", "a red square")]
        evaluation = str(tmp_path / "in" / "evaluation.jsonl")
        Path(evaluation).write_text("".join(json.dumps(line) + "\n" for line in lines))
        settings = [*settings, f"data.prompts={prompts}"]
    out, few = tmp_path / "out", ["train.iterations=2", "train.micro_batch=1"]
    plan = make_plan(
        job,
        out,
        overrides=[*settings, *few],
        settings=Settings(prompts=2, evaluation=evaluation),
        every=1,
    )
    write_plan(plan)
    for row in ("sgmd", "teacher"):
        worker.work(out, Task(row, 0))
    row = compare(job, out, report_only=True, quiet=True).results["rows"]["sgmd"]
    assert row["equal_iterations"]["frechet"]["mean"] > 0 and len(row["curve"]) == 3
    names = {file.name for file in plan.snapshot("sgmd", 0, 2).iterdir()}
    assert ("student_2_ema.safetensors" in names) == ("experts" in kind)
    table, page = ((out / name).read_text() for name in ("table.md", "report.html"))
    images = kind.endswith(": images")
    assert ("OptFlow" in table) != images and ("data:image/png" in page) == images
    suffix = "png" if images else "mp4"
    assert len(list(plan.videos("teacher", 0).glob(f"*.{suffix}"))) == 2
    assert ("guidance 8 (high-noise) and 2 (low-noise)" in table) == ("experts" in kind)


METHODS = ("sgmd", "dmd2", "adm", "dmdx")
DISCRETE: dict[str, tuple[Callable[[Path], Path], list[str]]] = {
    "cogvideox": (
        make_tiny_cogvideox,
        VIDEO,
    ),
    "sdxl": (
        make_tiny_sdxl,
        ["schedule={base: [1000], shift: 1, solver: ddim}", "video={height: 32, width: 32}"],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("family", DISCRETE)
def test_methods_are_compared_on_teachers_of_discrete_diffusions(
    family: str, tmp_path: Path
) -> None:
    """DMDX trains on the teacher's ODE pairs first; the others have their prompts alone."""
    make, settings = DISCRETE[family]
    job, out = job_file(make(tmp_path / "teacher"), tmp_path / "job"), tmp_path / "out"
    pairs = collect_pairs(
        load_job(job, settings), tmp_path / "pairs", PairPlan(count=4, steps=2), quiet=True
    )
    data = [f"data={{prompts: latents, latents: {pairs}}}"]
    evaluation = tmp_path / "evaluation.txt"
    evaluation.write_text("a blue circle\na red square\n")
    plan = make_plan(
        job,
        out,
        methods=METHODS,
        overrides=[*settings, *data, "train.iterations=2", "train.micro_batch=1"],
        method_overrides=[
            "dmdx:method.adp={pixel_weight: 0}",
            "dmdx:method.pretraining=1",
        ],
        settings=Settings(prompts=2, evaluation=str(evaluation)),
        every=1,
    )
    write_plan(plan)
    for row in (*METHODS, "teacher", "undistilled"):
        worker.work(out, Task(row, 0))
    rows = compare(job, out, report_only=True, quiet=True).results["rows"]
    assert rows.keys() == {*METHODS, "teacher", "undistilled"}
    steps = len(plan.job.steps)
    for method in METHODS:
        assert len(rows[method]["curve"]) == 3 and rows[method]["nfe"] == steps
        assert rows[method]["equal_iterations"]["frechet"]["mean"] > 0
    assert all(method in (out / "table.md").read_text() for method in METHODS)
