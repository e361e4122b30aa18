"""The demo's installed machine, tampered with: the sound one falls back to its passphrase, the weakened ones fail."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_osgates.cli import main
from pytest_osgates.demo.disk_variants import load_disk_file, variant_names
from pytest_osgates.demo.machine import build_demo_machine
from pytest_osgates.profiles import loader
from pytest_osgates.vm import host as vm_host
from pytest_osgates.vm.home import Home
from tests.e2e.conftest import Gates, quiet
from tests.e2e.others import other_programs

pytestmark = pytest.mark.boots
# One worker makes the machine, by a boot, for all its rows.
one_worker = pytest.mark.xdist_group("tpm-machine")

QUICK = ("untampered-1", "fresh")
QUICK_WEAK = ("tpm-blank",)
ROWS = loader.load(loader.find("demo-tpm")).gates["tpm"].rows
MORE = ("initrd-replaced", "db-key-added", "grub-console", "sysrq")
WAYS_TO_A_SHELL = (
    *("init-shell", "initrd-init-shell", "dracut-break", "initramfs-break", "debug-shell"),
    *("initrd-emergency", "emergency-target", "rescue-target"),
)
INITRAMFS_TOOLS_OPENS = ("initrd-init-shell", "initramfs-break")


@pytest.fixture(scope="session")
def machine(demo_iso: Path, tmp_path_factory: pytest.TempPathFactory) -> Home:
    """As `osgates demo-disk --tpm` makes it."""
    directory = tmp_path_factory.mktemp("tpm") / "machine"
    assert main(["demo-disk", "--tpm", "--iso", str(demo_iso), "-o", str(directory)]) == 0
    return Home.at(directory)


@pytest.fixture(scope="session")
def pin_machine(demo_iso: Path, tmp_path_factory: pytest.TempPathFactory) -> Home:
    """As `osgates demo-disk --tpm --pin` makes it."""
    directory = tmp_path_factory.mktemp("tpm-pin") / "machine"
    assert main(["demo-disk", "--tpm", "--pin", "--iso", str(demo_iso), "-o", str(directory)]) == 0
    return Home.at(directory)


def profile(
    gates: Gates, *, pcrs: str = "[4, 7, 8, 9]", more: tuple[str, ...] = (), built_in_name: str = "demo-tpm"
) -> Path:
    """The gate `tpm` alone, with more tampers."""
    built_in = loader.find(built_in_name).read_text()
    head, _, section = built_in.partition("[gate.luks]")
    section = "[gate.tpm]" + section.partition("[gate.tpm]")[2]
    required = json.dumps([*(row for row in ROWS if not row.startswith("untampered")), *more])
    path = gates.directory / "tpm.toml"
    path.write_text(head + section.replace("[4, 7, 8, 9]", pcrs) + f"tampers = {required}\n")
    return path


@one_worker
@pytest.mark.parametrize(
    "row", [pytest.param(row, marks=[] if row in QUICK else [pytest.mark.slow]) for row in (*ROWS, *MORE)]
)
def test_the_sound_machine_passes_each_row(row: str, gates: Gates, demo_iso: Path, machine: Home) -> None:
    before = machine.disk.read_bytes(), machine.digests()
    distro = profile(gates, more=MORE)
    outcome = gates.run("--iso", demo_iso, "--iso-disk", machine.disk, "--iso-distro", distro, "-k", f"tpm[{row}]")
    gate = outcome.verdicts["gates"]["tpm"]
    assert gate["rows"][row]["verdict"] == "PASS"
    assert outcome.findings("tpm") == set()
    assert all(control["caught"] for control in gate["controls"])
    # One row is not the gate.
    assert gate["verdict"] == "NOT PROVEN"
    assert (machine.disk.read_bytes(), machine.digests()) == before
    assert outcome.root is not None
    seen = json.loads((outcome.root / f"observations/tpm/{row}.json").read_text())
    assert [boot["outcome"] for boot in seen["boots"]][-1:] == (["asked"] if row == "cleared" else ["unlocked"])


@pytest.mark.slow
def test_an_option_rom_is_seen_by_a_disk_that_is_bound_to_pcr_2(gates: Gates, demo_iso: Path) -> None:
    host = vm_host.select("auto", None)
    host = replace(host, pace=vm_host.measure_pace(host.qemu, host.accelerator))
    bound = load_disk_file().named("pcr7-only").model_copy(update={"name": "pcr-2-too", "enrol": (2, 4, 7, 8, 9)})
    made = build_demo_machine(demo_iso, gates.directory / "machine", quiet, host, bound)
    distro = profile(gates, pcrs="[2, 4, 7, 8, 9]", more=("option-rom-added",))
    row = "option-rom-added"
    outcome = gates.run("--iso", demo_iso, "--iso-disk", made.home.disk, "--iso-distro", distro, "-k", f"tpm[{row}]")
    assert outcome.findings("tpm") == set()
    assert outcome.verdicts["gates"]["tpm"]["rows"][row]["verdict"] == "PASS"


@one_worker
@pytest.mark.slow
def test_an_option_rom_fails_a_disk_that_is_not(gates: Gates, demo_iso: Path, machine: Home) -> None:
    distro = profile(gates, more=("option-rom-added",))
    row = "option-rom-added"
    outcome = gates.run("--iso", demo_iso, "--iso-disk", machine.disk, "--iso-distro", distro, "-k", f"tpm[{row}]")
    assert outcome.findings("tpm") == {("unlocked", row)}


@pytest.fixture(scope="session")
def others(demo_iso: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Another kernel with its initrd, and another boot loader, which the shim starts as well."""
    return other_programs(demo_iso, tmp_path_factory.mktemp("others"))


