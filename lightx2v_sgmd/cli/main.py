"""The ``lightx2v-sgmd`` command: a thin layer that reads options and calls the applications.

Each command imports its application when it runs, so that ``--help`` needs no torch. ``main`` is
where every error ends, see ``explain``: exit 2 with one line for a mistake of the user's, 1 for a
failure of ours, 130 when interrupted.
"""

from __future__ import annotations

import errno
import io
import json
import os
import re
import sys
import tempfile
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn

import typer

from lightx2v_sgmd import __version__
from lightx2v_sgmd.cli import compare, embed, generate, plan
from lightx2v_sgmd.cli import weights as weights_commands
from lightx2v_sgmd.cli.options import PROG, JobFile, Json, Quiet, Settings
from lightx2v_sgmd.system.environment import check_environment
from lightx2v_sgmd.system.errors import RunError, UserError, short_line, short_lines

app = typer.Typer(
    name=PROG, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False
)

_NO_MEMORY: Final = re.compile(r"not enough memory|can't allocate memory|Cannot allocate memory")
_ASKED: Final = re.compile(r"\d[\d.]* (?:bytes|[KMGT]iB)")


@dataclass
class State:
    """What the options before the command set."""

    debug: bool = False


def _version(wanted: bool) -> None:
    if wanted:
        print(f"{PROG} {__version__}")
        raise typer.Exit()


@app.callback(
    epilog="\b\nExamples:\n"
    f"  {PROG} demo\n"
    f"  {PROG} distill configs/sprites_sgmd.yaml\n"
    f"  {PROG} distill --help"
)
def root(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Print tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    # The deepspeed launcher puts it before the command; the rank comes from the environment.
    local_rank: Annotated[int, typer.Option("--local_rank", hidden=True)] = 0,
) -> None:
    """Distil a video diffusion model into a student that needs four steps, by SGMD.

    A job (YAML) says what to distil. `distill` trains, `export` writes weights that other programs
    load, `generate` makes videos with them. `demo` does all of it on a small bundled model.
    """
    context.ensure_object(State).debug = debug


