"""What a guest's kernel says of Secure Boot, and whether it takes modules that it should not."""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import re
import shlex
import struct
import zlib
from collections.abc import Callable, Mapping

from pytest_osgates.checks.secureboot_model import MODULES, Database, GuestSeen, Load, ModuleSeen
from pytest_osgates.image import siglist
from pytest_osgates.image.authenticode import Signer
from pytest_osgates.vm.errors import ChannelError, ImageError
from pytest_osgates.vm.guest.channel import GuestShell
from pytest_osgates.vm.text import one_line, printable

_EFIVARS = "/sys/firmware/efi/efivars"
# UEFI 2.10, 3.3: EFI_GLOBAL_VARIABLE; 32.4.1: EFI_IMAGE_SECURITY_DATABASE_GUID; shim's own.
_GLOBAL = "8be4df61-93ca-11d2-aa0d-00e098032b8c"
_SECURITY = "d719b2cb-3d3a-4596-a3bc-dad00e67656f"
_SHIM = "605dab50-e046-4300-abb6-3dd810dd8b23"
_DATABASES = {"PK": _GLOBAL, "KEK": _GLOBAL, "db": _SECURITY, "dbx": _SECURITY, "MokListRT": _SHIM}
_MOST_VARIABLE = 1 << 20
_MOST_MODULE = 16 << 20
_SECONDS = 60.0
_LINES = 40
# Linux include/linux/module_signature.h: struct module_signature, and what follows it.
_TRAILER = b"~Module signature appended~\n"
_SIGNATURE = struct.Struct(">5B3xI")
# PKEY_ID_PKCS7.
_PKCS7 = 2
# The object identifiers of SHA-256, SHA-384 and SHA-512, up to their last byte: 2.16.840.1.101.3.4.2.
_SHA2 = bytes.fromhex("06096086480165030402")
# Of an ELF file: bytes that nobody reads (EI_PAD, elf(5)).
_PADDING = 15


def ask(shell: GuestShell) -> GuestSeen:
    """:raise GuestError: the guest does not answer."""
    return GuestSeen(
        secure_boot=_flag(shell, "SecureBoot"),
        setup_mode=_flag(shell, "SetupMode"),
        lockdown=_text(shell, "/sys/kernel/security/lockdown"),
        lsm=_text(shell, "/sys/kernel/security/lsm"),
        sig_enforce=_text(shell, "/sys/module/module/parameters/sig_enforce"),
        kernel=_text(shell, "/proc/sys/kernel/osrelease"),
        databases=tuple(_database(shell, name, guid) for name, guid in _DATABASES.items()),
    )


def _text(shell: GuestShell, path: str) -> str:
    done = shell.run(f"cat {path}", timeout=_SECONDS, max_output=1 << 16)
    return one_line(done.text, 300) if done.status == 0 else ""


def _variable(shell: GuestShell, name: str, guid: str) -> bytes | None:
    """Without its four bytes of attributes; None: it is not there."""
    done = shell.run(f"cat {_EFIVARS}/{name}-{guid}", timeout=_SECONDS, max_output=_MOST_VARIABLE)
    return done.stdout[4:] if done.status == 0 and len(done.stdout) > 4 else None


def _flag(shell: GuestShell, name: str) -> int | None:
    value = _variable(shell, name, _GLOBAL)
    return value[0] if value is not None and len(value) == 1 else None


def _database(shell: GuestShell, name: str, guid: str) -> Database:
    raw = _variable(shell, name, guid)
    return Database(name=name, error="it is not there") if raw is None else database(name, raw)


def database(name: str, raw: bytes) -> Database:
    """The keys in a variable."""
    try:
        entries = siglist.parse(raw)
    except ImageError as error:
        return Database(name=name, error=error.what)
    certificates = {
        entry.fingerprint: one_line(siglist.subject(entry.data), 300)
        for entry in entries
        if entry.kind == siglist.X509
    }
    others = sum(entry.kind != siglist.X509 for entry in entries)
    return Database(name=name, certificates=certificates, digests=others)


# -- modules


def try_module(
    shell: GuestShell, names: tuple[str, ...], *, way: str, signer: Callable[[], Signer]
) -> ModuleSeen | None:
    """Load one of the guest's modules spoilt in a `way` (a row of MODULES): with its signature taken away, with one
    by `signer` in its place, or with another byte below its own; then as it is. None: none could be tried.

    :raise GuestError: the guest does not answer.
    """
    in_use = {line.partition(" ")[0] for line in shell.run("cat /proc/modules", timeout=_SECONDS).text.splitlines()}
    for name in names:
        plain = name.replace("-", "_")
        if plain in in_use:
            continue
        pattern = shlex.quote(re.sub(r"[-_]", "[-_]", name) + ".ko*")
        command = f'find "/lib/modules/$(uname -r)" -type f -name {pattern} | head -n 1'
        path = shell.run(command, timeout=_SECONDS).text.strip("\n")
        if not path:
            continue
        try:
            intact = unpacked(shell.read_file(path, timeout=_SECONDS, max_size=_MOST_MODULE))
            if not stands_alone(intact):
                continue
            spoilt = _WAYS[way](intact, signer)
        except (ImageError, ChannelError):
            # Not signed, not read: the next one.
            continue
        tampered = _load(shell, plain, spoilt)
        return ModuleSeen(
            way=way,
            name=plain,
            path=one_line(path, 300),
            before=hashlib.sha256(intact).hexdigest(),
            after=hashlib.sha256(spoilt).hexdigest(),
            tampered=tampered,
            intact=_load(shell, plain, intact),
        )
    return None


