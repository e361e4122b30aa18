"""A policy of the gate `settings` with every kind of demand, and a system that meets all of them."""

from __future__ import annotations

import tomllib
from typing import Any

from pytest_osgates.checks.settings.facts import (
    AccountsFact,
    CapabilityFact,
    FileFact,
    Group,
    Mount,
    MountsFact,
    Package,
    PackagesFact,
    ProcessesFact,
    ProcessFact,
    SelinuxFact,
    SettingsObservation,
    Stat,
    SysctlFact,
    TextFact,
    UnitFact,
    User,
)
from pytest_osgates.checks.settings.policy import SettingsPolicy
from pytest_osgates.model import State

LIBRARY = "/usr/lib/libsafe.so"
REASON = "because the handbook says so"

POLICY = """
[[sysctl]]
values = { "kernel.kptr_restrict" = 2, "kernel.yama.ptrace_scope" = [2, 3], "kernel.core_pattern" = "|/bin/false" }
at_least = { "vm.mmap_min_addr" = 65536 }
[[parameter]]
present = ["slab_nomerge"]
values = { lockdown = ["integrity", "confidentiality"], root = "/dev/*" }
absent = ["nokaslr", "mitigations=off"]
[[unit]]
names = ["fire.service"]
present = true
enabled = true
active = true
wanted_by = "multi-user.target"
[[unit]]
names = ["ssh.service"]
enabled = false
active = false
masked = false
wanted_by = []
[[unit]]
names = ["apt.timer", "wait@.service"]
masked = true
[[unit]]
names = ["cups.service"]
absent = true
[[file]]
paths = ["/etc/shadow"]
present = true
type = "file"
mode = "0640"
owner = "root"
group = "42"
capabilities = "none"
[[file]]
paths = ["/etc/ssh/sshd_config"]
mode_at_most = "0600"
contains = ["^PermitRootLogin no$"]
lacks = ["^PermitEmptyPasswords\\\\s+yes", "^(?!P)[A-Z]{3}$"]
[[file]]
paths = ["/usr/bin/ping"]
capabilities = "cap_net_raw=ep"
[[file]]
paths = ["/etc/skel"]
type = "directory"
empty = false
[[file]]
paths = ["/etc/generator"]
links_to = "/dev/null"
[[file]]
paths = ["/etc/hosts.equiv"]
absent = true
[[mount]]
paths = ["/tmp"]
present = true
type = "tmpfs"
options = ["nosuid", "size=*", "rw"]
lacks = ["suid", "dev"]
[[mount]]
paths = ["/sys/kernel/debug"]
absent = true
[[user]]
names = ["root"]
present = true
password = "locked"
uid = 0
shell = "/bin/sh"
home = "/root"
superusers = ["root"]
[[user]]
names = ["admin"]
password = "set"
must_change = true
groups = ["wheel"]
[[user]]
names = ["toor"]
absent = true
[[group]]
names = ["wheel"]
present = true
gid = 10
members = ["admin", "backup"]
[[group]]
names = ["docker"]
absent = true
[[package]]
names = ["gcc*"]
absent = true
[[package]]
names = ["nftables"]
present = true
manager = "dpkg"
at_least = "1.0.6-2"
version = "1.*"
[[package]]
names = ["org.example.Player"]
manager = "flatpak"
version = "2.?"
[[library]]
path = "/usr/lib/libsafe.so"
[[library.excepted]]
exe = "/opt/static"
reason = "statically linked"
[[selinux]]
mode = "enforcing"
policy = "targeted"
[[lockdown]]
mode = "integrity"
"""


def policy(text: str = POLICY, *, state: str = "live", reason: str = REASON) -> SettingsPolicy:
    """A policy out of TOML in which no entry names its state and reason; all get these."""
    tables: dict[str, list[dict[str, Any]]] = tomllib.loads(text)
    return SettingsPolicy.model_validate(
        {kind: [{"state": state, "reason": reason, **entry} for entry in entries] for kind, entries in tables.items()}
    )


FILE = Stat(type="file", mode=0o644, uid=0, gid=0, owner="root", group="root", size=10)


def a_file(**changes: Any) -> FileFact:
    """A file that is no link."""
    stat = FILE.model_copy(update={key: changes.pop(key) for key in list(changes) if key in Stat.model_fields})
    return FileFact(own=stat, target=stat, **changes)


