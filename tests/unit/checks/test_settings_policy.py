"""What a profile may demand in `[gate.settings]`: contradictions and demands of nothing are refused, clearly."""

from __future__ import annotations

from pathlib import Path

import pytest
from settings_samples import policy

from pytest_osgates.checks.settings.demand import FileQuestion
from pytest_osgates.checks.settings.files import sample_of
from pytest_osgates.checks.settings.kernel import sysctl_name, sysctl_path
from pytest_osgates.model import State
from pytest_osgates.profiles import loader
from pytest_osgates.vm.errors import UsageError

HEAD = 'schema = 1\nname = "p"\n'
ENTRY = 'state = "live"\nreason = "r"\n'


def refused(path: Path, text: str) -> str:
    """What the loader says of a profile with these entries."""
    path.write_text(HEAD + text)
    with pytest.raises(UsageError) as caught:
        loader.load(path)
    said = str(caught.value)
    assert str(path) in said
    assert "docs/profiles.md" in said or "remove state" in said
    return said


def entry(kind: str, text: str) -> str:
    return f"[[gate.settings.{kind}]]\n{ENTRY}{text}\n"


SENSELESS = [
    # Nothing is demanded.
    ("sysctl", "", "gate.settings.sysctl.0: ", "demands nothing"),
    ("parameter", "", "gate.settings.parameter.0: ", "demands nothing"),
    ("unit", 'names = ["a.service"]', "gate.settings.unit.0: ", "demands nothing"),
    ("unit", "names = []\nenabled = true", "gate.settings.unit.0: ", "demands nothing"),
    ("unit", 'names = ["a.service"]\npresent = false', "gate.settings.unit.0: ", "demands nothing"),
    ("file", 'paths = ["/a"]', "gate.settings.file.0: ", "demands nothing"),
    ("file", 'paths = ["/a"]\ncontains = []', "gate.settings.file.0: ", "demands nothing"),
    ("mount", 'paths = ["/a"]', "gate.settings.mount.0: ", "demands nothing"),
    ("user", 'names = ["a"]', "gate.settings.user.0: ", "demands nothing of a"),
    ("user", 'password = "locked"', "gate.settings.user.0: ", "of nobody"),
    ("user", "", "gate.settings.user.0: ", "demands nothing"),
    ("group", 'names = ["a"]', "gate.settings.group.0: ", "demands nothing"),
    ("package", 'names = ["a"]', "gate.settings.package.0: ", "demands nothing"),
    ("library", 'path = "/a.so"\npreload = false\nmapped = false', "library.0: ", "demands nothing"),
    ("selinux", "", "gate.settings.selinux.0: ", "demands nothing"),
    # What is demanded can never be, or always is.
    ("sysctl", 'values = { "a.b" = [] }', "sysctl.0.values: ", "no value would do"),
    ("sysctl", 'values = { "a.b" = true }', "sysctl.0.values.a.b: ", "not true or false"),
    ("sysctl", 'values = { "a.b" = 1.5 }', "sysctl.0.values.a.b", "valid"),
    ("sysctl", "values = { a.b = 1 }", "sysctl.0.values.a: ", 'stands in quotes, like "kernel.kptr_restrict" = 2'),
    ("sysctl", 'values = { "kernel" = 1 }', "sysctl.0.values: ", "no name of a sysctl"),
    ("sysctl", 'values = { "a.b" = 1, "a/b" = 1 }', "sysctl.0.values: ", "named twice"),
    ("sysctl", 'at_least = { "a.b" = "1" }', "sysctl.0.at_least.a.b: ", "integer"),
    ("parameter", 'present = ["a=1"]', "parameter.0.present: ", "write values = { a = '1' }"),
    ("parameter", 'present = ["a b"]', "parameter.0.present: ", "no kernel parameter"),
    ("parameter", 'absent = [""]', "parameter.0.absent.0: ", "empty"),
    ("parameter", "values = { a = [] }", "parameter.0.values: ", "no value would do"),
    ("unit", 'names = ["ssh"]\nenabled = true', "unit.0.names: ", "write it with its type, like ssh.service"),
    ("unit", 'names = ["a b.service"]\nenabled = true', "unit.0.names: ", "no unit"),
    ("unit", 'names = ["a.service", "a.service"]\nenabled = true', "unit.0.names: ", "named twice"),
    ("unit", 'names = ["a.service"]\nabsent = true\nenabled = false', "unit.0: ", "absent cannot be enabled"),
    ("unit", 'names = ["a.service"]\nmasked = true\nactive = true', "unit.0: ", "masked cannot be active"),
    ("unit", 'names = ["a.service"]\nmasked = true\nenabled = true', "unit.0: ", "masked cannot be enabled"),
    ("unit", 'names = ["a@.service"]\nactive = true', "unit.0: ", "name an instance"),
    ("unit", 'names = ["a.service"]\nenabled = "yes"', "unit.0.enabled: ", "boolean"),
    ("file", 'paths = ["etc"]\npresent = true', "file.0.paths.0: ", "not an absolute path"),
    ("file", 'paths = ["/etc/"]\npresent = true', "file.0.paths.0: ", "shortest form"),
    ("file", 'paths = ["/etc/../a"]\npresent = true', "file.0.paths.0: ", "shortest form"),
    ("file", 'paths = ["/a\\nb"]\npresent = true', "file.0.paths.0: ", "more than one line"),
    ("file", 'paths = ["/a"]\nmode = 640', "file.0.mode: ", 'write it as text, in octal, like "0640"'),
    ("file", 'paths = ["/a"]\nmode = "0888"', "file.0.mode: ", "is no mode"),
    ("file", 'paths = ["/a"]\nmode = "0640"\nmode_at_most = "0640"', "file.0: ", "mode or mode_at_most"),
    ("file", 'paths = ["/a"]\nmode_at_most = "7777"', "file.0: ", "allows everything"),
    ("file", 'paths = ["/a"]\ncontains = ["["]', "file.0.contains.0: ", "not a regular expression"),
    ("file", 'paths = ["/a"]\ncontains = [""]', "file.0.contains.0: ", "empty"),
    ("file", 'paths = ["/a"]\ncontains = ["x*"]', "file.0.contains.0: ", "it demands nothing"),
    ("file", 'paths = ["/a"]\nlacks = ["^"]', "file.0.lacks.0: ", "it demands nothing"),
    ("file", 'paths = ["/etc/shadow"]\nlacks = ["x"]', "file.0: ", "read by no gate"),
    ("file", 'paths = ["/a"]\ncapabilities = ""', "file.0.capabilities: ", 'write "none"'),
    ("file", 'paths = ["/a"]\ncapabilities = "net_raw=ep"', "file.0.capabilities: ", "no capability"),
    ("file", 'paths = ["/a"]\ncapabilities = "cap_net_raw"', "file.0.capabilities: ", "no clause"),
    ("file", 'paths = ["/a"]\nabsent = true\nmode = "0600"', "file.0: ", "absent cannot have mode"),
    ("file", 'paths = ["/a"]\ntype = "directory"\nlinks_to = "/b"', "file.0: ", "directory links to nothing"),
    ("file", 'paths = ["/a"]\ntype = "directory"\ncontains = ["x"]', "file.0: ", "no content"),
    ("file", 'paths = ["/a"]\nempty = true\ncontains = ["x"]', "file.0: ", "contains nothing"),
    ("mount", 'paths = ["/a"]\nabsent = true\ntype = "tmpfs"', "mount.0: ", "no options and no type"),
    ("mount", 'paths = ["/a"]\noptions = ["nosuid"]\nlacks = ["no*"]', "mount.0: ", "in options and in lacks"),
    ("mount", 'paths = ["/a"]\noptions = ["ro", "rw"]', "mount.0: ", "read-only or not"),
    ("user", 'names = ["a:b"]\npresent = true', "user.0.names: ", "no name of a user"),
    ("user", "superusers = []", "user.0: ", "somebody"),
    ("user", 'names = ["a", "b"]\nuid = 1', "user.0: ", "one user's"),
    ("user", 'names = ["a"]\nabsent = true\npassword = "locked"', "user.0: ", "absent has no password"),
    ("user", 'names = ["a"]\npassword = "locked"\nmust_change = true', "user.0: ", "cannot be demanded"),
    ("user", 'names = ["a"]\npassword = "strong"', "user.0.password: ", "'locked', 'set' or 'none'"),
    ("group", 'names = ["a"]\nabsent = true\nmembers = []', "group.0: ", "neither gid nor members"),
    ("group", 'names = ["a", "b"]\ngid = 1', "group.0: ", "one group's"),
    ("package", 'names = ["*"]\nabsent = true', "package.0.names: ", "every package"),
    ("package", 'names = ["a b"]\nabsent = true', "package.0.names: ", "no name of a package"),
    ("package", 'names = ["a"]\nabsent = true\nat_least = "1"', "package.0: ", "no version"),
    ("package", 'names = ["a"]\nversion = "*"', "package.0: ", "every version"),
    ("package", 'names = ["a"]\nmanager = "flatpak"\nat_least = "1"', "package.0: ", "no order"),
    (
        "package",
        'names = ["a"]\nmanager = "apt"\npresent = true',
        "package.0.manager: ",
        "'dpkg', 'rpm' or 'flatpak'",
    ),
    ("library", 'path = "/a b.so"', "library.0: ", "for two"),
    ("library", 'path = "/a.so"\nexcepted = [{ exe = "/*", reason = "r" }]', "excepted.0: ", "every process"),
    ("library", 'path = "/a.so"\nexcepted = [{ exe = "/b" }]', "excepted.0.reason: ", "required"),
    (
        "library",
        'path = "/a.so"\nmapped = false\nexcepted = [{ exe = "/b", reason = "r" }]',
        "library.0: ",
        "needs an exception",
    ),
    ("selinux", 'mode = "disabled"\npolicy = "targeted"', "selinux.0: ", "no policy in force"),
    ("lockdown", 'mode = "none"', "lockdown.0.mode: ", "'integrity' or 'confidentiality'"),
]


