"""What the host offers, from fabricated descriptors and programs, and one true run of the probe's guest."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

import pytest

from pytest_osgates.vm import host
from pytest_osgates.vm.errors import HostError, MissingTool, OsgatesError
from pytest_osgates.vm.host import KVM, TCG, Probe, Qemu, find_firmware
from pytest_osgates.vm.spec import Firmware, FlashImage

QEMU = Qemu("/nonexistent/qemu", (7, 2, 0), "QEMU emulator version 7.2.0")


# -- firmware


class Descriptors:
    """Directories of firmware descriptors, most important first, and the flash images that they name."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.directories = [top / "user", top / "etc", top / "usr"]
        for name in ("CODE.fd", "VARS.fd", "CODE.secboot.fd", "VARS.ms.fd"):
            (top / name).write_bytes(b"flash")

    def add(self, directory: str, name: str, *features: str, **changes: Any) -> Path:
        """A descriptor of a plain UEFI build for q35 with `features`; `changes` replace parts of it."""
        secure = "secure-boot" in features
        mapping = {
            "device": "flash",
            "executable": {"filename": str(self.top / ("CODE.secboot.fd" if secure else "CODE.fd")), "format": "raw"},
            "nvram-template": {"filename": str(self.top / ("VARS.ms.fd" if secure else "VARS.fd")), "format": "raw"},
        }
        for key in ("device", "mode", "executable", "nvram-template"):
            if key in changes:
                mapping[key] = changes.pop(key)
        data: dict[str, Any] = {
            "description": "made up",
            "interface-types": ["uefi"],
            "mapping": mapping,
            "targets": [{"architecture": "x86_64", "machines": ["pc-i440fx-*", "pc-q35-*"]}],
            "features": ["acpi-s3", *features],
            "tags": [],
        }
        data.update({key.replace("_", "-"): value for key, value in changes.items()})
        return self.write(directory, name, json.dumps(data))

    def write(self, directory: str, name: str, text: str) -> Path:
        path = self.top / directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    def find(self, firmware: Firmware = Firmware.UEFI) -> str:
        """The descriptor chosen, below the top directory."""
        found = find_firmware(firmware, self.directories)
        assert found is not None
        return str(found.descriptor.relative_to(self.top))


@pytest.fixture
def descriptors(tmp_path: Path) -> Descriptors:
    return Descriptors(tmp_path)


SECURE = ("requires-smm", "secure-boot", "enrolled-keys")


def test_bios_needs_nothing(descriptors: Descriptors) -> None:
    assert find_firmware(Firmware.BIOS, descriptors.directories) is None


def test_nothing_there(descriptors: Descriptors) -> None:
    with pytest.raises(MissingTool, match=r"offers uefi for q35\n  -> .*ovmf"):
        find_firmware(Firmware.UEFI, descriptors.directories)
    with pytest.raises(MissingTool, match="offers uefi-secureboot"):
        find_firmware(Firmware.UEFI_SECUREBOOT, [])


def test_what_is_found(descriptors: Descriptors) -> None:
    path = descriptors.add("usr", "60-plain.json")
    found = find_firmware(Firmware.UEFI, descriptors.directories)
    assert found is not None
    assert found.code == FlashImage(descriptors.top / "CODE.fd", "raw")
    assert found.variables == FlashImage(descriptors.top / "VARS.fd", "raw")
    assert found.descriptor == path
    assert not found.requires_smm


def test_the_first_file_name_wins_whatever_its_directory(descriptors: Descriptors) -> None:
    descriptors.add("user", "70-user.json")
    descriptors.add("usr", "60-vendor.json")
    assert descriptors.find() == "usr/60-vendor.json"
    descriptors.add("etc", "50-admin.json")
    assert descriptors.find() == "etc/50-admin.json"


def test_the_same_name_in_an_earlier_directory_overrides(descriptors: Descriptors) -> None:
    descriptors.add("usr", "60-x.json")
    descriptors.add("etc", "60-x.json")
    assert descriptors.find() == "etc/60-x.json"
    descriptors.add("user", "60-x.json")
    assert descriptors.find() == "user/60-x.json"


def test_an_empty_file_masks_the_one_behind_it(descriptors: Descriptors) -> None:
    descriptors.add("usr", "60-x.json")
    descriptors.write("etc", "60-x.json", "")
    descriptors.add("usr", "70-y.json")
    assert descriptors.find() == "usr/70-y.json"
    (descriptors.top / "user").mkdir()
    (descriptors.top / "user" / "70-y.json").symlink_to("/dev/null")
    with pytest.raises(MissingTool):
        descriptors.find()


