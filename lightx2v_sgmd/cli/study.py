"""``lightx2v-sgmd study``: a blind study with people, of two folders of videos."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from lightx2v_sgmd.cli.options import PROG, Json, Quiet

app = typer.Typer(add_completion=False, rich_markup_mode=None)

CREATE_EXAMPLES = (
    "\b\nExamples:\n"
    f"  {PROG} study create --a sgmd/videos --b dmd2/videos --out study\n"
    f"  {PROG} study create --a sgmd/videos --b dmd2/videos --out study --pairs 40 \\\n"
    '      --question overall --question motion --question "hands=Which video has better hands?"'
)
COLLECT_EXAMPLES = (
    "\b\nExamples:\n"
    f"  {PROG} study collect study\n"
    f"  {PROG} study collect study --host 0.0.0.0 --port 8100"
)
REPORT_EXAMPLES = (
    "\b\nExamples:\n"
    f"  {PROG} study report study/votes.sqlite\n"
    f"  {PROG} study report votes-*.json --key study/key.json --out result"
)


@app.callback()
def study_command() -> None:
    """Ask people which of two folders of videos they prefer.

    They are not told whose is whose.

    `create` writes a page and a secret key, `collect` serves the page and keeps the votes (or let
    raters open the page from a folder and send you their files), `report` evaluates.
    """


@app.command("create", epilog=CREATE_EXAMPLES)
def create_command(
    a: Annotated[
        Path, typer.Option("--a", metavar="DIR", help="Folder with the .mp4 files of side A.")
    ],
    b: Annotated[
        Path,
        typer.Option(
            "--b", metavar="DIR", help="Folder with the .mp4 files of side B, with the same names."
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="New folder for the study.")],
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Prompts of the videos, in their order; needed only where neither the .json "
            "beside a video nor its name (PROMPT-0.mp4) says its prompt.",
        ),
    ] = None,
    question: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME|NAME=TEXT",
            help="Question to ask: overall, motion, text, visual, or another with its text; "
            "repeatable, default those four.",
        ),
    ] = None,
    name_a: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Name of side A in reports; default its folder."),
    ] = None,
    name_b: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Name of side B in reports; default its folder."),
    ] = None,
    pairs: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Number of pairs, drawn at random; default all."),
    ] = None,
    catch: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            max=100,
            help="Number of catch trials: a video beside a spoiled copy of itself.",
        ),
    ] = 2,
    seed: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Random seed; default a random one, so that nobody can guess sides."
        ),
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write a study: a page for the raters, and the key that says which video is whose.

    Give raters the folder page/ (by any web server, or as a folder: page/index.html opens from
    disk), and keep key.json to yourself.
    """
    from lightx2v_sgmd.apps.study.creating import StudyOptions, create_study

    options = StudyOptions(
        prompts=prompts,
        questions=tuple(question or ()),
        names=(name_a, name_b),
        pairs=pairs,
        catch=catch,
        seed=seed,
    )
    study = create_study(a, b, out, options, quiet)
    page = out / "page" / "index.html"
    if as_json:
        about = {"study": study.study, "page": str(page), "key": str(out / "key.json")}
        counts = {"pairs": len(study.judged), "catch_trials": len(study.catch_trials)}
        print(json.dumps({**about, **counts}), flush=True)
        return
    print(page, flush=True)
    if not quiet:
        print(
            f"{len(study.judged)} pairs and {len(study.catch_trials)} catch trials; collect votes "
            f"with: {PROG} study collect {out}",
            file=sys.stderr,
        )


@app.command("collect", epilog=COLLECT_EXAMPLES)
def collect_command(
    study: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that `create` wrote.")],
    votes: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="SQLite database for the votes; default votes.sqlite in DIR."
        ),
    ] = None,
    host: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            help="Address to listen on; with any but this machine's own, the page's address holds "
            "a secret word.",
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(metavar="PORT", min=0, max=65535, help="Port; 0 takes a free one.")
    ] = 8100,
    word: Annotated[
        str | None,
        typer.Option(
            metavar="WORD", help="Secret word in the page's address; default a random one."
        ),
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Serve a study to raters, print its address, and keep their votes. Ctrl-C stops.

    A server that is started again on the same database continues it. It needs the extra `serve`.
    """
    from lightx2v_sgmd.apps.study.collecting import CollectOptions, collect

    def started(url: str, file: Path) -> None:
        if as_json:
            print(json.dumps({"url": url, "votes": str(file)}), flush=True)
            return
        print(url, flush=True)
        if not quiet:
            print(f"votes go to {file}; Ctrl-C stops", file=sys.stderr, flush=True)

    collect(study, CollectOptions(votes, host, port, word), started)


@app.command("report", epilog=REPORT_EXAMPLES)
def report_command(
    votes: Annotated[
        list[Path],
        typer.Argument(
            metavar="VOTES...",
            help="Files that raters downloaded (.json), or a database of `collect`.",
        ),
    ],
    key: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Key of the study; default key.json beside the first file of votes.",
        ),
    ] = None,
    catch_errors: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            help="Maximum number of wrong answers in catch trials; raters with more are left out.",
        ),
    ] = 0,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder for report.html and results.json; default none."),
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Evaluate votes: win, tie and loss rates with intervals, sign test, agreement of the raters.

    Raters who failed a catch trial are left out and counted.
    """
    from lightx2v_sgmd.apps.study.reporting import report

    found, text = report(votes, key, catch_errors=catch_errors, out=out, quiet=quiet)
    print(json.dumps(found, indent=1) if as_json else text, flush=True)
    if out is not None and not as_json:
        print(f"\n{out / 'report.html'}", flush=True)