@one_worker
@pytest.mark.slow
@pytest.mark.parametrize("row", ["boot-loader-replaced", "kernel-replaced"])
def test_other_signed_programs_are_seen(
    row: str, gates: Gates, demo_iso: Path, machine: Home, others: dict[str, Path]
) -> None:
    distro = profile(gates, more=(row,))
    text = distro.read_text() + "".join(f'other_{name} = "{path}"\n' for name, path in others.items())
    distro.write_text(text)
    outcome = gates.run("--iso", demo_iso, "--iso-disk", machine.disk, "--iso-distro", distro, "-k", f"tpm[{row}]")
    assert outcome.findings("tpm") == set()
    assert outcome.verdicts["gates"]["tpm"]["rows"][row]["verdict"] == "PASS"


@one_worker
@pytest.mark.slow
@pytest.mark.parametrize("row", WAYS_TO_A_SHELL)
def test_known_ways_to_a_shell(row: str, gates: Gates, demo_iso: Path, machine: Home) -> None:
    """The demo's initrd is of initramfs-tools, which has a shell for whoever asks by the command line."""
    distro = profile(gates, more=(row,))
    outcome = gates.run("--iso", demo_iso, "--iso-disk", machine.disk, "--iso-distro", distro, "-k", f"tpm[{row}]")
    opens = row in INITRAMFS_TOOLS_OPENS
    assert outcome.findings("tpm") == ({("shell", row)} if opens else set())
    assert outcome.verdicts["gates"]["tpm"]["rows"][row]["verdict"] == ("FAIL" if opens else "PASS")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in QUICK_WEAK else [pytest.mark.slow]) for name in variant_names("tpm")],
)
def test_each_weakness_is_found(name: str, gates: Gates, demo_iso: Path) -> None:
    host = vm_host.select("auto", None)
    host = replace(host, pace=vm_host.measure_pace(host.qemu, host.accelerator))
    weak = load_disk_file().named(name)
    made = build_demo_machine(demo_iso, gates.directory / "machine", quiet, host, weak)
    row = weak.expects.subject
    distro = profile(gates, pcrs=json.dumps(weak.enrol or (4, 7, 8, 9)), more=tuple({row} & set(MORE)))
    outcome = gates.run("--iso", demo_iso, "--iso-disk", made.home.disk, "--iso-distro", distro, "-k", f"tpm[{row}]")
    assert outcome.verdicts["gates"]["tpm"]["rows"][row]["verdict"] == "FAIL"
    assert outcome.findings("tpm") == {(weak.expects.rule, row)}
    assert outcome.status == 1


@pytest.mark.slow
def test_a_password_of_grubs_keeps_everybody_out_of_its_editor(gates: Gates, demo_iso: Path) -> None:
    """Whatever the TPM looks at."""
    host = vm_host.select("auto", None)
    host = replace(host, pace=vm_host.measure_pace(host.qemu, host.accelerator))
    locked = 'set superusers="root"\nexport superusers\npassword root word\n'
    made = load_disk_file().named("pcr7-only").model_copy(update={"name": "grub-password", "grub": locked})
    machine = build_demo_machine(demo_iso, gates.directory / "machine", quiet, host, made)
    row = "grub-console"
    distro = profile(gates, pcrs="[7]", more=(row,))
    outcome = gates.run(
        "--iso", demo_iso, "--iso-disk", machine.home.disk, "--iso-distro", distro, "-k", f"tpm[{row}]"
    )
    assert outcome.findings("tpm") == set()
    assert outcome.verdicts["gates"]["tpm"]["rows"][row]["verdict"] == "PASS"
    assert outcome.root is not None
    seen = json.loads((outcome.root / f"observations/tpm/{row}.json").read_text())
    assert [boot["outcome"] for boot in seen["boots"]] == ["GRUB", "unlocked"]


# Slow, all of them: the machine takes a boot of its own.
pin_worker = pytest.mark.xdist_group("tpm-pin-machine")


