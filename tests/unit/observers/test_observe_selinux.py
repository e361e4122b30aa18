"""SELinux: a machine that is asked for domains, played by a table; and hostile answers."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
from confined_machine import SHA, Machine, blob, entry, record, scanned
from hypothesis import given
from hypothesis import strategies as st

from pytest_osgates.checks.apparmor_model import Kind, UnitSeen
from pytest_osgates.checks.registry import GATES
from pytest_osgates.checks.selinux import GATE, SelinuxObservation, SelinuxPolicy, baseline
from pytest_osgates.evidence import Evidence as Store
from pytest_osgates.judging import judge
from pytest_osgates.model import Severity, State, Verdict
from pytest_osgates.observers.confinement.observe import Place
from pytest_osgates.observers.confinement.selinux import ask_domains, domain_of, observe
from pytest_osgates.progress import ProgressLog
from pytest_osgates.vm.guest.channel import GuestShell, ShellResult

INIT = "system_u:system_r:init_t:s0"


def context(domain: str) -> str:
    return f"system_u:system_r:{domain}:s0"


class Fedora(Machine):
    """`domains`: by the type of a file, what execve gives; `permissive`: domains that are."""

    def __init__(
        self,
        files: dict[str, str],
        domains: dict[str, str],
        running: tuple[tuple[int, str, str, int], ...] = (),
        *,
        enforce: str | None = "1",
        permissive: tuple[str, ...] = (),
        modules: bool = True,
        told: bool = True,
    ) -> None:
        super().__init__({}, tuple((pid, exe, context(label), inode) for pid, exe, label, inode in running))
        self.types, self.domains = files, domains
        self.enforce, self.permissive, self.modules, self.told = enforce, permissive, modules, told

    def run(self, command: str, *, timeout: float = 60, max_output: int = 0, shown: str | None = None) -> ShellResult:
        if "class/process/index" in command:
            return ShellResult(command, 0, self.answered(), b"")
        if "active/modules" in command:
            return ShellResult(command, 0, self.listed(), b"")
        return super().run(command, timeout=timeout, max_output=max_output, shown=shown)

    def listed(self) -> bytes:
        if self.enforce is None:
            return record("none") + record("end")
        paths = [word.decode() for word in self.files[f"{self.directory}/files"].split(b"\0")[:-1]]
        said = [record("enforce", self.enforce), record("first", INIT)]
        if self.modules:
            said.append(record("modules", "/var/lib/selinux/targeted/active/modules"))
            said += [record("permissive", f"permissive_{name}") for name in self.permissive]
        found = [path for path in paths if path in self.types]
        contexts = "".join(f"system_u:object_r:{self.types[path]}:s0\0{path}\0" for path in found)
        sums = "".join(f"{SHA}  {path}\0" for path in found)
        return b"".join(said) + blob("contexts", contexts.encode()) + blob("sums", sums.encode()) + record("end")

    def answered(self) -> bytes:
        said = []
        for line in self.files[f"{self.directory}/domains"].decode().splitlines():
            source, target = line.split()
            given = source if target == "-" else context(self.domains.get(target.split(":")[2], "init_t"))
            flags = int(given.split(":")[2] in self.permissive)
            access = f"0 ffffffff 0 ffffffff 1 {flags:x}" if self.told else ""
            said.append(record("domain", source, target, given, access))
        return b"".join(said) + record("end")


SCAN = scanned(entry("/usr/bin/nc"), entry("/usr/sbin/sshd", Kind.LISTENING_SERVICE), entry("/bin/ls", Kind.REACHES))
FILES = {"/usr/bin/nc": "nc_exec_t", "/usr/sbin/sshd": "sshd_exec_t"}
DOMAINS = {"nc_exec_t": "nc_t", "sshd_exec_t": "sshd_t", "bin_t": "unconfined_service_t"}
IDLE = ((1, "/usr/lib/systemd/systemd", "init_t", 0), (30, "/usr/sbin/sshd", "sshd_t", 7))


def seen(machine: Machine, tmp_path: Path, **section: object) -> SelinuxObservation:
    place = Place(cast("GuestShell", machine), State.LIVE, Store(tmp_path), ProgressLog(tmp_path / "progress.jsonl"))
    return observe(place, SCAN, SelinuxPolicy.model_validate(section), lambda path: path)


def decisive(observation: SelinuxObservation, **section: object) -> set[tuple[str, str]]:
    found = judge(GATE, observation, SelinuxPolicy.model_validate(section)).findings
    return {one.key for one in found if one.severity in (Severity.VIOLATION, Severity.UNPROVEN)}


def test_a_confined_machine_passes(tmp_path: Path) -> None:
    observation = seen(Fedora(FILES, DOMAINS, IDLE), tmp_path)
    result = judge(GATE, observation, SelinuxPolicy())
    assert result.verdict is Verdict.PASS, result
    assert {control.rule for control in GATE.controls_for(observation, SelinuxPolicy())} >= {
        "selinux-disabled",
        "not-enforcing",
        "permissive-domain",
        "unconfined",
    }
    assert observation.domain == "init_t"
    assert GATES["selinux"] is GATE


@pytest.mark.parametrize(
    ("machine", "wanted"),
    [
        (Fedora(FILES, DOMAINS, IDLE, enforce=None), {("selinux-disabled", "kernel")}),
        (Fedora(FILES, DOMAINS, IDLE, enforce="0"), {("not-enforcing", "kernel")}),
        (Fedora(FILES, DOMAINS, IDLE, enforce="?"), {("mode-not-told", "kernel")}),
        (
            Fedora(FILES, DOMAINS, IDLE, permissive=("sshd_t",)),
            {("permissive-domain", "sshd_t"), ("complain-mode", "/usr/sbin/sshd")},
        ),
        (Fedora(FILES, DOMAINS, IDLE, permissive=("rare_t",)), {("permissive-domain", "rare_t")}),
        (Fedora({**FILES, "/usr/bin/nc": "bin_t"}, DOMAINS, IDLE), {("unconfined", "/usr/bin/nc")}),
        (Fedora({**FILES, "/usr/bin/nc": "etc_t"}, DOMAINS, IDLE), {("unconfined", "/usr/bin/nc")}),
        (Fedora({"/usr/sbin/sshd": "sshd_exec_t"}, DOMAINS, IDLE), {("no-label", "/usr/bin/nc")}),
        (
            Fedora(FILES, DOMAINS, ((30, "/usr/sbin/sshd", "initrc_t", 7),)),
            {("started-before-profile", "/usr/sbin/sshd")},
        ),
        (Fedora(FILES, DOMAINS, IDLE, told=False), {("no-label", "/usr/bin/nc"), ("no-label", "/usr/sbin/sshd")}),
    ],
)
def test_what_is_found(tmp_path: Path, machine: Fedora, wanted: set[tuple[str, str]]) -> None:
    assert decisive(seen(machine, tmp_path)) == wanted


def test_a_policy_whose_modules_cannot_be_read_is_a_remark(tmp_path: Path) -> None:
    result = judge(GATE, seen(Fedora(FILES, DOMAINS, IDLE, modules=False), tmp_path), SelinuxPolicy())
    assert result.verdict is Verdict.PASS
    assert ("permissive-not-told", "policy") in {found.key for found in result.findings}


def test_the_profile_says_which_domains_confine_nobody(tmp_path: Path) -> None:
    observation = seen(Fedora(FILES, DOMAINS, IDLE), tmp_path)
    assert decisive(observation, unconfined=["nc_t"]) == {("unconfined", "/usr/bin/nc")}
    loose = seen(Fedora({**FILES, "/usr/bin/nc": "bin_t"}, DOMAINS, IDLE), tmp_path)
    assert "[[gate.selinux.documented]]" in baseline(loose, SelinuxPolicy())


@pytest.mark.parametrize(
    ("text", "domain"),
    [
        (INIT, "init_t"),
        ("a:b:c", "c"),
        ("a:b:c:s0-s0:c0.c1023", "c"),
        ("", ""),
        ("unconfined", ""),
        ("a:b:c d", ""),
        ("a:b:c\n", ""),
    ],
)
def test_domains(text: str, domain: str) -> None:
    assert domain_of(text) == domain


@given(st.lists(st.tuples(st.text(max_size=20), st.text(max_size=20)), max_size=5))
def test_what_is_no_context_is_not_asked(pairs: list[tuple[str, str]]) -> None:
    machine = Fedora(FILES, DOMAINS)
    ask_domains(cast("GuestShell", machine), [*pairs, (INIT, context("x")), (INIT, "-")])
    asked = machine.files["/run/nonce/domains"].decode("utf-8", "surrogateescape").split("\n")
    assert asked[-3:] == [f"{INIT} {context('x')}", f"{INIT} -", ""]
    assert all(len(line.split()) == 2 for line in asked[:-1])


def test_a_script_that_its_unit_has_read(tmp_path: Path) -> None:
    unit = UnitSeen(name="r.service", program="/opt/app", executes="/usr/bin/perl")
    scan = scanned(entry("/opt/app", Kind.LISTENING_SERVICE), units=(unit,))
    machine = Fedora(
        {"/opt/app": "app_exec_t", "/usr/bin/perl": "bin_t"}, {**DOMAINS, "app_exec_t": "app_t"}, IDLE[:1]
    )
    place = Place(cast("GuestShell", machine), State.LIVE, Store(tmp_path), ProgressLog(tmp_path / "progress.jsonl"))
    assert decisive(observe(place, scan, SelinuxPolicy(), str)) == {("unconfined", "/opt/app")}
