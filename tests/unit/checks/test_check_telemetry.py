"""The judge of telemetry: default deny, what the profile allows, and what silence needs to mean anything."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from gate_samples import HOSTILE, keys
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from telemetry_samples import EUI, MAC, POLICY, canary, card, clean, fact, flow, query, timing

from pytest_osgates.checks import vendors
from pytest_osgates.checks.telemetry import GATE, TelemetryPolicy
from pytest_osgates.checks.telemetry.identifiers import eui64
from pytest_osgates.checks.telemetry.seen import Moment, Phase, TelemetryObservation, Unvalidated
from pytest_osgates.judging import judge
from pytest_osgates.model import Severity, Verdict


def _found(seen: TelemetryObservation, policy: TelemetryPolicy = POLICY) -> list[tuple[str, str]]:
    return keys(GATE.judge(seen, policy), Severity.VIOLATION, Severity.UNPROVEN)


def test_silence_that_is_proven_passes_and_every_control_is_caught() -> None:
    judgement = judge(GATE, clean(), POLICY)
    assert [result for result in judgement.controls if not result.caught] == []
    assert len(judgement.controls) > 30
    assert judgement.verdict is Verdict.PASS
    assert judgement.findings == ()


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        (query("0.debian.pool.ntp.org"), ("vendor", "0.debian.pool.ntp.org")),
        (query("www.example.com", aliases=("x.edgekey.net",)), ("vendor", "www.example.com")),
        (query("www.example.com"), ("contact", "www.example.com")),
        (query("www.example.com", server="203.0.113.53"), ("foreign-resolver", "www.example.com")),
        (query(""), ("contact", ".")),
        (flow("8.8.8.8", "udp", 53, applications=("dns",)), None),
        (query("www.example.com", server="8.8.8.8"), ("vendor", "www.example.com")),
        (flow("8.8.8.8", "udp", 9), ("vendor", "8.8.8.8")),
        (flow("::ffff:8.8.8.8", "udp", 9), ("vendor", "::ffff:8.8.8.8")),
        (flow("64:ff9b::808:808", "udp", 9), ("vendor", "64:ff9b::808:808")),
        (flow("2002:808:808::1", "udp", 9), ("vendor", "2002:808:808::1")),
        (flow("203.0.113.7", "tcp", 443), ("literal-address", "203.0.113.7")),
        (flow("203.0.113.7", "tcp", 443, ("www.example.com", "sni")), ("contact", "www.example.com")),
        (flow("203.0.113.7", "tcp", 80, ("203.0.113.7", "host")), ("literal-address", "203.0.113.7")),
        (flow("203.0.113.7", "tcp", 443, notes=("ECH: the true name is encrypted",)), ("ech", "203.0.113.7")),
        (flow("203.0.113.7", "tcp", 853, applications=("tls", "dot")), ("encrypted-dns", "203.0.113.7")),
        (flow("203.0.113.7", "icmp", 0, applications=("ping",)), ("literal-address", "203.0.113.7")),
        (flow("10.0.2.2", "tcp", 80), ("literal-address", "10.0.2.2")),
        (flow("224.0.0.251", "udp", 5353, applications=("mdns",)), ("multicast", "224.0.0.251")),
        (flow("239.255.255.250", "udp", 1900, applications=("ssdp",)), ("multicast", "239.255.255.250")),
        (flow("255.255.255.255", "udp", 9), ("multicast", "255.255.255.255")),
        (flow("203.0.113.7", "udp", 67, applications=("dhcp",)), ("literal-address", "203.0.113.7")),
        (flow("2001:db8:aa::7", "icmpv6", 0, applications=("nd",)), ("literal-address", "2001:db8:aa::7")),
        (flow("10.0.2.2", "udp", 67, applications=("dhcp",)), None),
        (flow("255.255.255.255", "udp", 67, applications=("dhcp",)), None),
        (flow("ff02::1:2", "udp", 547, applications=("dhcpv6",)), None),
        (flow("ff02::1:ff00:115", "icmpv6", 0, applications=("nd",)), None),
        (flow("224.0.0.22", "igmp", 0), None),
        (flow("10.0.2.3", "icmp", 0, applications=("icmp",)), None),
        (flow("203.0.113.7", "tcp", 443, from_guest=False), None),
        (flow("192.0.2.101", "udp", 9, canary="start"), None),
        (query("x.osgates-canary.example.net", canary="start"), None),
        (fact("vlan", tag="4001"), ("vlan", "VLAN 4001")),
        (fact("ethertype", number="88cc", to="01:80:c2:00:00:0e"), ("ethertype", "0x88cc")),
        (fact("dhcp", kind="discover", host="my-laptop"), ("dhcp-host-name", "my-laptop")),
        (fact("dhcp", kind="discover", client_id="01" + MAC.replace(":", "")), None),
        (fact("dhcp", kind="discover", client_id="ff12345678"), ("dhcp-client-id", "ff12345678")),
        (fact("dhcp", kind="discover", vendor="dhcpcd-10"), ("dhcp-vendor-class", "dhcpcd-10")),
        (fact("dhcpv6", kind="solicit", duid="00030001" + MAC.replace(":", "")), None),
        (fact("dhcpv6", kind="solicit", duid="00020000ab11"), ("dhcpv6-duid", "00020000ab11")),
        (fact("dhcpv6", kind="solicit", host="my-laptop"), ("dhcpv6-host-name", "my-laptop")),
        (fact("mdns", asked="_ipps._tcp.local"), None),
        (fact("mdns", told="my-laptop.local"), ("mdns-name", "my-laptop.local")),
        (fact("arp", asks="10.0.2.2"), None),
    ],
)
def test_default_deny(what: dict[str, Any], expected: tuple[str, str] | None) -> None:
    assert _found(clean(**what)) == ([] if expected is None else [expected])


def test_complaints_about_late_answers_belong_to_what_asked() -> None:
    late = flow("203.0.113.53", "icmp", 0, applications=("icmp",), notes=("ICMP type 3",))
    asked = query("www.example.com", server="203.0.113.53")
    assert _found(clean(**late, **asked)) == [("foreign-resolver", "www.example.com")]
    assert _found(clean(**late)) == [("literal-address", "203.0.113.53")]
    ping = flow("203.0.113.53", "icmp", 0, applications=("icmp", "ping"), notes=("ICMP type 3", "ICMP type 8"))
    assert ("literal-address", "203.0.113.53") in _found(clean(**ping, **asked))


def test_an_answer_on_one_link_for_an_address_of_another() -> None:
    """Linux gives it; it is no word of the machine's own if it was asked."""
    answered = fact("arp", answers="10.0.9.15")["facts"]
    asked = fact("arp", mac=card().gateway_mac, asks="10.0.9.15")["facts"]
    other = fact("arp", mac=card().gateway_mac, asks="10.0.9.16")["facts"]
    assert _found(clean(facts=(*answered, *asked))) == []
    assert _found(clean(facts=answered)) == [("arp", "10.0.9.15")]
    assert _found(clean(facts=(*answered, *other))) == [("arp", "10.0.9.15")]


