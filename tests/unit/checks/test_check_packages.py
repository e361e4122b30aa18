"""The judge of packages: what is there and should not be, what should be, and what cannot be believed."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pytest_osgates.checks.packages import (
    GATE,
    DatabaseSeen,
    FilesSeen,
    PackageSeen,
    PackagesObservation,
    PackagesPolicy,
    compare,
)
from pytest_osgates.judging import Judgement
from pytest_osgates.judging import judge as judge_all
from pytest_osgates.model import Finding, Severity, State, Verdict

OK = "install ok installed"
POLICY = PackagesPolicy.model_validate(
    {
        "excluded": [{"names": ["snapd", "apport*", "com.google.*"], "reason": "no"}],
        "needed": [{"names": ["nftables", "apparmor"], "manager": "dpkg", "reason": "yes"}],
        "excluded_files": [{"paths": ["/snap", "/usr/lib/snapd/*"], "reason": "no"}],
    }
)


def package(name: str, status: str = OK, **more: Any) -> PackageSeen:
    return PackageSeen(**{"manager": "dpkg", "name": name, "version": "1", "arch": "amd64", "status": status, **more})


def seen(*packages: PackageSeen, **changes: Any) -> PackagesObservation:
    """An image with what is needed, and `packages`."""
    fields: dict[str, Any] = {
        "state": State.IMAGE,
        "databases": (DatabaseSeen(manager="dpkg", path="/var/lib/dpkg/status", packages=3),),
        "packages": (package("nftables"), package("apparmor"), package("bash"), *packages),
        "files": {path: FilesSeen() for path in POLICY.patterns},
        "walked": 10,
    }
    return PackagesObservation(**{**fields, **changes})


def judged(observation: PackagesObservation, policy: PackagesPolicy = POLICY) -> Judgement:
    return judge_all(GATE, observation, policy)


def decisive(judgement: Judgement) -> list[tuple[str, str]]:
    return [finding.key for finding in judgement.findings if finding.severity is not Severity.REMARK]


def test_a_clean_image_passes_and_each_control_is_caught() -> None:
    result = judged(seen())
    assert result.verdict is Verdict.PASS
    assert result.findings == ()
    names = [control.name for control in result.controls]
    assert {"snapd is installed", "apport* is not purged", "nftables is gone", "apparmor is half installed"} <= set(
        names
    )
    assert all(control.caught for control in result.controls)


def test_a_name_that_no_debian_package_can_have_is_refused() -> None:
    entry = {"names": ["Snapd"], "reason": "no"}
    with pytest.raises(ValidationError, match="lower case"):
        PackagesPolicy.model_validate({"excluded": [{**entry, "manager": "dpkg"}]})
    assert PackagesPolicy.model_validate({"excluded": [{**entry, "manager": "rpm"}]}).excluded[0].names == ("Snapd",)


def test_capital_letters_are_no_difference_to_dpkg() -> None:
    policy = PackagesPolicy.model_validate(
        {
            "excluded": [{"names": ["SnapD", "Apport*:AMD64"], "reason": "no"}],
            "needed": [{"names": ["NFTables"], "reason": "yes"}],
        }
    )
    assert judged(seen(), policy).verdict is Verdict.PASS
    assert all(control.caught for control in judged(seen(), policy).controls)
    assert decisive(judged(seen(package("snapd")), policy)) == [("excluded-package", "snapd")]
    assert decisive(judged(seen(package("apport-gtk")), policy)) == [("excluded-package", "apport-gtk")]
    database = DatabaseSeen(manager="dpkg", path="/var/lib/dpkg/status", packages=3, left=("snapd",))
    assert decisive(judged(seen(databases=(database,)), policy)) == [("excluded-remains", "snapd")]
    # Of rpm's packages, Flatpaks and snaps they are others.
    assert judged(seen(package("snapd", "", manager="rpm")), policy).verdict is Verdict.PASS


def test_files_of_which_none_was_looked_at_prove_nothing() -> None:
    assert judged(seen(walked=0)).verdict is Verdict.NOT_PROVEN
    assert decisive(judged(seen(walked=0))) == [("no-files", "packages")]


@pytest.mark.parametrize(
    ("planted", "finding"),
    [
        (package("snapd"), ("excluded-package", "snapd")),
        (package("apport-gtk", "deinstall ok installed"), ("excluded-package", "apport-gtk")),
        (package("snapd", "install reinstreq half-installed"), ("excluded-package", "snapd")),
        (package("snapd", "install ok triggers-pending"), ("excluded-package", "snapd")),
        (package("snapd", "unknown"), ("excluded-package", "snapd")),
        (package("snapd", "deinstall ok config-files"), ("excluded-remains", "snapd")),
        (package("com.google.Chrome", "", manager="flatpak"), ("excluded-package", "com.google.Chrome")),
        (package("snapd", "", manager="snap"), ("excluded-package", "snapd")),
    ],
)
def test_what_is_excluded_is_found(planted: PackageSeen, finding: tuple[str, str]) -> None:
    result = judged(seen(planted))
    assert result.verdict is Verdict.FAIL
    assert decisive(result) == [finding]


def test_what_was_purged_is_gone() -> None:
    assert judged(seen(package("snapd", "purge ok not-installed"))).verdict is Verdict.PASS


def test_remains_can_be_a_remark() -> None:
    policy = POLICY.model_copy(update={"remains": "remark"})
    result = judged(seen(package("snapd", "deinstall ok config-files")), policy)
    assert result.verdict is Verdict.PASS
    assert [finding.rule for finding in result.findings] == ["excluded-remains"]


def test_a_list_of_files_without_its_package_remains() -> None:
    database = DatabaseSeen(manager="dpkg", path="/var/lib/dpkg/status", packages=3, left=("snapd:amd64", "other"))
    assert decisive(judged(seen(databases=(database,)))) == [("excluded-remains", "snapd")]


@pytest.mark.parametrize(
    ("changed", "rule"),
    [
        (package("nftables", "deinstall ok config-files"), "required-package"),
        (package("nftables", "unknown ok not-installed"), "required-package"),
        (package("nftables", "install ok half-configured"), "required-partly"),
        (package("nftables", "deinstall ok installed"), "required-partly"),
        (package("nftables", missing=("/usr/sbin/nft",), missing_count=1), "required-files"),
        (package("nftables", "", manager="flatpak"), "required-package"),
    ],
)
def test_what_is_needed_must_be_there_wholly(changed: PackageSeen, rule: str) -> None:
    result = judged(seen(packages=(changed, package("apparmor"))))
    assert result.verdict is Verdict.FAIL
    assert decisive(result) == [(rule, "nftables")]


def test_files() -> None:
    found = {**seen().files, "/snap": FilesSeen(paths=("/snap", "/snap/bin"), count=30)}
    result = judged(seen(files=found))
    assert decisive(result) == [("excluded-file", "/snap")]
    assert "and 28 more" in result.findings[0].seen
    unasked = judged(seen(files={}))
    assert unasked.verdict is Verdict.NOT_PROVEN
    assert set(decisive(unasked)) == {("excluded-file", "/snap"), ("excluded-file", "/usr/lib/snapd/*")}


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"databases": (), "packages": ()}, "no-database"),
        ({"databases": (DatabaseSeen(manager="dpkg", path="/d", packages=0),), "packages": ()}, "database"),
        ({"databases": (DatabaseSeen(manager="dpkg", path="/d", packages=3, problems=("cut",)),)}, "database"),
        (
            {
                "databases": tuple(DatabaseSeen(manager="dpkg", path=path, packages=3) for path in ("/a", "/b")),
            },
            "two-databases",
        ),
        (
            {
                "databases": (DatabaseSeen(manager="rpm", path="/r", packages=1),),
                "packages": (package("bash", "", manager="rpm"),),
            },
            "no-database",
        ),
    ],
)
def test_what_cannot_be_believed_is_not_proven(changes: dict[str, Any], rule: str) -> None:
    findings = judged(seen(**changes)).findings
    unproven = [finding.rule for finding in findings if finding.severity is Severity.UNPROVEN]
    assert rule in unproven
    assert judged(seen(**changes)).verdict is not Verdict.PASS


def test_a_damaged_data_base_still_fails_for_what_is_in_it() -> None:
    database = DatabaseSeen(manager="dpkg", path="/d", packages=3, problems=("cut",))
    assert judged(seen(package("snapd"), databases=(database,))).verdict is Verdict.FAIL


def test_a_profile_without_demands_proves_nothing() -> None:
    result = judged(seen(), PackagesPolicy())
    assert result.verdict is Verdict.NOT_PROVEN
    assert decisive(result) == [("no-demands", "packages")]


STATUSES = st.sampled_from(
    [OK, "hold ok installed", "deinstall ok installed", "deinstall ok config-files", "purge ok not-installed",
     "install ok unpacked", "install reinstreq half-installed", "", "nonsense"]
)  # fmt: skip
PACKAGES = st.builds(
    package,
    st.sampled_from(["snapd", "apport-x", "bash", "nftables", "apparmor"]),
    STATUSES,
    manager=st.sampled_from(["dpkg", "rpm", "flatpak"]),
    missing_count=st.integers(0, 2),
)
DATABASES = st.lists(
    st.builds(
        DatabaseSeen,
        manager=st.sampled_from(["dpkg", "rpm"]),
        path=st.sampled_from(["/a", "/b"]),
        packages=st.integers(0, 3),
        problems=st.sampled_from([(), ("cut",)]),
        left=st.sampled_from([(), ("snapd",), ("bash",)]),
    ),
    max_size=2,
)


@given(st.lists(PACKAGES, max_size=5), DATABASES)
def test_a_pass_means_what_it_says(packages: list[PackageSeen], databases: list[DatabaseSeen]) -> None:
    observation = seen(packages=tuple(packages), databases=tuple(databases))
    if judged(observation).verdict is not Verdict.PASS:
        return
    assert [database.problems for database in databases] == [()]
    names = {entry.name for entry in packages if not entry.status.endswith("not-installed")}
    assert not any(name.startswith(("snapd", "apport")) for name in names)
    good = {entry.name for entry in packages if entry.manager == "dpkg" and entry.is_installed}
    assert {"nftables", "apparmor"} <= good


@pytest.mark.parametrize(
    "section",
    [
        {"excluded": [{"names": ["*"], "reason": "x"}]},
        {"excluded": [{"names": [], "reason": "x"}]},
        {"excluded": [{"names": ["a/b"], "reason": "x"}]},
        {"excluded": [{"names": ["snapd"], "reason": " "}]},
        {"excluded": [{"names": ["nft*"], "reason": "x"}], "needed": [{"names": ["nftables"], "reason": "x"}]},
        {"excluded_files": [{"paths": ["snap"], "reason": "x"}]},
        {"excluded_files": [{"paths": ["/*"], "reason": "x"}]},
        {"excluded_files": [{"paths": ["/a/../b"], "reason": "x"}]},
        {"excluded_files": [{"paths": [], "reason": "x"}]},
    ],
)
def test_demands_that_demand_nothing_are_refused(section: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        PackagesPolicy.model_validate(section)


def test_compare() -> None:
    before, now = seen(package("old")), seen(package("new"), package("bash", "hold ok installed", arch="i386"))
    assert compare(before, now) == [
        "dpkg old:amd64: 1 install ok installed -> not there",
        "dpkg new:amd64: not there -> 1 install ok installed",
        "dpkg bash:i386: not there -> 1 hold ok installed",
    ]
    assert compare(now, now) == []


def test_findings_are_for_people() -> None:
    finding: Finding = judged(seen(package("snapd"))).findings[0]
    assert finding.seen == "snapd 1 (dpkg) install ok installed"
    assert "excluded because: no" in finding.hint
