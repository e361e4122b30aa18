"""How programs are started, as it stands in the files of small images; each weakness alone."""

from __future__ import annotations

import pytest
from elf_builders import elf, library
from hypothesis import given
from hypothesis import strategies as st
from memory_root import Entry, Link, program
from test_networked import UNIT, found, kinds, only, scanned

from pytest_osgates.checks.apparmor_model import Kind, Tier
from pytest_osgates.observers.confinement.observe import questions
from pytest_osgates.observers.networked.starters import last_lines

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


QUIET = {"/usr/sbin/p": program(elf())}
CAP_NET_RAW = bytes.fromhex("0100000200200000000000000000000000000000")
ETC = "/etc/systemd/system"
P_UNIT = b"[Service]\nExecStart=/usr/sbin/p\n"


@pytest.mark.parametrize(
    "files",
    [
        {f"{ETC}/d.service": P_UNIT + b"Sockets=web.socket\n", f"{ETC}/web.socket": b"[Socket]\nListenStream=80\n"},
        {f"{ETC}/f@.service": P_UNIT, f"{ETC}/f@eth0.socket": b"[Socket]\nListenStream=80\n"},
        {f"{ETC}/f@.service": P_UNIT, f"{ETC}/f@eth0.socket": b"[Socket]\nListenStream=80\nAccept=yes\n"},
        {f"{ETC}/f@.service": P_UNIT, f"{ETC}/w.socket": b"[Socket]\nListenStream=80\nService=f@a.service\n"},
        {
            f"{ETC}/d.service": P_UNIT,
            f"{ETC}/d.socket": b"[Socket]\nListenStream=/run/x\n",
            f"{ETC}.control/d.socket.d/a.conf": b"[Socket]\nListenStream=80\n",
        },
        {f"{ETC}.attached/d.service": P_UNIT, f"{ETC}.attached/d.socket": b"[Socket]\nListenStream=80\n"},
        {
            f"{ETC}/f@.service": b"[Service]\nExecStart=/usr/bin/true\n",
            f"{ETC}/f@a.service.d/x.conf": b"[Service]\nExecStart=\nExecStart=/usr/sbin/p\n",
            f"{ETC}/w.socket": b"[Socket]\nListenStream=80\nService=f@a.service\n",
        },
    ],
)
def test_who_is_handed_sockets(files: dict[str, Entry]) -> None:
    assert kinds(only({**files, **QUIET})) == {Kind.SOCKET_UNIT}


def test_who_gets_sockets_of_the_file_system_beside_may_listen() -> None:
    files = by_unit(UNIT.format(D) + "Sockets=web.socket\n")
    assert only({**files, f"{ETC}/web.socket": b"[Socket]\nListenStream=/run/x\n"}).tier is Tier.A


@pytest.mark.parametrize(
    "files",
    [
        by_unit(UNIT.format(D) + "PrivateNetwork=yes\nNetworkNamespacePath=/run/netns/wan\n"),
        by_unit("[Unit]\nJoinsNamespaceOf=wan.service\n" + UNIT.format(D) + "PrivateNetwork=yes\n"),
        # Whoever of the two comes second is in the namespace of the first.
        by_unit(
            UNIT.format(D) + "PrivateNetwork=yes\n",
            **{f"{ETC}/wan.service": b"[Unit]\nJoinsNamespaceOf=d.service\n[Service]\nNetworkNamespacePath=/run/n\n"},
        ),
    ],
)
def test_a_network_that_may_be_that_of_others_is_not_closed(files: dict[str, Entry]) -> None:
    assert only(files).tier is Tier.A


@pytest.mark.parametrize(
    "place",
    [
        *("/usr/share/systemd/user", "/etc/xdg/systemd/user", "/etc/skel/.config/systemd/user"),
        *("/home/a/.config/systemd/user", "/home/b/.local/share/systemd/user"),
    ],
)
def test_units_of_users(place: str) -> None:
    files: dict[str, Entry] = {f"{place}/d.service": UNIT.format(D).encode(), D: SERVER}
    assert only(files).tier is Tier.A
    assert [unit.name for unit in scanned(files).units] == ["d.service (user)"]


def test_a_unit_that_one_user_masked_is_there_for_the_others() -> None:
    files: dict[str, Entry] = {
        "/usr/lib/systemd/user/d.service": UNIT.format(D).encode(),
        "/home/a/.config/systemd/user/d.service": Link("/dev/null"),
        D: SERVER,
    }
    assert only(files).tier is Tier.A


