"""The demo's ISO installs itself: a machine whose TPM opens its disk, made once in a run and judged; and what an
installation leaves that is cut off."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import pytest

from pytest_osgates.demo.installer import load_installer
from pytest_osgates.image.iso9660 import IsoImage
from pytest_osgates.image.rootfs import open_root
from tests.e2e.conftest import Gates

pytestmark = [pytest.mark.boots, pytest.mark.slow]

ROWS = ("untampered-1", "fresh")
INSTALL = "sh /run/live/medium/osgates/install /dev/vda"
# Until the boot files are being written: everything else is on the disk.
AT_THE_END = """
printf %s secret | {install} &
until [ -e /run/osgates-install/esp/live/initrd.img ]; do
    sleep 0.2
    kill -0 $! || exit 9
done
kill -{signal} $!
wait $! || status=$?
echo "cut off: $status"
exit 7
"""


def profile(gates: Gates, script: str, *, disk_mib: int = 1024) -> Path:
    """The gate `install` alone, with another script and no first boot."""
    path = gates.directory / "install.toml"
    path.write_text(
        f"schema = 1\nname = 'install'\n[machine]\nfirmware = ['uefi-secureboot']\n"
        f"[boot]\nready_target = 'multi-user.target'\n"
        f"[install]\ndisk_mib = {disk_mib}\nstall_s = 300\nscript = '''{script}'''\n"
        f"[gate.install]\npromise = 'it is cut off'\n"
    )
    return path


def test_the_machine_that_the_iso_installs_passes(gates: Gates, demo_iso: Path) -> None:
    rows = " or ".join(f"tpm[{row}]" for row in ROWS)
    outcome = gates.run(
        "--iso", demo_iso, "--iso-distro", "demo-install", "-k", f"test_install or test_luks or {rows}"
    )
    for gate in ("install", "luks", "tpm"):
        assert outcome.findings(gate) == set()
        assert all(control["caught"] for control in outcome.verdicts["gates"][gate]["controls"])
    assert {gate: outcome.verdicts["gates"][gate]["verdict"] for gate in ("install", "luks")} == {
        "install": "PASS",
        "luks": "PASS",
    }
    rows_seen = outcome.verdicts["gates"]["tpm"]["rows"]
    assert {row: rows_seen[row]["verdict"] for row in ROWS} == dict.fromkeys(ROWS, "PASS")
    assert outcome.root is not None
    machines = outcome.root / "machines"
    # Once for all of them.
    assert len(list(machines.glob("install*"))) == 2
    assert (machines / "install/installer.log").read_bytes().rstrip().endswith(b"osgates-demo: installed")
    seen = json.loads((outcome.root / "observations/install.json").read_text())
    assert seen["first_boot"]["outcome"] == "done"
    assert any("The TPM was enrolled." in line for line in seen["first_boot"]["log"])


def test_a_first_boot_that_does_not_enrol_the_tpm_is_found(gates: Gates, demo_iso: Path) -> None:
    text = files("pytest_osgates").joinpath("profiles/demo-install.toml").read_text()
    head, step, rest = text.partition("expect = '^The TPM is to unlock")
    wrong = rest.replace('send = "correct horse battery staple of the demo"', 'send = "another one"', 1)
    assert step
    assert wrong != rest
    path = gates.directory / "enrolled-by-nobody.toml"
    path.write_text(head + step + wrong)
    rows = f"test_install or test_luks or tpm[{ROWS[0]}]"
    outcome = gates.run("--iso", demo_iso, "--iso-distro", path, "-k", rows)
    assert outcome.findings("install") == {("first-boot-failed", "first boot")}
    judged = outcome.verdicts["gates"]
    assert judged["install"]["verdict"] == "FAIL"
    assert {judged[gate]["verdict"] for gate in ("luks", "tpm")} == {"NOT PROVEN"}
    assert outcome.status == 1
    assert outcome.root is not None
    seen = json.loads((outcome.root / "observations/install.json").read_text())
    assert (seen["outcome"], seen["first_boot"]["outcome"]) == ("done", "failed")
    assert "The TPM was not enrolled." in seen["first_boot"]["detail"]
    assert "another one" not in json.dumps(seen)


@pytest.mark.parametrize("signal", ["TERM", "KILL"])
def test_an_installation_that_is_cut_off_leaves_nothing_that_starts(
    signal: str, gates: Gates, demo_iso: Path
) -> None:
    script = AT_THE_END.format(install=INSTALL, signal=signal)
    outcome = gates.run("--iso", demo_iso, "--iso-distro", profile(gates, script))
    assert outcome.findings("install") == {("install-failed", "installation")}
    assert outcome.status == 1
    assert outcome.root is not None
    log = (outcome.root / "machines/install/installer.log").read_text()
    assert "osgates-demo: boot files\n" in log
    assert "cut off: " in log
    assert ("osgates-demo: not installed" in log) is (signal == "TERM")
    assert "osgates-demo: installed" not in log


def test_a_disk_without_room_is_not_touched(gates: Gates, demo_iso: Path) -> None:
    script = f"printf %s secret | {INSTALL}"
    outcome = gates.run("--iso", demo_iso, "--iso-distro", profile(gates, script, disk_mib=128))
    assert outcome.findings("install") == {("install-failed", "installation")}
    assert outcome.root is not None
    seen = json.loads((outcome.root / "observations/install.json").read_text())
    assert "too little" in seen["log"][-1]
    assert seen["left"] == []


def test_the_installer_is_beside_the_live_root_and_not_in_it(demo_iso: Path) -> None:
    """What the other gates judge of the demo has nothing of it."""
    with IsoImage.open(demo_iso) as image:
        script = image.lookup("/osgates/install")
        assert script is not None
        (extent,) = script.extents
        assert image.source.read_at(extent.offset, extent.size).decode() == load_installer().script()
    with open_root(demo_iso) as root:
        assert [layer.name for layer in root.layers] == ["/live/filesystem.squashfs"]
        for entry in load_installer().packages:
            assert [name for name in entry.files if root.exists(f"/{name}")] == []
