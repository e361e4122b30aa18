"""The gate `secureboot`, one row: a copy of ISO or disk with one program spoilt, booted with the profile's keys.

Nothing is asked of a guest in these boots: who refuses says so on console and screen, and whether a kernel runs is
seen by the processor's descriptor table. The rows that ask the guest have a machine of their own, with the channel.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from pytest_osgates.checks import boot as boot_check
from pytest_osgates.checks.secureboot_model import (
    GUEST,
    UKI_ROW,
    Came,
    Database,
    FileSeen,
    Refusal,
    SecureBootObservation,
    SecureBootPolicy,
    Stage,
    StartSeen,
    Way,
    patterns,
    refusals,
    tamper_of,
)
from pytest_osgates.image.authenticode import Signer
from pytest_osgates.model import State
from pytest_osgates.observers.boot import LOOP_RESETS, POLL_SECONDS, SCREEN_SECONDS, Boot, Plan
from pytest_osgates.observers.secureboot_guest import ask, database, try_module
from pytest_osgates.observers.secureboot_medium import Medium, Spoilt, read_ukis, spoil
from pytest_osgates.profiles.schema import BootSection, LoginSection, MachineSection
from pytest_osgates.progress import ProgressLog
from pytest_osgates.vm import workdir
from pytest_osgates.vm.errors import GuestError, GuestFailed, ImageError, UsageError
from pytest_osgates.vm.guest.injection import Injection, new_nonce
from pytest_osgates.vm.home import Home
from pytest_osgates.vm.host import Host, create_overlay, find_firmware
from pytest_osgates.vm.machine import Machine
from pytest_osgates.vm.spec import AccelKind, Firmware, MachineSpec
from pytest_osgates.vm.text import one_line, printable, strip_escapes
from pytest_osgates.vm.variables import Keys, allow, databases, enrol, forbid
from pytest_osgates.vm.workdir import temporary

_ENROLLED = ("PK", "KEK", "db", "MokList")
_CONSOLE_LINES = 200
_LINE = 300
_TAIL = 1 << 16
# Of nothing that is ever started: the twin of a hash in dbx.
_ANOTHER = "05" * 32


@dataclass(frozen=True)
class Place:
    """What all rows have in common. `home`: the machine that an installed disk belongs to, where its keys are wanted.
    `directory`: of the profile, from which its paths count. `records`: a directory for one boot's."""

    policy: SecureBootPolicy
    state: State
    medium: Medium
    machine: MachineSection
    boot: BootSection
    login: LoginSection | None
    host: Host
    progress: ProgressLog
    records: Callable[[str], Path]
    directory: Path
    guest_deadline_s: float
    home: Home | None = None

    @cached_property
    def keys(self) -> Keys:
        """:raise UsageError: a file of the profile's is missing, or no certificate."""
        policy = self.policy
        return Keys(
            pk=self._certificate(policy.pk) if policy.pk else b"",
            kek=tuple(map(self._certificate, policy.kek)),
            db=tuple(map(self._certificate, policy.db)),
            mok=tuple(map(self._certificate, policy.mok)),
            own=policy.keys == "own",
            microsoft=policy.with_microsoft,
        )

    def _certificate(self, name: str) -> bytes:
        # Here, because it takes long, and only some profiles have keys of their own.
        from cryptography import x509
        from cryptography.hazmat.primitives.serialization import Encoding

        path = self.directory / name
        try:
            raw = path.read_bytes()
            read = x509.load_pem_x509_certificate if b"-----BEGIN" in raw else x509.load_der_x509_certificate
            return bytes(read(raw).public_bytes(Encoding.DER))
        except OSError as error:
            raise UsageError(f"the certificate {path} cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise UsageError(
                f"{path} is no certificate: {error}", remedy="give X.509 as DER or PEM in [gate.secureboot]"
            ) from error

    def variables(self, where: Path, scratch: Path) -> None:
        """Write the firmware's variables with the profile's keys.

        :raise UsageError: there are no such keys.
        :raise HostError: no firmware, no virt-fw-vars, or no room.
        """
        if self.policy.keys == "machine":
            if self.home is None:
                raise UsageError(
                    'keys = "machine" are those beside an installed disk',
                    remedy='write state = "installed" into [gate.secureboot], and give --iso-disk',
                )
            template = self.home.variables
        else:
            firmware = find_firmware(Firmware.UEFI_SECUREBOOT)
            if firmware is None:
                raise UsageError("no firmware with Secure Boot")
            template = firmware.variables.path
        with temporary("the firmware's variables"):
            shutil.copyfile(template, where)
            where.chmod(0o600)
        if self.policy.keys != "machine":
            enrol(where, self.keys, scratch, self.host.pace)

    def enrolled(self, variables: Path, scratch: Path) -> tuple[Database, ...]:
        """:raise HostError: they cannot be read."""
        found = databases(variables, _ENROLLED, scratch, self.host.pace)
        return tuple(database(name, raw) for name, raw in found.items())

    @property
    def deadline(self) -> float:
        """Of a boot that is watched until a kernel runs, in seconds."""
        return self.policy.deadline_s * self.host.pace

    def spec(self, name: str, scratch: Path, variables: Path, copy: Path | None, nonce: str | None) -> MachineSpec:
        """A machine with `variables`, started from `copy` (an overlay) or from the medium itself.

        :raise HostError: no room.
        """
        home = None
        if not self.medium.iso:
            home = Home.at(scratch / name)
            with temporary("the copy of a machine"):
                home.directory.mkdir(mode=0o700)
                shutil.copyfile(variables, home.variables)
            if copy is None:
                create_overlay(self.medium.path, home.disk)
            else:
                with temporary("the copy of a machine"):
                    copy.rename(home.disk)
            if self.home is not None:
                self.home.put_tpm(home)
        return MachineSpec(
            name=name,
            firmware=Firmware.UEFI_SECUREBOOT,
            cdrom=(copy or self.medium.path) if self.medium.iso else None,
            cdrom_format="qcow2" if self.medium.iso and copy is not None else "raw",
            variables=variables if self.medium.iso else None,
            home=home,
            memory_mib=self.machine.memory_mib,
            cpus=self.machine.cpus,
            cpu_model=self.machine.cpu_model,
            tpm=self.machine.tpm,
            channel=nonce,
            smbios_strings=() if nonce is None else Injection(nonce).smbios_strings(),
        )