UEFI = {
    "interface-types": ["uefi"],
    "mapping": {"device": "flash"},
    "targets": [{"architecture": "x86_64", "machines": ["pc-q35-*"]}],
}


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '"text"',
        "null",
        "{}",
        '{"features": 5}',
        '{"features": [[]]}',
        '{"mapping": []}',
        '{"targets": [5]}',
        '{"interface-types": null, "mapping": {"device": "flash"}}',
        json.dumps({**UEFI, "targets": [{"architecture": "x86_64", "machines": [5]}]}),
        json.dumps({**UEFI, "targets": [{"architecture": "x86_64", "machines": 5}]}),
        json.dumps({**UEFI, "mapping": {"device": "flash", "executable": 5}}),
        json.dumps({**UEFI, "mapping": {"device": "flash", "executable": {"filename": 5}}}),
    ],
)
def test_a_broken_descriptor_is_passed_over(descriptors: Descriptors, text: str) -> None:
    descriptors.write("etc", "10-broken.json", text)
    (descriptors.top / "etc" / "11-binary.json").write_bytes(b"\xff\xfe")
    (descriptors.top / "etc" / "12-directory.json").mkdir()
    (descriptors.top / "etc" / "13-dangling.json").symlink_to("nowhere")
    descriptors.add("usr", "60-good.json")
    assert descriptors.find() == "usr/60-good.json"


@pytest.mark.parametrize(
    "changes",
    [
        {"mode": "stateless"},
        {"mode": "combined"},
        {"device": "memory"},
        {"interface_types": ["bios"]},
        {"targets": [{"architecture": "aarch64", "machines": ["pc-q35-*"]}]},
        {"targets": [{"architecture": "x86_64", "machines": ["pc-i440fx-*"]}]},
        {"executable": {"filename": "/nonexistent/CODE.fd", "format": "raw"}},
        {"nvram-template": {}},
        {"nvram-template": {"filename": "/nonexistent/VARS.fd", "format": "raw"}},
        {"nvram-template": {"filename": "/", "format": "raw"}},
    ],
)
def test_what_does_not_fit_is_passed_over(descriptors: Descriptors, changes: dict[str, Any]) -> None:
    descriptors.add("usr", "10-unfit.json", **changes)
    descriptors.add("usr", "60-good.json", mode="split")
    assert descriptors.find() == "usr/60-good.json"


def test_formats_are_passed_on(descriptors: Descriptors) -> None:
    top = descriptors.top
    descriptors.add(
        "usr",
        "60-x.json",
        *SECURE,
        executable={"filename": str(top / "CODE.secboot.fd"), "format": "qcow2"},
        **{"nvram-template": {"filename": str(top / "VARS.ms.fd")}},
    )
    found = find_firmware(Firmware.UEFI_SECUREBOOT, descriptors.directories)
    assert found is not None
    assert (found.code.format, found.variables.format) == ("qcow2", "raw")
    assert found.requires_smm


def test_secure_boot_means_enrolled_keys(descriptors: Descriptors) -> None:
    descriptors.add("usr", "10-plain.json")
    descriptors.add("usr", "20-no-keys.json", "requires-smm", "secure-boot")
    descriptors.add("usr", "30-keys-only.json", "enrolled-keys")
    with pytest.raises(MissingTool):
        descriptors.find(Firmware.UEFI_SECUREBOOT)
    descriptors.add("usr", "40-keys.json", *SECURE)
    assert descriptors.find(Firmware.UEFI_SECUREBOOT) == "usr/40-keys.json"


def test_plain_uefi_is_without_secure_boot(descriptors: Descriptors) -> None:
    descriptors.add("usr", "10-keys.json", *SECURE)
    descriptors.add("usr", "20-no-keys.json", "secure-boot")
    with pytest.raises(MissingTool):
        descriptors.find()
    descriptors.add("usr", "30-plain.json")
    assert descriptors.find() == "usr/30-plain.json"


