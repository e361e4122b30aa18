"""What the demo's machine with a unified kernel image is made of, as far as none has to be booted."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from pytest_osgates.cli import main
from pytest_osgates.demo import uki as demo_uki
from pytest_osgates.demo.disk_variants import load_disk_file, variant_names
from pytest_osgates.demo.machine import build_demo_machine
from pytest_osgates.image import authenticode, siglist, uki
from pytest_osgates.observers.tpm_images import signs_pcrs
from pytest_osgates.profiles import loader
from pytest_osgates.vm import variables
from pytest_osgates.vm.errors import ImageError, MissingTool, UsageError
from pytest_osgates.vm.home import Home
from pytest_osgates.vm.host import Host

MENU = "set default=0\nmenuentry x {\n\tlinux /live/vmlinuz boot=live quiet console=ttyS0\n\tinitrd /i\n}\n"


def test_the_efi_system_partition_holds_one_image_and_nothing_else(tmp_path: Path) -> None:
    for name, content in (("m", MENU.encode()), ("i", b"initrd" * 1000), ("k", b"kernel" * 900)):
        (tmp_path / name).write_bytes(content)
    keys = demo_uki.new_keys()
    signer = keys.image
    made = demo_uki.esp_files(tmp_path, "m", "i", "k", b"ID=demo\n", keys)
    assert list(made) == ["EFI/BOOT/BOOTX64.EFI"]
    data = made["EFI/BOOT/BOOTX64.EFI"]
    parts = uki.sections(data)
    assert {name: parts[name] for name in (".osrel", ".cmdline", ".linux", ".initrd")} == {
        ".osrel": b"ID=demo\n",
        ".cmdline": b"boot=live quiet console=ttyS0",
        ".linux": b"kernel" * 900,
        ".initrd": b"initrd" * 1000,
    }
    stub = uki.sections(demo_uki.stub())
    assert {name: parts[name] for name in stub} == stub
    assert b"systemd-stub" in parts[".sdmagic"]
    (blob,) = authenticode.signatures(data)
    assert signer.der in blob
    # The private key is nowhere in it, and another key's signature has room.
    assert signer.pem()[0] not in data
    assert authenticode.signed(data, authenticode.Signer.made("osgates, trusted by nobody"))


def test_the_policy_is_of_this_image_and_by_a_key_of_its_own(tmp_path: Path) -> None:
    keys = demo_uki.new_keys(signed_pcrs=True)
    assert keys.policy is not None
    image = demo_uki.assemble(b"kernel", b"initrd", ("quiet",), b"ID=demo\n", keys)
    parts = uki.sections(image)
    (signed,) = uki.signed_policies(parts[".pcrsig"])
    assert (signed.pcrs, uki.phase_of(uki.policies(parts), signed)) == ((11,), "")
    assert uki.is_by(signed, parts[".pcrpkey"])
    assert parts[".pcrpkey"] == keys.policy.public_pem()
    # Whoever signs images cannot sign policies.
    assert not signs_pcrs(parts, keys.image)
    home = Home.at(tmp_path / "machine")
    home.directory.mkdir()
    demo_uki.keep_keys(home, keys)
    kept = home.directory / demo_uki.PCR_KEY
    assert kept.read_bytes() == keys.policy.pem()
    assert not kept.stat().st_mode & 0o077
    assert kept.read_bytes() not in image
    # Of an image without it, nothing is left.
    assert ".pcrsig" not in uki.sections(demo_uki.assemble(b"k", b"i", (), b"ID=x\n", demo_uki.new_keys()))


def test_the_firmware_knows_one_key_alone(tmp_path: Path) -> None:
    home = Home.at(tmp_path / "machine")
    home.directory.mkdir()
    keys = demo_uki.new_keys()
    signer = keys.image
    demo_uki.own_keys(home, signer, tmp_path / "keys", 1.0)
    demo_uki.keep_keys(home, keys)
    assert not (home.directory / demo_uki.PCR_KEY).exists()
    found = variables.databases(home.variables, ("PK", "KEK", "db"), tmp_path)
    assert {name: [entry.data for entry in siglist.parse(raw)] for name, raw in found.items()} == {
        name: [signer.der] for name in ("PK", "KEK", "db")
    }
    key, certificate = home.directory / demo_uki.KEY, home.directory / demo_uki.CERTIFICATE
    assert authenticode.Signer.read(key.read_bytes(), certificate.read_bytes()).der == signer.der
    assert not key.stat().st_mode & 0o077


def test_parameters_are_those_of_the_menu() -> None:
    assert demo_uki.parameters_of(MENU) == ("boot=live", "quiet", "console=ttyS0")
    with pytest.raises(ImageError, match="no line with kernel parameters"):
        demo_uki.parameters_of("initrd x\n")


def test_without_a_stub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_uki, "STUB", Path("/nonexistent"))
    with pytest.raises(MissingTool, match="systemd-stub is not installed"):
        demo_uki.stub()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--uki"], "add --tpm"),
        (["--tpm", "--uki", "--pin"], "leave --pin out"),
        (["--tpm", "--weak", "uki-pcr7-only"], "add --uki"),
        (["--tpm", "--uki", "--weak", "pcr7-only"], "leave --uki out"),
        (["--tpm", "--signed-pcrs"], "add --tpm --uki"),
        (["--tpm", "--uki", "--signed-pcrs", "--weak", "uki-pcr7-only"], "leave --weak out"),
    ],
)
def test_wrong_requests(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo-disk", *arguments]) == 4
    assert said in capsys.readouterr().err


def test_a_weakened_machine_is_of_its_kind(tmp_path: Path) -> None:
    assert variant_names("tpm", uki=True) == ("uki-pcr7-only",)
    assert "uki-pcr7-only" not in variant_names("tpm")
    with pytest.raises(UsageError, match="is not of the machine with a unified kernel image"):
        build_demo_machine(
            tmp_path / "iso", tmp_path / "new", lambda stage, done: None, cast("Host", None), "pcr7-only", uki=True
        )


@pytest.mark.parametrize(("uki_wanted", "weak"), [(False, None), (True, "uki-pcr7-only")])
def test_a_policy_is_signed_for_the_sound_image_alone(uki_wanted: bool, weak: str | None, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="only the sound machine with a unified kernel image"):
        build_demo_machine(
            *(tmp_path / "iso", tmp_path / "new", lambda stage, done: None, cast("Host", None), weak),
            uki=uki_wanted,
            signed_pcrs=True,
        )
    assert not (tmp_path / "new").exists()


def test_the_profile_fits_the_machine() -> None:
    spec = load_disk_file()
    policy = loader.load(loader.find("demo-tpm-uki")).policy("tpm")
    assert (policy.passphrase, policy.pcrs) == (spec.passphrase, spec.uki_pcrs)
    assert (policy.uki_key, policy.uki_certificate) == (demo_uki.KEY, demo_uki.CERTIFICATE)
    assert {"image-command-line-edited", "credential-added", "initrd-replaced"} < set(policy.rows())
