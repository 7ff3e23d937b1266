"""The limits of YAML: what is beyond them is refused before it costs anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightx2v_sgmd.files.yaml_loader import dump_tree, parse_value, read_tree
from lightx2v_sgmd.system.errors import UserError

BOMB = "a: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{name}: &{name} [{','.join(['*' + chr(ord(name) - 1)] * 9)}]\n" for name in "bcdefghi"
)
MERGED = "a: &a {x: 1}\n" + "".join(
    f"{name}: &{name} {{!!merge <<: [{','.join(['*' + chr(ord(name) - 1)] * 9)}]}}\n"
    for name in "bcdefghi"
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "in line 4, column .*: has more than the 5,000 values"),
        (MERGED, "in line 2, column .*: has the tag tag:yaml.org,2002:merge"),
        ("a: &a [*a]", "an alias stands within what it names"),
        ("a: [" + "1," * 6_000 + "1]", "has more than the 5,000 values"),
        ("[" * 20_000, "column 17: is nested more than 16 deep"),
        ("- " * 20_000, "column 33: is nested more than 16 deep"),
        ("{a: " * 20_000, "is nested more than 16 deep"),
        ("? " * 20_000, "is nested more than 16 deep"),
        ("a: !!int abc", "column 4: 'abc' is no int"),
        ("a: !!float x", "'x' is no float"),
        ("a: !!bool maybe", "'maybe' is no bool"),
        ("a: !!timestamp x", "has the tag tag:yaml.org,2002:timestamp; leave it out"),
        ("a: !!binary x", "has the tag"),
        ("a: !!python/object:os.system x", "has the tag"),
        ("a: " + "1" * 5_000, "a number has 5,000 digits"),
        ('a: "\\ud800"', "a text holds half a character"),
        ('a: "\\0"', "a text holds a zero byte"),
        ("x" * 300_000, "larger than the 200,000 bytes|more than the 200,000 that are read"),
    ],
)
def test_beyond_the_limits(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_tree(path)
    with pytest.raises(UserError, match=message):
        parse_value(text, "--set x")


def test_aliases_within_the_limits_are_read() -> None:
    text = "a: &a {lr: 1.0e-4, betas: [0, 0.9]}\nb: *a\nc: [*a, *a]"
    plain = {"lr": 1e-4, "betas": [0, 0.9]}
    assert parse_value(text, "x") == {"a": plain, "b": plain, "c": [plain, plain]}


def test_explicit_tags_that_say_what_is_there_are_read() -> None:
    assert parse_value("[!!int 1, !!str 1, !!float 1.5, !!bool true]", "x") == [
        *(1, "1", 1.5, True),
    ]


def test_text_with_unusual_line_breaks_is_written_as_it_is() -> None:
    tree = {"a": "one\x85two\u2028three\u2029", "b": "four\nfive"}
    assert parse_value(dump_tree(tree), "x") == tree


def test_a_file_without_an_end_is_not_read_to_it() -> None:
    with pytest.raises(UserError, match="^/dev/zero: is a pipe or a device"):
        read_tree(Path("/dev/zero"))
