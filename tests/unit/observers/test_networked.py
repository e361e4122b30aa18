"""Networked programs, found in small images; each weakness alone."""

from __future__ import annotations

import struct
from collections.abc import Mapping

import pytest
from elf_builders import COMPUTED, LINKER, SOCKET, WRITE, elf, library, static
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_root import Directory, Entry, File, Gone, Link, program, root

from pytest_osgates.checks.apparmor_model import Kind, Networked, StaticScan, Tier
from pytest_osgates.observers.networked.scan import scan
from pytest_osgates.observers.networked.starters import simple_commands, unwrapped, wrappers

LIBC = library("libc.so.6", (), ())
BASE: dict[str, Entry] = {
    "/bin": Link("usr/bin"),
    "/lib": Link("usr/lib"),
    "/lib64": Link("usr/lib64"),
    "/usr/lib64/ld-linux-x86-64.so.2": program(library("ld-linux-x86-64.so.2", (), ())),
    "/usr/lib/x86_64-linux-gnu/libc.so.6": program(LIBC),
    "/usr/bin/true": program(elf()),
    "/usr/bin/sh": program(elf()),
    "/usr/bin/python3.13": program(elf(imports=("socket", "listen", "getaddrinfo"))),
    "/usr/bin/python3": Link("python3.13"),
    "/etc/ld.so.conf": b"include /etc/ld.so.conf.d/*.conf\n",
    "/etc/ld.so.conf.d/a.conf": b"/opt/shared # ours\n",
}
UNIT = "[Service]\nExecStart={}\n"


def scanned(*layers: Mapping[str, Entry]) -> StaticScan:
    return scan(root(BASE, *layers))


def found(*layers: Mapping[str, Entry]) -> dict[str, Networked]:
    """The entries that BASE alone has not."""
    return {entry.path: entry for entry in scanned(*layers).entries if entry.path != "/usr/bin/python3.13"}


def only(files: Mapping[str, Entry]) -> Networked:
    """The one entry that these files make."""
    (entry,) = found(files).values()
    return entry


def kinds(entry: Networked) -> set[Kind]:
    return {reason.kind for reason in entry.evidence}


def test_the_base_has_its_python_alone() -> None:
    seen = scanned()
    assert [entry.path for entry in seen.entries] == ["/usr/bin/python3.13"]
    assert seen.entries[0].tier is Tier.B
    assert (seen.elves, seen.unreadable) == (3, ())


@pytest.mark.parametrize(
    ("good", "twin"),
    [
        ("/usr/bin/nc", "/usr/bin/nc "),
        ("/usr/bin/nc", "/usr/bin/\x1b[0mnc"),
        ("/opt/a b/nc", "/opt/a  b/nc"),
        ("/usr/bin/nc\\x07", "/usr/bin/nc\x07"),
    ],
)
def test_a_name_that_would_be_written_as_that_of_another_cannot_be_told(good: str, twin: str) -> None:
    copy = program(elf(imports=("socket",)))
    seen = scanned({good: copy, twin: copy})
    assert [entry.path for entry in seen.entries if entry.path != "/usr/bin/python3.13"] == [good]
    why = f"its name cannot be written as it is: {twin!a}"
    assert [(file.path, file.why) for file in seen.unreadable] == [(good, why)]


# -- ELF -----------------------------------------------------------------------------------------------------------


def test_imports_of_its_own() -> None:
    entry = only({"/usr/bin/nc": program(elf(imports=("printf", "socket", "connect")))})
    assert (entry.path, entry.tier, kinds(entry)) == ("/usr/bin/nc", Tier.B, {Kind.IMPORTS})
    assert entry.evidence[0].detail == "connect, socket"


def test_what_cannot_be_run_does_not_count() -> None:
    assert found({"/usr/share/nc": elf(imports=("socket",))}) == {}


