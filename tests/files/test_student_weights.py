from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightx2v_sgmd.files.student_weights import divided, has_average, index, student_files
from lightx2v_sgmd.system.errors import UserError

SHAPES = {f"blocks.{n}.{kind}": (size, 10) for n in range(8) for kind, size in (("q", 9), ("b", 1))}
TOTAL = 8 * 10 * 10 * 4


def test_what_is_small_or_written_alone_is_one_file() -> None:
    for ranks, most in ((4, TOTAL), (1, 100)):
        (file,) = divided("student", SHAPES, ranks, first=1, most=most)
        assert (file.name, file.rank) == ("student.safetensors", 1 % ranks)
        assert list(file.shapes) == list(SHAPES)


def test_ranks_share_what_is_large_and_begin_together() -> None:
    files = divided("student", SHAPES, ranks=4, first=3, most=TOTAL // 3 + 1)
    assert [file.name for file in files] == [
        f"student-0000{n}-of-00003.safetensors" for n in (1, 2, 3)
    ]
    assert [file.rank for file in files] == [3, 0, 1]
    places = {name: file for file in files for name in file.shapes}
    assert places.keys() == SHAPES.keys() and sum(len(f.shapes) for f in files) == len(SHAPES)
    for file in files:  # in the order in which they come
        assert list(file.shapes) == [name for name in SHAPES if places[name] is file]
        assert 0.7 < sum(a * b for a, b in file.shapes.values()) * 4 / (TOTAL / 3) < 1.3
    assert len({id(places[f"blocks.{n}.q"]) for n in range(3)}) == 3


def test_the_files_are_found_again(tmp_path: Path) -> None:
    assert not has_average(tmp_path)
    files = divided("student_ema", SHAPES, ranks=2, most=1)
    name, text = index("student_ema", files)
    (tmp_path / name).write_text(text)
    for file in files:
        (tmp_path / file.name).touch()
    assert json.loads(text)["metadata"] == {"total_size": TOTAL}
    assert has_average(tmp_path)
    assert student_files(tmp_path, averaged=True) == [tmp_path / file.name for file in files]
    with pytest.raises(UserError, match=r"student\.safetensors: is missing"):
        student_files(tmp_path)
