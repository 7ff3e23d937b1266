"""Writes a study: a page with videos for raters, and the key for the organiser."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from lightx2v_sgmd.apps.pages import render_page
from lightx2v_sgmd.apps.study import key as keys
from lightx2v_sgmd.apps.study.key import Pair, Slot, StudyKey
from lightx2v_sgmd.apps.study.neutral import Picture, copy_picture, picture_of, write_spoiled
from lightx2v_sgmd.apps.study.pairs import VideoPair, find_pairs
from lightx2v_sgmd.apps.study.questions import read_questions
from lightx2v_sgmd.files.video import check_writable
from lightx2v_sgmd.outputs import (
    locked_folder,
    refuse_overlap,
    remove_files,
    rename_new,
    resolved,
    sync_file,
    sync_folder,
    sync_tree,
    temporary_path,
)
from lightx2v_sgmd.system.console import note, progress
from lightx2v_sgmd.system.errors import UserError, escaped

MOST_PAIRS: Final = 2000
_TIME: Final = 946_684_800
"""The time that every file of a page bears, in Unix seconds: none tells when it was made."""
_SAFE_CODECS: Final = ("h264", "vp8", "vp9", "av1")
_NAME: Final = 100
"""The most characters of a side's name."""
_SLOTS: Final[tuple[Slot, Slot]] = ("first", "second")


@dataclass(frozen=True)
class StudyOptions:
    """The options of a new study.

    Attributes:
        prompts: A prompt file, if neither sidecars nor names say the prompts.
        questions: As ``--question`` takes them; none means the paper's four.
        names: Names of the two sides in reports; by default their folders' names.
        pairs: The most pairs, drawn at random; None takes all.
        catch: Catch trials for each rater.
        seed: Seed of the draw of pairs, names and slots; None takes one from the system, so that
            nobody who reads this program can tell the sides apart.
    """

    prompts: Path | None = None
    questions: tuple[str, ...] = ()
    names: tuple[str | None, str | None] = (None, None)
    pairs: int | None = None
    catch: int = 2
    seed: int | None = None


def create_study(
    a: Path, b: Path, out: Path, options: StudyOptions | None = None, quiet: bool = False
) -> StudyKey:
    """Writes ``page/`` for the raters and ``key.json`` for the organiser.

    Args:
        a: A folder of mp4 files.
        b: The other one.
        out: A new folder.
        options: Questions, catch trials and so on.
        quiet: Show no progress.

    Raises:
        UserError: the videos do not belong together or cannot be read, or the output is there
            already.
    """
    options = options or StudyOptions()
    questions = read_questions(options.questions)
    names = _names(a, b, options)
    if options.catch and not any(question.checked for question in questions):
        raise UserError(
            "--catch: a spoiled video has a known answer to the questions overall and visual only; "
            "ask one of them (--question overall), or use --catch 0"
        )
    found = find_pairs(a, b, options.prompts)
    folder = resolved(out)
    refuse_overlap(folder, {"--a": a, "--b": b, "--prompts": options.prompts})
    check_writable(out, folder=True)
    if (folder / keys.NAME).exists():
        raise UserError(
            f"--out: {out} holds a study, whose votes a new one would make worthless; choose "
            "another folder"
        )
    if folder.is_dir() and any(file.name[0] != "." for file in folder.iterdir()):
        raise UserError(f"--out: {out} is not empty; name a new folder")
    rng = random.SystemRandom() if options.seed is None else random.Random(options.seed)
    count = len(found) if options.pairs is None else options.pairs
    if count > (most := min(len(found), MOST_PAIRS)):
        few = f"{most} are there" if most == len(found) else f"a study has at most {most}"
        raise UserError(f"--pairs: {count} are asked for, and {few}; use at most {most}")
    chosen = rng.sample(found, count)
    pictures = {file: picture_of(file) for pair in chosen for file in (pair.a, pair.b)}
    for caution in cautions(chosen, pictures):
        note(f"caution: {caution}", quiet)
    with locked_folder(folder, "study create", quiet) as lock:
        # All of it is a temporary until it is whole, so the next start can tell what a kill leaves.
        page, key = folder / keys.PAGE, temporary_path(folder / keys.NAME)
        shown = temporary_path(page)
        made: list[str] = []
        try:
            pairs = _write_videos(chosen, pictures, options.catch, rng, shown, made, quiet)
            study = StudyKey(
                format_version=keys.FORMAT_VERSION,
                study=_id(rng),
                names=names,
                folders=(escaped(str(a)), escaped(str(b))),
                questions=questions,
                pairs=tuple(pairs),
            )
            made.append("index.html")
            (shown / "index.html").write_text(page_of(study), encoding="utf-8")
            os.utime(shown / "index.html", (_TIME, _TIME))
            sync_tree(shown)
            key.write_text(study.model_dump_json(indent=1) + "\n", encoding="utf-8")
            sync_file(key)
            lock.check()
            rename_new(shown, page)
            shown = page
            rename_new(key, folder / keys.NAME)
        except BaseException:
            remove_files(shown, made)
            key.unlink(missing_ok=True)
            raise
        sync_folder(folder)
    return study


