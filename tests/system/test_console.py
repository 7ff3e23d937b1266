from __future__ import annotations

import io
import os
import sys

import pytest

from lightx2v_sgmd.system.console import Lines, duration, note, progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_lines_come_at_the_first_unit_then_every_few_seconds_then_at_the_last() -> None:
    stream, now = io.StringIO(), [0.0]
    bar = Lines(6, "training", stream, every_s=10, clock=lambda: now[0])
    for _ in range(6):
        now[0] += 4
        bar.advance(note="loss 0.1")
    assert stream.getvalue().splitlines() == [
        "training 1/6  20 s left  loss 0.1",
        "training 4/6  8 s left  loss 0.1",
        "training 6/6  took 24 s  loss 0.1",
    ]


def test_no_line_comes_before_the_first_unit() -> None:
    stream, now = io.StringIO(), [0.0]
    bar = Lines(4, "making", stream, done=2, clock=lambda: now[0])
    for count in (0, 0, 1):
        now[0] += 5
        bar.advance(count)
    assert stream.getvalue() == "making 3/4  15 s left\n"


def test_the_time_left_leaves_out_what_an_earlier_run_did() -> None:
    stream, now = io.StringIO(), [0.0]
    bar = Lines(100, "training", stream, done=90, clock=lambda: now[0])
    now[0] = 5
    bar.advance()
    assert stream.getvalue() == "training 91/100  45 s left\n"


def test_what_was_done_elsewhere_says_nothing_about_the_speed() -> None:
    stream, now = io.StringIO(), [0.0]
    bar = Lines(100, "comparing", stream, done=60, clock=lambda: now[0])
    now[0] = 10
    bar.correct(-30)  # a run went back to its checkpoint
    bar.advance(5)
    now[0] = 20
    bar.correct(40)  # somebody else's
    bar.advance(5)
    assert stream.getvalue().splitlines() == [
        "comparing 35/100  2 min 10 s left",
        "comparing 80/100  40 s left",
    ]


def test_a_bar_takes_corrections() -> None:
    stream = Terminal()
    with progress(9, "comparing", done=6, stream=stream) as bar:
        bar.correct(-4)
        bar.advance(3)
    assert "5/9" in stream.getvalue()


def test_a_stream_that_is_no_terminal_gets_lines() -> None:
    stream = io.StringIO()
    with progress(2, "decoding", stream=stream) as bar:
        bar.advance(2)
    assert stream.getvalue() == "decoding 2/2  took 0 s\n"


def test_a_terminal_gets_a_bar() -> None:
    stream = Terminal()
    with progress(2, "decoding [x]", stream=stream) as bar:
        bar.advance(note="[y]")
        bar.advance(note="[z]")
    assert "decoding [x]" in stream.getvalue()
    assert "2/2" in stream.getvalue()
    assert "[z]" in stream.getvalue()


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_quiet_prints_nothing(kind: type[io.StringIO]) -> None:
    stream = kind()
    with progress(2, "decoding", quiet=True, stream=stream) as bar:
        bar.advance(2, note="x")
    assert stream.getvalue() == ""


def test_work_goes_on_when_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    """A launcher that is told to stop may be gone before the ranks have saved."""
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as gone:
        monkeypatch.setattr(sys, "stderr", gone)
        note("stopping")
        with progress(2, "training") as bar:
            bar.advance()
        with pytest.raises(BrokenPipeError):
            gone.flush()
        with open(os.devnull, "w") as null:  # for what is left in its buffer
            os.dup2(null.fileno(), writing)


def test_what_a_terminal_would_obey_is_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    note("run\n\x1b[2J: resuming")
    with progress(1, "making\r", every_s=0.0) as bar:
        bar.advance(note="a\nb")
    first, second = capsys.readouterr().err.splitlines()
    assert first == "run\\n\\x1b[2J: resuming"
    assert second.startswith("making\\r 1/1") and second.endswith("a\\nb")
