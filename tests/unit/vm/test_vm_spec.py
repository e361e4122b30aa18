"""What a machine may be made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pytest_osgates.vm.errors import UsageError
from pytest_osgates.vm.home import Home
from pytest_osgates.vm.network.settings import Settings
from pytest_osgates.vm.spec import (
    Accelerator,
    AccelKind,
    Firmware,
    MachineSpec,
    card_mac,
    journal_port_name,
    log_port_name,
    port_name,
)

ISO = Path("/images/distro.iso")


def test_a_home_has_the_disk() -> None:
    home = Home.at(Path("/copies/machine"))
    assert MachineSpec("home", Firmware.UEFI, home=home).disks == ()
    with pytest.raises(UsageError, match="its home has its disk, and it is given 1 more"):
        MachineSpec("home", Firmware.UEFI, home=home, disks=(Path("/d/a.raw"),))


def test_nothing_to_boot_from() -> None:
    with pytest.raises(UsageError, match="machine empty: neither an ISO nor a disk"):
        MachineSpec("empty", Firmware.BIOS)


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [("memory_mib", (128, 2048, 1 << 20), (0, -1, 127, (1 << 20) + 1)), ("cpus", (1, 255), (0, -2, 256))],
)
def test_bounds(field: str, good: tuple[int, ...], bad: tuple[int, ...]) -> None:
    for value in good:
        made: Any = MachineSpec("m", Firmware.BIOS, ISO, **{field: value})  # type: ignore[arg-type]
        assert getattr(made, field) == value
    for value in bad:
        with pytest.raises(UsageError, match=f"machine m: {value} .* is not between"):
            MachineSpec("m", Firmware.BIOS, ISO, **{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["a,process=init", "a/b", "", "a b", "x\n", ".", "-x"])
def test_a_name_is_neither_an_option_nor_a_path(name: str) -> None:
    with pytest.raises(UsageError, match="name of a machine"):
        MachineSpec(name, Firmware.BIOS, ISO)


def test_networks_and_clocks() -> None:
    with pytest.raises(UsageError, match="a subnet of its own"):
        MachineSpec("m", Firmware.BIOS, ISO, network=(Settings(), Settings()))
    assert len({card_mac(index) for index in range(8)}) == 8


def test_secrets_stay_out_of_the_repr() -> None:
    spec = MachineSpec("m", Firmware.UEFI, ISO, smbios_strings=("io.systemd.credential:passwd=hunter2",))
    assert "hunter2" not in repr(spec)


def test_accelerator_arguments() -> None:
    assert Accelerator(AccelKind.KVM, "host").argument == "kvm"
    assert Accelerator(AccelKind.TCG, "qemu64").argument == "tcg,thread=multi"


def test_the_ports_differ() -> None:
    names = [port_name("n"), log_port_name("n"), journal_port_name("n")]
    assert len(set(names)) == 3
    assert all(name.startswith("org.osgates.n") for name in names)
