from __future__ import annotations

from lightx2v_sgmd.system.errors import (
    LINE,
    first_line,
    joined,
    named_line,
    short_line,
    short_lines,
    unreadable,
    with_remedy,
)


def test_a_short_line_stays_as_it_is() -> None:
    text = "train.seed: -1 is too small; use 0 or more"
    assert short_line(text) == text


def test_a_long_line_keeps_its_key_and_its_remedy() -> None:
    text = "schedule.base: " + "1000 " * 1_000 + "are too many steps; use at most 1000"
    line = short_line(text)
    assert len(line) == LINE
    assert line.startswith("schedule.base: 1000 ")
    assert line.endswith(" ... ; use at most 1000")


def test_a_long_word_is_cut_before_anything_else_is_lost() -> None:
    path = "/data/" + "x" * 400 + "/job.yaml:12"
    line = short_line(f"{path}: train.seed: -1 is too small; use 0 or more")
    assert line.startswith("/data/xxx")
    assert line.endswith("x/job.yaml:12: train.seed: -1 is too small; use 0 or more")


def test_what_a_terminal_would_obey_is_escaped() -> None:
    assert short_line("a\x1b[2Jb\u202ec\ud800") == "a\\x1b[2Jb\\u202ec\\ud800"
    assert short_line("a red círculo") == "a red círculo"


def test_many_mistakes_are_counted() -> None:
    lines = short_lines([f"mistake {i}" for i in range(50)])
    assert lines[0] == "mistake 0" and lines[19] == "mistake 19"
    assert lines[20] == "... and 30 more mistakes; mend these first"
    assert len(lines) == 21


def test_values_that_are_many() -> None:
    assert joined([1, 2]) == "1, 2"
    assert joined(range(100), 3) == "0, 1, 2, ... (100 of them)"


def test_a_message_gets_one_remedy() -> None:
    assert with_remedy("dim is 0", "copy it again") == "dim is 0; copy it again"
    assert with_remedy("dim is 0; use 1", "copy it again") == "dim is 0; use 1"


def test_a_file_that_cannot_be_read_says_what_to_look_at() -> None:
    error = unreadable("a.json", PermissionError(13, "Permission denied"))
    says = "a.json: cannot be read (Permission denied); check its path, permissions and disk"
    assert str(error) == says
    assert "(OSError);" in str(unreadable("a.json", OSError("no number")))


def test_an_error_is_told_by_the_first_line_of_its_message() -> None:
    error = ValueError("\n  one\ntwo\n")
    assert (first_line(error), named_line(error)) == ("one", "ValueError: one")
    assert (first_line(MemoryError()), named_line(MemoryError())) == ("MemoryError",) * 2
