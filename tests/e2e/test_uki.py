"""The demo's machine that starts a unified kernel image: its TPM sees what systemd-stub measures (PCR 11, 12)."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from pytest_osgates.checks.secureboot_model import SecureBootPolicy, Stage
from pytest_osgates.cli import main
from pytest_osgates.demo.disk_variants import load_disk_file, variant_names
from pytest_osgates.demo.machine import build_demo_machine, tpm_token
from pytest_osgates.demo.uki import CERTIFICATE, KEY, PCR_KEY
from pytest_osgates.image import uki
from pytest_osgates.image.authenticode import Signer, newly_signed
from pytest_osgates.image.disk.source import open_disk
from pytest_osgates.image.medium import files_of_disk
from pytest_osgates.image.uki_build import with_sections
from pytest_osgates.image.uki_sign import PolicyKey
from pytest_osgates.observers.tpm_images import images_of
from pytest_osgates.profiles import loader
from pytest_osgates.vm import host as vm_host
from pytest_osgates.vm.home import Home
from tests.e2e.conftest import Gates, quiet

# All of it in the slow tier: the machine takes a boot of its own, by one worker for all its rows.
pytestmark = [pytest.mark.boots, pytest.mark.slow, pytest.mark.xdist_group("tpm-uki-machine")]

ROWS = loader.load(loader.find("demo-tpm-uki")).gates["tpm"].rows
SECURE = SecureBootPolicy(chain=(Stage.UKI,)).rows()
BOUND = "[7, 11, 12]"


@pytest.fixture(scope="session")
def machine(demo_iso: Path, tmp_path_factory: pytest.TempPathFactory) -> Home:
    """As `osgates demo-disk --tpm --uki` makes it."""
    directory = tmp_path_factory.mktemp("tpm-uki") / "machine"
    assert main(["demo-disk", "--tpm", "--uki", "--iso", str(demo_iso), "-o", str(directory)]) == 0
    return Home.at(directory)


@pytest.fixture(scope="session")
def signing(demo_iso: Path, tmp_path_factory: pytest.TempPathFactory) -> Home:
    """The same, its PCR 11 bound by a policy that is signed in the image."""
    directory = tmp_path_factory.mktemp("tpm-uki-signed") / "machine"
    made = ["demo-disk", "--tpm", "--uki", "--signed-pcrs", "--iso", str(demo_iso), "-o", str(directory)]
    assert main(made) == 0
    return Home.at(directory)


def profile(gates: Gates, *, pcrs: str = BOUND) -> Path:
    """The gate `tpm` alone."""
    head, _, section = loader.find("demo-tpm-uki").read_text().partition("[gate.luks]")
    path = gates.directory / "uki.toml"
    path.write_text(head + "[gate.tpm]" + section.partition("[gate.tpm]")[2].replace(BOUND, pcrs))
    return path


def test_its_disk_starts_one_image_whose_key_is_not_beside_it(machine: Home) -> None:
    """On the ESP, and not in the image; the volume is encrypted, and not looked into."""
    (image,) = images_of(machine.disk)
    assert uki.is_uki(image.parts)
    files = files_of_disk(machine.disk, re.compile(r"."))
    assert [file.path for file in files] == [image.path]
    pem = (machine.directory / KEY).read_bytes()
    key = load_pem_private_key(pem, password=None)
    der = key.private_bytes(Encoding.DER, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    with open_disk(machine.disk) as disk:
        content = files[0].read(disk)
    # PKCS #8 has the same inside.
    assert der not in content
    # Its programs have the words "PRIVATE KEY" in them.
    assert pem.splitlines()[2] not in content


@pytest.mark.parametrize("row", ROWS)
def test_the_sound_machine_passes_each_row(row: str, gates: Gates, demo_iso: Path, machine: Home) -> None:
    before = machine.disk.read_bytes(), machine.digests()
    disk = ("--iso-disk", machine.disk)
    outcome = gates.run("--iso", demo_iso, *disk, "--iso-distro", profile(gates), "-k", f"tpm[{row}]")
    gate = outcome.verdicts["gates"]["tpm"]
    assert gate["rows"][row]["verdict"] == "PASS", outcome.output
    assert outcome.findings("tpm") == set()
    assert all(control["caught"] for control in gate["controls"])
    assert (machine.disk.read_bytes(), machine.digests()) == before
    assert outcome.root is not None
    seen = json.loads((outcome.root / f"observations/tpm/{row}.json").read_text())
    assert [boot["outcome"] for boot in seen["boots"]][-1:] == (["asked"] if row == "cleared" else ["unlocked"])
    if row == "command-line-edited":
        # The stub does not listen, and does once Secure Boot is off.
        assert [boot["role"] for boot in seen["boots"]] == ["tampered", "twin", "undone"]
        told = [" ".join(boot["command_lines"]) for boot in seen["boots"]]
        assert ["osgates.tampered=1" in line for line in told] == [False, True, False]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("untampered-1", ""),
        # What the TPM is asked for is about another image: systemd finds no signature for what is there.
        ("image-command-line-edited", "Couldn't find signature for this PCR bank, PCR index and public key"),
        ("initrd-replaced", "Couldn't find signature for this PCR bank, PCR index and public key"),
        # PCR 12 is bound by its value.
        ("credential-added", "policy digest does not match"),
        ("fresh", ""),
    ],
)
def test_a_policy_that_is_signed_passes_as_well(
    row: str, said: str, gates: Gates, demo_iso: Path, signing: Home
) -> None:
    token = tpm_token(signing.disk)
    assert (token.pcrs, token.signed_pcrs) == ((7, 12), (11,))
    before = signing.disk.read_bytes(), signing.digests()
    disk = ("--iso-disk", signing.disk)
    outcome = gates.run("--iso", demo_iso, *disk, "--iso-distro", profile(gates), "-k", f"tpm[{row}]")
    gate = outcome.verdicts["gates"]["tpm"]
    assert gate["rows"][row]["verdict"] == "PASS", outcome.output
    assert (signing.disk.read_bytes(), signing.digests()) == before
    assert outcome.root is not None
    seen = json.loads((outcome.root / f"observations/tpm/{row}.json").read_text())
    assert [boot["outcome"] for boot in seen["boots"]][-1] == "unlocked"
    assert said in " ".join(line for boot in seen["boots"] for line in boot["reasons"])


def test_another_image_by_the_same_keys_opens_the_disk(gates: Gates, demo_iso: Path, signing: Home) -> None:
    """An older one of its owner's: such a policy is made for that. Who does not want it binds PCR 4 as well."""
    key, certificate = ((signing.directory / name).read_bytes() for name in (KEY, CERTIFICATE))
    policy = PolicyKey(load_pem_private_key((signing.directory / PCR_KEY).read_bytes(), password=None))
    (file,) = files_of_disk(signing.disk, re.compile(r"."))
    with open_disk(signing.disk) as source:
        image = file.read(source)
    older = with_sections(image, {".osrel": uki.sections(image)[".osrel"] + b"VARIANT=older\n"})
    older = with_sections(older, {".pcrsig": policy.policies(uki.sections(older))})
    (gates.directory / "older.efi").write_bytes(newly_signed(older, Signer.read(key, certificate)))
    distro = profile(gates)
    distro.write_text(
        distro.read_text().replace("tampers = [", 'other_kernel = "older.efi"\ntampers = [\n    "kernel-replaced",')
    )
    disk = ("--iso-disk", signing.disk)
    outcome = gates.run("--iso", demo_iso, *disk, "--iso-distro", distro, "-k", "tpm[kernel-replaced]")
    assert outcome.findings("tpm") == {("unlocked", "kernel-replaced")}, outcome.output
    (finding,) = outcome.verdicts["gates"]["tpm"]["findings"]
    assert "a signed policy lets in whatever its key has signed; bind the TPM's slot to PCR 4" in finding["hint"]
    assert outcome.status == 1


