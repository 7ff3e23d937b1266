"""Requests to stop."""

from __future__ import annotations

import os
import signal

import pytest

from distill.running.signals import STOPPING, stop_on_signal


@pytest.mark.parametrize("number", STOPPING)
def test_signals_ask_once_and_handlers_come_back(number: int) -> None:
    before = signal.getsignal(number)
    with stop_on_signal(quiet=True) as stop:
        assert not stop()
        os.kill(os.getpid(), number)
        assert stop()
        os.kill(os.getpid(), signal.SIGTERM)  # launchers repeat it
        assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL  # Ctrl-C now ends at once
    assert signal.getsignal(number) == before
