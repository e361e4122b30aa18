"""What all tests share."""

from __future__ import annotations

import signal

from hypothesis import settings

# How long an example takes says what else the machine does.
settings.register_profile("osgates", deadline=None)
settings.load_profile("osgates")

# A shell without job control starts what is to run in the background with SIGINT ignored, nohup(1) with SIGHUP, and
# so they would be for every run that a test starts and interrupts. What is handled here has its default there
# (execve(2)).
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda number, frame: None)