def test_each_policy_in_the_image_is_its_own(gates: Gates, demo_iso: Path, signing: Home) -> None:
    """Nothing is booted for that."""
    distro = secure(gates, signing)
    distro.write_text(distro.read_text() + "pcr_signature = true\n")
    outcome = gates.run(
        "--iso", demo_iso, "--iso-disk", signing.disk, "--iso-distro", distro, "-k", "secureboot[uki]"
    )
    assert outcome.verdicts["gates"]["secureboot"]["rows"]["uki"]["verdict"] == "PASS", outcome.output
    assert outcome.root is not None
    (image,) = json.loads((outcome.root / "observations/secureboot/uki.json").read_text())["ukis"]
    assert [(entry["pcrs"], entry["phase"]) for entry in image["signed"]] == [([11], "")]


@pytest.mark.parametrize("name", variant_names("tpm", uki=True))
def test_each_weakness_is_found(name: str, gates: Gates, demo_iso: Path) -> None:
    host = vm_host.select("auto", None)
    host = replace(host, pace=vm_host.measure_pace(host.qemu, host.accelerator))
    weak = load_disk_file().named(name)
    made = build_demo_machine(demo_iso, gates.directory / "machine", quiet, host, weak, uki=True)
    row = weak.expects.subject
    distro = profile(gates, pcrs=json.dumps(weak.enrol))
    outcome = gates.run("--iso", demo_iso, "--iso-disk", made.home.disk, "--iso-distro", distro, "-k", f"tpm[{row}]")
    gate = outcome.verdicts["gates"]["tpm"]
    assert gate["rows"][row]["verdict"] == "FAIL", outcome.output
    assert outcome.findings("tpm") == {(weak.expects.rule, row)}
    (finding,) = gate["findings"]
    assert "PCR 11" in finding["wanted"]
    assert outcome.status == 1


