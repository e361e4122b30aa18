"""What cannot be judged is refused before anything is booted or written, with the remedy; see tests/faults too."""

from __future__ import annotations

import pytest

from .conftest import Bench


def test_a_host_without_qemu_is_told_what_to_install(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(bench.path))
    done = bench.plain(*bench.options(), "test_rows.py")
    assert done.status == pytest.ExitCode.USAGE_ERROR
    assert "qemu-system-x86_64 is not installed" in done.errors
    assert "apt-get install qemu-system-x86" in done.errors


def test_settings_that_pytest_did_not_read_are_not_lost_in_silence(bench: Bench) -> None:
    """Where no test is named, the path after `--iso` makes pytest look for its ini-file above the ISO, not here."""
    (bench.path / "pytest.ini").write_text("[pytest]\nosgates_distro = bench.toml\n")
    done = bench.plain("--iso", bench.iso)
    assert done.status == pytest.ExitCode.USAGE_ERROR
    assert "pytest.ini, which has osgates_* settings" in done.errors
    assert "write --iso=FILE" in done.errors