LARGE = b"#\n" * 600_000


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (f"{ETC}/d.service", UNIT.format(D).encode()),
        (f"{ETC}/d.service.d/a.conf", UNIT.format(D).encode()),
        ("/etc/cron.d/d", f"* * * * * root {D}\n".encode()),
        ("/etc/inetd.conf", f"x stream tcp nowait root {D}\n".encode()),
        ("/usr/share/dbus-1/services/d.service", b"[D-BUS Service]\nExec=/usr/sbin/d\n"),
        ("/etc/init.d/d", f"{D}\n".encode()),
    ],
)
def test_what_is_too_large_to_be_read_is_told(path: str, text: bytes) -> None:
    files: dict[str, Entry] = {f"{ETC}/d.service": b"[Service]\n", path: text + LARGE, D: SERVER}
    if path.startswith("/etc/init.d"):
        del files[f"{ETC}/d.service"]
    seen = scanned(files)
    assert [file.path for file in seen.unreadable] == [path]
    assert "more than the" in seen.unreadable[0].why


def test_directories_among_tables_are_no_tables() -> None:
    files: dict[str, Entry] = {"/var/spool/cron/crontabs/a": b"", "/etc/cron.d/x/y": b"", "/etc/xinetd.d/x/y": b""}
    assert scanned(files).unreadable == ()


def test_an_installation_of_flatpaks_hides_nothing_else() -> None:
    place, deployed = "/opt/flatpaks", "/opt/flatpaks/app/org.x.App/x86_64/stable/0a/files/bin"
    files: dict[str, Entry] = {
        "/etc/flatpak/installations.d/a.conf": f'[Installation "a"]\nPath={place}\n'.encode(),
        f"{place}/nc": SERVER,
        f"{deployed}/app": SERVER,
        f"{deployed}/root": program(SERVER.data, mode=0o4755),
        f"{deployed}/raw": program(elf(), xattrs={b"security.capability": CAP_NET_RAW}),
    }
    tiers = {path: entry.tier for path, entry in found(files).items() if entry.sha256}
    assert tiers == {f"{place}/nc": Tier.B, f"{deployed}/root": Tier.A, f"{deployed}/raw": Tier.A}
    assert scanned(files).flatpak_files == 3


def test_snaps() -> None:
    seeded = {"/var/lib/snapd/seed/snaps/firefox_1.snap": b"hsqs", "/snap/core22/current/x": b""}
    entries = found(seeded)
    assert set(entries) == {"/snap/firefox", "/snap/core22"}
    entry = entries["/snap/firefox"]
    assert (entry.tier, entry.package, kinds(entry)) == (Tier.B, "snap:firefox", {Kind.UNTOLD})
    assert {question.path for question in questions(scanned(seeded))} == {"/usr/bin/python3.13"}


@pytest.mark.parametrize(
    ("path", "more", "line"),
    [
        ("/srv/jail/usr/sbin/e", "RootDirectory=/srv/jail\n", "/usr/sbin/e"),
        ("/opt/x/e", "ExecSearchPath=/opt/y:/opt/x\n", "e"),
        ("/srv/jail/opt/x/e", "RootDirectory=/srv/jail/\nExecSearchPath=/opt/x\n", "e"),
        ("/opt/d/e", "", "/opt/%p/e"),
        ("/etc/d.service/e%", "", "%E/%n/e%%"),
    ],
)
def test_where_a_program_lies(path: str, more: str, line: str) -> None:
    files: dict[str, Entry] = {path: SERVER, f"{ETC}/d.service": (UNIT.format(line) + more).encode()}
    assert only(files).tier is Tier.A
    assert scanned(files).unfollowed == ()


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ("RootDirectory=/srv/jail\n", D),
        ("RootImage=/srv/jail.raw\n", "/usr/sbin/gone"),
        ("ExecSearchPath=/opt/x\n", "gone"),
        ("", "%h/gone"),
        ("", "/usr/lib/ld-linux-x86-64.so.2 --preload a.so gone"),
    ],
)
def test_a_program_that_cannot_be_told_is_told(more: str, line: str) -> None:
    linker = {"/usr/lib/ld-linux-x86-64.so.2": program(library("ld-linux-x86-64.so.2", (), ()))}
    seen = scanned(by_unit(UNIT.format(line) + more, **linker))
    assert [text.partition(": ")[2] for text in seen.unfollowed] == [line]


def test_a_program_that_is_not_there_starts_nothing() -> None:
    files = by_unit(UNIT.format("/usr/sbin/gone"), **{"/etc/init.d/x": b"/usr/sbin/gone\n"})
    assert scanned(files).unfollowed == ()


@pytest.mark.parametrize(
    ("line", "executes"),
    [
        ("--preload /opt/x/a.so /opt/x/prog --library-path /opt/x/a.so", True),
        ("--argv0 x --library-path /opt/x:/usr/lib /opt/x/prog", True),
        ("/usr/bin/sh -c 'exec /opt/x/prog'", False),
    ],
)
def test_what_the_dynamic_linker_runs(line: str, executes: bool) -> None:
    linker = "/usr/lib64/ld-linux-x86-64.so.2"
    files: dict[str, Entry] = {
        "/opt/x/a.so": library("a.so"),
        "/opt/x/prog": SERVER.data if executes else SERVER,
        f"{ETC}/d.service": UNIT.format(f"{linker} {line}").encode(),
    }
    assert found(files)["/opt/x/prog"].tier is Tier.A
    (unit,) = (unit for unit in scanned(files).units if unit.program == "/opt/x/prog")
    assert unit.executes == (linker if executes else "")


