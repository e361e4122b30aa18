"""Gate `kconfig`: the booted kernel's config, command line and sysctls, looked at by kernel-hardening-checker."""

from __future__ import annotations

import json
import re
from collections import Counter
from fnmatch import fnmatchcase
from typing import Literal

from pydantic import Field

from pytest_osgates.model import Acceptance, Control, Finding, Gate, Model, Observation, Policy, Severity, State

CheckType = Literal["kconfig", "cmdline", "sysctl"]

# kernel-hardening-checker 0.6.17 has about 250, 64 and 38; far fewer means that it did not do its work.
FEWEST: dict[CheckType, int] = {"kconfig": 100, "cmdline": 20, "sysctl": 15}

_HEADER = re.compile(r"^# Linux/\S+ (\S+) Kernel Configuration$", re.MULTILINE)
_CONFIG_STRING = re.compile(r'^CONFIG_(BUILD_SALT|CC_VERSION_TEXT)="([^"\n]*)"$', re.MULTILINE)


class Check(Model):
    """One line of kernel-hardening-checker's JSON output (``-m json``)."""

    option: str
    type: CheckType
    area: str = ""
    decision: str
    wanted: str
    result: str


class ConfigSource(Model):
    """Where the kernel config came from, and what in it names the kernel that it belongs to."""

    name: str
    version: str = ""
    build_salt: str = ""
    compiler: str = ""
    sha256: str = ""


class KconfigObservation(Observation):
    """The kernel of a booted machine. ``config`` is None where no config was found; ``detail`` then says why."""

    state: State
    release: str
    version: str
    command_line: str
    config: ConfigSource | None
    detail: str = ""
    sysctl_count: int
    checks: tuple[Check, ...]
    tool: str
    tool_version: str
    tool_sha256: str

    @property
    def considered(self) -> int | None:
        return len(self.checks)


class AcceptedOptions(Acceptance):
    """Kconfig options that fail for one shared reason."""

    name: str
    options: tuple[str, ...]


class AcceptedCheck(Acceptance):
    """One command line parameter or sysctl whose check may fail."""

    option: str


class KconfigPolicy(Policy):
    """``[gate.kconfig]`` of a distro profile.

    ``parameters``: every kernel parameter that may stand on the command line, ``NAME`` or ``NAME=VALUE``, with ``*``
    and ``?``; one that is not in it is a finding. ``not_found``: what to make of checks that pass only because the
    option does not exist in this kernel (it may have been renamed).
    """

    accept_kconfig: tuple[AcceptedOptions, ...] = ()
    accept_cmdline: tuple[AcceptedCheck, ...] = ()
    accept_sysctl: tuple[AcceptedCheck, ...] = ()
    parameters: tuple[str, ...] = ()
    not_found: Literal["remark", "violation"] = "remark"
    config: Literal["any", "running"] = Field(default="any")


def read_config_source(name: str, text: str, sha256: str) -> ConfigSource:
    """What a kernel config says about its kernel (scripts/kconfig/confdata.c writes the header)."""
    header = _HEADER.search(text[:4096])
    strings = dict(_CONFIG_STRING.findall(text))
    return ConfigSource(
        name=name,
        version=header[1] if header else "",
        build_salt=strings.get("BUILD_SALT", ""),
        compiler=strings.get("CC_VERSION_TEXT", ""),
        sha256=sha256,
    )


def mismatches(source: ConfigSource, release: str, version: str) -> list[str]:
    """Why a config cannot belong to the kernel with this ``uname -r`` and /proc/version; empty where it can."""
    if source.name == "/proc/config.gz":
        return []
    found = []
    if not source.version:
        found.append("the config has no version header")
    elif not (_is_version(source.version, release) or _names_version(source.version, version)):
        found.append(f"the config is of {source.version}, the kernel is {release}")
    if not source.name.endswith(f"/config-{release}"):
        found.append(f"{source.name} is not named after {release}")
    if source.build_salt and source.build_salt != release:
        found.append(f"its CONFIG_BUILD_SALT is {source.build_salt}")
    if source.compiler and source.compiler not in version:
        found.append(f"it was made for {source.compiler}")
    return found


def _is_version(wanted: str, release: str) -> bool:
    return re.match(re.escape(wanted) + r"(?![0-9])", release) is not None


def _names_version(wanted: str, version: str) -> bool:
    """Debian before 13 calls 6.1.140 by its ABI, 6.1.0-37-amd64; what it is stands at the end of /proc/version."""
    return re.search(r"#.* " + re.escape(wanted) + r"(?![0-9])", version) is not None


def split_parameters(command_line: str) -> list[str]:
    """Kernel parameters; double quotes protect spaces (Documentation/admin-guide/kernel-parameters.rst)."""
    return [word.replace('"', "") for word in re.findall(r'(?:"[^"]*"|[^\s"])+', command_line)]


