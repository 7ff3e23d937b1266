"""VBench's list of prompts: read from the user's copy, or refused with the remedy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lightx2v_sgmd.apps.vbench.suite import read_suite
from lightx2v_sgmd.system.errors import UserError

# As VBench 0.1.5 writes it: a prompt may be there twice, with other dimensions.
ENTRIES: list[dict[str, Any]] = [
    {"prompt_en": "In a still frame, a stop sign", "dimension": ["temporal_flickering"]},
    {
        "prompt_en": "a red circle",
        "dimension": ["color", "object_class"],
        "auxiliary_info": {"color": "red"},
    },
    {"prompt_en": "a red circle", "dimension": ["scene"]},
]


def write(folder: Path, entries: Any = ENTRIES) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "VBench_full_info.json"
    file.write_text(json.dumps(entries))
    return file


def test_videos_have_the_names_that_vbench_looks_for(tmp_path: Path) -> None:
    suite = read_suite(write(tmp_path))
    assert suite.prompts == ("In a still frame, a stop sign", "a red circle")
    assert suite.count == 10
    assert suite.name(0) == "In a still frame, a stop sign-0.mp4"
    assert [suite.name(index) for index in (5, 9)] == ["a red circle-0.mp4", "a red circle-4.mp4"]
    assert suite.text(4) == "In a still frame, a stop sign" and suite.text(5) == "a red circle"
    assert suite.dimensions == dict.fromkeys(
        ("temporal_flickering", "color", "object_class", "scene"), 5
    )
    there = {"temporal_flickering": 2, "color": 3, "object_class": 3, "scene": 3}
    assert suite.there({0, 4, 5, 6, 9}) == there


def test_a_checkout_is_named_by_its_folder(tmp_path: Path) -> None:
    write(tmp_path / "VBench" / "vbench")
    assert read_suite(tmp_path / "VBench").prompts == read_suite(write(tmp_path)).prompts


def test_augmented_texts_make_the_videos_that_prompts_name(tmp_path: Path) -> None:
    texts = tmp_path / "longer.txt"
    texts.write_text("A long still of a sign.\nA vivid circle.\nAnother circle.\n")
    suite = read_suite(write(tmp_path), texts)
    assert suite.texts == ("A long still of a sign.", "A vivid circle.")
    assert suite.name(5) == "a red circle-0.mp4" and suite.text(5) == "A vivid circle."
    assert suite.augmented is not None and suite.augmented[0] == texts
    texts.write_text("one\n")
    with pytest.raises(UserError, match="has 1 prompt, but .* has 3"):
        read_suite(write(tmp_path), texts)


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"a": 1}, "list"),
        ([], "has no prompts"),
        ([{"prompt_en": "x"}], "0.dimension"),
        ([{"prompt_en": "x", "dimension": []}], "0.dimension"),
        ([{"prompt_en": "x", "dimension": ["speed"]}], "not a dimension of VBench"),
        ([{"prompt_en": "../x", "dimension": ["color"]}], "is not a file name"),
        ([{"prompt_en": "x" * 300, "dimension": ["color"]}], "bytes"),
        ([{"prompt_en": "", "dimension": ["color"]}], "is not a file name"),
    ],
)
def test_another_list_is_refused(tmp_path: Path, entries: Any, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        read_suite(write(tmp_path, entries))


def test_a_missing_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--vbench: .* does not exist; name VBench's"):
        read_suite(tmp_path / "none.json")
    with pytest.raises(UserError, match=r"has no vbench/VBench_full_info\.json"):
        read_suite(tmp_path)
