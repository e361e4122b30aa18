"""Which mirror and proxy are taken, from whom."""

from __future__ import annotations

import pytest

from pytest_osgates.debian import MIRROR_VARIABLE, Archive, Mirror, discover_mirror, mirror
from pytest_osgates.debian.mirror import parse_proxies, parse_targets
from pytest_osgates.vm.errors import UsageError


def test_an_option_wins_over_the_environment() -> None:
    found = discover_mirror("http://a.example/debian/", environment={MIRROR_VARIABLE: "http://b.example/debian"})
    assert found == Mirror("http://a.example/debian", "http://a.example/debian-security")


def test_the_environment_wins_over_the_host() -> None:
    values = {MIRROR_VARIABLE: "http://b.example/x", "OSGATES_DEBIAN_SECURITY_MIRROR": "http://c.example/s/"}
    assert discover_mirror(environment=values) == Mirror("http://b.example/x", "http://c.example/s")


def test_without_a_convention_there_is_no_security_archive() -> None:
    found = discover_mirror("http://b.example/x", environment={})
    with pytest.raises(UsageError, match="OSGATES_DEBIAN_SECURITY_MIRROR"):
        found.base(Archive.SECURITY)


@pytest.mark.parametrize(
    "url", ["ftp://a/debian", "a/debian", "http://a/deb ian", "http://a/[x]", 'http://a/"', "cdrom:"]
)
def test_what_is_no_mirror_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match=MIRROR_VARIABLE):
        discover_mirror(url, environment={})


def test_the_host_s_sources_are_told_apart_by_origin_and_label() -> None:
    text = (
        "Example|Example|http://other.example/debian/\n"
        "Debian|Debian-Security|http://b.example/debian-security/\n"
        "Debian|Debian|cdrom:[Debian]/\n"
        "Debian|Debian|http://a.example/debian/\n"
        "Debian|Debian|http://later.example/debian/\n"
        "Debian Backports|Debian Backports|http://z.example/debian\n"
    )
    assert parse_targets(text) == {
        Archive.DEBIAN: "http://a.example/debian",
        Archive.SECURITY: "http://b.example/debian-security",
    }


def test_a_host_without_debian_gets_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror, "_of_the_host", dict)
    with pytest.raises(UsageError, match=f"set {MIRROR_VARIABLE}"):
        discover_mirror(environment={})


def test_only_the_way_out_is_taken_from_the_host_s_configuration() -> None:
    dump = (
        'APT::Install-Recommends "true";\n'
        'Acquire::http::Proxy "http://proxy.example:3128";\n'
        'Acquire::http::Proxy::mirror.example "DIRECT";\n'
        'Acquire::http::Proxy-Auto-Detect "/usr/bin/auto-apt-proxy";\n'
        'Acquire::https::CAInfo "/etc/ssl/own.pem";\n'
        'Acquire::http::Timeout "1";\n'
        'Acquire::AllowInsecureRepositories "true";\n'
        'DPkg::Post-Invoke:: "rm -rf /";\n'
        'Acquire::https::Proxy "x"; APT::Get::AllowUnauthenticated "true";\n'
    )
    assert [line.split()[0] for line in parse_proxies(dump)] == [
        "Acquire::http::Proxy",
        "Acquire::http::Proxy::mirror.example",
        "Acquire::http::Proxy-Auto-Detect",
        "Acquire::https::CAInfo",
    ]


def test_urls_are_quoted_as_apt_quotes_them() -> None:
    base = Mirror("http://a.example/debian")
    assert (
        base.url(Archive.DEBIAN, "pool/f/foo_1+b1~2_all.deb") == "http://a.example/debian/pool/f/foo_1%2Bb1~2_all.deb"
    )
