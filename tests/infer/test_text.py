from __future__ import annotations

from pathlib import Path

import pytest
import torch

from infer.text import Texts
from lightx2v_sgmd.families.text_rows import TextEncoder
from lightx2v_sgmd.families.wan.model import WanModel
from lightx2v_sgmd.families.wan.opening import open_wan
from lightx2v_sgmd.parallel import Ranks
from lightx2v_sgmd.text.encoding import embed
from tests.students import load_student

CPU = torch.device("cpu")
PROMPTS = ["a red circle", "a blue square moving left", "a red circle"]


def refuse(self: WanModel, *args: object) -> TextEncoder:
    raise AssertionError("the encoder was loaded")


def test_a_cached_prompt_needs_no_encoder(
    shared_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = load_student(shared_student).encode(PROMPTS)
    cached = load_student(shared_student, text_cache=tmp_path)
    first = cached.encode(PROMPTS)
    files = list(tmp_path.glob("*/*.safetensors"))
    assert len(files) == 2 and not any(
        "red" in path.read_bytes().decode("latin1") for path in files
    )
    monkeypatch.setattr(WanModel, "load_text_encoder", refuse)
    again = load_student(shared_student, text_cache=tmp_path).encode(PROMPTS)
    for a, b, c in zip(plain, first, again, strict=True):
        assert torch.equal(a.text, b.text) and torch.equal(a.text, c.text)
    with pytest.raises(AssertionError, match="was loaded"):
        load_student(shared_student, text_cache=tmp_path).encode(["another"])


def test_a_cached_prompt_is_still_cut_aloud(
    shared_student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        load_student(shared_student, text_cache=tmp_path).encode(["a " * 511 + "red circle"])
        said = capsys.readouterr().err
        assert "prompt 1 has 514 tokens, the model reads 512; cut off: 'red circle'" in said


def test_a_long_prompt_that_embed_wrote_needs_no_encoder(
    shared_student: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    prompts = ["a " * 511 + "red circle", "a " * 500 + "red circle"]
    model = open_wan(shared_student)
    embed(model, prompts, Ranks(), torch.float32, tmp_path, quiet=True)
    plain = load_student(shared_student).encode(prompts)
    capsys.readouterr()
    monkeypatch.setattr(WanModel, "load_text_encoder", refuse)
    found = Texts(model, CPU, torch.float32, tmp_path).encode(prompts)
    assert [row.text.shape for row in found] == [row.text.shape for row in plain]
    said = capsys.readouterr().err
    assert "prompt 1 has 514 tokens" in said and "prompt 2" not in said


def test_a_damaged_entry_is_computed_again(shared_student: Path, tmp_path: Path) -> None:
    texts = Texts(open_wan(shared_student), CPU, torch.float32, tmp_path)
    (rows,) = texts.encode(PROMPTS[:1])
    (file,) = tmp_path.glob("*/*.safetensors")
    whole = file.read_bytes()
    file.write_bytes(whole[:-5])
    assert torch.equal(texts.encode(PROMPTS[:1])[0].text, rows.text)
    assert file.read_bytes() == whole


def test_a_cache_that_cannot_be_written_only_warns(
    shared_student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    texts = Texts(open_wan(shared_student), CPU, torch.float32, tmp_path / "file")
    assert len(texts.encode(PROMPTS)) == 3
    assert capsys.readouterr().err.count("cannot be written") == 1
