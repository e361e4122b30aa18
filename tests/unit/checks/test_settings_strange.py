"""Systems and profiles that are strange: what looked as demanded, and was not."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError
from settings_samples import a_file, a_mount, policy

from pytest_osgates.checks.settings import GATE
from pytest_osgates.checks.settings.facts import (
    AccountsFact,
    FileFact,
    Group,
    MountsFact,
    Package,
    PackagesFact,
    SettingsObservation,
    TextFact,
    UnitFact,
    User,
)
from pytest_osgates.judging import judge
from pytest_osgates.model import State, Verdict

ROOT = a_mount("/", "rw", id=1, parent=0)
NONE = PackagesFact(there=False)
LOADED = UnitFact(load="loaded", active="inactive", file_state="disabled")


def tmp(*options: str) -> dict[str, object]:
    return {"mounts": MountsFact(mounts=(ROOT, a_mount("/tmp", "rw", *options)))}


def line(text: str) -> dict[str, object]:
    return {"command_line": TextFact(text=text)}


def packages(dpkg: PackagesFact, **others: PackagesFact) -> dict[str, object]:
    return {"packages": {"dpkg": dpkg, "rpm": NONE, "flatpak": NONE, **others}}


def verdict(demanded: str, seen: dict[str, Any]) -> Verdict:
    return judge(GATE, SettingsObservation(state=State.LIVE, **seen), policy(demanded)).verdict


SSH = PackagesFact(packages=(Package(name="ssh", version="1:7.0-1", status="install ok installed"),))
ACCOUNTS = {
    "accounts": AccountsFact(
        users=(User(name="root", uid=0, gid=0), User(name="admin", uid=1, gid=1), User(name="eve", uid=2, gid=2)),
        groups=(Group(name="wheel", gid=10, members=("admin",)), Group(name="other", gid=10, members=("eve",))),
    )
}
SSHD = {"files": {"/a": a_file(content=TextFact(text="PermitRootLogin yes\r\n"))}}

STRANGE = [
    # The kernel shows "nosuid", never "suid".
    ('[[mount]]\npaths = ["/tmp"]\nlacks = ["suid"]', tmp("nodev"), Verdict.FAIL),
    ('[[mount]]\npaths = ["/tmp"]\nlacks = ["suid", "dev"]', tmp("nosuid", "nodev"), Verdict.PASS),
    ('[[mount]]\npaths = ["/tmp"]\noptions = ["exec"]', tmp("noexec"), Verdict.FAIL),
    ('[[mount]]\npaths = ["/tmp"]\noptions = ["exec", "rw", "rel*"]', tmp("relatime"), Verdict.PASS),
    # Flatpaks are not what dpkg knows.
    (
        '[[package]]\nnames = ["snapd"]\nabsent = true',
        packages(PackagesFact(), flatpak=PackagesFact(packages=(Package(name="org.a"),))),
        Verdict.NOT_PROVEN,
    ),
    ('[[package]]\nnames = ["ssh"]\nat_least = "9.7"', packages(SSH), Verdict.NOT_PROVEN),
    ('[[package]]\nnames = ["ssh"]\nat_least = "0:9.7"', packages(SSH), Verdict.PASS),
    ('[[package]]\nnames = ["ssh"]\nat_least = "1:9.7"', packages(SSH), Verdict.FAIL),
    ('[[parameter]]\nabsent = ["systemd.unit=rescue*"]', line("systemd.unit=rescue.target"), Verdict.FAIL),
    ('[[parameter]]\nabsent = ["systemd.unit=rescue*"]', line("systemd.unit=graphical.target"), Verdict.PASS),
    ('[[parameter]]\nabsent = ["mitigations=off"]', line("quiet\u00a0mitigations=off"), Verdict.FAIL),
    ('[[parameter]]\nabsent = ["mitigations=off"]', line("quiet\ufffdmitigations=off"), Verdict.NOT_PROVEN),
    ('[[file]]\npaths = ["/a"]\nlacks = ["^PermitRootLogin yes$"]', SSHD, Verdict.FAIL),
    ('[[file]]\npaths = ["/a"]\ncontains = ["^PermitRootLogin yes$"]', SSHD, Verdict.FAIL),
    # Links in *.wants are looked for under one name.
    (
        '[[unit]]\nnames = ["ssh.service"]\nwanted_by = []',
        {"units": {"ssh.service": LOADED.model_copy(update={"id": "sshd.service"})}},
        Verdict.NOT_PROVEN,
    ),
    (
        '[[unit]]\nnames = ["ssh.service"]\nwanted_by = []',
        {"units": {"ssh.service": LOADED.model_copy(update={"id": "ssh.service"})}},
        Verdict.PASS,
    ),
    # There, and of no use.
    (
        '[[unit]]\nnames = ["ssh.service"]\npresent = true',
        {"units": {"ssh.service": LOADED.model_copy(update={"load": "bad-setting"})}},
        Verdict.FAIL,
    ),
    # The kernel knows groups by their numbers.
    ('[[group]]\nnames = ["wheel"]\nmembers = ["admin"]', ACCOUNTS, Verdict.FAIL),
    ('[[user]]\nnames = ["eve"]\ngroups = ["wheel"]', ACCOUNTS, Verdict.FAIL),
    ('[[file]]\npaths = ["/a"]\nabsent = true', {"files": {"/a": FileFact()}}, Verdict.PASS),
]


@pytest.mark.parametrize(("demanded", "seen", "wanted"), STRANGE)
def test_strange_systems(demanded: str, seen: dict[str, Any], wanted: Verdict) -> None:
    assert verdict(demanded, seen) is wanted


@pytest.mark.parametrize(
    ("demanded", "why"),
    [
        ('[[file]]\npaths = ["/etc/hosts.equiv "]\nabsent = true', "white space"),
        ('[[file]]\npaths = ["/etc/ssh/ssh_host_*"]\nabsent = true', "no pattern"),
        ('[[mount]]\npaths = ["/media/?"]\nabsent = true', "no pattern"),
        ('[[mount]]\npaths = ["/tmp"]\nlacks = ["suid "]', "white space"),
        ('[[mount]]\npaths = ["/tmp"]\noptions = ["*suid"]', "every mount has"),
        ('[[mount]]\npaths = ["/tmp"]\noptions = ["r?"]', "every mount has"),
        ('[[mount]]\npaths = ["/tmp"]\nlacks = ["user"]', "does not show 'user'"),
        ('[[parameter]]\nabsent = ["mitigations=off "]', "white space"),
        # In TOML, "\\b" in double quotes is a backspace.
        ('[[file]]\npaths = ["/a"]\nlacks = ["\\bpassword\\b"]', "control character"),
        ('[[file]]\npaths = ["/a\\u00a0b"]\nabsent = true', "cannot be seen"),
        ('[[mount]]\npaths = ["/tmp"]\nlacks = ["\\u200bsuid"]', "cannot be seen"),
        ('[[parameter]]\nabsent = ["systemd.debug*"]', "no kernel parameter"),
        ('[[user]]\nnames = ["live*"]\nabsent = true', "no name of a user"),
        ('[[group]]\nnames = ["docker?"]\nabsent = true', "no name of a user"),
    ],
)
def test_what_would_always_be_so_is_refused(demanded: str, why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        policy(demanded)
