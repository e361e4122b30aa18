"""The probe in Python, for guests without Perl: it does and says the same, see probe_perl.py and probe.py.

It needs the standard library with ctypes, and is given to the guest as text: what runs there is the guest's Python.
"""

PYTHON = r"""
import ctypes, os, re, signal, struct, sys

machine, listed, method, patience = sys.argv[1:5]
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
libc.ptrace.restype = ctypes.c_long
SEIZE, OPTIONS, EXEC_STOP = 0x4206, 0x00100000 | 0x10, (4 << 16) | (5 << 8) | 0x7F
SMALL, ONE = struct.pack("@LL", 65536, 65536), struct.pack("@LL", 1, 1)
NONE = (ctypes.c_char_p * 1)(None)


def say(*fields):
    texts = [f if isinstance(f, bytes) else str(f).encode() for f in fields]
    data = b"".join(text + b"\0" for text in (b"%d" % len(texts), *texts))
    while data:
        data = data[os.write(1, data):]


def label_of(process):
    for how in ("apparmor", "current"):
        name = "apparmor/current" if how == "apparmor" else "current"
        try:
            descriptor = os.open("/proc/%s/attr/%s" % (process, name), os.O_RDONLY)
            try:
                return how, os.read(descriptor, 8192), 0
            finally:
                os.close(descriptor)
        except OSError as error:
            if how == "apparmor" and error.errno == 2:
                continue
            return how, b"", error.errno


def place(path):
    try:
        found = os.stat(path)
    except OSError:
        return ""
    return "%d:%d" % (found.st_dev, found.st_ino)


def become(ready, failed, path, context, how):
    if not os.read(ready, 1):
        os.kill(os.getpid(), 9)
    stage, errno = "", 0
    if context:
        done = False
        for name in ("/proc/self/attr/apparmor/exec", "/proc/self/attr/exec"):
            try:
                descriptor = os.open(name, os.O_RDWR)
            except OSError:
                continue
            try:
                os.write(descriptor, b"exec " + context[1:])
                done = True
            except OSError as error:
                errno = error.errno
            break
        if not done and context[:1] != b"-":
            stage = "profile"
    if not stage:
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        arguments = (ctypes.c_char_p * 2)(path, None)
        # RLIMIT_CORE of 1 keeps the program that core_pattern names from being started.
        if how == "exit" and (libc.setrlimit(4, ONE) or libc.setrlimit(9, SMALL)):
            os.kill(os.getpid(), 9)
        libc.execve(path, arguments, NONE)
        stage, errno = "exec", ctypes.get_errno()
    os.write(failed, b"%s %d\n" % (stage.encode(), errno))
    os.kill(os.getpid(), 9)


class Late(Exception):
    pass


def late(number, frame):
    raise Late


def stopped(child):
    pid, status = os.waitpid(child, 0)
    if status == EXEC_STOP:
        try:
            exe = os.readlink(b"/proc/%d/exe" % child)
        except OSError:
            exe = b""
        return ("label", *label_of(child), place("/proc/%d/exe" % child), exe), child
    if status & 0xFF == 0x7F:
        return ("failed", "stop", status), child
    return ("failed", "gone", status), 0


def ended(child):
    info = os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    if info.si_code in (2, 3) and info.si_status == 11:
        return ("label", *label_of(child), "", "")
    return ("failed", "ran" if info.si_code == 1 else "gone", info.si_status)


def ask(path, context, how):
    try:
        (ready, go), (said, failed) = os.pipe(), os.pipe()
        child = os.fork()
    except OSError as error:
        return ("failed", "fork", error.errno)
    if not child:
        try:
            os.close(go)
            os.close(said)
            null = os.open("/dev/null", os.O_RDWR)
            for number in (0, 1, 2):
                os.dup2(null, number)
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            become(ready, failed, path, context, how)
        finally:
            os.kill(os.getpid(), 9)
    os.close(ready)
    os.close(failed)
    try:
        if how == "ptrace" and libc.ptrace(SEIZE, child, None, OPTIONS) != 0:
            answer = ("failed", "ptrace", ctypes.get_errno())
        else:
            signal.alarm(int(patience))
            os.write(go, b".")
            if how == "ptrace":
                answer, child = stopped(child)
            else:
                answer = ended(child)
            signal.alarm(0)
    except Late:
        answer = ("failed", "late", 0)
    except OSError as error:
        answer = ("failed", "wait", error.errno)
    signal.alarm(0)
    if child:
        os.kill(child, 9)
        os.waitpid(child, 0)
    if answer[0] == "failed" and answer[1] in ("gone", "late"):
        match = re.match(rb"([a-z]+) ([0-9]+)$", os.read(said, 64))
        if match:
            answer = ("failed", match[1], match[2])
    os.close(go)
    os.close(said)
    return answer


signal.signal(signal.SIGALRM, late)
say("own", *label_of("self"))
say("first", *label_of(1))
with open(listed, "rb") as stream:
    words = stream.read().split(b"\0")[:-1]
labels = set()
own = ask(b"/proc/self/exe", b"", method)
say("trial", method, *own)
if own[0] == "label":
    for at in range(0, len(words) - 1, 2):
        path, context = words[at : at + 2]
        before = place(path)
        answer = ask(path, context, method)
        say("answer", at // 2, before, place(path), *answer)
        match = re.match(rb"(.+) \([a-z]+\)\s*\Z", answer[2], re.S) if answer[0] == "label" else None
        if match:
            labels.add(match[1])
for label in sorted(labels):
    for query in sys.argv[5:]:
        name, match = query.split("=")
        told, errno = b"", 0
        try:
            access = os.open("/sys/kernel/security/apparmor/.access", os.O_RDWR)
            try:
                os.write(access, b"label\0" + label + b"\0" + bytes.fromhex(match))
                told = os.read(access, 4096)
            finally:
                os.close(access)
        except OSError as error:
            errno = error.errno
        say("query", label, name, told, errno)
say("finished")
"""