def test_a_listed_library_counts_for_who_links_it_himself_or_through_one_that_nobody_listed() -> None:
    files: dict[str, Entry] = {
        "/usr/lib/libcurl.so.4": library("libcurl.so.4", ("socket",)),
        "/usr/lib/libmine.so.1": library("libmine.so.1", (), ("libcurl.so.4", "libc.so.6")),
        "/usr/bin/direct": program(elf(("libcurl.so.4",))),
        "/usr/bin/indirect": program(elf(("libmine.so.1",))),
        "/usr/lib/libglib-2.0.so.0": library("libglib-2.0.so.0", (), ("libcurl.so.4",)),
        "/usr/bin/carried": program(elf(("libglib-2.0.so.0",))),
    }
    entries = found(files)
    assert kinds(entries["/usr/bin/direct"]) == {Kind.LINKS}
    assert kinds(entries["/usr/bin/indirect"]) == {Kind.LINKS}, "nobody knows what libmine is for"
    assert entries["/usr/bin/indirect"].evidence[0].detail == "libmine.so.1 -> libcurl.so.4: libcurl: URLs"
    assert entries["/usr/bin/carried"].tier is Tier.C, "somebody looked at libglib"


def test_a_library_that_nobody_listed_counts_and_a_carrier_does_not() -> None:
    files: dict[str, Entry] = {
        "/usr/lib/libselinux.so.1": library("libselinux.so.1", ("socket",)),
        "/opt/x/lib/libevil.so.1": library("libevil.so.1", ("socket",)),
        "/opt/x/lib/libthin.so.1": library("libthin.so.1", (), ("libevil.so.1",)),
        "/usr/bin/ls": program(elf(("libselinux.so.1",))),
        "/opt/x/bin/evil": program(elf(("libevil.so.1",), runpath="$ORIGIN/../lib")),
        "/opt/x/bin/thin": program(elf(("libthin.so.1",), rpath="${ORIGIN}/../lib")),
    }
    entries = found(files)
    assert entries["/usr/bin/ls"].tier is Tier.C
    assert kinds(entries["/opt/x/bin/evil"]) == {Kind.LINKS_UNLISTED}
    assert kinds(entries["/opt/x/bin/thin"]) == {Kind.LINKS_UNLISTED}, "rpath holds for what libraries need, too"


@pytest.mark.parametrize(
    ("path", "program_"),
    [
        ("/opt/shared/liba.so", elf(("liba.so",))),
        ("/usr/lib/x86_64-linux-gnu/liba.so", elf(("liba.so",))),
        ("/opt/a/glibc-hwcaps/x86-64-v3/liba.so", elf(("liba.so",), runpath="/opt/a")),
        ("/opt/a/lib/x86_64-linux-gnu/liba.so", elf(("liba.so",), runpath="/opt/a/$LIB")),
        ("/opt/deep/liba.so", elf(("/opt/link/liba.so",))),
        ("/somewhere/liba.so", elf(("liba.so",))),
    ],
)
def test_where_libraries_are_found(path: str, program_: bytes) -> None:
    files: dict[str, Entry] = {
        path: library("liba.so", ("socket",)),
        "/opt/link": Link("deep"),
        "/usr/bin/x": program(program_),
    }
    assert kinds(found(files)["/usr/bin/x"]) == {Kind.LINKS_UNLISTED}


def test_a_library_of_another_machine_is_passed_over() -> None:
    files: dict[str, Entry] = {
        "/opt/shared/liba.so": elf((), ("socket",), soname="liba.so", interpreter="", machine=183),
        "/usr/lib/liba.so": library("liba.so"),
        "/usr/bin/x": program(elf(("liba.so",))),
    }
    assert found(files) == {}


def test_what_is_preloaded_is_in_everything() -> None:
    files: dict[str, Entry] = {
        "/etc/ld.so.preload": b"/usr/lib/libspy.so\n",
        "/usr/lib/libspy.so": library("libspy.so", ("connect",)),
    }
    assert {"/usr/bin/true", "/usr/bin/sh"} <= set(found(files))


def test_a_library_that_is_loaded_by_name() -> None:
    files: dict[str, Entry] = {
        "/usr/lib/libplug.so.2": library("libplug.so.2", ("socket",)),
        "/usr/bin/a": program(elf(imports=("dlopen",), data=b"\0libcurl.so.4\0")),
        "/usr/bin/b": program(elf(imports=("dlopen",), data=b"\0libplug.so.2\0")),
        "/usr/bin/c": program(elf(imports=("dlopen",), data=b"\0libm.so.6\0")),
        "/usr/bin/d": program(elf(data=b"\0libcurl.so.4\0")),
    }
    entries = found(files)
    assert set(entries) == {"/usr/bin/a", "/usr/bin/b"}
    assert kinds(entries["/usr/bin/a"]) == {Kind.LOADS}