def judge(seen: KconfigObservation, policy: KconfigPolicy) -> list[Finding]:
    """Every FAIL is a finding unless the profile accepts it with a reason; so is every unknown parameter."""
    return [*_source(seen, policy), *_complete(seen), *_checks(seen, policy), *_parameters(seen, policy)]


def _source(seen: KconfigObservation, policy: KconfigPolicy) -> list[Finding]:
    if seen.config is None:
        return [
            Finding(
                rule="config-missing",
                subject="kernel config",
                seen=seen.detail or "neither /proc/config.gz nor a config in the image",
                wanted="/proc/config.gz, or /boot/config-$(uname -r) in the image",
                severity=Severity.UNPROVEN,
            )
        ]
    reasons = mismatches(seen.config, seen.release, seen.version)
    if policy.config == "running" and seen.config.name != "/proc/config.gz":
        reasons.append("the profile demands the running kernel's own /proc/config.gz")
    if not reasons:
        return []
    return [
        Finding(
            rule="config-mismatch",
            subject="kernel config",
            seen="; ".join(reasons),
            wanted=f"the config of the running kernel {seen.release}",
            evidence=seen.config.name,
            severity=Severity.UNPROVEN,
        )
    ]


def _complete(seen: KconfigObservation) -> list[Finding]:
    counts = Counter(check.type for check in seen.checks)
    findings = [
        Finding(
            rule="checks-missing",
            subject=kind,
            seen=f"{counts[kind]} {kind} checks",
            wanted=f"at least {fewest}",
            hint=f"{seen.tool} {seen.tool_version} did not check everything",
            severity=Severity.UNPROVEN,
        )
        for kind, fewest in FEWEST.items()
        if counts[kind] < fewest
    ]
    for check in seen.checks:
        if not check.result.startswith(("OK", "FAIL")):
            findings.append(
                Finding(
                    rule="unknown-result",
                    subject=check.option,
                    seen=check.result,
                    wanted="OK or FAIL",
                    severity=Severity.UNPROVEN,
                )
            )
    return findings


def _checks(seen: KconfigObservation, policy: KconfigPolicy) -> list[Finding]:
    accepted: dict[tuple[str, str], str] = {}
    undocumented: dict[tuple[str, str], str] = {}
    for group in policy.accept_kconfig:
        for option in group.options:
            (accepted if group.documented else undocumented)["kconfig", option] = group.reason
    for kind, entries in (("cmdline", policy.accept_cmdline), ("sysctl", policy.accept_sysctl)):
        for entry in entries:
            (accepted if entry.documented else undocumented)[kind, entry.option] = entry.reason
    findings = []
    failed: set[tuple[str, str]] = set()
    for check in seen.checks:
        if not check.result.startswith("FAIL"):
            continue
        key = (check.type, check.option)
        failed.add(key)
        reason = accepted.get(key)
        findings.append(
            Finding(
                rule=check.type,
                subject=check.option,
                seen=check.result,
                wanted=f"{check.wanted} ({check.decision})",
                hint="the profile's acceptance has no reason: it counts as none" if key in undocumented else "",
                severity=Severity.VIOLATION if reason is None else Severity.ACCEPTED,
                reason=reason or "",
            )
        )
    for kind, option in sorted(accepted.keys() - failed):
        findings.append(
            Finding(
                rule="unused-acceptance",
                subject=option,
                seen=f"the profile accepts this {kind} check, and it does not fail",
                wanted="no acceptance without need",
                hint="remove it from the profile",
                severity=Severity.REMARK,
            )
        )
    return findings + _not_found(seen, policy)


def _not_found(seen: KconfigObservation, policy: KconfigPolicy) -> list[Finding]:
    absent = [
        check for check in seen.checks if check.result.startswith("OK") and check.result.endswith("is not found")
    ]
    if not absent:
        return []
    if policy.not_found == "violation":
        return [
            Finding(
                rule="not-found",
                subject=check.option,
                seen=check.result,
                wanted=f"{check.wanted}, by an option that this kernel has",
                hint="the option may have been renamed or removed",
            )
            for check in absent
        ]
    names = ", ".join(check.option for check in absent)
    return [
        Finding(
            rule="not-found",
            subject=f"{len(absent)} options",
            seen=f"OK only because this kernel does not know them: {names}",
            wanted="known options (they may have been renamed)",
            severity=Severity.REMARK,
        )
    ]


def _parameters(seen: KconfigObservation, policy: KconfigPolicy) -> list[Finding]:
    return [
        Finding(
            rule="unknown-parameter",
            subject=parameter.partition("=")[0],
            seen=parameter,
            wanted="only kernel parameters that the profile lists",
            evidence="/proc/cmdline",
            hint="add it to [gate.kconfig] parameters if it belongs there",
        )
        for parameter in split_parameters(seen.command_line)
        if not any(fnmatchcase(parameter, pattern.replace("[", "[[]")) for pattern in policy.parameters)
    ]


