"""Safe outputs: every command checks, locks, writes and records its outputs through this folder.

See README.md, and docs/decisions/016-outputs.md for the reasons.
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
    open_log,
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
    "open_log",
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
