"""Which label the kernel gives to programs when they are executed, without an instruction of theirs being run.

A process of the guest, root's and unconfined, forks for each program; the child becomes the program by execve(2).
It is seized before that (ptrace(2): PTRACE_SEIZE with PTRACE_O_TRACEEXEC and PTRACE_O_EXITKILL), so it stops inside
of execve, before the first instruction of the program and of its dynamic linker, and is killed there; if the tracer
dies, so does it. Where nobody may trace (yama's ptrace_scope=3), the child has no address space left for a program
(RLIMIT_AS): execve then fails behind the point at which it has given the label, and the kernel ends the process by
SIGSEGV before it returns to user space; what has ended keeps its label until it is waited for. Either way is tried
first on the interpreter itself.

What decides is the path that is executed: for a script its own, not that of its interpreter
(security_bprm_creds_for_exec is called once, before the interpreter is looked for: fs/exec.c since Linux 5.8;
before, AppArmor took the first call alone). A unit's AppArmorProfile= is set as systemd sets it, in
/proc/self/attr/apparmor/exec.

The list of programs is a file in the guest: pairs of path and context, each ended by NUL. A context is empty, or one
of `=` (must be there) and `-` (need not), and a profile. The answer is a sequence of records as those of script.py.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from pytest_osgates.observers.confinement import parse_probe
from pytest_osgates.observers.confinement.parse_probe import Probed
from pytest_osgates.observers.confinement.probe_perl import PERL
from pytest_osgates.observers.confinement.probe_python import PYTHON
from pytest_osgates.vm.errors import UsageError
from pytest_osgates.vm.guest.channel import GuestShell

MAX_OUTPUT = 8 << 20
MAX_PROGRAMS = 20_000
# Seconds that one program may take, and what all of them get at most for each.
PATIENCE = 20
EACH = 0.5
_SHORTEST = 60.0

# What a profile that allows everything allows: AA_CLASS_FILE (2) and a path, AA_CLASS_NET (14) with family and type
# as 16-bit numbers, most significant byte first; and, among the files, the profile that it may change to.
FILES = ("/osgates-probe/a", "/etc/osgates-probe", "/home/osgates-probe/a")
QUESTIONS = {
    **{f"file{number}": b"\x02" + path.encode() for number, path in enumerate(FILES)},
    "net": bytes((14, 0, 2, 0, 1)),
    "net9": bytes((15, 0, 2, 0, 1)),
    "change": b"\x02unconfined",
}
QUERIES = tuple(f"{name}={match.hex()}" for name, match in QUESTIONS.items())

# The interpreter must not get a profile of its own: the shell asks for none, which a shell that is confined itself
# may not do. printf and the redirection are the shell's own, so /proc/self is what becomes the interpreter.
_SCRIPT = r"""
LC_ALL=C
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export LC_ALL PATH
cd / || exit 70
say() { printf '%s\0' "$#" "$@" || exit 71; }
d=@DIRECTORY@
m=@METHOD@
first() { l=; { IFS= read -r l <"$1"; } 2>/dev/null; }
first /sys/module/apparmor/parameters/enabled; say enabled "$l"
first /proc/sys/kernel/yama/ptrace_scope; say scope "$l"
if [ -e /sys/fs/selinux/enforce ]; then first /sys/fs/selinux/enforce; say enforce "$l"; fi
if command -v sha256sum >/dev/null 2>&1; then
    xargs -0 -r sha256sum -z -- <"$d/probe.paths" >"$d/probe.sums" 2>/dev/null
    n=$(wc -c <"$d/probe.sums") || exit 72; say blob sums "$((n))"; cat "$d/probe.sums" || exit 73
fi
rm -f "$d/probe.sums"
s=$(($(date +%s)))
say began "$s"
loose() {
    { printf 'exec unconfined' >/proc/self/attr/apparmor/exec; } 2>/dev/null ||
        { printf 'exec unconfined' >/proc/self/attr/exec; } 2>/dev/null || :
}
a=$(uname -m)
# Perl is told numbers of system calls, which are those of 64-bit programs.
case $a in x86_64 | aarch64 | riscv64 | loongarch64) w=8 ;; *) w=0 ;; esac
if (loose; exec perl -e 'exit(length(pack "p", "x") != $ARGV[0])' "$w") >/dev/null 2>&1; then
    say with perl
    (loose; exec perl "$d/probe.pl" "$a" "$d/probe.list" "$m" @PATIENCE@ @QUERIES@) || exit 74
elif (loose; exec python3 -I -S -c 'import ctypes') >/dev/null 2>&1; then
    say with python3
    (loose; exec python3 -I -S "$d/probe.py" "$a" "$d/probe.list" "$m" @PATIENCE@ @QUERIES@) || exit 74
else
    say with ''
fi
say ended "$(($(date +%s)))"
say done
"""


@dataclass(frozen=True)
class Question:
    """A program to be executed. ``profile``: what a unit's AppArmorProfile= says, with its `-` if it has one;
    ``unit`` that unit's name; ``reads``: what is meant, if the program is only there to read or load it."""

    path: str
    profile: str = ""
    unit: str = ""
    reads: str = ""


def probe(shell: GuestShell, questions: Sequence[Question], *, method: str = "ptrace") -> Probed:
    """Ask for all of them. `method`: ``ptrace``, and ``exit`` where the guest forbids that.

    :raise GuestTimeout: the guest took too long for all of them together.
    :raise ChannelError: its answer is cut short, or not what was asked for.
    :raise UsageError: more programs than any image has.
    """
    if len(questions) > MAX_PROGRAMS:
        raise UsageError(f"{len(questions)} networked programs are more than can be asked for ({MAX_PROGRAMS})")
    directory = shell.directory
    shell.write_file(f"{directory}/probe.list", _listed(questions))
    paths = dict.fromkeys(question.path for question in questions)
    shell.write_file(f"{directory}/probe.paths", b"".join(_bytes(path) + b"\0" for path in paths))
    shell.write_file(f"{directory}/probe.pl", PERL.encode())
    shell.write_file(f"{directory}/probe.py", PYTHON.encode())
    answer = _run(shell, method, len(questions))
    if method == "ptrace" and answer.refused:
        # Nobody may trace here: the other way needs no right at all.
        answer = _run(shell, "exit", len(questions))
    return answer


def _run(shell: GuestShell, method: str, count: int) -> Probed:
    command = _SCRIPT
    for name, value in (
        ("@DIRECTORY@", shlex.quote(shell.directory)),
        ("@METHOD@", method),
        ("@PATIENCE@", str(PATIENCE)),
        ("@QUERIES@", " ".join(QUERIES)),
    ):
        command = command.replace(name, value)
    shown = f"labels of {count} programs"
    done = shell.run(command, timeout=_SHORTEST + EACH * count, max_output=MAX_OUTPUT, shown=shown)
    return parse_probe.probed(done.check().stdout, count)


def _listed(questions: Sequence[Question]) -> bytes:
    pieces = []
    for question in questions:
        profile = question.profile
        kind = "-" if profile.startswith("-") else "="
        context = kind + profile.removeprefix("-") if profile else ""
        pieces += [question.path, context]
    return b"".join(_bytes(piece) + b"\0" for piece in pieces)


def _bytes(text: str) -> bytes:
    return text.replace("\0", "").encode("utf-8", "surrogateescape")
