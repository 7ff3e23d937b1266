"""Arguments and options that several commands share, each with one name and one text."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import Field, fields
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from infer.options import Lora, Options, flag_of
from lightx2v_sgmd.system.user_paths import expanded

PROG = "lightx2v-sgmd"

JobFile = Annotated[
    Path, typer.Argument(metavar="JOB.yaml", help="Job file, like those in configs/.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Replace a value of the job; repeatable."),
]
Processes = Annotated[
    int,
    typer.Option(
        "--nproc", min=1, metavar="N", help="Number of processes (GPUs) to start on this machine."
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print no progress.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, on stdout.")]


class Solver(StrEnum):
    """The solver of a teacher's sampler."""

    auto = "auto"
    unipc = "unipc"
    euler = "euler"


def solver_name(solver: Solver) -> Literal["unipc", "euler"] | None:
    """The name of a chosen solver; None for ``auto``, the one that the teacher's authors use."""
    names: dict[Solver, Literal["unipc", "euler"] | None]
    names = {Solver.auto: None, Solver.unipc: "unipc", Solver.euler: "euler"}
    return names[solver]


def with_options(
    kind: type[Options], without: tuple[str, ...] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Adds to a command an option for each field of ``kind``, for its ``**options``.

    Args:
        kind: The options of the engine, or of a generation.
        without: Fields that the command has no option for.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [p for p in inspect.signature(command, eval_str=True).parameters.values()]
        named = [p for p in own if p.kind is not inspect.Parameter.VAR_KEYWORD]
        engine = {item.name for item in fields(Options)}
        # The options of the videos first: they are what most people look for.
        items = sorted(fields(kind), key=lambda item: item.name in engine)
        items = [item for item in items if item.name not in without]
        parameters = [*named, *map(_parameter, items)]
        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        return command

    return decorate


def _parameter(item: Field[Any]) -> inspect.Parameter:
    """The option of a field."""
    about, default = item.metadata, item.default
    flag = flag_of(item.name, about["flag"])
    kind, names = about["kind"], [flag]
    if kind is bool and default is not False:
        names = [f"{flag}/--no-{flag.removeprefix('--')}"]
    if default is None or default == ():
        kind, default = kind | None, None
    choice = typer.Option(
        *names, help=about["meaning"], metavar=about["metavar"] or None, min=about["least"]
    )
    return inspect.Parameter(
        item.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[kind, choice],
    )


def read_options(options: dict[str, Any]) -> dict[str, Any]:
    """The values of such options as the dataclass takes them."""
    from lightx2v_sgmd.system.caches import cache_folder

    cache = options["text_cache"]
    folder = None if cache == "none" else Path(cache) if cache else cache_folder("text")
    loras = tuple(Lora.parse(text) for text in options["loras"] or ())
    return {**options, "text_cache": folder, "loras": loras}


_OF_PATHS = ("DIR", "FILE", "PATH", "JOB", "RUN", "VIDEOS", "yaml")
"""Words in the metavar of an option or argument whose value is a path, or begins with one."""


def expand_paths(command: Any) -> None:
    """Makes a command and those below it replace ``~`` and ``$NAME`` in the paths that they get.

    Args:
        command: The command, as typer builds it.
    """
    for below in getattr(command, "commands", {}).values():
        expand_paths(below)
    for parameter in command.params:
        if any(word in (parameter.metavar or "") for word in _OF_PATHS):
            parameter.process_value = partial(_process_path, parameter.process_value)


def _process_path(process: Callable[..., Any], context: Any, value: Any) -> Any:
    """Gives an option's own function its value with every path in it expanded."""
    if isinstance(value, str):
        value = expanded(value)
    elif isinstance(value, list | tuple):
        value = type(value)(expanded(each) if isinstance(each, str) else each for each in value)
    return process(context, value)


def print_result(result: dict[str, Any], text: str, as_json: bool) -> None:
    """Prints a command's result on stdout, as JSON or as text."""
    print(json.dumps(result, indent=2) if as_json else text, flush=True)
