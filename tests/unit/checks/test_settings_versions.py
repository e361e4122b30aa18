"""Versions are compared as dpkg and rpm compare them."""

from __future__ import annotations

import itertools
import shutil
import subprocess

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from pytest_osgates.checks.settings.versions import compare_deb, compare_rpm, rpmvercmp

DEB = [
    *("0~~osgates", "1.0~rc1-1", "1.0~~", "1.0", "1.0-0", "1.0-1", "1.0-1~bpo12+1", "1.0-1+b1", "1.0+dfsg-1"),
    *("1.0-1-1", "1:0.9", "2:0", "1.00", "1.010", "1.9", "1.10", "1.0a", "1.0.", "1.0a1", "9.7p1-7", "1:9.7p1-7"),
    *("4:12.2.0-3", "12.2.0-14+deb12u1", "0", "2.36-9+deb12u10", "2.36-9+deb12u9", "20230311", "1.2.3+git20240101-1"),
]


def sign(number: int) -> int:
    return (number > 0) - (number < 0)


@pytest.mark.skipif(shutil.which("dpkg") is None, reason="dpkg itself is the oracle")
def test_debian_versions_as_dpkg_itself_compares_them() -> None:
    pairs = list(itertools.combinations(DEB, 2))
    # One shell for all: dpkg(1), --compare-versions.
    script = "while read -r a b; do if dpkg --compare-versions $a lt $b; then echo -1; "
    script += "elif dpkg --compare-versions $a eq $b; then echo 0; else echo 1; fi; done"
    # Every fifth pair: each costs two processes.
    pairs = pairs[::5]
    text = "".join(f"{one} {other}\n" for one, other in pairs)
    done = subprocess.run(["sh", "-c", script], input=text, capture_output=True, text=True, check=True)
    said = list(map(int, done.stdout.split()))
    assert len(said) == len(pairs)
    assert [(pair, sign(compare_deb(*pair))) for pair in pairs] == list(zip(pairs, said, strict=True))


# Cases of rpm's own tests/rpmvercmp.at.
RPM = [
    ("1.0", "1.0", 0),
    ("1.0", "2.0", -1),
    ("2.0.1", "2.0.1a", -1),
    ("5.5p1", "5.5p2", -1),
    ("5.5p10", "5.5p1", 1),
    ("10xyz", "10.1xyz", -1),
    ("xyz10", "xyz10.1", -1),
    ("xyz.4", "8", -1),
    ("xyz.4", "2", -1),
    ("5.5p2", "5.6p1", -1),
    ("5.6p1", "6.5p1", -1),
    ("6.0.rc1", "6.0", 1),
    ("10b2", "10a1", 1),
    ("1.0aa", "1.0a", 1),
    ("10.0001", "10.1", 0),
    ("10.0001", "10.0039", -1),
    ("4.999.9", "5.0", -1),
    ("20101121", "20101122", -1),
    ("2_0", "2.0", 0),
    ("a", "a+", 0),
    ("+a", "_a", 0),
    ("1.0~rc1", "1.0", -1),
    ("1.0~rc1", "1.0~rc2", -1),
    ("1.0~rc1~git123", "1.0~rc1", -1),
    ("1.0^", "1.0", 1),
    ("1.0^git1", "1.0^git2", -1),
    ("1.0^git1", "1.01", -1),
    ("1.0^20160101", "1.0.1", -1),
    ("1.0^20160101^git1", "1.0^20160102", -1),
    ("1.0~rc1^git1", "1.0~rc1", 1),
    ("1.0^git1~pre", "1.0^git1", -1),
    ("1b.fc17", "1.fc17", -1),
    ("1g.fc17", "1.fc17", 1),
]


@pytest.mark.parametrize(("one", "other", "wanted"), RPM)
def test_rpm_versions_as_in_its_own_tests(one: str, other: str, wanted: int) -> None:
    assert sign(rpmvercmp(one, other)) == wanted
    assert sign(rpmvercmp(other, one)) == -wanted


@pytest.mark.parametrize(
    ("one", "other", "wanted"),
    [
        ("1.0-1.fc43", "1.0", 0),  # without a release on one side, releases do not count
        ("1.0-1.fc43", "1.0-2.fc43", -1),
        ("1:1.0-1", "2.0-1", 1),
        ("0:1.0-1", "1.0-1", 0),
        ("1.94.2-1.fc43", "1.94.2", 0),
        ("1.94.1-9.fc43", "1.94.2", -1),
    ],
)
def test_epoch_and_release_of_rpm(one: str, other: str, wanted: int) -> None:
    assert sign(compare_rpm(one, other)) == wanted


VERSIONS = st.text("0123456789aZ.+~^-:", max_size=12)


@pytest.mark.parametrize("compare", [compare_deb, rpmvercmp, compare_rpm])
def test_it_is_an_order(compare: object) -> None:
    """Antisymmetric and reflexive, whatever a guest says."""
    assert callable(compare)

    @given(VERSIONS, VERSIONS)
    @settings(max_examples=150, deadline=None, derandomize=True, database=None)
    def check(one: str, other: str) -> None:
        assert sign(compare(one, other)) == -sign(compare(other, one))
        assert compare(one, one) == 0

    check()


def test_numbers_of_any_length() -> None:
    assert compare_deb("1." + "9" * 5000, "1.1" + "0" * 5000) < 0
    assert rpmvercmp("9" * 5000, "1" + "0" * 5000) < 0
