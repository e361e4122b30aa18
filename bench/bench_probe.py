"""How fast the kernel is asked which label it gives to a program. Run on a quiet machine:

    .venv/bin/python bench/bench_probe.py            every networked program of the demo, in the emulated demo
    .venv/bin/python bench/bench_probe.py --iso F    of another live ISO that boots to multi-user.target

The floor, in the same guest and the same run, is a shell there that starts /bin/true as many times, and waits for it.
Ours includes what is said on the channel. The best of several rounds; no answer may be missing.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from pytest_osgates.checks import boot as knowledge
from pytest_osgates.demo import cached_demo_iso
from pytest_osgates.image.rootfs import open_root
from pytest_osgates.observers.boot import Boot, Plan
from pytest_osgates.observers.confinement.probe import Question, probe
from pytest_osgates.observers.networked.scan import scan
from pytest_osgates.paths import cache_dir
from pytest_osgates.profiles.schema import BootSection
from pytest_osgates.progress import ProgressLog
from pytest_osgates.vm import host
from pytest_osgates.vm.guest.channel import GuestShell
from pytest_osgates.vm.guest.injection import Injection, new_nonce
from pytest_osgates.vm.machine import Machine
from pytest_osgates.vm.spec import Firmware, MachineSpec

ROUNDS = 3
WANTED = 30.0
BOOT_DEADLINE_S = 900.0


def floor(shell: GuestShell, count: int) -> float:
    """Seconds that the guest needs to start `count` programs that do nothing."""
    begun = time.perf_counter()
    shell.run(f"i=0; while [ $i -lt {count} ]; do /bin/true; i=$((i+1)); done", timeout=300.0).check()
    return time.perf_counter() - begun


def ours(shell: GuestShell, questions: list[Question], method: str) -> float:
    """Seconds for all labels."""
    begun = time.perf_counter()
    seen = probe(shell, questions, method=method)
    took = time.perf_counter() - begun
    unanswered = len(questions) - sum(not answer.error for answer in seen.answers)
    if seen.problem or unanswered or seen.method != method:
        raise SystemExit(
            f"{method}: {seen.problem or 'no problem'}, {unanswered} without an answer, by {seen.method}"
        )
    return took


def main(iso: Path) -> None:
    """Print the figures."""
    with open_root(iso) as view:
        questions = [Question(entry.path) for entry in scan(view).entries]
    nonce = new_nonce()
    spec = MachineSpec(
        name="bench",
        firmware=Firmware.BIOS,
        cdrom=iso,
        disks=(),
        memory_mib=2048,
        cpus=2,
        cpu_model=None,
        tpm=True,
        channel=nonce,
        smbios_strings=Injection(nonce).smbios_strings(),
    )
    with tempfile.TemporaryDirectory() as scratch:
        records = Path(scratch)
        emulator = host.select("tcg", cache_dir("probe"))
        with Machine(spec, emulator, records, knowledge.patterns(emulated=True)) as machine:
            plan = Plan("bench", BootSection(ready_target="multi-user.target"), None, BOOT_DEADLINE_S)
            if not Boot(machine, plan, ProgressLog(records / "progress.jsonl")).run():
                raise SystemExit("the guest did not boot")
            least = min(floor(machine.shell, len(questions)) for _ in range(ROUNDS))
            for method in ("ptrace", "exit"):
                took = min(ours(machine.shell, questions, method) for _ in range(ROUNDS))
                print(
                    f"{method:<8} {len(questions)} programs in {took:5.2f} s: {len(questions) / took:5.1f}/s   "
                    f"wanted {WANTED:.0f}/s   floor {least:5.2f} s   ratio {took / least:.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iso", type=Path)
    given = parser.parse_args().iso
    main(given or cached_demo_iso(lambda _stage, _fraction: None))