def test_each_phase_counts() -> None:
    for phase in Phase:
        seen = clean(**flow("203.0.113.7", "udp", 9, phases={phase: 1}))
        (finding,) = GATE.judge(seen, POLICY)
        assert f"({phase})" in finding.seen


def test_one_contact_is_one_finding_and_names_everything() -> None:
    flows = [
        flow("198.18.0.16", "tcp", port, ("www.example.com", "dns"), suspects=("spy.service",))["flows"][0]
        for port in (443, 80, 443)
    ]
    seen = clean(flows=tuple(flows), **query("www.example.com", count=3))
    (finding,) = GATE.judge(seen, POLICY)
    assert finding.key == ("contact", "www.example.com")
    for part in ("dns x3", "tcp:443 x2", "tcp:80", "spy.service", "198.18.0.16", "idle"):
        assert part in finding.seen
    assert finding.evidence == "machines/telemetry/net0.pcap packet 7"


# -- what the profile allows
# ------------------------------------------------------------------------------------------


def _policy(**allow: Any) -> TelemetryPolicy:
    fields = {"services": ["tcp:443"], "reason": "our own mirror", **allow}
    return TelemetryPolicy.model_validate({"idle_s": 60, "allow": [fields]})


def _severities(seen: TelemetryObservation, policy: TelemetryPolicy) -> set[tuple[str, Severity]]:
    return {(finding.rule, finding.severity) for finding in GATE.judge(seen, policy)}


