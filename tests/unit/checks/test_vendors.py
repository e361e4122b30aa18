"""The tables of vendors and of public resolvers: in order, and each range with where it was read."""

from __future__ import annotations

import ipaddress
import tomllib
from importlib.resources import files
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pytest_osgates.checks import vendors
from pytest_osgates.checks.vendors import Network, Row

ADDRESS = st.ip_addresses(v=4) | st.ip_addresses(v=6)


def _networks(row: Row) -> list[Network]:
    return [ipaddress.ip_network(text) for text in (*row.ranges, *row.unchecked)]


RANGES = [(network, row.name) for row in vendors.rows() for network in _networks(row)]


def _name(text: str) -> str:
    vendor = vendors.of_name(text)
    return vendor.name if vendor else ""


def test_the_table_is_in_order() -> None:
    rows = vendors.rows()
    names = [row.name for row in rows]
    domains = [domain for row in rows for domain in row.domains]
    assert len(set(names)) == len(names)
    assert len(set(domains)) == len(domains)
    wanted = {"Microsoft", "Google", "Apple", "Mozilla", "Canonical", "Debian", "Red Hat and Fedora", "Amazon"}
    wanted |= {
        "Cloudflare",
        "Akamai",
        "Fastly",
        "GNOME",
        "KDE",
        "Valve",
        "LVFS (fwupd)",
        "Flathub",
        "NVIDIA",
        "Brave",
    }
    assert wanted <= set(names)
    assert sum(row.analytics for row in rows) > 60


def test_published_ranges_are_collapsed() -> None:
    for row in vendors.rows():
        for texts in (row.ranges, row.unchecked):
            four = [net for text in texts if isinstance(net := ipaddress.ip_network(text), ipaddress.IPv4Network)]
            six = [net for text in texts if isinstance(net := ipaddress.ip_network(text), ipaddress.IPv6Network)]
            collapsed = [*ipaddress.collapse_addresses(four), *ipaddress.collapse_addresses(six)]
            assert [str(net) for net in collapsed] == list(texts), row.name


def test_no_address_belongs_to_two_vendors() -> None:
    spans = sorted(
        (net.version, int(net.network_address), int(net.broadcast_address), row.name)
        for row in vendors.rows()
        for net in _networks(row)
    )
    version, last, name = 0, -1, ""
    for of_version, first, end, of_name in spans:
        if of_version == version and first <= last:
            assert of_name == name
        last = max(last, end) if of_version == version else end
        version, name = of_version, of_name


def test_every_date_is_a_copy_s_own() -> None:
    for row in vendors.rows():
        assert all(copy.of and copy.at for copy in row.copies), row.name
    dated = {row.name for row in vendors.rows() if any(copy.as_of for copy in row.copies)}
    assert {row.name for row in vendors.rows() if row.ranges} - dated == {"Debian", "Cisco and OpenDNS"}


ROW: dict[str, Any] = {
    "name": "Somebody",
    "domains": ["somebody.example"],
    "ranges": ["8.8.8.0/24"],
    "copies": [{"of": "https://somebody.example/ranges", "at": "a/b list@c0ffee", "as_of": "2026-01-05"}],
}


@pytest.mark.parametrize(
    "wrong",
    [
        {"copies": []},
        {"ranges": []},
        {"ranges": ["8.8.8.8/24"]},
        {"ranges": ["10.0.0.0/8"]},
        {"unchecked": ["fe80::/10"]},
        {"ranges": ["8.8.8"]},
        {"copies": [{"of": "https://somebody.example/ranges", "at": "", "as_of": "2026-01-05"}]},
        {"copies": [{"of": "https://somebody.example/ranges", "at": "x", "as_of": "lately"}]},
        {"copies": [{"of": "https://somebody.example/ranges", "at": "x"}]},
        {"domains": []},
        {"domains": ["Somebody.example"]},
        {"domains": [".somebody.example"]},
        {"source": "somewhere"},
    ],
)
def test_a_range_that_nothing_supports_is_refused(wrong: dict[str, Any]) -> None:
    assert Row.model_validate(ROW).ranges == ("8.8.8.0/24",)
    with pytest.raises(ValidationError):
        Row.model_validate({**ROW, **wrong})


