"""The gate `secureboot`, one row: a copy of ISO or disk with one program spoilt, booted with the profile's keys.

Nothing is asked of a guest in these boots: who refuses says so on console and screen, and whether a kernel runs is
seen by the processor's descriptor table. The rows that ask the guest have a machine of their own, with the channel.
"""

from __future__ import annotations

import hashlib
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
from pytest_osgates.image import siglist
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
from pytest_osgates.vm.variables import Keys, allow, databases, enrol, forbid, give_keys
from pytest_osgates.vm.workdir import temporary

_ENROLLED = ("PK", "KEK", "db", "MokList")
_CONSOLE_LINES = 200
_LINE = 300
_TAIL = 1 << 16
# Of nothing that is ever started: the twin of a hash in dbx.
_ANOTHER = "05" * 32


@dataclass(frozen=True)
class Place:
    """What all rows have in common. `home`: the machine that an installed disk belongs to, if it is there.
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

    @property
    def entries(self) -> bool:
        """Whether the machine has the boot entries that its installer wrote; an ISO needs none."""
        return self.medium.iso or self.home is not None

    def expected(self) -> tuple[Database, ...]:
        """The certificates that the profile names, by the variables that they belong in.

        :raise UsageError: a file of the profile's is missing, or no certificate.
        """
        named = (("PK", (self.keys.pk,)), ("KEK", self.keys.kek), ("db", self.keys.db), ("MokList", self.keys.mok))
        return tuple(
            Database(
                name=name,
                certificates={
                    hashlib.sha256(der).hexdigest(): one_line(siglist.subject(der), _LINE) for der in ders if der
                },
            )
            for name, ders in named
        )

    def vendor(self, scratch: Path) -> tuple[Database, ...]:
        """The keys in the firmware vendor's template, which a machine's own are compared with.

        :raise UsageError: there is no such firmware.
        :raise HostError: they cannot be read.
        """
        return self.enrolled(self._template(), scratch) if self.policy.keys == "machine" else ()

    def _template(self) -> Path:
        firmware = find_firmware(Firmware.UEFI_SECUREBOOT)
        if firmware is None:
            raise UsageError("no firmware with Secure Boot")
        return firmware.variables.path

    def variables(self, where: Path, scratch: Path) -> None:
        """Write the firmware's variables with the profile's keys. Those of an installed machine keep the rest of what
        they have: without its boot entries, it might not start at all.

        :raise UsageError: there are no such keys.
        :raise HostError: no firmware, no virt-fw-vars, or no room.
        """
        if self.policy.keys == "machine" and self.home is None:
            raise UsageError(
                'keys = "machine" are those beside an installed disk',
                remedy='write state = "installed" into [gate.secureboot], and give --iso-disk',
            )
        source = self._template() if self.home is None else self.home.variables
        with temporary("the firmware's variables"):
            shutil.copyfile(source, where)
            where.chmod(0o600)
        if self.policy.keys != "machine":
            if self.home is not None:
                give_keys(where, self._template(), scratch, self.host.pace)
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
    # "first", "later", or "another": somebody's who does not start the link that was spoilt.
    refuses: str


def signs(policy: SecureBootPolicy, stage: Stage) -> tuple[Sign, ...]:
    """``data/secureboot.toml``, and what the profile adds for links after the first; `stage`: the spoilt link."""
    links = tuple(Stage)
    added = [
        Refusal(by="profile", refuses="later", links=links, regex=text, source="profile") for text in policy.refusals
    ]
    found = []
    for row in (*refusals(), *added):
        foreign = row.refuses == "later" and stage not in row.links
        found.append(Sign(row, re.compile(row.regex, re.MULTILINE), "another" if foreign else row.refuses))
    return tuple(found)


# edk2, OvmfPkg PlatformBmPrintScLib: what it starts, with the file where its boot entry has one.
_STARTING = re.compile(r'BdsDxe: starting Boot[0-9A-F]{4} "[^"]{0,200}" from ')
_PATH = re.compile(r'(?:[A-Za-z]+\([^()]{0,200}\)/?)*(?P<file>\\[^:"]{1,300}?\.efi)?', re.IGNORECASE)
# Its shell and its menu, which are in itself; what comes over a network.
_OWN = re.compile(r"Fv\(|[^\\]{0,300}?\bMAC\(")
# UEFI 2.10, 3.5.1.1: of a medium whose entry names no file.
_DEFAULT = "/EFI/BOOT/BOOTX64.EFI"


def loaded(console: str) -> str:
    """The program that the firmware said last that it starts, of a medium; empty if it did not say."""
    # Its console breaks lines at its width.
    joined = console.replace("\r", "").replace("\n", "")
    found = ""
    for match in _STARTING.finditer(joined):
        place = joined[match.end() : match.end() + 600].partition("BdsDxe:")[0]
        if _OWN.match(place):
            continue
        path = _PATH.match(place)
        file = path["file"] if path is not None else None
        found = file.replace("\\", "/") if file else _DEFAULT
    return one_line(found, _LINE)


def told(texts: Sequence[str], known: Sequence[Sign], wanted: str) -> tuple[Sign, str] | None:
    """The most telling sign in what a console or screen shows, and where it is: one that `refuses` what is `wanted`
    before any other."""
    lines = [text.replace("\r", "\n") for text in texts]
    # A firmware's console breaks lines at its width (edk2, TerminalDxe).
    lines += [text.replace("\n", "") for text in lines]
    for sign in sorted(known, key=lambda sign: sign.refuses != wanted):
        for text in lines:
            match = sign.regex.search(text)
            if match is not None:
                return sign, one_line(match[0], _LINE)
    return None


@dataclass(frozen=True)
class Landing:
    """What a watched boot came to, by which sign, in which line, after how many seconds. `restless`: it was refused,
    and still did something when the deadline was over."""

    came: Came
    sign: Sign | None
    line: str
    at: float
    restless: bool = False


class Launch(Boot):
    """A boot that is watched until a kernel runs, or until somebody has refused to start the next program."""

    def come(self, known: Sequence[Sign], wanted: str, settle_s: float) -> Landing:
        """What it comes to. Of several signs the one counts that `refuses` what is `wanted`. After a refusal it is
        watched until nothing was said, read or shown for `settle_s`: something else may be started, and a sign may be
        about something else.

        :raise HostError: QEMU or swtpm failed: no word about the guest.
        """
        machine = self.machine
        sign: tuple[Sign, str] | None = None
        refused_at = alive_at = 0.0
        life: tuple[object, ...] = ()
        next_look = 0.0
        ended = ""
        restless = False
        try:
            while True:
                now = machine.elapsed
                machine.check_guest()
                if machine.resets >= LOOP_RESETS:
                    raise GuestFailed(f"the guest reset the machine {machine.resets} times")
                if now >= next_look:
                    self._look()
                    next_look = machine.elapsed + SCREEN_SECONDS
                self._say()
                if self._kernel_at is not None:
                    break
                if (signs_of_life := self._life()) != life:
                    life, alive_at = signs_of_life, now
                found = self._told(known, wanted)
                if found is not None and (sign is None or sign[0].refuses != wanted):
                    if sign is None:
                        refused_at = now
                        self._shoot("refused")
                    sign = found
                still = now - max(alive_at, refused_at) >= settle_s
                if sign is not None and still:
                    break
                if now >= self._plan.deadline_s:
                    restless = sign is not None
                    break
                machine.serial.wait_for_more(POLL_SECONDS)
        except GuestFailed as error:
            ended = error.what
            sign = self._told(known, wanted) or sign
        at = machine.elapsed
        self._last_look()
        by, line = sign if sign is not None else (None, "")
        if self._kernel_at is not None:
            return Landing(Came.STARTED, by, line, at)
        if by is not None:
            return Landing(Came.REFUSED, by, line, refused_at or at, restless)
        return Landing(Came.ENDED, None, ended, at) if ended else Landing(Came.SILENT, None, self._last_words(), at)

    def _life(self) -> tuple[object, ...]:
        """What changes as long as something happens. A cursor that blinks is no change."""
        return (self.machine.serial.spoken, self._screen.reads, self._screen.changed_at)

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
        tampered = self._start(case, "tampered", spoilt, (), spoilt.digests if forbidden else (), stage, scratch)
        if tampered.came is not Came.REFUSED:
            return (tampered,)
        twin = self._start(
            case,
            "twin",
            spoilt,
            () if forbidden else spoilt.digests,
            (_ANOTHER,) if forbidden else (),
            stage,
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
        stage: Stage,
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
        wanted = "first" if stage is place.policy.chain[0] else "later"
        with Machine(spec, place.host, records) as machine:
            launch = Launch(machine, plan, place.progress)
            settle_s = place.policy.settle_s * place.host.pace
            landing = launch.come(signs(place.policy, stage), wanted, settle_s)
            console = strip_escapes(machine.serial.tail(_TAIL))
        sign = landing.sign
        return StartSeen(
            role="twin" if role == "twin" else "tampered",
            came=landing.came,
            by="" if sign is None else sign.row.by,
            refuses="" if sign is None else sign.refuses,
            line=landing.line,
            at=round(landing.at, 1),
            restless=landing.restless,
            loaded=loaded(console),
            db=db,
            dbx=dbx,
            records=f"machines/{records.name}",
            console=tuple(printable(each, _LINE) for each in console.splitlines()[-_CONSOLE_LINES:]),
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
        "entries": place.entries,
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
    expected: tuple[Database, ...]
    vendor: tuple[Database, ...]
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
        expected, vendor = place.expected(), place.vendor(scratch)
        nonce = new_nonce()
        spec = place.spec("secureboot-guest", scratch, variables, None, nonce)
        records = place.records("guest")
        emulated = place.host.accelerator.kind is AccelKind.TCG
        with Machine(spec, place.host, records, boot_check.patterns(emulated=emulated)) as machine:
            plan = Plan("secureboot-guest", place.boot, place.login, place.guest_deadline_s)
            boot = Boot(machine, plan, place.progress)
            yield Asked(boot, enrolled, expected, vendor, boot.run(), f"machines/{records.name}")


def observe_guest(place: Place, case: str, machine: Asked, signer: Callable[[], Signer]) -> SecureBootObservation:
    """A row that asks the guest. `signer`: a key that nobody trusts.

    :raise HostError: QEMU or swtpm died.
    """
    facts: dict[str, object] = {
        "enrolled": machine.enrolled,
        "expected": machine.expected,
        "vendor": machine.vendor,
        "records": machine.records,
    }
    if not machine.ready:
        outcome = machine.boot.outcome
        booted = f"{outcome}: {one_line(machine.boot.detail, _LINE)}"
        return seen(
            place,
            case,
            booted=booted,
            failed=outcome is not boot_check.Outcome.TIMEOUT,
            consoles=machine.boot.observation().console,
            **facts,
        )
    shell = machine.boot.machine.shell
    try:
        if case == GUEST:
            return seen(place, case, guest=ask(shell), **facts)
        module = try_module(shell, place.policy.modules, way=case, signer=signer)
        return seen(place, case, module=module, **facts)
    except GuestError as error:
        return seen(place, case, error=error.what, **facts)
