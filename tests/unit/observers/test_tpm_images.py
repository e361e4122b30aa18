"""Tampers on a disk of unified kernel images, with the real tools; the original stays what it is."""

from __future__ import annotations

import contextlib
import struct
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from pytest_osgates.checks.tpm_model import as_made, tampers
from pytest_osgates.image import authenticode, uki
from pytest_osgates.image.authenticode import Signer
from pytest_osgates.image.disk.partitions import read_table
from pytest_osgates.image.disk.source import open_disk
from pytest_osgates.image.newc import appended_archive
from pytest_osgates.image.uki_sign import PolicyKey
from pytest_osgates.observers.tpm_images import credentials, images_of, options_for, signed_again, with_parameter
from pytest_osgates.observers.tpm_tamper import Workshop
from pytest_osgates.vm import tpm, variables
from pytest_osgates.vm.errors import ImageError, UsageError
from pytest_osgates.vm.home import Home
from pytest_osgates.vm.host import find_firmware
from pytest_osgates.vm.load_option import load_option
from pytest_osgates.vm.spec import Firmware
from pytest_osgates.vm.variables import Keys, enrol
from tests.disk_builders import ESP, fat, gpt
from tests.pe_builders import program, signed
from tests.unit.observers.test_tpm_tamper import file_of

MIB = 1 << 20
GUID = "05c0de01-0000-4000-8000-000000000101"
PATH = "EFI/BOOT/BOOTX64.EFI"
PARTS = {
    ".text": b"stub",
    ".sdmagic": b"#### LoaderInfo: systemd-stub 252 ####\0",
    ".osrel": b"ID=x\n",
    ".cmdline": b"root=x quiet",
    ".linux": b"kernel" * 500,
    ".initrd": b"initrd" * 700,
}
OTHER = {".text": b"no image"}


@pytest.fixture(scope="module")
def owner() -> Signer:
    return Signer.made("owner")


