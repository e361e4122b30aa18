"""Programs on an ISO and on a disk, spoilt in an overlay: exactly they are changed, and no other byte."""

from __future__ import annotations

import hashlib
import re
import subprocess
from pathlib import Path

import pytest

from pytest_osgates.checks.secureboot_model import SecureBootPolicy, Stage, Way, patterns
from pytest_osgates.image import authenticode, uki
from pytest_osgates.image.authenticode import Signer
from pytest_osgates.observers import secureboot_medium
from pytest_osgates.observers.secureboot_medium import Medium, read_ukis, spoil
from pytest_osgates.vm.errors import ImageError
from tests.disk_builders import ESP, fat, gpt
from tests.pe_builders import program, signed

MIB = 1 << 20
POLICY = SecureBootPolicy()
UKI = {".linux": b"k" * 3000, ".osrel": b"ID=x\nNAME=y\n", ".cmdline": b"quiet", ".initrd": b"i" * 900}


@pytest.fixture(scope="module")
def signer() -> Signer:
    return Signer.made("shipped")


@pytest.fixture(scope="module")
def another() -> Signer:
    return Signer.made("another")


@pytest.fixture(scope="module")
def files(signer: Signer) -> dict[str, bytes]:
    return {
        "EFI/BOOT/BOOTX64.EFI": signed({".text": b"shim" * 700}, signer, room=4096),
        "EFI/BOOT/grubx64.efi": signed({".text": b"grub" * 900}, signer),
        "live/vmlinuz": signed({".text": b"linux" * 9000}, signer),
        "EFI/Linux/x.efi": signed(UKI, signer),
        "live/initrd.img": b"\x1f\x8b",
    }