def test_where_descriptors_are_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", "/config")
    system = [Path("/etc/qemu/firmware"), Path("/usr/share/qemu/firmware")]
    assert host.descriptor_directories() == [Path("/config/qemu/firmware"), *system]
    for value in ("", "relative"):
        # The XDG Base Directory Specification: a path that is not absolute is to be ignored.
        monkeypatch.setenv("XDG_CONFIG_HOME", value)
        monkeypatch.setenv("HOME", "/home/somebody")
        assert host.descriptor_directories()[0] == Path("/home/somebody/.config/qemu/firmware")


# -- QEMU and its version


def fake(directory: Path, name: str, body: str) -> Path:
    path = directory / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def bin_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_qemu: None) -> Path:
    """A directory at the head of PATH."""
    path = tmp_path / "bin"
    path.mkdir()
    monkeypatch.setenv("PATH", f"{path}:{os.environ['PATH']}")
    return path


@pytest.mark.parametrize(
    ("banner", "version"),
    [
        ("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)", (7, 2, 22)),
        ("QEMU emulator version 10.0.0", (10, 0, 0)),
        ("QEMU emulator version 9.1.50 (v9.1.0-1-gabc)", (9, 1, 50)),
    ],
)
def test_versions(bin_first: Path, banner: str, version: tuple[int, int, int]) -> None:
    path = fake(bin_first, host.QEMU, f"echo '{banner}'; echo Copyright")
    assert host.find_qemu() == Qemu(str(path), version, banner)


@pytest.mark.parametrize("version", ["7.1.9", "5.2.0", "0.15.1"])
def test_too_old(bin_first: Path, version: str) -> None:
    fake(bin_first, host.QEMU, f"echo QEMU emulator version {version}")
    with pytest.raises(MissingTool, match=r"is version \d+\.\d+, older than 7\.2\n  -> apt-get install"):
        host.find_qemu()


@pytest.mark.parametrize(
    "body", ["echo hello", "true", "echo version x.y.z", "printf '\\377\\n'", "echo; echo version 9.0.0"]
)
def test_nonsense_for_a_version(bin_first: Path, body: str) -> None:
    fake(bin_first, host.QEMU, body)
    with pytest.raises(HostError, match="--version says nothing known"):
        host.find_qemu()


def test_a_qemu_that_does_not_even_start(bin_first: Path) -> None:
    fake(bin_first, host.QEMU, "echo 'error while loading shared libraries: libslirp.so.0' >&2; exit 127")
    with pytest.raises(HostError, match=r"libslirp\.so\.0"):
        host.find_qemu()


def test_no_qemu_at_all(monkeypatch: pytest.MonkeyPatch, fresh_qemu: None) -> None:
    monkeypatch.setattr(host, "QEMU", "qemu-system-of-no-machine")
    with pytest.raises(MissingTool, match="apt-get install qemu-system-x86"):
        host.find_qemu()


def test_a_swtpm_that_says_nothing(bin_first: Path) -> None:
    fake(bin_first, "swtpm", "echo 'TPM emulator version 0.7.1, Copyright'; echo more")
    assert host.swtpm_version() == "TPM emulator version 0.7.1, Copyright"
    fake(bin_first, "swtpm", "true")
    assert host.swtpm_version() == ""


# -- accelerators


def test_the_probe_s_guest_truly_runs(monkeypatch: pytest.MonkeyPatch, fresh_qemu: None) -> None:
    monkeypatch.setattr(host, "PROBE_SECONDS", 60.0)
    assert host.probe(host.find_qemu(), TCG) == Probe(TCG, True, "ran a test guest")


def test_this_machine_s_kvm_is_taken_at_its_word(tmp_path: Path, fresh_qemu: None) -> None:
    """Whatever the answer is here: it has a reason, is cached, and decides what `select` does."""
    found = host.probe_kvm(host.find_qemu(), tmp_path)
    assert found.reason
    assert found.usable is (found.reason == "ran a test guest")
    automatic = host.select("auto", tmp_path)
    assert automatic.kvm == found
    assert automatic.accelerator == (KVM if found.usable else TCG)
    assert host.select("tcg", tmp_path).accelerator == TCG
    if found.usable:
        assert host.select("kvm", tmp_path).accelerator == KVM
    else:
        with pytest.raises(HostError, match="KVM was demanded and is not usable here") as caught:
            host.select("kvm", tmp_path)
        assert found.reason in str(caught.value)


