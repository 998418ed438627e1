"""Asked to stop: once by whoever is impatient, twice at the same moment by a terminal and a launcher."""

from __future__ import annotations

import os
import signal

import pytest

from m2f_cli.runtime import signals


def test_the_same_wish_twice_is_one_and_a_later_one_is_obeyed_at_once(monkeypatch):
    before = signal.getsignal(signal.SIGINT)
    with signals.asked_to_stop() as asked:
        assert asked.name is None
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked.name == "SIGINT"
        monkeypatch.setattr(signals, "PATIENCE", 0.0)
        asked.is_busy = lambda: True
        os.kill(os.getpid(), signal.SIGTERM)  # weights change, or are saved
        asked.is_busy = lambda: False
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="POSIX")
def test_a_closed_terminal_asks_to_stop_but_not_under_nohup():
    with signals.asked_to_stop() as asked:
        os.kill(os.getpid(), signal.SIGHUP)
        assert asked.name == "SIGHUP"
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.asked_to_stop() as asked:
            os.kill(os.getpid(), signal.SIGHUP)
            assert asked.name is None
    finally:
        signal.signal(signal.SIGHUP, old)
