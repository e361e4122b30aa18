"""What the guest says of itself: addresses, routes, counters, rules. Hostile text, bounded; files of proc(5)."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field

from pytest_osgates.checks.apparmor_running import RunningSeen
from pytest_osgates.checks.firewall.rules import Chain, Family, Ruleset
from pytest_osgates.checks.firewall.seen import Address, Listener
from pytest_osgates.observers.firewall import nft, xt
from pytest_osgates.vm.errors import ChannelError
from pytest_osgates.vm.guest.channel import GuestShell
from pytest_osgates.vm.text import one_line

MAX_TEXT = 1 << 20
MAX_RULESET = 16 << 20
MAX_LISTENERS = 500

_STATE = r"""
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
LC_ALL=C
export PATH LC_ALL
for d in /sys/class/net/*; do
    n=${d##*/}; s=$d/statistics
    read -r m 2>/dev/null <"$d/address" || continue
    for c in rx_packets rx_dropped rx_errors rx_missed_errors rx_fifo_errors rx_over_errors; do
        read -r v 2>/dev/null <"$s/$c" || continue
        echo "card $n $m $c $v"
    done
done
for f in snmp netstat snmp6 softnet_stat stat/nf_conntrack fib_trie if_inet6 route ipv6_route dev_mcast \
    ip_tables_names ip6_tables_names; do
    [ -r "/proc/net/$f" ] || continue
    echo "file $f"; cat "/proc/net/$f"
done
for f in net/netfilter/nf_conntrack_count net/ipv4/ip_forward net/ipv6/conf/all/forwarding; do
    [ -r "/proc/sys/$f" ] || continue
    echo "file sys/$f"; cat "/proc/sys/$f"
done
echo end
"""
# For a card's counters, nothing else: it is asked twice between two looks at the other side.
_CARDS = r"""
for d in /sys/class/net/*; do
    n=${d##*/}
    read -r m 2>/dev/null <"$d/address" && read -r v 2>/dev/null <"$d/statistics/rx_packets" || continue
    echo "card $n $m rx_packets $v"
