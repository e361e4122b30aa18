"""The script that asks a guest for its settings, really run by a shell, over a directory that stands for its root."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from gate_samples import HOSTILE
from local_shell import LocalShell

from pytest_osgates.checks.settings.demand import Questions
from pytest_osgates.checks.settings.facts import SettingsObservation, SysctlFact, TextFact, UnitFact
from pytest_osgates.model import State
from pytest_osgates.observers import settings
from pytest_osgates.observers.settings.answers import read
from pytest_osgates.observers.settings.script import MAX_CONTENT, build
from pytest_osgates.vm.errors import ChannelError

NONCE = "0123456789abcdef"
# Each test asks with the first, which is Debian's sh; those of which much depends on the shell, with all.
SHELLS = [path for path in ("/bin/dash", "/bin/bash", "/bin/busybox") if Path(path).exists()]
Ask = Callable[..., SettingsObservation]

SYSTEMCTL = r"""#!/bin/sh
case $* in
    is-enabled*' gone@.service') echo "Failed to get unit file state for gone@.service: No such file or directory" >&2
        exit 1 ;;
    is-enabled*' wait@.service') echo masked; exit 1 ;;
    is-enabled*) echo not-found; exit 4 ;;
esac
first=1
while [ "$1" != -- ]; do shift; done
shift
for unit; do
    [ "$first" = 1 ] || echo
    first=
    case $unit in
        ssh.service) load=loaded state=disabled ;;
        'odd\x2d$(touch BAD).service') load=loaded state=static ;;
        *) load=not-found state= ;;
    esac
    printf 'Id=%s\nLoadState=%s\nActiveState=inactive\nUnitFileState=%s\nFragmentPath=\n' "$unit" $load "$state"
    printf 'WantedBy=a.target b.target\nRequiredBy=\n'
done
"""
DPKG = r"""#!/bin/sh
[ "$1 $2" = '-W -f=${Package}\t${Version}\t${Architecture}\t${Status}\n' ] || exit 9
printf 'nftables\t1.0.6-2\tamd64\tinstall ok installed\nold\t1\tall\tdeinstall ok config-files\n'
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The guest's root directory."""
    path = tmp_path / "root of the guest"
    path.mkdir()
    return path


def write(root: Path, name: str, text: str | bytes = "", mode: int = 0o644) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    path.chmod(mode)
    return path


every_shell = pytest.mark.parametrize("ask", SHELLS, indirect=True)


