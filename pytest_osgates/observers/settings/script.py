"""One POSIX shell script that asks the guest everything that a policy needs, in one round trip.

Its output is a sequence of records. A record is a number, and that many fields; all of them end with NUL, which no
shell variable can hold. A record ``blob TAG STATUS LENGTH`` is followed by that many bytes. So neither a file's name
nor its content can pass for something else. The last record is ``end``.

It runs with dash and busybox's sh, and needs grep, head, wc, cat, stat, readlink. All names in it come from the
profile, and are quoted. Under emulation each program that is started costs some 20 ms, so what the shell can do by
itself it does.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator

from pytest_osgates.checks.settings.demand import Questions
from pytest_osgates.checks.settings.files import SECRET
from pytest_osgates.checks.settings.units import is_template

MAX_CONTENT = 256 << 10
MAX_TABLE = 1 << 20  # of /proc/self/mountinfo, /etc/passwd and the like
UNIT_PROPERTIES = (
    "Id",
    "LoadState",
    "ActiveState",
    "UnitFileState",
    "FragmentPath",
    "WantedBy",
    "RequiredBy",
    "UpheldBy",
)
# systemd.unit(5), "UNIT FILE LOAD PATH": earlier ones win.
UNIT_PATHS = (
    *("/etc/systemd/system.control", "/run/systemd/system.control", "/run/systemd/transient"),
    *("/run/systemd/generator.early", "/etc/systemd/system", "/run/systemd/system", "/run/systemd/generator"),
    *("/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"),
    "/run/systemd/generator.late",
)
DPKG_FORMAT = r"${Package}\t${Version}\t${Architecture}\t${Status}\n"
RPM_FORMAT = r"%{NAME}\t%{EPOCHNUM}:%{VERSION}-%{RELEASE}\t%{ARCH}\n"

_HEAD = r"""
LC_ALL=C
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin
export LC_ALL PATH
umask 077
mkdir -p -- "$D" || exit 70
# A record that is lost, or a blob of another length than was said, must not go unnoticed: then there is no answer.
say() { printf '%s\0' "$#" "$@" || exit 71; }
# blob TAG STATUS: what lies in $D/o.
blob() { n=$(wc -c <"$D/o") || exit 72; say blob "$1" "$2" "$((n))"; cat "$D/o" || exit 73; }
# text TAG MOST PATH: a file, and one byte more than allowed if it is too large.
text() {
    if [ -e "$3" ]; then head -c "$(($2 + 1))" "$3" >"$D/o" 2>/dev/null; blob "$1" "$?"; else say nofile "$1"; fi
}
has() { command -v "$1" >/dev/null 2>&1; }
"""

_SYSCTLS = r"""
for f in @NAMES@; do
    if [ -e "$R/proc/sys/$f" ]; then say sysctl "$f" 1; else say sysctl "$f" 0; fi
done
(cd "$R/proc/sys" && exec grep -aH '' @NAMES@) >"$D/o" 2>/dev/null
blob sysctls 0
"""

_UNITS = r"""
systemctl --no-pager show -p @PROPERTIES@ -- @UNITS@ >"$D/o" 2>"$D/e"
blob units "$?"
"""

_TEMPLATE = r"""
s=$(systemctl is-enabled -- @UNIT@ 2>"$D/e")
say template @UNIT@ "$s" "$(head -c 300 "$D/e")"
"""

_LINKS = r"""
for d in @PATHS@; do
    for w in "$R$d"/*.wants "$R$d"/*.requires "$R$d"/*.upholds; do
        [ -d "$w" ] || continue
        for u in @UNITS@; do
            if [ -L "$w/$u" ]; then say wants "$u" "${w##*/}" "$(readlink -- "$w/$u")"
            elif [ -e "$w/$u" ]; then say wants "$u" "${w##*/}" ''; fi
        done
    done
done
"""

_STATS = r"""
stat -c '%f %u %g %s|%U|%G|%n' -- @FILES@ >"$D/o" 2>/dev/null; blob lstat 0
stat -L -c '%f %u %g %s|%U|%G|%n' -- @FILES@ >"$D/o" 2>/dev/null; blob stat 0
for q in @FILES@; do
    if [ -L "$q" ]; then
        say link "${q#"$R"}" "$(readlink -- "$q")" "$(readlink -f -- "$q" 2>/dev/null)"
    elif ! [ -e "$q" ]; then
        say gone "${q#"$R"}" "$(stat -- "$q" 2>&1 >/dev/null)"
    fi
done
"""

_CONTENT = r"""
q=$R@PATH@
case $(readlink -f -- "$q" 2>/dev/null) in
    @SECRET@) say content @PATH@ secret ;;
    *) if [ -f "$q" ]; then text content:@PATH@ @MOST@ "$q"; elif [ -e "$q" ]; then say content @PATH@ odd; fi ;;
