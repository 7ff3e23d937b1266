"""Libraries' messages are muted inside, and heard again after."""

from __future__ import annotations

import logging

import pytest

from lightx2v_sgmd.system.quiet import no_library_bars, no_logging, no_warnings


def test_warnings_of_one_logger_are_muted(caplog: pytest.LogCaptureFixture) -> None:
    one, other = logging.getLogger("quiet.one"), logging.getLogger("quiet.other")
    with no_warnings("quiet.one"):
        one.warning("a")
        one.error("b")
        other.warning("c")
    one.warning("d")
    assert [record.message for record in caplog.records] == ["b", "c", "d"]


def test_all_messages_below_an_error_are_muted(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("quiet")
    with pytest.raises(KeyError), no_logging():
        log.warning("a")
        log.error("b")
        raise KeyError
    log.warning("c")
    assert [record.message for record in caplog.records] == ["b", "c"]


def test_bars_of_libraries_come_back() -> None:
    from diffusers.utils import logging as of_diffusers

    before = of_diffusers.is_progress_bar_enabled()
    with no_library_bars():
        assert not of_diffusers.is_progress_bar_enabled()
    assert of_diffusers.is_progress_bar_enabled() == before