def _load(shell: GuestShell, name: str, data: bytes) -> Load:
    """insmod(8), what the kernel says meanwhile, and rmmod(8)."""
    path = f"{shell.directory}/{name}.ko"
    shell.write_file(path, data)
    mark = f"osgates-module-{hashlib.sha256(data).hexdigest()[:16]}"
    done = shell.run(
        f"echo {mark} >/dev/kmsg; insmod {path} 2>&1; s=$?;"
        f' while read n rest; do [ "$n" = {name} ] && echo osgates-loaded; done </proc/modules; exit $s',
        timeout=_SECONDS,
        max_output=1 << 16,
    )
    log = shell.run(f"dmesg | sed -n '/{mark}/,$p' | tail -n +2 | head -n {_LINES}", timeout=_SECONDS)
    loaded = "osgates-loaded" in done.text.splitlines()
    if loaded:
        shell.run(f"rmmod {name}", timeout=_SECONDS)
    return Load(
        status=done.status,
        said=one_line(done.text.replace("osgates-loaded", ""), 300),
        log=tuple(printable(line, 300) for line in log.text.splitlines()[:_LINES]),
        loaded=loaded,
    )


def unpacked(raw: bytes) -> bytes:
    """A module as the kernel has it in memory: .ko, .ko.xz, .ko.zst, .ko.gz.

    :raise ImageError: it cannot be unpacked, or is larger than a module.
    """
    try:
        if raw.startswith(b"\xfd7zXZ\x00"):
            data = lzma.LZMADecompressor(memlimit=256 << 20).decompress(raw, _MOST_MODULE + 1)
        elif raw.startswith(b"\x28\xb5\x2f\xfd"):
            # Here, because it is seldom met.
            import zstandard

            with zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(io.BytesIO(raw)) as reader:
                data = reader.read(_MOST_MODULE + 1)
        elif raw.startswith(b"\x1f\x8b"):
            data = gzip.GzipFile(fileobj=io.BytesIO(raw)).read(_MOST_MODULE + 1)
        else:
            data = raw
    except (lzma.LZMAError, zlib.error, EOFError, OSError, ValueError) as error:
        raise ImageError(f"a module that cannot be unpacked: {error}") from error
    except Exception as error:
        if type(error).__module__.startswith("zstandard"):
            raise ImageError(f"a module that cannot be unpacked: {error}") from error
        raise
    if len(data) > _MOST_MODULE or not data.startswith(b"\x7fELF"):
        raise ImageError("no module, or one that is too large")
    return data


def stands_alone(module: bytes) -> bool:
    """Whether it needs no other module (modinfo(8), depends)."""
    match = re.search(rb"\x00depends=([^\x00]*)\x00", module)
    return match is not None and not match[1]


def without_signature(module: bytes, signer: Callable[[], Signer]) -> bytes:
    """:raise ImageError: it has none."""
    return module[: _signed_part(module)]


def signed_by_another(module: bytes, signer: Callable[[], Signer]) -> bytes:
    """The same module, signed as the kernel's scripts/sign-file does, by a key that the kernel does not know.

    By the digest that its own signature is made with: the kernel has that one, and a refusal for the want of another
    would be no refusal of the key. Linux Documentation/admin-guide/module-signing.rst.

    :raise ImageError: the module has no signature, or one by a digest that this version does not know.
    """
    # Here, because they take long, and only one row needs them.
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.serialization import Encoding
    from cryptography.hazmat.primitives.serialization.pkcs7 import PKCS7Options, PKCS7SignatureBuilder

    end = _signed_part(module)
    kinds: dict[int, hashes.SHA256 | hashes.SHA384 | hashes.SHA512] = {
        1: hashes.SHA256(),
        2: hashes.SHA384(),
        3: hashes.SHA512(),
    }
    at = module.find(_SHA2, end)
    kind = kinds.get(module[at + len(_SHA2)]) if at >= 0 else None
    if kind is None:
        raise ImageError("a module signed by a digest that is not one of SHA-256, SHA-384 and SHA-512")
    made = signer()
    # The kernel takes no attributes, and no certificates: it has its own (certs/system_keyring.c).
    signature = (
        PKCS7SignatureBuilder()
        .set_data(module[:end])
        .add_signer(made.certificate, made.key, kind)
        .sign(
            Encoding.DER,
            [
                PKCS7Options.DetachedSignature,
                PKCS7Options.Binary,
                PKCS7Options.NoAttributes,
                PKCS7Options.NoCerts,
            ],
        )
    )
    return module[:end] + signature + _SIGNATURE.pack(0, 0, _PKCS7, 0, 0, len(signature)) + _TRAILER


def with_another_byte(module: bytes, signer: Callable[[], Signer]) -> bytes:
    """A byte that nobody reads, but that is signed. :raise ImageError: the module has no signature."""
    _signed_part(module)
    made = bytearray(module)
    made[_PADDING] ^= 0x01
    return bytes(made)


def _signed_part(module: bytes) -> int:
    """How many bytes are signed. :raise ImageError: the module has no signature."""
    end = len(module) - len(_TRAILER) - _SIGNATURE.size
    if end < 64 or not module.endswith(_TRAILER):
        raise ImageError("a module without a signature")
    signer: int
    key: int
    size: int
    *_, signer, key, size = _SIGNATURE.unpack_from(module, end)
    if not 0 < (total := signer + key + size) < end - 64:
        raise ImageError("a module whose signature is damaged")
    return end - total


_WAYS: Mapping[str, Callable[[bytes, Callable[[], Signer]], bytes]] = dict(
    zip(MODULES, (without_signature, signed_by_another, with_another_byte), strict=True)
)