@pin_worker
@pytest.mark.slow
@pytest.mark.parametrize("row", ["untampered-1", "wrong-pin", "pin-lockout", "fresh", "command-line-edited"])
def test_the_machine_with_a_pin_passes_each_row(row: str, gates: Gates, demo_iso: Path, pin_machine: Home) -> None:
    before = pin_machine.disk.read_bytes(), pin_machine.digests()
    distro = profile(gates, more=("wrong-pin", "pin-lockout"), built_in_name="demo-tpm-pin")
    disk = ("--iso-disk", pin_machine.disk)
    outcome = gates.run("--iso", demo_iso, *disk, "--iso-distro", distro, "-k", f"tpm[{row}]")
    assert outcome.findings("tpm") == set()
    gate = outcome.verdicts["gates"]["tpm"]
    assert gate["rows"][row]["verdict"] == "PASS"
    assert all(control["caught"] for control in gate["controls"])
    assert (pin_machine.disk.read_bytes(), pin_machine.digests()) == before
    assert outcome.root is not None
    seen = json.loads((outcome.root / f"observations/tpm/{row}.json").read_text())
    assert all(slot["pin"] for slot in seen["slots"])
    typed = [(boot["role"], pin["what"], pin["answer"]) for boot in seen["boots"] for pin in boot["pins"]]
    # The last boot opens to the PIN.
    assert typed[-1] == (seen["boots"][-1]["role"], "PIN", "opened")
    if row == "wrong-pin":
        assert typed[0] == ("tampered", "wrong PIN 1", "refused")


@pin_worker
@pytest.mark.slow
def test_a_pin_that_is_not_the_machines(gates: Gates, demo_iso: Path, pin_machine: Home) -> None:
    """What a profile calls the PIN opens nothing."""
    distro = profile(gates, more=("wrong-pin", "pin-lockout"), built_in_name="demo-tpm-pin")
    distro.write_text(distro.read_text().replace("8462-demo", "8462-other"))
    disk = ("--iso-disk", pin_machine.disk)
    outcome = gates.run("--iso", demo_iso, *disk, "--iso-distro", distro, "-k", "tpm[untampered-1]")
    assert outcome.findings("tpm") == {("asked", "untampered-1")}
    assert outcome.status == 1


@pin_worker
@pytest.mark.slow
def test_a_wrong_pin_that_opens_is_found(gates: Gates, demo_iso: Path, pin_machine: Home) -> None:
    """The machine's own PIN, which the profile calls wrong."""
    distro = profile(gates, more=("wrong-pin", "pin-lockout"), built_in_name="demo-tpm-pin")
    distro.write_text(distro.read_text().replace('"8462-demo"', '"8462-other"\nwrong_pins = ["8462-demo"]'))
    disk = ("--iso-disk", pin_machine.disk)
    outcome = gates.run("--iso", demo_iso, *disk, "--iso-distro", distro, "-k", "tpm[wrong-pin]")
    assert ("wrong-pin-opens", "wrong-pin") in outcome.findings("tpm")
    assert outcome.verdicts["gates"]["tpm"]["rows"]["wrong-pin"]["verdict"] == "FAIL"
    assert outcome.status == 1


@one_worker
@pytest.mark.slow
def test_a_machine_that_asks_for_no_pin_fails_a_profile_with_one(gates: Gates, demo_iso: Path, machine: Home) -> None:
    distro = profile(gates, more=("wrong-pin", "pin-lockout"), built_in_name="demo-tpm-pin")
    disk = ("--iso-disk", machine.disk)
    outcome = gates.run("--iso", demo_iso, *disk, "--iso-distro", distro, "-k", "tpm[untampered-1]")
    assert {rule for rule, _ in outcome.findings("tpm")} == {"no-pin", "pin-not-asked"}
    assert outcome.status == 1


@one_worker
def test_the_disk_of_the_machine_passes_the_gate_luks(gates: Gates, demo_iso: Path, machine: Home) -> None:
    """A slot for a TPM is no weakness."""
    disk = ("--iso-disk", machine.disk)
    outcome = gates.run("--iso", demo_iso, *disk, "--iso-distro", "demo-tpm", "-m", "luks")
    assert outcome.verdicts["gates"]["luks"]["verdict"] == "PASS"
    assert outcome.status == 0


@one_worker
@pytest.mark.slow
def test_the_whole_gate_passes(gates: Gates, demo_iso: Path, machine: Home) -> None:
    """All rows at once, two at a time."""
    disk = ("--iso-disk", machine.disk)
    outcome = gates.run("--iso", demo_iso, *disk, "--iso-distro", "demo-tpm", "-n", "2")
    assert {name: gate["verdict"] for name, gate in outcome.verdicts["gates"].items()} == {
        "luks": "PASS",
        "tpm": "PASS",
    }
    assert outcome.status == 0