def page_of(study: StudyKey) -> str:
    """The text of the page: questions, prompts and neutral names of videos."""
    data: dict[str, Any] = {
        "study": study.study,
        "questions": [{"name": q.name, "text": q.text} for q in study.questions],
        "pairs": [
            {"id": pair.id, "prompt": pair.prompt, "first": pair.first, "second": pair.second}
            for pair in study.pairs
        ],
    }
    return render_page("study.html.j2", data=data)


def cautions(pairs: Sequence[VideoPair], pictures: dict[Path, Picture]) -> list[str]:
    """The ways in which raters could tell the sides apart, or could not see the videos."""
    found = []
    for what, unlike in (
        ("size", lambda x, y: (x.width, x.height) != (y.width, y.height)),
        ("frame rate", lambda x, y: abs(x.fps - y.fps) > 0.01),
        ("length", lambda x, y: abs(x.duration_s - y.duration_s) > 0.1),
        ("codec", lambda x, y: x.codec != y.codec),
    ):
        count = sum(unlike(pictures[pair.a], pictures[pair.b]) for pair in pairs)
        if count:
            found.append(
                f"in {count} of {len(pairs)} pairs the two videos differ in {what}, which can tell "
                "the sides apart"
            )
    codecs = {picture.codec for picture in pictures.values()}
    if odd := sorted(codecs - set(_SAFE_CODECS)):
        found.append(f"not every browser plays {', '.join(odd)}; convert the videos to H.264")
    return found


def _names(a: Path, b: Path, options: StudyOptions) -> tuple[str, str]:
    for side, name in zip("ab", options.names, strict=True):
        if name is not None and (not name.isprintable() or len(name) > _NAME):
            raise UserError(
                f"--name-{side}: {name[:40]!r} is no plain text of up to {_NAME} characters; give "
                "another"
            )
    first, second = (
        given or escaped(folder.resolve().name) or default
        for given, folder, default in zip(options.names, (a, b), ("a", "b"), strict=True)
    )
    return (first, second) if first != second else (f"{first} (a)", f"{second} (b)")


def _write_videos(
    chosen: Sequence[VideoPair],
    pictures: dict[Path, Picture],
    catch: int,
    rng: random.Random,
    page: Path,
    made: list[str],
    quiet: bool,
) -> list[Pair]:
    """Writes the videos under neutral names, and adds these to ``made``.

    Returns:
        The pairs, in the order of the page.
    """

    def new(write: Callable[[Path], None]) -> str:
        name = f"{_id(rng)}.mp4"
        made.append(f"videos/{name}")
        write(page / "videos" / name)
        os.utime(page / "videos" / name, (_TIME, _TIME))
        return name

    def copied(file: Path) -> str:
        return new(lambda target: copy_picture(file, target, pictures[file].codec))

    (page / "videos").mkdir(parents=True)
    pairs: list[Pair] = []
    with progress(len(chosen) + catch, "writing pairs", quiet) as bar:
        for pair in chosen:
            a = rng.choice(_SLOTS)
            order = (pair.a, pair.b) if a == "first" else (pair.b, pair.a)
            first, second = map(copied, order)
            source = (pair.a.name, pair.b.name)
            pairs.append(_pair(rng, pair.prompt, first, second, source, a=a))
            bar.advance()
        for _ in range(catch):
            pair, good = rng.choice(chosen), rng.choice(_SLOTS)
            file = rng.choice((pair.a, pair.b))
            names = [copied(file), new(partial(write_spoiled, file))]
            first, second = names if good == "first" else names[::-1]
            pairs.append(_pair(rng, pair.prompt, first, second, (file.name,), good=good))
            bar.advance()
    rng.shuffle(pairs)
    return pairs


def _pair(
    rng: random.Random,
    prompt: str,
    first: str,
    second: str,
    source: tuple[str, ...],
    a: Slot | None = None,
    good: Slot | None = None,
) -> Pair:
    return Pair(
        id=_id(rng), prompt=prompt, first=first, second=second, a=a, good=good, source=source
    )


def _id(rng: random.Random) -> str:
    return f"{rng.getrandbits(64):016x}"
