"""The whole job as YAML, each value with a comment that says where it comes from."""

from __future__ import annotations

from collections.abc import Mapping

from lightx2v_sgmd.files.yaml_loader import parse_tree
from lightx2v_sgmd.job.schema import Job
from lightx2v_sgmd.system.errors import escaped

DEFAULT = "default"
_COLUMN = 44
"""The column of the comments, unless a value is longer."""


def annotated_yaml(job: Job, origins: Mapping[str, str]) -> str:
    """The resolved job; ``load_job`` reads it back as the same job.

    Args:
        job: The job.
        origins: The place of each key that a file or the command line gave, by its dotted path.
    """
    text = job.to_yaml(width=1_000_000)
    lines = text.splitlines()
    _, numbers = parse_tree(text, "the job")
    comments = leaf_origins(job, origins)
    for key, number in sorted(numbers.items(), key=lambda item: -item[1]):
        if key not in comments:
            continue
        line, comment = lines[number - 1], escaped(comments[key])
        if _is_whole(line):
            lines[number - 1] = f"{line:<{_COLUMN - 2}}  # {comment}"
        else:  # a text of several lines, of which a comment would become a part
            indent = line[: len(line) - len(line.lstrip())]
            lines.insert(number - 1, f"{indent}# {comment}")
    return "\n".join(lines) + "\n"


def leaf_origins(job: Job, origins: Mapping[str, str]) -> dict[str, str]:
    """The place that gave each value of the resolved job, or ``default``, by its dotted path."""
    _, numbers = parse_tree(job.to_yaml(), "the job")
    sections = {key.rpartition(".")[0] for key in numbers}
    return {key: _origin(key, origins) for key in numbers if key not in sections}


def _origin(key: str, origins: Mapping[str, str]) -> str:
    if key in origins:
        return origins[key]
    while key := key.rpartition(".")[0]:
        # ``--set method={name: dmd2}`` gives all of a section in one place.
        if origins.get(key) == "--set":
            return "--set, or default"
    return DEFAULT


def _is_whole(line: str) -> bool:
    """True if the value of a line ends in it."""
    try:
        parse_tree(line.strip(), "a line")
    except ValueError:
        return False
    return True
