"""The judge of the gate `kconfig`: nothing that fails goes unsaid, and nothing that was not looked at is a PASS."""

from __future__ import annotations

import dataclasses
import tomllib
from typing import Any

import hypothesis.strategies as st
import pytest
from gate_samples import (
    COMPILER,
    HOSTILE,
    KCONFIG_POLICY,
    RELEASE,
    VERSION,
    check,
    config_source,
    enough_checks,
    kernel,
    keys,
)
from hypothesis import given, settings

from pytest_osgates.checks import kconfig
from pytest_osgates.checks.kconfig import (
    FEWEST,
    GATE,
    AcceptedCheck,
    AcceptedOptions,
    KconfigObservation,
    KconfigPolicy,
    mismatches,
    read_config_source,
    split_parameters,
)
from pytest_osgates.judging import judge
from pytest_osgates.model import Severity, State, Verdict

V, U, R = Severity.VIOLATION, Severity.UNPROVEN, Severity.REMARK
FAILED = 'FAIL: "is not set"'


def policy(**changes: Any) -> KconfigPolicy:
    return KCONFIG_POLICY.model_copy(update=changes)


def test_a_clean_kernel_passes_with_every_control_caught() -> None:
    judgement = judge(GATE, kernel(), KCONFIG_POLICY)
    assert judgement.findings == ()
    assert all(control.caught for control in judgement.controls)
    assert len(judgement.controls) == 6
    assert judgement.verdict is Verdict.PASS
    assert judgement.considered == sum(FEWEST.values())


RULES: dict[str, tuple[KconfigObservation, list[tuple[str, str, Severity]]]] = {
    "kconfig": (kernel(check("CONFIG_X", FAILED)), [("kconfig", "CONFIG_X", V)]),
    "cmdline": (kernel(check("iommu", FAILED, "cmdline")), [("cmdline", "iommu", V)]),
    "sysctl": (kernel(check("kernel.x", 'FAIL: "1"', "sysctl")), [("sysctl", "kernel.x", V)]),
    "unknown result": (kernel(check("CONFIG_X", "maybe")), [("unknown-result", "CONFIG_X", U)]),
    "empty result": (kernel(check("CONFIG_X", "")), [("unknown-result", "CONFIG_X", U)]),
    "not found": (kernel(check("CONFIG_X", "OK: is not found")), [("not-found", "1 options", R)]),
    "parameter": (
        kernel(command_line="BOOT_IMAGE=/x quiet mitigations=off"),
        [("unknown-parameter", "mitigations", V)],
    ),
    "no config": (kernel(config=None, detail="none in the image"), [("config-missing", "kernel config", U)]),
    "other config": (
        kernel(config=config_source(version="6.1.0")),
        [("config-mismatch", "kernel config", U)],
    ),
    **{
        f"too few {kind}": (
            kernel(checks=tuple(c for c in enough_checks() if c.option != f"{kind}_option_0")),
            [("checks-missing", kind, U)],
        )
        for kind in FEWEST
    },
    "nothing checked": (kernel(checks=()), [("checks-missing", kind, U) for kind in FEWEST]),
}


@pytest.mark.parametrize("name", RULES)
def test_each_cause_gives_exactly_its_finding(name: str) -> None:
    seen, wanted = RULES[name]
    judgement = judge(GATE, seen, KCONFIG_POLICY)
    assert [(*finding.key, finding.severity) for finding in judgement.findings] == wanted
    severities = {severity for *_, severity in wanted}
    assert judgement.verdict is (
        Verdict.FAIL if V in severities else Verdict.NOT_PROVEN if U in severities else Verdict.PASS
    )


def test_the_emptiest_observation_never_passes() -> None:
    empty = KconfigObservation(
        state=State.LIVE,
        release="",
        version="",
        command_line="",
        config=None,
        sysctl_count=0,
        checks=(),
        tool="",
        tool_version="",
        tool_sha256="",
    )
    for demanded in (KconfigPolicy(), KCONFIG_POLICY):
        assert judge(GATE, empty, demanded).verdict is Verdict.NOT_PROVEN


