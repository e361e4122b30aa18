"""What a guest says of its firewall and its network, taken apart; and the whole observer."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any, cast

import pytest
from firewall_samples import LOOPBACK, port, table
from hypothesis import given, settings
from hypothesis import strategies as st
from local_shell import local_shell

from pytest_osgates.checks.apparmor_running import ProcessSeen, RunningSeen, SocketSeen
from pytest_osgates.checks.firewall import FirewallPolicy
from pytest_osgates.checks.firewall.named import not_understood
from pytest_osgates.checks.firewall.rules import Packet, outcomes
from pytest_osgates.checks.firewall.seen import Answers
from pytest_osgates.model import State
from pytest_osgates.observers import firewall
from pytest_osgates.observers.firewall import inside, nft, xt
from pytest_osgates.progress import ProgressLog
from pytest_osgates.vm.errors import ChannelError
from pytest_osgates.vm.guest.channel import GuestShell, ShellResult
from pytest_osgates.vm.machine import Machine
from pytest_osgates.vm.network import probe_frames
from pytest_osgates.vm.spec import card_mac

CARD = card_mac(0)
FIB = """Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 10.0.2.0/24 2 0 2
           |-- 10.0.2.0
              /24 link UNICAST
           |-- 10.0.2.15
              /32 host LOCAL
        |-- 10.0.2.255
           /32 link BROADCAST
        |-- 127.0.0.1
           /32 host LOCAL
Local:
           |-- 10.0.2.15
              /32 host LOCAL
