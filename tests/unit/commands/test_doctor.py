"""What `osgates doctor` says of the accelerator."""

from __future__ import annotations

import pytest

from pytest_osgates.commands import doctor
from pytest_osgates.vm import host


@pytest.mark.parametrize(
    ("version", "said"), [((7, 2, 22), True), ((8, 0, 5), True), ((8, 1, 0), False), ((10, 0, 2), False)]
)
def test_an_emulator_that_races_is_told(
    version: tuple[int, int, int], said: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "find_qemu", lambda: host.Qemu("/usr/bin/qemu-system-x86_64", version, "QEMU"))
    monkeypatch.setattr(host, "probe_kvm", lambda qemu, cache: host.Probe(host.KVM, False, "no /dev/kvm"))
    line = next(line for line in doctor.examine(fetch=False) if line.what == "accelerator")
    assert line.ok
    assert line.found.startswith("TCG (slower); KVM was refused: no /dev/kvm")
    assert ("cpus = 1" in line.found) is said


def test_kvm_has_no_such_race(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "find_qemu", lambda: host.Qemu("/usr/bin/qemu-system-x86_64", (7, 2, 22), "QEMU"))
    monkeypatch.setattr(host, "probe_kvm", lambda qemu, cache: host.Probe(host.KVM, True, ""))
    line = next(line for line in doctor.examine(fetch=False) if line.what == "accelerator")
    assert line.found == "KVM: it ran a test guest"
