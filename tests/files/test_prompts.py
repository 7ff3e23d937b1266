from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightx2v_sgmd.files.prompts import MOST_LINES, MOST_ODD, note_unread, read_prompts
from lightx2v_sgmd.system.errors import UserError
from lightx2v_sgmd.system.resources import config_path


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    ("name", "content", "prompts"),
    [
        ("a.txt", "one\n\n# a comment\n  two  \none", ["one", "two", "one"]),
        ("a.TXT", "one\r\ntwo\r\n", ["one", "two"]),
        ("a.txt", "o\u2028n\x85e\ntwo\n", ["o\u2028n\x85e", "two"]),
        ("a.txt", b"\xef\xbb\xbfone\n", ["one"]),
        ("a.txt", "Ein Fuchs läuft, 狐が走る\n", ["Ein Fuchs läuft, 狐が走る"]),
        (
            "a.jsonl",
            '{"prompt": "one", "id": 3}\n\n{"prompt": "t\u2028wo"}\n',
            ["one", "t\u2028wo"],
        ),
        (
            "a.jsonl",
            '{"prompt": "a \\"b\\""}\r\n{"prompt":"\\ud83d\\ude00 \\u00e9"}\n',
            ['a "b"', "\U0001f600 é"],
        ),
        (
            "a.jsonl",
            '{"prompt": "{", "x": [[{}]]}\n  {"n": "},{", "prompt": " two "}\n{"prompt": "c"}',
            ["{", "two", "c"],
        ),
        (
            "a.csv",
            'id,prompt\n1,one\n2,"two, ""quoted""\nand long"\n',
            ["one", 'two, "quoted"\nand long'],
        ),
    ],
)
def test_prompts_are_read(tmp_path: Path, name: str, content: str, prompts: list[str]) -> None:
    assert read_prompts(written(tmp_path, name, content)) == prompts