@pytest.mark.parametrize(("kind", "text", "where", "why"), SENSELESS)
def test_what_makes_no_sense_is_refused(tmp_path: Path, kind: str, text: str, where: str, why: str) -> None:
    said = refused(tmp_path / "p.toml", entry(kind, text))
    assert where in said
    assert why in said


CONTRADICTIONS = [
    (
        entry("sysctl", 'values = { "kernel.x" = 1 }') + entry("sysctl", 'values = { "kernel/x" = 2 }'),
        "live: sysctl kernel.x is demanded as 1 and as 2",
    ),
    (
        entry("sysctl", 'values = { "kernel.x" = 1 }\nat_least = { "kernel.x" = 1 }'),
        "live: sysctl kernel.x is demanded as 1 and as at least 1",
    ),
    (
        entry("lockdown", 'mode = "integrity"') * 2,
        "live: lockdown mode is demanded twice",
    ),
    (
        entry("parameter", 'present = ["a-b"]') + entry("parameter", 'values = { a_b = "1" }'),
        "live: parameter a_b is demanded as a-b, without a value and as a_b=1",
    ),
    (
        entry("parameter", 'values = { a = "1" }\nabsent = ["a"]'),
        "live: parameter a is demanded as a=1 and as no a",
    ),
    (
        entry("unit", 'names = ["a.service"]\nabsent = true') + entry("unit", 'names = ["a.service"]\nmasked = true'),
        "live: unit a.service is demanded absent, and a.service present",
    ),
    (
        entry("file", 'paths = ["/a"]\nmode = "0600"') + entry("file", 'paths = ["/a"]\nmode_at_most = "0640"'),
        "live: file /a mode is demanded as 0600 and as no permission beyond 0640",
    ),
    (
        entry("file", 'paths = ["/a"]\nabsent = true') + entry("file", 'paths = ["/a"]\nowner = "root"'),
        "live: file /a is demanded absent",
    ),
    (
        entry("package", 'names = ["gcc*"]\nabsent = true')
        + entry("package", 'names = ["gcc-12-base"]\npresent = true'),
        "live: package gcc* is demanded absent, and gcc-12-base present as installed",
    ),
    (
        entry("user", 'names = ["a"]\nabsent = true') + entry("user", 'names = ["a"]\npassword = "locked"'),
        "live: user a is demanded absent",
    ),
    (
        entry("selinux", 'mode = "enforcing"') + entry("selinux", 'mode = "permissive"'),
        "live: selinux mode is demanded as enforcing and as permissive",
    ),
]


