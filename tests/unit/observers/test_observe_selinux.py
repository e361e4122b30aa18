"""SELinux: a machine that is asked for domains, played by a table; and hostile answers."""

from __future__ import annotations

import struct
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
from pytest_osgates.observers.confinement.policy import permissive_types
from pytest_osgates.observers.confinement.selinux import ask_domains, domain_of, observe, retyped
from pytest_osgates.progress import ProgressLog
from pytest_osgates.vm.guest.channel import GuestShell, ShellResult

INIT = "system_u:system_r:init_t:s0"


def context(domain: str) -> str:
    return f"system_u:system_r:{domain}:s0"


class Fedora(Machine):
    """`domains`: by the type of a file, what execve gives; `user`: to a user's shell; `permissive`: domains that are,
    `stored`: of which some store says so; `may`: domains, each with a type of files that it may write; `nnp`: domains
    that may be entered with no_new_privs."""

    def __init__(
        self,
        files: dict[str, str],
        domains: dict[str, str],
        running: tuple[tuple[int, str, str, int], ...] = (),
        *,
        enforce: str | None = "1",
        permissive: tuple[str, ...] = (),
        stored: tuple[str, ...] = (),
        policy: bytes | None = None,
        told: bool = True,
        user: dict[str, str] | None = None,
        may: tuple[tuple[str, str], ...] = (),
        marked: bool = True,
        nnp: tuple[str, ...] = (),
    ) -> None:
        super().__init__({}, tuple((pid, exe, context(label), inode) for pid, exe, label, inode in running))
        self.types, self.domains = files, domains
        self.enforce, self.permissive, self.stored, self.told = enforce, permissive, stored, told
        self.policy = loaded(len(permissive)) if policy is None else policy
        self.user = domains if user is None else user
        self.may, self.marked, self.nnp = may, marked, nnp

    def run(self, command: str, *, timeout: float = 60, max_output: int = 0, shown: str | None = None) -> ShellResult:
        if "class/process/index" in command:
            return ShellResult(command, 0, self.answered(), b"")
        if "perms/$p" in command:
            return ShellResult(command, 0, self.marks(), b"")
        if "active/modules" in command:
            return ShellResult(command, 0, self.listed(), b"")
        return super().run(command, timeout=timeout, max_output=max_output, shown=shown)

    def listed(self) -> bytes:
        if self.enforce is None:
            return record("none") + record("end")
        paths = [word.decode() for word in self.files[f"{self.directory}/files"].split(b"\0")[:-1]]
        said = [record("enforce", self.enforce), record("first", INIT)]
        said += [record("permissive", f"permissive_{name}") for name in self.stored]
        said += [record("nnp", "1"), blob("policy", self.policy)]
        found = [path for path in paths if path in self.types]
        contexts = "".join(f"system_u:object_r:{self.types[path]}:s0\0{path}\0" for path in found)
        sums = "".join(f"{SHA}  {path}\0" for path in found)
        return b"".join(said) + blob("contexts", contexts.encode()) + blob("sums", sums.encode()) + record("end")

    def answered(self) -> bytes:
        said = []
        for line in self.files[f"{self.directory}/domains"].decode().splitlines():
            source, target = line.split()
            mine = self.user if source.startswith("unconfined_u:") else self.domains
            given = source if target == "-" else context(mine.get(target.split(":")[2], source.split(":")[2]))
            flags = int(given.split(":")[2] in self.permissive)
            # A context that the policy does not know is refused.
            known = not source.startswith(("root:", "system_u:system_r:unconfined_t"))
            access = f"0 ffffffff 0 ffffffff 1 {flags:x}" if self.told and known else ""
            said.append(record("domain", source, target, given, access))
        return b"".join(said) + record("end")

    def marks(self) -> bytes:
        said = []
        for line in self.files[f"{self.directory}/marks"].decode().splitlines():
            source, target, kind, permission = line.split()
            domain, about = source.split(":")[2], target.split(":")[2]
            yes = about in self.nnp if kind == "process2" else (domain, about) in self.may
            access = f"{8 if yes else 1:x} ffffffff 0 ffffffff 1 0" if self.marked else ""
            said.append(record("may", source, target, kind, permission, "4", access))
        return b"".join(said) + record("end")


