"""The gates that this version has."""

from __future__ import annotations

from collections.abc import Mapping

from pytest_osgates.checks import boot, kconfig, lynis, settings
from pytest_osgates.model import AnyGate

GATES: Mapping[str, AnyGate] = {gate.name: gate for gate in (boot.GATE, kconfig.GATE, lynis.GATE, settings.GATE)}