@pytest.fixture
def ask(request: pytest.FixtureRequest, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Asks with one of the shells; programs of the guest are those in `bin`, before the host's."""
    programs = tmp_path / "bin"
    programs.mkdir()

    def run(questions: Questions, **commands: str) -> SettingsObservation:
        for name, text in commands.items():
            write(programs, name.replace("_", "-"), text, 0o755)
        script = build(questions, nonce=NONCE, directory=str(tmp_path / "scratch"), root=str(root))
        path = getattr(request, "param", SHELLS[0])
        shell = [path, "sh"] if path.endswith("busybox") else [path]
        done = subprocess.run(
            [*shell, "-c", script],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=30,
            check=False,
            env={"PATH": f"{programs}:{os.environ['PATH']}"},
            cwd=tmp_path,
        )
        assert done.stderr == b""
        assert not list(tmp_path.rglob("BAD")), "something that was only to be read has been run"
        seen = settings.facts(read(done.stdout), questions, State.LIVE, str(root))
        return SettingsObservation.model_validate_json(seen.model_dump_json())

    return run


def names(*values: str) -> dict[str, None]:
    return dict.fromkeys(values)


@every_shell
def test_sysctls(ask: Ask, root: Path) -> None:
    write(root, "proc/sys/kernel/x", "2\n")
    write(root, "proc/sys/net/ipv4/conf/eth0.1/rp_filter", "1\n")
    write(root, "proc/sys/kernel/text", "|/bin/false %p\n")
    write(root, "proc/sys/kernel/lines", "one\ntwo\t3\n")
    write(root, "proc/sys/kernel/hollow", "\n")
    write(root, "proc/sys/kernel/forger", "x\nkernel/x:7\x0bkernel/x:8\n")
    write(root, "proc/sys/kernel/silent", "")
    wanted = {
        "kernel/forger": SysctlFact(value="x kernel/x:7 kernel/x:8"),
        "kernel/x": SysctlFact(value="2"),
        "net/ipv4/conf/eth0.1/rp_filter": SysctlFact(value="1"),
        "kernel/text": SysctlFact(value="|/bin/false %p"),
        "kernel/lines": SysctlFact(value="one two 3"),
        "kernel/hollow": SysctlFact(value=""),
        "kernel/absent": SysctlFact(),
        "kernel/silent": SysctlFact(problem="/proc/sys/kernel/silent cannot be read"),
    }
    assert ask(Questions(sysctls=names(*wanted))).sysctls == wanted


def test_one_sysctl_alone(ask: Ask, root: Path) -> None:
    write(root, "proc/sys/kernel/x", "2\n")
    assert ask(Questions(sysctls=names("kernel/x"))).sysctls == {"kernel/x": SysctlFact(value="2")}


def test_command_line_and_lockdown(ask: Ask, root: Path) -> None:
    write(root, "proc/cmdline", 'a="b c" quiet\n')
    write(root, "sys/kernel/security/lockdown", "none [integrity] confidentiality\n")
    seen = ask(Questions(command_line=True, lockdown=True))
    assert seen.command_line == TextFact(text='a="b c" quiet\n')
    assert seen.lockdown == TextFact(text="none [integrity] confidentiality")


def test_without_securityfs_nothing_is_known_of_lockdown(ask: Ask, root: Path) -> None:
    seen = ask(Questions(command_line=True, lockdown=True))
    assert seen.command_line == TextFact()
    assert seen.lockdown is not None
    assert "securityfs is not mounted" in seen.lockdown.problem
    write(root, "sys/kernel/security/lsm", "yama")
    assert ask(Questions(lockdown=True)).lockdown == TextFact()


@every_shell
def test_units(ask: Ask, root: Path) -> None:
    for directory in ("etc/systemd/system", "usr/lib/systemd/system"):
        for target in ("multi-user.target.wants", "rescue.target.requires", "x.target.wants"):
            (root / directory / target).mkdir(parents=True)
    (root / "etc/systemd/system/multi-user.target.wants/ssh.service").symlink_to("../ssh.service")
    (root / "usr/lib/systemd/system/rescue.target.requires/ssh.service").symlink_to("/usr/lib/x")
    # Taken back by a link to nothing in a directory that comes first.
    (root / "etc/systemd/system/x.target.wants/ssh.service").symlink_to("/dev/null")
    (root / "usr/lib/systemd/system/x.target.wants/ssh.service").symlink_to("../ssh.service")
    odd = "odd\\x2d$(touch BAD).service"
    units = ("ssh.service", "wait@.service", odd, "nosuch.service", "gone@.service", "newer@.service")
    found = ask(Questions(units=names(*units)), systemctl=SYSTEMCTL).units
    wants = ("a.target", "b.target")
    assert found["ssh.service"] == UnitFact(
        id="ssh.service",
        load="loaded",
        active="inactive",
        file_state="disabled",
        wanted_by=wants,
        links=("multi-user.target", "rescue.target"),
    )
    assert found[odd] == UnitFact(id=odd, load="loaded", active="inactive", file_state="static", wanted_by=wants)
    assert found["nosuch.service"].load == "not-found"
    assert found["wait@.service"] == UnitFact(load="masked", file_state="masked")
    assert found["gone@.service"] == found["newer@.service"] == UnitFact(load="not-found")


@pytest.mark.parametrize("systemctl", ["#!/bin/sh\nexit 1\n", "#!/bin/sh\necho Id=a.service\n"])
def test_units_of_which_systemctl_says_too_little(ask: Ask, systemctl: str) -> None:
    found = ask(Questions(units=names("a.service", "b.service", "c@.service")), systemctl=systemctl).units
    assert all(fact.problem for fact in found.values())


@every_shell
def test_files(ask: Ask, root: Path) -> None:
    odd = '/etc/it\'s $(touch BAD) `touch BAD`; "*" \\ é'
    write(root, odd[1:], "x", 0o4711)
    write(root, "etc/plain", "PermitRootLogin no\n", 0o600)
    (root / "etc/link").symlink_to("plain")
    (root / "etc/nowhere").symlink_to("../gone/gone")
    (root / "etc/hollow").mkdir()
    (root / "etc/full").mkdir(mode=0o755)
    write(root, "etc/full/.hidden", "")
    questions = Questions()
    for path in (odd, "/etc/plain", "/etc/link"):
        questions.file(path).content = True
    for path in ("/etc/hollow", "/etc/full", "/etc/plain"):
        questions.file(path).empty = True
    for path in ("/etc/nowhere", "/etc/absent", "/etc/plain/below"):
        questions.file(path)
    found = ask(questions).files
    own = found[odd].own
    assert own is not None
    assert (own.type, own.mode, own.uid, own.size) == ("file", 0o4711, os.getuid(), 1)
    assert found[odd].content == TextFact(text="x")
    link = found["/etc/link"]
    assert link.own is not None
    assert link.target is not None
    assert (link.own.type, link.target.type, link.target.mode) == ("symlink", "file", 0o600)
    assert (link.link, link.leads_to) == ("plain", "/etc/plain")
    assert link.content == found["/etc/plain"].content == TextFact(text="PermitRootLogin no\n")
    assert found["/etc/nowhere"].own is not None
    assert found["/etc/nowhere"].target is None
    assert found["/etc/nowhere"].link == "../gone/gone"
    assert [found[path].empty for path in ("/etc/hollow", "/etc/full", "/etc/plain")] == [True, False, False]
    assert found["/etc/absent"].own is None
    assert found["/etc/plain/below"].own is None
    assert not any(fact.problem for fact in found.values())


def test_a_file_that_is_too_large_is_not_half_read(ask: Ask, root: Path) -> None:
    write(root, "etc/just", b"x" * MAX_CONTENT)
    write(root, "etc/large", b"x" * (MAX_CONTENT + 1))
    (root / "etc/directory").mkdir()
    os.mkfifo(root / "etc/fifo")
    questions = Questions()
    for name in ("just", "large", "directory", "fifo"):
        questions.file(f"/etc/{name}").content = True
    found = ask(questions).files
    assert found["/etc/just"].content == TextFact(text="x" * MAX_CONTENT)
    assert found["/etc/large"].content == TextFact(problem=f"it is larger than {MAX_CONTENT} bytes")
    for name in ("directory", "fifo"):
        assert found[f"/etc/{name}"].content == TextFact(problem="it is no regular file")


def test_hashes_of_passwords_do_not_leave_the_guest(ask: Ask, root: Path) -> None:
    write(root, "etc/shadow", "root:$6$SECRET:1::::::\n", 0o600)
    (root / "etc/innocent").symlink_to("shadow")
    questions = Questions(accounts=True)
    questions.file("/etc/innocent").content = True
    seen = ask(questions)
    assert "SECRET" not in seen.model_dump_json()
    content = seen.files["/etc/innocent"].content
    assert content is not None
    assert "no gate reads" in content.problem


def test_content_can_forge_nothing(ask: Ask, root: Path) -> None:
    forged = (
        b"\0001\0end\0" + b"5\0blob\0content:/etc/b\0000\0001\0x" + HOSTILE.encode() + b"\xff\n3\0link\0/etc/b\0/x\0"
    )
    write(root, "etc/a", forged)
    write(root, "etc/b", "true")
    questions = Questions()
    questions.file("/etc/a").content = questions.file("/etc/b").content = True
    found = ask(questions).files
    assert found["/etc/a"].content == TextFact(text=forged.decode("utf-8", "replace"))
    assert found["/etc/b"].content == TextFact(text="true")
    assert found["/etc/b"].link == ""


CAPABILITY = "0100000200200000000000000000000000000000"
TOOLS = {
    "python3": {"python3": f"#!/bin/sh\necho {CAPABILITY}\necho errno 61\necho errno 13\necho zz\n"},
    "perl": {
        "python3": "#!/bin/sh\nexit 1\n",
        "perl": f"#!/bin/sh\necho {CAPABILITY}\necho errno 61\necho errno 13\necho zz\n",
    },
    "getfattr": {
        "python3": "#!/bin/sh\nexit 1\n",
        "perl": "#!/bin/sh\nexit 1\n",
        "getfattr": f"""#!/bin/sh
for last; do :; done
case $last in
    */a) printf '# file: %s\\nsecurity.capability=0x{CAPABILITY}\\n\\n' "$last" ;;
    */b) echo "$last: security.capability: No such attribute" >&2; exit 1 ;;
    */c) echo "$last: security.capability: Permission denied" >&2; exit 1 ;;
    */d) printf 'security.capability=0x00\\n' ;;
esac
""",
    },
}


@pytest.mark.parametrize("tool", TOOLS)
def test_capabilities_by_each_tool(ask: Ask, root: Path, tool: str) -> None:
    questions = Questions()
    for name in "abcd":
        write(root, f"bin/{name}")
        questions.file(f"/bin/{name}").capabilities = True
    found = [fact.capabilities for fact in ask(questions, **TOOLS[tool]).files.values()]
    assert [fact and fact.text for fact in found] == ["cap_net_raw=ep", "none", "", ""]
    assert [bool(fact and fact.problem) for fact in found] == [False, False, True, True]
    assert found[0] is not None
    assert found[0].by == tool


@pytest.mark.skipif(shutil.which("perl") is None, reason="perl is not installed")
def test_capabilities_of_real_files_by_the_programs_of_this_host(ask: Ask, root: Path) -> None:
    """None has any, but the question reached the kernel: a missing file is another answer."""
    write(root, "bin/it's", "")
    questions = Questions()
    questions.file("/bin/it's").capabilities = True
    for commands in ({}, {"python3": "#!/bin/sh\nexit 1\n"}):
        fact = ask(questions, **commands).files["/bin/it's"].capabilities
        assert fact is not None
        assert (fact.text, fact.problem) == ("none", "")
        assert fact.by == ("perl" if commands else "python3")


MOUNTS = b"""22 1 0:20 / / rw,noatime shared:1 - overlay overlay rw,lowerdir=/a\\040b
23 22 0:21 / /it\\040is\\134here rw,nosuid shared:2 master:1 - tmpfs none rw,size=10k
"""


def test_mounts(ask: Ask, root: Path) -> None:
    write(root, "proc/self/mountinfo", MOUNTS)
    fact = ask(Questions(mounts=True)).mounts
    assert fact is not None
    assert [(m.id, m.parent, m.path, m.type) for m in fact.mounts] == [
        (22, 1, "/", "overlay"),
        (23, 22, "/it is\\here", "tmpfs"),
    ]
    assert fact.mounts[0].super_options == ("rw", "lowerdir=/a b")


@every_shell
def test_accounts(ask: Ask, root: Path) -> None:
    write(
        root,
        "etc/passwd",
        "root:x:0:0:root:/root:/bin/sh\nold::1:1::/:/x\nodd:$1$x:2:2::/:\n+::::::\nnew:x:3:3::/:\n",
    )
    write(root, "etc/group", "root:x:0:\nwheel:x:10:root,new\n")
    write(root, "etc/shadow", "root:!$6$x:1:0:::::\nnew:$6$y:0::::::\n", 0o600)
    getent = """#!/bin/sh
case $1 in
    passwd) cat <<'EOF'
root:x:0:0:root:/root:/bin/sh
elsewhere:x:0:100::/:/bin/sh
EOF
    ;;
    group) exit 3 ;;
esac
"""
    fact = ask(Questions(accounts=True), getent=getent).accounts
    assert fact is not None
    assert fact.problem == ""
    assert [(u.name, u.uid, u.password, u.must_change, u.nss) for u in fact.users] == [
        ("root", 0, "locked", False, False),
        ("old", 1, "none", False, False),
        ("odd", 2, "set", False, False),
        ("new", 3, "set", True, False),
        ("elsewhere", 0, "unknown", False, True),
    ]
    assert [(g.name, g.gid, g.members) for g in fact.groups] == [("root", 0, ()), ("wheel", 10, ("root", "new"))]


FIELDS = {
    "": "none",
    "*": "locked",
    "!": "locked",
    "!!": "locked",
    "!*": "locked",
    "!$6$x": "locked",
    "$y$j9T$a": "set",
    "_J9..xyz": "set",
    "abcdefghijklm": "set",
    "x": "unknown",
    "abc": "unknown",
}


def test_what_is_made_of_a_password_field(ask: Ask, root: Path) -> None:
    users = {f"u{number}": field for number, field in enumerate(FIELDS)}
    write(root, "etc/passwd", "".join(f"{name}:x:0:0::/:/bin/sh\n" for name in users))
    write(root, "etc/group", "root:x:0:\n")
    # The last line has no end.
    write(root, "etc/shadow", "\n".join(f"{name}:{field}:1::::::" for name, field in users.items()))
    fact = ask(Questions(accounts=True), getent="#!/bin/sh\nexit 3\n").accounts
    assert fact is not None
    assert [user.password for user in fact.users] == list(FIELDS.values())


@every_shell
def test_packages(ask: Ask, root: Path) -> None:
    rpm = "#!/bin/sh\nprintf 'bash\\t0:5.2-1.fc43\\tx86_64\\nkernel\\t1:6.1-1\\tx86_64\\n'\n"
    flatpak = "#!/bin/sh\n[ -z \"$FLATPAK_USER_DIR\" ] || { printf 'org.u.Ser\\t\\tstable\\tuser\\n'; exit 0; }\n"
    flatpak += "printf 'org.example.App\\t2.1\\tstable\\tsystem\\n'\n"
    (root / "home/a b/.local/share/flatpak/repo").mkdir(parents=True)
    (root / "home/c/.local/share/flatpak").mkdir(parents=True)
    found = ask(Questions(packages=True), dpkg_query=DPKG, rpm=rpm, flatpak=flatpak).packages
    assert found is not None
    assert [(p.name, p.version, p.status) for p in found["dpkg"].packages] == [
        ("nftables", "1.0.6-2", "install ok installed"),
        ("old", "1", "deinstall ok config-files"),
    ]
    assert [(p.name, p.version) for p in found["rpm"].packages] == [("bash", "5.2-1.fc43"), ("kernel", "1:6.1-1")]
    assert [(p.name, p.version) for p in found["flatpak"].packages] == [
        ("org.example.App", "2.1"),
        ("org.u.Ser", "stable"),
    ]


def test_packages_that_rpm_skips_are_not_absent(ask: Ask) -> None:
    """It ends with 0 all the same."""
    rpm = "#!/bin/sh\necho 'error: rpmdbNextIterator: skipping h#  17' >&2\nprintf 'bash\\t0:5-1\\tx86_64\\n'\n"
    found = ask(Questions(packages=True), rpm=rpm).packages
    assert found is not None
    assert found["rpm"].problem
    assert not found["rpm"].packages


@pytest.mark.parametrize("text", ["#!/bin/sh\nexit 2\n", "#!/bin/sh\necho nonsense\n", "#!/bin/sh\nexit 137\n"])
def test_a_package_manager_that_fails_lists_nothing_to_be_believed(ask: Ask, text: str) -> None:
    found = ask(Questions(packages=True), dpkg_query=text, rpm=text, flatpak=text).packages
    assert found is not None
    assert all(fact.problem and not fact.packages for fact in found.values())


def maps(*paths: str) -> str:
    return "".join(
        f"7f{number:010x}-7f{number + 1:010x} r-xp 00000000 00:19 12  {p}\n" for number, p in enumerate(paths)
    )


@every_shell
def test_processes(ask: Ask, root: Path) -> None:
    library = "/usr/lib/libsafe.so"
    write(root, "usr/lib/libsafe.so.1", "x")
    (root / "usr/lib/libsafe.so").symlink_to("libsafe.so.1")
    write(root, "etc/ld.so.preload", f"{library}\n")
    good = maps("/bin/x", "/usr/lib/libsafe.so.1", "[stack]")
    processes = {
        # pid: name, maps, control group
        1: ("systemd", good, "0::/init.scope\n"),
        2: ("kthreadd", "", "0::/\n"),
        7: ("old one\n9", maps("/bin/x", "/usr/lib/libsafe.so.1 (deleted)"), "0::/system.slice/a.service\n"),
        8: ("static", maps("/opt/static"), "1:name=systemd:/system.slice/s.service/sub\n"),
        9: ("forger", maps(f"/tmp{library}.1", f"/x/proc/8/maps:7f00-7f01 r-xp 00 00:19 12 {library}.1"), "0::/\n"),
        10: ("ours", maps("/bin/sh"), f"0::/system.slice/osgates-{NONCE}.service\n"),
    }
    for pid, (name, text, cgroup) in processes.items():
        write(root, f"proc/{pid}/comm", name + "\n")
        write(root, f"proc/{pid}/maps", text)
        write(root, f"proc/{pid}/cgroup", cgroup)
        (root / f"proc/{pid}/exe").symlink_to("/bin/x (deleted)" if pid == 7 else f"/bin/{pid}")
    seen = ask(Questions(libraries=names(library, "/usr/lib/gone.so"))).processes
    assert seen is not None
    assert (seen.problem, seen.own, seen.gone) == ("", 1, 0)
    assert seen.preload == TextFact(text=f"{library}\n")
    assert seen.libraries == {library: "/usr/lib/libsafe.so.1", "/usr/lib/gone.so": ""}
    found = {process.pid: process for process in seen.processes}
    assert sorted(found) == [1, 7, 8, 9]
    assert found[1].maps == {library: ("/usr/lib/libsafe.so.1",)}
    assert found[7].maps == {library: ("/usr/lib/libsafe.so.1 (deleted)",)}
    assert (found[7].name, found[7].exe, found[7].unit) == ("old one", "/bin/x (deleted)", "a.service")
    assert (found[8].maps, found[8].unit) == ({}, "s.service")
    assert "/usr/lib/libsafe.so.1" not in found[9].maps[library]
    assert all(process.problem == "" for process in seen.processes)


def test_a_process_that_cannot_be_read_is_not_left_out(ask: Ask, root: Path) -> None:
    write(root, "proc/5/comm", "hidden\n")
    write(root, "lib/a.so")
    seen = ask(Questions(libraries=names("/lib/a.so"))).processes
    assert seen is not None
    assert [(process.pid, process.problem) for process in seen.processes] == [(5, "permission denied")]


def test_selinux(ask: Ask, root: Path) -> None:
    write(root, "proc/filesystems", "nodev\tsysfs\n")
    fact = ask(Questions(selinux=True)).selinux
    assert fact is not None
    assert (fact.known, fact.problem) == (False, "")
    write(root, "proc/filesystems", "nodev\tsysfs\nnodev\tselinuxfs\n")
    fact = ask(Questions(selinux=True)).selinux
    assert fact is not None
    assert "enforce" in fact.problem
    write(root, "sys/fs/selinux/enforce", "1")
    write(root, "etc/selinux/config", "# SELINUXTYPE=mls\nSELINUX=permissive\nSELINUXTYPE=targeted\n")
    fact = ask(Questions(selinux=True)).selinux
    assert fact is not None
    assert (fact.known, fact.enforce, fact.policy, fact.problem) == (True, "1", "targeted", "")


def test_a_long_script_goes_through_a_file(tmp_path: Path) -> None:
    many = Questions(sysctls=names(*(f"kernel/nothing_of_this_name_{number}" for number in range(3000))))
    shell = LocalShell(tmp_path)
    seen = settings.observe(shell, many, State.LIVE, NONCE, str(tmp_path))  # type: ignore[arg-type]
    assert seen.sysctls == dict.fromkeys(many.sysctls, SysctlFact())
    assert shell.commands == [f"exec sh {tmp_path}/settings.sh"]


def test_a_guest_that_fails_is_told(tmp_path: Path) -> None:
    (tmp_path / "settings").write_text("in the way of the directory")
    with pytest.raises(ChannelError):
        settings.observe(
            LocalShell(tmp_path),  # type: ignore[arg-type]
            Questions(command_line=True),
            State.LIVE,
            NONCE,
            str(tmp_path),
        )


@every_shell
def test_what_cannot_be_read_is_not_empty(ask: Ask, root: Path) -> None:
    (root / "etc/hollow").mkdir(parents=True)
    write(root, "etc/file", "x")
    write(root, "etc/none")
    questions = Questions()
    for name in ("hollow", "file", "none"):
        questions.file(f"/etc/{name}").empty = True
    found = ask(questions, ls="#!/bin/sh\nexit 2\n", head="#!/bin/sh\nexit 1\n").files
    assert [found[f"/etc/{name}"].empty for name in ("hollow", "file", "none")] == [None, False, True]


@pytest.mark.parametrize("path", SHELLS)
def test_an_answer_that_cannot_be_written_is_none(tmp_path: Path, path: str) -> None:
    shell = [path, "sh"] if path.endswith("busybox") else [path]
    script = build(Questions(command_line=True), nonce=NONCE, directory=str(tmp_path))
    for broken in (script, script.replace("wc -c", "false").replace("cat ", "false ")):
        with Path("/dev/full" if broken is script else "/dev/null").open("wb") as out:
            assert subprocess.run([*shell, "-c", broken], stdout=out, check=False).returncode > 70