ACCEPTED = [
    ("kconfig", lambda reason: {"accept_kconfig": (AcceptedOptions(name="a", options=("X", "Y"), reason=reason),)}),
    ("cmdline", lambda reason: {"accept_cmdline": (AcceptedCheck(option="X", reason=reason),)}),
    ("sysctl", lambda reason: {"accept_sysctl": (AcceptedCheck(option="X", reason=reason),)}),
]


@pytest.mark.parametrize(("kind", "entry"), ACCEPTED)
def test_acceptances_count_only_with_a_reason_and_for_their_kind(kind: Any, entry: Any) -> None:
    seen = kernel(check("X", FAILED, kind))
    judgement = judge(GATE, seen, policy(**entry("a driver needs it")))
    assert judgement.verdict is Verdict.PASS
    assert judgement.accepted == 1
    assert judgement.findings[0].reason == "a driver needs it"
    for reason in ("", "  \n"):
        (finding,) = judge(GATE, seen, policy(**entry(reason))).findings
        assert finding.severity is V
        assert "no reason" in finding.hint
    for other in FEWEST:
        if other != kind:
            found = judge(GATE, kernel(check("X", FAILED, other)), policy(**entry("why")))
            assert (other, "X") in keys(found.findings, V)


def test_unused_acceptances_are_remarks_in_a_fixed_order() -> None:
    accepted = policy(
        accept_kconfig=(AcceptedOptions(name="a", options=("B", "A", "kconfig_option_0"), reason="r"),),
        accept_sysctl=(AcceptedCheck(option="s", reason="r"), AcceptedCheck(option="t", reason="")),
        accept_cmdline=(AcceptedCheck(option="c", reason="r"),),
    )
    judgement = judge(GATE, kernel(check("B", FAILED)), accepted)
    assert keys(judgement.findings, R) == [
        ("unused-acceptance", subject) for subject in ("c", "A", "kconfig_option_0", "s")
    ]
    assert judgement.verdict is Verdict.PASS


def test_what_passes_only_because_it_is_unknown_is_told_or_refused() -> None:
    seen = kernel(check("A", "OK: is not found"), check("B", "OK: is not found", "sysctl"), check("C", "OK"))
    (remark,) = judge(GATE, seen, KCONFIG_POLICY).findings
    assert "A, B" in remark.seen
    strict = judge(GATE, seen, policy(not_found="violation"))
    assert keys(strict.findings, V) == [("not-found", "A"), ("not-found", "B")]
    assert strict.verdict is Verdict.FAIL


@pytest.mark.parametrize(
    "changed",
    [
        {"accept_kconfig": (AcceptedOptions(name="x", options=("CONFIG_OSGATES_CONTROL",), reason="hide"),)},
        {"accept_cmdline": (AcceptedCheck(option="osgates_control", reason="hide"),)},
        {"accept_sysctl": (AcceptedCheck(option="osgates.control", reason="hide"),)},
        {"parameters": ("*",)},
    ],
)
def test_a_profile_that_accepts_a_control_proves_nothing(changed: dict[str, Any]) -> None:
    judgement = judge(GATE, kernel(), policy(**changed))
    assert len([control for control in judgement.controls if not control.caught]) == 1
    assert judgement.verdict is Verdict.NOT_PROVEN


@pytest.mark.parametrize(
    ("function", "missed"),
    [
        ("_source", ["the config of another kernel"]),
        ("_complete", ["no sysctl looked at"]),
        ("_checks", ["a failing kconfig check", "a failing cmdline check", "a failing sysctl check"]),
        ("_parameters", ["a parameter that nobody listed"]),
    ],
)
def test_a_broken_judge_is_noticed_by_its_control(
    function: str, missed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kconfig, function, lambda *arguments: [])
    judgement = judge(GATE, kernel(), KCONFIG_POLICY)
    assert [control.name for control in judgement.controls if not control.caught] == missed
    assert judgement.verdict is Verdict.NOT_PROVEN