def bitmap(*bits: int) -> bytes:
    words: dict[int, int] = {}
    for bit in bits:
        words[bit // 64 * 64] = words.get(bit // 64 * 64, 0) | 1 << bit % 64
    highest = max(words) + 64 if words else 0
    return struct.pack("<3I", 64, highest, len(words)) + b"".join(
        struct.pack("<IQ", first, mask) for first, mask in sorted(words.items())
    )


def loaded(permissive: int, version: int = 33) -> bytes:
    head = struct.pack("<2I8s4I", 0xF97CFF8C, 8, b"SE Linux", version, 1, 8, 9)
    return head + bitmap(0, 1, 3) + bitmap(*range(700, 700 + permissive)) + b"rest"


ALL = tuple(("sshd_t", name) for name in ("shadow_t", "selinux_config_t", "sshd_key_t", "bin_t", "user_home_t"))
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
        (Fedora(FILES, DOMAINS, IDLE, permissive=("rare_t",)), {("permissive-domain", "policy")}),
        (Fedora(FILES, DOMAINS, IDLE, permissive=("rare_t",), stored=("rare_t",)), {("permissive-domain", "rare_t")}),
        # A store that is not loaded, and a module that is disabled.
        (Fedora(FILES, DOMAINS, IDLE, stored=("other_t",)), set()),
        (Fedora(FILES, DOMAINS, IDLE, policy=b""), {("permissive-not-told", "policy")}),
        (Fedora(FILES, DOMAINS, IDLE, policy=loaded(1)[:70]), {("permissive-not-told", "policy")}),
        (Fedora(FILES, DOMAINS, IDLE, may=ALL), {("unconfined", "/usr/sbin/sshd")}),
        (Fedora(FILES, DOMAINS, IDLE, may=ALL[:4]), set()),
        (Fedora(FILES, {**DOMAINS, "nc_exec_t": "rpm_t"}, IDLE), {("unconfined", "/usr/bin/nc")}),
        (
            Fedora(FILES, DOMAINS, IDLE, marked=False),
            {("domain-not-told", "nc_t"), ("domain-not-told", "sshd_t")},
        ),
        (
            Fedora(FILES, DOMAINS, IDLE, user={"sshd_exec_t": "sshd_t"}),
            {("unconfined", "/usr/bin/nc")},
        ),
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


def test_more_types_are_permissive_than_have_a_name(tmp_path: Path) -> None:
    machine = Fedora(FILES, DOMAINS, IDLE, permissive=("rare_t", "b_t", "c_t"), stored=("rare_t", "not_t"))
    observation = seen(machine, tmp_path)
    assert (observation.permissive, observation.nameless) == (("rare_t",), 2)
    assert decisive(observation) == {("permissive-domain", "rare_t"), ("permissive-domain", "policy")}


def test_a_permissive_domain_may_be_documented(tmp_path: Path) -> None:
    """By the name that the profile has, which the kernel confirms; others stay findings."""
    entries = [
        {"domain": "rare_t", "reason": "new in this policy"},
        {"domain": "b_t"},
        {"domain": "no_t", "reason": "x"},
    ]
    machine = Fedora(FILES, DOMAINS, IDLE, permissive=("rare_t", "b_t", "c_t"))
    observation = seen(machine, tmp_path, permissive=entries)
    assert (observation.permissive, observation.nameless) == (("b_t", "rare_t"), 1)
    assert decisive(observation, permissive=entries) == {
        ("permissive-domain", "b_t"),
        ("permissive-domain", "policy"),
    }
    found = judge(GATE, observation, SelinuxPolicy.model_validate({"permissive": entries})).findings
    assert ("unused-acceptance", "no_t") in {one.key for one in found if one.severity is Severity.REMARK}
    alone = seen(Fedora(FILES, DOMAINS, IDLE, permissive=("rare_t",)), tmp_path / "2", permissive=entries[:1])
    assert decisive(alone, permissive=entries[:1]) == set()
    # Whatever runs in it stays unconfined.
    sshd = [{"domain": "sshd_t", "reason": "new"}]
    loose = seen(Fedora(FILES, DOMAINS, IDLE, permissive=("sshd_t",)), tmp_path / "3", permissive=sshd)
    assert decisive(loose, permissive=sshd) == {("complain-mode", "/usr/sbin/sshd")}


def test_what_only_a_user_starts_without_confinement_may_be_documented(tmp_path: Path) -> None:
    observation = seen(Fedora(FILES, DOMAINS, IDLE, user={"nc_exec_t": "nc_t"}), tmp_path)
    assert observation.caller == "unconfined_t"
    assert decisive(observation) == {("unconfined", "/usr/sbin/sshd")}
    row = {"binary": "/usr/sbin/sshd", "reason": "init starts it", "reviewer": "r", "date": "2020-01-01"}
    # No unit is known to start it: nobody can tell that what counts is confined.
    assert decisive(observation, documented=[row]) == {("unconfined", "/usr/sbin/sshd")}
    unit = UnitSeen(name="sshd.service", program="/usr/sbin/sshd")
    with_unit = observation.model_copy(update={"scan": observation.scan.model_copy(update={"units": (unit,)})})
    assert decisive(with_unit, documented=[row]) == set()
    of_user = unit.model_copy(update={"name": "sshd.service (user)"})
    of_users = observation.model_copy(update={"scan": observation.scan.model_copy(update={"units": (of_user,)})})
    assert decisive(of_users, documented=[row]) == {("unconfined", "/usr/sbin/sshd")}


@pytest.mark.parametrize(("nnp", "wanted"), [(("sshd_t",), set()), ((), {("unconfined", "/usr/sbin/sshd")})])
def test_a_unit_that_gains_no_privileges(tmp_path: Path, nnp: tuple[str, ...], wanted: set[tuple[str, str]]) -> None:
    unit = UnitSeen(name="sshd.service", program="/usr/sbin/sshd", no_new_privileges=True)
    scan = scanned(entry("/usr/sbin/sshd", Kind.LISTENING_SERVICE), units=(unit,))
    machine = Fedora(FILES, DOMAINS, IDLE[:1], nnp=nnp)
    place = Place(cast("GuestShell", machine), State.LIVE, Store(tmp_path), ProgressLog(tmp_path / "progress.jsonl"))
    row = {"binary": "/usr/sbin/sshd", "reason": "r", "reviewer": "r", "date": "2020-01-01"}
    assert decisive(observe(place, scan, SelinuxPolicy(), str), documented=[row] if wanted else []) == wanted


@given(st.binary(max_size=300), st.integers(0, 300))
def test_the_head_of_a_policy(noise: bytes, cut: int) -> None:
    assert permissive_types(noise) is None
    whole = loaded(3)
    end = len(whole) - len(b"rest")
    told = permissive_types(whole[:cut] + noise[: 300 if cut >= end else 0])
    assert told == (frozenset({700, 701, 702}) if cut >= end else None)
    permissive_types(whole[:32] + noise)


def test_the_types_that_are_permissive() -> None:
    assert permissive_types(loaded(2)) == frozenset({700, 701})
    assert permissive_types(loaded(0)) == frozenset()
    assert permissive_types(loaded(2, version=22)) == frozenset()
    assert permissive_types(loaded(0)[:40] + struct.pack("<3I", 64, 64, 1 << 30)) is None


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


def test_a_context_with_another_type() -> None:
    assert retyped("u:r:t:s0-s0:c0.c1023", "x_t") == "u:r:x_t:s0"
    assert retyped("u:r:t", "x_t") == "u:r:x_t"
    assert retyped("u:r", "x_t") == retyped(INIT, "x t") == ""


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
