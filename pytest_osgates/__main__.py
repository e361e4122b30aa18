"""``python -m pytest_osgates``: the command ``osgates``."""

from pytest_osgates.cli import entry_point

entry_point()