done
echo end
"""
_CARD = re.compile(r"card (\S{1,15}) ([0-9a-f]{2}(?::[0-9a-f]{2}){5}) ([a-z_]{1,30}) (\d{1,20})")
# Counters that grow when something had no room. Not: what a filter or a wrong address drops.
_LOSSES = {
    "card": ("rx_errors", "rx_missed_errors", "rx_fifo_errors", "rx_over_errors"),
    "netstat": ("TcpExt.ListenOverflows", "TcpExt.ListenDrops", "TcpExt.TCPReqQFullDrop", "TcpExt.TCPBacklogDrop"),
    "snmp": ("Udp.RcvbufErrors", "Udp.MemErrors"),
    "snmp6": ("Udp6RcvbufErrors", "Udp6MemErrors"),
}
# Every kernel has these; the others come and go with IPv6, and those of the connection table with it.
_COUNTED = (
    "netstat.TcpExt.ListenOverflows",
    "netstat.TcpExt.ListenDrops",
    "snmp.Udp.RcvbufErrors",
    "softnet.dropped",
)
_TRACKED = ("conntrack.drop", "conntrack.early_drop")
# What got past the filter, answered or not (RFC 4022, RFC 4113).
_REACHED = {
    "tcp": ("Tcp.InSegs",),
    "udp": (
        *("Udp.InDatagrams", "Udp.NoPorts", "Udp.InErrors", "Udp6InDatagrams", "Udp6NoPorts", "Udp6InErrors"),
        *("UdpLite.InDatagrams", "UdpLite.NoPorts"),
    ),
}


@dataclass
class Inside:
    """One look. ``counters`` by name; ``cards``: interface and MAC; ``tables``: of the old iptables; ``groups``:
    hardware addresses of groups that a card takes, by interface; ``tracks``: it has a connection table;
    ``forwarding``: families of which it passes packets on."""

    counters: dict[str, int] = field(default_factory=dict)
    cards: dict[str, str] = field(default_factory=dict)
    addresses: list[Address] = field(default_factory=list)
    routes: list[Family] = field(default_factory=list)
    tables: list[tuple[str, str]] = field(default_factory=list)
    groups: dict[str, list[str]] = field(default_factory=dict)
    tracks: bool = False
    forwarding: list[Family] = field(default_factory=list)

    def card(self, mac: str) -> str:
        """The interface that had or has this address; empty: none."""
        return next((name for name, own in self.cards.items() if own == mac), "")


def look(shell: GuestShell) -> Inside:
    """Ask for all of it.

    :raise GuestError: the guest does not answer, or not to the end.
    """
    answer = shell.run(_STATE, timeout=60, max_output=MAX_TEXT, shown="addresses and counters").check()
    return parse(answer.text)


def received(shell: GuestShell, mac: str) -> int:
    """Packets that the card with this address has taken.

    :raise GuestError: the guest does not say.
    """
    text = shell.run(_CARDS, timeout=60, max_output=1 << 16, shown="").check().text
    if not text.endswith("end\n"):
        raise ChannelError("what the guest says of its cards is cut short")
    for line in text.splitlines():
        match = _CARD.fullmatch(line)
        if match is not None and (match[2], match[3]) == (mac, "rx_packets"):
            return int(match[4])
    raise ChannelError(f"the guest has no card {mac}")


def parse(text: str) -> Inside:
    """Of the script's answer.

    :raise ChannelError: it is cut short.
    """
    if not text.endswith("end\n"):
        raise ChannelError("what the guest says of its network is cut short")
    seen = Inside()
    files: dict[str, list[str]] = {}
    name = ""
    for line in text.splitlines()[:-1]:
        match = _CARD.fullmatch(line) if not name else None
        if match is not None:
            seen.cards[match[1]] = match[2]
            seen.counters[f"card.{match[1]}.{match[3]}"] = int(match[4])
        elif line.startswith("file "):
            name = line[5:]
            files[name] = []
        elif name:
            files[name].append(line)
    for table in ("snmp", "netstat"):
        _pairs(files.get(table, []), table, seen.counters)
    for line in files.get("snmp6", []):
        words = line.split()
        if len(words) == 2 and _is_count(words[1]):
            seen.counters[f"snmp6.{words[0][:60]}"] = int(words[1])
    _columns(files, seen.counters)
    _addresses(files, seen)
    _routes(files, seen)
    # Index, interface, users, users of the device itself, address (net/core/net-procfs.c).
    for line in files.get("dev_mcast", [])[:1000]:
        words = line.split()
        if len(words) == 5 and re.fullmatch(r"[0-9a-f]{12}", words[4]):
            seen.groups.setdefault(one_line(words[1], 15), []).append(words[4])
    seen.tracks = bool(files.get("sys/net/netfilter/nf_conntrack_count"))
    passes: tuple[tuple[Family, str], ...] = (("ipv4", "ipv4/ip_forward"), ("ipv6", "ipv6/conf/all/forwarding"))
    seen.forwarding = [family for family, name in passes if files.get(f"sys/net/{name}", ["0"])[:1] != ["0"]]
    for family, table in (("ip", "ip_tables_names"), ("ip6", "ip6_tables_names")):
        seen.tables += [(family, one_line(line.strip(), 40)) for line in files.get(table, [])[:20] if line.strip()]
    return seen


def _is_count(text: str) -> bool:
    return len(text) <= 20 and text.isascii() and text.isdigit()


def _pairs(lines: list[str], table: str, counters: dict[str, int]) -> None:
    """A line of names, a line of values, each behind the group's name."""
    for names, values in zip(lines[0::2], lines[1::2], strict=False):
        keys, numbers = names.split(), values.split()
        if keys[:1] == numbers[:1] and len(keys) == len(numbers):
            for key, number in zip(keys[1:], numbers[1:], strict=True):
                if _is_count(number):
                    counters[f"{table}.{keys[0].rstrip(':')[:20]}.{key[:60]}"] = int(number)


def _columns(files: dict[str, list[str]], counters: dict[str, int]) -> None:
    """softnet_stat: the second column, dropped for want of room; nf_conntrack: the columns drop and early_drop."""
    total = 0
    for line in files.get("softnet_stat", [])[:1024]:
        words = line.split()
        if len(words) > 1 and re.fullmatch(r"[0-9a-f]{1,16}", words[1]):
            total += int(words[1], 16)
    if files.get("softnet_stat"):
        counters["softnet.dropped"] = total
    lines = files.get("stat/nf_conntrack", [])
    names = lines[0].split() if lines else []
    for wanted in ("drop", "early_drop", "insert_failed"):
        if wanted in names:
            at = names.index(wanted)
            rows = [line.split() for line in lines[1:1024]]
            values = [row[at] for row in rows if len(row) > at and re.fullmatch(r"[0-9a-f]{1,16}", row[at])]
            counters[f"conntrack.{wanted}"] = sum(int(value, 16) for value in values)


