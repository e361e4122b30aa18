"""What is injected decodes to what is meant, and carries its nonce."""

from __future__ import annotations

import base64
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_osgates.vm.errors import UsageError
from pytest_osgates.vm.guest.injection import JOURNAL_FIELDS as FIELDS
from pytest_osgates.vm.guest.injection import Injection, new_nonce

NONCE = "0123456789abcdef"
NONCES = st.text("0123456789abcdef", min_size=16, max_size=16)


def credentials(injection: Injection) -> dict[str, str]:
    """Credential name to content, as systemd reads them from SMBIOS (systemd.system-credentials(7))."""
    found = {}
    for text in injection.smbios_strings():
        kind, _, rest = text.partition(":")
        assert kind == "io.systemd.credential.binary"
        name, _, encoded = rest.partition("=")
        found[name] = base64.b64decode(encoded, validate=True).decode()
    return found


def section(unit: str, name: str) -> dict[str, str]:
    """The settings of one section of a unit file."""
    body = unit.split(f"[{name}]\n", 1)[1].split("\n[", 1)[0]
    return dict(line.split("=", 1) for line in body.splitlines() if "=" in line)


def test_new_systemd_gets_units_and_a_drop_in() -> None:
    found = credentials(Injection(NONCE))
    shell, log, journal = (f"osgates-{NONCE}{name}.service" for name in ("", "-kmsg", "-journal"))
    assert set(found) == {
        f"systemd.extra-unit.{shell}",
        f"systemd.extra-unit.{log}",
        f"systemd.extra-unit.{journal}",
        "systemd.unit-dropin.sysinit.target",
        "tmpfiles.extra",
    }
    assert found["systemd.unit-dropin.sysinit.target"] == f"[Unit]\nWants={shell}\nWants={log}\nWants={journal}\n"
    unit = found[f"systemd.extra-unit.{shell}"]
    # Before anything else, in spite of failures, and again whenever it ends.
    assert section(unit, "Unit")["DefaultDependencies"] == "no"
    assert section(unit, "Unit")["StartLimitIntervalSec"] == "0"
    assert section(unit, "Service")["Restart"] == "always"


@given(NONCES)
def test_the_shell_s_command_line_survives_systemd_and_sh(nonce: str) -> None:
    injection = Injection(nonce)
    port = f"/dev/virtio-ports/org.osgates.{nonce}"
    assert injection.shell_command() == f"exec /bin/sh <>{port} >&0 2>&1"
    for unit, command in (
        (injection.shell_unit, injection.shell_command()),
        (injection.log_unit, f"exec cat /dev/kmsg >{port}.kmsg"),
        (injection.journal_unit, f"exec journalctl -b -f -n all -q -o json --output-fields={FIELDS} >{port}.journal"),
    ):
        start = section(injection.unit_texts()[unit], "Service")["ExecStart"]
        assert shlex.split(start) == ["/bin/sh", "-c", command]
        # systemd would expand these (systemd.service(5), "Command lines"; systemd.unit(5), "Specifiers").
        assert "%" not in start
        assert "$" not in start


@given(NONCES)
def test_older_systemd_gets_the_same_units_by_tmpfiles(nonce: str) -> None:
    injection = Injection(nonce)
    lines = [line.split(" ") for line in credentials(injection)["tmpfiles.extra"].splitlines()]
    assert all(len(words) == 6 + (words[0] != "d") for words in lines if words[0] != "d")
    made = [words[1] for words in lines if words[0] == "d"]
    files = {words[1]: base64.b64decode(words[6], validate=True).decode() for words in lines if words[0] == "f+~"}
    assert len(made) + len(files) == len(lines)
    rules = f"/run/udev/rules.d/99-osgates-{nonce}.rules"
    assert set(files) == {rules, *(f"/run/systemd/system/{unit}" for unit in injection.units)}
    # A directory before what lies in it, and nothing that outlives the boot.
    assert set(made) == {path.rpartition("/")[0] for path in files}
    assert all(path.startswith("/run/") for path in (*made, *files))
    for unit, text in injection.unit_texts().items():
        assert files[f"/run/systemd/system/{unit}"] == text
    assert files[rules].splitlines() == [
        f'SUBSYSTEM=="virtio-ports", ATTR{{name}}=="org.osgates.{nonce}{suffix}", TAG+="systemd", '
        f'ENV{{SYSTEMD_WANTS}}+="osgates-{nonce}{unit}.service"'
        for suffix, unit in (("", ""), (".kmsg", "-kmsg"), (".journal", "-journal"))
    ]


@given(NONCES)
def test_everything_injected_carries_the_nonce(nonce: str) -> None:
    injection = Injection(nonce)
    assert all(nonce in unit for unit in injection.units)
    assert nonce in injection.directory
    assert set(injection.units) == set(injection.unit_texts())


@pytest.mark.parametrize(
    "nonce",
    ["", NONCE[:-1], NONCE + "0", NONCE.upper(), NONCE + "\n", "0123456789abcde;", "０" * 16, "../../../../etc/a"],
)
def test_what_is_no_nonce(nonce: str) -> None:
    with pytest.raises(UsageError, match="not a nonce"):
        Injection(nonce)


@given(st.text())
def test_a_nonce_is_16_hexadecimal_digits_or_refused(text: str) -> None:
    if len(text) == 16 and set(text) <= set("0123456789abcdef"):
        assert Injection(text).nonce == text
    else:
        with pytest.raises(UsageError):
            Injection(text)


def test_new_nonces_are_valid_and_differ() -> None:
    nonces = {new_nonce() for _ in range(200)}
    assert len(nonces) == 200
    assert all(Injection(nonce).nonce == nonce for nonce in nonces)
