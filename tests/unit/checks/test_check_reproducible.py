"""Gate `reproducible`: only equal digests of two files that are not the same file are a PASS."""

from __future__ import annotations

from typing import Any

import pytest
from gate_samples import difference, image_file, rebuilt

from pytest_osgates.checks import reproducible
from pytest_osgates.checks.causes import attribute, group
from pytest_osgates.checks.divergence import ImageComparison
from pytest_osgates.checks.reproducible import Build, Pair, Probe, Published, ReproduciblePolicy
from pytest_osgates.judging import judge
from pytest_osgates.model import Severity, Verdict

POLICY = ReproduciblePolicy()


def verdict(
    seen: reproducible.ReproducibleObservation, policy: ReproduciblePolicy = POLICY
) -> tuple[Verdict, set[str]]:
    """The verdict, and the rules of what is no remark."""
    found = judge(reproducible.GATE, seen, policy)
    return found.verdict, {finding.rule for finding in found.findings if finding.severity is not Severity.REMARK}


def different(**changes: Any) -> Pair:
    found = attribute([difference("/etc/machine-id"), difference("image", "size", layer="image", follows=True)])
    comparison = ImageComparison(
        a=image_file(), b=image_file("b"), equal=False, differences=found, groups=group(found), **changes
    )
    return Pair(second="--iso-rebuild", comparison=comparison)


def test_two_builds_of_one_digest_pass() -> None:
    found = judge(reproducible.GATE, rebuilt(), POLICY)
    assert found.verdict is Verdict.PASS
    assert found.findings == ()
    assert {control.name for control in found.controls if control.caught} >= {
        "no second build",
        "another digest (--iso-rebuild)",
        "one file twice (--iso-rebuild)",
        "a flipped byte that is not found (volume descriptor)",
    }


def test_a_difference_fails_and_names_its_cause() -> None:
    found = judge(reproducible.GATE, rebuilt(pairs=(different(),)), POLICY)
    assert found.verdict is Verdict.FAIL
    findings = {finding.rule: finding for finding in found.findings}
    assert set(findings) == {"differs", "cause"}
    assert findings["cause"].subject == "machine-id (--iso-rebuild)"
    assert "/etc/machine-id" in findings["cause"].seen
    assert findings["cause"].hint


def test_the_digests_decide_not_the_flag() -> None:
    """A comparison that found nothing, or calls two digests equal, passes nothing."""
    pair = different()
    assert pair.comparison is not None
    lying = pair.comparison.model_copy(update={"equal": True, "differences": (), "groups": ()})
    assert verdict(rebuilt(pairs=(pair.model_copy(update={"comparison": lying}),)))[0] is Verdict.FAIL


UNPROVEN: dict[str, dict[str, Any]] = {
    "nothing-to-compare": {"pairs": ()},
    "same-file": {"pairs": (Pair(second="--iso-rebuild", same_file="a hard link"),)},
    "not-compared": {"pairs": (Pair(second="--iso-rebuild", detail="damaged"),)},
    "blind": {"probes": (*rebuilt().probes, Probe(layer="GPT", offset=568, found=False))},
    "not-probed": {"probes": ()},
    "build-failed": {"builds": (Build(number=1, command="make", directory="/b", status=1),)},
    "not-listed": {"published": Published(file="SHA256SUMS", name="x.iso")},
    "other-image": {"image": image_file("c")},
}


@pytest.mark.parametrize("rule", UNPROVEN)
def test_what_proves_nothing(rule: str) -> None:
    found, rules = verdict(rebuilt(**UNPROVEN[rule]))
    assert found is Verdict.NOT_PROVEN
    assert rule in rules


@pytest.mark.parametrize("digest", ["", "A" * 64, "a" * 63])
def test_a_digest_that_is_none_proves_nothing(digest: str) -> None:
    image = image_file().model_copy(update={"sha256": digest})
    pair = Pair(second="--iso-rebuild", comparison=ImageComparison(a=image, b=image, equal=True))
    assert verdict(rebuilt(image=image, pairs=(pair,)))[0] is Verdict.NOT_PROVEN


def test_a_build_that_was_killed() -> None:
    found, rules = verdict(rebuilt(builds=(Build(number=2, command="make", directory="/b"),)))
    assert (found, rules) == (Verdict.NOT_PROVEN, {"build-failed"})


def test_variations_that_were_not_made() -> None:
    build = Build(number=1, command="make", directory="/b", status=0, image=image_file())
    policy = ReproduciblePolicy(variations=("umask", "timezone"))
    assert verdict(rebuilt(builds=(build,)), policy) == (Verdict.NOT_PROVEN, {"not-varied"})
    varied = build.model_copy(update={"number": 2, "variations": ("umask", "timezone")})
    assert verdict(rebuilt(builds=(build, varied)), policy) == (Verdict.PASS, set())


def test_what_was_published() -> None:
    listed = Published(file="SHA256SUMS", name="x.iso", digest=image_file().sha256)
    assert verdict(rebuilt(published=listed)) == (Verdict.PASS, set())
    other = listed.model_copy(update={"digest": "0" * 64})
    assert verdict(rebuilt(published=other)) == (Verdict.FAIL, {"not-published"})


def test_what_changed_between_two_runs() -> None:
    lines = reproducible.compare(rebuilt(), rebuilt(pairs=(different(),)))
    assert lines[0].startswith("machine-id: new: ")
    assert reproducible.compare(rebuilt(), rebuilt()) == []
