"""What a guest says of its connection table, of packets that it passes on, and of rules without nft(8)."""

from __future__ import annotations

from pathlib import Path

from local_shell import local_shell

from pytest_osgates.observers.firewall import inside

CARD = "card eth0 52:54:00:12:34:56"
COUNTED = "".join(
    f"{CARD} {name} 0\n"
    for name in ("rx_packets", "rx_dropped", "rx_errors", "rx_missed_errors", "rx_fifo_errors", "rx_over_errors")
)
FILES = {
    "snmp": "Udp: InDatagrams RcvbufErrors\nUdp: 0 0\n",
    "netstat": "TcpExt: ListenOverflows ListenDrops\nTcpExt: 0 0\n",
    "softnet_stat": "0000abcd 00000000\n",
}
TABLE = {"sys/net/netfilter/nf_conntrack_count": "7\n"}
TOLD = {"stat/nf_conntrack": "entries drop early_drop\n00000005 00000000 00000000\n"}


def seen(**files: str) -> inside.Inside:
    texts = {**FILES, **files}
    return inside.parse(COUNTED + "".join(f"file {name}\n{text}" for name, text in texts.items()) + "end\n")


def test_a_connection_table_that_nobody_counts() -> None:
    """A kernel without one has no counter of it; one that has it, and does not tell, is another matter."""
    assert inside.uncounted(seen(), "eth0") == []
    assert inside.uncounted(seen(**TABLE, **TOLD), "eth0") == []
    assert inside.uncounted(seen(**TABLE), "eth0") == ["conntrack.drop", "conntrack.early_drop"]
    cut = {"stat/nf_conntrack": "entries drop\n00000005 00000000\n"}
    assert inside.uncounted(seen(**TABLE, **cut), "eth0") == ["conntrack.early_drop"]


def test_whether_packets_are_passed_on() -> None:
    files = {"sys/net/ipv4/ip_forward": "1\n", "sys/net/ipv6/conf/all/forwarding": "0\n"}
    assert seen(**files).forwarding == ["ipv4"]
    assert seen().forwarding == []


def test_the_scripts_ask_a_real_kernel(tmp_path: Path) -> None:
    shell = local_shell(tmp_path)
    found = inside.look(shell)
    assert found.tracks == Path("/proc/sys/net/netfilter/nf_conntrack_count").exists()
    assert ("ipv4" in found.forwarding) == (Path("/proc/sys/net/ipv4/ip_forward").read_text().strip() != "0")
    assert shell.run(inside._NF_TABLES).text.strip() in ("there", "none", "unknown")
