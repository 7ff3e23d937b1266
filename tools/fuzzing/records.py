"""Fuzz targets of files that this program writes, or that come with other programs.

A folder that somebody else had may hold any of them: the key and the votes of a study, a
comparison, VBench's list and results, locks, records, sidecars and checkpoints, and a YAML of
LightX2V's trainer.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from functools import cache, partial
from typing import Any

from infer.batch.sidecars import is_there
from lightx2v_sgmd.apps.comparison.measuring import load as load_measured
from lightx2v_sgmd.apps.comparison.saved import read_saved
from lightx2v_sgmd.apps.comparison.tables import read_cost
from lightx2v_sgmd.apps.study.key import read_key
from lightx2v_sgmd.apps.study.reporting import _texts
from lightx2v_sgmd.apps.study.store import VoteStore
from lightx2v_sgmd.apps.vbench.results import read_results
from lightx2v_sgmd.apps.vbench.suite import read_suite
from lightx2v_sgmd.files import checkpoint as store
from lightx2v_sgmd.job.from_lightx2v.convert import convert
from lightx2v_sgmd.job.show import annotated_yaml
from lightx2v_sgmd.outputs import OutputLock, WrittenFiles
from lightx2v_sgmd.outputs.lock_file import read_lock
from lightx2v_sgmd.outputs.owner import here
from lightx2v_sgmd.outputs.record import NAME as RECORD_NAME
from tools.fuzzing.files import check_lines, folder, named_file


def lightx2v_yaml(data: bytes) -> None:
    """A YAML of LightX2V's trainer, and the job that it stands for."""
    made = convert(named_file("config.yaml", data))
    annotated_yaml(made.job, made.origins)
    for note in made.notes:
        str(note)


def study_key(data: bytes) -> None:
    """The key of a study."""
    read_key(named_file("key.json", data))


def vote_database(data: bytes) -> None:
    """A database of votes, read by ``study report``."""
    list(_texts(named_file("votes.sqlite", data)))


def comparison(data: bytes) -> None:
    """The file that says what a folder compares."""
    read_saved(named_file("comparison.json", data))


def measurement(data: bytes) -> None:
    """Loads a comparison's measurement."""
    measured = load_measured(named_file("measured.json", data))
    measured.first(1)


def costs(data: bytes) -> None:
    """The log of a compared run."""
    named_file("metrics.jsonl", data)
    cost = read_cost(folder())
    cost.per_iteration()
    cost.cumulative("forwards")


def vbench_list(data: bytes) -> None:
    """VBench's list of prompts."""
    read_suite(named_file("VBench_full_info.json", data))


def vbench_results(data: bytes) -> None:
    """Reads results of VBench."""
    read_results([named_file("x_eval_results.json", data)])


def lock(data: bytes) -> None:
    """The lock of an output, and what a second command makes of it."""
    file = named_file(".x.lightx2v-sgmd.lock", data)
    found = read_lock(file)
    assert found is not None, "the file is there"
    second = OutputLock(folder() / "x", file, "fuzz", quiet=True)
    second._assess(found, found)
    check_lines(second._refusal(found))


def record(data: bytes) -> None:
    """The record of the files that commands have written into a folder."""
    named_file("a.txt", b"mine")
    named_file(RECORD_NAME, data)
    WrittenFiles(folder()).check(["a.txt", "b.txt"])


def video_sidecar(data: bytes) -> None:
    """The file beside a video."""
    named_file("x.mp4", b"0" * 10)
    named_file("x.json", data)
    is_there(folder() / "x.mp4", {"prompt": "a"})


def checkpoint_manifest(data: bytes) -> None:
    """The list of a checkpoint's files."""
    named_file(store.MANIFEST, data)
    store.read_manifest(folder())


def trainer_state(data: bytes) -> None:
    """The step of a checkpoint, and what a resumed run must agree with."""
    named_file("trainer.json", data)
    store.read_trainer_state(folder())


TARGETS = (
    lightx2v_yaml,
    study_key,
    vote_database,
    comparison,
    measurement,
    costs,
    vbench_list,
    vbench_results,
    lock,
    record,
    video_sidecar,
    checkpoint_manifest,
    trainer_state,
)

_LIGHTX2V = """model: {name: wan_t2v, pretrained_model_name_or_path: wan}
data: {train: {data_path: [prompts.txt]}}
training: {method: video_sgmd, max_train_iters: "${inference.infer_every_iters}", output_dir: out}
inference: {infer_every_iters: 5}
"""
_ID, _VIDEOS = "1" * 16, (f"{'3' * 16}.mp4", f"{'4' * 16}.mp4")


