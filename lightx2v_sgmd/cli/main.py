"""The ``lightx2v-sgmd`` command: a thin layer that reads options and calls the applications.

Each command has a file of its own, and imports its application when it runs, so that ``--help``
needs no torch. ``run`` is where every error ends, see ``explain``: exit code 2 with one line for a
mistake of the user's, 1 for a failure of ours, and 130 for an interrupt.
"""

from __future__ import annotations

import io
import os
import sys
import traceback
from dataclasses import dataclass
from typing import Annotated, NoReturn

import typer

from lightx2v_sgmd import __version__
from lightx2v_sgmd.cli import (
    collect_pairs,
    compare,
    demo,
    distill,
    embed,
    encode_videos,
    evaluate,
    export,
    generate,
    plan,
    replay_failure,
    serve,
    watch,
)
from lightx2v_sgmd.cli import job as job_commands
from lightx2v_sgmd.cli import study as study_commands
from lightx2v_sgmd.cli import weights as weights_commands
from lightx2v_sgmd.cli.doctor import command as doctor
from lightx2v_sgmd.cli.errors import explain, save_traceback
from lightx2v_sgmd.cli.options import PROG, expand_paths
from lightx2v_sgmd.system.environment import check_environment
from lightx2v_sgmd.system.errors import RunError
from lightx2v_sgmd.system.interruption import (
    INTERRUPTED,
    leave_interrupted,
    notice_interrupts,
    was_interrupted,
)

app = typer.Typer(
    name=PROG, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False
)


@dataclass
class CommandState:
    """Values of the options before the command."""

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
    load, and `generate` makes videos with them. `demo` does all of it on a small bundled model.
    """
    context.ensure_object(CommandState).debug = debug


app.command("distill", epilog=distill.EXAMPLES)(distill.distill_command)
app.command("generate", epilog=generate.EXAMPLES)(generate.generate_command)
app.command("export", epilog=export.EXAMPLES)(export.export_command)
app.command("evaluate", epilog=evaluate.EXAMPLES)(evaluate.evaluate_command)
app.command("serve", epilog=serve.EXAMPLES)(serve.serve_command)
app.command("watch", epilog=watch.EXAMPLES)(watch.watch_command)
app.command("doctor", epilog=doctor.EXAMPLES)(doctor.doctor_command)
app.command("demo", epilog=demo.EXAMPLES)(demo.demo_command)
app.command("compare", epilog=compare.EXAMPLES)(compare.compare_command)
app.command("embed", epilog=embed.EXAMPLES)(embed.embed_command)
app.command("plan", epilog=plan.EXAMPLES)(plan.plan_command)
app.command("collect-pairs", epilog=collect_pairs.EXAMPLES)(collect_pairs.collect_pairs_command)
app.command("encode-videos", epilog=encode_videos.EXAMPLES)(encode_videos.encode_videos_command)
app.command("replay-failure", epilog=replay_failure.EXAMPLES)(replay_failure.replay_failure_command)
app.add_typer(job_commands.app, name="job")
app.add_typer(study_commands.app, name="study")
app.add_typer(weights_commands.app, name="weights")


def main(
    args: list[str] | None = None, program: typer.Typer | None = None, name: str = PROG
) -> None:
    """Runs the command line and exits with its code.

    Args:
        args: The arguments; None takes those of this process.
        program: Other commands than those of ``lightx2v-sgmd``, with the same treatment of errors.
        name: The program's name.
    """
    if sys.flags.optimize > 1 and program is None:
        _start_with_docstrings(sys.argv[1:] if args is None else args)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A locale without the letters of a prompt or a path is no reason to fail.
            stream.reconfigure(errors="backslashreplace")
    notice_interrupts()
    code = run(sys.argv[1:] if args is None else args, program or app, name)
    if code == INTERRUPTED:
        leave_interrupted()
    sys.exit(code)


def _start_with_docstrings(args: list[str]) -> NoReturn:
    """Replaces this process with one that runs the same command without ``-OO``.

    transformers and diffusers read their own docstrings, which that option takes away.
    """
    environment = {**os.environ, "PYTHONOPTIMIZE": "1"}
    command = [sys.executable, "-O", "-m", "lightx2v_sgmd", *args]
    os.execve(sys.executable, command, environment)


def run(args: list[str], program: typer.Typer = app, name: str = PROG) -> int:
    """Runs the command line ``args`` and returns its exit code; errors go to stderr."""
    state = CommandState()
    try:
        check_environment()
        command = typer.main.get_command(program)
        expand_paths(command)
        code = command.main(args or ["--help"], prog_name=name, standalone_mode=False, obj=state)
        return code if isinstance(code, int) else 0
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        if was_interrupted():
            return INTERRUPTED
        if state.debug:
            traceback.print_exc()
        lines, code = explain(error)
        if code == 1 and not state.debug and not isinstance(error, RunError):
            lines = [f"{lines[0]} (traceback in {save_traceback()}; --debug prints it)"]
        world = os.environ.get("WORLD_SIZE", "1")
        rank = f"rank {os.environ.get('RANK', '?')[:9]}: " if world != "1" else ""
        for line in lines:
            print(f"error: {rank}{line}", file=sys.stderr, flush=True)
        return code


if __name__ == "__main__":
    main()
