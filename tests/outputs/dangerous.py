"""Outputs at which a careless program deletes something, each as a command and what is there.

The commands are typed in a folder that has a teacher, a run, an exported student and files of the
user's own: ``world`` of ``test_dangerous``.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from lightx2v_sgmd.outputs import WrittenFiles
from tests.tiny import WEIGHTS
from tests.weights.conftest import flip_a_byte


def rehash(export_folder: Path) -> None:
    """The manifest of an export whose files were changed by a test, and not by a user."""
    from lightx2v_sgmd.outputs import sha256_file

    path = export_folder / "lightx2v_sgmd.json"
    saved = json.loads(path.read_text())
    saved["teacher"] = str(export_folder.parent / "teacher")
    saved["sha256"] = {name: sha256_file(export_folder / name) for name in saved["sha256"]}
    path.write_text(json.dumps(saved))


def put(path: str, content: str = "mine") -> Callable[[Path], None]:
    def prepare(world: Path) -> None:
        (world / path).parent.mkdir(parents=True, exist_ok=True)
        (world / path).write_text(content)

    return prepare


def link(path: str, target: str) -> Callable[[Path], None]:
    return lambda world: (world / path).symlink_to(world / target)


def hard_link(path: str, target: str) -> Callable[[Path], None]:
    def prepare(world: Path) -> None:
        (world / path).parent.mkdir(parents=True, exist_ok=True)
        os.link(world / target, world / path)

    return prepare


def folder(path: str) -> Callable[[Path], None]:
    return lambda world: (world / path).mkdir(parents=True)


def changed_weights(world: Path) -> None:
    flip_a_byte(world / "student" / WEIGHTS)


def newer_manifest(world: Path) -> None:
    path = world / "student" / "lightx2v_sgmd.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 2}))


def made_video(world: Path) -> None:
    """A video of ours."""
    from infer.batch.sidecars import publish

    (world / "videos").mkdir()
    (world / "made").write_bytes(b"0" * 100)
    publish(world / "made", world / "videos" / "0000_a_red_circle.mp4", {"prompt": "other"})


def edited_video(world: Path) -> None:
    made_video(world)
    flip_a_byte(world / "videos" / "0000_a_red_circle.mp4")


def edited_sidecar(world: Path) -> None:
    made_video(world)
    path = world / "videos" / "0000_a_red_circle.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rating": 5}))


def linked_video(world: Path) -> None:
    (world / "videos").mkdir()
    (world / "videos" / "0000_a_red_circle.mp4").symlink_to(world / "notes" / "thesis.txt")


def edited_report(world: Path) -> None:
    WrittenFiles(world / "demo").write_text("metrics.json", "{}")
    (world / "demo" / "metrics.json").write_text("{} and a note")


def demo_video(world: Path) -> None:
    """A file of the user's that has the name of one of the demo's videos."""
    from lightx2v_sgmd.apps.demo import _video_name
    from lightx2v_sgmd.apps.sprites.evaluate import held_out_captions

    put(f"demo/{_video_name(1, 'student', held_out_captions(2)[1])}")(world)


def edited_demo_student(world: Path) -> None:
    (world / "demo").mkdir()
    shutil.copytree(world / "student", world / "demo" / "student")
    (world / "demo" / "student" / "README.md").write_text("mine")


def named(name: str) -> Callable[[Path], None]:
    line = json.dumps({"prompt": "a red circle", "name": name})

    def write(world: Path) -> None:
        (world / "p.jsonl").write_text(line + "\n")

    return write


def two_sides(world: Path) -> None:
    """Two folders of videos, as far as their names go."""
    for side in "ab":
        put(f"{side}/a red circle-0.mp4")(world)


def study(world: Path) -> None:
    """A study that has a page and votes to report on."""
    from lightx2v_sgmd.apps.study.key import StudyKey
    from lightx2v_sgmd.apps.study.questions import PAPER

    key = StudyKey(
        format_version=1,
        study="0" * 16,
        names=("a", "b"),
        folders=("a", "b"),
        questions=PAPER,
        pairs=(),
    )
    put("study/key.json", key.model_dump_json())(world)
    put("study/page/index.html")(world)
    put("votes.json", "{}")(world)


def vbench_list(world: Path) -> None:
    """A list of prompts as VBench's."""
    put("list.json", json.dumps([{"prompt_en": "a", "dimension": ["color"]}]))(world)


def both(*steps: Callable[[Path], None]) -> Callable[[Path], None]:
    def prepare(world: Path) -> None:
        for step in steps:
            step(world)

    return prepare


NOTHING: Callable[[Path], None] = lambda world: None  # noqa: E731
STEP = "run/checkpoints/step_000020"
EXPORT = "export {} --quiet --dtype fp32 --out {}"
GENERATE = "generate --weights student --quiet"
EVALUATE = "evaluate --weights student --prompts prompts.txt --quiet --out"
VBENCH = "evaluate --weights student --vbench list.json --quiet --out"
CREATE = "study create --a a --b b --quiet --out"
REPORT = "study report votes.json --key study/key.json --quiet --out"
DISTILL = "distill job.yaml --quiet --set output.dir={}"