"""
IF6 = """00000000000000000000000000000001 01 80 10 80       lo
fe80000000000000505400fffe123456 02 40 20 80     eth0
20010db800020000505400fffe123456 02 40 00 00     eth0
20010db8000200000000000000000bad 02 40 00 48     eth0
"""
ROUTE = """Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t0202000A\t0003\t0\t0\t100\t00000000\t0\t0\t0
"""
ROUTE6 = f"{'0' * 32} 00 {'0' * 32} 00 {'0' * 32} ffffffff 00000001 00000000 00200200       lo\n"
SNMP = """Tcp: ActiveOpens InSegs
Tcp: 3 {tcp}
Udp: InDatagrams NoPorts InErrors RcvbufErrors
Udp: 5 {udp} 0 0
"""
NETSTAT = "TcpExt: SyncookiesSent ListenOverflows ListenDrops\nTcpExt: 0 {drops} {drops}\n"


def said(
    rx: int = 100, tcp: int = 0, udp: int = 0, drops: int = 0, softnet: str = "00000000", lo: int = 9, **files: str
) -> str:
    """As the script writes it."""
    texts = {
        "snmp": SNMP.format(tcp=tcp, udp=udp),
        "netstat": NETSTAT.format(drops=drops),
        "snmp6": "Udp6InDatagrams                 \t4\nUdp6NoPorts 2\n",
        "softnet_stat": f"0000abcd {softnet} 00000000\n0000abcd 00000000 00000000\n",
        "stat/nf_conntrack": "entries drop early_drop\n00000005 00000000 00000000\n",
        "fib_trie": FIB,
        "if_inet6": IF6,
        "route": ROUTE,
        "ipv6_route": ROUTE6,
        "dev_mcast": "1    lo   1     0     01005e000001\n2    eth0 1     0     01005e0000fb\nnonsense\n",
        **files,
    }
    cards = f"card lo 00:00:00:00:00:00 rx_packets {lo}\ncard eth0 {CARD} rx_packets {rx}\n"
    for name in ("rx_dropped", "rx_errors", "rx_missed_errors", "rx_fifo_errors", "rx_over_errors"):
        cards += f"card eth0 {CARD} {name} 0\n"
    return cards + "".join(f"file {name}\n{text}" for name, text in texts.items()) + "end\n"


def test_addresses_routes_and_counters() -> None:
    seen = inside.parse(said(rx=7, tcp=11))
    assert [(one.address, one.family, one.scope) for one in seen.addresses] == [
        ("10.0.2.15", "ipv4", "global"),
        ("fe80::5054:ff:fe12:3456", "ipv6", "link-local"),
        ("2001:db8:2:0:5054:ff:fe12:3456", "ipv6", "global"),
    ]
    assert seen.routes == ["ipv4"]
    assert seen.card(CARD) == "eth0"
    assert seen.counters["card.eth0.rx_packets"] == 7
    assert seen.tables == []
    assert seen.groups == {"lo": ["01005e000001"], "eth0": ["01005e0000fb"]}
    legacy = inside.parse(said(ip_tables_names="filter\nnat\n", ip6_tables_names="filter\n"))
    assert legacy.tables == [("ip", "filter"), ("ip", "nat"), ("ip6", "filter")]
    via = ROUTE6.replace("lo\n", "eth0\n")
    assert inside.parse(said(ipv6_route=via)).routes == ["ipv4", "ipv6"]


def test_what_was_lost_and_what_got_past_the_filter() -> None:
    before = inside.parse(said())
    after = inside.parse(said(tcp=40, udp=3, drops=2, softnet="0000000f"))
    assert inside.losses(before, after, "eth0") == {
        "netstat.TcpExt.ListenDrops": 2,
        "netstat.TcpExt.ListenOverflows": 2,
        "softnet.dropped": 15,
    }
    assert inside.losses(before, before, "eth0") == {}
    assert inside.reached(before, after) == {"tcp": 40, "udp": 3}
    assert inside.reached(inside.parse("end\n"), after) == {}
    assert inside.loopback(before, inside.parse(said(lo=20))) == 11
    assert inside.loopback(after, before) == 0


def test_a_counter_that_is_not_there_is_no_zero() -> None:
    assert inside.uncounted(inside.parse(said()), "eth0") == []
    assert inside.uncounted(inside.parse(said(softnet_stat="")), "eth0") == ["softnet.dropped"]
    assert "netstat.TcpExt.ListenDrops" in inside.uncounted(inside.parse(said(netstat="")), "eth0")
    assert "card.wlan0.rx_packets" in inside.uncounted(inside.parse(said()), "wlan0")


@pytest.mark.parametrize("text", ["", "card lo", said()[:-4], said() + "more\n"])
def test_what_is_cut_short_is_told(text: str) -> None:
    with pytest.raises(ChannelError):
        inside.parse(text)


@settings(max_examples=40, deadline=None)
@given(
    st.text(max_size=300), st.sampled_from(["fib_trie", "if_inet6", "route", "ipv6_route", "snmp", "softnet_stat"])
)
def test_no_table_makes_it_raise(text: str, name: str) -> None:
    seen = inside.parse(said(**{name: text + "\n"}))
    assert len(seen.addresses) < 300
    inside.losses(seen, seen, "eth0")


def test_the_scripts_run_in_a_shell(tmp_path: Path) -> None:
    shell = local_shell(tmp_path)
    seen = inside.look(shell)
    assert seen.counters["snmp.Tcp.InSegs"] >= 0
    assert any(name.startswith("netstat.TcpExt.") for name in seen.counters)
    for name, mac in seen.cards.items():
        if name != "lo":
            assert inside.received(shell, mac) >= seen.counters[f"card.{name}.rx_packets"]
    with pytest.raises(ChannelError, match="no card"):
        inside.received(shell, "aa:bb:cc:dd:ee:00")
    assert inside.rules(shell, []).problem or inside.rules(shell, []).source == "nft"


# -- rules ------------------------------------------------------------------------------------------------------


class Programs:
    """A guest that has these programs' answers."""

    def __init__(self, **programs: tuple[int, bytes]) -> None:
        self._programs = programs

    def run(self, command: str, **_: object) -> ShellResult:
        if "kallsyms" in command:
            return ShellResult(command, *self._programs.get("kernel", (0, b"none\n")), b"")
        for name in ("ip6tables", "iptables", "nft"):
            if f"{name} " in command or f"{name}-" in command:
                status, out = self._programs.get(name, (127, b""))
                return ShellResult(command, status, out if status == 0 else b"", out if status else b"")
        raise AssertionError(command)