GO = b"\xff Go buildinf:" + bytes(18)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (static(SOCKET), Kind.SYSTEM_CALLS),
        (static(COMPUTED), Kind.UNTOLD),
        (static(COMPUTED, GO + b"runtime.main\0net.(*netFD).Read\0"), Kind.RUNTIME),
        (static(COMPUTED, GO + b"x.a\0"), Kind.UNTOLD),
        (static(WRITE, b"/rustc/0123/library/std/src/net/tcp.rs"), Kind.RUNTIME),
        (static(WRITE, machine=8), Kind.UNTOLD),
        (elf(imports=("getenv",), data=GO + b"runtime.main\0syscall.Socket\0"), Kind.RUNTIME),
        (elf(code=SOCKET), Kind.SYSTEM_CALLS),
        (
            elf(imports=("syscall",), code=b"\xbf\x29\0\0\0\xbe\x02\0\0\0\xba\x01\0\0\0\xe8\0\0\0\0"),
            Kind.SYSTEM_CALLS,
        ),
        (elf(imports=("syscall",), code=b"\x89\xce\xbf\x29\0\0\0\xe8\0\0\0\0"), Kind.SYSTEM_CALLS),
    ],
)
def test_programs_that_call_the_kernel_themselves(data: bytes, kind: Kind) -> None:
    entry = only({"/opt/x": program(data)})
    assert kind in kinds(entry)
    assert entry.tier is Tier.B


@pytest.mark.parametrize(
    "data",
    [
        static(WRITE),
        static(COMPUTED, GO + b"runtime.main\0os.Open\0"),
        static(WRITE, b"/rustc/0123/library/std/src/fs.rs"),
        elf(imports=("syscall",), code=b"\xbf\x29\0\0\0\xe8\0\0\0\0"),
    ],
)
def test_programs_that_do_not(data: bytes) -> None:
    assert found({"/opt/x": program(data)}) == {}


def test_what_libc_does_is_not_what_programs_do_and_who_calls_himself_libc_is_a_program() -> None:
    own = elf((), (), soname="libc.so.6", interpreter=LINKER, code=SOCKET)
    files: dict[str, Entry] = {
        "/usr/lib/x86_64-linux-gnu/libc.so.6": program(own),
        "/opt/pretender": program(own),
    }
    assert set(found(files)) == {"/opt/pretender"}


def test_an_interpreter_that_is_no_linker() -> None:
    files: dict[str, Entry] = {
        "/opt/lib/own.so": program(static(SOCKET)),
        "/opt/x": program(elf((), interpreter="/opt/lib/own.so", dynamic=False)),
    }
    assert kinds(found(files)["/opt/x"]) == {Kind.UNTOLD}


def test_a_broken_program_is_told() -> None:
    seen = scanned({"/usr/bin/odd": program(elf()[:-40]), "/usr/bin/bad": program(elf(), broken=True)})
    assert {file.path for file in seen.unreadable} == {"/usr/bin/odd", "/usr/bin/bad"}


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_hostile_program_is_told_or_looked_at(data: st.DataObject) -> None:
    raw = bytearray(elf(("libcurl.so.4",), ("socket", "dlopen"), data=b"\0libssl.so.3\0"))
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(st.integers(4, len(raw) - 1))] = data.draw(st.integers(0, 255))
    seen = scanned({"/usr/bin/x": program(bytes(raw))})
    assert seen.elves + len(seen.unreadable) == 4


# -- names and bytes -----------------------------------------------------------------------------------------------


def test_copies_and_hard_links_are_entries_of_their_own() -> None:
    curl = elf(("libcurl.so.4",))
    files: dict[str, Entry] = {
        "/usr/bin/curl": program(curl),
        "/usr/bin/hard": File(link="/usr/bin/curl"),
        "/opt/holiday-photos": program(curl),
        "/opt/link": Link("/usr/bin/curl"),
    }
    entries = found(files)
    assert set(entries) == {"/usr/bin/curl", "/usr/bin/hard", "/opt/holiday-photos"}
    assert entries["/opt/holiday-photos"].same == ("/usr/bin/curl", "/usr/bin/hard")
    assert len({entry.sha256 for entry in entries.values()}) == 1