@pytest.fixture(scope="module")
def parts_of_a_machine(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A firmware's variables and a TPM."""
    home = Home.at(tmp_path_factory.mktemp("parts"))
    files = find_firmware(Firmware.UEFI_SECUREBOOT)
    assert files is not None
    home.variables.write_bytes(files.variables.path.read_bytes())
    home.tpm.mkdir()
    tpm.clear(home.tpm, home.directory / "log")
    return home


def shop_of(files: dict[str, bytes], parts: Home, owner: Signer, tmp_path: Path) -> Workshop:
    home = Home.at(tmp_path / "machine")
    home.directory.mkdir()
    esp = fat(tmp_path / "esp", files).read_bytes()
    disk = gpt((2 * MIB + len(esp)) // 512, (ESP, 2048, len(esp) // 512, "esp"))
    disk[MIB : MIB + len(esp)] = esp
    (tmp_path / "raw").write_bytes(disk)
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", str(tmp_path / "raw"), str(home.disk)], check=True)
    parts.put_variables(home)
    parts.put_tpm(home)
    others = {"uki_key": tmp_path / "key.pem", "uki_certificate": tmp_path / "certificate.pem"}
    for path, content in zip(others.values(), owner.pem(), strict=True):
        path.write_bytes(content)
    copy = home.copy(tmp_path / "copy")
    made = Workshop(home, copy, Firmware.UEFI_SECUREBOOT, "x=1", tmp_path, tmp_path / "log", others=others)
    return made


@pytest.fixture
def shop(parts_of_a_machine: Home, owner: Signer, tmp_path: Path) -> Workshop:
    files = {PATH: signed(PARTS, owner), "EFI/BOOT/mmx64.efi": signed(OTHER, owner), "EFI/x.efi": b"MZ"}
    return shop_of(files, parts_of_a_machine, owner, tmp_path)


@pytest.mark.parametrize(
    ("name", "what", "section", "content"),
    [
        ("image-command-line-edited", "image", ".cmdline", b"root=x quiet x=1"),
        ("initrd-replaced", "image", ".initrd", None),
    ],
)
def test_an_image_is_changed_and_signed_again(
    name: str, what: str, section: str, content: bytes | None, shop: Workshop, owner: Signer, tmp_path: Path
) -> None:
    (change,) = shop.apply(tampers()[name])
    assert (change.what, change.before != change.after, change.besides) == (what, True, "")
    assert change.before.startswith(f"/{PATH} ")
    made = file_of(shop.home.disk, PATH, tmp_path)
    parts = uki.sections(made)
    if content is None:
        mark = {"etc/osgates-tampered": (0o644, b"This initrd is not what was shipped.\n")}
        content = PARTS[section] + appended_archive(len(PARTS[section]), mark)
    assert parts == {**PARTS, section: content}
    (blob,) = authenticode.signatures(made)
    assert authenticode.digest(made) in blob
    assert owner.der in blob
    assert file_of(shop.home.disk, "EFI/BOOT/mmx64.efi", tmp_path) == signed(OTHER, owner)
    tamper = as_made(tampers()[name], (change,))
    assert tamper.changes == ("image",)
    assert {11, 4} <= {entry.pcr for entry in tamper.pcrs}
    shop.undo(tampers()[name])
    assert uki.sections(file_of(shop.home.disk, PATH, tmp_path)) == PARTS


@pytest.mark.parametrize("name", ["image-command-line-edited", "initrd-replaced"])
def test_without_its_owners_key_no_image_is_tried(name: str, shop: Workshop, owner: Signer, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="has a signature over them") as caught:
        replace(shop, others={}).apply(tampers()[name])
    assert "uki_key" in (caught.value.remedy or "")
    another = Signer.made("another").pem()
    for path, content in zip(shop.others.values(), another, strict=True):
        path.write_bytes(content)
    with pytest.raises(ImageError, match="not signed by uki_key alone: in an image by another key PCR 7 sees that"):
        shop.apply(tampers()[name])
    shop.others["uki_certificate"].write_bytes(owner.pem()[1])
    with pytest.raises(UsageError, match="the certificate is of another key"):
        shop.apply(tampers()[name])
    shop.others["uki_key"].unlink()
    with pytest.raises(UsageError, match="No such file"):
        shop.apply(tampers()[name])


def public(signer: Signer) -> bytes:
    key = signer.certificate.public_key()
    return bytes(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def test_whoever_signs_the_pcrs_by_the_same_key_would_sign_them_anew(owner: Signer) -> None:
    """With the .pcrsig as it was, it asks; with one of the same key about the changed image, it would not."""
    change = signed_again(with_parameter("x=1"), owner)
    for parts in (
        {**PARTS, ".pcrsig": b"{}"},
        {**PARTS, ".pcrsig": b"{}", ".pcrpkey": b"no key"},
        {**PARTS, ".pcrsig": b"{}", ".pcrpkey": public(owner)},
    ):
        with pytest.raises(ImageError, match="policies for PCRs may be signed by uki_key"):
            change(signed(parts, owner))
    key = PolicyKey.made()
    named = {**PARTS, ".pcrpkey": key.public_pem()}
    another = {**named, ".pcrsig": key.policies(named)}
    assert uki.sections(change(signed(another, owner)))[".cmdline"] == b"root=x quiet x=1"
    assert change(signed({**PARTS, ".pcrpkey": public(owner)}, owner))
    # Whoever's key is named: these are the owner's, and a machine goes by its token.
    decoy = {**named, ".pcrsig": PolicyKey(owner.key).policies(named)}
    with pytest.raises(ImageError, match="policies for PCRs may be signed by uki_key"):
        change(signed(decoy, owner))
    for token, is_tried in ((public(owner), False), (b"no key", False), (key.public_pem(), True)):
        with contextlib.nullcontext() if is_tried else pytest.raises(ImageError, match="may be signed by uki_key"):
            # Also where the signatures lie in the initrd.
            signed_again(with_parameter("x=1"), owner, (token,))(signed(PARTS, owner))


def test_an_image_with_another_signature_as_well_is_not_tried(owner: Signer) -> None:
    """By which key a firmware verified it is in PCR 7."""
    change = signed_again(with_parameter("x=1"), owner)
    another = Signer.made("another")
    first = authenticode.newly_signed(program(PARTS), another)
    both = with_signature(first, owner)
    assert len(authenticode.signatures(both)) == 2
    for data in (
        first,
        both,
        with_signature(authenticode.newly_signed(program(PARTS), owner), another),
        program(PARTS),
    ):
        with pytest.raises(ImageError, match="not signed by uki_key alone"):
            change(data)
    assert change(with_signature(authenticode.newly_signed(program(PARTS), owner), owner))


def with_signature(data: bytes, signer: Signer) -> bytes:
    """One more, behind those that it has."""
    blob = signer.sign(authenticode.digest(data))
    entry = struct.pack("<IHH", len(blob) + 8, 0x0200, 2) + blob
    entry += bytes(-len(entry) % 8)
    made = bytearray(data + entry)
    at = 64 + 24 + 112 + 4 * 8
    start, length = struct.unpack_from("<II", made, at)
    struct.pack_into("<II", made, at, start, length + len(entry))
    return bytes(made)


def test_an_image_with_profiles_is_not_tried(shop: Workshop, owner: Signer) -> None:
    with pytest.raises(ImageError, match="with profiles: which of its sections"):
        signed_again(with_parameter("x=1"), owner)(signed({**PARTS, ".profile": b"ID=main"}, owner))
    (image,) = images_of(shop.original.disk)
    with pytest.raises(ImageError, match="with profiles: load options choose one"):
        options_for((replace(image, parts={**PARTS, ".profile": b"ID=main"}),), "x=1")


@pytest.mark.parametrize("name", ["foo+3.efi", "foo+2-1.EFI"])
def test_whose_name_counts_boots_gets_no_credential(name: str, shop: Workshop) -> None:
    (image,) = images_of(shop.original.disk)
    with pytest.raises(ImageError, match="counts boots") as caught:
        credentials((replace(image, path=f"/EFI/Linux/{name}"),))
    assert "systemd-bless-boot" in (caught.value.remedy or "")
    assert credentials((replace(image, path="/EFI/Linux/foo+x.efi"),))


def test_a_credential_lies_beside_each_image(shop: Workshop, tmp_path: Path) -> None:
    (change,) = shop.apply(tampers()["credential-added"])
    name = f"{PATH}.extra.d/osgates-tampered.cred"
    assert (change.what, change.before) == ("disk", f"/{name} none")
    assert file_of(shop.home.disk, name, tmp_path) == b"tampered\n"
    assert uki.sections(file_of(shop.home.disk, PATH, tmp_path)) == PARTS
    shop.undo(tampers()["credential-added"])
    check = ["qemu-img", "compare", str(shop.original.disk), str(shop.home.disk)]
    assert subprocess.run(check, check=False, stdout=subprocess.DEVNULL).returncode == 0


@pytest.mark.parametrize("there", ["mine.cred", "addon/mine.addon.efi"])
def test_its_directory_may_be_there_already(
    there: str, parts_of_a_machine: Home, owner: Signer, tmp_path: Path
) -> None:
    """With add-ons or credentials of the machine's own; and FAT knows no case."""
    files = {PATH: signed(PARTS, owner), f"{PATH}.EXTRA.D/{there}": b"mine"}
    shop = shop_of(files, parts_of_a_machine, owner, tmp_path)
    shop.apply(tampers()["credential-added"])
    assert file_of(shop.home.disk, f"{PATH}.extra.d/osgates-tampered.cred", tmp_path) == b"tampered\n"
    assert file_of(shop.home.disk, f"{PATH}.extra.d/{there}", tmp_path) == b"mine"


def test_no_credential_is_written_over(shop: Workshop, tmp_path: Path) -> None:
    credential = {f"{PATH}.extra.d/osgates-tampered.cred": b"mine"}
    other = tmp_path / "other"
    other.mkdir()
    there = shop_of({PATH: program(PARTS), **credential}, shop.original, Signer.made("x"), other)
    with pytest.raises(ImageError, match="is there already"):
        there.apply(tampers()["credential-added"])


def test_another_stub_takes_no_credentials(parts_of_a_machine: Home, owner: Signer, tmp_path: Path) -> None:
    parts = {**PARTS, ".sdmagic": b"another"}
    shop = shop_of({PATH: program(parts)}, parts_of_a_machine, owner, tmp_path)
    with pytest.raises(ImageError, match="is not systemd-stub"):
        shop.apply(tampers()["credential-added"])


def test_a_disk_without_images_has_none_to_be_tampered_with(
    parts_of_a_machine: Home, owner: Signer, tmp_path: Path
) -> None:
    shop = shop_of({PATH: signed(OTHER, owner)}, parts_of_a_machine, owner, tmp_path)
    assert images_of(shop.original.disk) == ()
    for name in ("credential-added", "image-command-line-edited", "command-line-edited", "initrd-replaced"):
        with pytest.raises(ImageError):
            shop.apply(tampers()[name])


def trust(shop: Workshop, owner: Signer, tmp_path: Path) -> None:
    """What the firmware needs to start images of `owner`."""
    enrol(shop.original.variables, Keys(db=(owner.der,)), tmp_path)
    shop.original.put_variables(shop.home)


def test_only_an_image_that_the_firmware_starts_is_handed_options(
    shop: Workshop, owner: Signer, tmp_path: Path
) -> None:
    """Where shim or a boot loader starts it, an entry of its own would be refused, and another be tried."""
    tamper = tampers()["command-line-edited"]
    with pytest.raises(ImageError, match=r"no certificate in the signature of .* is in db"):
        shop.apply(tamper)
    trust(shop, owner, tmp_path)
    shim = load_option("shim", (1, 1 << 20, 1 << 20, GUID), "/EFI/debian/shimx64.efi", "")
    own = load_option("image", (1, 1 << 20, 1 << 20, GUID), f"/{PATH}".lower(), "")
    variables.boot_first(shop.original.variables, shim, tmp_path)
    with pytest.raises(ImageError, match=r"the firmware starts /EFI/debian/shimx64\.efi, and not"):
        shop.apply(tamper)
    variables.boot_first(shop.original.variables, own, tmp_path)
    shop.apply(tamper)


def test_an_image_whose_digest_is_in_db_is_started(shop: Workshop, tmp_path: Path) -> None:
    (image,) = images_of(shop.original.disk)
    variables.allow(shop.original.variables, [image.digest.hex()])
    shop.apply(tampers()["command-line-edited"])


def test_the_firmware_hands_it_load_options(shop: Workshop, owner: Signer, tmp_path: Path) -> None:
    trust(shop, owner, tmp_path)
    tamper = tampers()["command-line-edited"]
    (change,) = shop.apply(tamper)
    assert change.what == "load-options"
    assert f"/{PATH}" in change.after
    assert as_made(tamper, (change,)).ignored
    entry = variables.databases(shop.home.variables, ("Boot05C0",), tmp_path)["Boot05C0"]
    assert entry.endswith("x=1 root=x quiet\0".encode("utf-16-le"))
    with open_disk(shop.original.disk) as disk:
        partition = read_table(disk).partitions[0]
    assert partition.unique
    assert (partition.start // 512).to_bytes(8, "little") in entry
    before = shop.home.digests()["variables"]
    shop.make_twin(tamper)
    found = variables.databases(shop.home.variables, ("Boot05C0", "SecureBootEnable"), tmp_path)
    assert (found["Boot05C0"], found["SecureBootEnable"]) == (entry, b"\0")
    assert shop.home.digests()["variables"] != before
    shop.undo(tamper)
    assert shop.home.digests() == shop.original.digests()


def test_ways_to_a_shell_are_below_its_signature(shop: Workshop) -> None:
    with pytest.raises(ImageError, match="command line below their signature"):
        shop.apply(tampers()["init-shell"])


def test_of_several_images_nobody_knows_which_one_is_started(shop: Workshop) -> None:
    images = images_of(shop.original.disk)
    assert [(image.partition.number, image.path) for image in images] == [(1, f"/{PATH}")]
    with pytest.raises(ImageError, match="2 unified kernel images"):
        options_for(images * 2, "x")
    nowhere = replace(images[0], partition=replace(images[0].partition, unique=""))
    with pytest.raises(ImageError, match="on no partition of a GPT"):
        options_for((nowhere,), "x")


def test_another_kernel_comes_as_an_image(shop: Workshop, owner: Signer, tmp_path: Path) -> None:
    other = tmp_path / "other.efi"
    other.write_bytes(signed({**PARTS, ".linux": b"another"}, owner))
    new = replace(shop, others={**shop.others, "other_kernel": other})
    changes = new.apply(tampers()["kernel-replaced"])
    assert file_of(shop.home.disk, PATH, tmp_path) == other.read_bytes()
    assert {entry.pcr for entry in as_made(tampers()["kernel-replaced"], changes).pcrs} == {4, 11}
    assert file_of(shop.home.disk, "EFI/BOOT/mmx64.efi", tmp_path) == signed(OTHER, owner)


def test_another_machine_has_the_keys_without_which_it_starts_nothing(
    shop: Workshop, owner: Signer, tmp_path: Path
) -> None:
    keys = Keys(pk=owner.der, kek=(owner.der,), db=(owner.der,), own=True, microsoft=False)
    enrol(shop.original.variables, keys, tmp_path)
    variables.secure_boot_off(shop.home.variables)
    shop.apply(tampers()["moved"])
    names = ("PK", "KEK", "db")
    moved = variables.databases(shop.home.variables, names, tmp_path)
    assert moved == variables.databases(shop.original.variables, names, tmp_path)
    assert owner.der in moved["db"]


def test_of_both_kinds_nobody_knows_which_one_boots(parts_of_a_machine: Home, owner: Signer, tmp_path: Path) -> None:
    files = {PATH: signed(PARTS, owner), "initramfs-linux.img": b"left", "loader/entries/x.conf": b"linux /x\n"}
    shop = shop_of(files, parts_of_a_machine, owner, tmp_path)
    (tmp_path / "other.efi").write_bytes(signed({**PARTS, ".linux": b"another"}, owner))
    shop = replace(shop, others={**shop.others, "other_kernel": tmp_path / "other.efi"})
    for name, besides in (
        ("initrd-replaced", f"unified kernel images: /{PATH}"),
        ("command-line-edited", f"unified kernel images: /{PATH}"),
        ("image-command-line-edited", "initrds of their own: /initramfs-linux.img"),
        ("credential-added", "initrds of their own: /initramfs-linux.img"),
        ("kernel-replaced", "initrds of their own: /initramfs-linux.img"),
    ):
        (change,) = shop.apply(tampers()[name])
        assert change.besides == besides
        shop.undo(tampers()[name])