esac
"""

_EMPTY = r"""
q=$R@PATH@
if [ -d "$q" ]; then
    e=1
    for x in "$q"/* "$q"/.[!.]* "$q"/..?*; do
        if [ -e "$x" ] || [ -L "$x" ]; then e=0; break; fi
    done
    # A directory that cannot be read has no entries either.
    if [ "$e" = 0 ] || ls -A -- "$q" >/dev/null 2>&1; then say empty @PATH@ "$e"; fi
elif [ -f "$q" ]; then
    if [ -s "$q" ] || [ "$(($(head -c 1 "$q" | wc -c)))" != 0 ]; then say empty @PATH@ 0; else say empty @PATH@ 1; fi
fi
"""

# What each line says: hexadecimal digits, or "errno NUMBER". The system call's numbers: asm/unistd_64.h of x86, and
# asm-generic/unistd.h for the others.
_XATTR_PYTHON = """import os, sys
for path in sys.argv[1:]:
    try:
        print(os.getxattr(path, "security.capability").hex())
    except OSError as error:
        print("errno", error.errno)
"""
_XATTR_PERL = r"""my $nr = shift;
for my $path (@ARGV) {
    my ($file, $name, $value) = ("$path\0", "security.capability\0", "\0" x 64);
    my $size = syscall($nr, $file, $name, $value, 64);
    print $size < 0 ? "errno " . ($! + 0) : unpack("H*", substr($value, 0, $size)), "\n";
}
"""
_CAPABILITIES = r"""
case $(uname -m) in
    x86_64) nr=191 ;;
    aarch64 | riscv64 | loongarch64) nr=8 ;;
    *) nr= ;;
esac
if has python3 && python3 -I -c @PYTHON@ @FILES@ >"$D/o" 2>/dev/null; then
    blob xattrs:python3 0
elif [ -n "$nr" ] && has perl && perl -e @PERL@ "$nr" @FILES@ >"$D/o" 2>/dev/null; then
    blob xattrs:perl 0
elif has getfattr; then
    for q in @FILES@; do
        v=$(getfattr --absolute-names -n security.capability -e hex -- "$q" 2>"$D/e")
        say getfattr "${q#"$R"}" "$?" "$v" "$(head -c 300 "$D/e")"
    done
elif has getcap; then
    for q in @FILES@; do
        v=$(getcap -n "$q" 2>"$D/e"); s=$?
        say getcap "${q#"$R"}" "$s" "${v#"$q"}" "$(head -c 300 "$D/e")"
    done
else
    say noxattrs
fi
"""

# The third field of a line of /etc/shadow is the day of the last change, 0 for "at the next login" (shadow(5)). The
# hash itself stays where it is.
_ACCOUNTS = r"""
text passwd @MOST@ "$R/etc/passwd"
text group @MOST@ "$R/etc/group"
if [ -r "$R/etc/shadow" ]; then
    say shadowed
    while IFS=: read -r name hash last rest || [ -n "$name" ]; do
        case $hash in
            '') kind=none ;;
            '!'* | '*'*) kind=locked ;;
            '$'* | _* | ?????????????*) kind=set ;;
            *) kind=unknown ;;
        esac
        say shadow "$name" "$kind" "$last"
    done <"$R/etc/shadow"
fi
hash= rest=
if has getent; then
    for database in passwd group; do
        timeout 30 getent "$database" >"$D/o" 2>/dev/null
        blob "getent-$database" "$?"
    done
fi
"""

_PACKAGES = r"""
if has dpkg-query; then dpkg-query -W -f=@DPKG@ >"$D/o" 2>"$D/e"; blob dpkg "$?"; else say nomanager dpkg; fi
if has rpm; then
    rpm -qa --qf @RPM@ >"$D/o" 2>"$D/e"
    s=$?
    # It leaves out packages whose headers are damaged, says so, and ends with 0.
    if grep -qi '^error' "$D/e"; then s=1; fi
    blob rpm "$s"
else
    say nomanager rpm
fi
if has flatpak; then
    flatpak list --columns=application,version,branch,installation >"$D/o" 2>"$D/e"
    s=$?
    for h in "$R"/root "$R"/home/* "$R"/var/home/*; do
        d=$h/.local/share/flatpak
        [ -d "$d/repo" ] || continue
        FLATPAK_USER_DIR=$d flatpak list --user --columns=application,version,branch,installation >>"$D/o" 2>"$D/e" ||
            s=$?
    done
    blob flatpak "$s"
else
    say nomanager flatpak
fi
"""

# The maps of a kernel thread, and of a process that has ended, have no line.
_PROCESSES = r"""
text preload @MOST@ "$R/etc/ld.so.preload"
set -- "$R"/proc/[0-9]*
grep -alF -e @NONCE@ "$R"/proc/[0-9]*/cgroup "$R"/proc/[0-9]*/environ "$R"/proc/[0-9]*/cmdline >"$D/o" 2>/dev/null
blob own 0
grep -acH '' "$R"/proc/[0-9]*/maps >"$D/o" 2>/dev/null
counts=" $(tr '\n' ' ' <"$D/o") "
mapped() {
    for l in @LIBRARIES@; do
        r=$(readlink -f -- "$R$l" 2>/dev/null)
        if [ -n "$r" ] && [ -f "$r" ]; then r=${r#"$R"}; else r=; fi
        say library "$l" "$r"
        grep -aHF -e "$l" ${r:+-e "$r"} "$R"/proc/[0-9]*/maps >"$D/o" 2>/dev/null
        blob "mapped:$l" 0
    done
}
mapped
live=
for p; do
    case $counts in
        *" $p/maps:0 "*) continue ;;
        *" $p/maps:"*) readable=1 ;;
        *) readable=0 ;;
    esac
    if ! [ -d "$p" ]; then say gone-process "${p##*/}"; continue; fi
    c= g=
    { IFS= read -r c <"$p/comm"; } 2>/dev/null
    { while IFS= read -r line; do
        case $line in
            0::*) g=${line#0::} ;;
            *:name=systemd:*) g=${line#*:name=systemd:} ;;
        esac
    done <"$p/cgroup"; } 2>/dev/null
    say process "${p##*/}" "$readable" "$c" "$(readlink -- "$p/exe" 2>/dev/null)" "$g"
    live="$live ${p##*/}"
