"""How a root shell gets into an unmodified image: systemd credentials in SMBIOS strings.

Two generations of systemd understand two different sets of credentials; both are given, and each guest heeds the
ones that it knows (systemd.system-credentials(7), systemd-debug-generator(8), systemd-tmpfiles(8)):

- systemd >= 256: ``systemd.extra-unit.NAME`` and ``systemd.unit-dropin.NAME`` add units;
- systemd >= 252: ``tmpfiles.extra`` writes the unit and a udev rule that wants it once the port appears.

SMBIOS is measured into PCR 1, so nothing of this belongs into a boot that judges PCR 1.
"""

from __future__ import annotations

import base64
import re
import secrets
from dataclasses import dataclass

from pytest_osgates.vm.errors import UsageError
from pytest_osgates.vm.spec import journal_port_name, log_port_name, port_name

JOURNAL_FIELDS = "MESSAGE,MESSAGE_ID,PRIORITY,UNIT,USER_UNIT,UNIT_RESULT,_PID,_SYSTEMD_UNIT,SYSLOG_IDENTIFIER"
_NONCE = re.compile(r"[0-9a-f]{16}")


def new_nonce() -> str:
    """16 hexadecimal digits by which everything injected is recognised."""
    return secrets.token_hex(8)


@dataclass(frozen=True)
class Injection:
    """The units of the guest channel for one nonce."""

    nonce: str

    def __post_init__(self) -> None:
        if not _NONCE.fullmatch(self.nonce):
            raise UsageError(f"not a nonce of 16 hexadecimal digits: {self.nonce!r}")

    @property
    def shell_unit(self) -> str:
        """The unit that runs the shell."""
        return f"osgates-{self.nonce}.service"

    @property
    def log_unit(self) -> str:
        """The unit that sends the kernel log."""
        return f"osgates-{self.nonce}-kmsg.service"

    @property
    def journal_unit(self) -> str:
        """The unit that sends the journal: news come by themselves, where asking over and over slows a boot."""
        return f"osgates-{self.nonce}-journal.service"

    @property
    def units(self) -> tuple[str, ...]:
        """All units that were not in the image."""
        return (self.shell_unit, self.log_unit, self.journal_unit)

    @property
    def directory(self) -> str:
        """The channel's scratch directory in the guest."""
        return f"/run/osgates-{self.nonce}"

    def shell_command(self) -> str:
        """What the shell's unit, or a login, runs: sh on the port, in and out."""
        return f"exec /bin/sh <>/dev/virtio-ports/{port_name(self.nonce)} >&0 2>&1"

    def unit_texts(self) -> dict[str, str]:
        """Unit file contents by unit name."""
        log = f"exec cat /dev/kmsg >/dev/virtio-ports/{log_port_name(self.nonce)}"
        journal = (
            f"exec journalctl -b -f -n all -q -o json --output-fields={JOURNAL_FIELDS}"
            f" >/dev/virtio-ports/{journal_port_name(self.nonce)}"
        )
        return {
            self.shell_unit: _unit(self.shell_command()),
            self.log_unit: _unit(log),
            # Before journald keeps its first file there is nothing to follow, and journalctl would never see it come.
            self.journal_unit: _unit(journal, "After=systemd-journald.service systemd-journal-flush.service\n"),
        }

    def smbios_strings(self) -> tuple[str, ...]:
        """SMBIOS type 11 strings for systemd of either generation."""
        texts = self.unit_texts()
        wants = "[Unit]\n" + "".join(f"Wants={unit}\n" for unit in texts)
        credentials = {f"systemd.extra-unit.{unit}": text for unit, text in texts.items()}
        credentials["systemd.unit-dropin.sysinit.target"] = wants
        credentials["tmpfiles.extra"] = self._tmpfiles(texts)
        return tuple(
            f"io.systemd.credential.binary:{name}={base64.b64encode(text.encode()).decode()}"
            for name, text in credentials.items()
        )

    def _tmpfiles(self, texts: dict[str, str]) -> str:
        ports = {
            self.shell_unit: port_name(self.nonce),
            self.log_unit: log_port_name(self.nonce),
            self.journal_unit: journal_port_name(self.nonce),
        }
        rules = "".join(
            f'SUBSYSTEM=="virtio-ports", ATTR{{name}}=="{port}", TAG+="systemd", ENV{{SYSTEMD_WANTS}}+="{unit}"\n'
            for unit, port in ports.items()
        )
        lines = ["d /run/systemd/system 0755 root root -", "d /run/udev/rules.d 0755 root root -"]
        files = {f"/run/systemd/system/{unit}": text for unit, text in texts.items()}
        files[f"/run/udev/rules.d/99-osgates-{self.nonce}.rules"] = rules
        for path, text in files.items():
            encoded = base64.b64encode(text.encode()).decode()
            # The modifier ~ decodes Base64 (tmpfiles.d(5)), so that no specifier or escape is expanded.
            lines.append(f"f+~ {path} 0644 root root - {encoded}")
        return "\n".join(lines) + "\n"


def _unit(command: str, order: str = "") -> str:
    return (
        "[Unit]\nDescription=pytest-osgates guest channel (from outside the image)\nDefaultDependencies=no\n"
        f"StartLimitIntervalSec=0\n{order}"
        f"[Service]\nExecStart=/bin/sh -c '{command}'\nRestart=always\nRestartSec=1\n"
    )
