"""Tools replace their own reports and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.own_files import replacing_own, write_own


def test_own_reports_are_replaced_and_others_are_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new" / "report.json"
    write_own(path, '{"command": "bench_x 1"}', "bench_x")
    write_own(path, '{"command": "bench_x 2"}', "bench_x")
    assert path.read_text() == '{"command": "bench_x 2"}'
    path.write_text("my thesis")
    with pytest.raises(SystemExit, match="2"):
        write_own(path, '{"command": "bench_x 3"}', "bench_x")
    assert "was not written by this tool" in capsys.readouterr().err
    assert path.read_text() == "my thesis"
    link = tmp_path / "link.json"
    link.symlink_to(path)
    with pytest.raises(SystemExit, match="2"):
        write_own(link, '{"command": "bench_x 3"}', "bench_x")


def test_what_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "figure.png"
    with pytest.raises(SystemExit), replacing_own(path, "mark") as temporary:
        temporary.write_text("mark")
        path.write_text("theirs")
    assert [p.read_text() for p in tmp_path.iterdir()] == ["theirs"]
