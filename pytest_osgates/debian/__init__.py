"""Debian packages without touching the host's own apt: resolved, verified and kept by digest."""

from pytest_osgates.debian.apt import PrivateApt
from pytest_osgates.debian.mirror import MIRROR_VARIABLE, Mirror, discover_mirror
from pytest_osgates.debian.model import Archive, LockedPackage, Suite
from pytest_osgates.debian.store import DebStore, Downloader

__all__ = [
    "MIRROR_VARIABLE",
    "Archive",
    "DebStore",
    "Downloader",
    "LockedPackage",
    "Mirror",
    "PrivateApt",
    "Suite",
    "discover_mirror",
]