@pytest.mark.parametrize(
    ("body", "usable", "reason"),
    [
        ("exit 33", True, "ran a test guest"),
        ("exit 0", False, "QEMU ended with status 0: no message"),
        ("echo 'failed to set MSR' >&2; exit 1", False, "QEMU ended with status 1: failed to set MSR"),
        ("kill -ABRT $$", False, "QEMU ended with status -6: no message"),
        ("exec sleep 100", False, "did not finish in"),
    ],
)
def test_the_probe_believes_only_status_33(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, usable: bool, reason: str
) -> None:
    monkeypatch.setattr(host, "PROBE_SECONDS", 0.4 if "sleep" in body else 30.0)
    path = fake(tmp_path, "qemu", f'case "$*" in *"-accel kvm -cpu host"*) ;; *) exit 99 ;; esac\n{body}')
    found = host.probe(Qemu(str(path), (9, 0, 0), "banner"), KVM)
    assert found.usable is usable
    assert reason in found.reason


def never(qemu: Qemu, accelerator: object) -> Probe:
    raise AssertionError("probed without need")


def test_no_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "probe", never)
    found = host.probe_kvm(QEMU, tmp_path, tmp_path / "kvm")
    assert found == Probe(KVM, False, f"{tmp_path}/kvm does not exist")
    assert list(tmp_path.iterdir()) == []


def test_a_device_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = tmp_path / "kvm"
    device.touch()
    monkeypatch.setattr(host, "probe", never)
    # Root may read all, so that a file's mode shows nothing here.
    monkeypatch.setattr(os, "access", lambda path, mode: path != device)
    found = host.probe_kvm(QEMU, tmp_path, device)
    assert not found.usable
    assert "no permission" in found.reason
    assert "group kvm" in found.reason


@pytest.mark.parametrize("usable", [True, False])
def test_the_answer_is_asked_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, usable: bool) -> None:
    asked: list[object] = []

    def probe(qemu: Qemu, accelerator: Any) -> Probe:
        asked.append(accelerator)
        return Probe(KVM, usable, "as made up")

    monkeypatch.setattr(host, "probe", probe)
    cache = tmp_path / "cache" / "not made yet"
    for _ in range(3):
        assert host.probe_kvm(QEMU, cache, Path("/dev/null")) == Probe(KVM, usable, "as made up")
    assert asked == [KVM]
    # Another QEMU is another question, and so is no cache.
    host.probe_kvm(Qemu("/q", (8, 0, 0), "QEMU emulator version 8.0.0"), cache, Path("/dev/null"))
    host.probe_kvm(QEMU, None, Path("/dev/null"))
    assert len(asked) == 3
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"usable": true}', '{"reason": "x"}', '"usable"', "\x00", '[{"usable": true}]']
)
def test_a_corrupt_cache_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(host, "probe", lambda qemu, accelerator: Probe(KVM, False, "as made up"))
    host.probe_kvm(QEMU, tmp_path, Path("/dev/null"))
    (stored,) = tmp_path.iterdir()
    whole = stored.read_text()
    stored.write_text(text)
    assert host.probe_kvm(QEMU, tmp_path, Path("/dev/null")) == Probe(KVM, False, "as made up")
    assert stored.read_text() == whole
    stored.write_bytes(b"\xff\xfe")
    assert host.probe_kvm(QEMU, tmp_path, Path("/dev/null")).reason == "as made up"


@pytest.mark.parametrize("value", ['"yes"', "1", '"true"', "null", "[true]"])
def test_a_cache_that_does_not_say_true_does_not_mean_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setattr(host, "probe", lambda qemu, accelerator: Probe(KVM, True, "as made up"))
    host.probe_kvm(QEMU, tmp_path, Path("/dev/null"))
    (stored,) = tmp_path.iterdir()
    stored.write_text(f'{{"usable": {value}, "reason": "x"}}')
    assert not host.probe_kvm(QEMU, tmp_path, Path("/dev/null")).usable


def test_a_cache_that_cannot_be_written_does_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "probe", lambda qemu, accelerator: Probe(KVM, True, "as made up"))
    (tmp_path / "file").touch()
    assert host.probe_kvm(QEMU, tmp_path / "file" / "cache", Path("/dev/null")).usable


def test_another_architecture_has_no_kvm_for_these_guests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(HostError, match="KVM cannot run x86-64 guests on aarch64\n  -> use --iso-accel tcg"):
        host.select("kvm", None)


# -- disks and memory