@cache
def _votes() -> bytes:
    """An empty database of votes."""
    file = folder() / "seed.sqlite"
    with closing(VoteStore(file)):
        pass
    return file.read_bytes()


@cache
def _endless_votes() -> bytes:
    """A database whose submissions are a view that never ends."""
    file = folder() / "endless.sqlite"
    with closing(sqlite3.connect(file)) as db:
        db.execute(
            "CREATE VIEW submissions AS WITH RECURSIVE c(number) AS (SELECT 1 UNION ALL SELECT "
            "number + 1 FROM c) SELECT number, '{}' AS body FROM c"
        )
        db.execute("PRAGMA application_id = 1397189988")
        db.execute("PRAGMA user_version = 1")
        db.commit()
    return file.read_bytes()


def seeds() -> Mapping[str, tuple[bytes, ...]]:
    """Small inputs to start from, for each target: a good one, and some that are not."""
    text = partial(json.dumps, separators=(",", ":"))
    deep = b"[" * 5_000
    question = {"name": "quality", "title": "Quality", "text": "Which?", "checked": True}
    pair = {"id": _ID, "prompt": "a", "first": _VIDEOS[0], "second": _VIDEOS[1], "a": "first"}
    key: dict[str, Any] = {"format_version": 1, "study": "0" * 16, "names": ["a", "b"]}
    key |= {"folders": ["a", "b"], "questions": [question], "pairs": [{**pair, "source": ["x"]}]}
    owner = here()
    locked = {"command": "export", "host": "h", "place": owner.namespace, "pid": 2**22 + 1}
    locked |= {"start": 5, "path": "/nowhere", "inode": 5, "since": "now"}
    counts = {name: {"student": 1} for name in ("forwards", "recomputed", "backwards")}
    cost = {**counts, "weight_backwards": {"student": 1}, "seconds": 1.0, "cpu_seconds": 1.0}
    measured: dict[str, Any] = {"format_version": 1, "nfe": 4, "features": [[1.0, 2.0]]}
    measured |= {"flow": [1.0], "dynamic": [True], "verdicts": None, "distances": []}
    given = {
        "study_key": key,
        "comparison": {
            "format_version": 1,
            "settings": {"prompts": 4, "every": 2},
            "shared": {"train.iterations": 4},
            "rows": {"sgmd": {"method.name": "sgmd"}},
        },
        "measurement": measured | {"seconds": 1.0},
        "costs": cost | {"forward_equivalents": 13.5},
        "vbench_list": [{"prompt_en": "a", "dimension": ["color"]}],
        "vbench_results": {"color": [0.5, [{"video_path": "a"}]]},
        "lock": locked,
        "record": {
            "format_version": 1,
            "sha256": {"a.txt": [hashlib.sha256(b"mine").hexdigest()], "b.txt": ["0" * 64]},
        },
        "video_sidecar": {"made_by": "lightx2v-sgmd", "bytes": 10},
        "checkpoint_manifest": {
            "format_version": 1,
            "files": {"trainer.json": {"size": 1, "sha256": "0" * 64}},
        },
        "trainer_state": {"step": 3},
    }
    many: dict[str, tuple[bytes, ...]] = {
        name: (text(content).encode() + b"\n", deep, b"[]") for name, content in given.items()
    }
    for name, wrong in {
        "lock": {**locked, "pid": "@"},
        "trainer_state": {"step": "@"},
        "costs": {**cost, "forward_equivalents": "@"},
    }.items():
        endless = text(wrong).replace('"@"', "1e999").encode()
        many[name] += (endless, text(wrong).replace('"@"', "9" * 30).encode())
    return {
        **many,
        "lightx2v_yaml": (
            _LIGHTX2V.encode(),
            _LIGHTX2V.replace("iters: 5", "iters: ${training.max_train_iters}").encode(),
            (_LIGHTX2V + 'a: "${b}${b}"\nb: "${c}${c}"\nc: "${d}${d}"\nd: x\n').encode(),
            b"a: &a [*a]",
        ),
        "vote_database": (
            _votes(),
            _endless_votes(),
            _votes()[:3000],
            _votes().replace(
                b"CREATE TABLE submissions", b"CREATE \xcc\xcc\xcc\xcc\xcc submissions"
            ),
            b"{}",
        ),
    }
