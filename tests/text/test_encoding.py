"""Text embeddings: equal to the encoder's, kept by encoder and prompt, and enough to train with."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import UMT5EncoderModel

from distill import distill
from lightx2v_sgmd.cli.main import run as cli
from lightx2v_sgmd.families.conditioning import Embedding
from lightx2v_sgmd.families.text_rows import TextEncoder
from lightx2v_sgmd.families.wan.opening import open_wan
from lightx2v_sgmd.parallel import Ranks
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.text import encoding
from lightx2v_sgmd.text.cache import CachedRows, EmbeddingCache, is_embedding, longest, prompt_key
from lightx2v_sgmd.text.encoding import embed, encode_prompts
from tests.parallel.ranks import run_ranks
from tests.training import PROMPTS, job_file, make_job, read_trace

F32 = torch.float32
MANY = [f"a red circle moving left {'and right ' * (i % 5)}{i}" for i in range(70)]


def encode(
    teacher: Path, cache: Path | None, prompts: Sequence[str] = PROMPTS
) -> Sequence[Embedding]:
    return encode_prompts(open_wan(teacher), prompts, Ranks(), F32, cache)


def same(ours: Sequence[Embedding], theirs: Sequence[Embedding]) -> bool:
    pairs = list(zip(ours, theirs, strict=True))
    return all(a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a) for a, b in pairs)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every prompt that an encoder has seen."""
    seen: list[str] = []
    original = TextEncoder.encode

    def noted(self: TextEncoder, prompts: Sequence[str]) -> Any:
        seen.extend(prompts)
        return original(self, prompts)

    monkeypatch.setattr(TextEncoder, "encode", noted)
    return seen


@pytest.fixture
def own_teacher(tiny_teacher: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_teacher, tmp_path / "teacher"))


def test_rows_are_the_encoder_s_and_are_kept(
    tiny_teacher: Path, tmp_path: Path, encoded: list[str]
) -> None:
    expected = open_wan(tiny_teacher).load_text_encoder(torch.float32).encode(PROMPTS)
    assert same(encode(tiny_teacher, None), expected)
    assert same(encode(tiny_teacher, tmp_path), expected)
    del encoded[:]
    rows = encode(tiny_teacher, tmp_path)
    assert isinstance(rows, CachedRows) and same(rows, expected) and encoded == []
    assert longest(rows) == longest(expected) == max(len(each.text) for each in expected)
    assert same(rows[1:3], expected[1:3])
    assert same(encode(tiny_teacher, tmp_path, [*PROMPTS, "", "circle"])[:4], expected)


def test_damaged_shards_are_made_anew(tiny_teacher: Path, tmp_path: Path) -> None:
    rows = [row.map(torch.clone) for row in encode(tiny_teacher, tmp_path)]
    (file,) = tmp_path.glob("*/*.safetensors")
    file.write_bytes(file.read_bytes()[:-5])
    assert same(encode(tiny_teacher, tmp_path), rows)


def test_an_altered_encoder_or_prompt_gets_rows_of_its_own(
    own_teacher: Path, tmp_path: Path, encoded: list[str]
) -> None:
    cache = tmp_path / "cache"
    before = [row.map(torch.clone) for row in encode(own_teacher, cache)]
    weights = next((own_teacher / "text_encoder").glob("*.safetensors"))
    changed = load_file(weights)
    name = next(key for key in changed if key.endswith("SelfAttention.v.weight"))
    changed[name] *= 1.5
    save_file(changed, weights, metadata={"format": "pt"})
    after = encode(own_teacher, cache)
    assert same(after, open_wan(own_teacher).load_text_encoder(torch.float32).encode(PROMPTS))
    assert not torch.equal(after[0].text, before[0].text)
    del encoded[:]
    encode(own_teacher, cache, ["a red  circle moving left"])  # a blank more is another prompt
    assert encoded == ["a red  circle moving left"]
    model = open_wan(own_teacher)
    rows = encode_prompts(model, PROMPTS, Ranks(), torch.bfloat16, cache)
    assert rows[0].text.dtype == torch.bfloat16