@pytest.mark.parametrize(
    "line",
    [
        "/usr/bin/unknown --run /usr/sbin/d -x",
        "/usr/bin/unknown --run=/usr/sbin/d",
        "/usr/bin/python3 /opt/keep.py /usr/sbin/d",
        "/bin/sh -c 'exec /usr/bin/unknown /usr/bin/true /usr/sbin/d'",
        "/bin/sh -c '" + "true; " * 300 + "exec /usr/sbin/d'",
        "/usr/bin/nice /usr/bin/unknown /usr/bin/sh -c d",
    ],
)
def test_a_server_among_the_words_of_a_command(line: str) -> None:
    tools = {**having("unknown", "nice"), "/opt/keep.py": b""}
    assert found(by_unit(UNIT.format(line), **tools))[D].tier is Tier.A


def test_what_is_among_the_words_and_no_server() -> None:
    """An interpreter, a client, and a server of a short command."""
    files = by_unit(
        UNIT.format("/usr/bin/unknown /usr/bin/nc /usr/bin/python3") + f"ExecStartPre=/usr/bin/unknown -f {D}\n",
        **{**having("unknown"), "/usr/bin/nc": program(elf(imports=("socket", "connect")))},
    )
    seen = scanned(files)
    assert {entry.tier for entry in seen.entries} == {Tier.B}
    assert seen.units == ()


@pytest.mark.parametrize(
    ("text", "tier"),
    [
        ("set -e\nmkdir -p /run/d\n/usr/sbin/d --foreground\n", Tier.A),
        ("/usr/sbin/d --foreground &\nwait $!\n", Tier.A),
        ("d -f & echo $! >/run/pid\ntrue\nexit 0\n", Tier.A),
        ("if [ -x /y ]; then\n  d -a\nelse\n  true -b\nfi\nexit 0\n", Tier.A),
        ("case $1 in\n  start)\n    d \\\n -a\n    ;;\n  stop)\n    true x\n    ;;\nesac\n", Tier.A),
        ("while sleep 1; do\n  d -a\n  sleep 1\ndone\n", Tier.A),
        ("main() {\n  true x\n  d -f\n}\nother() {\n  true x\n}\nmain $@\n", Tier.A),
        ("d --version\ntrue x\n", Tier.B),
        ("if d --version; then\n  true x\nfi\n", Tier.B),
        ("d --version\nif true; then\n  true x\nfi\n", Tier.B),
        ("d --version && true 2>&1\n# d\ntrue x\n", Tier.B),
    ],
)
def test_what_a_script_of_a_shell_stays_with(text: str, tier: Tier) -> None:
    script = program(f"#!/bin/sh\n{text}".encode())
    assert found(by_unit(UNIT.format("/opt/run.sh"), **{"/opt/run.sh": script}))[D].tier is tier


@given(
    st.text(max_size=300), st.lists(st.sampled_from(["fi", "}", "if x; then", "done", "a() {", "a", "esac", ";;"]))
)
def test_any_script_has_an_end(text: str, lines: list[str]) -> None:
    for script in (text, "\n".join(lines)):
        assert all(last_lines(script))


@pytest.mark.parametrize(
    "files",
    [
        {"/etc/inittab": b"# x\nid:3:initdefault:\nd:23:respawn:/usr/sbin/d -f\n"},
        {"/etc/inittab": b"::respawn:-/usr/sbin/d\n"},
        {"/etc/sv/d/run": program(b"#!/bin/sh\nexec /usr/sbin/d 2>&1\n")},
        {"/etc/xdg/autostart/d.desktop": b"[Desktop Entry]\nType=Application\nExec=/usr/sbin/d %U\n"},
    ],
)
def test_what_starts_programs_besides_units(files: dict[str, Entry]) -> None:
    assert found(files, {D: SERVER})[D].tier is Tier.A


@pytest.mark.parametrize(
    "files",
    [
        {"/etc/inittab": b"#d:23:respawn:/usr/sbin/d\nd:23:off:/usr/sbin/d\nid:3:initdefault:\n"},
        {"/etc/xdg/autostart/d.desktop": b"[Desktop Entry]\nExec=/usr/sbin/d\nHidden=true\n"},
        {"/etc/xdg/autostart/d.desktop": b"[Desktop Action x]\nExec=/usr/sbin/d\n"},
    ],
)
def test_what_is_not_started(files: dict[str, Entry]) -> None:
    assert found(files, {D: SERVER})[D].tier is Tier.B
