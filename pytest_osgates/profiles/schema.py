"""What a distro profile may say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, InstanceOf, SerializeAsAny, field_validator, model_validator

from pytest_osgates.model import Gate, Model, Policy, State
from pytest_osgates.profiles.origin import OutsideGate
from pytest_osgates.vm.spec import Firmware

SCHEMA = 1
# The gates that are planned or built; a profile may name others, which its project brings along.
KNOWN_GATES = (
    *("boot", "kconfig", "lynis", "settings", "reproducible", "telemetry", "luks", "tpm", "secureboot"),
    *("apparmor", "firewall", "selinux", "install", "updates", "amnesic", "packages", "dns", "vpn", "allocator"),
    *("sandbox", "privacy-review", "signing", "firstboot", "first-login", "suspend", "kernel-upgrade"),
    *("usbguard", "firewalld-mesh", "skel", "install-logs", "container-lint"),
    *("mesh-dns-block", "mesh-protocol-block", "mesh-offline"),
)
GATE_NAME = re.compile(r"^[a-z][a-z0-9-]{1,40}$")
ROW_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$")


# "host login:" of agetty(8); "user@host:~$" and "[user@host ~]$", the prompts of Debian's and Fedora's shells. Not a
# bare "#": the shells of an initramfs and of emergency mode end like that.
READY_TEXT = r"(?:^|\s)login: ?$|^\[?\w[\w.-]*@[\w.-]+[: ][^\r\n]{0,80}[$#] ?$"


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"not a regular expression: {error}") from error
    return pattern


Regex = Annotated[str, AfterValidator(_compiles)]


def _one_line(text: str) -> str:
    if not text.strip() or not text.isprintable() or len(text) > 80:
        raise ValueError("give one line of printable text, at most 80 characters")
    return text


Title = Annotated[str, AfterValidator(_one_line)]


class MachineSection(Model):
    """``[machine]``: what the image is booted on. The first firmware is the one that states are made with."""

    firmware: tuple[Firmware, ...] = Field(default=(Firmware.UEFI, Firmware.BIOS), min_length=1)
    memory_mib: int = Field(default=2048, ge=128)
    cpus: int = Field(default=2, ge=1, le=255)
    cpu_model: str | None = None
    tpm: bool = True

    @field_validator("firmware")
    @classmethod
    def _once(cls, firmware: tuple[Firmware, ...]) -> tuple[Firmware, ...]:
        if len(set(firmware)) != len(firmware):
            raise ValueError("a firmware is named twice")
        return firmware


class KeyStep(Model):
    """``[[boot.keys]]``: keys for a boot menu.

    ``text``: press once the screen shows this; empty: once the picture stands still and nothing is read. ``keys``:
    QKeyCode names; ``"ctrl-x"`` presses both together.
    """

    keys: tuple[str, ...]
    text: Regex = ""
    why: str


class BootSection(Model):
    """``[boot]``: how a boot gets on, and how to tell that it is ready.

    ``ready_target``: a systemd unit; empty: the guest's default target. ``ready_text``: what the serial console or a
    text screen shows once it is ready, for boots without the guest channel. ``keys`` None: one Enter, if the machine
    waits before any kernel has spoken.
    """

    ready_target: str = ""
    ready_text: Regex = READY_TEXT
    keys: tuple[KeyStep, ...] | None = None


class LoginSection(Model):
    """``[login]``: used on the serial console where systemd's credentials cannot carry the channel in."""

    user: str
    password: str = ""
    become: str = ""


class InstallStep(Model):
    """``[[install.dialogue]]``, ``[[install.first_boot.dialogue]]``: what is waited for, and what is typed then.

    ``expect`` is searched in each line of the serial console, or, with ``screen``, in the text of the screen.
    ``send`` is typed there, on the serial console with Enter behind it; ``keys``: QKeyCode names, for the screen.
    """

    expect: Regex
    send: str | None = None
    keys: tuple[str, ...] = ()
    screen: bool = False

    @model_validator(mode="after")
    def _types(self) -> Self:
        if self.send is None and not self.keys:
            raise ValueError("a step types something: send or keys")
        if self.keys and not self.screen:
            raise ValueError("keys are for what the screen shows: screen = true")
        if not self.expect or re.search(self.expect, ""):
            raise ValueError("a step that waits for nothing comes too early")
        return self