def test_an_interrupted_run_loses_nothing(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoded: list[str]
) -> None:
    monkeypatch.setattr(encoding, "SHARD_ROWS", 32)
    model = open_wan(tiny_teacher)
    expected = encode_prompts(model, MANY, Ranks(), F32, None)
    original = TextEncoder.encode

    def interrupted(self: TextEncoder, prompts: Sequence[str]) -> Any:
        if MANY[48] in prompts:
            raise KeyboardInterrupt
        return original(self, prompts)

    with monkeypatch.context() as patch:
        patch.setattr(TextEncoder, "encode", interrupted)
        with pytest.raises(KeyboardInterrupt):
            embed(model, MANY, Ranks(), F32, tmp_path, quiet=True)
    del encoded[:]
    done = embed(model, MANY, Ranks(), F32, tmp_path, quiet=True)
    assert done.encoded == 70 - 48 and encoded == MANY[48:]
    assert same(encode_prompts(model, MANY, Ranks(), F32, tmp_path), expected)
    assert not list(tmp_path.rglob("*.partial"))
    assert len(list(tmp_path.rglob("*.safetensors"))) == 3


def test_processes_that_do_not_know_of_each_other_share_the_work(
    tiny_teacher: Path, tmp_path: Path, encoded: list[str]
) -> None:
    model = open_wan(tiny_teacher)
    for rank in (1, 0, 2):  # one after the other: each sees what the others have written
        embed(model, MANY, Ranks(rank, 3), F32, tmp_path, quiet=True)
    assert sorted(encoded) == sorted(MANY)
    assert same(
        encode_prompts(model, MANY, Ranks(), F32, tmp_path),
        encode_prompts(model, MANY, Ranks(), F32, None),
    )


def on_two_ranks(teacher: Path, cache: Path | None) -> list[Any]:
    import torch.distributed as dist

    ranks = Ranks(dist.get_rank(), dist.get_world_size())
    rows = encode_prompts(open_wan(teacher), MANY, ranks, F32, cache)
    assert all(ranks.gather(torch.equal(rows[3].text, ranks.gather(rows[3])[0].text)))
    return [row.text.tolist() for row in rows]


@pytest.mark.parametrize("keeping", [False, True])
def test_ranks_get_the_same_rows(tiny_teacher: Path, tmp_path: Path, keeping: bool) -> None:
    rows = run_ranks(2, on_two_ranks, tiny_teacher, tmp_path if keeping else None)
    here = encode(tiny_teacher, None, MANY)  # which may have more threads than a rank
    for row, other in zip(rows, here, strict=True):
        torch.testing.assert_close(torch.tensor(row), other.text, rtol=0, atol=1e-5)
    assert len(list(tmp_path.rglob("*.safetensors"))) == (2 if keeping else 0)


