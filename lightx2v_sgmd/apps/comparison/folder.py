"""A comparison's folder: what of it is ours, and what all of it was made from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from lightx2v_sgmd.apps.comparison.plan import images_of
from lightx2v_sgmd.families.teacher import open_teacher
from lightx2v_sgmd.files.images import check_image
from lightx2v_sgmd.job.schema import LATENTS, Job
from lightx2v_sgmd.outputs import WrittenFiles, content_hash, locked_file
from lightx2v_sgmd.text.encoder_fingerprint import weights_digest
from lightx2v_sgmd.untrusted.json_text import read_record

REPORT: Final = ("results.json", "table.md", "report.html", "contact_sheet.png")
FOLDERS: Final = ("jobs", "measured/*/*", "teacher/*", "videos/*/*", "runs/*/*/snapshots")
"""The folders in which files appear by rename."""
HIDDEN: Final = ".lightx2v-sgmd."
"""The beginning of the names of locks and records."""


def inputs(job: Job, evaluation: str | None = None) -> dict[str, str]:
    """The inputs of all videos, by content: the teacher's weights and the prompts.

    Args:
        job: Any of the compared jobs.
        evaluation: The file of the prompts that videos are made from, if it is a file.
    """
    model = open_teacher(job.teacher)
    found = {"teacher": weights_digest(model, "transformer", "vae")}
    prompts = Path(job.data.prompts)
    if job.data.prompts == LATENTS:
        from distill.data import prompts_digest

        found["prompts"] = prompts_digest(captions(job))
    elif prompts.is_file():
        found["prompts"] = content_hash(prompts)
    if evaluation is not None:
        found["evaluation"] = content_hash(Path(evaluation))
        images = images_of(evaluation)
        if images:
            digests = "".join(check_image(image) for image in images.values())
            found["images"] = hashlib.sha256(digests.encode()).hexdigest()
    return found


def captions(job: Job) -> list[str]:
    """The different prompts of a job, in order, from its file, its model or its latents.

    Raises:
        UserError: the prompts cannot be read.
    """
    from distill.data import load_prompts

    return list(dict.fromkeys(load_prompts(job)))


def written_files(out: Path) -> WrittenFiles:
    """The files that comparisons have written into a folder.

    Version 0.1 kept no record: what has the names of its files is taken for its own where the
    comparison is that version's, which did not note what it was made from.
    """
    written = WrittenFiles(out)
    if written.is_empty() and _is_without_record(out):
        there = [out / name for name in ("comparison.json", *REPORT)]
        for path in [*there, *(out / "jobs").glob("*.yaml")]:
            if path.is_file():
                written.adopt(path.relative_to(out).as_posix())
    return written


def _is_without_record(out: Path) -> bool:
    try:
        saved = read_record(out / "comparison.json")
    except (OSError, ValueError):
        return False
    return isinstance(saved, dict) and "rows" in saved and "inputs" not in saved


@contextmanager
def writing_report(out: Path, quiet: bool) -> Iterator[WrittenFiles]:
    """The report's files, for one process at a time: a report may be asked for during a run.

    Raises:
        UserError: another process writes them, or one of them is not ours.
    """
    with locked_file(out / "report.html", "compare", quiet):
        written = written_files(out)
        written.check(REPORT)
        yield written
