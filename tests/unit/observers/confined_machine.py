"""A machine with AppArmor, played by a table: it answers the scripts of observers/confinement."""

from __future__ import annotations

from pytest_osgates.checks.apparmor_model import Evidence, Kind, Networked, StaticScan, UnitSeen
from pytest_osgates.observers.confinement.probe import QUESTIONS
from pytest_osgates.vm.guest.channel import ShellResult

SHA = "5" * 64
NS = "net:[4026531840]"
TCP = " 0: 00000000:0050 00000000:0000 0A 0:0 0:0 0 0 0 {inode} 1 x\n"


def record(*fields: object) -> bytes:
    return b"".join(str(text).encode() + b"\0" for text in (len(fields), *fields))


def blob(tag: str, data: bytes) -> bytes:
    return record("blob", tag, len(data)) + data


class Machine:
    """Answers each script by what this machine is. `labels`: by path, of who is executed; `running`: pid, program,
    label and inode of a socket; `trace`: None: no record."""

    directory = "/run/nonce"

    def __init__(
        self,
        labels: dict[str, str],
        running: tuple[tuple[int, str, str, int], ...] = (),
        *,
        trace: str | None = "",
        scope: int = 2,
        own: str = "unconfined",
        first: str = "unconfined",
        enabled: str = "Y",
        allowed: str = "00000000",
    ) -> None:
        self.labels, self.running, self.trace = labels, running, trace
        self.scope, self.own, self.first, self.enabled = scope, own, first, enabled
        self.allowed = allowed
        self.refused: tuple[str, ...] = ()
        self.files: dict[str, bytes] = {}
        self.clock = 100.0
        self.methods: list[str] = []

    def write_file(self, path: str, data: bytes, *, mode: int = 0o600, timeout: float = 0) -> None:
        self.files[path] = data

    def run(self, command: str, *, timeout: float = 60, max_output: int = 0, shown: str | None = None) -> ShellResult:
        self.clock += 1
        if command.startswith("sleep "):
            self.clock += float(command.split()[1])
            out = b""
        elif command == "cat /proc/uptime":
            out = f"{self.clock:.2f} 1.0\n".encode()
        elif "say again" in command:
            out = self.look()
        elif "probe.list" in command:
            out = self.probed("exit" if "\nm=exit\n" in command else "ptrace")
        elif "tracing_on" in command:
            out = self.traced("echo 1" in command)
        else:
            raise AssertionError(command)
        return ShellResult(command, 0, out, b"")

    def look(self) -> bytes:
        said = [record("enabled", self.enabled), record("scope", self.scope), record("self", 900)]
        links, tables = b"", []
        for pid, path, label, inode in self.running:
            stat = f"{pid} (a) S 1 1 1 0 -1 4194304{' 0' * 12} {pid} 0 0"
            said.append(record("process", pid, stat, "apparmor", label))
            links += f"/proc/{pid}/exe\0{path}\0/proc/{pid}/ns/net\0{NS}\0".encode()
            if inode:
                links += f"/proc/{pid}/fd/3\0socket:[{inode}]\0".encode()
                tables.append(TCP.format(inode=inode))
        table = "sl local rem st\n" + "".join(tables)
        return b"".join(said) + blob(f"{NS}:tcp", table.encode()) + blob("links", links) + record("end")

    def traced(self, starting: bool) -> bytes:
        if self.trace is None:
            return (record("not", "no tracefs") if starting else b"") + record("end")
        if starting:
            return (
                blob("exe", b"/proc/5/exe\0/bin/five\0")
                + blob("task", b"")
                + record("recording", "/t")
                + record("end")
            )
        return blob("lost", b"overrun: 0\n") + blob("trace", self.trace.encode()) + record("end")

    def probed(self, method: str) -> bytes:
        self.methods.append(method)
        words = self.files[f"{self.directory}/probe.list"].split(b"\0")[:-1]
        paths = [word.decode() for word in self.files[f"{self.directory}/probe.paths"].split(b"\0")[:-1]]
        sums = "".join(f"{SHA}  {path}\0" for path in paths).encode()
        refused = method == "ptrace" and self.scope == 3
        trial = ("failed", "ptrace", 1) if refused else ("label", "apparmor", "unconfined", 0, "1:1", "/usr/bin/perl")
        said = [
            record("enabled", self.enabled),
            record("scope", self.scope),
            blob("sums", sums),
            record("with", "perl"),
        ]
        said += [record("own", "apparmor", self.own, 0), record("first", "apparmor", self.first, 0)]
        said.append(record("trial", method, *trial))
        for number in range(0, 0 if refused else len(words), 2):
            path, context = words[number].decode(), words[number + 1].decode()
            label = f"{context[1:]} (enforce)" if context else self.labels.get(path)
            refused = ("failed", "exec", 13 if path in self.refused else 2)
            what = refused if label is None else ("label", "apparmor", f"{label}\n", 0, "1:2", path)
            said.append(record("answer", number // 2, "1:2", "1:2", *what))
        for name in QUESTIONS:
            said.append(record("query", "p", name, f"allow 0x{self.allowed}\ndeny 0x0\n", 0))
        return b"".join(said) + record("finished") + record("done")


def entry(path: str, *kinds: Kind, **more: object) -> Networked:
    reasons = tuple(Evidence(kind=kind, detail="x") for kind in kinds or (Kind.IMPORTS,))
    return Networked(path=path, evidence=reasons, sha256=SHA, **more)  # type: ignore[arg-type]


def scanned(*entries: Networked, units: tuple[UnitSeen, ...] = ()) -> StaticScan:
    return StaticScan(entries=entries, units=units, files=100, elves=10)
