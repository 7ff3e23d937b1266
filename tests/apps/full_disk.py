"""The demo's last stage on a disk that fills up: ``python -m tests.apps.full_disk FOLDER``.

Started by ``test_demo`` where FOLDER is a small file system of its own. Prints what a user would be
told and the files that are left, for each amount of free space, and at the end with space enough.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from lightx2v_sgmd.apps import demo
from lightx2v_sgmd.apps.sprites import evaluate as measured
from lightx2v_sgmd.apps.sprites import world
from lightx2v_sgmd.cli.errors import explain
from lightx2v_sgmd.job.loading import load_job
from lightx2v_sgmd.outputs import WrittenFiles
from lightx2v_sgmd.system.resources import config_path

FREE_KIB = (0, 4, 40, 90)
"""Space that is left: for nothing, for a record, for some videos, and for all but the report."""


def fill(filler: Path, free_kib: int) -> None:
    """Fills the disk, but for so much."""
    block = bytes(1024)
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(block)
        except OSError:
            pass
        os.truncate(filler, max(0, file.tell() - 1024 * free_kib))


def main(disk: Path) -> None:
    captions = measured.held_out_captions(2)
    rng = np.random.default_rng(0)
    videos = np.stack([(world.sample_video(rng, c)[2] * 255).astype(np.uint8) for c in captions])
    row = measured.evaluate(lambda texts, seeds: videos, 4, captions, [0, 1])
    rows = dict.fromkeys(demo.ROWS, row)
    metrics: dict[str, Any] = {name: measured.summarise(each, row) for name, each in rows.items()}
    metrics |= {"gap_closed": 0.5, "seconds": {"distill": 1.0, "total": 2.0}, "seed": 0}
    trace: list[dict[str, Any]] = [
        {"step": i, "seconds": 1.0, "fisher": 1.0, "grad_norm": {}} for i in (1, 2)
    ]
    job = load_job(config_path("sprites_sgmd.yaml"))
    out, filler = disk / "demo", disk / "filler"
    (out / "run").mkdir(parents=True)
    (out / "notes.txt").write_text("mine")
    for free_kib in (*FREE_KIB, None):
        if free_kib is not None:
            fill(filler, free_kib)
        lines, code = [""], 0
        try:
            demo._write_results(WrittenFiles(out), rows, captions, metrics, trace, job)
        except Exception as error:
            lines, code = explain(error)
        filler.unlink(missing_ok=True)
        left = {str(path.relative_to(out)): path.stat().st_size for path in out.rglob("*")}
        own = [name for name in left if (out / name).is_file() and name != "notes.txt"]
        written = WrittenFiles(out)
        strange = [name for name in own if name[0] != "." and not written.is_own(name)]
        print(json.dumps({"code": code, "lines": lines, "left": left, "strange": strange}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