def test_an_unchecked_label_says_so() -> None:
    checked, unchecked = vendors.of_address("146.112.61.104"), vendors.of_address("146.112.8.1")
    assert checked is not None
    assert (checked.name, checked.by, checked.checked) == ("Cisco and OpenDNS", "146.112.48.0/20", True)
    assert unchecked is not None
    assert (unchecked.name, unchecked.checked) == ("Cisco and OpenDNS", False)
    assert unchecked.by.startswith("146.112.0.0/16 (unchecked")


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("20.1.2.3", "Microsoft"),
        ("4.150.0.1", "Microsoft"),
        ("13.107.4.52", "Microsoft"),
        ("140.82.121.3", "Microsoft"),
        ("34.107.221.82", "Google"),
        ("17.253.0.1", "Apple"),
        ("91.189.91.48", "Canonical"),
        ("185.125.190.17", "Canonical"),
        ("63.245.208.195", "Mozilla"),
        ("130.89.148.12", "Debian"),
        ("151.101.2.132", "Fastly"),
        ("52.94.236.248", "Amazon"),
        ("2600:1f18:24e6:b900::1", "Amazon"),
        ("2606:4700:4700::1111", "Cloudflare"),
        ("::ffff:8.8.8.8", "Google"),
        ("64:ff9b::8.8.8.8", "Google"),
        ("2002:808:808::1", "Google"),
        # Sold: what a range once was is no label.
        ("63.245.217.1", ""),
        ("104.244.43.1", ""),
        ("2620:119:8000::1", ""),
        ("203.0.113.7", ""),
        ("no address", ""),
    ],
)
def test_well_known_addresses(address: str, expected: str) -> None:
    vendor = vendors.of_address(address)
    assert (vendor.name if vendor else "") == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("www.google.co.uk", "Google"),
        ("google.de", "Google"),
        ("google.evil.de", ""),
        ("google.evil.example", ""),
        ("notgoogle.de", ""),
        ("amazon.co.jp", "Amazon"),
        ("Incoming.Telemetry.Mozilla.ORG.", "Mozilla"),
        ("location.services.mozilla.com", "Mozilla"),
        ("detectportal.firefox.com", "Mozilla"),
        ("settings-win.data.microsoft.com", "Microsoft"),
        ("default.exp-tas.com", "Microsoft"),
        ("teams.cloud.microsoft", "Microsoft"),
        ("connectivitycheck.gstatic.com", "Google"),
        ("captive.apple.com", "Apple"),
        ("metrics.ubuntu.com", "Canonical"),
        ("contracts.canonical.com", "Canonical"),
        ("api.snapcraft.io", "Canonical"),
        ("0.ubuntu.pool.ntp.org", "Canonical"),
        ("popcon.debian.org", "Debian"),
        ("mirrors.fedoraproject.org", "Red Hat and Fedora"),
        ("nmcheck.gnome.org", "GNOME"),
        ("networkcheck.kde.org", "KDE"),
        ("cdn.fwupd.org", "LVFS (fwupd)"),
        ("dl.flathub.org", "Flathub"),
        ("p3a.brave.com", "Brave"),
        ("api.beacondb.net", "beaconDB"),
        ("2.pool.ntp.org", "NTP Pool"),
        ("o123.ingest.sentry.io", "Sentry"),
        ("secure-us.imrworldwide.com", "Nielsen"),
        ("static.cloudflareinsights.com", "Cloudflare"),
        ("us.i.posthog.com", "PostHog"),
        ("assets.adobedtm.com", "Adobe"),
        ("freexian.com", ""),
        ("", ""),
    ],
)
def test_well_known_names(name: str, expected: str) -> None:
    assert _name(name) == expected


NAT64 = ipaddress.ip_network("64:ff9b::/96")


@settings(max_examples=60, deadline=None)
@given(ADDRESS | st.sampled_from([network[0] for network, _ in RANGES]))
@example(ipaddress.ip_address("64:ff9b::1100:0"))
def test_the_index_finds_what_a_search_through_all_finds(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    found = [(network.prefixlen, name) for network, name in RANGES if address in network]
    vendor = vendors.of_address(str(address))
    stands_for = address.version == 6 and (address.ipv4_mapped or address.sixtofour or address in NAT64)
    if not stands_for:
        assert (vendor.name if vendor else "") == (max(found)[1] if found else "")


def test_public_resolvers_are_written_as_they_are_looked_up() -> None:
    text = files("pytest_osgates.vm.network").joinpath("resolvers.toml").read_text(encoding="utf-8")
    rows = tomllib.loads(text)["resolver"]
    addresses = [address for row in rows for address in row.get("addresses", ())]
    names = [name for row in rows for name in row["names"]]
    assert [str(ipaddress.ip_address(address)) for address in addresses] == addresses
    assert all(ipaddress.ip_address(address).is_global for address in addresses)
    assert len(set(addresses)) == len(addresses)
    assert len(set(names)) == len(names)
    assert all(name == name.lower().strip(".") for name in names)
    assert all(row["names"] or row["addresses"] for row in rows)