@app.command(
    "distill",
    epilog="\b\nExamples:\n"
    f"  {PROG} distill configs/sprites_sgmd.yaml --set train.iterations=50\n"
    f"  {PROG} distill configs/wan2.1_t2v_1.3b_sgmd.yaml --nproc 8\n"
    f"  torchrun --nproc-per-node 8 -m lightx2v_sgmd distill configs/wan2.1_t2v_14b_sgmd.yaml",
)
def distill_command(
    job: JobFile,
    settings: Settings = None,
    resume: Annotated[
        str,
        typer.Option(
            metavar="auto|never|PATH",
            help="auto: go on from the run folder's newest checkpoint if it has one. never: refuse "
            "a run folder that has one. PATH: go on from this run or checkpoint.",
        ),
    ] = "auto",
    nproc: Annotated[
        int, typer.Option(min=1, metavar="N", help="Processes (GPUs) to start on this machine.")
    ] = 1,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train a student, and print its run folder.

    Interrupted (Ctrl-C, SIGTERM, SIGUSR1), the same command goes on where it stopped. On several
    machines, start it on each with torchrun, or with `deepspeed --module lightx2v_sgmd distill
    JOB.yaml`.
    """
    from lightx2v_sgmd.job.schema import load_job

    checked = load_job(job, settings or [])  # first, so that a mistake in it costs no start-up
    from distill import distill

    run = distill(checked, resume=resume, nproc=nproc, quiet=quiet)
    if int(os.environ.get("RANK", "0")) == 0:
        _print_result({"run": str(run)}, str(run), as_json)


app.command("generate", epilog=generate.EXAMPLES)(generate.generate_command)


@app.command(
    "export",
    epilog="\b\nExamples:\n"
    f"  {PROG} export runs/sprites_sgmd --format diffusers --out student --dtype fp32\n"
    f"  {PROG} export runs/wan_14b --format wan --dtype fp8 --out student_fp8\n"
    f"  {PROG} export runs/wan_14b --format lora --rank 64 --out student_lora",
)
def export_command(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="RUN_OR_CHECKPOINT",
            help="A run folder (its newest checkpoint), a checkpoint, or an exported folder.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="A new or an empty folder.")],
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="diffusers: a folder that WanPipeline loads as it is. wan: original names, for "
            "LightX2V. comfyui: one file and a workflow. lora: adapters for the teacher.",
        ),
    ] = "diffusers",
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE",
            help="bf16, fp16, fp32, or fp8 (wan and comfyui). Default bf16; of exported weights, "
            "their own.",
        ),
    ] = None,
    ema: Annotated[
        bool,
        typer.Option("--ema/--no-ema", help="The moving average if there is one, or the last."),
    ] = True,
    rank: Annotated[int | None, typer.Option(metavar="R", help="Of a LoRA; default 64.")] = None,
    energy: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Of a LoRA, instead of a rank: how much of the change it holds, 0 to 1.",
        ),
    ] = None,
    max_shard_size: Annotated[
        str, typer.Option(metavar="SIZE", help="Of a weights file (diffusers, wan).")
    ] = "5GB",
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace an unchanged export in DIR, and nothing else."),
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write a student's weights for other programs.

    Everything is read back and compared before the folder appears; exit 1 if something differs.
    """
    from weights import ExportError, export

    try:
        folder = export(
            source,
            format_,
            out,
            dtype=dtype,
            ema=ema,
            rank=rank,
            energy=energy,
            max_shard_size=max_shard_size,
            overwrite=overwrite,
            quiet=quiet,
        )
    except ExportError as error:
        print(f"error: {short_line(str(error))}", file=sys.stderr, flush=True)
        raise typer.Exit(1) from error
    _print_result({"weights": str(folder)}, str(folder), as_json)


@app.command("doctor", epilog=f"\b\nExample:\n  {PROG} doctor --json")
def doctor_command(as_json: Json = False) -> None:
    """Say what this machine has and what it lacks.

    With each thing that is missing goes the command that adds it.
    """
    from lightx2v_sgmd.cli import doctor

    report = doctor.run()
    _print_result(report.to_dict(), report.text(), as_json)


@app.command("demo", epilog=f"\b\nExample:\n  {PROG} demo --out demo")
def demo_command(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where everything goes.")] = Path("demo"),
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of training and videos.")] = 0,
    settings: Settings = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Do all of it on the bundled teacher.

    Distils it, exports the student, generates and measures videos, and writes a report. Takes about
    ten minutes on two processor cores; needs no GPU, no compiler and no network. Interrupted, the
    same command goes on where it stopped.
    """
    from lightx2v_sgmd.apps.demo import run_demo

    result = run_demo(out, seed=seed, quiet=quiet, overrides=settings or ())
    if as_json:
        _print_result(result.metrics, "", as_json)


app.command("compare", epilog=compare.EXAMPLES)(compare.compare_command)
app.command("embed", epilog=embed.EXAMPLES)(embed.embed_command)
app.command("plan", epilog=plan.EXAMPLES)(plan.plan_command)
app.add_typer(weights_commands.app, name="weights")


def _print_result(result: dict[str, Any], text: str, as_json: bool) -> None:
    print(json.dumps(result, indent=2) if as_json else text, flush=True)


def main(args: list[str] | None = None) -> None:
    """Runs the command line and exits with its code."""
    if sys.flags.optimize > 1:
        _start_with_docstrings(sys.argv[1:] if args is None else args)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A locale without the letters of a prompt or a path is no reason to fail.
            stream.reconfigure(errors="backslashreplace")
    sys.exit(run(sys.argv[1:] if args is None else args))


def _start_with_docstrings(args: list[str]) -> NoReturn:
    """Puts this program in the place of itself, without ``-OO``.

    transformers and diffusers read their own docstrings, which that option takes away.
    """
    environment = {**os.environ, "PYTHONOPTIMIZE": "1"}
    command = [sys.executable, "-O", "-m", "lightx2v_sgmd", *args]
    os.execve(sys.executable, command, environment)


def run(args: list[str]) -> int:
    """Runs the command line ``args`` and returns its exit code; errors go to stderr."""
    state = State()
    try:
        check_environment()
        code = typer.main.get_command(app).main(
            args or ["--help"], prog_name=PROG, standalone_mode=False, obj=state
        )
        return code if isinstance(code, int) else 0
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if state.debug:
            traceback.print_exc()
        lines, code = explain(error)
        if code == 1 and not state.debug and not isinstance(error, RunError):
            lines = [f"{lines[0]} (traceback in {_save_traceback()}; --debug prints it)"]
        world = os.environ.get("WORLD_SIZE", "1")
        rank = f"rank {os.environ.get('RANK', '?')[:9]}: " if world != "1" else ""
        for line in lines:
            print(f"error: {rank}{line}", file=sys.stderr, flush=True)
        return code


def explain(error: BaseException) -> tuple[list[str], int]:
    """An exception as lines for the user, and the exit code."""
    if isinstance(error, UserError):
        return short_lines(str(error)), 2
    if isinstance(error, RunError):
        return [short_line(" ".join(str(error).split()))], 1
    if isinstance(error, typer.TyperException):
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else PROG
        message = " ".join(error.format_message().split()).rstrip(".")
        return [short_line(f"{message}; see {command} --help")], 2
    cause: BaseException | None = error
    while cause is not None:
        if line := _about_files(cause) or _about_memory(cause):
            return [short_line(line)], 2
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    first = (str(error).strip().splitlines() or [""])[0]
    return [short_line(f"internal error: {type(error).__name__}: {first}", 180)], 1


def _about_files(error: BaseException) -> str | None:
    """What a full disk or a missing permission looks like; None for any other error.

    Libraries with a Rust or C++ core report the disk's error as text only.
    """
    number = error.errno if isinstance(error, OSError) else None
    named = error.filename if isinstance(error, OSError) else None
    path = f"{os.fsdecode(named)}: " if isinstance(named, str | bytes) else ""
    if number in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error):
        return f"{path}the disk is full; free some space, then run the same command again"
    if number in (errno.EACCES, errno.EPERM):
        return f"{path}permission denied; choose another place or change its permissions"
    if number == errno.EROFS:
        return f"{path}the file system is read-only; choose another place"
    if number == errno.ENAMETOOLONG:
        return f"{path}the name is too long for the file system; give a shorter one"
    if number == errno.ELOOP:
        return f"{path}is a link to itself; name the file that is meant"
    if isinstance(error, ValueError) and str(error).startswith("embedded null"):
        return "a file name holds a zero byte, which no file name may; write it without"
    if isinstance(error, ValueError) and str(error).startswith("Invalid log settings"):
        return "TORCH_LOGS in the environment is not understood by torch; unset it"
    if isinstance(error, RuntimeError) and "home directory" in str(error):
        return "~ means nothing here: HOME is not set; set HOME, or write the whole path"
    if isinstance(error, FileNotFoundError) and "No usable temporary directory" in str(error):
        return "no folder for temporary files can be written; set TMPDIR to one that can"
    if isinstance(error, FileExistsError | NotADirectoryError):
        return f"{path}a file is in the way of a folder; choose another place or move it"
    return None


def _about_memory(error: BaseException) -> str | None:
    """What too little memory looks like; None for any other error."""
    text = str(error)
    if type(error).__name__ == "OutOfMemoryError":  # torch's; this file does not import torch
        where = "the GPU"
    elif (
        isinstance(error, MemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or (isinstance(error, RuntimeError) and _NO_MEMORY.search(text))
    ):
        where = "this machine"
    else:
        return None
    found = _ASKED.search(text)
    asked = f" (one piece of it has {found[0]})" if found else ""
    return (
        f"out of memory: this needs more than {where} has{asked}; use a smaller video or batch, "
        f"or more memory ({PROG} plan says what a job needs)"
    )


def _save_traceback() -> str:
    """Writes the current traceback to a file that stays, and returns its path."""
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix=f"{PROG}-", suffix=".log", delete=False, encoding="utf-8"
        ) as file:
            traceback.print_exc(file=file)
            return file.name
    except OSError:
        traceback.print_exc()
        return "the lines above"


if __name__ == "__main__":
    main()
