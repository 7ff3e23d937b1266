from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from lightx2v_sgmd.files import checkpoint as store
from lightx2v_sgmd.files.tensors.safetensors_files import read_header
from lightx2v_sgmd.system.errors import UserError

SHAPES = {"b.weight": (2, 3), "a": (4,), "empty": (0,)}


def write(run: Path, step: int, value: float = 1.0) -> Path:
    pending = store.PendingCheckpoint(run / "checkpoints" / store.checkpoint_name(step))
    pending.begin()
    tensors = [(name, torch.full(shape, value)) for name, shape in SHAPES.items()]
    entries = pending.write_tensors("student.safetensors", SHAPES, tensors, {"format": "pt"})
    entries |= pending.write_text("trainer.json", json.dumps({"step": step}))
    pending.publish(entries)
    return pending.final


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_what_is_written_reads_back(tmp_path: Path) -> None:
    folder = write(tmp_path, 7, 2.5)
    read = load_file(folder / "student.safetensors")
    assert {name: tuple(t.shape) for name, t in read.items()} == SHAPES
    assert all(bool((t == 2.5).all()) for t in read.values())
    with safe_open(folder / "student.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert read_header(folder / "student.safetensors").tensors["b.weight"].shape == (2, 3)
    assert store.read_trainer_state(folder) == {"step": 7}
    assert store.find_checkpoint(tmp_path) == folder == store.find_checkpoint(folder)
    assert names(tmp_path) == ["step_000007"]


@pytest.mark.parametrize(
    ("call", "number"),
    [("fsync", errno.ENOSPC), ("fsync", errno.EACCES), ("rename", errno.ENOSPC)],
)
def test_a_failed_save_leaves_the_old_one_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    old = write(tmp_path, 1)

    def fail(*args: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        if call == "fsync":
            patch.setattr(os, "fsync", fail)
        else:
            patch.setattr(os, "rename", fail)
        with pytest.raises(OSError):
            write(tmp_path, 2)
    assert store.find_checkpoint(tmp_path) == old
    store.remove_leftovers(tmp_path)
    assert names(tmp_path) == ["step_000001"]


def test_killed_between_the_renames_of_a_replacement(tmp_path: Path) -> None:
    old = write(tmp_path, 3)
    old.rename(old.with_name(".step_000003.replaced"))
    store.remove_leftovers(tmp_path)
    assert store.find_checkpoint(tmp_path) == old


def test_replacing_a_checkpoint(tmp_path: Path) -> None:
    write(tmp_path, 3, 1.0)
    folder = write(tmp_path, 3, 2.0)
    store.verify(folder)
    assert float(load_file(folder / "student.safetensors")["a"][0]) == 2.0
    assert names(tmp_path) == ["step_000003"]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def test_damage_is_found(tmp_path: Path) -> None:
    old, new = write(tmp_path, 1), write(tmp_path, 2)
    flip(new / "student.safetensors")
    with pytest.raises(UserError, match="student.safetensors: its sha256 is not the one"):
        store.verify(new)
    told: list[str] = []
    assert store.find_checkpoint(tmp_path, told.append) == old
    assert len(told) == 1 and "step_000002" in told[0]
    with pytest.raises(UserError, match="sha256"):
        store.find_checkpoint(new)  # named itself, it is not passed over
    (old / "trainer.json").unlink()
    with pytest.raises(UserError, match="no whole checkpoint; .*sha256"):
        store.find_checkpoint(tmp_path)
    with pytest.raises(UserError, match="trainer.json: is missing"):
        store.verify(old)


def test_a_cut_file_and_a_missing_manifest_are_found(tmp_path: Path) -> None:
    folder = write(tmp_path, 1)
    os.truncate(folder / "student.safetensors", 20)
    with pytest.raises(UserError, match="has 20 bytes, not the"):
        store.verify(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(UserError, match="manifest.json: is missing"):
        store.find_checkpoint(folder)


def test_nothing_to_find(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no checkpoints"):
        store.find_checkpoint(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        store.find_checkpoint(tmp_path / "nowhere")


def test_pruning_keeps_the_newest(tmp_path: Path) -> None:
    for step in (1, 2, 10, 1_000_000):
        write(tmp_path, step)
    store.prune(tmp_path, 2)
    assert names(tmp_path) == ["step_000010", "step_1000000"]
    assert store.find_checkpoint(tmp_path).name == "step_1000000"
