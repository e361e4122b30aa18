"""What can be wrong with a system that met everything before, one thing at a time, and all that is then found."""

from __future__ import annotations

from typing import Any

from settings_samples import LIBRARY, a_file, a_mount, a_process, policy, system

from pytest_osgates.checks.settings.facts import (
    AccountsFact,
    CapabilityFact,
    FileFact,
    Group,
    MountsFact,
    Package,
    PackagesFact,
    SelinuxFact,
    SettingsObservation,
    SysctlFact,
    TextFact,
    UnitFact,
    User,
)
from pytest_osgates.model import Severity

V, U, R = Severity.VIOLATION, Severity.UNPROVEN, Severity.REMARK
CLEAN = system()
DEMANDED = policy()


def with_key(field: str, key: str, fact: object) -> SettingsObservation:
    return CLEAN.model_copy(update={field: {**getattr(CLEAN, field), key: fact}})


def with_line(text: str) -> SettingsObservation:
    return CLEAN.model_copy(update={"command_line": TextFact(text=text)})


def with_tmp(*mounts: Any) -> SettingsObservation:
    root = a_mount("/", "rw", id=1, parent=0)
    return CLEAN.model_copy(update={"mounts": MountsFact(mounts=(root, *mounts))})


def with_accounts(*, users: tuple[User, ...] = (), groups: tuple[Group, ...] = ()) -> SettingsObservation:
    """These in place of those of the same name, or added."""
    assert CLEAN.accounts is not None
    kept = [user for user in CLEAN.accounts.users if user.name not in {u.name for u in users}]
    others = [group for group in CLEAN.accounts.groups if group.name not in {g.name for g in groups}]
    fact = AccountsFact(users=(*kept, *users), groups=(*others, *groups))
    return CLEAN.model_copy(update={"accounts": fact})


def user(name: str, **changes: Any) -> tuple[User, ...]:
    assert CLEAN.accounts is not None
    known = [entry for entry in CLEAN.accounts.users if entry.name == name]
    return ((known[0] if known else User(name=name, uid=1, gid=1)).model_copy(update=changes),)


def with_package(manager: str, *packages: Package) -> SettingsObservation:
    assert CLEAN.packages is not None
    before = CLEAN.packages[manager].packages
    kept = tuple(entry for entry in before if entry.name not in {package.name for package in packages})
    return CLEAN.model_copy(
        update={"packages": {**CLEAN.packages, manager: PackagesFact(packages=(*kept, *packages))}}
    )


def with_processes(**changes: Any) -> SettingsObservation:
    assert CLEAN.processes is not None
    return CLEAN.model_copy(update={"processes": CLEAN.processes.model_copy(update=changes)})


def with_process(*processes: Any) -> SettingsObservation:
    assert CLEAN.processes is not None
    return with_processes(processes=(*CLEAN.processes.processes, *processes))


def deb(name: str, version: str, status: str = "install ok installed") -> Package:
    return Package(name=name, version=version, status=status)


SSHD = "/etc/ssh/sshd_config"
LOADED = UnitFact(load="loaded", active="active", file_state="enabled", wanted_by=("multi-user.target",))
LINK = CLEAN.files["/etc/generator"]