def test_a_judge_that_says_nothing_proves_nothing() -> None:
    gate = dataclasses.replace(GATE, judge=lambda seen, policy: [])
    judgement = judge(gate, kernel(), KCONFIG_POLICY)
    assert not any(control.caught for control in judgement.controls)
    assert judgement.verdict is Verdict.NOT_PROVEN


BOOKWORM = (
    "Linux version 6.1.0-37-amd64 (debian-kernel@lists.debian.org) (gcc-12 (Debian 12.2.0-14+deb12u1) 12.2.0, "
    "GNU ld (GNU Binutils for Debian) 2.40) #1 SMP PREEMPT_DYNAMIC Debian 6.1.140-1 (2025-05-22)"
)


@pytest.mark.parametrize(
    ("changes", "release", "version"),
    [
        ({}, RELEASE, VERSION),
        ({"build_salt": "", "compiler": ""}, RELEASE, VERSION),
        ({"name": f"guest:/boot/config-{RELEASE}"}, RELEASE, VERSION),
        (
            {
                "name": "image:/boot/config-6.1.0-37-amd64",
                "version": "6.1.140",
                "build_salt": "6.1.0-37-amd64",
                "compiler": "gcc-12 (Debian 12.2.0-14+deb12u1) 12.2.0",
            },
            "6.1.0-37-amd64",
            BOOKWORM,
        ),
        ({"name": "/proc/config.gz", "version": "", "build_salt": "x", "compiler": "y"}, RELEASE, VERSION),
    ],
)
def test_a_config_of_the_running_kernel_is_taken(changes: dict[str, str], release: str, version: str) -> None:
    assert mismatches(config_source(**changes), release, version) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": ""}, "no version header"),
        ({"version": "6.12.5"}, "is of 6.12.5"),
        ({"version": "6.12.570"}, "is of 6.12.570"),
        ({"version": "6112"}, "is of 6112"),
        ({"version": "14.2.0"}, "is of 14.2.0"),
        ({"version": "2.44"}, "is of 2.44"),
        ({"name": "image:/boot/config-6.12.57+deb13-cloud-amd64"}, "not named after"),
        ({"name": f"image:/boot/config-{RELEASE}.old"}, "not named after"),
        ({"build_salt": "6.12.57+deb13-cloud-amd64"}, "CONFIG_BUILD_SALT is"),
        ({"compiler": "gcc-15"}, "made for gcc-15"),
    ],
)
def test_a_config_of_another_kernel_is_told_from_it(changes: dict[str, str], words: str) -> None:
    (reason,) = mismatches(config_source(**changes), RELEASE, VERSION)
    assert words in reason


def test_a_profile_may_demand_the_running_kernels_own_config() -> None:
    demanded = policy(config="running")
    assert judge(GATE, kernel(), demanded).verdict is Verdict.NOT_PROVEN
    own = kernel(config=config_source(name="/proc/config.gz"))
    assert judge(GATE, own, demanded).verdict is Verdict.PASS


def test_what_a_config_says_of_its_kernel_is_read() -> None:
    text = (
        "#\n# Automatically generated file; DO NOT EDIT.\n# Linux/x86 6.12.57 Kernel Configuration\n#\n"
        f'CONFIG_CC_VERSION_TEXT="{COMPILER}"\nCONFIG_BUILD_SALT="{RELEASE}"\n# CONFIG_X is not set\n'
    )
    name = f"image:/boot/config-{RELEASE}"
    assert read_config_source(name, text, "0" * 64) == config_source()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "CONFIG_X=y\n",
        "# Linux/x86 6.12.57 Kernel Configuration and more\n",
        "x" * 5000 + "\n# Linux/x86 1 Kernel",
    ],
)
def test_a_config_without_its_header_names_no_kernel(text: str) -> None:
    assert read_config_source("n", text, "").version == ""


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", []),
        ("  quiet\t splash\n", ["quiet", "splash"]),
        ('dyndbg="file a.c +p; file b.c +p" quiet', ["dyndbg=file a.c +p; file b.c +p", "quiet"]),
        ('"a=b c" d', ["a=b c", "d"]),
        ('a="b"c', ["a=bc"]),
        ("a='b c'", ["a='b", "c'"]),
        ("a=b=c", ["a=b=c"]),
    ],
)
def test_parameters_are_split_as_the_kernel_does(line: str, words: list[str]) -> None:
    assert split_parameters(line) == words


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(st.text(max_size=60))
def test_no_text_on_the_command_line_goes_unnoticed(line: str) -> None:
    words = split_parameters(line)
    shown = "".join(words)
    assert sorted(shown.replace(" ", "")) == sorted("".join("".join(words).split(" ")))
    assert {c for c in line if not c.isspace() and c != '"'} == {c for c in shown if not c.isspace()}