OWN = flow("198.18.0.16", "tcp", 443, ("deb.example.org", "dns"))
ASKED = query("deb.example.org")


@pytest.mark.parametrize(
    ("allow", "seen", "accepted"),
    [
        ({"name": "deb.example.org"}, {**OWN, **ASKED}, True),
        ({"name": "deb.example.org"}, ASKED, True),
        ({"name": "*.example.org"}, {**OWN, **ASKED}, True),
        ({"name": "example.org"}, {**OWN, **ASKED}, False),
        ({"name": "*.b.example.org"}, {**OWN, **ASKED}, False),
        ({"name": "deb.example.org", "reason": "  "}, {**OWN, **ASKED}, False),
        ({"name": "deb.example.org", "services": ["tcp:80"]}, {**OWN, **ASKED}, False),
        ({"name": "deb.example.org", "phases": ["boot"]}, {**OWN, **ASKED}, False),
        ({"name": "deb.example.org", "phases": ["idle"]}, {**OWN, **ASKED}, True),
        ({"name": "deb.example.org"}, query("deb.example.org", server="203.0.113.53"), False),
        ({"name": "deb.example.org", "services": ["dns"]}, query("deb.example.org", server="203.0.113.53"), True),
        ({"address": "203.0.113.0/24"}, flow("203.0.113.7", "tcp", 443), True),
        ({"address": "203.0.113.8"}, flow("203.0.113.7", "tcp", 443), False),
        # An address is allowed only without a name: who says a name is judged by it.
        ({"address": "203.0.113.0/24"}, flow("203.0.113.7", "tcp", 443, ("x.example.com", "sni")), False),
        # An allowed name from the resolver, another one in the hello.
        (
            {"name": "deb.example.org"},
            flow("198.18.0.16", "tcp", 443, ("x.com.example", "sni"), ("deb.example.org", "dns")),
            False,
        ),
        (
            {"name": "deb.example.org"},
            flow("1.2.3.4", "tcp", 443, ("deb.example.org", "sni"), ("b.example", "host")),
            False,
        ),
        # Neither a vendor nor a hidden name can be allowed.
        ({"name": "*.debian.org"}, query("www.debian.org"), False),
        ({"name": "deb.example.org"}, flow("17.0.0.1", "tcp", 443, ("deb.example.org", "sni")), False),
        ({"name": "deb.example.org"}, query("deb.example.org", aliases=("x.fastly.net",)), False),
        ({"name": "ech.example"}, flow("1.2.3.4", "tcp", 443, ("ech.example", "sni"), notes=("ECH: hidden",)), False),
        (
            {"name": "dot.example", "services": ["tcp:853"]},
            flow("198.18.0.16", "tcp", 853, ("dot.example", "sni"), ("dot.example", "dns"), applications=("dot",)),
            True,
        ),
    ],
)
def test_what_is_allowed(allow: dict[str, Any], seen: dict[str, Any], accepted: bool) -> None:
    found = _severities(clean(**seen), _policy(**allow))
    if accepted:
        assert {severity for _, severity in found} == {Severity.ACCEPTED}
    else:
        assert Severity.VIOLATION in {severity for _, severity in found}
        assert Severity.ACCEPTED not in {severity for _, severity in found}


@pytest.mark.parametrize(
    ("allow", "accepted"),
    [
        # Asked for by another name than it says; both are allowed, or the address itself is.
        ([{"name": "deb.example.org"}], False),
        ([{"name": "deb.example.org"}, {"name": "host7.example.net"}], True),
        ([{"name": "deb.example.org"}, {"name": "host7.example.net", "services": ["tcp:80"]}], False),
        ([{"name": "deb.example.org"}, {"name": "host7.example.net", "phases": ["boot"]}], False),
        ([{"name": "deb.example.org"}, {"address": "198.18.0.0/24"}], True),
        ([{"name": "deb.example.org"}, {"address": "198.18.0.0/24", "reason": ""}], False),
    ],
)
def test_a_name_alone_may_be_a_lie(allow: list[dict[str, Any]], accepted: bool) -> None:
    fields = {"services": ["tcp:443"], "reason": "our own mirror"}
    policy = TelemetryPolicy.model_validate({"idle_s": 60, "allow": [{**fields, **entry} for entry in allow]})
    seen = clean(**flow("198.18.0.16", "tcp", 443, ("deb.example.org", "sni"), ("host7.example.net", "dns")))
    found = {severity for rule, severity in _severities(seen, policy) if rule == "contact"}
    assert found == {Severity.ACCEPTED if accepted else Severity.VIOLATION}


