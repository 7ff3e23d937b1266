"""Options of a server that will not do."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("fastapi")

from infer.serve.options import ServeOptions
from infer.serve.server import serve
from lightx2v_sgmd.system.errors import UserError


def test_what_cannot_be_served_is_refused_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, nowhere = ServeOptions(data=tmp_path / "data", port=0), tmp_path / "student"
    with pytest.raises(UserError, match="a token is needed.*--token-file"):
        serve(nowhere, replace(options, host="0.0.0.0"))
    (tmp_path / "short").write_text("abc")
    with pytest.raises(UserError, match="3 characters, fewer than 16"):
        serve(nowhere, replace(options, token_file=tmp_path / "short"))
    with pytest.raises(UserError, match="leave --nproc out"):
        serve(nowhere, replace(options, ray=True, nproc=2))
    with pytest.raises(UserError, match="--replicas: bounds the engines of --ray"):
        serve(nowhere, replace(options, replicas=2))
    (tmp_path / "token").write_text("0123456789abcdef-token")
    with pytest.raises(UserError, match="cannot be listened on"):
        serve(nowhere, replace(options, host="192.0.2.1", token_file=tmp_path / "token"))
    monkeypatch.setitem(sys.modules, "fastapi", None)
    with pytest.raises(UserError, match=r"needs fastapi.*pip install 'lightx2v-sgmd\[serve\]'"):
        serve(nowhere, options)
    assert not options.data.exists()