def test_the_upper_layer_counts() -> None:
    lower: dict[str, Entry] = {"/usr/bin/nc": program(elf(imports=("socket",)))}
    assert found(lower, {"/usr/bin/nc": Gone()}) == {}
    assert found(lower, {"/usr/bin/nc": program(elf())}) == {}
    assert set(found(lower, {"/usr/bin": Directory()})) == {"/usr/bin/nc"}


def test_packages() -> None:
    files: dict[str, Entry] = {
        "/usr/bin/nc": program(elf(imports=("socket",))),
        "/var/lib/dpkg/status": b"Package: netcat\nStatus: install ok installed\nVersion: 1\nArchitecture: all\n\n",
        "/var/lib/dpkg/info/netcat.list": b"/bin/nc\n",
    }
    assert only(files).package == "dpkg:netcat"


# -- tier A --------------------------------------------------------------------------------------------------------

# linux/capability.h, struct vfs_cap_data: revision 2 and the effective bit; permitted: CAP_NET_RAW, bit 13.
NET_RAW = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)
CHOWN = struct.pack("<IIIII", 0x02000001, 1, 0, 0, 0)


def test_file_capabilities() -> None:
    capability = {b"security.capability": NET_RAW}
    entry = only({"/usr/bin/ping": program(elf(), xattrs=capability)})
    assert (entry.tier, kinds(entry)) == (Tier.A, {Kind.FILE_CAPABILITY})
    assert entry.evidence[0].detail == "cap_net_raw"
    assert entry.sha256
    assert found({"/usr/bin/x": program(elf(), xattrs={b"security.capability": CHOWN})}) == {}
    broken = scanned({"/usr/bin/x": program(elf(), xattrs={b"security.capability": b"\1"})})
    assert [file.path for file in broken.unreadable] == ["/usr/bin/x"]


def test_set_uid() -> None:
    entry = only({"/usr/bin/x": program(elf(imports=("socket",)), 0o4755)})
    assert (entry.tier, kinds(entry)) == (Tier.A, {Kind.IMPORTS, Kind.SETUID})
    assert found({"/usr/bin/su": program(elf(), 0o4755)}) == {}


SERVER = program(elf(imports=("socket", "listen", "getaddrinfo")))
ACTIVATED = {
    "/usr/lib/systemd/system/x.socket": b"[Socket]\nListenStream=[::]:8080\n",
    "/usr/lib/systemd/system/x.service": UNIT.format("/usr/bin/handed").encode(),
    "/usr/bin/handed": program(elf()),
}


def test_a_socket_activated_service() -> None:
    """Its program may import nothing at all."""
    entry = only(ACTIVATED)
    assert (entry.path, entry.tier, kinds(entry)) == ("/usr/bin/handed", Tier.A, {Kind.SOCKET_UNIT})
    local = ACTIVATED | {"/usr/lib/systemd/system/x.socket": b"[Socket]\nListenStream=/run/x\n"}
    assert found(local) == {}


@pytest.mark.parametrize(
    ("socket", "service"),
    [
        (b"[Socket]\nListenDatagram=53\nService=y.service\n", "y.service"),
        (b"[Socket]\nListenStream=22\nAccept=yes\n", "x@.service"),
    ],
)
def test_services_of_sockets(socket: bytes, service: str) -> None:
    files: dict[str, Entry] = {
        "/usr/lib/systemd/system/x.socket": socket,
        f"/etc/systemd/system/{service}": UNIT.format("-/bin/handed -i").encode(),
        "/usr/bin/handed": program(elf()),
    }
    assert only(files).tier is Tier.A


@pytest.mark.parametrize(
    ("more", "tier"),
    [
        ("", Tier.A),
        ("Type=oneshot\n", Tier.B),
        ("PrivateNetwork=yes\n", Tier.B),
        ("RestrictAddressFamilies=AF_UNIX AF_NETLINK\n", Tier.B),
        ("RestrictAddressFamilies=AF_UNIX\nRestrictAddressFamilies=AF_INET\n", Tier.A),
        ("RestrictAddressFamilies=~AF_PACKET\n", Tier.A),
        ("RestrictAddressFamilies=~AF_INET AF_INET6 AF_PACKET\n", Tier.B),
        ("RestrictAddressFamilies=none\n", Tier.B),
        ("PrivateNetwork=no\n", Tier.A),
    ],
)
def test_a_service_that_listens(more: str, tier: Tier) -> None:
    unit = UNIT.format("/usr/bin/server") + more + "AppArmorProfile=server\n"
    files: dict[str, Entry] = {"/usr/lib/systemd/system/s.service": unit.encode(), "/usr/bin/server": SERVER}
    assert only(files).tier is tier
    (started,) = scanned(files).units
    assert (started.program, started.apparmor_profile) == ("/usr/bin/server", "server")