def test_what_was_allowed_in_vain_is_told() -> None:
    assert _severities(clean(), _policy(name="deb.example.org")) == {("unused-acceptance", Severity.REMARK)}
    for entry in ({"value": "x"}, {"value": "osgates", "reason": ""}):
        allowed = {"kind": "dhcp-host-name", "reason": "because", **entry}
        policy = TelemetryPolicy.model_validate({"idle_s": 60, "allow_identifier": [allowed]})
        assert ("unused-acceptance", Severity.REMARK) in _severities(clean(), policy)


def test_controls_keep_clear_of_what_is_allowed() -> None:
    """Else a profile that allows something could never pass."""
    fields = {"services": ["tcp:443", "udp:9", "udp:5353"], "reason": "in use"}
    wide = [{"address": "203.0.113.0/24"}, {"address": "224.0.0.251"}, {"address": "2001:db8::/32"}]
    wide += [{"name": "*.example.com"}]
    policy = TelemetryPolicy.model_validate(
        {
            "idle_s": 60,
            "allow": [{**fields, **entry} for entry in wide],
            "allow_identifier": [{"kind": "dhcp-host-name", "value": "*", "reason": "a laboratory"}],
        }
    )
    judgement = judge(GATE, clean(), policy)
    assert [result for result in judgement.controls if not result.caught] == []
    assert judgement.verdict is Verdict.PASS


def test_identifiers_can_be_accepted() -> None:
    accepted = [{"kind": "dhcp-vendor-class", "value": "dhcpcd-*", "reason": "a museum's name server wants it"}]
    policy = TelemetryPolicy.model_validate({"idle_s": 60, "allow_identifier": accepted})
    seen = clean(**fact("dhcp", vendor="dhcpcd-10"))
    assert _severities(seen, policy) == {("dhcp-vendor-class", Severity.ACCEPTED)}
    assert ("dhcp-host-name", Severity.VIOLATION) in _severities(clean(**fact("dhcp", host="dhcpcd-x")), policy)


def test_addresses_that_tell_the_card() -> None:
    assert eui64("52:54:00:12:34:56").hex() == "505400fffe123456"
    seen = clean(cards=(card(addresses=("10.0.2.15", EUI)),))
    assert _found(seen) == [("eui64-address", EUI)]
    # Claimed, and never used.
    assert _found(clean(**fact("address", claims=EUI))) == [("eui64-address", EUI)]
    random = TelemetryPolicy(idle_s=60, random_mac=True)
    assert _found(clean(cards=(card(macs=(MAC,)),)), random) == [("permanent-mac", MAC)]
    assert _found(clean(**fact("arp", asks="10.0.2.2")), random) == [("permanent-mac", MAC)]
    assert _found(clean(**fact("arp", mac="02:11:22:33:44:55", asks="10.0.2.2")), random) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"allow": [{"name": "a.example", "address": "1.2.3.4", "services": ["tcp:1"]}]},
        {"allow": [{"services": ["tcp:1"]}]},
        {"allow": [{"name": "a.example", "services": []}]},
        {"allow": [{"name": "A.example", "services": ["tcp:1"]}]},
        {"allow": [{"name": "*", "services": ["tcp:1"]}]},
        {"allow": [{"address": "1.2.3", "services": ["tcp:1"]}]},
        {"allow": [{"name": "a.example", "services": ["http"]}]},
        {"allow": [{"name": "*.com", "services": ["tcp:1"]}]},
        {"allow": [{"name": "*.co.uk", "services": ["tcp:1"]}]},
        {"allow": [{"name": "*.github.io", "services": ["tcp:1"]}]},
        {"allow": [{"address": "203.0.113.7/24", "services": ["tcp:1"]}]},
        {"allow": [{"address": "0.0.0.0/0", "services": ["tcp:1"]}]},
        {"allow": [{"address": "2001::/16", "services": ["tcp:1"]}]},
        {"names": "none"},
        {"idle_s": 0},
    ],
)
def test_policies_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TelemetryPolicy.model_validate(wrong)