@pytest.mark.slow
def test_training_with_a_cache_needs_no_text_encoder(
    own_teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = (f"data.embeddings={tmp_path / 'cache'}", "train.iterations=2")
    plain = distill(make_job(own_teacher, tmp_path / "plain", "train.iterations=2"), quiet=True)
    file = job_file(own_teacher, tmp_path / "cached")
    command = ["embed", str(file), *(word for each in settings for word in ("--set", each))]
    assert cli([*command, "--json"]) == 0
    output = capsys.readouterr()
    found = json.loads(output.out)
    assert found["prompts"] == found["encoded"] == len(PROMPTS) + 1
    assert "embedding prompts 5/5" in output.err
    assert cli(command) == 0 and capsys.readouterr().out.strip() == found["folder"]
    for weights in (own_teacher / "text_encoder").glob("*.safetensors"):
        weights.unlink()
    job = make_job(own_teacher, tmp_path / "cached", *settings)
    cached = distill(job, quiet=False)
    assert "taking the embeddings that the one of" in capsys.readouterr().err
    assert read_trace(cached) == read_trace(plain)
    (tmp_path / "cached" / "prompts.txt").write_text("something new\n", encoding="utf-8")
    assert cli(command) == 2  # there is no row of it, and nobody to make one
    assert "text_encoder" in capsys.readouterr().err


def test_no_encoder_and_rows_of_two_are_refused(own_teacher: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    encode(own_teacher, cache)
    (folder,) = cache.iterdir()
    shutil.copytree(folder, cache / "another")
    for weights in (own_teacher / "text_encoder").glob("*.safetensors"):
        weights.unlink()
    with pytest.raises(UserError, match=r"data.embeddings: .* as 2 encoders give them"):
        encode(own_teacher, cache)
    about = json.loads((cache / "another" / "encoder.json").read_text(encoding="utf-8"))
    (cache / "another" / "encoder.json").write_text(json.dumps(about | {"model": "else"}))
    assert len(encode(own_teacher, cache)) == len(PROMPTS)


def test_a_folder_that_lacks_prompts_and_cannot_be_written_is_refused_before_a_run_folder(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(path: Path, folder: bool) -> None:
        raise UserError(f"{path}: cannot be written")

    cache = tmp_path / "cache"
    settings = (f"data.embeddings={cache}", "train.iterations=1")
    job = make_job(tiny_teacher, tmp_path / "job", *settings)
    monkeypatch.setattr(encoding, "check_writable", read_only)
    with pytest.raises(UserError, match=r"data.embeddings: .* lacks 5 of 5 prompts and cannot be"):
        distill(job, quiet=True)
    assert not job.output.dir.exists() and not cache.exists()
    encode(tiny_teacher, cache, [*PROMPTS, ""])
    distill(job, quiet=True)  # a folder that has them all is only read


def test_a_folder_that_not_all_see(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EmbeddingCache, "write", lambda self, rows: len(rows))
    with pytest.raises(UserError, match="lacks 4 of 4 prompts .* all processes see"):
        encode(tiny_teacher, tmp_path)


def test_the_command_needs_a_folder(
    tiny_teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli(["embed", str(job_file(tiny_teacher, tmp_path))]) == 2
    assert "data.embeddings is not set" in capsys.readouterr().err
    assert len(prompt_key("a")) == 64


def alive(kind: type) -> int:
    return sum(isinstance(item, kind) for item in gc.get_objects())


@pytest.mark.slow
def test_a_run_leaves_no_encoder_and_no_vae(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither is in memory while it trains: samples are made after each iteration here."""
    from diffusers import AutoencoderKLWan

    from distill.trainer import Trainer

    gc.collect()
    before = alive(UMT5EncoderModel), alive(AutoencoderKLWan)
    seen = []
    original = Trainer.iterate

    def looking(self: Trainer, *args: Any, **kwargs: Any) -> Any:
        gc.collect()
        seen.append((alive(UMT5EncoderModel), alive(AutoencoderKLWan)))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "iterate", looking)
    settings = ("train.iterations=3", "train.sample_every=1")
    run = distill(make_job(tiny_teacher, tmp_path, *settings), quiet=True)
    assert len(list((run / "samples").iterdir())) == 3
    assert seen == [before] * 3


def test_everything_of_an_embedding_is_kept_and_files_of_text_alone_are_read(
    tiny_teacher: Path, tmp_path: Path
) -> None:
    model = open_wan(tiny_teacher)
    both = [Embedding({"text": torch.randn(3 + i, 16), "pooled": torch.randn(5)}) for i in range(2)]
    EmbeddingCache(tmp_path).write({prompt_key(PROMPTS[i]): both[i] for i in range(2)})
    EmbeddingCache(tmp_path).write_entry(PROMPTS[2], both[0], {"cut": ""})
    old = {prompt_key(PROMPTS[3]): torch.ones(2, 16)}  # as files were before other families
    save_file(old, tmp_path / "rows_old.safetensors")
    store = EmbeddingCache(tmp_path)
    rows = store.rows([PROMPTS[1], PROMPTS[0], PROMPTS[3]])
    assert same(rows[:2], both[::-1]) and longest(rows) == 4
    assert same([rows[2]], [Embedding({"text": torch.ones(2, 16)})])
    alone = store.read(PROMPTS[2])
    assert alone is not None and same([alone[0]], both[:1])
    assert is_embedding(model, rows[2], F32) and not is_embedding(model, rows[0], F32)
    assert not is_embedding(model, rows[2], torch.bfloat16)
