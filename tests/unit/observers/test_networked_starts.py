"""How programs are started, as it stands in the files of small images; each weakness alone."""

from __future__ import annotations

import pytest
from elf_builders import elf
from memory_root import Entry, program
from test_networked import UNIT, only, scanned

from pytest_osgates.checks.apparmor_model import Tier
from pytest_osgates.observers.confinement.observe import questions

SERVER = program(elf(imports=("socket", "bind", "listen", "accept", "getaddrinfo")))
D = "/usr/sbin/d"


def by_unit(text: str, **more: Entry) -> dict[str, Entry]:
    """The server, and a unit `d.service` with this text."""
    return {D: SERVER, "/etc/systemd/system/d.service": text.encode(), **more}


@pytest.mark.parametrize(
    ("prefix", "profile", "tier", "alone"),
    [
        ("", "d", Tier.B, True),
        ("-", "d", Tier.B, True),
        ("!", "d", Tier.B, True),
        ("!!", "d", Tier.B, True),
        ("+", "", Tier.A, False),
        ("-+", "", Tier.A, False),
        ("+:", "", Tier.A, False),
    ],
)
def test_a_command_with_full_privileges_is_kept_from_nothing(
    prefix: str, profile: str, tier: Tier, alone: bool
) -> None:
    """systemd.service(5): with ``+``, no profile, no filter and no no_new_privs of the unit's is applied."""
    more = "AppArmorProfile=d\nRestrictAddressFamilies=AF_UNIX\nNoNewPrivileges=yes\n"
    seen = scanned(by_unit(UNIT.format(f"{prefix}{D}") + more))
    assert {entry.path: entry.tier for entry in seen.entries}[D] is tier
    (unit,) = seen.units
    assert (unit.apparmor_profile, unit.no_new_privileges) == (profile, alone)
    assert {question.profile for question in questions(seen) if question.path == D} == {"", profile}


def test_a_command_with_full_privileges_has_the_network_of_its_unit() -> None:
    assert only(by_unit(UNIT.format(f"+{D}") + "PrivateNetwork=yes\n")).tier is Tier.B