def test_an_image_of_another_key_is_not_tried(gates: Gates, demo_iso: Path, machine: Home) -> None:
    """PCR 7 would see the key, and nobody would know whether PCR 11 sees the rest."""
    distro = profile(gates)
    for name, content in zip((KEY, CERTIFICATE), Signer.made("nobody's").pem(), strict=True):
        (gates.directory / name).write_bytes(content)
    row = "image-command-line-edited"
    disk = ("--iso-disk", machine.disk)
    outcome = gates.run("--iso", demo_iso, *disk, "--iso-distro", distro, "-k", f"tpm[{row}]")
    assert outcome.verdicts["gates"]["tpm"]["rows"][row]["verdict"] == "NOT PROVEN"
    assert outcome.status == 10


def secure(gates: Gates, machine: Home) -> Path:
    """The gate `secureboot` of that machine, whose own keys are to be the demo's alone."""
    (gates.directory / CERTIFICATE).write_bytes((machine.directory / CERTIFICATE).read_bytes())
    path = gates.directory / "secure.toml"
    path.write_text(
        'schema = 1\nname = "uki-secureboot"\n[machine]\nfirmware = ["uefi-secureboot"]\nmemory_mib = 2048\n'
        "cpus = 1\n[boot]\n"
        'ready_target = "multi-user.target"\n[gate.secureboot]\nstate = "installed"\nchain = ["uki"]\n'
        f'keys = "machine"\nmicrosoft = false\npk = "{CERTIFICATE}"\n'
        f'kek = ["{CERTIFICATE}"]\ndb = ["{CERTIFICATE}"]\n'
        'lockdown = "integrity"\naccept_sig_enforce = "lockdown=integrity refuses unsigned modules already"\n'
    )
    return path


@pytest.mark.parametrize("row", SECURE)
def test_secure_boot_refuses_each_other_image(row: str, gates: Gates, demo_iso: Path, machine: Home) -> None:
    disk = ("--iso-disk", machine.disk)
    distro = secure(gates, machine)
    outcome = gates.run("--iso", demo_iso, *disk, "--iso-distro", distro, "-k", f"secureboot[{row}]")
    gate = outcome.verdicts["gates"]["secureboot"]
    assert gate["rows"][row]["verdict"] == "PASS", outcome.output
    assert outcome.findings("secureboot") == set()
    assert outcome.root is not None
    seen = json.loads((outcome.root / f"observations/secureboot/{row}.json").read_text())
    came = {start["role"]: start["came"] for start in seen["starts"]}
    # The others look at the guest, or at the image alone.
    assert came == ({"tampered": "refused", "twin": "started"} if row.startswith("uki-") else {})


def test_the_disk_of_the_machine_passes_the_gate_luks(gates: Gates, demo_iso: Path, machine: Home) -> None:
    """What is in the image is looked into."""
    disk = ("--iso-disk", machine.disk)
    outcome = gates.run("--iso", demo_iso, *disk, "--iso-distro", "demo-tpm-uki", "-m", "luks")
    assert outcome.verdicts["gates"]["luks"]["verdict"] == "PASS", outcome.output
    assert outcome.status == 0
