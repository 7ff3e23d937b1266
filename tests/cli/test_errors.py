from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest
import torch

from lightx2v_sgmd.cli.errors import explain
from lightx2v_sgmd.cli.main import run
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.system.resources import config_path
from tests.cli.application import install

SPRITES = str(config_path("sprites_sgmd.yaml"))


def caused(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


FULL = "the disk is full; free some space, then run the same command again"


@pytest.mark.parametrize(
    ("error", "message", "code"),
    [
        (UserError("train.seed: no"), "train.seed: no", 2),
        (UserError("a: no", "b: no"), "a: no\nerror: b: no", 2),
        (UserError("a\nb.yaml: no"), "a\\nb.yaml: no", 2),
        (
            PermissionError(errno.EACCES, "denied", "/x/run"),
            "/x/run: permission denied; choose another path or change its permissions",
            2,
        ),
        (OSError(errno.ENOSPC, "No space left on device", "/x/run"), f"/x/run: {FULL}", 2),
        (OSError(errno.ENOSPC, "No space left on device"), FULL, 2),
        (RuntimeError("I/O error: No space left on device (os error 28)"), FULL, 2),
        (caused(RuntimeError("save failed"), OSError(errno.ENOSPC, "x", "f")), f"f: {FULL}", 2),
        (
            OSError(errno.EROFS, "x", "/x/run"),
            "/x/run: the file system is read-only; choose another path",
            2,
        ),
        (
            FileExistsError(errno.EEXIST, "x", "/x/run"),
            "/x/run: a file is in the way of a folder; choose another path or move it",
            2,
        ),
    ],
)
def test_errors_that_are_the_users_to_mend(
    error: Exception,
    message: str,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    install(monkeypatch, "distill", "distill", error)
    assert run(["distill", SPRITES]) == code
    assert capsys.readouterr() == ("", f"error: {message}\n")


def test_our_failure_is_one_line_that_names_the_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch, "distill", "distill", KeyError("boom"))
    assert run(["distill", SPRITES]) == 1
    err = capsys.readouterr().err
    found = re.fullmatch(
        r"error: internal error: KeyError: 'boom' \(traceback in (.+); --debug prints it\)\n", err
    )
    assert found
    log = Path(found[1])
    assert "Traceback (most recent call last)" in log.read_text()
    log.unlink()


def test_debug_prints_the_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch, "distill", "distill", KeyError("boom"))
    assert run(["--debug", "distill", SPRITES]) == 1
    err = capsys.readouterr().err
    assert err.startswith("Traceback (most recent call last)")
    assert err.endswith("error: internal error: KeyError: 'boom'\n")


def test_with_several_ranks_an_error_names_its_rank(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch, "distill", "distill", UserError("no"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert run(["distill", SPRITES]) == 2
    assert capsys.readouterr().err == "error: rank 1: no\n"


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (MemoryError(), "more than this machine has; "),
        (OSError(12, "Cannot allocate memory"), "more than this machine has; "),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't "
                "allocate memory: you tried to allocate 549755813888 bytes. Error code 12"
            ),
            "more than this machine has (one piece of it has 549755813888 bytes); ",
        ),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has"),
            "more than the GPU has (one piece of it has 20.00 GiB); ",
        ),
    ],
)
def test_too_little_memory_is_one_plain_line(error: Exception, shown: str) -> None:
    [line], code = explain(error)
    assert code == 2
    assert line.startswith(f"out of memory: this needs {shown}use a smaller video or batch")


def test_a_name_with_odd_line_ends_stays_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["job", "show", "a\x0bb\u2028c\x85.yaml"]) == 2
    (line, empty) = capsys.readouterr().err.split("\n")
    assert "a\\x0bb\\u2028c\\x85.yaml" in line and not empty