@pytest.mark.parametrize(("text", "why"), CONTRADICTIONS)
def test_contradictions_are_refused(tmp_path: Path, text: str, why: str) -> None:
    assert why in refused(tmp_path / "p.toml", text)


def test_the_same_on_two_states_is_no_contradiction(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    live = entry("sysctl", 'values = { "kernel.x" = 1 }')
    path.write_text(HEAD + live + live.replace('"live"', '"installed"').replace("= 1", "= 2"))
    section = loader.load(path).gates["settings"]
    assert section.states == "live, installed"
    assert [section.state_of(case) for case in ("live", "installed")] == [State.LIVE, State.INSTALLED]


def test_two_entries_may_speak_of_one_thing() -> None:
    both = policy(
        '[[file]]\npaths = ["/a"]\nmode = "0600"\n[[file]]\npaths = ["/a"]\nowner = "root"\npresent = true\n'
    )
    assert [demand.subject for demand in both.demands(State.LIVE)] == ["/a present", "/a mode", "/a owner"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[[gate.settings.lockdown]]\nreason = 'r'\nmode = 'integrity'\n", "lockdown.0.state: Field required"),
        ("[[gate.settings.lockdown]]\nstate = 'live'\nmode = 'integrity'\n", "lockdown.0.reason: Field required"),
        (
            "[[gate.settings.lockdown]]\nstate = 'live'\nreason = ' '\nmode = 'integrity'\n",
            "reason: it is",
        ),
        ("[[gate.settings.lockdown]]\nstate = 'image'\nreason = 'r'\nmode = 'integrity'\n", "'live' or 'installed'"),
        ("[[gate.settings.sysctls]]\nstate = 'live'\n", "unknown key gate.settings.sysctls (did you mean 'sysctl'?)"),
        (entry("unit", "name = 'a.service'"), "unknown key gate.settings.unit.0.name (did you mean 'names'?)"),
        (
            entry("library", "path = '/a'\nexcepted = [{ exe = '/b', raeson = 'r' }]"),
            "unknown key gate.settings.library.0.excepted.0.raeson (did you mean 'reason'?)",
        ),
        ("[gate.settings]\nstate = 'live'\n" + entry("lockdown", "mode = 'integrity'"), "each of its entries names"),
    ],
)
def test_state_reason_and_unknown_keys(tmp_path: Path, text: str, why: str) -> None:
    assert why in refused(tmp_path / "p.toml", text)


