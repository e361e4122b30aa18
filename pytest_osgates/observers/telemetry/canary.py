"""Signs of life: planted in the guest from outside, so that silence on the wire means something.

A canary is a datagram to an address, and a look-up of a name, that nobody else has; both are sent by the guest's own
programs, by the way that its other traffic takes.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

from pytest_osgates.checks.telemetry.seen import Moment
from pytest_osgates.vm.errors import ChannelError, GuestTimeout
from pytest_osgates.vm.guest.channel import GuestShell
from pytest_osgates.vm.text import one_line

PORT = 9  # discard (RFC 863)
TIMEOUT_S = 90.0
# RFC 5737: 192.0.2.0/24 is for documentation and nobody's.
_ADDRESSES = {Moment.START: "192.0.2.101", Moment.MIDDLE: "192.0.2.102", Moment.END: "192.0.2.103"}
# RFC 2606; unlike .test or .invalid, no resolver answers for it by itself (RFC 6761).
_DOMAIN = "osgates-canary.example.net"

# Where busybox's nc knows UDP at all, it fails for want of an answer after having sent.
_SCRIPT = r"""
a=$1 t=$2 n=$3; echo "clock $(date +%s.%N)"
how=
for try in bash python3 perl busybox nc socat; do
command -v $try >/dev/null 2>&1 || continue
case $try in
bash) bash -c 'exec 3>"/dev/udp/$0/9" && printf %s "$1" >&3' "$a" "$t" ;;
python3) python3 -c 'from socket import *; import sys; a,t=sys.argv[1:]
socket(2,2).sendto(t.encode(),(a,9))' "$a" "$t" ;;
perl) perl -MSocket -e '($a,$t)=@ARGV; socket(S,2,2,17);
send(S,$t,0,sockaddr_in(9,inet_aton($a))) or exit 1' "$a" "$t" ;;
busybox) case $(busybox nc --help 2>&1) in *UDP*) printf %s "$t" | busybox nc -u -w 1 "$a" 9; : ;; *) false ;; esac ;;
nc) printf %s "$t" | nc -u -w 1 "$a" 9 ;;
socat) printf %s "$t" | socat - "UDP:$a:9" ;;
esac >/dev/null 2>&1 && { how=$try; break; }
done
echo "sent $how"
[ -z "$n" ] || { timeout -s KILL 30 getent ahosts "$n" >/dev/null 2>&1; echo "asked $?"; }
"""


@dataclass(frozen=True)
class Canary:
    """One canary, as it will be found again."""

    moment: Moment
    nonce: str

    @property
    def address(self) -> str:
        return _ADDRESSES[self.moment]

    @property
    def name(self) -> str:
        return f"{self.nonce}-{self.moment}.{_DOMAIN}"

    @property
    def token(self) -> str:
        """What the datagram says; a capture's analysis tells all of it (`dissect.HEAD`)."""
        return f"{self.nonce}-{self.moment}"

    @property
    def mark(self) -> str:
        """How a flow's note begins that was made of it."""
        return f"{len(self.token)} bytes, begins with {self.token.encode().hex()}"


@dataclass(frozen=True)
class Planted:
    """What the guest said when a canary was planted."""

    canary: Canary
    sent: bool
    how: str
    why: str
    clock: float | None
    resolved: bool = False


def plant(shell: GuestShell, canary: Canary, *, names: bool) -> Planted:
    """Send it, and look its name up where `names`. A guest that cannot is an outcome, not an error."""
    words = (canary.address, canary.token, canary.name if names else "")
    command = f"set -- {' '.join(shlex.quote(word) for word in words)}\n{_SCRIPT}"
    try:
        done = shell.run(command, timeout=TIMEOUT_S, max_output=4096)
    except (ChannelError, GuestTimeout) as error:
        return Planted(canary, False, "", one_line(str(error), 200), None)
    said = dict(re.findall(r"^(clock|sent|asked) (\S{1,40})$", done.text, re.MULTILINE))
    clock, how, asked = (said.get(word, "") for word in ("clock", "sent", "asked"))
    why = "" if how else "neither bash, python3, perl, busybox, nc nor socat could send a datagram"
    # Every name has an address here: without one, whoever waits for an address stays silent.
    if how and names and asked != "0":
        why = f"looking its name up ended with {asked or 'nothing'}"
    seconds = float(clock) if re.fullmatch(r"\d{1,12}\.\d{1,9}", clock) else None
    return Planted(canary, bool(how), how, why, seconds, asked == "0")