def _addresses(files: dict[str, list[str]], seen: Inside) -> None:
    """fib_trie: a leaf, then what it is; if_inet6: address, index, length, scope, flags, name (proc_pid_net(5))."""
    leaf = ""
    found: dict[str, None] = {}
    for line in files.get("fib_trie", []):
        match = re.search(r"\|-- (\d{1,3}(?:\.\d{1,3}){3})$", line)
        if match is not None:
            leaf = match[1]
        elif leaf and "/32 host LOCAL" in line:
            found[leaf] = None
    for text in list(found)[:50]:
        try:
            address = ipaddress.IPv4Address(text)
        except ValueError:
            continue
        if not address.is_loopback:
            seen.addresses.append(Address(address=text, family="ipv4", scope="global"))
    for line in files.get("if_inet6", [])[:200]:
        words = line.split()
        if len(words) != 6 or not re.fullmatch(r"[0-9a-f]{32}", words[0]):
            continue
        scope = {"00": "global", "20": "link-local"}.get(words[3])
        # RFC 4862 5.4: a tentative address, or one that somebody else has, is none yet.
        unusable = re.fullmatch(r"[0-9a-f]{2}", words[4]) is None or int(words[4], 16) & 0x48
        if scope is not None and not unusable:
            text = str(ipaddress.IPv6Address(bytes.fromhex(words[0])))
            interface = one_line(words[5], 15)
            seen.addresses.append(
                Address(
                    address=text,
                    family="ipv6",
                    scope="global" if scope == "global" else "link-local",
                    interface=interface,
                )
            )


def _routes(files: dict[str, list[str]], seen: Inside) -> None:
    """route: interface, destination, ...; mask: all zeros is the default. ipv6_route: destination, length, ...; of
    ``lo`` is the one that refuses."""
    for line in files.get("route", [])[1:]:
        words = line.split()
        if len(words) > 7 and words[1] == "00000000" and words[7] == "00000000" and words[0] != "lo":
            seen.routes.append("ipv4")
            break
    for line in files.get("ipv6_route", []):
        words = line.split()
        if len(words) > 9 and words[0] == "0" * 32 and words[1] == "00" and words[-1] != "lo":
            seen.routes.append("ipv6")
            break


def losses(before: Inside, after: Inside, card: str) -> dict[str, int]:
    """Counters of losses that grew."""
    names = [f"card.{card}.{name}" for name in _LOSSES["card"]]
    names += [f"{table}.{name}" for table in ("netstat", "snmp", "snmp6") for name in _LOSSES[table]]
    names += ["softnet.dropped", *_TRACKED]
    grown = {name: after.counters.get(name, 0) - before.counters.get(name, 0) for name in names}
    return {name: count for name, count in grown.items() if count > 0}


def uncounted(seen: Inside, card: str) -> list[str]:
    """Counters of losses that the guest does not keep: nobody can say that nothing was lost. A kernel may have a
    connection table and not tell how often it was full (CONFIG_NF_CONNTRACK_PROCFS)."""
    names = [f"card.{card}.{name}" for name in ("rx_packets", "rx_dropped", *_LOSSES["card"])]
    tracked = _TRACKED if seen.tracks else ()
    return [name for name in (*names, *_COUNTED, *tracked) if name not in seen.counters]


def loopback(before: Inside, after: Inside) -> int:
    """Packets that the guest sent to itself: they are among what reached its programs."""
    name = "card.lo.rx_packets"
    return max(0, after.counters.get(name, 0) - before.counters.get(name, 0))


def reached(before: Inside, after: Inside) -> dict[str, int]:
    """What got past the filter, by protocol; a protocol that the guest does not count is left out."""
    found = {}
    for protocol, names in _REACHED.items():
        keys = [f"snmp.{name}" if "." in name else f"snmp6.{name}" for name in names]
        if keys[0] in before.counters and keys[0] in after.counters:
            found[protocol] = sum(after.counters.get(key, 0) - before.counters.get(key, 0) for key in keys)
    return found


# -- rules --------------------------------------------------------------------------------------------------------

_NFT = "PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin; command -v nft >/dev/null || exit 127; exec nft -j list ruleset"
_SAVE = r"""
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
for p in {name}-{kind}-save {name}-save; do
    command -v $p >/dev/null 2>&1 || continue
    how=legacy
    case $($p -V 2>/dev/null) in *nf_tables*) how=nft ;; esac
    case $p in *-{kind}-save) ;; *) [ $how = {kind} ] || continue ;; esac
    exec $p
done
exit 127
"""