def rules_of(*, tables: list[tuple[str, str]] | None = None, **programs: tuple[int, bytes]) -> Any:
    return inside.rules(cast("GuestShell", Programs(**programs)), tables or [])


JSON = json.dumps({"nftables": table(LOOPBACK, port(22))}).encode()
SAVED = b"""# Generated by iptables-save v1.8.9 on Sun Nov 22 04:00:00 2026
*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [1:2]
:ufw-before - [0:0]
-A INPUT -j ufw-before
-A INPUT -p tcp -m tcp --dport 2222 -j ACCEPT
-A ufw-before -i lo -j ACCEPT
-A ufw-before -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A ufw-before -p udp --dport 100:200 -j REJECT --reject-with icmp-port-unreachable
-A ufw-before -m limit --limit 3/min -j LOG --log-prefix "[UFW BLOCK] "
COMMIT
# Completed
"""


def packet(number: int, protocol: str = "tcp") -> Packet:
    return Packet("ipv4", protocol, number, "10.0.2.70", "eth0", "10.0.2.15")


def test_rules_of_nft() -> None:
    found = rules_of(nft=(0, JSON))
    assert found.problem == ""
    assert outcomes(found, packet(22)) == {"accept"}
    assert outcomes(found, packet(23)) == {"drop"}


def test_rules_of_old_iptables_count_too() -> None:
    found = rules_of(tables=[("ip", "filter")], iptables=(0, SAVED))
    assert (found.problem, found.legacy) == ("", ("ip filter",))
    assert outcomes(found, packet(2222), guess=False) == {"accept"}
    assert outcomes(found, packet(23), guess=False) == {"drop"}
    assert outcomes(found, packet(150, "udp"), guess=False) == {"reject"}
    both = rules_of(tables=[("ip", "filter")], iptables=(0, SAVED), nft=(0, JSON))
    assert outcomes(both, packet(22)) <= {"drop", "accept"}
    assert outcomes(both, packet(22), guess=False) == {"drop"}


UFW = b"""*filter
:INPUT DROP [0:0]
:ufw-before-input - [0:0]
:ufw-not-local - [0:0]
:ufw-user-input - [0:0]
-A INPUT -j ufw-before-input
-A INPUT -j ufw-user-input
-A ufw-before-input -i lo -j ACCEPT
-A ufw-before-input -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A ufw-before-input -m conntrack --ctstate INVALID -j DROP
-A ufw-before-input -p icmp -m icmp --icmp-type 8 -j ACCEPT
-A ufw-before-input -j ufw-not-local
-A ufw-before-input -d 224.0.0.251/32 -p udp -m udp --dport 5353 -j ACCEPT
-A ufw-not-local -m addrtype --dst-type LOCAL -j RETURN
-A ufw-not-local -m addrtype --dst-type MULTICAST -j RETURN
-A ufw-not-local -m limit --limit 3/min --limit-burst 10 -j LOG --log-prefix "[UFW -j ACCEPT] "
-A ufw-not-local -j DROP
-A ufw-user-input -p tcp -m tcp --dport 22 -m comment --comment "it's -j DROP" -j ACCEPT
-A ufw-user-input -p tcp -m multiport --dports 80,443,8000:8010 -j ACCEPT
-A ufw-user-input -s 192.168.0.0/16 -p tcp -m tcp --dport 23 -j ACCEPT
-A ufw-user-input -p udp -m udp --sport 53 -j ACCEPT
-A ufw-user-input -p tcp -m tcp --dport 24 -m recent --update --seconds 30 --name x -j DROP
-A ufw-user-input -p tcp -m tcp --dport 24 -j ACCEPT
-A ufw-user-input -p tcp -m tcp ! --dport 1:60000 -m state ! --state ESTABLISHED -j REJECT --reject-with tcp-reset
COMMIT
"""


