"""What the gate `secureboot` sees and what it is told to demand."""

from __future__ import annotations

import re
from enum import StrEnum
from functools import cache
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from pytest_osgates.data import load
from pytest_osgates.model import Contradiction, Model, Observation, Policy, State

GUEST = "guest"
UKI_ROW = "uki"
MODULES = ("module-unsigned", "module-wrongly-signed", "module-changed")
TAMPERED, TWIN = "tampered", "twin"


class Stage(StrEnum):
    """A link of the chain that starts the machine; each verifies the next."""

    SHIM = "shim"
    LOADER = "loader"
    KERNEL = "kernel"
    UKI = "uki"


class Way(StrEnum):
    """What is done to a link."""

    UNSIGNED = "unsigned"  # its signatures are taken away
    WRONG = "wrongly-signed"  # signed by a key of this run's, which nobody trusts
    CHANGED = "changed"  # a byte is another one, below the signature that was shipped
    FORBIDDEN = "in-dbx"  # what was shipped, its hash in dbx


class Refusal(Model):
    """A row of ``data/secureboot.toml``."""

    by: str
    refuses: Literal["first", "later"]
    links: tuple[Stage, ...] = ()
    regex: str
    source: str


class ModuleRefusal(Model):
    """How a kernel says that it takes no module without its own signature."""

    name: str
    ways: tuple[str, ...] = Field(min_length=1)
    error: str
    log: str
    source: str


@cache
def refusals() -> tuple[Refusal, ...]:
    """All that are known."""
    return tuple(Refusal.model_validate(row) for row in load("secureboot")["refusal"])


@cache
def module_refusals() -> tuple[ModuleRefusal, ...]:
    """All that are known."""
    return tuple(ModuleRefusal.model_validate(row) for row in load("secureboot")["module"])


@cache
def microsofts(database: str) -> frozenset[str]:
    """SHA-256 of Microsoft's certificates for KEK or db."""
    return frozenset(row["sha256"] for row in load("secureboot")["microsoft"] if row["database"] == database)


def default_modules() -> tuple[str, ...]:
    """The first that a kernel has and does not use is tried."""
    return tuple(load("secureboot")["modules"]["names"])


class Database(Model):
    """A variable with keys: SHA-256 of each certificate with its subject, and how many other entries: digests of
    programs, or keys without a certificate. `error`: why it was not read."""

    name: str
    certificates: dict[str, str] = Field(default_factory=dict)
    digests: int = 0
    error: str = ""

    @property
    def microsoft(self) -> tuple[str, ...]:
        """Subjects of Microsoft's certificates."""
        return tuple(text for text in self.certificates.values() if re.search(r"(?:^|,)O=Microsoft", text))


class GuestSeen(Model):
    """What the guest's own kernel says, over the channel. Texts are as they were read; empty: not readable.

    `secure_boot`, `setup_mode`: the values of the UEFI variables (UEFI 2.10, 3.3); None: not readable.
    """

    secure_boot: int | None = None
    setup_mode: int | None = None
    lockdown: str = ""
    lsm: str = ""
    sig_enforce: str = ""
    kernel: str = ""
    databases: tuple[Database, ...] = ()

    def database(self, name: str) -> Database | None:
        """The one of this name."""
        return next((entry for entry in self.databases if entry.name == name), None)


class Load(Model):
    """One insmod: its status, what it said, the kernel's lines since then, and whether the module was there after."""

    status: int
    said: str = ""
    log: tuple[str, ...] = ()
    loaded: bool = False


class ModuleSeen(Model):
    """A module of the guest's, loaded as it is, and changed as the row `way` says. `before`, `after`: SHA-256."""

    way: str
    name: str
    path: str
    before: str
    after: str
    intact: Load
    tampered: Load


class FileSeen(Model):
    """A program of the chain on the copy. `digest_*`: what db and dbx would hold (Authenticode, SHA-256);
    `signatures`: of the shipped one."""

    name: str
    size: int
    signatures: int
    before: str
    after: str
    digest_before: str
    digest_after: str


class Came(StrEnum):
    """What a boot came to."""

    STARTED = "started"  # a kernel runs
    REFUSED = "refused"  # somebody said so, and no kernel ran
    SILENT = "silent"  # neither, until the deadline
    ENDED = "ended"  # it switched itself off, or went round in a circle, without a word of refusal


class StartSeen(Model):
    """One boot, watched until a kernel runs or was refused. `by`, `refuses`: of the sign in `line`, "another" where
    it is of no refusal of this link. `restless`: at the deadline something still happened after the refusal.
    `loaded`: the program that the firmware said it starts, empty if it did not say. `db`, `dbx`: digests that were
    added to the firmware's variables for this boot."""

    role: Literal["tampered", "twin"]
    came: Came
    by: str = ""
    refuses: str = ""
    line: str = ""
    at: float = 0.0
    restless: bool = False
    loaded: str = ""
    db: tuple[str, ...] = ()
    dbx: tuple[str, ...] = ()
    records: str = ""
    console: tuple[str, ...] = ()


class PcrSignature(Model):
    """An entry of a unified kernel image's .pcrsig: which PCRs, whether its policy is that of the image's own
    sections in a phase of the boot, and whether its signature is by the key in .pcrpkey."""

    pcrs: tuple[int, ...]
    phase: str = ""
    policy_fits: bool = False
    signature_fits: bool = False


class UkiSeen(Model):
    """A unified kernel image (UAPI.5): `sections` by name with SHA-256. `pcr11`: what systemd-stub measures of it."""

    name: str
    sections: dict[str, str] = Field(default_factory=dict)
    cmdline: str = ""
    pcr11: str = ""
    signed: tuple[PcrSignature, ...] = ()
    error: str = ""


