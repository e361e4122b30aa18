"""The gates that this version has."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from pytest_osgates.checks import (
    apparmor,
    boot,
    firewall,
    install,
    kconfig,
    luks,
    lynis,
    packages,
    reproducible,
    secureboot,
    selinux,
    settings,
    telemetry,
    tpm,
)
from pytest_osgates.model import AnyGate

# Not to be written to: a gate from outside that registered itself here could stand in for a built-in one.
GATES: Mapping[str, AnyGate] = MappingProxyType(
    {
        gate.name: gate
        for gate in (
            *(apparmor.GATE, boot.GATE, firewall.GATE, install.GATE, kconfig.GATE, luks.GATE, lynis.GATE),
            *(
                packages.GATE,
                reproducible.GATE,
                secureboot.GATE,
                selinux.GATE,
                settings.GATE,
                telemetry.GATE,
                tpm.GATE,
            ),
        )
    }
)
