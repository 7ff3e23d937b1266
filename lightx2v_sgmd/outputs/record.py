"""The record of the files that commands have written into a folder: only those are replaced.

``.lightx2v-sgmd.written.json`` holds the sha256 of each file. A hash is recorded before the file
gets its name, so a process that is killed in between leaves a file that is in the record, or none.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from lightx2v_sgmd.outputs.content import sha256_file
from lightx2v_sgmd.outputs.writer import appearing, move, write_text
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.untrusted.json_text import own_record, read_record

NAME: Final = ".lightx2v-sgmd.written.json"
FORMAT_VERSION: Final = 1


class WrittenFiles:
    """The files that commands have written into a folder; the holder of its lock may change them.

    Args:
        folder: The output folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / NAME
        self._hashes: dict[str, list[str]] = _read(self.file)

    def check(self, names: Iterable[str]) -> None:
        """Raises if a file that is to be written exists and was not written by this program.

        Args:
            names: Paths below the folder.

        Raises:
            UserError: there are such files; the message names them.
        """
        foreign = [name for name in names if not self.is_own(name)]
        if foreign:
            more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
            raise UserError(
                f"{self.folder}: {', '.join(foreign[:3])}{more} would be replaced, but was not "
                "written by lightx2v-sgmd or has changed since; move it or choose another output"
            )

    @contextmanager
    def appearing(self, name: str) -> Iterator[Path]:
        """Yields a temporary path to write a file to, which then becomes ``name``.

        See ``writer.appearing``.

        Raises:
            UserError: a file of that name exists that this program did not write.
        """
        path = self.folder / name
        with appearing(path, suffix=path.suffix, publish=self.publish(name)) as temporary:
            yield temporary

    def publish(self, name: str) -> Callable[[Path], None]:
        """A function that gives a finished file its name, for writers that take one.

        It raises as ``appearing``.
        """

        def give(temporary: Path) -> None:
            digest = sha256_file(temporary)
            self.check([name])
            self._add(name, [*self._hashes.get(name, []), digest])
            move(temporary, self.folder / name)
            self._add(name, [digest])

        return give

    def write_text(self, name: str, text: str) -> None:
        """Writes a text file and records it."""
        with self.appearing(name) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def is_empty(self) -> bool:
        """Returns True if the record has no files."""
        return not self._hashes

    def adopt(self, name: str) -> None:
        """Records a file that was written before there was a record."""
        self._add(name, [sha256_file(self.folder / name)])

    def is_own(self, name: str) -> bool:
        """Returns True if the name is free, or its file is as this program wrote it."""
        path = self.folder / name
        if not os.path.lexists(path):
            return True
        if path.is_symlink() or not path.is_file():
            return False
        return sha256_file(path) in self._hashes.get(name, [])

    def _add(self, name: str, hashes: list[str]) -> None:
        self._hashes[name] = hashes[-3:]
        content = {"format_version": FORMAT_VERSION, "sha256": self._hashes}
        write_text(self.file, json.dumps(content, indent=1, sort_keys=True) + "\n")


def _read(file: Path) -> dict[str, list[str]]:
    remedy = "remove it, and the files that it named count as yours and are kept"
    with own_record(file, remedy):
        try:
            saved = read_record(file)
        except FileNotFoundError:
            return {}
        if saved["format_version"] != FORMAT_VERSION:
            raise UserError(
                f"{file}: format_version {saved['format_version']!r} is not the {FORMAT_VERSION} "
                "that this version reads; update lightx2v-sgmd or choose another output"
            )
        return {str(name): [str(h) for h in hashes] for name, hashes in saved["sha256"].items()}