@contextmanager
def scratch_directory() -> Iterator[Path]:
    """A private directory for copies; gone at the end."""
    path = workdir.make("secureboot")
    try:
        yield path
    finally:
        workdir.remove(path)


@dataclass(frozen=True)
class Sign:
    """A refusal's sign, ready to be searched."""

    row: Refusal
    regex: re.Pattern[str]


def signs(policy: SecureBootPolicy) -> tuple[Sign, ...]:
    """``data/secureboot.toml``, and what the profile adds for links after the first."""
    added = [Refusal(by="profile", refuses="later", regex=text, source="profile") for text in policy.refusals]
    return tuple(Sign(row, re.compile(row.regex, re.MULTILINE)) for row in (*refusals(), *added))


def told(texts: Sequence[str], known: Sequence[Sign], wanted: str) -> tuple[Sign, str] | None:
    """The most telling sign in what a console or screen shows, and where it is: one that `refuses` what is `wanted`
    before any other."""
    lines = [text.replace("\r", "\n") for text in texts]
    # A firmware's console breaks lines at its width (edk2, TerminalDxe).
    lines += [text.replace("\n", "") for text in lines]
    for sign in sorted(known, key=lambda sign: sign.row.refuses != wanted):
        for text in lines:
            match = sign.regex.search(text)
            if match is not None:
                return sign, one_line(match[0], _LINE)
    return None


