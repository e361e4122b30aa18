"""How programs are started, as it stands in the files of small images; each weakness alone."""

from __future__ import annotations

import pytest
from elf_builders import elf
from memory_root import Entry, program
from test_networked import UNIT, found, only, scanned

from pytest_osgates.checks.apparmor_model import Tier
from pytest_osgates.observers.confinement.observe import questions

SERVER = program(elf(imports=("socket", "bind", "listen", "accept", "getaddrinfo")))
D = "/usr/sbin/d"

APP: dict[str, Entry] = {"/srv/x.py": b"import socket\n"}


def having(*names: str) -> dict[str, Entry]:
    """Programs that do nothing on the network."""
    return {f"/usr/bin/{name}": program(elf()) for name in names}


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


@pytest.mark.parametrize(
    ("line", "profile"),
    [
        ("aa-exec -p unconfined -- {}", "unconfined"),
        ("aa-exec --profile=unconfined {}", "unconfined"),
        ("aa-exec -punconfined {}", "unconfined"),
        ("aa-exec --prof unconfined {}", "unconfined"),
        ("setpriv --apparmor-profile unconfined {}", "unconfined"),
        ("setpriv --reuid x --apparmor-profile=other {}", "other"),
        ("nice -n 5 aa-exec -p other env A=b {}", "other"),
        ("aa-exec -p other aa-exec -p unconfined {}", "unconfined"),
        ("sh -c 'exec aa-exec -p unconfined {}'", "unconfined"),
        ("aa-exec {}", "of-the-unit"),
        ("systemd-run --wait {}", ""),
        ("systemd-run -p User=x -p AppArmorProfile=other {}", "other"),
        ("systemd-run --scope {}", "of-the-unit"),
        # Nobody can tell: no profile has such a name, and the kernel says so.
        ("aa-exec -i -p p {}", "aa-exec -i -p p"),
        ("aa-exec -ip p {}", "aa-exec -i -p p"),
        ("aa-exec -n space -p p {}", "aa-exec -n space -p p"),
        ("aa-exec -p $PROFILE {}", "$PROFILE"),
        ("firejail --apparmor {}", "firejail --apparmor"),
    ],
)
@pytest.mark.parametrize("command", [D, "python3 /srv/x.py"])
def test_a_profile_that_is_given_on_the_way(line: str, profile: str, command: str) -> None:
    tools = ("aa-exec", "setpriv", "nice", "env", "systemd-run", "firejail")
    files = by_unit(
        f"[Service]\nAppArmorProfile=of-the-unit\nExecStart={line.format(command)}\n", **APP, **having(*tools)
    )
    seen = scanned(files)
    program_ = command.split()[-1]
    assert {entry.path: entry.tier for entry in seen.entries}[program_] is Tier.A
    assert {unit.apparmor_profile for unit in seen.units if unit.program == program_} == {profile}
    asked = {(question.path, question.profile) for question in questions(seen) if question.unit == "d.service"}
    assert not profile or (program_ if command == D else "/usr/bin/python3.13", profile) in asked


@pytest.mark.parametrize(
    "line",
    [
        "ip netns exec wan d",
        "ip -4 net exec wan nice d -x",
        "start-stop-daemon --start --quiet --pidfile /run/d --exec /usr/sbin/d -- -f",
        "start-stop-daemon -S -bmx /usr/sbin/d",
        "start-stop-daemon --start --exec /usr/bin/true --startas=/usr/sbin/d",
        "xvfb-run -a -s '-screen 0' d",
        "su -s /bin/sh -c 'd -f' nobody",
        "su - nobody -c d",
        "su -s /usr/sbin/d nobody",
        "runuser nobody -c d",
        "runuser -u nobody -- d",
        "runuser -u nobody sh -c d",
        "flock /run/lock d",
        "flock -n /run/lock -c d",
        "script -qc d /dev/null",
        "firejail --net=eth0 d",
        "systemd-run -u x --scope d",
        "systemd-run --user d",
        "run0 --user=x d",
        "strace -f -o /tmp/x d",
        "time -p d",
        "setsid -c d",
        "capsh --user=x -- -c 'exec d'",
    ],
)
def test_programs_that_only_run_others(line: str) -> None:
    tools = {line.split()[0], "nice", "bash"} - {"sh"}
    assert found(by_unit(f"[Service]\nExecStart={line}\n", **having(*tools)))[D].tier is Tier.A


@pytest.mark.parametrize(
    "line", ["start-stop-daemon --stop --exec /usr/sbin/d", "start-stop-daemon -T -x /usr/sbin/d"]
)
def test_a_daemon_that_is_stopped_is_not_started(line: str) -> None:
    unit = f"[Service]\nType=oneshot\nExecStart={line}\n"
    assert found(by_unit(unit, **having("start-stop-daemon")))[D].tier is Tier.B


def test_what_another_process_starts_is_not_closed_with_the_unit() -> None:
    for line, tier in ((f"systemd-run {D}", Tier.A), (f"systemd-run --scope {D}", Tier.B)):
        unit = f"[Service]\nPrivateNetwork=yes\nExecStart={line}\n"
        assert found(by_unit(unit, **having("systemd-run")))[D].tier is tier