@pytest.fixture(scope="module")
def iso(files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("iso")
    tree = top / "tree"
    for name, content in files.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(content)
    fat(tree / "efi.img", {name: files[name] for name in files if name.startswith("EFI/BOOT")}, 2)
    make = ["xorriso", "-as", "mkisofs", "-quiet", "-r", "-e", "efi.img", "-no-emul-boot", "-o", str(top / "x.iso")]
    subprocess.run([*make, str(tree)], check=True, capture_output=True)
    return top / "x.iso"


@pytest.fixture(scope="module")
def disk(files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ESP on which the loader is in two pieces."""
    top = tmp_path_factory.mktemp("disk")
    esp = fat(top / "esp", {"a": bytes(4096), "b": bytes(MIB), "c": bytes(3 * MIB // 2)}, 4)
    subprocess.run(["mdel", "-i", str(esp), "::/a"], check=True)
    for folder in ("EFI", "EFI/BOOT", "EFI/Linux", "live"):
        subprocess.run(["mmd", "-i", str(esp), f"::/{folder}"], check=True)
    for name, content in files.items():
        subprocess.run(["mcopy", "-i", str(esp), "-", f"::/{name}"], input=content, check=True)
    raw = gpt((2 * MIB + esp.stat().st_size) // 512, (ESP, 2048, esp.stat().st_size // 512, "esp"))
    raw[MIB : MIB + esp.stat().st_size] = esp.read_bytes()
    (top / "raw").write_bytes(raw)
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", str(top / "raw"), str(top / "disk.qcow2")], check=True)
    return top / "disk.qcow2"


def flat(path: Path, to: Path) -> Path:
    subprocess.run(["qemu-img", "convert", "-O", "raw", str(path), str(to)], check=True)
    return to


@pytest.mark.parametrize(
    ("kind", "stage"), [("iso", Stage.SHIM), ("iso", Stage.KERNEL), ("disk", Stage.LOADER)], ids=str
)
def test_a_program_is_spoilt_where_it_lies(
    kind: str, stage: Stage, tmp_path: Path, another: Signer, request: pytest.FixtureRequest
) -> None:
    path: Path = request.getfixturevalue(kind)
    before = hashlib.sha256(path.read_bytes()).digest()
    medium = Medium(path, kind == "iso")
    original = flat(path, tmp_path / "original").read_bytes()
    for way in (Way.UNSIGNED, Way.WRONG, Way.FORBIDDEN):
        spoilt = spoil(medium, patterns(POLICY, stage), way, lambda: another)
        assert len(spoilt.files) == (2 if kind == "iso" and stage is not Stage.KERNEL else 1)
        assert not spoilt.bare
        overlay = tmp_path / f"{way}.qcow2"
        spoilt.write(medium, overlay, tmp_path)
        changed = flat(overlay, tmp_path / "changed")
        same = Medium(changed, medium.iso)
        with same.open() as source:
            for file, seen in zip(same.files(patterns(POLICY, stage)), spoilt.files, strict=True):
                data = file.read(source)
                assert hashlib.sha256(data).hexdigest() == seen.after
                assert authenticode.digest(data).hex() == seen.digest_after
                assert len(authenticode.signatures(data)) == (0 if way is Way.UNSIGNED else 1)
                assert (seen.digest_after == seen.digest_before) is (way is not Way.UNSIGNED)
        differing = sum(a != b for a, b in zip(original, changed.read_bytes(), strict=True))
        assert (differing == 0) is (way is Way.FORBIDDEN)
        assert differing < len(spoilt.files) * 4200
    assert hashlib.sha256(path.read_bytes()).digest() == before


def test_a_unified_kernel_image_loses_a_byte_that_nobody_needs(
    disk: Path, files: dict[str, bytes], signer: Signer
) -> None:
    made = secureboot_medium.changed(files["EFI/Linux/x.efi"])
    old, new = uki.sections(files["EFI/Linux/x.efi"]), uki.sections(made)
    assert {name for name in old if old[name] != new[name]} == {".osrel"}
    assert authenticode.digest(made) != authenticode.digest(files["EFI/Linux/x.efi"])
    assert authenticode.signatures(made) == authenticode.signatures(files["EFI/Linux/x.efi"])
    with pytest.raises(ImageError, match=r"without \.osrel"):
        secureboot_medium.changed(program({".text": b"x"}))
    policy = SecureBootPolicy(chain=(Stage.SHIM, Stage.UKI))
    (spoilt,) = spoil(Medium(disk, False), patterns(policy, Stage.UKI), Way.CHANGED, lambda: signer).files
    assert spoilt.name == "partition 1:/EFI/Linux/x.efi"
    assert spoilt.digest_after == authenticode.digest(made).hex()


def test_unified_kernel_images_are_read(disk: Path) -> None:
    policy = SecureBootPolicy(chain=(Stage.SHIM, Stage.UKI))
    (image,) = read_ukis(Medium(disk, False), patterns(policy, Stage.UKI))
    assert image.cmdline == "quiet"
    assert image.pcr11 == uki.pcr11(UKI).hex()
    assert set(image.sections) == set(UKI)
    assert read_ukis(Medium(disk, False), re.compile(r"vmlinuz")) == ()


def test_what_is_no_program_or_has_no_signature(tmp_path: Path, signer: Signer) -> None:
    esp = fat(tmp_path / "esp", {"vmlinuz": b"\x1f\x8bgz", "boot/vmlinuz-1": program({".text": b"x"})})
    raw = gpt((2 * MIB + esp.stat().st_size) // 512, (ESP, 2048, esp.stat().st_size // 512, "esp"))
    raw[MIB : MIB + esp.stat().st_size] = esp.read_bytes()
    (tmp_path / "disk").write_bytes(raw)
    spoilt = spoil(Medium(tmp_path / "disk", False), patterns(POLICY, Stage.KERNEL), Way.UNSIGNED, lambda: signer)
    assert [file.name for file in spoilt.files] == ["partition 1:/boot/vmlinuz-1"]
    assert spoilt.bare
    assert spoilt.patches == ()