class Launch(Boot):
    """A boot that is watched until a kernel runs, or until somebody has refused to start the next program."""

    def come(self, known: Sequence[Sign], wanted: str, settle_s: float) -> tuple[Came, Sign | None, str, float]:
        """What it comes to, by which sign, in which line, after how many seconds. Of several signs the one counts
        that `refuses` what is `wanted`. After a refusal it is watched for `settle_s` more: something else may be
        started.

        :raise HostError: QEMU or swtpm failed: no word about the guest.
        """
        machine = self.machine
        limit = self._plan.deadline_s
        sign: tuple[Sign, str] | None = None
        refused_at = 0.0
        next_look = 0.0
        ended = ""
        try:
            while machine.elapsed < limit:
                machine.check_guest()
                if machine.resets >= LOOP_RESETS:
                    raise GuestFailed(f"the guest reset the machine {machine.resets} times")
                if machine.elapsed >= next_look:
                    self._look()
                    next_look = machine.elapsed + SCREEN_SECONDS
                self._say()
                if self._kernel_at is not None:
                    break
                found = self._told(known, wanted)
                if found is not None and (sign is None or sign[0].row.refuses != wanted):
                    if sign is None:
                        refused_at = machine.elapsed
                        limit = min(limit, refused_at + settle_s)
                        self._shoot("refused")
                    sign = found
                machine.serial.wait_for_more(POLL_SECONDS)
        except GuestFailed as error:
            ended = error.what
            sign = self._told(known, wanted) or sign
        at = machine.elapsed
        self._last_look()
        by, line = sign if sign is not None else (None, "")
        if self._kernel_at is not None:
            return Came.STARTED, by, line, at
        if by is not None:
            return Came.REFUSED, by, line, refused_at or at
        return (Came.ENDED, None, ended, at) if ended else (Came.SILENT, None, self._last_words(), at)

    def _told(self, known: Sequence[Sign], wanted: str) -> tuple[Sign, str] | None:
        """The most telling sign on console or screen."""
        return told((strip_escapes(self.machine.serial.tail(_TAIL)), self._screen.text), known, wanted)

    def _last_words(self) -> str:
        lines = strip_escapes(self.machine.serial.tail(4096)).split("\n")
        return next((one_line(line, _LINE) for line in reversed(lines) if line.strip()), "")


@dataclass
class Observer:
    """Goes through the rows that spoil something; one key for all that it signs."""

    place: Place
    _signer: Signer | None = field(default=None, repr=False)

    def signer(self) -> Signer:
        """Made when it is first wanted."""
        if self._signer is None:
            self._signer = Signer.made("osgates, trusted by nobody")
        return self._signer

    def observe(self, case: str) -> SecureBootObservation:
        """A row that needs no guest's word.

        :raise OsgatesError: it could not be observed.
        """
        place = self.place
        tamper = tamper_of(case)
        if tamper is None:
            if case != UKI_ROW:
                raise UsageError(f"the row {case} asks the guest")
            return self._seen(case, ukis=read_ukis(place.medium, patterns(place.policy, Stage.UKI)))
        stage, way = tamper
        with scratch_directory() as scratch:
            variables = scratch / "enrolled.fd"
            place.variables(variables, scratch)
            enrolled = place.enrolled(variables, scratch)
            try:
                spoilt = spoil(place.medium, patterns(place.policy, stage), way, self.signer)
            except ImageError as error:
                return self._seen(case, enrolled=enrolled, error=error.what)
            if not spoilt.files or spoilt.bare:
                return self._seen(case, enrolled=enrolled, files=spoilt.files)
            return self._seen(
                case, enrolled=enrolled, files=spoilt.files, starts=self._starts(case, stage, way, spoilt, scratch)
            )

    def _starts(self, case: str, stage: Stage, way: Way, spoilt: Spoilt, scratch: Path) -> tuple[StartSeen, ...]:
        """The tampered boot, and its twin where that still proves something."""
        forbidden = way is Way.FORBIDDEN
        wanted = "first" if stage is self.place.policy.chain[0] else "later"
        tampered = self._start(case, "tampered", spoilt, (), spoilt.digests if forbidden else (), wanted, scratch)
        if tampered.came is not Came.REFUSED:
            return (tampered,)
        twin = self._start(
            case,
            "twin",
            spoilt,
            () if forbidden else spoilt.digests,
            (_ANOTHER,) if forbidden else (),
            wanted,
            scratch,
        )
        return (tampered, twin)

    def _start(
        self,
        case: str,
        role: str,
        spoilt: Spoilt,
        db: tuple[str, ...],
        dbx: tuple[str, ...],
        wanted: str,
        scratch: Path,
    ) -> StartSeen:
        place = self.place
        variables = scratch / f"{role}.fd"
        with temporary("the firmware's variables"):
            shutil.copyfile(scratch / "enrolled.fd", variables)
        for change, digests in ((allow, db), (forbid, dbx)):
            if digests:
                change(variables, digests, place.host.pace)
        copy = scratch / f"{role}.qcow2"
        spoilt.write(place.medium, copy, scratch)
        spec = place.spec(f"secureboot-{role}", scratch, variables, copy, None)
        records = place.records(f"{case}-{role}")
        plan = Plan(f"secureboot-{case}-{role}", place.boot, None, place.deadline)
        with Machine(spec, place.host, records) as machine:
            launch = Launch(machine, plan, place.progress)
            came, sign, line, at = launch.come(signs(place.policy), wanted, place.policy.settle_s * place.host.pace)
            text = strip_escapes(machine.serial.tail(_TAIL)).splitlines()
        return StartSeen(
            role="twin" if role == "twin" else "tampered",
            came=came,
            by="" if sign is None else sign.row.by,
            refuses="" if sign is None else sign.row.refuses,
            line=line,
            at=round(at, 1),
            db=db,
            dbx=dbx,
            records=f"machines/{records.name}",
            console=tuple(printable(each, _LINE) for each in text[-_CONSOLE_LINES:]),
        )

    def _seen(
        self,
        case: str,
        *,
        enrolled: tuple[Database, ...] = (),
        files: tuple[FileSeen, ...] = (),
        starts: tuple[StartSeen, ...] = (),
        **rest: object,
    ) -> SecureBootObservation:
        return seen(self.place, case, enrolled=enrolled, files=files, starts=starts, **rest)


