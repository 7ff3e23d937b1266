"""Files of ``torch.save`` from strangers: tensors come out, or one clear line."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightx2v_sgmd.files.tensors.safetensors_files import PICKLE_SUFFIXES
from lightx2v_sgmd.files.tensors.tensor_reader import WholeTensors
from lightx2v_sgmd.files.tensors.torch_files import SUFFIXES, load_torch_file, torch_header
from lightx2v_sgmd.system.errors import UserError

STATE = {"a.weight": torch.arange(12.0).view(3, 4), "b": torch.zeros(2, dtype=torch.bfloat16)}


class Evil:
    """Runs code if it is unpickled carelessly."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> Any:
        return Path.touch, (self.witness,)


def rewritten(path: Path, change: Any, **options: Any) -> Path:
    """A copy of an archive with each entry passed through ``change(name, data)``."""
    out = path.with_name("changed.pth")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w", **options) as new:
        for entry in old.infolist():
            for name, data in change(entry.filename, old.read(entry)):
                new.writestr(name, data)
    return out


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.save(STATE, tmp_path / "x.pth")
    return tmp_path / "x.pth"


def test_tensors_come_out_as_they_went_in(saved: Path) -> None:
    loaded = load_torch_file(saved)
    assert {k: t.dtype for k, t in loaded.items()} == {k: t.dtype for k, t in STATE.items()}
    assert all(torch.equal(loaded[name], tensor) for name, tensor in STATE.items())
    header = torch_header(saved, loaded)
    assert [(t.dtype, t.shape) for t in header.tensors.values()] == [
        ("F32", (3, 4)),
        ("BF16", (2,)),
    ]
    assert set(SUFFIXES) <= set(PICKLE_SUFFIXES)


def test_state_dicts_within_dicts_are_flattened(tmp_path: Path) -> None:
    """Numbers, and an optimizer's tensors under numbers, are passed over."""
    content = {"ema": {"model": STATE}, "raw": STATE, "step": 3, "opt": {0: STATE}}
    torch.save(content, tmp_path / "x.pth")
    loaded = load_torch_file(tmp_path / "x.pth")
    expected = [f"{above}.{name}" for above in ("ema.model", "raw") for name in STATE]
    assert list(loaded) == expected
    assert torch.equal(loaded["raw.a.weight"], STATE["a.weight"])


def test_torch_s_warnings_of_other_pickles_are_not_shown(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    path = tmp_path / "x.pt"
    torch.save({"a": Evil(tmp_path / "ran")}, path, pickle_protocol=4)
    with pytest.raises(UserError, match="does not hold tensors alone"):
        load_torch_file(path)
    assert list(recwarn) == []


def test_slices_of_a_transposed_tensor(tmp_path: Path) -> None:
    tensor = torch.arange(12.0).view(3, 4).t()
    torch.save({"w": tensor, "s": torch.tensor(7.0)}, tmp_path / "x.pth")
    reader = WholeTensors([tmp_path / "x.pth"])
    assert reader.read("w", 2, 9).tolist() == tensor.flatten()[2:9].tolist()
    assert reader.read("w", 0, 12).tolist() == tensor.flatten().tolist()
    assert reader.read("s", 0, 1).tolist() == [7.0]


@pytest.mark.parametrize("where", ["value", "list", "alone"])
def test_nothing_that_runs_code_is_unpickled(tmp_path: Path, where: str) -> None:
    witness = tmp_path / "ran"
    evil = Evil(witness)
    content = {"value": {**STATE, "c": evil}, "list": {**STATE, "c": [evil]}, "alone": evil}[where]
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(UserError, match="does not hold tensors alone, and unpickling") as caught:
        load_torch_file(tmp_path / "x.pth")
    assert not witness.exists() and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([torch.zeros(1)], "holds a list"),
        ({"deep": {"in": {"a": {"dict": {"of": STATE}}}}}, "holds no tensors under names"),
        ({1: torch.zeros(1)}, "holds no tensors under names"),
        ({"n": 3}, "holds no tensors under names"),
        ({"../x": torch.zeros(1)}, "names an entry '../x', which no network has"),
        ({"a": torch.zeros(3).to_sparse()}, "a is a tensor of an unusual kind"),
        ({"a": torch.zeros(1).expand(10**6)}, "its tensors claim 4000000 bytes in a file of"),
    ],
)
def test_other_contents(tmp_path: Path, content: Any, says: str) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(UserError, match=f"x.pth: .*{says}"):
        load_torch_file(tmp_path / "x.pth")