def test_an_overlay_leaves_its_base_alone(tmp_path: Path) -> None:
    base, overlay = tmp_path / "a disk, of ours.raw", tmp_path / "overlay.qcow2"
    base.write_bytes(b"\0" * (1 << 20))
    host.create_overlay(base, overlay)
    assert base.read_bytes() == b"\0" * (1 << 20)
    head = overlay.read_bytes()
    assert head[:4] == b"QFI\xfb"
    assert str(base).encode() in head
    assert b"raw" in head
    with pytest.raises(OsgatesError, match="has a backing file"):
        host.create_overlay(overlay, tmp_path / "second.qcow2")


def test_a_disk_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="is not a disk image"):
        host.create_overlay(tmp_path / "absent.raw", tmp_path / "overlay.qcow2")


def test_a_qemu_img_that_talks_nonsense(bin_first: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").touch()
    for said in ("hello", "{}", "[]"):
        fake(bin_first, "qemu-img", f"echo '{said}'")
        with pytest.raises(HostError, match="says nothing usable"):
            host.create_overlay(tmp_path / "disk", tmp_path / "overlay")


def test_memory_is_read_from_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    assert host.memory_available_mib() > 0
    monkeypatch.setattr(host, "_read", lambda path: "MemTotal: 9999999 kB\nMemAvailable:    2097152 kB\nCached: 5 kB")
    assert host.memory_available_mib() == 2048
    monkeypatch.setattr(host, "_read", lambda path: "")
    assert host.memory_available_mib() == 0


@pytest.mark.parametrize(
    ("took", "pace"),
    [
        ([0.05, 0.29, 0.53], 1.0),
        ([0.05, 1.9, 0.53], 2.0),
        ([0.05, 0.06, 0.06], host.LEAST_PACE),
        ([0.05, 80.0, 90.0], host.MOST_PACE),
    ],
)
def test_the_pace_is_the_better_of_two_measurements(
    took: list[float], pace: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Less what it takes to start QEMU; within bounds."""
    clock = iter([point for seconds in took for point in (0.0, seconds)])
    monkeypatch.setattr(host, "probe", lambda *args: Probe(TCG, True, "as made up"))
    monkeypatch.setattr(host.time, "monotonic", lambda: next(clock))
    assert host.measure_pace(Qemu("/qemu", (9, 0, 0), "banner"), TCG) == pytest.approx(pace)


def test_a_qemu_that_runs_nothing_is_no_qemu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "probe", lambda *args: Probe(TCG, False, "QEMU ended with status 1: broken"))
    with pytest.raises(HostError, match=r"cannot run a guest of a few instructions: QEMU ended.*\n  -> install QEMU"):
        host.measure_pace(Qemu("/qemu", (9, 0, 0), "banner"), TCG)


def test_a_host_on_which_the_measurement_does_not_end_has_the_most_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 0.1, 0.0, 8.0, 0.0, 8.0])
    monkeypatch.setattr(host, "probe", lambda *args: Probe(TCG, False, "too slow", timed_out=True))
    monkeypatch.setattr(host.time, "monotonic", lambda: next(clock))
    assert host.measure_pace(Qemu("/qemu", (9, 0, 0), "banner"), TCG) == host.MOST_PACE


def test_a_recent_pace_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = iter([2.0, 3.0, 4.0, 5.0])
    clock = [1000.0]
    monkeypatch.setattr(host, "measure_pace", lambda qemu, accelerator: next(measured))
    monkeypatch.setattr(host.time, "clock_gettime", lambda which: clock[0])
    qemu = Qemu("/qemu", (9, 0, 0), "banner")

    def pace(accelerator: Any = TCG) -> float:
        return host.recent_pace(qemu, accelerator, tmp_path / "probe")

    assert [pace(), pace()] == [2.0, 2.0]
    assert pace(KVM) == 3.0
    clock[0] += host.PACE_SECONDS + 1
    assert pace() == 4.0
    for path in (tmp_path / "probe").iterdir():
        path.write_text('{"pace": 1e9, "at"')
    assert pace() == 5.0


def test_a_pace_that_cannot_be_kept_is_measured_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = iter([2.0, 3.0])
    monkeypatch.setattr(host, "measure_pace", lambda qemu, accelerator: next(measured))
    (tmp_path / "probe").write_text("a file")
    qemu = Qemu("/qemu", (9, 0, 0), "banner")
    assert [host.recent_pace(qemu, TCG, where) for where in (tmp_path / "probe", None)] == [2.0, 3.0]
