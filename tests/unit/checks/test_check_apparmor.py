"""The judge of confinement: nothing is proven that no kernel said, and what it said is judged by tier."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pytest_osgates.checks.apparmor import GATE, baseline, compare, with_sockets
from pytest_osgates.checks.apparmor_model import (
    DEMANDING,
    SEEN,
    ApparmorObservation,
    ApparmorPolicy,
    Attachment,
    ConfinementSeen,
    Evidence,
    Kind,
    Mode,
    Networked,
    Ownerless,
    ProfileSeen,
    StaticScan,
    Tier,
    UnitSeen,
    Unreadable,
    tier_of,
)
from pytest_osgates.checks.registry import GATES
from pytest_osgates.judging import Judgement
from pytest_osgates.judging import judge as judge_all
from pytest_osgates.model import Severity, State, Verdict

SHA = "5" * 64
DAY = date(2026, 3, 1)
READS = UnitSeen(name="r.service", program="/usr/bin/d", executes="/usr/bin/perl")
LONE = Ownerless(protocol="udp", local="0.0.0.0:51820")
LOOSE = ProfileSeen(name="p", allows=("every-file", "every-network"))
UNTOLD = ProfileSeen(name="p", unknown="no answer")


def entry(path: str, *kinds: Kind, **more: Any) -> Networked:
    evidence = tuple(Evidence(kind=kind, detail="x") for kind in kinds or (Kind.IMPORTS,))
    return Networked(**{"path": path, "package": "dpkg:netcat", "evidence": evidence, "sha256": SHA, **more})


def label(path: str, mode: Mode = Mode.ENFORCE, **more: Any) -> Attachment:
    profile = "" if mode is Mode.UNCONFINED else "p"
    return Attachment(**{"path": path, "how": "exec", "profile": profile, "mode": mode, **more})


def seen(
    *entries: Networked, labels: tuple[Attachment, ...] | None = (), enabled: bool = True, **scan: Any
) -> ApparmorObservation:
    """An image with a confined server and `entries`, and what a kernel said; labels None: none was asked."""
    confinement = None
    if labels is not None:
        confinement = ConfinementSeen(
            enabled=enabled, attachments=(label("/usr/sbin/sshd"), *labels), looks=3, watched_s=61.0, recorded=True
        )
    all_entries = (entry("/usr/sbin/sshd", Kind.LISTENING_SERVICE), *entries)
    fields: dict[str, Any] = {"entries": all_entries, "files": 100, "elves": 10, **scan}
    return ApparmorObservation(state=State.LIVE, day=DAY, scan=StaticScan(**fields), confinement=confinement)


def policy(**section: Any) -> ApparmorPolicy:
    return ApparmorPolicy.model_validate(section)


def documented(path: str, **changes: Any) -> dict[str, Any]:
    return {"binary": path, "reason": "looked at", "reviewer": "A. Person", "date": date(2026, 1, 1), **changes}


def judged(observation: ApparmorObservation, given: ApparmorPolicy | None = None) -> Judgement:
    return judge_all(GATE, observation, given or ApparmorPolicy())


def decisive(judgement: Judgement) -> list[tuple[str, str]]:
    return [
        finding.key for finding in judgement.findings if finding.severity in (Severity.VIOLATION, Severity.UNPROVEN)
    ]


def test_all_confined_passes_and_each_control_is_caught() -> None:
    result = judged(seen(entry("/usr/bin/nc"), labels=(label("/usr/bin/nc"),)))
    assert result.verdict is Verdict.PASS, result.findings
    assert all(control.caught for control in result.controls), result.controls
    assert len(result.controls) == 12


def test_the_gate_is_registered() -> None:
    assert GATES["apparmor"] is GATE


def test_tiers() -> None:
    assert tier_of(frozenset({Kind.REACHES})) is Tier.C
    for kind in Kind:
        expected = Tier.A if kind in DEMANDING else Tier.C if kind is Kind.REACHES else Tier.B
        assert tier_of(frozenset({kind, Kind.REACHES})) is expected


@pytest.mark.parametrize(
    ("labels", "rule", "verdict"),
    [
        ((), "not-asked", Verdict.NOT_PROVEN),
        ((label("/usr/bin/nc", Mode.UNCONFINED),), "unconfined", Verdict.FAIL),
        ((label("/usr/bin/nc", Mode.COMPLAIN),), "complain-mode", Verdict.FAIL),
        ((label("/usr/bin/nc", Mode.PROMPT),), "not-enforced", Verdict.FAIL),
        ((label("/usr/bin/nc", Mode.MIXED),), "not-enforced", Verdict.FAIL),
        ((label("/usr/bin/nc", profile=""),), "not-enforced", Verdict.FAIL),
        ((label("/usr/bin/nc", error="ptrace: not permitted"),), "no-label", Verdict.NOT_PROVEN),
        ((label("/usr/bin/nc", sha256="6" * 64),), "other-bytes", Verdict.NOT_PROVEN),
        (
            (label("/usr/bin/nc"), label("/usr/bin/nc", Mode.UNCONFINED, how="process", pid=7)),
            "started-before-profile",
            Verdict.FAIL,
        ),
        ((label("/usr/bin/nc", Mode.UNCONFINED, how="process", pid=7),), "not-asked", Verdict.NOT_PROVEN),
        (
            (label("/usr/bin/nc", Mode.COMPLAIN), label("/usr/bin/nc", Mode.UNCONFINED, how="process", pid=7)),
            "unconfined",
            Verdict.FAIL,
        ),
        (
            (label("/usr/bin/nc", error="EACCES"), label("/usr/bin/nc", Mode.UNCONFINED, how="process", pid=7)),
            "unconfined",
            Verdict.FAIL,
        ),
        ((label("/usr/bin/nc", unit="x.service"),), "not-asked", Verdict.NOT_PROVEN),
        (
            (label("/usr/bin/nc"), label("/usr/bin/nc", Mode.COMPLAIN, unit="x.service")),
            "complain-mode",
            Verdict.FAIL,
        ),
        (
            (label("/usr/bin/nc"), label("/usr/bin/nc", unit="x.service", error="is it loaded?")),
            "no-label",
            Verdict.NOT_PROVEN,
        ),
    ],
)
def test_what_the_kernel_says(labels: tuple[Attachment, ...], rule: str, verdict: Verdict) -> None:
    result = judged(seen(entry("/usr/bin/nc"), labels=labels))
    assert decisive(result) == [(rule, "/usr/bin/nc")]
    assert result.verdict is verdict


def test_kill_mode_and_the_same_bytes_are_fine() -> None:
    result = judged(seen(entry("/usr/bin/nc"), labels=(label("/usr/bin/nc", Mode.KILL, sha256=SHA),)))
    assert result.verdict is Verdict.PASS


def test_a_kernel_that_cannot_be_believed() -> None:
    assert decisive(judged(seen(enabled=False))) == [("apparmor-disabled", "kernel")]
    confinement = seen().confinement
    assert confinement is not None
    odd = seen().model_copy(update={"confinement": confinement.model_copy(update={"problem": "hung"})})
    assert ("confinement-problem", "kernel") in decisive(judged(odd))
    assert judged(odd).verdict is Verdict.NOT_PROVEN


def test_documented() -> None:
    loose = seen(entry("/usr/bin/nc"), labels=(label("/usr/bin/nc", Mode.UNCONFINED),))
    result = judged(loose, policy(documented=[documented("/usr/bin/nc", sha256=SHA)]))
    assert (result.verdict, result.accepted) == (Verdict.PASS, 1)
    assert result.findings[0].reason == "looked at (A. Person, 2026-01-01)"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"reason": " "}, "lacks a reason"),
        ({"reviewer": ""}, "lacks a reason"),
        ({"date": None}, "lacks a reason"),
        ({"sha256": "6" * 64}, "other bytes"),
        ({"date": date(2026, 3, 2)}, "yet to come"),
        ({"date": date(2025, 1, 1)}, "days old"),
    ],
)
def test_documents_that_count_as_none(changes: dict[str, Any], why: str) -> None:
    loose = seen(entry("/usr/bin/nc"), labels=(label("/usr/bin/nc", Mode.UNCONFINED),))
    result = judged(loose, policy(documented=[documented("/usr/bin/nc", **changes)], review_days=365))
    assert decisive(result) == [("unconfined", "/usr/bin/nc")]
    assert why in result.findings[0].hint


def test_one_entry_documents_several_programs() -> None:
    entries = entry("/usr/bin/nc"), entry("/usr/bin/nd")
    loose = seen(*entries, labels=tuple(label(one.path, Mode.UNCONFINED) for one in entries))
    review = {"reason": "looked at", "reviewer": "A. Person", "date": date(2026, 1, 1)}
    shared = policy(documented=[{"binaries": ["/usr/bin/nc", "/usr/bin/nd"], **review}])
    assert (judged(loose, shared).verdict, judged(loose, shared).accepted) == (Verdict.PASS, 2)
    assert ApparmorPolicy.model_validate_json(shared.model_dump_json()) == shared


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ({"binaries": []}, "at least one"),
        ({"binaries": "/usr/bin/nc"}, "a list of paths"),
        ({"binaries": ["/usr/bin/nc", "/usr/bin/nc"]}, "documented twice"),
        ({"binaries": ["nc"]}, "binary"),
        ({"binaries": ["/usr/bin/nc"], "binary": "/usr/bin/nd"}, "stands alone"),
        ({"binaries": ["/usr/bin/nc"], "sha256": SHA}, "stands alone"),
    ],
)
def test_entries_of_several_programs_that_are_refused(entry: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        policy(documented=[entry])


def test_what_must_be_confined_cannot_be_documented() -> None:
    loose = seen(entry("/usr/bin/d", Kind.SOCKET_UNIT), labels=(label("/usr/bin/d", Mode.UNCONFINED),))
    result = judged(loose, policy(documented=[documented("/usr/bin/d")]))
    assert decisive(result) == [("unconfined", "/usr/bin/d")]
    assert "must be confined" in result.findings[0].hint


def test_a_document_speaks_of_one_name_alone() -> None:
    curl, copy = entry("/usr/bin/curl", same=("/opt/x",)), entry("/opt/x", same=("/usr/bin/curl",))
    labels = tuple(label(path, Mode.UNCONFINED) for path in ("/usr/bin/curl", "/opt/x"))
    result = judged(seen(curl, copy, labels=labels), policy(documented=[documented("/usr/bin/curl")]))
    assert decisive(result) == [("unconfined", "/opt/x")]
    (finding,) = [finding for finding in result.findings if finding.subject == "/opt/x"]
    assert "the same bytes as /usr/bin/curl" in finding.hint


def unit(name: str, profile: str = "", program: str = "/usr/bin/d") -> UnitSeen:
    return UnitSeen(name=name, program=program, apparmor_profile=profile, listens=("80",))


@pytest.mark.parametrize(
    ("units", "labels", "excused"),
    [
        ((unit("d.service", "p"),), (label("/usr/bin/d", unit="d.service"),), True),
        ((unit("d.service", "p"), unit("e.service")), (label("/usr/bin/d", unit="d.service"),), False),
        ((unit("d.service", "-p"),), (), False),
        ((READS,), (label("/usr/bin/d", unit="r.service"),), True),
        # The same unit starts it both ways.
        ((READS, unit("r.service")), (label("/usr/bin/d", unit="r.service"),), False),
        ((), (), False),
    ],
)
def test_a_profile_of_all_its_units_makes_the_rest_a_matter_of_documents(
    units: tuple[UnitSeen, ...], labels: tuple[Attachment, ...], excused: bool
) -> None:
    loose = label("/usr/bin/d", Mode.UNCONFINED)
    odd = seen(entry("/usr/bin/d", Kind.SOCKET_UNIT), labels=(loose, *labels), units=units)
    assert decisive(judged(odd)) == [("unconfined", "/usr/bin/d")]
    result = judged(odd, policy(documented=[documented("/usr/bin/d")]))
    assert decisive(result) == ([] if excused else [("unconfined", "/usr/bin/d")])
    odd = seen(entry("/usr/bin/d", Kind.SOCKET_UNIT, Kind.SETUID), labels=(loose, *labels), units=units)
    assert decisive(judged(odd, policy(documented=[documented("/usr/bin/d")]))) == [("unconfined", "/usr/bin/d")]


def test_an_interpreter_whose_process_has_the_profile_of_its_script() -> None:
    running = label("/usr/bin/perl", how="process", pid=9, profile="script")
    loose = label("/usr/bin/perl", Mode.UNCONFINED)
    documents = policy(documented=[documented("/usr/bin/perl")])
    odd = seen(entry("/usr/bin/perl", Kind.SOCKET_SEEN), labels=(loose, running))
    assert decisive(judged(odd)) == [("unconfined", "/usr/bin/perl")]
    assert decisive(judged(odd, documents)) == []
    # Of another process it is only known that it was there.
    for kind in (Kind.SOCKET_RECORDED, Kind.FILE_CAPABILITY):
        odd = seen(entry("/usr/bin/perl", Kind.SOCKET_SEEN, kind), labels=(loose, running))
        assert decisive(judged(odd, documents)) == [("unconfined", "/usr/bin/perl")]
    odd = seen(entry("/usr/bin/perl", Kind.SOCKET_SEEN), labels=(loose,))
    assert decisive(judged(odd, documents)) == [("unconfined", "/usr/bin/perl")]


def watched(**changes: Any) -> ApparmorObservation:
    known = seen()
    assert known.confinement is not None
    return known.model_copy(update={"confinement": known.confinement.model_copy(update=changes)})


@pytest.mark.parametrize(
    ("changes", "section", "finding", "severity"),
    [
        ({"watched_s": 10.0}, {}, ("watched-too-short", "processes"), Severity.UNPROVEN),
        ({"looks": 0}, {"watch_s": 0}, ("watched-too-short", "processes"), Severity.UNPROVEN),
        ({"recorded": False}, {}, ("sockets-not-recorded", "kernel"), Severity.UNPROVEN),
        ({"recorded": False}, {"accept_unrecorded": " "}, ("sockets-not-recorded", "kernel"), Severity.UNPROVEN),
        (
            *({"recorded": False}, {"accept_unrecorded": "locked down"}),
            *(("sockets-not-recorded", "kernel"), Severity.ACCEPTED),
        ),
        ({"unnamed": ("x: inet raw",)}, {}, ("unknown-program", "kernel"), Severity.UNPROVEN),
        ({"ownerless": (LONE,)}, {}, ("ownerless-socket", "udp 0.0.0.0:51820"), Severity.UNPROVEN),
        (
            {"ownerless": (LONE,)},
            {"kernel_socket": [{"socket": "udp *:51820", "reason": "WireGuard"}]},
            ("ownerless-socket", "udp 0.0.0.0:51820"),
            Severity.ACCEPTED,
        ),
        ({"profiles": (LOOSE,)}, {}, ("loose-profile", "p"), Severity.REMARK),
        ({"profiles": (LOOSE,)}, {"loose_profiles": "violation"}, ("loose-profile", "p"), Severity.VIOLATION),
        (
            {"profiles": (ProfileSeen(name="p", allows=("unconfined",)),)},
            {"loose_profiles": "violation"},
            ("loose-profile", "p"),
            Severity.VIOLATION,
        ),
        ({"profiles": (UNTOLD,)}, {}, ("profile-not-told", "p"), Severity.REMARK),
        ({"profiles": (UNTOLD,)}, {"loose_profiles": "violation"}, ("profile-not-told", "p"), Severity.UNPROVEN),
    ],
)
def test_how_the_machine_was_watched(
    changes: dict[str, Any], section: dict[str, Any], finding: tuple[str, str], severity: Severity
) -> None:
    result = judged(watched(**changes), policy(**section))
    assert [(found.key, found.severity) for found in result.findings] == [(finding, severity)]


def test_a_profile_that_keeps_from_something_is_none_of_those() -> None:
    tight = (ProfileSeen(name="p", allows=("every-file",)), ProfileSeen(name="q", allows=("every-network",)))
    assert judged(watched(profiles=tight), policy(loose_profiles="violation")).verdict is Verdict.PASS


def test_unused_documents_are_told() -> None:
    entries = (entry("/usr/bin/nc"), entry("/usr/bin/ls", Kind.REACHES))
    rows = [documented(path) for path in ("/usr/bin/nc", "/usr/bin/ls", "/gone")]
    result = judged(seen(*entries, labels=(label("/usr/bin/nc"),)), policy(documented=rows))
    assert result.verdict is Verdict.PASS
    told = {finding.subject: finding.seen for finding in result.findings if finding.rule == "unused-documentation"}
    assert set(told) == {"/usr/bin/nc", "/usr/bin/ls", "/gone"}
    assert told["/usr/bin/nc"] == "it is confined"


def test_what_is_left_out_is_counted() -> None:
    entries = tuple(entry(f"/usr/lib/live/boot/{number}", package="dpkg:live-boot") for number in range(3))
    rows = [
        {"packages": ["live-*"], "reason": "only in the initramfs"},
        {"paths": ["/opt/*"], "reason": "none"},
    ]
    result = judged(seen(*entries), policy(left_out=rows))
    assert (result.verdict, result.accepted) == (Verdict.PASS, 3)
    assert [finding.subject for finding in result.findings if finding.rule == "unused-left-out"] == ["/opt/*"]


def test_what_was_seen_running_cannot_be_left_out() -> None:
    rows = [{"paths": ["/usr/bin/*"], "reason": "never runs"}]
    scan = with_sockets(seen(entry("/usr/bin/nc")).scan, {"/usr/bin/nc": "tcp 0.0.0.0:1", "/usr/bin/new": "udp"})
    assert [found.path for found in scan.entries] == ["/usr/bin/nc", "/usr/bin/new", "/usr/sbin/sshd"]
    assert {found.tier for found in scan.entries} == {Tier.A}
    result = judged(seen().model_copy(update={"scan": scan}), policy(left_out=rows))
    assert decisive(result) == [("not-asked", "/usr/bin/nc"), ("not-asked", "/usr/bin/new")]


def test_what_was_seen_running_without_a_socket_cannot_be_left_out() -> None:
    rows = [{"paths": ["/usr/bin/*"], "reason": "never runs"}]
    labels = (label("/usr/bin/nc", Mode.UNCONFINED), label("/usr/bin/nc", Mode.UNCONFINED, how="process", pid=7))
    result = judged(seen(entry("/usr/bin/nc"), labels=labels), policy(left_out=rows))
    assert decisive(result) == [("unconfined", "/usr/bin/nc")]
    assert judged(seen(entry("/usr/bin/nc"), labels=labels[:1]), policy(left_out=rows)).verdict is Verdict.PASS


@pytest.mark.parametrize("kind", sorted(DEMANDING - SEEN))
def test_what_must_be_confined_is_left_out_by_its_own_path_alone(kind: Kind) -> None:
    loose = seen(entry("/usr/sbin/d", kind), labels=(label("/usr/sbin/d", Mode.UNCONFINED),))
    wide = [{"paths": ["/usr/*"], "reason": "x"}, {"packages": ["netcat", "net*"], "reason": "x"}]
    result = judged(loose, policy(left_out=wide))
    assert decisive(result) == [("unconfined", "/usr/sbin/d")]
    assert "by its own path" in next(found.hint for found in result.findings if found.rule == "unconfined")
    own = [*wide, {"paths": ["/usr/sbin/d"], "reason": "its unit is masked"}]
    assert judged(loose, policy(left_out=own)).verdict is Verdict.PASS


def test_what_a_socket_waits_for_cannot_be_left_out() -> None:
    unit = UnitSeen(name="d.service", program="/usr/sbin/d", listens=("80",))
    rows = [{"paths": ["/usr/sbin/d"], "reason": "never runs"}]
    labels = (label("/usr/sbin/d", Mode.UNCONFINED),)
    loose = seen(entry("/usr/sbin/d", Kind.SOCKET_UNIT), labels=labels, units=(unit,))
    assert judged(loose, policy(left_out=rows)).verdict is Verdict.PASS
    assert loose.confinement is not None
    waits = loose.confinement.model_copy(update={"waited_for": ("d.service",)})
    result = judged(loose.model_copy(update={"confinement": waits}), policy(left_out=rows))
    assert decisive(result) == [("unconfined", "/usr/sbin/d")]


def test_what_cannot_be_followed_is_a_remark() -> None:
    result = judged(seen(unfollowed=("s.service: $X",)))
    assert result.verdict is Verdict.PASS
    assert [finding.rule for finding in result.findings] == ["not-followed"]


@pytest.mark.parametrize(
    ("mode", "error", "wanted"),
    [
        (Mode.UNCONFINED, "its program cannot be told", [("unknown-program", "process 50")]),
        (Mode.COMPLAIN, "", [("unknown-program", "process 50")]),
        (Mode.ENFORCE, "its program cannot be told", []),
    ],
)
def test_an_unconfined_process_whose_program_cannot_be_told_proves_nothing(
    mode: Mode, error: str, wanted: list[tuple[str, str]]
) -> None:
    labels = (label("", mode, how="process", pid=50, idle=True, error=error),)
    assert decisive(judged(seen(labels=labels))) == wanted


def test_a_record_with_gaps_proves_nothing() -> None:
    assert decisive(judged(watched(lost=3, recorded=False, not_recorded="lost"))) == [("sockets-lost", "kernel")]


@pytest.mark.parametrize(
    ("idle", "kinds", "verdict"),
    [
        (True, (Kind.SOCKET_SEEN,), Verdict.PASS),
        (False, (Kind.SOCKET_SEEN,), Verdict.FAIL),
        # It is started as a service: whatever runs of it may be that.
        (True, (Kind.SOCKET_SEEN, Kind.LISTENING_SERVICE), Verdict.FAIL),
        (True, (Kind.SOCKET_SEEN, Kind.SOCKET_RECORDED), Verdict.FAIL),
    ],
)
def test_an_interpreter_that_runs_another_script_as_well(
    idle: bool, kinds: tuple[Kind, ...], verdict: Verdict
) -> None:
    path = "/usr/bin/python3"
    labels = (
        label(path, Mode.UNCONFINED),
        label(path, how="process", pid=5),
        label(path, Mode.UNCONFINED, how="process", pid=6, idle=idle),
    )
    given = policy(documented=[documented(path)])
    assert judged(seen(entry(path, *kinds), labels=labels), given).verdict is verdict
    # Nobody with a socket is confined.
    alone = (labels[0], label(path, how="process", pid=5, idle=True), labels[2])
    assert judged(seen(entry(path, *kinds), labels=alone), given).verdict is Verdict.FAIL


def test_what_cannot_be_read_proves_nothing() -> None:
    odd = seen(unreadable=(Unreadable(path="/opt/odd", why="broken"),))
    assert decisive(judged(odd)) == [("unreadable", "/opt/odd")]
    rows = [{"paths": ["/opt/*"], "reason": "test data"}]
    assert judged(odd, policy(left_out=rows)).verdict is Verdict.PASS
    assert decisive(judged(seen(elves=0))) == [("nothing-scanned", "image")]


def test_tier_c_is_reported_and_decides_nothing() -> None:
    many = tuple(entry(f"/usr/bin/{number:03}", Kind.REACHES) for number in range(40))
    result = judged(seen(*many))
    assert result.verdict is Verdict.PASS
    (finding,) = result.findings
    assert (finding.subject, finding.severity) == ("40 programs", Severity.REMARK)
    assert len(finding.seen) < 400


ENTRIES = st.lists(
    st.builds(entry, st.sampled_from(["/a", "/b", "/c/d"]), st.sampled_from(list(Kind))),
    max_size=4,
    unique_by=lambda found: found.path,
)
LABELS = st.lists(
    st.builds(
        label,
        st.sampled_from(["/a", "/b", "/c/d"]),
        st.sampled_from(list(Mode)),
        error=st.sampled_from(["", "", "", "failed"]),
        sha256=st.sampled_from(["", SHA, "6" * 64]),
    ),
    max_size=5,
)
POLICIES = st.builds(
    lambda rows, out: policy(documented=[documented(row) for row in rows], left_out=out),
    st.lists(st.sampled_from(["/a", "/b"]), max_size=2, unique=True),
    st.sampled_from([[], [{"paths": ["/c/*"], "reason": "no"}], [{"packages": ["net*"], "reason": "no"}]]),
)


@given(ENTRIES, POLICIES)
def test_without_a_kernel_nothing_ever_passes(entries: list[Networked], given: ApparmorPolicy) -> None:
    result = judged(seen(*entries, labels=None), given)
    assert result.verdict is Verdict.NOT_PROVEN
    assert ("confinement-not-seen", "kernel") in decisive(result)


@given(ENTRIES, LABELS, POLICIES)
def test_a_pass_means_what_it_says(entries: list[Networked], labels: list[Attachment], given: ApparmorPolicy) -> None:
    if judged(seen(*entries, labels=tuple(labels)), given).verdict is not Verdict.PASS:
        return
    for found in entries:
        left_out = any(row.packages or (row.paths and found.path.startswith("/c/")) for row in given.left_out)
        if found.tier is Tier.C or (left_out and found.tier is Tier.B):
            continue
        if found.tier is Tier.B and found.path in {row.binary for row in given.documented}:
            continue
        mine = [one for one in labels if one.path == found.path]
        assert mine
        assert not any(one.error or one.sha256 not in ("", SHA) for one in mine)
        assert all(one.mode in (Mode.ENFORCE, Mode.KILL) for one in mine)


@pytest.mark.parametrize(
    "section",
    [
        {"documented": [documented("relative")]},
        {"documented": [documented("/a"), documented("/a")]},
        {"documented": [documented("/a", sha256="x")]},
        {"left_out": [{"paths": ["/*"], "reason": "x"}]},
        {"left_out": [{"packages": ["*"], "reason": "x"}]},
        {"left_out": [{"reason": "x"}]},
        {"left_out": [{"paths": ["/a"], "reason": ""}]},
    ],
)
def test_what_makes_no_sense_is_refused(section: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        policy(**section)


def test_baseline_and_compare() -> None:
    loose = seen(
        entry("/usr/bin/nc"),
        entry("/usr/bin/d", Kind.SETUID),
        labels=tuple(label(path, Mode.UNCONFINED) for path in ("/usr/bin/nc", "/usr/bin/d")),
    )
    text = baseline(loose, ApparmorPolicy())
    assert 'binary = "/usr/bin/nc"' in text
    assert f'sha256 = "{SHA}"' in text
    assert "/usr/bin/d" not in text, "what must be confined has no excuse to be filled in"
    assert compare(seen(), loose) == [
        "/usr/bin/nc: not networked -> tier B, no profile (unconfined)",
        "/usr/bin/d: not networked -> tier A, no profile (unconfined)",
    ]
    assert compare(loose, loose) == []
