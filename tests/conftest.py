"""What all tests share."""

from __future__ import annotations

from hypothesis import settings

# How long an example takes says what else the machine does.
settings.register_profile("osgates", deadline=None)
settings.load_profile("osgates")