def test_a_zip_bomb_is_not_unpacked(saved: Path) -> None:
    def inflated(name: str, data: bytes) -> list[tuple[str, bytes]]:
        return [(name, bytes(10**7) if name.endswith("data/0") else data)]

    bomb = rewritten(saved, inflated, compression=zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 10**5
    with pytest.raises(UserError, match="is compressed, which torch.save never does"):
        load_torch_file(bomb)


def test_entries_that_overlap_claim_more_than_there_is(saved: Path) -> None:
    """A bomb without compression: many entries of the directory share the same bytes."""
    changed = rewritten(saved, lambda name, data: [(name, bytes(50_000) if "0" in name else data)])
    content = changed.read_bytes()
    end = content.rindex(b"PK\x05\x06")
    start = int.from_bytes(content[end + 16 : end + 20], "little")
    first = content.index(b"data/0", start) + len("data/0")
    begin = content.rindex(b"PK\x01\x02", 0, first)
    entry = content[begin:first]
    copies = b"".join(entry[:-1] + bytes([65 + n]) for n in range(9))
    count = int.from_bytes(content[end + 10 : end + 12], "little") + 9
    size = end - start + len(copies)
    tail = content[end : end + 8] + count.to_bytes(2, "little") * 2 + size.to_bytes(4, "little")
    changed.write_bytes(content[:end] + copies + tail + content[end + 16 :])
    with pytest.raises(UserError, match=r"its entries claim 5\d+ bytes in a file of \d{5,6};"):
        load_torch_file(changed)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda n, d: [(n, d), (n + "/../../x", b"")], "names an entry"),
        (lambda n, d: [(n, d), ("/etc/x", b"")][: 1 + ("pkl" in n)], "names an entry '/etc/x'"),
        (lambda n, d: [] if n.endswith("data.pkl") else [(n, d)], "has 0 entries data.pkl"),
        (lambda n, d: [(n, d), ("b/data.pkl", d)][: 1 + ("pkl" in n)], "has 2 entries data.pkl"),
        (lambda n, d: [(n, d)] * (1 + ("pkl" in n)), "has an entry twice"),
        (lambda n, d: [(n, d[:5] if "pkl" in n else d)], "does not hold tensors alone"),
        (lambda n, d: [] if n.endswith("data/0") else [(n, d)], "does not hold tensors alone"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_archives_that_contradict_themselves(saved: Path, change: Any, says: str) -> None:
    with pytest.raises(UserError, match=f"changed.pth: {says}"):
        load_torch_file(rewritten(saved, change))


def test_a_storage_longer_than_its_record_stays_in_the_file(tmp_path: Path) -> None:
    """The pickle says how long each storage is; the archive knows better."""
    torch.save({"a": torch.zeros(4)}, tmp_path / "x.pth")
    longer = pickle.BININT2 + (60_000).to_bytes(2, "little")

    def stretched(name: str, data: bytes) -> list[tuple[str, bytes]]:
        return [(name, data.replace(b"K\x04", longer) if "pkl" in name else data)]

    with pytest.raises(UserError, match="does not hold tensors alone|claim 240000 bytes"):
        load_torch_file(rewritten(tmp_path / "x.pth", stretched))


def test_what_is_no_archive_of_torch(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save(STATE, path, _use_new_zipfile_serialization=False)
    for content in (path.read_bytes(), pickle.dumps(3), b"", b"{}", b"\x08\0\0\0\0\0\0\0{}"):
        path.write_bytes(content)
        with pytest.raises(UserError, match="x.pth: is not a file that torch.save wrote"):
            load_torch_file(path)
    path.write_bytes(b"PK\x03\x04 and nothing else")
    with pytest.raises(UserError, match="its archive is damaged"):
        load_torch_file(path)
    path.unlink()
    with pytest.raises(UserError, match="x.pth: cannot be read"):
        load_torch_file(path)


def _archive() -> bytes:
    buffer = io.BytesIO()
    torch.save({"a": torch.arange(3.0), "b": torch.zeros(2, 2)}, buffer)
    return buffer.getvalue()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_damaged_archive_gives_tensors_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(_archive())
    path = tmp_path_factory.getbasetemp() / "fuzzed.pth"
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(4, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.unlink(missing_ok=True)  # the last example's file may still be mapped
    path.write_bytes(content[: data.draw(st.sampled_from([len(content), len(content) // 2]))])
    try:
        tensors = load_torch_file(path)
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert sum(t.numel() * t.itemsize for t in tensors.values()) <= len(content)
        for tensor in tensors.values():
            tensor.clone()
