"""The small JSON file beside a video: what the video is, and the proof that it is ours.

It holds the video's sha256 and a checksum of itself. A video is replaced only if its sidecar is as
it was written and has the video's hash. The sidecar is written first, the video appears after it:
whatever moment a process is killed at, what is there is known to be ours, or is not there.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from lightx2v_sgmd.outputs import (
    content_hash,
    move,
    rename_new,
    sync_file,
    sync_folder,
    temporary_path,
    write_text,
)
from lightx2v_sgmd.system.errors import UserError, unreadable
from lightx2v_sgmd.untrusted.json_text import RECORD, parse_json
from lightx2v_sgmd.untrusted.reading import read_file

MADE_BY: Final = "lightx2v-sgmd"
FORMAT_VERSION: Final = 1


def sidecar(video: Path) -> Path:
    """The JSON file beside a video."""
    return video.with_suffix(".json")


def is_there(video: Path, provenance: Mapping[str, Any]) -> bool:
    """True if a video is there as its sidecar says, and made from the same provenance."""
    saved = _read(sidecar(video))
    return saved is not None and _provenance(saved) == dict(provenance) and _fits(video, saved)


def problem(video: Path) -> str | None:
    """The problem with a place for a video and its sidecar if something else is there."""
    path = sidecar(video)
    saved = _read(path) if os.path.lexists(path) else {}
    if saved is None:
        return f"{path} was not written for a video, or has changed since"
    if os.path.lexists(video) and not _fits(video, saved):
        return f"{video} was not made by generate, or has changed since"
    return None


def publish(temporary: Path, video: Path, provenance: Mapping[str, Any]) -> None:
    """Makes a video appear with its sidecar; replaces only our own.

    Args:
        temporary: The finished video, under another name.
        video: The video's file.
        provenance: The weights, options and prompt that it was made from.

    Raises:
        UserError: something else has appeared there.
    """
    reason = problem(video)
    if reason is not None:
        raise UserError(f"{reason}; it is not replaced, choose another name or output")
    saved = {
        "made_by": MADE_BY,
        "format_version": FORMAT_VERSION,
        **provenance,
        "bytes": temporary.stat().st_size,
        "sha256": content_hash(temporary),
    }
    text = json.dumps({**saved, "checksum": _checksum(saved)}, indent=2, ensure_ascii=False)
    path = sidecar(video)
    try:
        video.unlink(missing_ok=True)  # ours, made from something else
        write_text(path, text + "\n", replace=os.path.lexists(path))
        rename_new(temporary, video)
        sync_folder(video.parent)
    except FileExistsError as error:
        raise UserError(
            f"{error.filename2 or video}: appeared while the video was made; it is not replaced, "
            "choose another name or output"
        ) from error


def link(video: Path, target: Path) -> bool:
    """Makes a video appear in a second place with its sidecar, as hard links where these exist.

    Elsewhere they are copied. A sidecar of ours that was left without its video is replaced.

    Returns:
        False if the video is not ours as it is there, or if a video or something else is at the
        target.
    """
    if problem(video) or os.path.lexists(target) or problem(target):
        return False
    for source, place in ((sidecar(video), sidecar(target)), (video, target)):
        temporary = temporary_path(place)
        try:
            try:
                os.link(source, temporary)
            except OSError:  # a file system without hard links
                shutil.copy2(source, temporary)
                sync_file(temporary)
            if place != target and os.path.lexists(place):
                move(temporary, place)
            else:
                rename_new(temporary, place)
        except FileExistsError:
            return False
        finally:
            temporary.unlink(missing_ok=True)
    sync_folder(target.parent)
    return True


def _read(path: Path) -> dict[str, Any] | None:
    """A sidecar as it was written; None if it is something else."""
    try:
        if path.is_symlink():
            return None
        saved = parse_json(read_file(path, RECORD.size), RECORD)
    except (ValueError, RecursionError):
        return None
    except FileNotFoundError:
        return None
    except OSError as error:
        raise unreadable(path, error) from error
    if not isinstance(saved, dict) or saved.get("made_by") != MADE_BY:
        return None
    checksum = saved.pop("checksum", None)
    return saved if checksum == _checksum(saved) else None


def _provenance(saved: Mapping[str, Any]) -> dict[str, Any]:
    own = ("made_by", "format_version", "bytes", "sha256")
    return {key: value for key, value in saved.items() if key not in own}


def _fits(video: Path, saved: Mapping[str, Any]) -> bool:
    """True if a video is, byte by byte, the one that a sidecar was written for."""
    try:
        if video.is_symlink() or not video.is_file():
            return False
        if video.stat().st_size != saved.get("bytes"):
            return False
        return content_hash(video) == saved.get("sha256")
    except OSError as error:
        raise unreadable(video, error) from error


def _checksum(saved: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(saved, sort_keys=True).encode()).hexdigest()