class SecureBootObservation(Observation):
    """One row. `enrolled`: the keys in the variables that it was booted with; `expected`: those that the profile
    names, `vendor`: those of the firmware vendor's template. `entries`: the variables have the machine's own boot
    entries, or it needs none. `booted`: what became of the boot of the rows that ask the guest, empty if it was
    ready; `failed`: it is known not to get ready ever; `consoles`: what it showed then, by source."""

    case: str
    state: State
    enrolled: tuple[Database, ...] = ()
    expected: tuple[Database, ...] = ()
    vendor: tuple[Database, ...] = ()
    entries: bool = True
    files: tuple[FileSeen, ...] = ()
    starts: tuple[StartSeen, ...] = ()
    guest: GuestSeen | None = None
    booted: str = ""
    failed: bool = False
    consoles: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    module: ModuleSeen | None = None
    ukis: tuple[UkiSeen, ...] = ()
    records: str = ""
    error: str = ""
    accelerator: str = ""
    deadline_s: float = 0.0
    pace: float = Field(default=1.0, gt=0, allow_inf_nan=False)

    @property
    def considered(self) -> int | None:
        asked = (self.guest is not None) + (self.module is not None)
        return len(self.files) + len(self.starts) + len(self.ukis) + asked


def _compiles(pattern: str) -> str:
    try:
        compiled = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"not a regular expression: {error}") from error
    if compiled.search(""):
        raise ValueError("a pattern that fits an empty text fits anything")
    return pattern


def _module(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,60}", name):
        raise ValueError("the name of a module, without path and suffix")
    return name


Regex = Annotated[str, AfterValidator(_compiles)]
ModuleName = Annotated[str, AfterValidator(_module)]
Paths = tuple[str, ...]


class SecureBootPolicy(Policy):
    """``[gate.secureboot]`` of a distro profile. Seconds."""

    chain: tuple[Stage, ...] = (Stage.SHIM, Stage.LOADER, Stage.KERNEL)
    files: dict[Stage, tuple[Regex, ...]] = Field(default_factory=dict)
    keys: Literal["microsoft", "own", "machine"] = "microsoft"
    microsoft: bool | None = None
    pk: str = ""
    kek: Paths = ()
    db: Paths = ()
    mok: Paths = ()
    lockdown: Literal["integrity", "confidentiality"] = "integrity"
    accept_sig_enforce: str = ""
    pcr_signature: bool = False
    modules: tuple[ModuleName, ...] = Field(default_factory=default_modules, min_length=1)
    refusals: tuple[Regex, ...] = ()
    settle_s: float = Field(default=30.0, ge=30)
    deadline_s: float = Field(default=300.0, gt=0)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        order = list(Stage)
        if list(self.chain) != sorted(set(self.chain), key=order.index) or not self.chain:
            raise Contradiction("each link once, in the order shim, loader, kernel, uki", [("chain",)])
        if (Stage.KERNEL in self.chain) is (Stage.UKI in self.chain):
            raise Contradiction("a chain ends with a kernel or a unified kernel image (uki)", [("chain",)])
        if unknown := [str(stage) for stage in self.files if stage not in self.chain]:
            raise Contradiction(f"files of {', '.join(unknown)}, which the chain does not have", [("files",)])
        own = bool(self.pk or self.kek)
        if self.keys == "own" and not (self.pk and self.kek):
            raise Contradiction("own keys are pk and kek at least", [("keys",)])
        if self.keys == "own" and not self.db and not self.with_microsoft:
            raise Contradiction("with nobody's key in db, nothing is ever started", [("db",)])
        if self.keys == "microsoft" and own:
            raise Contradiction('pk and kek are for keys = "own" and "machine"', [("keys",)])
        if self.keys == "microsoft" and not self.with_microsoft:
            raise Contradiction('without Microsoft\'s keys, there are keys = "own" and "machine"', [("microsoft",)])
        return self

    @property
    def with_microsoft(self) -> bool:
        """Whether Microsoft's certificates are to be in db; without a word, as the keys have it."""
        return self.keys == "microsoft" if self.microsoft is None else self.microsoft

    def rows(self) -> tuple[str, ...]:
        """The tests that make the gate."""
        found = [GUEST]
        for stage in self.chain:
            ways = (Way.UNSIGNED, Way.WRONG, Way.CHANGED) if stage is Stage.UKI else (Way.UNSIGNED, Way.WRONG)
            found += [f"{stage}-{way}" for way in ways]
        found.append(f"{self.chain[0]}-{Way.FORBIDDEN}")
        if Stage.UKI in self.chain:
            found.append(UKI_ROW)
        return (*found, *MODULES)


def tamper_of(case: str) -> tuple[Stage, Way] | None:
    """What is done to which link in a row; None: it is one of the other rows.

    :raise KeyError: there is no such row.
    """
    if case in (GUEST, UKI_ROW, *MODULES):
        return None
    for stage in Stage:
        for way in Way:
            if case == f"{stage}-{way}":
                return stage, way
    raise KeyError(case)


def patterns(policy: SecureBootPolicy, stage: Stage) -> re.Pattern[str]:
    """Which paths are programs of this link."""
    rows = {row["name"]: row["files"] for row in load("secureboot")["stage"]}
    texts = list(policy.files.get(stage, ())) or list(rows[str(stage)])
    if stage not in policy.files and stage is policy.chain[0]:
        texts += load("secureboot")["first"]
    return re.compile("|".join(f"(?:{text})" for text in texts), re.IGNORECASE)