# Whether the kernel has rules of nftables, too, which only nft(8) would list: without it, its symbols tell.
_NF_TABLES = r"""
if grep -q '[[:space:]]nft_do_chain' /proc/kallsyms 2>/dev/null; then echo there
elif grep -q '[[:space:]]xt_register_table' /proc/kallsyms 2>/dev/null; then echo none
else echo unknown
fi
"""


def rules(shell: GuestShell, tables: list[tuple[str, str]]) -> Ruleset:
    """All that is in force: nft's, under which are those of iptables-nft, ufw and firewalld, and old iptables'.

    :raise GuestError: the guest does not answer.
    """
    done = shell.run(_NFT, timeout=120, max_output=MAX_RULESET, shown="listing the firewall's rules")
    if done.status == 127:
        found = Ruleset(source="none", problem="the guest has no nft(8): nobody can list its rules")
        told = shell.run(_NF_TABLES, timeout=60, max_output=100, shown="asking for nf_tables") if tables else None
        if told is not None and told.text.strip() == "none":
            found = Ruleset(source="none")
    elif done.status != 0:
        said = one_line(done.stderr.decode("utf-8", "replace"), 200)
        return Ruleset(source="nft", problem=f"nft list ruleset ended with {done.status}: {said}")
    else:
        found = _told_better(shell, nft.ruleset(done.stdout))
    old: list[Chain] = []
    for family in dict.fromkeys(family for family, _ in tables):
        program = "iptables" if family == "ip" else "ip6tables"
        saved = shell.run(
            _SAVE.format(name=program, kind="legacy"), timeout=60, max_output=MAX_RULESET, shown=f"{program}-save"
        )
        chains, problem = xt.saved(saved.text, family) if saved.status == 0 else ([], f"no {program}-legacy-save")
        if problem:
            return found.model_copy(update={"problem": f"tables of the old kind are in use: {problem}"})
        old += chains
    names = tuple(f"{family} {table}" for family, table in tables)
    return found.model_copy(update={"chains": (*found.chains, *old), "legacy": names})


def _told_better(shell: GuestShell, found: Ruleset) -> Ruleset:
    """Of what iptables put into nft's tables, nft tells the names of matches and targets alone: asked is the program
    that put it there. What does not fit what nft says stays as it is: not understood."""
    chains = {(chain.family, chain.table, chain.name): chain for chain in found.chains}
    for family, program in (("ip", "iptables"), ("ip6", "ip6tables")):
        if not any(rule.foreign for chain in found.chains if chain.family == family for rule in chain.rules):
            continue
        told = shell.run(
            _SAVE.format(name=program, kind="nft"), timeout=60, max_output=MAX_RULESET, shown=f"{program}-save"
        )
        saved, problem = xt.saved(told.text, family, "") if told.status == 0 else ([], "none")
        for chain in saved if not problem else ():
            known = chains.get((chain.family, chain.table, chain.name))
            if known is not None and len(known.rules) == len(chain.rules):
                chains[chain.family, chain.table, chain.name] = known.model_copy(update={"rules": chain.rules})
    return found.model_copy(update={"chains": tuple(chains.values())})


# -- sockets ------------------------------------------------------------------------------------------------------

_LOCAL = re.compile(r"\[?([0-9a-f:.]{2,45})\]?:(\d{1,5})")


def listeners(running: RunningSeen) -> tuple[Listener, ...]:
    """Sockets that wait for others, in the first process's network namespace; not those of the loopback."""
    programs = {process.pid: process.exe for process in running.processes}
    home = next((process.namespace for process in running.processes if process.pid == 1), "")
    found: dict[tuple[str, str, int], Listener] = {}
    for socket in running.sockets:
        protocol = socket.protocol.removesuffix("6")
        match = _LOCAL.fullmatch(socket.local)
        waits = socket.state == ("listen" if protocol == "tcp" else "unconnected")
        if protocol not in ("tcp", "udp") or match is None or not waits or (home and socket.namespace != home):
            continue
        try:
            address = ipaddress.ip_address(match[1])
        except ValueError:
            continue
        port = int(match[2])
        if address.is_loopback or not 0 < port < 65536:
            continue
        program = next((programs[pid] for pid in socket.pids if pid in programs), "")
        found.setdefault(
            (socket.protocol, str(address), port),
            Listener(
                protocol="tcp" if protocol == "tcp" else "udp",
                family="ipv4" if address.version == 4 else "ipv6",
                address=str(address),
                port=port,
                program=one_line(program, 200),
            ),
        )
    return tuple(found.values())[:MAX_LISTENERS]
