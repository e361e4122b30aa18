"""Clean observations of each gate, to be spoiled by tests one thing at a time; and what they are judged by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pytest_osgates.checks.boot import BootObservation, BootPolicy, Outcome
from pytest_osgates.checks.divergence import Difference, ImageComparison, ImageFile, Spot
from pytest_osgates.checks.kconfig import FEWEST, Check, CheckType, ConfigSource, KconfigObservation, KconfigPolicy
from pytest_osgates.checks.reproducible import FEWEST_PROBES, Pair, Probe, ReproducibleObservation
from pytest_osgates.model import Finding, Severity, State

BOOT_POLICY = BootPolicy(deadline_s=600, watch_s=60)
KCONFIG_POLICY = KconfigPolicy(parameters=("BOOT_IMAGE=*", "quiet"))
RELEASE = "6.12.57+deb13-amd64"
VERSION = (
    "Linux version 6.12.57+deb13-amd64 (debian-kernel@lists.debian.org) (x86_64-linux-gnu-gcc-14 (Debian 14.2.0-19) "
    "14.2.0, GNU ld (GNU Binutils for Debian) 2.44) #1 SMP PREEMPT_DYNAMIC Debian 6.12.57-1 (2025-11-05)"
)
COMPILER = "x86_64-linux-gnu-gcc-14 (Debian 14.2.0-19) 14.2.0"

# What a hostile guest writes: a red colour, a new title, a cleared screen, a right-to-left override, a forged line.
HOSTILE = "\x1b[31mred\x1b]0;title\x07\x1b[2J\u202egpj.exe\r\nLAUNCH: READY\x9b1m\u200b\ue000"


def booted(**changes: Any) -> BootObservation:
    """A clean boot on UEFI with the channel."""
    fields: dict[str, Any] = {
        "case": "uefi-channel",
        "firmware": "uefi",
        "channel": True,
        "accelerator": "tcg",
        "outcome": Outcome.READY,
        "ready_target": "multi-user.target",
        "ready_by": "channel",
        "ready_s": 41.5,
        "ready_guest_s": 33.0,
        "deadline_s": 600.0,
        "console": {"serial": ("Debian GNU/Linux 13 demo ttyS0", "demo login: ")},
        "legible": True,
        "units_asked": True,
        "system_state": "running",
        "watched_s": 60.0,
    }
    return BootObservation(**{**fields, **changes})


def bare(**changes: Any) -> BootObservation:
    """A clean boot without the channel: nothing is known of its units."""
    fields: dict[str, Any] = {
        "case": "uefi-bare",
        "channel": False,
        "ready_by": "serial",
        "ready_guest_s": None,
        "units_asked": False,
        "system_state": "",
        "watched_s": 0.0,
    }
    return booted(**{**fields, **changes})


def check(option: str, result: str = "OK", kind: CheckType = "kconfig", area: str = "self_protection") -> Check:
    return Check(option=option, type=kind, area=area, decision="kspp", wanted="y", result=result)


def enough_checks() -> tuple[Check, ...]:
    """As many checks of each kind as there must be, all of them OK."""
    return tuple(
        check(f"{kind}_option_{number}", kind=kind) for kind, fewest in FEWEST.items() for number in range(fewest)
    )


def config_source(**changes: str) -> ConfigSource:
    """The config of the running kernel, out of the image."""
    fields = {
        "name": f"image:/boot/config-{RELEASE}",
        "version": "6.12.57",
        "build_salt": RELEASE,
        "compiler": COMPILER,
        "sha256": "0" * 64,
    }
    return ConfigSource(**{**fields, **changes})


def kernel(*extra: Check, **changes: Any) -> KconfigObservation:
    """A kernel of which every check is OK, and `extra`."""
    fields: dict[str, Any] = {
        "state": State.LIVE,
        "release": RELEASE,
        "version": VERSION,
        "command_line": "BOOT_IMAGE=/live/vmlinuz quiet",
        "config": config_source(),
        "sysctl_count": 900,
        "checks": (*enough_checks(), *extra),
        "tool": "kernel-hardening-checker",
        "tool_version": "0.6.17",
        "tool_sha256": "1" * 64,
    }
    return KconfigObservation(**{**fields, **changes})


def keys(findings: Sequence[Finding], *severities: Severity) -> list[tuple[str, str]]:
    """Rule and subject of the findings, of these severities only if any is named."""
    return [finding.key for finding in findings if not severities or finding.severity in severities]


def difference(
    path: str, what: str = "content", *, locus: str = "", a: str = "", b: str = "", **fields: Any
) -> Difference:
    """A difference in a squashfs; with `locus`, the values are those of a place inside the file."""
    spots = (Spot(locus=locus, offset=0, size=1, a=a, b=b),) if locus else ()
    values = {"a": "", "b": ""} if locus else {"a": a, "b": b}
    layer = fields.pop("layer", "squashfs")
    container = fields.pop("container", "/live/filesystem.squashfs" if layer == "squashfs" else "")
    return Difference(layer=layer, container=container, path=path, what=what, spots=spots, **values, **fields)


def image_file(digit: str = "a") -> ImageFile:
    """An image whose digest is that digit, 64 times."""
    return ImageFile(path=f"/{digit}.iso", size=1000, sha256=digit * 64)


def rebuilt(**changes: Any) -> ReproducibleObservation:
    """An image that was built again, to the same bytes."""
    fields: dict[str, Any] = {
        "image": image_file(),
        "pairs": (
            Pair(
                second="--iso-rebuild",
                comparison=ImageComparison(
                    a=image_file(), b=image_file().model_copy(update={"path": "/2.iso"}), equal=True
                ),
            ),
        ),
        "probes": tuple(
            Probe(layer=layer, offset=40_000, found=True, said=f"{layer}: it") for layer in FEWEST_PROBES
        ),
    }
    return ReproducibleObservation(**{**fields, **changes})