TABLE: list[tuple[str, Callable[[Path], None], str]] = [
    # export: the source
    (EXPORT.format("run", "run --overwrite"), NOTHING, "is the source run"),
    (EXPORT.format(STEP, "run --overwrite"), NOTHING, "holds the source"),
    (EXPORT.format("run", f"{STEP} --overwrite"), NOTHING, "lies in the source"),
    (EXPORT.format("run", "run/new"), NOTHING, "lies in the source"),
    (EXPORT.format(STEP, "run/new"), NOTHING, "lies in the run"),
    (EXPORT.format("run", "run/../run --overwrite"), NOTHING, "is the source"),
    (EXPORT.format("run", "alias --overwrite"), link("alias", "run"), "is the source"),
    (EXPORT.format("alias", "run/x"), link("alias", "run"), "lies in the source"),
    (EXPORT.format("run", "alias/x"), link("alias", "run/checkpoints"), "lies in the source"),
    (EXPORT.format("student", "student --overwrite"), NOTHING, "is the source"),
    (EXPORT.format("student", "student/other --format wan"), NOTHING, "lies in the source"),
    (
        EXPORT.format("run", "teacher --overwrite"),
        NOTHING,
        "and 7 more and was not written by export",
    ),
    (EXPORT.format("run", "teacher/student"), NOTHING, "lies in the (model|teacher)"),
    (EXPORT.format("run", ". --overwrite"), NOTHING, "is the folder that this command runs in"),
    (EXPORT.format("run", ".. --overwrite"), NOTHING, "holds the source"),
    (EXPORT.format("run", "/ --overwrite"), NOTHING, "is the root of a disk"),
    # export: what is there
    (EXPORT.format("run", "notes"), NOTHING, "holds thesis.txt and was not written by export"),
    (
        EXPORT.format("run", "notes --overwrite"),
        NOTHING,
        "holds thesis.txt and was not written by export",
    ),
    (EXPORT.format("run", "student"), NOTHING, "or add --overwrite"),
    (
        EXPORT.format("run", "student --overwrite"),
        put("student/mine.txt"),
        "holds mine.txt, which export did not write",
    ),
    (
        EXPORT.format("run", "student --overwrite"),
        put("student/transformer/.hidden"),
        "holds transformer/.hidden, which export did not write",
    ),
    (EXPORT.format("run", "student --overwrite"), folder("student/plans"), "holds plans/, which"),
    (
        EXPORT.format("run", "student --overwrite"),
        link("student/link", "notes"),
        "holds link, which export did not write",
    ),
    (EXPORT.format("run", "student --overwrite"), changed_weights, "has changed since it was"),
    (EXPORT.format("run", "student --overwrite"), newer_manifest, "format_version"),
    (EXPORT.format("run", "notes/thesis.txt --overwrite"), NOTHING, "is a file, not a folder"),
    (
        EXPORT.format("run", "fake --overwrite"),
        both(put("fake/lightx2v_sgmd.json", "{}"), put("fake/data.csv")),
        "format_version",
    ),
    # generate: what is there
    (
        f"{GENERATE} --prompts p.jsonl --out app",
        both(named("package"), put("app/package.json")),
        "package.json was not written for a video",
    ),
    (
        f"{GENERATE} --prompts p.jsonl --out app",
        both(named("holiday"), put("app/holiday.mp4")),
        "holiday.mp4 was not made by generate",
    ),
    (f"{GENERATE} --prompt a --out fox.mp4", put("fox.mp4"), "fox.mp4 was not made by generate"),
    (f"{GENERATE} --prompt a --out fox.mp4", put("fox.json"), "fox.json was not written"),
    (f"{GENERATE} --prompt a --out fox", put("fox.mp4"), "fox.mp4 was not made by generate"),
    (f"{GENERATE} --prompts prompts.txt --out videos", edited_video, "or has changed since"),
    (f"{GENERATE} --prompts prompts.txt --out videos", edited_sidecar, "or has changed since"),
    (f"{GENERATE} --prompts prompts.txt --out videos", linked_video, "was not made by generate"),
    (
        f"{GENERATE} --prompts prompts.txt --out videos",
        hard_link("videos/0000_a_red_circle.mp4", "notes/thesis.txt"),
        "was not made by generate",
    ),
    (f"{GENERATE} --prompt a --out a.mp4 --profile t.json", put("t.json"), "is there already"),
    (f"{GENERATE} --prompt a --out a.mp4 --profile a.json", NOTHING, "or its sidecar goes"),
    # generate: the source
    (f"{GENERATE} --prompts prompts.txt --out student", NOTHING, "is --weights"),
    (f"{GENERATE} --prompts prompts.txt --out student/videos", NOTHING, "lies in --weights"),
    (f"{GENERATE} --prompt a --out student/a.mp4", NOTHING, "lies in --weights"),
    (f"{GENERATE} --prompts prompts.txt --out .", NOTHING, "holds --weights"),
    # distill
    ("distill job.yaml --quiet --set output.dir=.", NOTHING, "output.dir: .* holds teacher.path"),
    (DISTILL.format("teacher"), NOTHING, "output.dir: .* is teacher.path"),
    (DISTILL.format("teacher/run"), NOTHING, "output.dir: .* lies in teacher.path"),
    (DISTILL.format("app"), put("app/job.yaml"), "contains job.yaml, but it is not a training run"),
    (DISTILL.format("app"), put("app/metrics.jsonl"), "contains metrics.jsonl, but it is not"),
    (DISTILL.format("app"), put("app/environment.json", "{}"), "contains environment.json, but"),
    (DISTILL.format("notes/thesis.txt"), NOTHING, "is a file, not a folder"),
    (f"{DISTILL.format('run/again')} --resume run", NOTHING, "output.dir: .* lies in --resume"),
    # compare, embed, demo
    ("compare job.yaml --quiet --out notes", NOTHING, "holds other things and no comparison"),
    ("compare job.yaml --quiet --out teacher", NOTHING, "is teacher.path"),
    ("compare job.yaml --quiet --out .", NOTHING, "holds teacher.path"),
    (
        "embed job.yaml --quiet --set data.embeddings=teacher/cache",
        NOTHING,
        "data.embeddings: .* lies in teacher.path",
    ),
    (
        "embed job.yaml --quiet --set teacher.base=notes --set data.embeddings=notes/cache",
        NOTHING,
        "data.embeddings: .* lies in teacher.base",
    ),
    (
        f"{DISTILL.format('new_run')} --set data.embeddings=teacher/cache",
        NOTHING,
        "data.embeddings: .* lies in teacher.path",
    ),
    (
        f"{DISTILL.format('notes')} --set teacher.base=notes",
        NOTHING,
        "output.dir: .* is teacher.base",
    ),
    (
        "collect-pairs job.yaml --quiet --count 1 --out teacher/pairs",
        NOTHING,
        "lies in teacher.path",
    ),
    (
        "collect-pairs job.yaml --quiet --count 1 --out notes --set teacher.base=notes",
        NOTHING,
        "is teacher.base",
    ),
    (
        "encode-videos clips --job job.yaml --quiet --out notes/x --set teacher.base=notes",
        put("clips/a.mp4"),
        "lies in teacher.base",
    ),
    (
        "compare job.yaml --quiet --out notes/cmp --set teacher.base=notes",
        NOTHING,
        "lies in teacher.base",
    ),
    (f"{GENERATE} --prompt a --out a\\nb.mp4", NOTHING, "holds a line break"),
    (EXPORT.format("run", "a\\nb"), NOTHING, "holds a line break"),
    ("demo --quiet --out demo", put("demo/report.html"), "report.html would be replaced"),
    (
        "demo --quiet --out demo",
        put("demo/student/thesis.txt"),
        "holds thesis.txt and was not written by",
    ),
    (
        "demo --quiet --out demo",
        put("demo/run/job.yaml"),
        "contains job.yaml, but it is not a training",
    ),
    ("demo --quiet --out demo", edited_report, "metrics.json would be replaced"),
    ("demo --quiet --out demo", demo_video, "mp4 would be replaced"),
    ("demo --quiet --out demo", edited_demo_student, "README.md has changed since"),
    # evaluate
    (f"{EVALUATE} app", put("app/report.html"), "report.html would be replaced"),
    (f"{EVALUATE} app --nproc 2 --device cpu", put("app/metrics.json"), "would be replaced"),
    (f"{EVALUATE} student/eval", NOTHING, "lies in --weights"),
    (f"{EVALUATE} teacher --against teacher", NOTHING, "is --against"),
    (f"{EVALUATE} notes/thesis.txt", NOTHING, "is a file, not a folder"),
    (f"{EVALUATE} . --shard 1/2", NOTHING, "holds --prompts|holds --weights"),
    (
        f"{VBENCH} app",
        both(vbench_list, put("app/metrics.json")),
        "metrics.json would be replaced",
    ),
    (
        f"{VBENCH} app --nproc 2 --device cpu",
        both(vbench_list, put("app/report.html")),
        "report.html would be replaced",
    ),
    # study
    (f"{CREATE} notes", two_sides, "is not empty"),
    (f"{CREATE} a/study", two_sides, "lies in --a"),
    (f"{CREATE} study", both(two_sides, study), "holds a study, whose votes"),
    (f"{REPORT} app", both(study, put("app/results.json")), "results.json would be replaced"),
    (f"{REPORT} study/page", study, "is the page"),
    (f"{REPORT} notes/thesis.txt", study, "is a file, not a folder"),
    ("study collect study --votes study/key.json", study, "is the study's key"),
    ("study collect study --votes study/page/votes.sqlite", study, "lies in the page"),
]