def test_comments_are_counted_aloud(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = written(tmp_path, "a.txt", "# a comment\na # b\n")
    more = written(tmp_path, "b.txt", "a\n#1\n\n  # two\n")
    none = written(tmp_path, "c.jsonl", '{"prompt": "#1"}\n{"prompt": "b", "image": "b.png"}\n')
    for path in (one, more, none):
        note_unread(path)
    note_unread(more, quiet=True)
    assert capsys.readouterr().err.splitlines() == [
        f"{one}: 1 line begins with # and is a comment, not a prompt",
        f"{more}: 2 lines begin with # and are comments, not prompts",
    ]
    assert read_prompts(none) == ["#1", "b"]


def test_keys_that_nobody_reads_are_named_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = '{"prompt": "a", "id": 1}\n{"prompt": "b", "id": 2, "seed": 3}\n{"prompt": 3}\n'
    path = written(tmp_path, "a.jsonl", lines)
    note_unread(path)
    note_unread(path, keys=False)
    note_unread("sprites")
    says = "only prompt and image are read of its lines, not id, seed"
    assert capsys.readouterr().err.splitlines() == [f"{path}: {says}"]
    many = {f"k{i}": 0 for i in range(9)}
    note_unread(written(tmp_path, "b.jsonl", json.dumps({"prompt": "a"} | many)))
    assert capsys.readouterr().err.endswith("not k0, k1, k2, k3, k4, ...\n")
    start = written(tmp_path, "c.jsonl", '{"prompt": "b", "image": "b.png"}\n')
    note_unread(start, images=False)
    says = "only prompt is read of its lines, not image"
    assert capsys.readouterr().err.splitlines() == [f"{start}: {says}"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "", ": holds no prompts; write at least one"),
        ("a.txt", "\n# nothing\n", ": holds no prompts; write at least one"),
        ("a.csv", "", ": holds no prompts; write at least one"),
        ("a.csv", "prompt\n", ": holds no prompts; write at least one"),
        ("a.txt", b"one\ntw\xf6\n", ":2: byte 0xf6 is not UTF-8 text; save the file as UTF-8"),
        ("a.jsonl", '{"prompt": "one"}\n{"prompt": \n', ":2: is not JSON ("),
        ("a.jsonl", '"one"\n', ':1: has no prompt; write {"prompt": "..."}'),
        ("a.jsonl", '{"text": "one"}\n', ':1: has no prompt; write {"prompt": "..."}'),
        ("a.jsonl", '{"prompt": 3}\n', ':1: has no prompt; write {"prompt": "..."}'),
        ("a.jsonl", '{"prompt": " "}\n', ':1: has no prompt; write {"prompt": "..."}'),
        ("a.csv", "id,text\n1,one\n", ":1: no column is called prompt (there are id, text)"),
        ("a.csv", "id,prompt\n1,\n", ":2: has no prompt; fill the column prompt"),
        ("a.csv", "id,prompt\n1,one\n2\n", ":3: has no prompt; fill the column prompt"),
        ("a.csv", 'prompt\none\n"two\n', ":3: is not CSV ("),
        ("a.csv", 'id,prompt\n1,"one\ntwo"\n2,\n', ":4: has no prompt; fill the column prompt"),
        ("a.doc", "one\n", ": ends in .doc; give a file that ends in .txt, .jsonl, .csv"),
        ("a.txt", "one\na\0b\n", ":2: the prompt holds a zero byte"),
        ("a.txt", "x" * 30_000, ":1: the prompt has 30,000 characters, more than 20,000"),
        ("a.jsonl", "{}\n" + "[" * 100_000, ":1: has no prompt"),
        ("a.jsonl", "[" * 100_000, ":1: is not JSON (it has 100,000 values"),
        ("a.jsonl", "[" * 500, ":1: is not JSON ("),
        ("a.jsonl", '{"prompt": "a", "seed": ' + "9" * 5_000 + "}", ":1: is not JSON (a number"),
        ("a.jsonl", '{"prompt": "a \\ud800"}', ":1: the prompt holds half a character (U+D800)"),
        ("a.jsonl", '{"prompt": "a"},{"prompt": "b"}\n', ":1: is not JSON (Extra data"),
        (
            "a.jsonl",
            '{"prompt": "a"\n"x": 1}\n{"prompt": "b"}, {"prompt": "c"}',
            ":1: is not JSON (",
        ),
        ("a.jsonl", '{"prompt": "a\\n"}\n{"prompt": "\\udc00"}\n', ":2: the prompt holds half"),
        ("a.jsonl", '{"prompt": "a\\n"}\n{"prompt": "\\u0000"}\n', ":2: the prompt holds a zero"),
        ("a.jsonl", '{"prompt": "a\\n"}\n{"prompt": "\\n"}\n', ":2: has no prompt"),
        ("a.jsonl", '{"prompt": "a", "x": 1}\n{"prompt": ["b"]}\n', ":2: has no prompt"),
        ("a.jsonl", '{"prompt": "a\\n"}\n' * 3000 + '{"prompt": 1}', ":3001: has no prompt"),
        ("prompts", "one\n", ": has no suffix; give a file that ends in .txt, .jsonl, .csv"),
    ],
)
def test_a_bad_file_is_one_line_that_names_it(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    path = written(tmp_path, name, content)
    with pytest.raises(UserError) as caught:
        read_prompts(path)
    assert str(caught.value).startswith(f"{path}{message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["txt", "jsonl", "csv"])
def test_a_file_of_empty_lines_is_refused_before_it_is_split(tmp_path: Path, suffix: str) -> None:
    path = written(tmp_path, f"a.{suffix}", b"\n" * (MOST_LINES + 1))
    with pytest.raises(UserError, match="has more than the 2,000,000 lines that are read"):
        read_prompts(path)


def test_lines_with_other_keys_are_bounded(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", '{"prompt": "a", "x": 1}\n' * (MOST_ODD + 1))
    with pytest.raises(UserError, match="more than 250,000 lines with other keys than prompt"):
        read_prompts(path)


def test_a_byte_that_is_no_text_is_named_with_its_line(tmp_path: Path) -> None:
    path = written(tmp_path, "a.txt", b"one\n" * 30_000 + b"\xff\n")
    with pytest.raises(UserError, match=r"a\.txt:30001: byte 0xff is not UTF-8"):
        read_prompts(path)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.txt: no such file; name another one$"):
        read_prompts(tmp_path / "nowhere.txt")


def test_the_shipped_examples_are_read() -> None:
    prompts = read_prompts(config_path("prompts/examples.txt"))
    assert len(set(prompts)) == len(prompts) >= 40
