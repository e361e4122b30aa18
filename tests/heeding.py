"""Runs that are started here heed interruptions, whoever started this process."""

from __future__ import annotations

import signal


def heed_interruptions() -> None:
    """A shell without job control starts what is to run in the background with SIGINT ignored, nohup(1) with SIGHUP,
    and so they would be for every run that is started and interrupted here. What is handled has its default there
    (execve(2))."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda number, frame: None)
