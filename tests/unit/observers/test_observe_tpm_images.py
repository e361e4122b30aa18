"""One row of a machine with unified kernel images: its twin, what the console says, and whose keys are taken."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_osgates.checks.tpm_model import Outcome, Tamper
from pytest_osgates.model import Verdict
from pytest_osgates.observers import tpm
from pytest_osgates.observers.tpm import Row
from pytest_osgates.vm.home import Home
from tests.unit.observers import test_observe_tpm as rows
from tests.unit.observers.test_observe_tpm import HOST, Play, Script, Serial, verdict
from tests.unit.tpm_samples import TPM_POLICY

original, play = rows.original, rows.play


def test_load_options_that_are_ignored_have_a_twin(
    play: Play, original: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same, once more, with Secure Boot off: there the parameter must come through."""
    made: list[str] = []

    def applied(self: tpm.Workshop, tamper: Tamper) -> tuple[tpm.Change, ...]:
        made.append("applied")
        self.home.variables.write_bytes(b"with an entry")
        return (tpm.Change(what="load-options", before="a", after="b"),)

    def off(path: Path, patience: float) -> None:
        made.append("secure boot off")
        path.write_bytes(path.read_bytes() + b", Secure Boot off")

    monkeypatch.setattr(tpm.Workshop, "apply", applied)
    monkeypatch.setattr("pytest_osgates.vm.variables.secure_boot_off", off)
    monkeypatch.setattr(Serial, "said", "x")
    script = Script([Outcome.UNLOCKED, Outcome.ASKED, Outcome.UNLOCKED])
    seen = play(script, "command-line-edited")
    assert [boot.role for boot in seen.boots] == ["tampered", "twin", "undone"]
    assert made == ["applied", "applied", "secure boot off"]
    tampered, twin, undone = (digests for _, _, digests in script.seen)
    assert len({tampered["variables"], twin["variables"], undone["variables"]}) == 3
    assert twin["tpm"] == tampered["tpm"] == original.digests()["tpm"], "not what the first boot left"
    assert undone == original.digests()
    # Nobody types anything, and the console of this script does not say what the kernel got.
    assert script.typed == []
    assert verdict(seen) is Verdict.NOT_PROVEN


@pytest.mark.parametrize(
    ("console", "lines"),
    [
        ("[    0.000000] Command line: a b\r\n[    0.1] Kernel command line: a b\r\nx", ("a b",)),
        ("Command line: a=1\n[    0.2] Kernel command line: BOOT a=1\n", ("a=1", "BOOT a=1")),
        ("[    0.000000][    T0] Command line: a\n[   12.345678][  T123] Kernel command line: b\n", ("a", "b")),
        ("subcommand line: x\nno command lines: y\n", ()),
        ("Previous kernel command line: q\n[    5.1] x[1]: command line: /usr/bin/x\ncommand line: z\n", ()),
        ("Command line: \x1b]x\x07y\n", ("y",)),
        ("\n".join(f"Command line: {number}" for number in range(9)), ("0", "1", "2", "3")),
    ],
)
def test_what_the_console_says_of_the_command_line(console: str, lines: tuple[str, ...]) -> None:
    assert tpm.command_lines(console.replace("\r", "")) == lines


def test_who_signs_is_looked_for_beside_the_profile_and_then_beside_the_disk(original: Home, tmp_path: Path) -> None:
    policy = TPM_POLICY.model_copy(update={"uki_key": "key.pem", "uki_certificate": "certificate.pem"})
    (tmp_path / "key.pem").touch()
    nothing: Any = None
    row = Row("x", policy, nothing, nothing, HOST, nothing, nothing, directory=tmp_path)
    assert tpm._owners(row, original) == {
        "uki_key": tmp_path / "key.pem",
        "uki_certificate": original.directory / "certificate.pem",
    }
    assert tpm._owners(replace(row, policy=TPM_POLICY), original) == {}