@pytest.mark.parametrize(
    ("name", "timer", "tier"),
    [
        ("s.timer", b"[Timer]\nOnUnitActiveSec=5min\n", Tier.A),
        ("t.timer", b"[Timer]\nOnUnitActiveSec=5min\nUnit=s.service\n", Tier.A),
        ("t.timer", b"[Timer]\nOnUnitActiveSec=5min\n", Tier.B),
    ],
)
def test_a_short_service_that_comes_again(name: str, timer: bytes, tier: Tier) -> None:
    files: dict[str, Entry] = {
        "/usr/lib/systemd/system/s.service": (UNIT.format("/usr/bin/server") + "Type=oneshot\n").encode(),
        f"/etc/systemd/system/{name}": timer,
        "/usr/bin/server": SERVER,
    }
    assert only(files).tier is tier


def test_what_is_executed_for_a_script_that_is_read() -> None:
    files: dict[str, Entry] = {
        "/usr/lib/systemd/system/r.service": UNIT.format("/usr/bin/python3 /opt/app.py").encode(),
        "/usr/lib/systemd/system/s.service": UNIT.format("/opt/app.py").encode(),
        "/opt/app.py": program(b"#!/usr/bin/python3\nimport socket\n"),
    }
    units = {(unit.name, unit.executes) for unit in scanned(files).units if unit.program == "/opt/app.py"}
    assert units == {("r.service", "/usr/bin/python3.13"), ("s.service", "")}


def test_a_module_that_serves() -> None:
    unit = UNIT.format("/usr/bin/python3 -m http.server 8000").encode()
    seen = {entry.path: entry for entry in scanned({"/etc/systemd/system/web.service": unit}).entries}
    assert seen["/usr/bin/python3.13"].tier is Tier.A
    harmless = UNIT.format("/usr/bin/python3 -m json.tool").encode()
    files: dict[str, Entry] = {
        "/etc/systemd/system/j.service": harmless,
        "/usr/lib/python3.13/json/tool.py": b"import sys",
    }
    assert {entry.tier for entry in scanned(files).entries} == {Tier.B}


def test_what_the_dynamic_linker_is_given() -> None:
    unit = UNIT.format(f"{LINKER} --library-path /opt /opt/server").encode()
    files: dict[str, Entry] = {"/etc/systemd/system/l.service": unit, "/opt/server": File(SERVER.data, 0o644)}
    entry = only(files)
    assert (entry.path, entry.tier) == ("/opt/server", Tier.A)


def test_an_applet_that_serves() -> None:
    busybox = program(elf(imports=("socket", "listen", "getaddrinfo")))
    for words, tier in (("httpd -f", Tier.A), ("syslogd -n", Tier.B)):
        unit = UNIT.format(f"/bin/busybox {words}").encode()
        assert only({"/etc/systemd/system/b.service": unit, "/usr/bin/busybox": busybox}).tier is tier


def test_what_a_shell_is_given() -> None:
    unit = UNIT.format("/bin/sh -c 'exec nc -l 1234 | cat'").encode()
    assert only({"/etc/systemd/system/n.service": unit, "/usr/bin/nc": SERVER}).tier is Tier.A


def test_a_script_that_is_not_executable_but_started() -> None:
    files: dict[str, Entry] = {
        "/etc/systemd/system/s.service": UNIT.format("/usr/bin/python3 -u /opt/app/main.py").encode(),
        "/opt/app/main.py": b"import socket\n",
    }
    entry = only(files)
    assert (entry.path, entry.tier) == ("/opt/app/main.py", Tier.A)


APP = {"/srv/x.py": b"import socket\n"}


