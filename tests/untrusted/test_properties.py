"""Any input is answered: accepted, or refused in short lines. Seeds are those of the fuzzer."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lightx2v_sgmd.files.yaml_loader import dump_tree, parse_value
from lightx2v_sgmd.system.errors import LINE, short_line, short_lines
from lightx2v_sgmd.untrusted.json_text import Limits, deeper_than, parse_json
from lightx2v_sgmd.untrusted.paths import path_problem
from tools.fuzzing.targets import TARGETS, run_target, seeds

# A failing input is kept in .hypothesis, which git ignores, and tried first by the next run;
# mended, it becomes a seed of the fuzzer.
# The same examples in every run: ``python -m tools.fuzzing.fuzz`` looks for new ones.
FEW = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
MANY = settings(max_examples=300, deadline=None, derandomize=True)

SEEDS = [(name, number) for name, found in seeds().items() for number in range(len(found))]
CONFIGS = (
    "transformer",
    "vae",
    "text_encoder",
    "vision_encoder",
    "model_index",
    "video",
    "scheduler",
)
TEXTS = ("job", "setting", "prompts_jsonl", "prompts_csv", "prompts_txt", "lora_option", "schedule")

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from([10**9, -1, 0, 2**63, 10**30, "evil.py", "../x", "\ud800", "\0", ""]),
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@pytest.mark.parametrize(("name", "number"), SEEDS)
def test_seeds(name: str, number: int) -> None:
    accepted = run_target(name, seeds()[name][number])
    assert accepted or number > 0  # the first of each is a good one


def test_every_target_has_a_good_seed() -> None:
    assert TARGETS.keys() == seeds().keys()


@pytest.mark.parametrize("name", CONFIGS)
@FEW
@given(data=st.data())
def test_configurations_with_changed_values(name: str, data: Any) -> None:
    config = json.loads(seeds()[name][0])
    for key in data.draw(st.lists(st.sampled_from(sorted(config)), min_size=1, max_size=3)):
        config[key] = data.draw(values)
    run_target(name, json.dumps(config).encode())


@pytest.mark.parametrize("name", TEXTS)
@FEW
@given(data=st.data())
def test_texts_that_are_cut_joined_and_changed(name: str, data: Any) -> None:
    seed = data.draw(st.sampled_from(seeds()[name]))[:2_000]
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, len(seed))] * 2)))
    piece = data.draw(
        st.binary(max_size=8) | st.sampled_from([b"[", b"&a ", b"*a", b"!!int ", b"\0"])
    )
    run_target(name, seed[:start] + piece * data.draw(st.integers(1, 50)) + seed[stop:])


@pytest.mark.parametrize("name", ["tensor_header", "header_text", "torch_file", "manifest"])
@FEW
@given(data=st.data())
def test_files_with_changed_bytes(name: str, data: Any) -> None:
    content = bytearray(data.draw(st.sampled_from(seeds()[name])))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    run_target(name, bytes(content))


@MANY
@given(st.text())
@example("[" * 100_000)
@example("1" * 5_000)
@example('{"a":' * 100_000)
@example("NaN")
def test_json_is_bounded_or_as_the_library_reads_it(text: str) -> None:
    limits = Limits(size=10_000, values=100, depth=5)
    try:
        content = parse_json(text, limits)
    except ValueError as error:
        assert len(str(error)) < 200
        return
    assert not deeper_than(content, 5)
    assert repr(content) == repr(json.loads(text))


@MANY
@given(values)
def test_json_that_was_written_is_read_back(value: Any) -> None:
    text = json.dumps(value)
    if any(len(number) > 40 for number in text.replace("-", " ").split()):
        return
    assert repr(parse_json(text, Limits(10**6, 10**4))) == repr(json.loads(text))


@MANY
@given(st.text(), st.integers(0, 30))
@example("x" * 10_000, 0)
@example("key: \x1b[31m" + "y " * 1_000 + "; do this", 0)
@example("\u2028\n", 5)
def test_lines_are_short_and_printable(text: str, times: int) -> None:
    line = short_line(text * times)
    assert len(line) <= LINE and line.isprintable()
    lines = short_lines([text] * times)
    assert 1 <= len(lines) <= 21 and all(one.isprintable() for one in lines)


@MANY
@given(st.text(max_size=300))
@example("a/" * 3_000)
@example("x" * 300)
@example("😀" * 60)
def test_a_path_without_a_problem_can_be_asked_for(text: str) -> None:
    from pathlib import Path

    if path_problem(text) is None:
        Path(text).exists()


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
trees = st.dictionaries(
    st.text(st.characters(codec="ascii", categories=["L"]), min_size=1, max_size=8),
    st.recursive(
        st.none() | st.booleans() | st.integers(-(10**30), 10**30) | texts,
        lambda inner: st.lists(inner, max_size=3),
        max_leaves=6,
    ),
    min_size=1,
    max_size=6,
)


@MANY
@given(trees)
@example({"a": "one\x85two\u2028three"})
def test_yaml_that_was_written_is_read_back(tree: dict[str, Any]) -> None:
    assert parse_value(dump_tree(tree), "x") == tree
