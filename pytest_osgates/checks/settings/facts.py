"""What was seen of a system's settings: raw facts by their subject, free of opinion.

A fact that is not there was not asked for. ``problem`` says why one could not be read; the rest of it then says
nothing.
"""

from __future__ import annotations

from pydantic import Field

from pytest_osgates.model import Model, Observation, State


class SysctlFact(Model):
    """The value in /proc/sys; None: there is no such file."""

    value: str | None = None
    problem: str = ""


class TextFact(Model):
    """The text of one file; None: it is not there."""

    text: str | None = None
    problem: str = ""


class UnitFact(Model):
    """What systemd says of a unit (systemctl(1), show).

    ``wanted_by``: units that want, require or uphold it. ``links``: the ``*.wants`` and ``*.requires`` directories
    that link to it, as the names of the units that these belong to.
    """

    id: str = ""
    load: str = ""
    active: str = ""
    file_state: str = ""
    fragment: str = ""
    wanted_by: tuple[str, ...] = ()
    links: tuple[str, ...] = ()
    problem: str = ""


class Stat(Model):
    """stat(2). ``type``: file, directory, symlink, character device, block device, fifo, socket."""

    type: str
    mode: int
    uid: int
    gid: int
    owner: str = ""
    group: str = ""
    size: int = 0


class CapabilityFact(Model):
    """A file's capabilities in the text form of cap_text_formats(7), ``none`` without any; how they were read."""

    text: str = ""
    by: str = ""
    problem: str = ""


class FileFact(Model):
    """One path. ``own``: the path itself, None where nothing is there. ``target``: what it leads to: the same for
    anything but a symbolic link, None for one that leads nowhere. ``leads_to``: the absolute path of that.

    ``content``, ``capabilities`` and ``empty`` (of a directory: no entry; of a file: no byte) are None where they
    were not asked for.
    """

    own: Stat | None = None
    target: Stat | None = None
    link: str = ""
    leads_to: str = ""
    content: TextFact | None = None
    capabilities: CapabilityFact | None = None
    empty: bool | None = None
    problem: str = ""


class Mount(Model):
    """One line of /proc/self/mountinfo (proc(5)), escapes undone."""

    id: int
    parent: int
    path: str
    type: str
    source: str
    options: tuple[str, ...]
    super_options: tuple[str, ...]


class MountsFact(Model):
    """All mounts, in the kernel's order."""

    mounts: tuple[Mount, ...] = ()
    problem: str = ""


class User(Model):
    """One line of /etc/passwd, or a user whom only getent(1) names (``nss``).

    ``password``: locked, none (no password is asked for), set, or unknown; never what it is. ``must_change``: at the
    next login.
    """

    name: str
    uid: int
    gid: int
    home: str = ""
    shell: str = ""
    password: str = "unknown"  # noqa: S105  (what kind of one, not one)
    must_change: bool = False
    nss: bool = False


class Group(Model):
    """One line of /etc/group, or a group that only getent(1) names (``nss``)."""

    name: str
    gid: int
    members: tuple[str, ...] = ()
    nss: bool = False


class AccountsFact(Model):
    """Users and groups."""

    users: tuple[User, ...] = ()
    groups: tuple[Group, ...] = ()
    problem: str = ""


class Package(Model):
    """One installed package, or what dpkg still knows of one (``status``: its three words)."""

    name: str
    version: str = ""
    architecture: str = ""
    status: str = ""


class PackagesFact(Model):
    """What one package manager says. ``there``: the guest has it."""

    there: bool = True
    packages: tuple[Package, ...] = ()
    problem: str = ""


class ProcessFact(Model):
    """A process with an address space of its own.

    ``maps``: for each library asked for, the paths that it has mapped and that begin like it. ``problem``: its maps
    could not be read.
    """

    pid: int
    name: str
    exe: str = ""
    cgroup: str = ""
    maps: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    problem: str = ""

    @property
    def unit(self) -> str:
        """The systemd unit that it belongs to, as far as its control group says."""
        parts = [part for part in self.cgroup.split("/") if part.endswith((".service", ".scope", ".mount", ".swap"))]
        return parts[-1] if parts else ""


class ProcessesFact(Model):
    """All processes. ``preload``: /etc/ld.so.preload. ``libraries``: each one asked for, and the path that it leads
    to (empty: nothing is there). ``own``: how many belong to the channel that asked, which are left out; ``gone``:
    how many ended while they were looked at.
    """

    preload: TextFact
    libraries: dict[str, str]
    processes: tuple[ProcessFact, ...] = ()
    own: int = 0
    gone: int = 0
    problem: str = ""


class SelinuxFact(Model):
    """SELinux. ``known``: the kernel has its file system. ``enforce``: /sys/fs/selinux/enforce. ``policy``:
    SELINUXTYPE in /etc/selinux/config.
    """

    known: bool = False
    enforce: str = ""
    policy: str = ""
    problem: str = ""


class SettingsObservation(Observation):
    """What was seen of one state."""

    state: State
    sysctls: dict[str, SysctlFact] = Field(default_factory=dict)
    command_line: TextFact | None = None
    units: dict[str, UnitFact] = Field(default_factory=dict)
    files: dict[str, FileFact] = Field(default_factory=dict)
    mounts: MountsFact | None = None
    accounts: AccountsFact | None = None
    packages: dict[str, PackagesFact] | None = None
    processes: ProcessesFact | None = None
    selinux: SelinuxFact | None = None
    lockdown: TextFact | None = None

    @property
    def considered(self) -> int:
        """Each sysctl, unit and file by its name, and each list that was read as a whole (mounts, processes, ...)."""
        named = len(self.sysctls) + len(self.units) + len(self.files) + len(self.packages or ())
        wholes = (self.command_line, self.mounts, self.accounts, self.processes, self.selinux, self.lockdown)
        return named + sum(1 for whole in wholes if whole is not None)