def baseline(seen: KconfigObservation, policy: KconfigPolicy) -> str:
    """TOML for everything that fails and is not accepted: kconfig by area, the others one by one, reasons empty."""
    open_findings = [finding for finding in judge(seen, policy) if finding.severity is Severity.VIOLATION]
    areas = {(check.type, check.option): check.area or "other" for check in seen.checks}
    groups: dict[str, list[str]] = {}
    singles: list[str] = []
    parameters: list[str] = []
    for finding in open_findings:
        if finding.rule == "kconfig":
            groups.setdefault(areas["kconfig", finding.subject], []).append(finding.subject)
        elif finding.rule in {"cmdline", "sysctl"}:
            singles.append(
                f"# {_comment(finding)}\n[[gate.kconfig.accept_{finding.rule}]]\n"
                f'option = {_toml(finding.subject)}\nreason = ""\n'
            )
        elif finding.rule == "unknown-parameter":
            parameters.append(finding.seen)
    blocks = []
    if parameters:
        blocks.append(f"# to be added to [gate.kconfig]\nparameters = {_toml(parameters)}\n")
    for name, options in groups.items():
        blocks.append(
            f'[[gate.kconfig.accept_kconfig]]\nname = {_toml(name)}\noptions = {_toml(options)}\nreason = ""\n'
        )
    return "\n".join([*blocks, *singles])


def _toml(value: str | list[str]) -> str:
    """JSON is TOML but for surrogate pairs and DEL."""
    return json.dumps(value, indent=1, ensure_ascii=False).replace("\x7f", "\\u007f")


def _comment(finding: Finding) -> str:
    return " ".join(f"{finding.seen}, wanted {finding.wanted}".split())


def compare(before: KconfigObservation, now: KconfigObservation) -> list[str]:
    """Checks whose result changed, parameters that came or went, another kernel or checker."""
    lines = [
        f"{what}: {then} -> {since}"
        for what, then, since in (
            ("kernel", before.release, now.release),
            ("config", before.config and before.config.name, now.config and now.config.name),
            (now.tool, before.tool_version, now.tool_version),
        )
        if then != since
    ]
    results = [{(check.type, check.option): check.result for check in seen.checks} for seen in (before, now)]
    for kind, option in dict.fromkeys([*results[0], *results[1]]):
        then, since = (side.get((kind, option), "not checked") for side in results)
        if then != since:
            lines.append(f"{kind} {option}: {then} -> {since}")
    parameters = [split_parameters(seen.command_line) for seen in (before, now)]
    lines += [f"parameter {parameter}: gone" for parameter in parameters[0] if parameter not in parameters[1]]
    lines += [f"parameter {parameter}: new" for parameter in parameters[1] if parameter not in parameters[0]]
    return lines


def _with_parameter(seen: KconfigObservation) -> KconfigObservation:
    return seen.model_copy(update={"command_line": f"{seen.command_line} osgates_control=1"})


def _with_failure(kind: CheckType, option: str) -> Control[KconfigObservation]:
    def sabotage(seen: KconfigObservation) -> KconfigObservation:
        extra = Check(option=option, type=kind, decision="control", wanted="y", result='FAIL: "is not set"')
        return seen.model_copy(update={"checks": (*seen.checks, extra)})

    return Control(f"a failing {kind} check", sabotage, kind, option)


def _of_another_kernel(seen: KconfigObservation) -> KconfigObservation:
    source = ConfigSource(name="image:/boot/config-0.0.0-control", version="0.0.0")
    return seen.model_copy(update={"config": source})


def _without_sysctls(seen: KconfigObservation) -> KconfigObservation:
    return seen.model_copy(update={"checks": tuple(check for check in seen.checks if check.type != "sysctl")})


GATE = Gate(
    name="kconfig",
    title="the kernel is hardened: config, command line and sysctls",
    states=(State.LIVE, State.INSTALLED),
    observation=KconfigObservation,
    policy=KconfigPolicy,
    judge=judge,
    baseline=baseline,
    compare=compare,
    controls=(
        _with_failure("kconfig", "CONFIG_OSGATES_CONTROL"),
        _with_failure("cmdline", "osgates_control"),
        _with_failure("sysctl", "osgates.control"),
        Control("a parameter that nobody listed", _with_parameter, "unknown-parameter", "osgates_control"),
        Control(
            "the config of another kernel", _of_another_kernel, "config-mismatch", "kernel config", Severity.UNPROVEN
        ),
        Control("no sysctl looked at", _without_sysctls, "checks-missing", "sysctl", Severity.UNPROVEN),
    ),
)
