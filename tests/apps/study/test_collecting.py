"""The server's command: what it refuses before it starts."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lightx2v_sgmd.apps.study.collecting import CollectOptions, collect, page_files
from lightx2v_sgmd.system.errors import UserError
from tests.apps.study.conftest import MadeStudy


def test_what_cannot_be_served_is_refused(made: MadeStudy, tmp_path: Path) -> None:
    pytest.importorskip("fastapi")
    with pytest.raises(UserError, match="--word: use 16"):
        CollectOptions(word="short")
    with pytest.raises(UserError, match="key.json"):
        collect(tmp_path)
    with pytest.raises(UserError, match="is the study's key"):
        collect(made.folder / "study", CollectOptions(votes=made.folder / "study" / "key.json"))
    with pytest.raises(UserError, match="lies in the page"):
        collect(made.folder / "study", CollectOptions(votes=made.page / "votes.sqlite"))
    with pytest.raises(UserError, match="cannot be listened on"):
        collect(made.folder / "study", CollectOptions(tmp_path / "v.sqlite", host="192.0.2.1"))
    (tmp_path / "key.json").write_bytes((made.folder / "study" / "key.json").read_bytes())
    with pytest.raises(UserError, match="is missing .* copy the study's folder again"):
        collect(tmp_path)


def test_a_link_is_not_served(made: MadeStudy, tmp_path: Path) -> None:
    shutil.copytree(made.page, tmp_path / "page")
    video = next((tmp_path / "page" / "videos").iterdir())
    assert len(page_files(tmp_path, made.key)) == 1 + 2 * len(made.key.pairs)
    video.unlink()
    video.symlink_to("/etc/passwd")
    with pytest.raises(UserError, match="is a link, and raters would get what it leads to"):
        page_files(tmp_path, made.key)