def a_mount(path: str, *options: str, **changes: Any) -> Mount:
    fields: dict[str, Any] = {"id": 40, "parent": 1, "type": "tmpfs", "source": "tmpfs", "super_options": ("rw",)}
    return Mount(path=path, options=options, **{**fields, **changes})


def a_process(pid: int, exe: str, *maps: str, **changes: Any) -> ProcessFact:
    fields: dict[str, Any] = {"name": exe.rpartition("/")[2], "maps": {LIBRARY: maps} if maps else {}}
    return ProcessFact(pid=pid, exe=exe, **{**fields, **changes})


def system(**changes: Any) -> SettingsObservation:
    """What meets `POLICY`."""
    link = FileFact(
        own=FILE.model_copy(update={"type": "symlink", "mode": 0o777}),
        target=FILE.model_copy(update={"type": "character device"}),
        link="/dev/null",
        leads_to="/dev/null",
    )
    none = CapabilityFact(text="none", by="python3")
    fields: dict[str, Any] = {
        "state": State.LIVE,
        "sysctls": {
            "kernel/kptr_restrict": SysctlFact(value="2"),
            "kernel/yama/ptrace_scope": SysctlFact(value="3"),
            "kernel/core_pattern": SysctlFact(value="|/bin/false"),
            "vm/mmap_min_addr": SysctlFact(value="65536"),
        },
        "command_line": TextFact(text="BOOT_IMAGE=/vmlinuz root=/dev/sda1 slab_nomerge lockdown=integrity\n"),
        "units": {
            "fire.service": UnitFact(
                load="loaded", active="active", file_state="enabled", wanted_by=("multi-user.target",)
            ),
            "ssh.service": UnitFact(load="loaded", active="inactive", file_state="disabled"),
            "apt.timer": UnitFact(load="masked", active="inactive", file_state="masked"),
            "wait@.service": UnitFact(load="masked", file_state="masked"),
            "cups.service": UnitFact(load="not-found", active="inactive"),
        },
        "files": {
            "/etc/shadow": a_file(mode=0o640, gid=42, group="shadow", capabilities=none),
            "/etc/ssh/sshd_config": a_file(mode=0o400, content=TextFact(text="# x\nPermitRootLogin no\n")),
            "/usr/bin/ping": a_file(capabilities=CapabilityFact(text="cap_net_raw=ep", by="getcap")),
            "/etc/skel": a_file(type="directory", mode=0o755, empty=False),
            "/etc/generator": link,
            "/etc/hosts.equiv": FileFact(),
        },
        "mounts": MountsFact(
            mounts=(
                a_mount("/", "rw", "relatime", id=1, parent=0, type="overlay"),
                a_mount("/tmp", "rw", "nosuid", "nodev", super_options=("rw", "size=1024k")),
            )
        ),
        "accounts": AccountsFact(
            users=(
                User(name="root", uid=0, gid=0, home="/root", shell="/bin/sh", password="locked"),  # noqa: S604
                User(name="admin", uid=1000, gid=1000, home="/home/admin", password="set", must_change=True),
                User(name="backup", uid=34, gid=10, password="locked"),
            ),
            groups=(Group(name="root", gid=0), Group(name="wheel", gid=10, members=("admin",))),
        ),
        "packages": {
            "dpkg": PackagesFact(
                packages=(
                    Package(name="nftables", version="1.0.6-2+deb12u2", status="install ok installed"),
                    Package(name="gcc-12", version="12", status="deinstall ok config-files"),
                )
            ),
            "rpm": PackagesFact(there=False),
            "flatpak": PackagesFact(packages=(Package(name="org.example.Player", version="2.1"),)),
        },
        "processes": ProcessesFact(
            preload=TextFact(text=f"{LIBRARY}\n"),
            libraries={LIBRARY: "/usr/lib/libsafe.so.1"},
            processes=(
                a_process(1, "/usr/lib/systemd/systemd", "/usr/lib/libsafe.so.1", cgroup="/init.scope"),
                a_process(77, "/opt/static", cgroup="/system.slice/static.service"),
            ),
            own=3,
        ),
        "selinux": SelinuxFact(known=True, enforce="1", policy="targeted"),
        "lockdown": TextFact(text="none integrity [confidentiality]"),
    }
    return SettingsObservation(**{**fields, **changes})
