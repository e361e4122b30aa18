"""Options of ``pytest`` and their ini settings. Imported by every pytest run: nothing heavy here."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

# Option, its ini setting, metavar or choices, help.
_OPTIONS = (
    ("--iso", "osgates_iso", "FILE", "the ISO to judge: boots it and runs every gate that its profile requires"),
    (
        "--iso-distro",
        "osgates_distro",
        "NAME|FILE",
        "distro profile (default: detected from os-release in the image)",
    ),
    ("--iso-disk", "osgates_disk", "FILE", "a disk with the installed system, for gates on the state 'installed'"),
    ("--iso-rebuild", "osgates_rebuild", "FILE", "a second build of the ISO, for the gate 'reproducible'"),
    ("--iso-build", "osgates_build", "CMD", "builds the ISO: run twice, each time in an empty directory"),
    ("--iso-build-output", "osgates_build_output", "GLOB", "where --iso-build leaves the ISO, relative to there"),
    ("--iso-sums", "osgates_sums", "FILE", "the SHA256SUMS that were published with the ISO"),
    ("--iso-evidence", "osgates_evidence", "DIR", "where evidence is kept (default: osgates-evidence)"),
    (
        "--iso-idle",
        "osgates_idle",
        "TIME",
        "how long the gate telemetry watches after boot: 90s, 30m, 2h (default: idle_s of the profile)",
    ),
    (
        "--iso-time",
        "osgates_time",
        ("real", "accelerated"),
        "how time passes for telemetry: accelerated skips idle time, under emulation (default: real)",
    ),
    ("--iso-accel", "osgates_accel", ("auto", "kvm", "tcg"), "accelerator (default: auto, KVM if it truly works)"),
)


def add_options(parser: pytest.Parser) -> None:
    """Register all options with pytest."""
    group = parser.getgroup("osgates", "launch gates for Linux distributions")
    for name, ini, values, text in _OPTIONS:
        parser.addini(ini, f"{text} (see {name})", default="")
        if isinstance(values, tuple):
            group.addoption(name, choices=values, default=None, help=text)
        else:
            # Given twice is an error of the user, and the second must not silently win.
            group.addoption(name, metavar=values, action="append", default=None, help=text)
    parser.addini("osgates_tool", "judging tools as NAME=PATH, one a line (see --iso-tool)", type="linelist")
    group.addoption(
        "--iso-tool",
        metavar="NAME=PATH",
        action="append",
        default=[],
        help="use this file for a pinned judging tool instead of fetching it",
    )


def value(config: pytest.Config, name: str) -> str:
    """An option's value, from the command line, else from the ini file; empty if neither.

    :raise ValueError: given more than once, or empty on the command line: a shell variable that was not set.
    """
    given = config.getoption(name)
    if given is None:
        ini = next(ini for option, ini, _, _ in _OPTIONS if option == name)
        return str(config.getini(ini))
    if isinstance(given, list):
        if len(given) > 1:
            raise ValueError(f"{name} was given {len(given)} times: {', '.join(given)}\n  -> give it once")
        if not given[0]:
            raise ValueError(f"{name} is empty\n  -> give a value, or leave {name} out")
        return str(given[0])
    return str(given)
