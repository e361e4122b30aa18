"""A firmware's variables, changed while the machine is off, by virt-fw-vars of virt-firmware.

That edk2 takes them: variables in the flash image are not verified again when they are read, only when they are set
(edk2, SecurityPkg/Library/AuthVariableLib).
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from pytest_osgates.vm.errors import HostError
from pytest_osgates.vm.process import run, which
from pytest_osgates.vm.workdir import temporary

INSTALL = "pip install 'pytest-osgates[tpm]' (Debian 13: apt-get install python3-virt-firmware)"
_MODULE = "virt.firmware.vars"
# Whose keys these are: EFI_SIGNATURE_DATA, SignatureOwner (UEFI 2.10, 32.4.1).
_OWNER = "05c0de01-0000-4000-8000-00000000000f"
_SECONDS = 120.0
_VALID = timedelta(days=3650)


def program() -> list[str]:
    """How virt-fw-vars is started: as a module of this Python's, or by its name.

    :raise MissingTool: it is not installed.
    """
    try:
        if importlib.util.find_spec(_MODULE) is not None:
            return [sys.executable, "-m", _MODULE]
    except ImportError:
        # One of its parents is not there.
        pass
    return [which("virt-fw-vars", remedy=INSTALL)]


def secure_boot_off(variables: Path, patience: float = 1.0) -> None:
    """As its owner would in the firmware's menu: ``SecureBootEnable``. The keys stay.

    :raise HostError: the tool is missing or refuses the file.
    """
    _change(variables, ["--set-false", "SecureBootEnable"], patience)


def replace_keys(variables: Path, scratch: Path, patience: float = 1.0) -> None:
    """PK and KEK are somebody else's, and a certificate of theirs is in db beside those that were there: what was
    signed before still starts, and they can sign more.

    :raise HostError: the tool is missing or refuses the file.
    """
    key = str(_certificate(scratch))
    own = ("--set-pk", _OWNER, key, "--add-kek", _OWNER, key, "--add-db", _OWNER, key)
    _change(variables, ["--delete", "PK", "--delete", "KEK", *own], patience)


def add_key(variables: Path, scratch: Path, patience: float = 1.0) -> None:
    """One more certificate in db. :raise HostError: the tool is missing or refuses the file."""
    _change(variables, ["--add-db", _OWNER, str(_certificate(scratch))], patience)


@dataclass(frozen=True)
class Keys:
    """Certificates (DER) to be enrolled. `own`: PK and KEK are these alone; else they are added to none, and the
    template's stay. `microsoft`: what db has stays beside `db`."""

    pk: bytes = b""
    kek: tuple[bytes, ...] = ()
    db: tuple[bytes, ...] = ()
    mok: tuple[bytes, ...] = ()
    own: bool = False
    microsoft: bool = True


def enrol(variables: Path, keys: Keys, scratch: Path, patience: float = 1.0) -> None:
    """Give a firmware these keys. Its dbx stays.

    :raise HostError: the tool is missing or refuses the file.
    """
    changes: list[str] = []
    if keys.own:
        gone = ("PK", "KEK") if keys.microsoft else ("PK", "KEK", "db")
        changes += [word for name in gone for word in ("--delete", name)]
        changes += ["--set-pk", _OWNER, _written(scratch, "pk", keys.pk)]
    lists = (("--add-kek", keys.kek), ("--add-db", keys.db), ("--add-mok", keys.mok))
    for option, certificates in lists:
        for number, der in enumerate(certificates):
            changes += [option, _OWNER, _written(scratch, f"{option[6:]}-{number}", der)]
    if changes:
        _change(variables, changes, patience)


# Whose keys they are, and whether they count; shim's with them.
_KEYS = ("PK", "KEK", "db", "dbx", "SecureBootEnable", "CustomMode", "VendorKeysNv")
_SHIMS = (
    "MokList",
    "MokListX",
    "MokListTrusted",
    "MokSBState",
    "MokDBState",
    "MokNew",
    "MokAuth",
    "MokDel",
    "MokDelAuth",
)