@pytest.mark.parametrize(
    "line",
    [
        "/usr/bin/env python3 /srv/x.py",
        "/usr/bin/env -u A B=c /usr/bin/python3 -u /srv/x.py",
        "@/usr/bin/python3 python3 /srv/x.py",
        "/usr/bin/python3 -W ignore /srv/x.py",
        "/usr/bin/setpriv --reuid nobody -- /usr/bin/nice -n 5 python3 /srv/x.py",
        "/usr/bin/timeout -k 5 10 python3 /srv/x.py",
        "/bin/sh -c 'exec python3 /srv/x.py'",
        "/bin/sh -c 'A=1; cd / && exec env python3 /srv/x.py'",
        "/usr/bin/env -S 'python3 /srv/x.py'",
    ],
)
def test_a_script_behind_what_only_runs_others(line: str) -> None:
    tools = {f"/usr/bin/{name}": program(elf()) for name in ("env", "nice", "setpriv", "timeout")}
    files: dict[str, Entry] = {**APP, **tools, "/etc/systemd/system/s.service": UNIT.format(line).encode()}
    entry = only(files)
    assert (entry.path, entry.tier) == ("/srv/x.py", Tier.A)
    (unit,) = (unit for unit in scanned(files).units if unit.program == "/srv/x.py")
    assert unit.executes == "/usr/bin/python3.13"


@pytest.mark.parametrize("line", ["/bin/sh -c 'exec /usr/sbin/food'", "/usr/bin/nice /usr/sbin/food -n"])
def test_a_daemon_behind_what_only_runs_others(line: str) -> None:
    tools = {"/usr/bin/nice": program(elf())}
    unit = {"/etc/systemd/system/s.service": UNIT.format(line).encode()}
    assert only({**tools, **unit, "/usr/sbin/food": SERVER}).tier is Tier.A


@pytest.mark.parametrize(
    ("text", "tier"),
    [
        ("set -e\nexec /usr/sbin/food -x\n", Tier.A),
        ("if true; then exec nice food; fi\n", Tier.A),
        # It is only called, exec is of a descriptor, or a comment.
        ("/usr/sbin/food --version\nexec 3</usr/sbin/food\n# exec food\n", Tier.B),
    ],
)
def test_what_a_script_of_a_shell_becomes(text: str, tier: Tier) -> None:
    for line, script in (("/opt/run", program(f"#!/bin/sh\n{text}".encode())), ("/bin/sh /opt/run", text.encode())):
        files: dict[str, Entry] = {
            "/usr/bin/nice": program(elf()),
            "/usr/sbin/food": SERVER,
            "/opt/run": script,
            "/etc/systemd/system/s.service": UNIT.format(line).encode(),
        }
        assert found(files)["/usr/sbin/food"].tier is tier, line


@pytest.mark.parametrize(
    "line", ["/bin/sh -c '$SERVER -d'", "/bin/sh -c '/opt/gone'", "/usr/bin/python3 x.py", "/bin/sh %h/x"]
)
def test_what_cannot_be_followed_is_told(line: str) -> None:
    seen = scanned({"/etc/systemd/system/s.service": UNIT.format(line).encode()})
    assert len(seen.unfollowed) == 1
    assert seen.unfollowed[0].startswith("s.service: ")


@pytest.mark.parametrize(
    ("imports", "needed", "tier"),
    [
        (("socket", "bind", "recvfrom", "inet_pton"), (), Tier.A),
        # Netlink is bound, too; and who shows addresses is no server for that.
        (("socket", "bind", "getaddrinfo"), (), Tier.B),
        (("g_socket_listener_add_inet_port",), ("libgio-2.0.so.0",), Tier.A),
        (("g_file_new_for_path",), ("libgio-2.0.so.0",), Tier.B),
        (("evconnlistener_new_bind",), ("libevent-2.1.so.7",), Tier.A),
        (("_ZN10QTcpServer6listenERK12QHostAddresst",), ("libQt6Network.so.6",), Tier.A),
    ],
)
def test_servers_that_call_no_listen_of_their_own(
    imports: tuple[str, ...], needed: tuple[str, ...], tier: Tier
) -> None:
    unit = {"/etc/systemd/system/s.service": UNIT.format("/usr/bin/d").encode()}
    assert only({**unit, "/usr/bin/d": program(elf(needed, imports))}).tier is tier