def test_rules_of_iptables_are_understood() -> None:
    found = rules_of(tables=[("ip", "filter")], iptables=(0, UFW))
    for number in (22, 24, 80, 8005):
        assert outcomes(found, packet(number), guess=False) == {"accept"}, number
    for number in (21, 23, 8011):
        assert outcomes(found, packet(number), guess=False) == {"drop"}, number
    assert outcomes(found, packet(24)) == {"accept", "drop"}
    assert outcomes(found, packet(60001)) == {"reject"}
    assert outcomes(found, packet(9, "udp")) == {"accept"}
    many = Packet("ipv4", "udp", 5353, "10.0.2.70", "eth0", "224.0.0.251", cast="multicast")
    assert outcomes(found, many, guess=False) == {"accept"}
    assert [one.text for one in not_understood(found, "ipv4", "eth0")] == []


def test_what_iptables_put_into_nft_is_read_by_its_own_program() -> None:
    dnat = {"xt": {"type": "match", "name": "conntrack"}}
    established = [dnat, {"counter": {"packets": 1, "bytes": 1}}, {"accept": None}]
    saved = (
        b"*filter\n:input DROP [0:0]\n-A input -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\nCOMMIT\n"
        b"# Table `x' is incompatible, use 'nft' tool.\n"
    )
    told = json.dumps({"nftables": table(established, family="ip")}).encode()
    found = rules_of(nft=(0, told), iptables=(0, saved))
    assert list(not_understood(found, "ipv4", "eth0")) == []
    assert [chain.hook for chain in found.chains] == ["input"]
    # Another number of rules, no program, no sense: not understood.
    for status, text in ((0, saved.replace(b"COMMIT", b"-A input -j ACCEPT\nCOMMIT")), (127, b""), (0, b"what?\n")):
        found = rules_of(nft=(0, told), iptables=(status, text))
        assert len(list(not_understood(found, "ipv4", "eth0"))) == 1


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            ["-p", "tcp", "udp", "!", "--dport", "22", "-m", "x", "-j", "-g", "ACCEPT", "a b", "'", "-s", "::", "--z"]
        ),
        max_size=9,
    )
)
def test_no_rule_of_iptables_makes_it_raise(words: list[str]) -> None:
    text = f"*filter\n:INPUT DROP [0:0]\n-A INPUT {' '.join(words)}\nCOMMIT\n"
    chains, problem = xt.saved(text, "ip")
    assert problem == ""
    assert len(chains[0].rules) == 1


@pytest.mark.parametrize(
    ("tables", "programs", "words"),
    [
        ([], {}, "no nft"),
        ([("ip", "filter")], {"iptables": (0, SAVED), "kernel": (0, b"there\n")}, "no nft"),
        ([("ip", "filter")], {"iptables": (0, SAVED), "kernel": (0, b"unknown\n")}, "no nft"),
        ([], {"nft": (1, b"Error: Operation not permitted\x1b[2J")}, "ended with 1: Error: Operation not permitted"),
        ([], {"nft": (0, b"{")}, "cannot be read"),
        ([], {"nft": (0, b'{"nftables": []}')}, "cut short"),
        ([("ip", "filter")], {"nft": (0, JSON)}, "no iptables-legacy-save"),
        ([("ip", "filter")], {"nft": (0, JSON), "iptables": (0, SAVED[:-20])}, "cut short"),
        ([("ip", "filter")], {"nft": (0, JSON), "iptables": (0, b"what?\n")}, "what?"),
    ],
)
def test_rules_that_nobody_can_read(
    tables: list[tuple[str, str]], programs: dict[str, tuple[int, bytes]], words: str
) -> None:
    found = rules_of(tables=tables, **programs)
    assert words in found.problem
    assert "\x1b" not in found.problem


