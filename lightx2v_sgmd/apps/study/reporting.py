"""``study report``: reads votes and the key, and writes what the study found."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from lightx2v_sgmd.apps.study.key import NAME, PAGE, StudyKey, read_key
from lightx2v_sgmd.apps.study.store import is_database, read_rows
from lightx2v_sgmd.apps.study.summary import summarise
from lightx2v_sgmd.apps.study.tables import page_report, text_report
from lightx2v_sgmd.apps.study.votes import SUBMISSION, Submission, parse_submission
from lightx2v_sgmd.files.video import check_writable
from lightx2v_sgmd.outputs import WrittenFiles, locked_folder, refuse_overlap, resolved
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.untrusted.databases import UNREADABLE_DATABASE
from lightx2v_sgmd.untrusted.json_text import read_bytes

RESULTS: Final = ("report.html", "results.json")


def report(
    votes: Sequence[Path],
    key: Path | None = None,
    *,
    catch_errors: int = 0,
    out: Path | None = None,
    quiet: bool = False,
) -> tuple[dict[str, Any], str]:
    """Evaluates votes.

    Args:
        votes: Files of votes.
        key: The study's key; by default ``key.json`` beside the first file of votes.
        catch_errors: Maximum number of wrong answers in catch trials.
        out: A folder for ``report.html`` and ``results.json``.
        quiet: Print no news.

    Returns:
        What was found, and the table as text.

    Raises:
        UserError: a file cannot be used.
    """
    if out is not None:
        check_writable(out, folder=True)
    key = key or votes[0].parent / NAME
    if not key.is_file():
        raise UserError(f"--key: {key} does not exist; name the key.json that `study create` wrote")
    study = read_key(key)
    if out is not None:
        refuse_overlap(resolved(out), {"the page": key.parent / PAGE})
        WrittenFiles(resolved(out)).check(RESULTS)
    found = summarise(study, *read_votes(votes, study), catch_errors=catch_errors)
    if out is not None:
        with locked_folder(resolved(out), "study report", quiet):
            written = WrittenFiles(resolved(out))
            written.check(RESULTS)
            written.write_text("report.html", page_report(found))
            written.write_text("results.json", json.dumps(found, indent=1) + "\n")
    return found, text_report(found)


def read_votes(files: Sequence[Path], study: StudyKey) -> tuple[list[Submission], int]:
    """Reads files of votes: those that raters downloaded, and databases of ``study collect``.

    The later of two submissions of one rater replaces the earlier one: files later in the list,
    and rows later in a database.

    Returns:
        One submission for each rater, and the number of those that were replaced.

    Raises:
        UserError: a file is missing, or holds something else than votes of this study.
    """
    found: dict[str, Submission] = {}
    count = 0
    for file in files:
        for text in _texts(file):
            try:
                submission = parse_submission(text, study)
            except ValueError as error:
                raise UserError(
                    f"{file}: {error}; name the votes of the study that --key belongs to"
                ) from None
            found[submission.rater] = submission
            count += 1
    if not count:
        raise UserError(f"{files[0]}: holds no votes yet; ask somebody to judge the videos")
    return list(found.values()), count - len(found)


def _texts(file: Path) -> Iterable[bytes | str]:
    if not file.is_file():
        raise UserError(
            f"{file}: does not exist; name the files that raters sent, or votes.sqlite of `study "
            "collect`"
        )
    if is_database(file):
        return _stored(file)
    return [read_bytes(file, SUBMISSION, "ask the rater to send it again")]


def _stored(file: Path) -> Iterator[str]:
    """The submissions in a database, one at a time: it may be larger than the memory."""
    try:
        yield from read_rows(file)
    except UNREADABLE_DATABASE as error:
        raise UserError(f"{file}: cannot be read as votes ({error}); copy it again") from error