# What is changed in a system that meets everything, and all that is then found.
CASES: dict[str, tuple[SettingsObservation, list[tuple[str, str, Severity]]]] = {
    "sysctl lower": (
        with_key("sysctls", "kernel/kptr_restrict", SysctlFact(value="1")),
        [("sysctl", "kernel.kptr_restrict", V)],
    ),
    "sysctl of several values": (
        with_key("sysctls", "kernel/kptr_restrict", SysctlFact(value="2 2")),
        [("sysctl", "kernel.kptr_restrict", V)],
    ),
    "sysctl empty": (
        with_key("sysctls", "kernel/core_pattern", SysctlFact(value="")),
        [("sysctl", "kernel.core_pattern", V)],
    ),
    "sysctl below its least": (
        with_key("sysctls", "vm/mmap_min_addr", SysctlFact(value="4096")),
        [("sysctl", "vm.mmap_min_addr", V)],
    ),
    "sysctl without a number": (
        with_key("sysctls", "vm/mmap_min_addr", SysctlFact(value="high")),
        [("sysctl", "vm.mmap_min_addr", V)],
    ),
    "no such sysctl": (
        with_key("sysctls", "kernel/kptr_restrict", SysctlFact()),
        [("sysctl", "kernel.kptr_restrict", V)],
    ),
    "sysctl unread": (
        with_key("sysctls", "kernel/kptr_restrict", SysctlFact(problem="it cannot be read")),
        [("sysctl", "kernel.kptr_restrict", U)],
    ),
    "sysctl in another spelling": (with_key("sysctls", "kernel/kptr_restrict", SysctlFact(value=" 002\t")), []),
    "parameter missing": (
        with_line("root=/dev/sda1 lockdown=integrity"),
        [("parameter", "slab_nomerge", V)],
    ),
    "parameter with a value": (
        with_line("root=/dev/sda1 lockdown=integrity slab_nomerge=0"),
        [("parameter", "slab_nomerge", V)],
    ),
    "parameter overruled": (
        with_line("root=/dev/sda1 lockdown=integrity slab_nomerge lockdown=none"),
        [("parameter", "lockdown", V)],
    ),
    "parameter given twice, the last one right": (
        with_line("root=/dev/sda1 lockdown=none slab_nomerge lockdown=integrity"),
        [("parameter", "lockdown", R)],
    ),
    "parameter for init alone": (
        with_line("root=/dev/sda1 lockdown=integrity -- slab_nomerge"),
        [("parameter", "slab_nomerge", V)],
    ),
    "parameter with dashes": (with_line("root=/dev/sda1 lockdown=integrity slab-nomerge"), []),
    "parameter in quotes": (with_line('"root=/dev/sda 1" lockdown="integrity" "slab_nomerge"'), []),
    "absent parameter present": (
        with_line("nokaslr root=/dev/sda1 lockdown=integrity slab_nomerge"),
        [("parameter", "nokaslr", V)],
    ),
    "absent parameter for init": (
        with_line("root=/dev/sda1 lockdown=integrity slab_nomerge -- nokaslr=1"),
        [("parameter", "nokaslr", V)],
    ),
    "absent value present": (
        with_line('root=/dev/sda1 lockdown=integrity slab_nomerge mitigations="off" mitigations=auto'),
        [("parameter", "mitigations=off", V)],
    ),
    "other value of it": (with_line("root=/dev/sda1 lockdown=integrity slab_nomerge mitigations=auto"), []),
    "unit not enabled": (
        with_key("units", "fire.service", LOADED.model_copy(update={"file_state": "disabled"})),
        [("unit", "fire.service enabled", V)],
    ),
    "unit enabled until the next start": (
        with_key("units", "fire.service", LOADED.model_copy(update={"file_state": "enabled-runtime"})),
        [("unit", "fire.service enabled", V)],
    ),
    "unit enabled and broken": (
        with_key("units", "fire.service", LOADED.model_copy(update={"load": "bad-setting"})),
        [("unit", "fire.service present", V), ("unit", "fire.service enabled", V)],
    ),
    "unit not active": (
        with_key("units", "fire.service", LOADED.model_copy(update={"active": "failed"})),
        [("unit", "fire.service active", V)],
    ),
    "unit wanted by another": (
        with_key("units", "fire.service", LOADED.model_copy(update={"wanted_by": ("graphical.target",)})),
        [("unit", "fire.service wanted-by", V)],
    ),
    "unit wanted by one more, not loaded": (
        with_key("units", "fire.service", LOADED.model_copy(update={"links": ("rescue.target",)})),
        [("unit", "fire.service wanted-by", V)],
    ),
    "unit absent": (
        with_key("units", "fire.service", UnitFact(load="not-found", active="inactive")),
        [("unit", "fire.service present", V)],
    ),
    "unit that should be disabled absent": (
        with_key("units", "ssh.service", UnitFact(load="not-found", active="inactive")),
        [("unit", "ssh.service present", V)],
    ),
    "unit static where it should be disabled": (
        with_key("units", "ssh.service", UnitFact(load="loaded", active="inactive", file_state="static")),
        [("unit", "ssh.service enabled", V)],
    ),
    "unit masked where it must not be": (
        with_key("units", "ssh.service", UnitFact(load="masked", active="inactive", file_state="masked")),
        [("unit", "ssh.service masked", V)],
    ),
    "unit masked until the next start": (
        with_key("units", "apt.timer", UnitFact(load="masked", active="inactive", file_state="masked-runtime")),
        [("unit", "apt.timer masked", V)],
    ),
    "template not masked": (
        with_key("units", "wait@.service", UnitFact(load="loaded", file_state="enabled")),
        [("unit", "wait@.service masked", V)],
    ),
    "unit there that must not be": (
        with_key("units", "cups.service", UnitFact(load="masked", file_state="masked")),
        [("unit", "cups.service absent", V)],
    ),
    "unit of which nothing is said": (
        with_key("units", "cups.service", UnitFact()),
        [("unit", "cups.service absent", U)],
    ),
    "file gone": (with_key("files", SSHD, FileFact()), [("file", f"{SSHD} present", V)]),
    "file unread": (
        with_key("files", "/etc/skel", FileFact(problem="cannot be looked at")),
        [("file", f"/etc/skel {what}", U) for what in ("present", "type", "empty")],
    ),
    "file of another type": (
        with_key("files", "/etc/skel", a_file(type="file", empty=False)),
        [("file", "/etc/skel type", V)],
    ),
    "directory empty": (
        with_key("files", "/etc/skel", a_file(type="directory", empty=True)),
        [("file", "/etc/skel empty", V)],
    ),
    "file open to others": (
        with_key("files", SSHD, a_file(mode=0o604, content=CLEAN.files[SSHD].content)),
        [("file", f"{SSHD} mode", V)],
    ),
    "file with a set-uid bit": (
        with_key("files", SSHD, a_file(mode=0o4600, content=CLEAN.files[SSHD].content)),
        [("file", f"{SSHD} mode", V)],
    ),
    "content missing": (
        with_key("files", SSHD, a_file(mode=0o600, content=TextFact(text="#PermitRootLogin no\n"))),
        [("file", f"{SSHD} contains ^PermitRootLogin no$", V)],
    ),
    "content there that must not be": (
        with_key(
            "files",
            SSHD,
            a_file(mode=0o600, content=TextFact(text="PermitRootLogin no\nPermitEmptyPasswords  yes\n")),
        ),
        [("file", f"{SSHD} lacks ^PermitEmptyPasswords\\s+yes", V)],
    ),
    "content unread": (
        with_key("files", SSHD, a_file(mode=0o600, content=TextFact(problem="it is larger than 262144 bytes"))),
        [
            ("file", f"{SSHD} contains ^PermitRootLogin no$", U),
            ("file", f"{SSHD} lacks ^PermitEmptyPasswords\\s+yes", U),
            ("file", f"{SSHD} lacks ^(?!P)[A-Z]{{3}}$", U),
        ],
    ),
    "capability too many": (
        with_key("files", "/usr/bin/ping", a_file(capabilities=CapabilityFact(text="cap_net_admin,cap_net_raw=ep"))),
        [("file", "/usr/bin/ping capabilities", V)],
    ),
    "capability lost": (
        with_key("files", "/usr/bin/ping", a_file(capabilities=CapabilityFact(text="none"))),
        [("file", "/usr/bin/ping capabilities", V)],
    ),
    "capability unread": (
        with_key("files", "/usr/bin/ping", a_file(capabilities=CapabilityFact(problem="no tool"))),
        [("file", "/usr/bin/ping capabilities", U)],
    ),
    "link to elsewhere": (
        with_key("files", "/etc/generator", LINK.model_copy(update={"link": "/bin/true"})),
        [("file", "/etc/generator links-to", V)],
    ),
    "absent file there": (
        with_key("files", "/etc/hosts.equiv", a_file()),
        [("file", "/etc/hosts.equiv absent", V)],
    ),
    "absent file there as a link to nothing": (
        with_key("files", "/etc/hosts.equiv", LINK.model_copy(update={"target": None})),
        [("file", "/etc/hosts.equiv absent", V)],
    ),
    "mode behind a link": (
        with_key("files", SSHD, LINK.model_copy(update={"content": CLEAN.files[SSHD].content})),
        [("file", f"{SSHD} mode", V)],
    ),
    "mode behind a link to nothing": (
        with_key("files", SSHD, LINK.model_copy(update={"target": None})),
        [
            ("file", f"{SSHD} mode", V),
            ("file", f"{SSHD} contains ^PermitRootLogin no$", V),
            ("file", f"{SSHD} lacks ^PermitEmptyPasswords\\s+yes", V),
            ("file", f"{SSHD} lacks ^(?!P)[A-Z]{{3}}$", V),
        ],
    ),
    "mount without an option": (
        with_tmp(a_mount("/tmp", "rw", "nodev", super_options=("rw", "size=1k"))),
        [("mount", "/tmp nosuid", V), ("mount", "/tmp lacks suid", V)],
    ),
    "mount read-only by its superblock": (
        with_tmp(a_mount("/tmp", "rw", "nosuid", "nodev", super_options=("ro", "size=1k"))),
        [("mount", "/tmp rw", V)],
    ),
    "mount with an option that it must not have": (
        with_tmp(a_mount("/tmp", "rw", "nosuid", super_options=("rw", "size=1k"))),
        [("mount", "/tmp lacks dev", V)],
    ),
    "mount of another type": (
        with_tmp(a_mount("/tmp", "rw", "nosuid", "nodev", type="ext4", super_options=("rw", "size=1k"))),
        [("mount", "/tmp type", V)],
    ),
    "no mount": (with_tmp(), [("mount", "/tmp present", V)]),
    "mount covered by another": (
        with_tmp(
            a_mount("/tmp", "rw", "nosuid", "nodev", super_options=("rw", "size=1k")),
            a_mount("/tmp", "rw", "nodev", id=41, parent=40, super_options=("rw", "size=1k")),
        ),
        [("mount", "/tmp nosuid", V), ("mount", "/tmp lacks suid", V)],
    ),
    "mount that must not be": (
        with_tmp(
            a_mount("/tmp", "rw", "nosuid", "nodev", super_options=("rw", "size=1k")),
            a_mount("/sys/kernel/debug", "rw", id=50),
        ),
        [("mount", "/sys/kernel/debug absent", V)],
    ),
    "no mounts at all": (
        CLEAN.model_copy(update={"mounts": MountsFact()}),
        [
            *(("mount", f"/tmp {what}", U) for what in ("present", "nosuid", "size=*", "rw")),
            *(("mount", f"/tmp {what}", U) for what in ("lacks suid", "lacks dev", "type")),
            ("mount", "/sys/kernel/debug absent", U),
        ],
    ),
    "password set": (with_accounts(users=user("root", password="set")), [("user", "root password", V)]),
    "no password": (with_accounts(users=user("root", password="none")), [("user", "root password", V)]),
    "password unknown": (with_accounts(users=user("root", password="unknown")), [("user", "root password", U)]),
    "one of two lines with a password": (
        with_accounts(users=(*user("root"), *user("root", password="set"))),
        [("user", "root password", V)],
    ),
    "shell": (with_accounts(users=user("root", shell="/bin/bash")), [("user", "root shell", V)]),  # noqa: S604
    "home": (with_accounts(users=user("root", home="/")), [("user", "root home", V)]),
    "uid": (
        with_accounts(users=user("root", uid=1)),
        [("user", "root uid", V), ("user", "uid 0", V)],
    ),
    "second superuser": (with_accounts(users=user("sneaky", uid=0)), [("user", "uid 0", V)]),
    "superuser from elsewhere": (with_accounts(users=user("sneaky", uid=0, nss=True)), [("user", "uid 0", V)]),
    "password need not be changed": (
        with_accounts(users=user("admin", must_change=False)),
        [("user", "admin must-change", V)],
    ),
    "user absent": (
        with_accounts(users=()).model_copy(
            update={"accounts": AccountsFact(users=user("root"), groups=CLEAN.accounts.groups)}  # type: ignore[union-attr]
        ),
        [("user", "admin present", V), ("group", "wheel members", V)],
    ),
    "user there that must not be": (with_accounts(users=user("toor")), [("user", "toor absent", V)]),
    "user not in its group": (
        with_accounts(groups=(Group(name="wheel", gid=10, members=("other",)),)),
        [("user", "admin in wheel", V), ("group", "wheel members", V)],
    ),
    "group gone": (
        CLEAN.model_copy(
            update={"accounts": AccountsFact(users=CLEAN.accounts.users, groups=(Group(name="root", gid=0),))}  # type: ignore[union-attr]
        ),
        [("user", "admin in wheel", V), ("group", "wheel present", V)],
    ),
    "gid": (
        with_accounts(users=user("backup", gid=11), groups=(Group(name="wheel", gid=11, members=("admin",)),)),
        [("group", "wheel gid", V)],
    ),
    "one member more, by primary group": (
        with_accounts(users=user("guest", gid=10)),
        [("group", "wheel members", V)],
    ),
    "group there that must not be": (
        with_accounts(groups=(Group(name="docker", gid=99),)),
        [("group", "docker absent", V)],
    ),
    "package there that must not be": (with_package("dpkg", deb("gcc-12", "12")), [("package", "gcc* absent", V)]),
    "package half there": (
        with_package("dpkg", deb("gcc", "12", "install ok half-configured")),
        [("package", "gcc* absent", V)],
    ),
    "package of another manager": (
        with_package(
            "flatpak", Package(name="gcc.org", version="1"), Package(name="org.example.Player", version="2.1")
        ),
        [("package", "gcc* absent", V)],
    ),
    "package missing": (
        with_package("dpkg", deb("nftables", "1.0.6-2", "deinstall ok config-files")),
        [("package", "nftables (dpkg) present", V)],
    ),
    "package held back": (with_package("dpkg", deb("nftables", "1.0.6-2", "hold ok installed")), []),
    "package too old": (
        with_package("dpkg", deb("nftables", "1.0.6-2~bpo1")),
        [("package", "nftables (dpkg) at-least", V)],
    ),
    "package of another version": (
        with_package("dpkg", deb("nftables", "2.0-1")),
        [("package", "nftables (dpkg) version", V)],
    ),
    "package newer by its epoch alone": (
        with_package("dpkg", deb("nftables", "1:0.9-1")),
        [("package", "nftables (dpkg) version", V), ("package", "nftables (dpkg) at-least", U)],
    ),
    "flatpak of another version": (
        with_package("flatpak", Package(name="org.example.Player", version="3.1")),
        [("package", "org.example.Player (flatpak) version", V)],
    ),
    "packages unread": (
        CLEAN.model_copy(
            update={"packages": {**(CLEAN.packages or {}), "flatpak": PackagesFact(problem="it ended with status 1")}}
        ),
        [
            ("package", "gcc* absent", U),
            ("package", "org.example.Player (flatpak) present", U),
            ("package", "org.example.Player (flatpak) version", U),
        ],
    ),
    "no flatpak": (
        CLEAN.model_copy(update={"packages": {**(CLEAN.packages or {}), "flatpak": PackagesFact(there=False)}}),
        [("package", "org.example.Player (flatpak) present", V)],
    ),
    "dpkg lists nothing": (
        CLEAN.model_copy(
            update={"packages": {"dpkg": PackagesFact(), "rpm": PackagesFact(), "flatpak": PackagesFact(there=False)}}
        ),
        [
            ("package", "gcc* absent", U),
            *(("package", f"nftables (dpkg) {what}", U) for what in ("present", "version", "at-least")),
            ("package", "org.example.Player (flatpak) present", V),
        ],
    ),
    "a process without the library": (
        with_process(a_process(9, "/usr/sbin/odd")),
        [("library", f"{LIBRARY} in /usr/sbin/odd", V)],
    ),
    "two of one program": (
        with_process(a_process(9, "/usr/sbin/odd"), a_process(10, "/usr/sbin/odd")),
        [("library", f"{LIBRARY} in /usr/sbin/odd", V)],
    ),
    "a process with the library that was replaced": (
        with_process(a_process(9, "/usr/sbin/odd", "/usr/lib/libsafe.so.1 (deleted)")),
        [("library", f"{LIBRARY} in /usr/sbin/odd", V)],
    ),
    "a process with another of that name": (
        with_process(a_process(9, "/usr/sbin/odd", "/elsewhere/usr/lib/libsafe.so.1")),
        [("library", f"{LIBRARY} in /usr/sbin/odd", V)],
    ),
    "a process without a program": (
        with_process(a_process(9, "", name="odd")),
        [("library", f"{LIBRARY} in odd", V)],
    ),
    "a process that cannot be read": (
        with_process(a_process(9, "/usr/sbin/odd", problem="permission denied")),
        [("library", f"{LIBRARY} mapped", U)],
    ),
    "an exception without need": (
        with_processes(processes=CLEAN.processes.processes[:1]),  # type: ignore[union-attr]
        [("library", f"{LIBRARY} without need excepted: exe /opt/static", R)],
    ),
    "no process at all": (with_processes(processes=()), [("library", f"{LIBRARY} mapped", U)]),
    "library not there": (
        with_processes(libraries={LIBRARY: ""}),
        [("library", f"{LIBRARY} preload", V), ("library", f"{LIBRARY} mapped", V)],
    ),
    "no preload": (with_processes(preload=TextFact()), [("library", f"{LIBRARY} preload", V)]),
    "preload in a comment": (
        with_processes(preload=TextFact(text=f"/a.so # {LIBRARY}\n")),
        [("library", f"{LIBRARY} preload", V)],
    ),
    "preload unread": (
        with_processes(preload=TextFact(problem="it cannot be read")),
        [("library", f"{LIBRARY} preload", U)],
    ),
    "SELinux permissive": (
        CLEAN.model_copy(update={"selinux": SelinuxFact(known=True, enforce="0", policy="targeted")}),
        [("selinux", "mode", V)],
    ),
    "SELinux off": (
        CLEAN.model_copy(update={"selinux": SelinuxFact()}),
        [("selinux", "mode", V), ("selinux", "policy", V)],
    ),
    "SELinux odd": (
        CLEAN.model_copy(update={"selinux": SelinuxFact(known=True, enforce="2", policy="targeted")}),
        [("selinux", "mode", U)],
    ),
    "another policy": (
        CLEAN.model_copy(update={"selinux": SelinuxFact(known=True, enforce="1", policy="minimum")}),
        [("selinux", "policy", V)],
    ),
    "no lockdown": (
        CLEAN.model_copy(update={"lockdown": TextFact(text="[none] integrity confidentiality")}),
        [("lockdown", "mode", V)],
    ),
    "the kernel has no lockdown": (CLEAN.model_copy(update={"lockdown": TextFact()}), [("lockdown", "mode", V)]),
    "lockdown odd": (
        CLEAN.model_copy(update={"lockdown": TextFact(text="integrity")}),
        [("lockdown", "mode", U)],
    ),
}