@pytest.mark.parametrize(
    "files",
    [
        {"/etc/crontab": b"# m h\n*/5 * * * * root /usr/sbin/food -x\n"},
        {"/etc/cron.d/x": b"PATH=/bin\n@reboot root cd / && food % input\n"},
        {"/var/spool/cron/crontabs/a": b"1-5 0 * jan mon exec /usr/sbin/food\n"},
        {"/usr/share/dbus-1/system-services/x.service": b"[D-BUS Service]\nName=x\nExec=/usr/sbin/food --bus\n"},
        {"/etc/init.d/food": program(b"#!/bin/sh\nDAEMON=/usr/sbin/food\nstart-stop-daemon --exec $DAEMON\n")},
    ],
)
def test_other_starters_than_units(files: dict[str, Entry]) -> None:
    entries = found(files, {"/usr/sbin/food": SERVER})
    assert entries["/usr/sbin/food"].tier is Tier.A


@pytest.mark.parametrize(
    "files",
    [
        {"/etc/crontab": b"#*/5 * * * * root /usr/sbin/food -x\nMAILTO=/usr/sbin/food\n"},
        {"/usr/share/dbus-1/system-services/x.service": b"[D-BUS Service]\nExec=/usr/sbin/food\nSystemdService=x\n"},
        {
            "/etc/init.d/food": program(b"#!/bin/sh\nDAEMON=/usr/sbin/food\n"),
            "/etc/systemd/system/food.service": Link("/dev/null"),
        },
    ],
)
def test_what_starts_nothing(files: dict[str, Entry]) -> None:
    assert found(files, {"/usr/sbin/food": SERVER})["/usr/sbin/food"].tier is Tier.B


@pytest.mark.parametrize(
    ("more", "alone"),
    [
        ("", False),
        ("NoNewPrivileges=yes\n", True),
        ("DynamicUser=1\n", True),
        ("SystemCallFilter=@system-service\n", False),
        ("SystemCallFilter=@system-service\nUser=nobody\n", True),
        ("SystemCallFilter=@system-service\nUser=root\n", False),
        ("RestrictRealtime=no\nUser=nobody\n", False),
    ],
)
def test_units_whose_processes_gain_nothing(more: str, alone: bool) -> None:
    unit = {"/etc/systemd/system/s.service": (UNIT.format("/usr/bin/server") + more).encode()}
    (started,) = scanned({**unit, "/usr/bin/server": SERVER}).units
    assert started.no_new_privileges is alone


@given(st.text(max_size=300), st.lists(st.text(max_size=12), max_size=8))
def test_any_command_line_is_followed(text: str, words: list[str]) -> None:
    assert all(all(command) for command in simple_commands(text))
    assert all(unwrapped((name, *words)).words for name in wrappers())
    assert unwrapped(("cat", *words)).words == ("cat", *words)


def test_inetd() -> None:
    files: dict[str, Entry] = {
        "/etc/inetd.conf": b"# old\nfinger stream tcp nowait nobody /usr/sbin/tcpd /usr/sbin/in.fingerd\n",
        "/usr/sbin/tcpd": program(elf()),
        "/usr/sbin/in.fingerd": program(elf()),
    }
    assert (only(files).path, only(files).tier) == ("/usr/sbin/in.fingerd", Tier.A)


def test_flatpaks() -> None:
    top = "/var/lib/flatpak/app/org.x.App/x86_64/stable/0a"
    files: dict[str, Entry] = {
        f"{top}/metadata": b"[Application]\nname=org.x.App\n[Context]\nshared=network;ipc;\n",
        f"{top}/files/bin/app": program(elf(imports=("socket",))),
    }
    entry = only(files)
    assert (entry.path, entry.package, kinds(entry)) == (top, "flatpak:org.x.App", {Kind.FLATPAK})
    assert scanned(files).flatpak_files == 1
    quiet = files | {f"{top}/metadata": b"[Context]\nshared=ipc;\n"}
    assert only(quiet).tier is Tier.C
    given = quiet | {"/var/lib/flatpak/overrides/global": b"[Context]\nshared=network;\n"}
    assert only(given).tier is Tier.B
    assert kinds(only(files | {f"{top}/metadata": b"\0["})) == {Kind.UNTOLD}