def give_keys(variables: Path, template: Path, scratch: Path, patience: float = 1.0) -> None:
    """Put the keys of `template` in the place of those in `variables`, and none in shim's lists; everything else,
    boot entries among it, stays.

    :raise HostError: the tool is missing or refuses a file.
    """
    out = scratch / "keys.json"
    run(
        [*program(), "--input", str(template), "--output-json", str(out)],
        timeout=_SECONDS * patience,
        remedy=INSTALL,
    )
    try:
        with temporary("the firmware's variables as text"):
            told = json.loads(out.read_bytes())
            told["variables"] = [each for each in told["variables"] if each["name"] in _KEYS]
            out.write_text(json.dumps(told))
    except (ValueError, KeyError, TypeError) as error:
        raise HostError(f"virt-fw-vars says nothing usable of {template.name}: {error}", remedy=INSTALL) from error
    gone = [word for name in (*_KEYS, *_SHIMS) for word in ("--delete", name)]
    _change(variables, [*gone, "--set-json", str(out)], patience)


def allow(variables: Path, digests: Sequence[str], patience: float = 1.0) -> None:
    """SHA-256 digests (hexadecimal) of programs, into db.

    :raise HostError: the tool is missing or refuses the file.
    """
    _change(variables, [word for each in digests for word in ("--add-db-hash", _OWNER, each)], patience)


def forbid(variables: Path, digests: Sequence[str], patience: float = 1.0) -> None:
    """The same, into dbx.

    :raise HostError: the tool is missing or refuses the file.
    """
    _change(variables, [word for each in digests for word in ("--add-dbx-hash", _OWNER, each)], patience)


def databases(variables: Path, names: Sequence[str], scratch: Path, patience: float = 1.0) -> Mapping[str, bytes]:
    """What these variables hold, of those that are there.

    :raise HostError: the tool is missing or refuses the file.
    """
    out = scratch / "variables.json"
    argv = [*program(), "--input", str(variables), "--output-json", str(out)]
    run(argv, timeout=_SECONDS * patience, remedy=INSTALL)
    try:
        with temporary("the firmware's variables as text"):
            told = json.loads(out.read_bytes())["variables"]
        return {each["name"]: bytes.fromhex(each["data"]) for each in told if each["name"] in names}
    except (ValueError, KeyError, TypeError) as error:
        raise HostError(f"virt-fw-vars says nothing usable of {variables.name}: {error}", remedy=INSTALL) from error


# EFI_GLOBAL_VARIABLE (UEFI 2.10, 3.3): kept, for the firmware and for the running system.
_GLOBAL = "8be4df61-93ca-11d2-aa0d-00e098032b8c"
_KEPT = 7
_ENTRY = 0x05C0


def boot_first(variables: Path, option: bytes, scratch: Path, patience: float = 1.0) -> None:
    """Give the firmware an entry (`vm/load_option.py`), the first of its menu, and the next that it starts.

    :raise HostError: the tool is missing or refuses the file.
    """
    order = databases(variables, ("BootOrder",), scratch, patience).get("BootOrder", b"")
    number = _ENTRY.to_bytes(2, "little")
    made = {f"Boot{_ENTRY:04X}": option, "BootOrder": number + order, "BootNext": number}
    told = [{"name": name, "guid": _GLOBAL, "attr": _KEPT, "data": data.hex()} for name, data in made.items()]
    path = scratch / "entry.json"
    with temporary("a boot entry"):
        path.write_text(json.dumps({"version": 2, "variables": told}))
    _change(variables, ["--set-json", str(path)], patience)


def _written(scratch: Path, name: str, der: bytes) -> str:
    path = scratch / f"{name}.der"
    with temporary("a certificate"):
        path.write_bytes(der)
    return str(path)


def _change(variables: Path, changes: Sequence[str], patience: float) -> None:
    run([*program(), "--inplace", str(variables), *changes], timeout=_SECONDS * patience, remedy=INSTALL)


def _certificate(scratch: Path) -> Path:
    """A certificate whose private key nobody has."""
    # Here, because they take long, and only two tampers need them.
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import rsa
    from cryptography.x509.oid import NameOID

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "osgates tamper")])
    begun = datetime(2026, 1, 1)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begun)
        .not_valid_after(begun + _VALID)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = scratch / "tamper.pem"
    with temporary("a certificate"):
        path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return path
