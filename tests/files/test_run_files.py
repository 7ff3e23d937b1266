from __future__ import annotations

from pathlib import Path

from lightx2v_sgmd.files.run_files import is_checkpoint, is_run


def test_a_run_and_a_checkpoint_are_told_apart(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoints" / "step_000010"
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer.json").write_text("{}")
    assert (is_run(tmp_path), is_checkpoint(tmp_path)) == (True, False)
    assert (is_run(checkpoint), is_checkpoint(checkpoint)) == (False, True)


def test_files_of_these_names_in_place_of_folders_are_neither(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("")
    (tmp_path / "trainer.json").mkdir()
    assert not is_run(tmp_path)
    assert not is_checkpoint(tmp_path)
    assert not is_run(tmp_path / "absent")
