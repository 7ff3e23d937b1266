"""The names of weights and LoRAs, and what is refused as one."""

from __future__ import annotations

from pathlib import Path

import pytest

from infer.serve.names import named_loras, named_weights
from lightx2v_sgmd.system.errors import UserError


def touched(path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.touch()
    return path


def test_weights_have_the_names_of_their_folders_or_given_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[str | Path] = ["sprites", f"old={tmp_path}/b/student", Path("runs/student")]
    paths = (Path("sprites"), tmp_path / "b" / "student", Path("runs/student"))
    assert named_weights(given) == dict(zip(("sprites", "old", "student"), paths, strict=True))
    (tmp_path / "a=b").mkdir()
    assert named_weights([tmp_path / "a=b"]) == {"a=b": tmp_path / "a=b"}
    monkeypatch.setenv("HOME", str(tmp_path))
    assert named_weights(["x=~/student"]) == {"x": tmp_path / "student"}
    with pytest.raises(UserError, match="x/student and y/student have the same name 'student'"):
        named_weights(["x/student", "y/student"])
    with pytest.raises(UserError, match="0 weights are given; give 1 to 100"):
        named_weights([])


def test_a_folder_of_weights_gives_its_folders_and_files(tmp_path: Path) -> None:
    folder = tmp_path / "students"
    file = touched(folder / "b.safetensors")
    for name in ("a", ".git", "c"):
        (folder / name).mkdir()
    touched(folder / "notes.txt")
    found = named_weights(["sprites"], folder)
    assert list(found) == ["sprites", "a", "b.safetensors", "c"]
    assert found["b.safetensors"] == file
    with pytest.raises(UserError, match="--weights-folder: .*none cannot be read"):
        named_weights([], tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="--weights-folder: .*empty holds none"):
        named_weights([], tmp_path / "empty")
    with pytest.raises(UserError, match="^--weights: 104 weights are given"):
        named_weights([f"{number}" for number in range(101)], folder)


def test_names_of_loras_are_those_of_the_files(tmp_path: Path) -> None:
    assert named_loras(None) == {}
    first = touched(tmp_path / "loras" / "anime_v1.2.safetensors")
    (first.parent / "notes.txt").write_text("mine")
    assert named_loras(first.parent) == {"anime_v1.2": first}
    touched(first.parent / "two words.safetensors")
    with pytest.raises(UserError, match="'two words.safetensors' is not a name for requests"):
        named_loras(first.parent)
    with pytest.raises(UserError, match="none cannot be read"):
        named_loras(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds 0 .safetensors files"):
        named_loras(tmp_path / "empty")
