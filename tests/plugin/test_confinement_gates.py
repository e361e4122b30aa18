"""The gates `apparmor` and `selinux` as users run them, where nothing needs to be booted to know the answer."""

from __future__ import annotations

import pytest

from .conftest import Bench

PROFILE = """
schema = 1
name = "bench"
[machine]
firmware = ["bios"]
[gate.{gate}]
state = "installed"
"""


@pytest.mark.parametrize("gate", ["apparmor", "selinux"])
def test_an_installed_disk_is_not_proven_before_any_boot(bench: Bench, gate: str) -> None:
    bench.profile(PROFILE.format(gate=gate))
    done = bench.run(tests=())
    assert done.status == 10
    assert done.verdicts == {gate: "NOT PROVEN"}
    assert "of an installed disk it cannot read" in done.reasons(gate)
    assert not list(bench.path.glob("**/machines/*/qemu.json"))