def test_a_dormant_table_filters_nothing() -> None:
    objects = table(LOOPBACK)
    objects[1]["table"]["flags"] = ["dormant"]
    found = nft.ruleset(json.dumps({"nftables": objects}).encode())
    assert found.chains == ()
    assert outcomes(found, packet(22)) == {"accept"}


def test_named_sets_are_what_is_in_them() -> None:
    named = {
        "family": "inet",
        "name": "s",
        "table": "filter",
        "type": "inet_service",
        "elem": [5, {"range": [10, 20]}],
    }
    with_timeout = [{"elem": {"val": 22, "timeout": 60, "expires": 9}}]
    for elements, let, kept in ((named["elem"], 15, 22), (with_timeout, 22, 15)):
        objects = [*table(port("@s")), {"set": {**named, "elem": elements}}]
        found = nft.ruleset(json.dumps({"nftables": objects}).encode())
        assert outcomes(found, packet(let)) == {"accept"}
        assert outcomes(found, packet(kept)) == {"drop"}


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["match", "left", "right", "op", "set", "range", "prefix", "vmap", "key", "data", "accept", "expr"]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=80, deadline=None)
@given(st.lists(_JSON, max_size=3), st.sampled_from(["rule", "chain", "set", "table"]), _JSON)
def test_no_rules_make_it_raise(statements: list[Any], kind: str, other: Any) -> None:
    found = nft.ruleset(json.dumps({"nftables": table(statements)}).encode())
    assert found.problem or outcomes(found, packet(22))
    broken = nft.ruleset(json.dumps({"nftables": [*table(LOOPBACK), {kind: other}]}).encode())
    assert broken.problem or broken.chains


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=100) | st.text(max_size=100).map(str.encode))
def test_no_bytes_make_it_raise(data: bytes) -> None:
    assert nft.ruleset(data).problem
    chains, problem = xt.saved(data.decode("utf-8", "replace"), "ip")
    assert problem or all(chain.family == "ip" for chain in chains)


# -- sockets, results -------------------------------------------------------------------------------------------


def test_listeners_are_those_that_others_can_reach() -> None:
    def socket(protocol: str, local: str, state: str, namespace: str = "net:[1]", *pids: int) -> SocketSeen:
        return SocketSeen(protocol=protocol, local=local, state=state, namespace=namespace, pids=pids)

    seen = RunningSeen(
        enabled=True,
        processes=(
            ProcessSeen(pid=1, exe="/usr/lib/systemd/systemd", namespace="net:[1]"),
            ProcessSeen(pid=9, exe="/usr/sbin/sshd", namespace="net:[1]"),
        ),
        sockets=(
            socket("tcp", "0.0.0.0:22", "listen", "net:[1]", 9),
            socket("tcp6", "[::]:22", "listen"),
            socket("tcp", "127.0.0.1:631", "listen"),
            socket("tcp", "10.0.2.15:40000", "established"),
            socket("udp", "0.0.0.0:68", "unconnected"),
            socket("tcp", "0.0.0.0:99", "listen", "net:[2]"),
            socket("raw", "0.0.0.0:1", "raw"),
            socket("tcp", "nonsense", "listen"),
        ),
    )
    found = [(one.protocol, one.family, one.port, one.program) for one in inside.listeners(seen)]
    assert found == [
        ("tcp", "ipv4", 22, "/usr/sbin/sshd"),
        ("tcp", "ipv6", 22, ""),
        ("udp", "ipv4", 68, ""),
    ]


def test_ranges_of_answers() -> None:
    state = bytearray(b"\xff" * 65536)
    state[1:65536] = bytes(65535)
    state[22] = probe_frames.OPEN
    state[80:90] = bytes([probe_frames.CLOSED]) * 10
    state[100], state[101] = probe_frames.REJECTED4 + 13, probe_frames.REJECTED6 + 1
    state[65535] = probe_frames.UNPROVEN
    assert firewall.answers_of(bytes(state)) == (
        Answers(how="open", first=22, last=22),
        Answers(how="closed", first=80, last=89),
        Answers(how="rejected", first=100, last=100, code=13),
        Answers(how="rejected", first=101, last=101, code=1),
        Answers(how="unproven", first=65535, last=65535),
    )