# -- whether silence means anything
# -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"cards": ()}, ("cards", "network cards")),
        ({"cards": (card(lease=""),)}, ("no-lease", "card 0")),
        ({"cards": (card(problem="is cut short after packet 7"),)}, ("capture", "card 0")),
        ({"cards": (card(trouble="the sinkhole of net0 ended"),)}, ("sinkhole", "card 0")),
        ({"cards": (card(counted_out=None, counted_in=None),)}, ("sinkhole", "card 0 count")),
        ({"cards": (card(counted_out=41),)}, ("count-mismatch", "card 0")),
        ({"cards": (card(counted_in=19),)}, ("count-mismatch", "card 0")),
        ({"cards": (card(counted_in=500),)}, ("count-mismatch", "card 0")),
        ({"cards": (card(unparsed=1, unparsed_examples=("x",)),)}, ("unparsed", "card 0")),
        ({"canaries": (canary(Moment.START), canary(Moment.END))}, ("canary", "middle")),
        ({"timing": timing(idle_s=59.9)}, ("window", "idle")),
        ({"timing": timing(mode="accelerated")}, ("latency", "accelerated time")),
        ({"timing": timing(mode="accelerated", latency_s=1.1)}, ("latency", "accelerated time")),
        ({"timing": timing(latency_s=5.5)}, ("latency", "real time")),
        ({"stopped_early": "at the first violation"}, ("stopped-early", "window")),
        ({"powered_off": False}, ("power-off", "shutdown")),
        ({"canaries": tuple(canary(moment, at=60.0) for moment in Moment)}, ("canary", "order")),
        ({"tunnels": ("wg0",)}, ("tunnel", "wg0")),
    ],
)
def test_silence_without_proof(changes: dict[str, Any], expected: tuple[str, str]) -> None:
    seen = clean(**changes)
    assert expected in _found(seen)
    assert judge(GATE, seen, POLICY).verdict is not Verdict.PASS


def test_frames_in_flight_at_power_off_are_no_hole() -> None:
    assert _found(clean(cards=(card(counted_in=25),))) == []


@pytest.mark.parametrize("moment", list(Moment))
@pytest.mark.parametrize(
    "lost",
    [
        *({"sent": False}, {"datagram": False}, {"through_gateway": False}, {"query": False}, {"probe": False}),
        {"resolved": False},
    ],
)
def test_every_part_of_every_canary_is_needed(moment: Moment, lost: dict[str, bool]) -> None:
    canaries = tuple(canary(each, **(lost if each is moment else {})) for each in Moment)
    assert _found(clean(canaries=canaries)) == [("canary", moment)]


def test_a_system_that_looks_up_no_names_needs_no_query() -> None:
    policy = TelemetryPolicy(idle_s=60, names="none", names_reason="it has no resolver")
    canaries = tuple(canary(each, query=False) for each in Moment)
    assert judge(GATE, clean(canaries=canaries), policy).verdict is Verdict.PASS


def test_accelerated_time_is_as_good_if_answers_were_quick() -> None:
    times = {Moment.START: 1000.0, Moment.MIDDLE: 1030.5, Moment.END: 1061.0}
    canaries = tuple(canary(each, clock=told) for each, told in times.items())
    seen = clean(timing=timing(mode="accelerated", latency_s=0.02, warp=100.0), canaries=canaries)
    assert judge(GATE, seen, POLICY).verdict is Verdict.PASS


@pytest.mark.parametrize(("clock", "proven"), [(1130.5, True), (1100.0, False), (None, False), (1200.0, False)])
def test_skipped_time_must_pass_for_the_guest(clock: float | None, proven: bool) -> None:
    times = {Moment.START: (60.0, 1000.0), Moment.MIDDLE: (120.0, 1060.5), Moment.END: (190.0, clock)}
    canaries = tuple(canary(each, at=at, clock=told) for each, (at, told) in times.items())
    skipped = timing(mode="accelerated", latency_s=0.02, warp=100.0, idle_s=130.0)
    assert (_found(clean(canaries=canaries, timing=skipped)) == []) == proven
    assert _found(clean(canaries=canaries)) == []