done
# Once more: a process that was just being started has its libraries by now, and one that has ended is none.
mapped
for p in $live; do
    if [ -d "$R/proc/$p" ]; then say alive "$p"; fi
done
"""

_SELINUX = r"""
text filesystems @MOST@ "$R/proc/filesystems"
text enforce 16 "$R/sys/fs/selinux/enforce"
text selinux-config @MOST@ "$R/etc/selinux/config"
"""

_LOCKDOWN = r"""
text lockdown 4096 "$R/sys/kernel/security/lockdown"
if [ -e "$R/sys/kernel/security/lsm" ]; then say securityfs; fi
"""


def build(questions: Questions, *, nonce: str, directory: str, root: str = "") -> str:
    """The script. `directory`: where it may write. `root`: what to look at in place of /, for trying it out."""
    return "".join(_parts(questions, nonce=nonce, directory=directory, root=root))


def _parts(questions: Questions, *, nonce: str, directory: str, root: str) -> Iterator[str]:
    yield f"R={shlex.quote(root)}\nD={shlex.quote(directory)}\n{_HEAD}"
    if questions.sysctls:
        yield _fill(_SYSCTLS, NAMES=_words(questions.sysctls))
    if questions.command_line:
        yield f'text cmdline {MAX_TABLE} "$R/proc/cmdline"\n'
    if questions.units:
        yield from _units(questions.units)
    if questions.files:
        yield from _files(questions, root)
    if questions.mounts:
        yield f'text mounts {MAX_TABLE} "$R/proc/self/mountinfo"\n'
    if questions.accounts:
        yield _fill(_ACCOUNTS, MOST=str(MAX_TABLE))
    if questions.packages:
        yield _fill(_PACKAGES, DPKG=shlex.quote(DPKG_FORMAT), RPM=shlex.quote(RPM_FORMAT))
    if questions.libraries:
        yield _fill(
            _PROCESSES, MOST=str(MAX_CONTENT), NONCE=shlex.quote(nonce), LIBRARIES=_words(questions.libraries)
        )
    if questions.selinux:
        yield _fill(_SELINUX, MOST=str(MAX_CONTENT))
    if questions.lockdown:
        yield _LOCKDOWN
    yield 'rm -f -- "$D/o" "$D/e"\nsay end\n'


def _units(units: Iterable[str]) -> Iterator[str]:
    plain = [unit for unit in units if not is_template(unit)]
    if plain:
        yield _fill(_UNITS, PROPERTIES=",".join(UNIT_PROPERTIES), UNITS=_words(plain))
        yield _fill(_LINKS, PATHS=_words(UNIT_PATHS), UNITS=_words(plain))
    for unit in units:
        if is_template(unit):
            yield _fill(_TEMPLATE, UNIT=shlex.quote(unit))


def _files(questions: Questions, root: str) -> Iterator[str]:
    files = questions.files
    yield _fill(_STATS, FILES=_words(root + path for path in files))
    for path, question in files.items():
        if question.content:
            secret = "|".join(shlex.quote(root + name) for name in sorted(SECRET))
            yield _fill(_CONTENT, PATH=shlex.quote(path), SECRET=secret, MOST=str(MAX_CONTENT))
        if question.empty:
            yield _fill(_EMPTY, PATH=shlex.quote(path))
    capable = [root + path for path, question in files.items() if question.capabilities]
    if capable:
        yield _fill(
            _CAPABILITIES,
            FILES=_words(capable),
            PYTHON=shlex.quote(_XATTR_PYTHON),
            PERL=shlex.quote(_XATTR_PERL),
        )


def _words(names: Iterable[str]) -> str:
    return " ".join(shlex.quote(name) for name in names)


def _fill(template: str, **values: str) -> str:
    """Values for ``@NAME@``, all in one pass: what is put in is not looked at again."""
    return re.sub("@([A-Z]+)@", lambda match: values[match[1]], template)
