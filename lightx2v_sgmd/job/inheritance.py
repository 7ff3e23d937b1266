"""Jobs that begin with ``base: OTHER.yaml`` state only what differs from the other job.

Mappings are merged key by key, every other value replaces the base's. A ``method`` with another
``name`` than the base's begins afresh, because its options are others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from lightx2v_sgmd.files.yaml_loader import read_tree
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.system.resources import config_path, shipped_jobs
from lightx2v_sgmd.untrusted.paths import path_problem

BASE: Final = "base"
_MAX_LEVELS: Final = 8
DEFAULT_METHOD: Final = "sgmd"


@dataclass(frozen=True)
class JobTree:
    """A job's YAML with its bases merged in.

    Attributes:
        tree: The merged values.
        origins: ``FILE:LINE`` of each key, by its dotted path.
        folders: The folder of the file that states each key.
    """

    tree: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    folders: dict[str, Path] = field(default_factory=dict)

    @property
    def method_name(self) -> Any:
        """The name that the files give the method, of whatever type, or the default."""
        method = self.tree.get("method")
        return method.get("name", DEFAULT_METHOD) if isinstance(method, Mapping) else DEFAULT_METHOD


def read_job_tree(path: Path) -> JobTree:
    """Reads a job file and the files that it is based on.

    Raises:
        UserError: a file cannot be read, or the bases go in a circle or are too many.
    """
    return _read(path, ())


def _read(path: Path, above: tuple[Path, ...]) -> JobTree:
    tree, lines = read_tree(path)
    name = tree.pop(BASE, None)
    line = lines.pop(BASE, None)
    own = JobTree(
        tree,
        {key: f"{path}:{number}" for key, number in lines.items()},
        dict.fromkeys(lines, path.parent),
    )
    if line is None:
        return own
    chain = (*above, path)
    base = _base_path(path, f"{path}:{line}", name)
    if any(base.resolve() == file.resolve() for file in chain):
        shown = " -> ".join(file.name for file in (*chain, base))
        raise UserError(f"{path}:{line}: base: goes in a circle, {shown}; break it")
    if len(chain) >= _MAX_LEVELS:
        raise UserError(f"{path}:{line}: base: is level {len(chain)} of bases; use fewer files")
    return _merged(_read(base, chain), own)


def _base_path(path: Path, where: str, name: Any) -> Path:
    """The file that ``base: name`` in ``path`` means: one beside it, or a shipped job."""
    if not isinstance(name, str) or not name or path_problem(name):
        raise UserError(f"{where}: base: {name!r} is not a file's name; write base: OTHER.yaml")
    if Path(name).is_absolute():
        raise UserError(f"{where}: base: {name} is absolute; give it relative to this file")
    beside = path.parent / name
    if not beside.exists() and name in shipped_jobs():
        return config_path(name)
    if not beside.is_file():
        raise UserError(
            f"{where}: base: {beside} is not a file, and {name} is not a shipped job; correct it"
        )
    return beside


def _merged(base: JobTree, own: JobTree) -> JobTree:
    tree, origins, folders = dict(base.tree), dict(base.origins), dict(base.folders)
    method, inherited = own.tree.get("method"), tree.get("method")
    if isinstance(method, Mapping) and isinstance(inherited, Mapping):
        if method.get("name", base.method_name) != base.method_name:
            del tree["method"]
            _forget("method", origins, folders)
    _merge_into(tree, own.tree, "", origins, folders)
    return JobTree(tree, {**origins, **own.origins}, {**folders, **own.folders})


def _merge_into(
    tree: dict[str, Any],
    own: Mapping[str, Any],
    prefix: str,
    origins: dict[str, str],
    folders: dict[str, Path],
) -> None:
    for key, value in own.items():
        inherited = tree.get(key)
        if isinstance(value, Mapping) and isinstance(inherited, Mapping):
            tree[key] = merged = dict(inherited)
            _merge_into(merged, value, f"{prefix}{key}.", origins, folders)
        else:
            _forget(f"{prefix}{key}", origins, folders)
            tree[key] = value


def _forget(key: str, origins: dict[str, str], folders: dict[str, Path]) -> None:
    """Drops what is known of a key that is replaced, and of the keys below it."""
    for known in [k for k in origins if k == key or k.startswith(f"{key}.")]:
        del origins[known]
        folders.pop(known, None)