def test_nothing_at_all_is_not_a_pass() -> None:
    seen = clean(cards=(), flows=(), queries=(), facts=(), canaries=(), timing=timing(idle_s=0.0))
    judgement = judge(GATE, seen, POLICY)
    assert judgement.verdict is Verdict.NOT_PROVEN


# -- the rest
# ---------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=60), st.text(max_size=60), st.sampled_from(["sni", "host", "quic", "dns", "cname"]))
def test_any_name_is_judged(name: str, note: str, how: str) -> None:
    seen = clean(**flow("203.0.113.7", "tcp", 443, (name, how), notes=(note, HOSTILE)))
    assert len(_found(seen)) == 1


def test_the_baseline_is_a_policy_that_accepts_what_it_can() -> None:
    seen = clean(
        queries=(*query("www.example.com")["queries"], *query("www.google.com")["queries"]),
        **flow("203.0.113.7", "udp", 9),
    )
    text = GATE.baseline(seen, POLICY) if GATE.baseline else ""
    assert "# www.google.com cannot be allowed" in text
    table = tomllib.loads(text)["gate"]["telemetry"]
    for entry in table["allow"]:
        entry["reason"] = "because"
    policy = TelemetryPolicy.model_validate({"idle_s": 60, **table})
    assert _found(seen, policy) == [("vendor", "www.google.com")]


def test_what_changed_between_two_runs() -> None:
    assert GATE.compare is not None
    before, now = clean(**query("a.example")), clean(**query("b.example"))
    assert GATE.compare(before, now) == ["contact a.example: gone", "contact b.example: new (dns)"]
    assert GATE.compare(before, before) == []


def test_vendors_by_longest_suffix_and_narrowest_range() -> None:
    def name(text: str) -> str:
        vendor = vendors.of_name(text)
        return vendor.name if vendor else ""

    assert name("2.debian.pool.ntp.org") == "Debian"
    assert name("2.pool.ntp.org") == "NTP Pool"
    assert name("notdebian.org") == ""
    assert name("connectivity-check.ubuntu.com") == "Canonical"
    assert name("incoming.telemetry.mozilla.org") == "Mozilla"
    cloudflare = vendors.of_address("2606:4700::1111")
    assert cloudflare is not None
    assert (cloudflare.name, cloudflare.by) == ("Cloudflare", "2606:4700::/32")
    assert vendors.of_address("192.0.2.1") is None
    assert vendors.of_address("no address") is None
    assert vendors.registered("a.b.example.co.uk") == "example.co.uk"


@pytest.mark.parametrize(
    ("timers", "expected"),
    [((), []), (("a.timer in 7 s",), [("timers", "1 timers")]), (None, [("timers", "not listed")])],
)
def test_timers_are_remarked_upon(timers: tuple[str, ...] | None, expected: list[tuple[str, str]]) -> None:
    seen = clean().model_copy(update={"timers": timers})
    assert keys(GATE.judge(seen, POLICY), Severity.REMARK) == expected
    assert judge(GATE, seen, POLICY).verdict is Verdict.PASS


def test_a_client_that_believes_any_certificate_fails() -> None:
    policy = POLICY.model_copy(update={"tls": "complete"})
    seen = clean().model_copy(update={"tls": "complete"})
    assert judge(GATE, seen, policy).verdict is Verdict.PASS
    entry = Unvalidated(name="updates.example.org", address="203.0.113.7", port=443)
    assert _found(seen.model_copy(update={"unvalidated": (entry,)}), policy) == [
        ("tls-unvalidated", "updates.example.org")
    ]
    nameless = entry.model_copy(update={"name": ""})
    assert _found(seen.model_copy(update={"unvalidated": (nameless,)}), policy) == [
        ("tls-unvalidated", "203.0.113.7")
    ]


@pytest.mark.parametrize(("wanted", "was"), [("complete", "alert"), ("alert", "complete"), ("complete", "")])
def test_tls_that_was_answered_otherwise_proves_nothing(wanted: str, was: str) -> None:
    policy = POLICY.model_copy(update={"tls": wanted})
    seen = clean().model_copy(update={"tls": was})
    assert _found(seen, policy) == [("tls-answer", was)]
    assert judge(GATE, seen, policy).verdict is Verdict.NOT_PROVEN
