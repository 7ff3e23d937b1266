"""Safe outputs: what every command does before it writes, while it writes and when it is done.

``overlap`` refuses an output that is, holds or lies in a source. ``lock`` keeps a second process
away. ``writer`` makes files and folders appear by rename and cleans up after dead processes.
``record`` remembers what was written, so that only that is replaced. ``content`` tells one file
from another. See docs/decisions/016-outputs.md.
"""

from lightx2v_sgmd.outputs.content import content_hash, content_hashes, sha256_file, sha256_files
from lightx2v_sgmd.outputs.lock import OutputLock, locked_file, locked_folder
from lightx2v_sgmd.outputs.overlap import check_new_folder, refuse_overlap, resolved
from lightx2v_sgmd.outputs.record import WrittenFiles
from lightx2v_sgmd.outputs.writer import (
    appearing,
    append,
    clean_temporaries,
    exchange,
    move,
    remove_files,
    rename_new,
    set_aside,
    sync_file,
    sync_folder,
    sync_tree,
    temporary_path,
    write_text,
)

__all__ = [
    "OutputLock",
    "WrittenFiles",
    "append",
    "appearing",
    "check_new_folder",
    "clean_temporaries",
    "content_hash",
    "content_hashes",
    "exchange",
    "locked_file",
    "locked_folder",
    "move",
    "refuse_overlap",
    "remove_files",
    "rename_new",
    "resolved",
    "set_aside",
    "sha256_file",
    "sha256_files",
    "sync_file",
    "sync_folder",
    "sync_tree",
    "temporary_path",
    "write_text",
]
