"""What all tests share."""

from __future__ import annotations

from hypothesis import settings

from tests.heeding import heed_interruptions

# How long an example takes says what else the machine does.
settings.register_profile("osgates", deadline=None)
settings.load_profile("osgates")

heed_interruptions()
