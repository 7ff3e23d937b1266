from __future__ import annotations

import json
import math
import pickle
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from lightx2v_sgmd.files.manifest import changed_files
from lightx2v_sgmd.files.tensors.safetensors_files import (
    check_keys,
    read_header,
    read_headers,
    refuse_pickle,
    schedule_metadata,
    schedule_of,
    weight_files,
)
from lightx2v_sgmd.schedule import Schedule
from lightx2v_sgmd.system.errors import UserError


def write_raw(path: Path, header: Any, data: bytes) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(begin: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_a_header_is_what_was_saved(tmp_path: Path) -> None:
    tensors = {
        "a": torch.zeros(3, 2, dtype=torch.bfloat16),
        "b": torch.tensor(1.0),
        "c": torch.zeros(0, 4),
        "d": torch.zeros(5, dtype=torch.float8_e4m3fn),
        "e": torch.zeros(2, dtype=torch.bool),
        "f": torch.zeros(2, dtype=torch.int64),
    }
    save_file(tensors, tmp_path / "x.safetensors", {"k": "v"})
    header = read_header(tmp_path / "x.safetensors")
    assert {k: (t.dtype, t.shape) for k, t in header.tensors.items()} == {
        "a": ("BF16", (3, 2)),
        "b": ("F32", ()),
        "c": ("F32", (0, 4)),
        "d": ("F8_E4M3", (5,)),
        "e": ("BOOL", (2,)),
        "f": ("I64", (2,)),
    }
    assert header.metadata == {"k": "v"}


@pytest.mark.parametrize(
    ("header", "data", "match"),
    [
        ({"a": entry(0, 8, [2])}, b"1234", "cut short: 4 bytes are missing"),
        ({"a": entry(0, 8, [2])}, b"12345678x", "has 1 bytes that no tensor owns"),
        ({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, b"x" * 12, "overlap or leave holes"),
        ({"a": entry(0, 4, [1]), "b": entry(8, 12, [1])}, b"x" * 12, "overlap or leave holes"),
        ({"a": entry(0, 8, [3])}, b"x" * 8, r"a of shape \[3\] cannot have 8 bytes"),
        ({"a": entry(0, 8, [-1, -2])}, b"x" * 8, "cannot have 8 bytes"),
        ({"a": entry(0, 8, [2], "F31")}, b"x" * 8, "unknown type F31"),
        ({"a": {"dtype": "F32"}}, b"", "header is not readable"),
        ([1, 2], b"", "header is not readable"),
        (b"{not json", b"", "header is not readable"),
        (b"\xff\xfe{}", b"", "header is not readable"),
        (b'{"a":' * 100_000, b"", "header is not readable"),
        (
            {"a": entry(0, 4, [1]), "b": {"dtype": "F32", "shape": "", "data_offsets": [4, 8]}},
            b"x" * 8,
            "readable",
        ),
        ({"a": {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}}, b"x" * 4, "readable"),
        ({"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}, b"x" * 4, "readable"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 4]}}, b"x" * 4, "readable"),
        ({"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}, b"x" * 4, "readable"),
        ({"a": entry(0, 0, [0, 2**70])}, b"", "cannot have 0 bytes"),
        ({"a": entry(-4, 0, [1])}, b"", "overlap or leave holes"),
        (b'{"a":%s,"a":%s}' % ((json.dumps(entry(0, 4, [1])).encode(),) * 2), b"x" * 4, "readable"),
        ({"__metadata__": 3}, b"", "header is not readable"),
    ],
)
def test_files_that_contradict_themselves(
    tmp_path: Path, header: Any, data: bytes, match: str
) -> None:
    path = write_raw(tmp_path / "x.safetensors", header, data)
    with pytest.raises(UserError, match=f"x.safetensors: .*{match}.*; the file is damaged"):
        read_header(path)


@pytest.mark.parametrize(
    "name",
    ["../x", "a/../../x", "..\\x", "/etc/x", "\\\\host\\x", "C:\\x", "", "a\nb", "a\0", "\ud800"],
)
def test_tensors_are_not_named_like_ways_out(tmp_path: Path, name: str) -> None:
    path = write_raw(tmp_path / "x.safetensors", {name: entry(0, 4, [1])}, b"1234")
    with pytest.raises(
        UserError, match="x.safetensors: names an entry .*, which no network has"
    ) as e:
        read_header(path)
    assert "\n" not in str(e.value) and str(e.value).isprintable()


def test_long_names_are_cut_in_messages(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "x.safetensors", {"a" * 10**6: entry(0, 5, [1])}, b"12345")
    with pytest.raises(UserError, match=r"aaa\.\.\. \(1000000 characters\)") as caught:
        read_header(path)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("saved", ["torch", "pickle"])
def test_a_pickle_under_the_name_of_safetensors(tmp_path: Path, saved: str) -> None:
    path = tmp_path / "x.safetensors"
    if saved == "torch":
        torch.save({"a": torch.zeros(1)}, path)
    else:
        path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(UserError, match="x.safetensors: is a pickle .* can run any code"):
        read_header(path)


def test_a_shard_that_is_a_link_out_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "net"
    folder.mkdir()
    save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors")
    (folder / "model.safetensors").symlink_to(tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="model.safetensors: is a link out of"):
        weight_files(folder, "model")


def test_a_length_of_petabytes_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", 2**60) + b"{}")
    with pytest.raises(UserError, match="its 10 bytes have no safetensors header"):
        read_header(path)
    with pytest.raises(UserError, match="none.safetensors: cannot be read"):
        read_header(tmp_path / "none.safetensors")


@pytest.mark.parametrize("length", [0x0280, 0x0380, 0x0480, 0x0580])
def test_a_header_length_that_looks_like_a_pickle_is_none(tmp_path: Path, length: int) -> None:
    text = json.dumps({"a": entry(0, 4, [1])}).encode().ljust(length)
    path = write_raw(tmp_path / "x.safetensors", text, b"1234")
    assert path.read_bytes()[0] == 0x80
    refuse_pickle(path)
    assert read_header(path).tensors["a"].shape == (1,)


@pytest.mark.parametrize(
    "name",
    [
        *("../x.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "..\\x.safetensors"),
        *("a\0.safetensors", "a\n.safetensors", "\ud800.safetensors", "..", "."),
    ],
)
def test_an_index_cannot_point_elsewhere(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "net"
    folder.mkdir()
    save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(UserError, match="which is no .safetensors file beside it"):
        weight_files(folder, "model")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("{", "not a readable index"),
        ('{"weight_map": []}', "not a readable index"),
        ('{"weight_map": {}}', "names no shards"),
        ("[" * 100_000, "not a readable index"),
        ('{"weight_map": {"a": ["x.safetensors"]}}', "not a readable index"),
        ('{"weight_map": {"a": 3}}', "names the shard 3, which is no"),
        ('{"weight_map": {"a": "x.safetensors", "b": 3}}', "not a readable index"),
        ('{"weight_map": {"a": "x.bin"}}', "use another index"),
        ('{"weight_map": {"a": "x.safetensors"}}', "x.safetensors: is missing, but model"),
    ],
)
def test_bad_indices(tmp_path: Path, content: str, match: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(UserError, match=match):
        weight_files(tmp_path, "model")


def test_shards_must_belong_together(tmp_path: Path) -> None:
    first, second = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
    save_file({"a": torch.zeros(1)}, first, schedule_metadata(Schedule()))
    save_file({"b": torch.zeros(1)}, second, schedule_metadata(Schedule()))
    header = read_headers([first, second])
    assert set(header.tensors) == {"a", "b"} and schedule_of(header.metadata) == Schedule()
    save_file({"b": torch.zeros(1)}, second, schedule_metadata(Schedule(shift=5.0)))
    with pytest.raises(UserError, match="2.safetensors: its schedule is not that of the shards"):
        read_headers([first, second])
    save_file({"b": torch.zeros(1)}, second)
    with pytest.raises(UserError, match="2.safetensors: its schedule is not that of the shards"):
        read_headers([first, second])
    save_file({"a": torch.zeros(1)}, second, schedule_metadata(Schedule()))
    with pytest.raises(UserError, match="2.safetensors: a is also in 1.safetensors"):
        read_headers([first, second])


def test_keys_are_listed_when_they_do_not_fit(tmp_path: Path) -> None:
    save_file({f"k{i}": torch.zeros(2) for i in range(9)}, tmp_path / "x.safetensors")
    header = read_header(tmp_path / "x.safetensors")
    check_keys(header, {f"k{i}": (2,) for i in range(9)}, "net")
    with pytest.raises(UserError, match=r"^net: .* 9 unexpected: k0 \[2\], .*, k5 \[2\], \.\.\.;"):
        check_keys(header, {}, "net")


def test_the_schedule_in_metadata_is_read_back_or_refused() -> None:
    assert schedule_of(schedule_metadata(Schedule(shift=5.0))) == Schedule(shift=5.0)
    assert schedule_of({"format": "pt"}) is None
    for text in ("{", "[]", '{"schedule": 3}', "{}"):
        with pytest.raises(UserError, match="schedule"):
            schedule_of({"lightx2v_sgmd": text})


_SIZES = {"F32": 4, "BF16": 2, "I8": 1, "BOOL": 1, "F8_E4M3": 1}
_ODD: st.SearchStrategy[Any] = st.sampled_from(
    [-1, 0, 1, 3, 8, 2**31, 2**63, 2**64, 10**400, 1.0, True, None, "", "F4", []]
)
_FIELDS: tuple[Any, ...] = (
    "dtype",
    "shape",
    "data_offsets",
    ("shape", 0),
    ("data_offsets", 0),
    ("data_offsets", 1),
)


@st.composite
def _headers(draw: st.DrawFn) -> tuple[dict[str, Any], int]:
    """A valid header and the bytes it describes, then up to two lies."""
    header: dict[str, Any] = {}
    end = 0
    for name in draw(st.lists(st.sampled_from("abcd"), unique=True, max_size=3)):
        dtype = draw(st.sampled_from(sorted(_SIZES)))
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        begin, end = end, end + math.prod(shape) * _SIZES[dtype]
        header[name] = entry(begin, end, shape, dtype)
    for _ in range(draw(st.sampled_from([0, 1, 1, 2]))):
        name = draw(st.sampled_from([*header, "new", "../x", "__metadata__"]))
        field = draw(st.sampled_from(_FIELDS))
        if name not in header:
            header[name] = draw(st.sampled_from([entry(end, end, [0]), {}, {"k": "v"}, 3, "x"]))
        elif isinstance(field, str):
            header[name] = {**header[name], field: draw(_ODD)} if name in "abcd" else draw(_ODD)
        elif name in "abcd" and isinstance(values := header[name][field[0]], list) and values:
            changed = [*values]
            changed[field[1] % len(values)] = draw(_ODD)
            header[name] = {**header[name], field[0]: changed}
    return header, end


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    made=_headers(),
    more=st.sampled_from([0, 0, 0, 0, 0, 1, -1]),
    lie=st.sampled_from([0] * 9 + [1, -1, 2**40]),
)
def test_any_header_gives_tensors_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, made: tuple[dict[str, Any], int], more: int, lie: int
) -> None:
    """The safetensors library reads what is accepted too, byte for byte in the file."""
    header, size = made
    path = tmp_path_factory.getbasetemp() / "fuzzed.safetensors"
    text = json.dumps(header).encode()
    path.unlink(missing_ok=True)
    path.write_bytes(struct.pack("<Q", len(text) + lie) + text + bytes(max(0, size + more)))
    try:
        accepted = read_header(path)
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000
        return
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == set(accepted.tensors)
        for name, info in accepted.tensors.items():
            assert tuple(file.get_tensor(name).shape) == info.shape


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    content=st.dictionaries(
        st.just("weight_map"),
        st.dictionaries(
            st.text(max_size=2),
            st.sampled_from(
                [
                    "x.safetensors",
                    "y.safetensors",
                    "../z.safetensors",
                    "/etc/passwd",
                    "x.bin",
                    "",
                    "..",
                ]
            )
            | st.text(max_size=6).map(lambda t: f"{t}.safetensors")
            | st.integers()
            | st.none(),
            max_size=3,
        ),
    )
    | st.recursive(st.none() | st.text(), lambda c: st.lists(c) | st.dictionaries(st.text(), c))
)
def test_any_index_gives_files_beside_it_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, content: Any
) -> None:
    outer = tmp_path_factory.getbasetemp() / "indexed"
    folder = outer / "net"
    folder.mkdir(parents=True, exist_ok=True)
    for file in (folder / "x.safetensors", folder / "y.safetensors", outer / "z.safetensors"):
        file.touch()
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))
    try:
        files = weight_files(folder, "model")
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert files and {file.parent for file in files} == {folder}
        assert {file.name for file in files} <= {"x.safetensors", "y.safetensors"}


def test_a_manifest_cannot_point_elsewhere(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (tmp_path / "secret").write_text("x")
    (folder / "link").symlink_to(tmp_path / "secret")
    for name, says in (
        ("../secret", "names an entry"),
        (str(tmp_path / "secret"), "names an entry"),
        ("link", "is a link out of"),
    ):
        with pytest.raises(UserError, match=says):
            changed_files(folder, {name: "0" * 64})
    assert changed_files(folder, {"none": "0" * 64}) == ["none is missing"]