class FirstBootSection(Model):
    """``[install.first_boot]``: how the installed machine is answered when it first starts from its disk, before
    anything is judged of it: a ``dialogue``, and the text that it is ``done`` with. Then it is switched off.

    It is the machine whose later boots are judged: no medium, no guest channel. Seconds, at this host's pace.
    """

    dialogue: tuple[InstallStep, ...] = Field(min_length=1)
    done: Regex
    done_on_screen: bool = False
    failed: tuple[Regex, ...] = ()
    deadline_s: float = Field(default=1800.0, gt=0, allow_inf_nan=False)
    stall_s: float = Field(default=600.0, ge=30, allow_inf_nan=False)

    @model_validator(mode="after")
    def _waits_for_something(self) -> Self:
        if any(not text or re.search(text, "") for text in (self.done, *self.failed)):
            raise ValueError("a pattern that fits an empty text fits anything")
        return self


class InstallSection(Model):
    """``[install]``: how the ISO is installed on an empty disk of ``disk_mib``, by ``script`` (run by sh as root in
    the live system) or by a ``dialogue``. Seconds, at this host's pace.

    ``failed``: what the installer shows or writes to its output when it gives up. ``logs``: its files in the live
    system, for the evidence. ``done``: what a dialogue ends with; ``ends``: with that text, by switching the machine
    off, or by starting it anew. ``first_boot``: what is done once it starts from its disk.
    """

    script: str = ""
    dialogue: tuple[InstallStep, ...] = ()
    done: Regex = ""
    done_on_screen: bool = False
    ends: Literal["text", "off", "reboot"] = "off"
    failed: tuple[Regex, ...] = ()
    logs: tuple[str, ...] = Field(default=(), max_length=50)
    disk_mib: int = Field(default=16384, ge=64, le=1 << 22)
    deadline_s: float = Field(default=3600.0, gt=0, allow_inf_nan=False)
    stall_s: float = Field(default=600.0, ge=30, allow_inf_nan=False)
    first_boot: FirstBootSection | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if bool(self.script.strip()) is bool(self.dialogue):
            raise ValueError("give a script or a dialogue")
        if self.script and (self.done or self.done_on_screen or self.ends != "off"):
            raise ValueError("a script is done when it ends; done and ends are for a dialogue")
        if (self.ends == "text") is not bool(self.done):
            raise ValueError('done and ends = "text" belong together')
        if any(re.search(text, "") for text in (*self.failed, *([self.done] if self.done else ()))):
            raise ValueError("a pattern that fits an empty text fits anything")
        return self


class GateSection(Model):
    """One ``[gate.NAME]``: what every gate has, and its own policy (None: the gate is not there).

    ``row_states``: the state of each row, for a gate whose rows differ in it. ``rows``: their names. ``gate``: what
    judges; None: ``absent`` says why not. ``outside``: where it came from, None for a built-in one.
    """

    name: str
    required: bool
    state: State
    promise: str
    policy: SerializeAsAny[Policy] | None
    row_states: Mapping[str, State] = Field(default_factory=dict)
    rows: tuple[str, ...] = ("",)
    gate: InstanceOf[Gate] | None = Field(default=None, exclude=True, repr=False)  # type: ignore[type-arg]
    outside: InstanceOf[OutsideGate] | None = Field(default=None, exclude=True, repr=False)
    absent: str = ""

    def state_of(self, case: str) -> State:
        """What one row is judged on."""
        return self.row_states.get(case, self.state)

    @property
    def states(self) -> str:
        """Every state that is judged, for the reader: ``live``, or ``live, installed``."""
        return ", ".join(dict.fromkeys(str(state) for state in self.row_states.values() or [self.state]))


class Profile(Model):
    """A distro profile."""

    name: str
    title: str
    os_release: Mapping[str, str]
    machine: MachineSection
    boot: BootSection
    login: LoginSection | None
    install: InstallSection | None = None
    gates: Mapping[str, GateSection]
    sha256: str
    source: str

    @property
    def firmwares(self) -> tuple[str, ...]:
        """Names of the firmwares."""
        return tuple(str(firmware) for firmware in self.machine.firmware)

    @property
    def required(self) -> tuple[str, ...]:
        """Names of the gates without which there is no launch."""
        return tuple(name for name, gate in self.gates.items() if gate.required)

    def policy(self, gate: str) -> Any:  # noqa: ANN401  (each gate's own type)
        """The policy of a gate that this version has."""
        return self.gates[gate].policy


class ProfileFile(Model):
    """The file as it is written, gates not yet split."""

    schema_: int = Field(alias="schema")
    name: Title
    title: str = ""
    os_release: dict[str, str] = Field(default_factory=dict)
    machine: MachineSection = Field(default_factory=MachineSection)
    boot: BootSection = Field(default_factory=BootSection)
    login: LoginSection | None = None
    install: InstallSection | None = None
    gates: tuple[str, ...] = ()
    gate: dict[str, dict[str, Any]] = Field(default_factory=dict)


class GateCommon(Model):
    """The keys that every ``[gate.NAME]`` has."""

    required: bool = True
    state: State | None = None
    promise: str = ""
