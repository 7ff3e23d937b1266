"""Relative links in READMEs, pages and the CHANGELOG lead to files that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)(?: \"[^\"]*\")?\)")
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)
PATTERNS = ("*.md", "docs/**/*.md", "tests/**/*.md", "tools/**/*.md", "configs/**/*.md")
PACKAGES = ("lightx2v_sgmd", "distill", "infer", "weights")


def texts() -> list[Path]:
    found = [path for pattern in PATTERNS for path in ROOT.glob(pattern)]
    found += [path for name in PACKAGES for path in (ROOT / name).rglob("README.md")]
    return sorted({path for path in found if "build" not in path.relative_to(ROOT).parts})


def broken(path: Path, text: str) -> list[str]:
    """The links of a text in ``path`` that lead nowhere; those to other sites are left out."""
    targets = [match[1] for match in LINK.finditer(CODE.sub("", text))]
    names = [target.partition("#")[0] for target in targets if "://" not in target]
    return [name for name in names if name and not (path.parent / name).exists()]


@pytest.mark.parametrize("path", texts(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_relative_links_lead_somewhere(path: Path) -> None:
    assert broken(path, path.read_text(encoding="utf-8")) == []


def test_broken_links_are_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("here")
    text = (
        "[a](page.md#part) [b](none.md) ![c](images/none.png) [d](https://example.org/x.md) "
        "`[e](code.md)`\n```\n[f](block.md)\n```\n[g](#part)"
    )
    assert broken(page, text) == ["none.md", "images/none.png"]


def test_readmes_and_the_changelog_are_looked_at() -> None:
    names = {path.relative_to(ROOT).as_posix() for path in texts()}
    assert {"README.md", "CHANGELOG.md", "infer/README.md", "docs/scale.md"} <= names