class FakeGuest:
    """Counts what its sinkhole sends, and says what it is asked. `keeps`: frames that its card does not count.
    `later`: tables of /proc that are others after so many sweeps; `rules`: that it has from then on."""

    def __init__(self, link: FakeLink, keeps: int = 0, **later: Any) -> None:
        self._link, self._keeps = link, keeps
        self._rules = later.pop("rules", JSON)
        self._at, self._later = later.pop("at", 1), later

    def run(self, command: str, **_: object) -> ShellResult:
        rx = self._link.sent - self._keeps * (len(self._link.plan) // 15)
        later = len(self._link.plan) >= self._at
        if "nft -j" in command:
            text = (self._rules if later else JSON).decode()
        elif "file $f" in command:
            text = said(rx=rx, **(self._later if later else {}))
        elif "rx_packets" in command:
            text = f"card eth0 {CARD} rx_packets {rx}\nend\n"
        else:
            text = "2\0enabled\0N\x002\0self\x0042\x001\0end\0"
        return ShellResult(command, 0, text.encode(), b"")


class FakeLink:
    """A prober that is done at once."""

    def __init__(self) -> None:
        self.sent = 50
        self.plan: list[dict[str, Any]] = []

    def stats(self) -> dict[str, Any]:
        return {"tx_frames": self.sent, "addresses": ["10.0.2.15"]}

    def sweep(self, plan: list[dict[str, Any]]) -> list[str]:
        self.plan += plan
        self.sent += 10 * len(plan)
        return [str(one["name"]) for one in self.plan]

    def sweep_status(self) -> dict[str, Any]:
        watched = {
            "address": "10.0.2.15",
            "learned": 1.0,
            "alive": 2.0,
            "last": 3.0,
            "groups": 40,
            "proven": 39,
            "seconds": [[2, 30], [8, 9], [16, 1], [40, 3]],
            "longest_gap": 0.1,
            "heard": [["link", 80, 1, 2.5], ["beyond", 9, 2, 2.6]],
        }
        status = {"running": False, "sweep": "", "left": 0, "answers_dropped": 0, "lost_on_purpose": 0}
        return {**status, "watched": [watched], "unwatched": ["10.0.2.9"], "macs": [CARD]}

    def sweep_result(self, index: int) -> dict[str, Any]:
        asked = self.plan[index]
        return {
            "target": asked["target"],
            "source": asked["target"],
            "asked": 5,
            "frames": 10,
            "repeated": 0,
            "strange": 0,
            "elsewhere": [],
            "paced": "answers",
            "seconds": 0.1,
            "done": True,
            "state": "",
            "kinds": [],
            "heard": {},
            "unproven": [],
        }


def besieged(monkeypatch: pytest.MonkeyPatch, path: Path, families: tuple[str, ...], **guest: Any) -> Any:
    monkeypatch.setattr(firewall, "POLL_S", 0.001)
    monkeypatch.setattr(firewall, "WATCHED_S", 0.05)
    link = FakeLink()

    class FakeMachine:
        sinkholes = (link,)
        shell = FakeGuest(link, **guest)

        def check(self) -> None:
            assert threading.current_thread() is threading.main_thread()

    policy = FirewallPolicy.model_validate({"families": families})
    siege = firewall.Siege(cast("Machine", FakeMachine()), State.LIVE, policy, ProgressLog(path), ready_at=10.0)
    return firewall.observe(siege)


def test_an_address_that_goes_away_is_not_silent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gone = FIB.replace("10.0.2.15", "10.0.2.16")
    seen = besieged(monkeypatch, tmp_path / "p", ("ipv4",), fib_trie=gone)
    # It is tried again by the one that it has now.
    assert (seen.accounts.runs, seen.accounts.problem) == (2, "")
    assert {sweep.target for sweep in seen.sweeps if sweep.family == "ipv4"} == {"10.0.2.16"}
    assert seen.late == ("10.0.2.16",)
    seen = besieged(monkeypatch, tmp_path / "q", ("ipv4",), at=16, fib_trie=gone, keeps=1)
    assert "the guest lost 10.0.2.15" in seen.accounts.problem


def test_a_route_that_goes_away_was_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = besieged(monkeypatch, tmp_path / "p", ("ipv4",), route="")
    assert seen.default_routes == ()


def test_a_group_that_is_joined_late_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    joined = "2    eth0 1     0     01005e0000fb\n2    eth0 1     0     01005e0000fc\n"
    seen = besieged(monkeypatch, tmp_path / "p", ("ipv4",), dev_mcast=joined)
    assert (seen.accounts.runs, len(seen.problems)) == (2, 1)
    seen = besieged(monkeypatch, tmp_path / "q", ("ipv4",), dev_mcast=joined, at=16, keeps=1)
    assert seen.problems[-1] == "the guest joined groups while it was tried: 01005e0000fc"


def test_an_address_that_comes_late_is_tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(firewall, "ADDRESS_S", 0.0)
    only4 = inside.parse
    late = {"if_inet6": IF6, "at": 1}
    monkeypatch.setattr(
        inside, "parse", lambda text: only4(text if "sixth" in text else text.replace("fe80000", "ffffffff0"))
    )
    seen = besieged(monkeypatch, tmp_path / "p", ("ipv4",), **{**late, "if_inet6": IF6 + "sixth\n"})
    assert seen.accounts.runs == 2
    assert ("ipv6", "link-local") in {(one.family, one.scope) for one in seen.addresses}
    assert any(sweep.scope == "link-local" for sweep in seen.sweeps)


def test_rules_that_are_others_afterwards_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    other = json.dumps({"nftables": table(LOOPBACK, port(22), port(23))}).encode()
    seen = besieged(monkeypatch, tmp_path / "p", ("ipv4",), rules=other)
    assert seen.changed
    assert outcomes(seen.again, packet(23)) == {"accept"}
    counted = json.loads(JSON)
    counted["nftables"][-1]["rule"]["expr"][1]["counter"]["packets"] = 7
    seen = besieged(monkeypatch, tmp_path / "q", ("ipv4",), rules=json.dumps(counted).encode())
    assert (seen.changed, seen.again) == (False, None)


def test_elements_of_a_set_are_no_other_rules() -> None:
    def of(*elements: int) -> Any:
        named = {"family": "inet", "name": "s", "table": "filter", "type": "inet_service", "elem": list(elements)}
        return nft.ruleset(json.dumps({"nftables": [*table(port("@s")), {"set": named}]}).encode())

    assert firewall._shape(of(1, 2)) == firewall._shape(of(1, 3))
    assert firewall._shape(of(1, 2), elements=True) != firewall._shape(of(1, 3), elements=True)


@pytest.mark.parametrize("keeps", [0, 3])
def test_the_whole_observer(keeps: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = besieged(monkeypatch, tmp_path / "progress", ("ipv4", "ipv6"), keeps=keeps)
    assert seen.accounts.lost == keeps
    # Where something may be lost, it is tried once more.
    assert seen.accounts.runs == (2 if keeps else 1)
    assert len(seen.sweeps) == 15
    assert {sweep.name for sweep in seen.sweeps} >= {"tcp ipv6 link-local link", "udp ipv4 global beyond"}
    assert seen.default_routes == ("ipv4",)
    (watch,) = seen.boot
    # Up to ready; and the first seconds of an address that is new then.
    assert (watch.alive_s, watch.proven) == (8.0, 39)
    assert [(one.port, one.how, one.before_s) for one in watch.answers] == [(80, "open", 7.5), (9, "closed", 7.4)]
    assert not seen.changed
    # It answered last 13 s before its boot was over.
    assert (watch.longest_gap, seen.late, seen.unwatched) == (13.0, (), ("10.0.2.9",))
