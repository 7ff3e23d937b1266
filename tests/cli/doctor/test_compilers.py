"""The check that C++ extensions can be built here."""

from __future__ import annotations

import shutil
import sys
import sysconfig
from pathlib import Path

import pytest

from lightx2v_sgmd.cli.doctor import compilers


def test_no_libaio_names_the_command_that_adds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", shutil.which("false") or "false")
    which = {"apt-get": "/usr/bin/apt-get", "false": "/bin/false"}.get
    monkeypatch.setattr(shutil, "which", lambda name, **kw: which(Path(name).name))
    check = compilers.offloading()
    assert check.state == "missing" and check.detail.endswith("libaio is not there")
    assert check.remedy == "sudo apt-get install -y libaio-dev"


def test_no_headers_and_a_compiler_that_fails_are_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\necho 'cc1plus: not found' >&2\nexit 1\n")
    broken.chmod(0o755)
    (tmp_path / "Python.h").write_text("")
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    assert compilers._compile(str(broken)) == f"{broken} fails: cc1plus: not found"
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(tmp_path / "none")})
    assert "headers are missing" in compilers._compile(str(broken))


def test_ninja_off_the_path_is_told_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "ninja").write_text("")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(compilers, "_compile", lambda compiler: "")
    monkeypatch.setattr(shutil, "which", lambda name, **kw: None if name == "ninja" else "/bin/c++")
    assert compilers.build_problem() == (
        "ninja is not on the PATH",
        f'export PATH="{tmp_path}:$PATH"',
    )
    (tmp_path / "ninja").unlink()
    assert compilers.build_problem() == ("no ninja", f"{tmp_path / 'python'} -m pip install ninja")
