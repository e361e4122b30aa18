"""One POSIX shell script that lists processes and sockets, in one round trip.

Its output is a sequence of records: a number, and that many fields, all ended by NUL, which no shell variable can
hold. A record ``blob TAG LENGTH`` is followed by that many bytes. The last record is ``end``. So neither the name of
a program nor of a profile can pass for something else.

It needs cat, find (GNU, for -printf), mktemp, stat, wc; nsenter(1) for namespaces without a process. What
it starts itself has the shell that runs it, `$$`, for an ancestor, and is left out by that.
"""

from __future__ import annotations

TABLES = (
    *("tcp", "tcp6", "udp", "udp6", "udplite", "udplite6", "raw", "raw6", "icmp", "icmp6"),
    *("packet", "sctp/eps"),
)

SCRIPT = r"""
LC_ALL=C
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin
export LC_ALL PATH
umask 077
say() { printf '%s\0' "$#" "$@" || exit 71; }
t=$(mktemp) || exit 70
trap 'rm -f "$t" "$t.n"' EXIT
blob() { n=$(wc -c <"$t") || exit 72; say blob "$1" "$((n))"; cat "$t" || exit 73; }
first() { l=; { IFS= read -r l <"$1"; } 2>/dev/null; }

first /sys/module/apparmor/parameters/enabled; say enabled "$l"
first /sys/kernel/security/lsm; say lsm "$l"
first /proc/sys/kernel/yama/ptrace_scope; say scope "$l"
say self "$$"

for d in /proc/[0-9]*; do
    first "$d/stat"; stat=$l
    [ -n "$stat" ] || continue
    how=apparmor
    if [ -e "$d/attr/apparmor/current" ]; then first "$d/attr/apparmor/current"
    else how=current; first "$d/attr/current"; fi
    say process "${d#/proc/}" "$stat" "$how" "$l"
done

# Programs, namespaces and sockets of all processes by one find(1): readlink(1) would be a process for each.
find /proc/[0-9]*/exe /proc/[0-9]*/ns/net /proc/[0-9]*/fd -maxdepth 1 -type l \
    \( ! -path '*/fd/*' -o -lname 'socket:*' \) -printf '%p\0%l\0' >"$t" 2>/dev/null
blob links

# Once more: who became another program meanwhile has another label, and the first one was not this program's. Who is
# not there any more has no program by now.
for d in /proc/[0-9]*; do
    first "$d/stat"; stat=$l
    [ -n "$stat" ] || continue
    if [ -e "$d/attr/apparmor/current" ]; then first "$d/attr/apparmor/current"
    else first "$d/attr/current"; fi
    say again "${d#/proc/}" "$l" "$stat"
done

seen=' '
stat -L -c '%i %n' /proc/[0-9]*/ns/net >"$t.n" 2>/dev/null
while read -r i f; do
    case $seen in *" $i "*) continue ;; esac
    # Only who is still there, in the same namespace, speaks for it; else the next process does.
    cat "${f%/ns/net}/net/tcp" >"$t" 2>/dev/null && [ "$(stat -L -c %i "$f" 2>/dev/null)" = "$i" ] || continue
    seen="$seen$i "
    blob "net:[$i]:tcp"
    for n in @OTHERS@; do
        # A table that is not there is one of a protocol that this kernel has not.
        if cat "${f%/ns/net}/net/$n" >"$t" 2>/dev/null; then blob "net:[$i]:$n"; fi
    done
done <"$t.n"

for f in /run/netns/* /var/run/netns/* /run/docker/netns/*; do
    [ -e "$f" ] || continue
    i=$(stat -L -c %i -- "$f" 2>/dev/null)
    case $seen in *" $i "*) continue ;; esac
    seen="$seen$i "
    for n in @TABLES@; do
        if nsenter --net="$f" cat "/proc/net/$n" >"$t" 2>/dev/null; then blob "net:[$i]:$n"
        elif [ "$n" = tcp ]; then say unseen "$f" "net:[$i]"; fi
    done
done
say end
"""
SCRIPT = SCRIPT.replace("@TABLES@", " ".join(TABLES)).replace("@OTHERS@", " ".join(TABLES[1:]))
