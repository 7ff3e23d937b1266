"""Tools replace their own reports and nothing else."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from tools.checks import behaviour, check_lightx2v
from tools.gpu_check import __main__ as gpu_check
from tools.models import measure_teacher, train_sprites_teacher
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


FOREIGN = [
    (behaviour, "--out mine.json", "mine.json"),
    (check_lightx2v, "student --model-path model --video mine.mp4", "mine.mp4"),
    (gpu_check, "--shape sprites --out check", "check/gpu_check.json"),
    (gpu_check, "--shape sprites --out check", "check/gpu_check.log"),
    (gpu_check, "--shape sprites --out check", "check/stock_photos.pt"),
    (gpu_check, "--page --page-out mine.md", "mine.md"),
    (measure_teacher, "model --sheets sheets", "sheets/teacher.png"),
    (measure_teacher, "model", "model/README.md"),
    (measure_teacher, "model", "model/measured.json"),
    (train_sprites_teacher, "export --work work --out model", "model/video.json"),
    (train_sprites_teacher, "export --work work --out model", "model/prompts.txt"),
]
"""A tool, its arguments, and a file of somebody's that it must not replace."""


@pytest.mark.slow
@pytest.mark.parametrize(("tool", "words", "name"), FOREIGN, ids=[row[2] for row in FOREIGN])
def test_a_tool_refuses_before_it_works(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tool: ModuleType,
    words: str,
    name: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_text("mine")
    monkeypatch.setattr("sys.argv", ["tool", *words.split()])
    try:
        code = tool.main()
    except SystemExit as end:
        code = end.code
    assert code == 2
    assert Path(name).name in capsys.readouterr().err or train_sprites_teacher is tool
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path.read_text() for path in files] == ["mine"]