@pytest.mark.parametrize(
    ("pattern", "parameter", "fits"),
    [
        ("quiet", "quiet", True),
        ("quiet", "Quiet", False),
        ("quiet", "quiet=1", False),
        ("root=*", "root=/dev/sda1", True),
        ("root=*", "xroot=/dev/sda1", False),
        ("console=ttyS?", "console=ttyS0", True),
        ("console=ttyS?", "console=ttyS10", False),
        ("ip=[::1]", "ip=[::1]", True),
        ("a[bc]", "ab", False),
    ],
)
def test_listed_parameters_are_patterns_with_two_wildcards(pattern: str, parameter: str, fits: bool) -> None:
    findings = kconfig.judge(kernel(command_line=parameter), policy(parameters=(pattern,)))
    assert (keys(findings) == []) is fits


def test_no_parameter_is_listed_by_default() -> None:
    findings = kconfig.judge(kernel(), KconfigPolicy())
    assert keys(findings, V) == [("unknown-parameter", "BOOT_IMAGE"), ("unknown-parameter", "quiet")]


WORDS = st.text(min_size=1, max_size=12)


@settings(max_examples=80, deadline=None, derandomize=True, database=None)
@given(
    names=st.lists(st.tuples(WORDS, st.sampled_from(list(FEWEST)), WORDS), max_size=4),
    line=st.text(max_size=30),
)
def test_a_baseline_with_reasons_filled_in_accepts_exactly_what_was_open(
    names: list[tuple[str, Any, str]], line: str
) -> None:
    checks = [check(name, FAILED, kind, area) for name, kind, area in names]
    seen = kernel(*checks, command_line=line)
    text = kconfig.baseline(seen, KconfigPolicy())
    assert "FAIL" not in tomllib.loads(text)
    head, found, rest = text.partition("# to be added to [gate.kconfig]\n")
    data = tomllib.loads(f"[gate.kconfig]\n{rest}" if found else head or "[gate.kconfig]\n")["gate"]["kconfig"]
    unexplained = KconfigPolicy.model_validate(data)
    assert keys(kconfig.judge(seen, unexplained), V) == keys(
        [f for f in kconfig.judge(seen, KconfigPolicy()) if f.rule != "unknown-parameter"], V
    )
    for entries in data.values():
        for entry in entries:
            if isinstance(entry, dict):
                entry["reason"] = "explained"
    assert keys(kconfig.judge(seen, KconfigPolicy.model_validate(data)), V) == []


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(result=st.text(max_size=30), line=st.text(max_size=30))
def test_an_observation_survives_json_and_is_judged_alike(result: str, line: str) -> None:
    seen = kernel(check(HOSTILE, result), command_line=line, detail=HOSTILE)
    back = KconfigObservation.model_validate_json(seen.model_dump_json())
    assert back == seen
    assert kconfig.judge(back, KCONFIG_POLICY) == kconfig.judge(seen, KCONFIG_POLICY)
    if not result.startswith("OK"):
        assert judge(GATE, seen, KCONFIG_POLICY).verdict is not Verdict.PASS
