from __future__ import annotations

import json
from pathlib import Path

import pytest

from infer.batch.requests import Request, batches, make_requests, settle
from infer.checks import check_student
from lightx2v_sgmd.system.errors import UserError


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_every_broken_line_is_named(tmp_path: Path) -> None:
    path = write(
        tmp_path / "p.jsonl",
        '{"prompt": "fine"}',
        '{"prompt": ',
        '{"prompt": "  "}',
        "[1]",
        '{"prompt": "a", "sed": 3}',
        '{"prompt": "a", "seed": -1}',
        '{"prompt": "a", "height": "32"}',
        '{"prompt": "a", "num_frames": true}',
        '{"prompt": "a", "name": "../b"}',
        '{"prompt": "a", "name": "b"}',
        '{"prompt": "a", "name": "b"}',
    )
    with pytest.raises(UserError) as caught:
        make_requests(path, 0)
    said = [line.removeprefix(f"{path}:") for line in str(caught.value).splitlines()]
    assert [line.split(": ")[0] for line in said] == ["2", "3", "4", "5", "6", "7", "8", "9", "11"]
    for words in (
        "is not JSON",
        "has no prompt",
        "sed: unknown key; did you mean seed?",
        "seed: -1 is out of range; use 0",
        "height: '32' is not a positive whole number",
        "num_frames: True is not",
        "name: '../b' is not a valid file name",
        f"name: 'b' is also that of {path}:10",
    ):
        assert any(words in line for line in said), words


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "a \\ud800 circle"}', "the prompt holds half a character"),
        ('{"prompt": "a", "name": "' + "字" * 100 + '"}', "has 300 bytes, more than 200; shorten"),
        (
            '{"prompt": "a", "name": "' + "x" * 101 + '"}',
            "is not a valid file name; .* at most 100",
        ),
        ('{"prompt": "a", "height": ' + "9" * 5_000 + "}", "a number has 5,000 digits"),
        ('{"prompt": "a", "' + "x" * 5_000 + '": 1}', "x: unknown key"),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_a_line_beyond_the_limits_is_refused_before_any_work(
    tmp_path: Path, line: str, message: str
) -> None:
    path = write(tmp_path / "p.jsonl", '{"prompt": "fine"}', line)
    with pytest.raises(UserError, match=f"^{path}:2: .*{message}"):
        make_requests(path, 0)


@pytest.mark.parametrize("prompt", ["a\0b", "a \udcff", "x" * 30_000])
def test_a_prompt_that_is_no_text_is_refused(prompt: str) -> None:
    with pytest.raises(UserError, match="^prompt: "):
        make_requests(prompt, 0)


@pytest.mark.parametrize("name", ["p.jsonl", "p.txt"])
def test_an_empty_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="holds no prompts"):
        make_requests(write(tmp_path / name, ""), 0)


def test_seeds_count_up_around_those_given(tmp_path: Path) -> None:
    path = write(
        tmp_path / "p.jsonl", '{"prompt": "a"}', '{"prompt": "b", "seed": 3}', '{"prompt": "c"}'
    )
    assert [request.seed for request in make_requests(path, 40)] == [40, 3, 42]
    assert [request.seed for request in make_requests(["a", "b"], 40)] == [40, 41]


def test_sizes_are_checked_line_by_line(shared_student: Path, tmp_path: Path) -> None:
    path = write(
        tmp_path / "p.jsonl",
        '{"prompt": "a", "height": 40}',
        '{"prompt": "b", "num_frames": 8}',
        '{"prompt": "c", "width": 64}',
    )
    checked = check_student(shared_student)
    requests = make_requests(path, 0)
    with pytest.raises(UserError) as caught:
        settle(requests, checked, None, None, None)
    first, second = str(caught.value).splitlines()
    assert first.startswith(f"{path}:1: ") and "height: 40 is not divisible by 16" in first
    assert second.startswith(f"{path}:2: ") and "num_frames: 8 is not 4k + 1" in second
    (settled,) = settle(requests[2:], checked, None, None, 5)
    assert settled.size == (32, 64, 5)


def test_batches_have_one_size() -> None:
    sizes = [(32, 32, 9), (48, 32, 9), (32, 32, 9), (32, 32, 9), (48, 32, 9)]
    requests = [Request("a", i, str(i), *size) for i, size in enumerate(sizes)]
    assert [[r.name for r in batch] for batch in batches(requests, 2)] == [
        ["0", "2"],
        ["3"],
        ["1", "4"],
    ]


@pytest.mark.parametrize("name", ["a person, [smiling]: left?-0", "50% off 'x' *", "字: 1"])
def test_names_are_any_that_a_file_system_takes(tmp_path: Path, name: str) -> None:
    """VBench names videos by their prompts: ``{prompt}-{index}.mp4``."""
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"prompt": "a", "name": f"{name}.mp4"}) + "\n")
    assert make_requests(path, 0)[0].name == name
    (tmp_path / f"{name}.mp4").write_text("")
    for wrong in ("a/b", "a\\b", "a\nb", "..", "-a", ".a"):
        path.write_text(json.dumps({"prompt": "a", "name": wrong}) + "\n")
        with pytest.raises(UserError, match="is not a valid file name; begin with a letter"):
            make_requests(path, 0)