def seen(place: Place, case: str, **facts: object) -> SecureBootObservation:
    """One row's observation."""
    common: dict[str, object] = {
        "accelerator": str(place.host.accelerator.kind),
        "deadline_s": place.deadline,
        "pace": place.host.pace,
    }
    return SecureBootObservation(case=case, state=place.state, **{**common, **facts})  # type: ignore[arg-type]


@dataclass(frozen=True)
class Asked:
    """A machine with the profile's keys and the guest channel, ready or not."""

    boot: Boot
    enrolled: tuple[Database, ...]
    ready: bool
    records: str


@contextmanager
def asked(place: Place) -> Iterator[Asked]:
    """Boot the medium as it was shipped.

    :raise OsgatesError: the host's fault: nothing is known of the guest.
    """
    with scratch_directory() as scratch:
        variables = scratch / "enrolled.fd"
        place.variables(variables, scratch)
        enrolled = place.enrolled(variables, scratch)
        nonce = new_nonce()
        spec = place.spec("secureboot-guest", scratch, variables, None, nonce)
        records = place.records("guest")
        emulated = place.host.accelerator.kind is AccelKind.TCG
        with Machine(spec, place.host, records, boot_check.patterns(emulated=emulated)) as machine:
            plan = Plan("secureboot-guest", place.boot, place.login, place.guest_deadline_s)
            boot = Boot(machine, plan, place.progress)
            yield Asked(boot, enrolled, boot.run(), f"machines/{records.name}")


def observe_guest(place: Place, case: str, machine: Asked) -> SecureBootObservation:
    """A row that asks the guest.

    :raise HostError: QEMU or swtpm died.
    """
    facts: dict[str, object] = {"enrolled": machine.enrolled, "records": machine.records}
    if not machine.ready:
        outcome = machine.boot.outcome
        booted = f"{outcome}: {one_line(machine.boot.detail, _LINE)}"
        return seen(place, case, booted=booted, failed=outcome is not boot_check.Outcome.TIMEOUT, **facts)
    shell = machine.boot.machine.shell
    try:
        if case == GUEST:
            return seen(place, case, guest=ask(shell), **facts)
        module = try_module(shell, place.policy.modules, way=case)
        return seen(place, case, module=module, **facts)
    except GuestError as error:
        return seen(place, case, error=error.what, **facts)