def test_built_in_profiles_demand_something_with_a_reason_of_every_state_that_they_name() -> None:
    # Of the demo's profiles, those for its disks and for Secure Boot are for that alone.
    installed = {"demo-install", "demo-installed", "demo-secureboot", "demo-tpm", "demo-tpm-pin", "demo-tpm-uki"}
    for name in sorted(set(loader.built_in()) - installed):
        section = loader.load(loader.find(name)).gates["settings"]
        for state in map(section.state_of, section.row_states):
            demands = section.policy.demands(state)  # type: ignore[union-attr]
            assert len(demands) > 10
            assert all(demand.reason.strip() and demand.wanted for demand in demands)


def test_everything_that_is_demanded_is_asked() -> None:
    questions = policy().questions(State.LIVE)
    assert list(questions.sysctls) == [
        *("kernel/kptr_restrict", "kernel/yama/ptrace_scope", "kernel/core_pattern", "vm/mmap_min_addr"),
    ]
    assert list(questions.units) == ["fire.service", "ssh.service", "apt.timer", "wait@.service", "cups.service"]
    assert questions.files["/etc/ssh/sshd_config"] == FileQuestion(content=True)
    assert questions.files["/usr/bin/ping"] == FileQuestion(capabilities=True)
    assert questions.files["/etc/skel"] == FileQuestion(empty=True)
    assert questions.files["/etc/hosts.equiv"] == FileQuestion()
    assert list(questions.libraries) == ["/usr/lib/libsafe.so"]
    assert all((questions.command_line, questions.mounts, questions.accounts, questions.packages))
    assert questions.selinux
    assert questions.lockdown
    nothing = policy().questions(State.INSTALLED)
    assert not any((nothing.sysctls, nothing.units, nothing.files, nothing.libraries, nothing.mounts))


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("kernel.kptr_restrict", "kernel/kptr_restrict"),
        ("kernel/kptr_restrict", "kernel/kptr_restrict"),
        # sysctl.d(5): these two are the same.
        ("net.ipv4.conf.enp3s0/200.forwarding", "net/ipv4/conf/enp3s0.200/forwarding"),
        ("net/ipv4/conf/enp3s0.200/forwarding", "net/ipv4/conf/enp3s0.200/forwarding"),
    ],
)
def test_names_of_sysctls_as_in_sysctl_d(name: str, path: str) -> None:
    assert sysctl_path(name) == path
    assert sysctl_path(sysctl_name(path)) == path


@pytest.mark.parametrize(
    "name",
    [
        "",
        "kernel",
        ".a.b",
        "/etc/passwd",
        "a..b",
        "a/../b",
        "a./b",
        "a.b*",
        "-a.b",
        "a.b c",
        "a.b\n",
        "a.b:c",
        "a/./b",
    ],
)
def test_what_is_no_name_of_a_sysctl(name: str) -> None:
    with pytest.raises(ValueError, match="no name of a sysctl"):
        sysctl_path(name)


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        (r"^PermitEmptyPasswords\s+yes$", True),
        (r"(?i)permit.*yes", True),
        (r"^(?:a|b)$", True),
        (r"\bhash\b", True),
        (r"^\d+\.\d+$", True),
        (r"(?<=x)[A-Z]{3}(?!y)", False),
    ],
)
def test_a_text_for_the_control_of_a_pattern_is_found_or_not(pattern: str, found: bool) -> None:
    assert (sample_of(pattern) is not None) is found
