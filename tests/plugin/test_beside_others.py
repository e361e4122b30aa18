"""The plugin among others: it costs nothing without an ISO, and with one no test reaches the tester's machine."""

from __future__ import annotations

import re

import pytest

from .conftest import PROFILE, Bench

PLAIN = """
import sys
import pytest

def test_nothing_was_loaded(pytestconfig):
    heavy = {"pydantic", "rich", "qemu", "zstandard", "pexpect", "pytest_osgates.session", "pytest_osgates.run"}
    assert heavy.isdisjoint(sys.modules)
    ours = sorted(name for name in sys.modules if name.split(".")[0] == "pytest_osgates")
    assert ours == ["pytest_osgates", "pytest_osgates.options", "pytest_osgates.plugin"]
    assert not [name for name, _ in pytestconfig.pluginmanager.list_name_plugin() if name.startswith("osgates-")]

@pytest.mark.skip
def test_skipped():
    pass

@pytest.mark.xfail
def test_expected():
    assert 0

def test_without_our_fixtures(request):
    with pytest.raises(pytest.FixtureLookupError):
        request.getfixturevalue("os_run")
"""


def test_without_an_iso_a_project_is_left_alone(bench: Bench) -> None:
    bench.tests("", name="unused.py")
    (bench.path / "test_rows.py").write_text(PLAIN)
    done = bench.plain("--strict-config", "-W", "error", "test_rows.py")
    assert done.status == 0, done.output
    assert "2 passed, 1 skipped, 1 xfailed" in done.output
    assert "osgates:" not in done.output
    assert "LAUNCH" not in done.output
    assert not (bench.path / "osgates-evidence").exists()


HOST_TESTS = """
import pytest

testinfra_hosts = ["local://"]

@pytest.mark.kconfig
def test_gate(host, os_judge):
    host.run("touch reached-by-gate")

def test_beside(host):
    host.run("touch reached-beside")

def test_shell(os_shell):
    os_shell.run("touch reached-by-shell")
"""


def test_the_fixture_host_is_never_the_testers_machine(bench: Bench) -> None:
    """No state can be reached here: this machine has no terabyte of memory."""
    bench.profile(PROFILE.replace("[machine]", "[machine]\nmemory_mib = 1048576"))
    (bench.path / "test_rows.py").write_text(HOST_TESTS)
    done = bench.run("--hosts=local://")
    assert list(bench.path.glob("reached-*")) == []
    assert done.status == 10
    assert done.verdicts["kconfig"] == "NOT PROVEN"
    assert "the state live was not reached: " in done.reasons("kconfig")
    assert "memory_mib" in done.reasons("kconfig")
    assert re.search(r"1 not proven.*2 errors|2 errors.*1 not proven", done.output)
    assert done.lines[-1] == "LAUNCH: NOT READY"
    assert list((done.root / "machines").glob("*/serial.log")) == []


def test_a_state_without_its_disk_is_not_reached(bench: Bench) -> None:
    bench.profile(PROFILE.replace("[gate.kconfig]", "[gate.kconfig]\nstate = 'installed'"))
    (bench.path / "test_rows.py").write_text(HOST_TESTS)
    done = bench.run("-m", "kconfig")
    assert done.status == 10
    assert "--iso-disk FILE" in done.reasons("kconfig")
    assert list(bench.path.glob("reached-*")) == []


def test_kvm_that_was_demanded_is_never_replaced_in_silence(bench: Bench) -> None:
    """Holds on a machine with KVM and on one without."""
    done = bench.plain(*bench.options("--iso-accel", "kvm"), "test_rows.py")
    assert ("KVM was demanded" in done.errors) == (done.status == pytest.ExitCode.USAGE_ERROR)
    assert "TCG" not in done.output
