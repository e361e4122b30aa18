"""Runs of the gates as a user makes them, with the runner of the real boots."""

from __future__ import annotations

from tests.e2e.conftest import demo_iso, fault_iso, gates

__all__ = ["demo_iso", "fault_iso", "gates"]
