"""The part of the plugin that is there only with ``--iso``: collection, outcomes, verdicts, the last line."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from pytest_osgates import collection, installed, options
from pytest_osgates.checks.registry import GATES
from pytest_osgates.evidence import dump, safe_name
from pytest_osgates.fixtures.gate import CASE_FIXTURE, ROW_KEY, GateFailed, NotProven
from pytest_osgates.ledger import Launch, Ledger, RowRecord
from pytest_osgates.model import State, Verdict
from pytest_osgates.profiles.schema import KNOWN_GATES
from pytest_osgates.report import terminal
from pytest_osgates.report.live import LiveProgress
from pytest_osgates.run import Request, Run, existing_file, parse_duration, parse_tools
from pytest_osgates.vm import workdir
from pytest_osgates.vm.errors import OsgatesError, UsageError
from pytest_osgates.vm.interrupt import INTERRUPTS, name_of
from pytest_osgates.vm.text import one_line, printable

# On a report, which xdist carries from worker to controller with all that is on it.
ROW_ATTRIBUTE = "osgates_row"
RUN_KEY: pytest.StashKey[Run] = pytest.StashKey()
WORKER_INPUT = "osgates"
_SETTING = re.compile(r"^\s*osgates_\w+\s*=", re.MULTILINE)


def activate(config: pytest.Config) -> None:
    """Check the request, join or begin a run, and register hooks and fixtures.

    :raise pytest.UsageError: with the remedy; nothing was booted.
    """
    joined = getattr(config, "workerinput", {}).get(WORKER_INPUT)
    INTERRUPTS.install()
    config.add_cleanup(INTERRUPTS.restore)
    try:
        if joined is None:
            _check_ini_file(config)
            run = Run.begin(_request(config))
        else:
            run = Run.join(json.loads(joined))
        own = collection.arguments(run.profile, config.invocation_params.dir)
    except (OsgatesError, ValueError, OSError) as error:
        raise pytest.UsageError(printable(str(error), 4000)) from error
    config.stash[RUN_KEY] = run
    for name in {*KNOWN_GATES, *run.profile.gates}:
        config.addinivalue_line("markers", f"{name}: tests of the gate {name!r}")
    if config.args_source is not pytest.Config.ArgsSource.ARGS:
        # No path was named, so the gates are wanted, whatever testpaths says of this directory.
        config.option.pyargs = True
        config.args[:] = ["pytest_osgates.gates", *own]
    from pytest_osgates.fixtures import guest, image, states

    for module in (image, states, guest):
        config.pluginmanager.register(module, f"osgates-{module.__name__.rpartition('.')[2]}")
    config.pluginmanager.register(GateItems(run), "osgates-items")
    if joined is not None:
        from pytest_osgates import scheduling

        config.pluginmanager.register(scheduling.GroupWriter(run), "osgates-groups")
    else:
        if getattr(config.option, "maxworkerrestart", "") is None:
            # xdist 3.8 waits for ever after it replaced a worker (its issues 1323 and 1327); and the machines of the
            # one that died are gone. What was not run is NOT PROVEN.
            config.option.maxworkerrestart = "0"
        swept = workdir.sweep()
        try:
            controller = Controller(config, run, len(swept))
        except OsgatesError as error:
            raise pytest.UsageError(printable(str(error), 4000)) from error
        config.pluginmanager.register(controller, "osgates-controller")
        if config.pluginmanager.hasplugin("xdist"):
            from pytest_osgates import scheduling

            config.pluginmanager.register(scheduling.Scheduler(run), "osgates-scheduler")


def _check_ini_file(config: pytest.Config) -> None:
    """pytest looks for its ini-file before it knows our options, and takes ``FILE`` of ``--iso FILE`` for a path to
    tests: then the ini-file of this directory is not read. Settings must not be lost without a word.

    :raise UsageError: an ini-file of this directory or above has settings of ours and was not read.
    """
    here = config.invocation_params.dir
    for folder in (here, *here.parents):
        for name in ("pytest.ini", ".pytest.ini", "pyproject.toml", "tox.ini", "setup.cfg"):
            path = folder / name
            if path.is_file() and _SETTING.search(path.read_text(encoding="utf-8", errors="replace")):
                if config.inipath is None or config.inipath.resolve() != path.resolve():
                    raise UsageError(
                        f"pytest did not read {path}, which has osgates_* settings: it looks where the ISO is",
                        remedy="write --iso=FILE (with the equals sign), or add -c " + str(path),
                    )
                return


def _request(config: pytest.Config) -> Request:
    def path(name: str) -> Path | None:
        text = options.value(config, name)
        return existing_file(text, name) if text else None

    iso = existing_file(options.value(config, "--iso"), "--iso")
    evidence = Path(options.value(config, "--iso-evidence") or "osgates-evidence")
    return Request(
        iso=iso,
        distro=options.value(config, "--iso-distro"),
        disk=path("--iso-disk"),
        evidence=evidence if evidence.is_absolute() else config.invocation_params.dir / evidence,
        accel=options.value(config, "--iso-accel") or "auto",
        rebuild=_second(options.value(config, "--iso-rebuild")),
        build=options.value(config, "--iso-build"),
        build_output=options.value(config, "--iso-build-output"),
        sums=path("--iso-sums"),
        idle_s=parse_duration(idle) if (idle := options.value(config, "--iso-idle")) else None,
        time=options.value(config, "--iso-time") or "real",
        tools=parse_tools([*config.getini("osgates_tool"), *config.getoption("--iso-tool")]),
    )


def _second(text: str) -> Path | None:
    """The second build under the name that was given: whether that is a link is part of what is judged."""
    if not text:
        return None
    existing_file(text, "--iso-rebuild")
    return Path(text).absolute()


def gate_of(item: pytest.Item | pytest.Function, run: Run) -> str | None:
    """The gate that a test belongs to: its marker that is named like a gate."""
    for marker in item.iter_markers():
        if marker.name in run.profile.gates or marker.name in GATES:
            return marker.name
    return None


def case_of(item: pytest.Item) -> str:
    """The row that a test is for."""
    callspec = getattr(item, "callspec", None)
    return "" if callspec is None else str(callspec.params.get(CASE_FIXTURE, ""))


class GateItems:
    """Runs wherever tests run: rows become tests, and no outcome but a judged PASS counts as one."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def pytest_pycollect_makemodule(self, module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
        """Gates from outside are loaded already."""
        return collection.make_module(self.run.profile, module_path, parent)

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """One test a row of the gate."""
        if CASE_FIXTURE not in metafunc.fixturenames:
            return
        names = [marker.name for marker in metafunc.definition.iter_markers()]
        gate = next((name for name in names if name in self.run.profile.gates), None)
        cases = () if gate is None else self.run.cases(gate)
        live = f"{self.run.profile.firmwares[0]}-channel"
        metafunc.parametrize(
            CASE_FIXTURE,
            [
                # What boots the state `live` stays with what uses it: one boot, not one for each worker.
                pytest.param(case, marks=pytest.mark.xdist_group("osgates-live")) if case == live else case
                for case in cases
            ],
        )

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, session: pytest.Session, items: list[pytest.Item]) -> None:
        """Tests on one state go to one worker, and gates that the profile does not name are not run."""
        kept = []
        for item in collection.keep_own(items, self.run.profile, session):
            gate = gate_of(item, self.run)
            if gate is not None and gate not in self.run.profile.gates:
                continue
            if gate is None and item.name == "test_gate_exists[NOTSET]":
                # No gate is missing: pytest would show a skipped test for the empty list.
                continue
            state = State.LIVE if gate is None else self.run.profile.gates[gate].state_of(case_of(item))
            # Who asks for the state may go on to ask for its machine.
            asks = {"os_live", "os_installed", "os_gate_state"} & set(getattr(item, "fixturenames", ()))
            if asks and state is not State.IMAGE:
                item.add_marker(pytest.mark.xdist_group(f"osgates-{state}"))
            judged = None if gate is None else self.run.profile.gates[gate].gate
            if judged is not None and (machine := judged.machine_of_case(case_of(item))):
                item.add_marker(pytest.mark.xdist_group(f"osgates-{gate}-{machine}"))
            kept.append(item)
        items[:] = kept

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Tell the controller which gates were chosen."""
        names = {gate for item in session.items if (gate := gate_of(item, self.run)) is not None}
        try:
            self.run.write_selected(sorted(names))
        except OsgatesError as error:
            # The disk is full before the first boot: nothing of what follows could be kept.
            if hasattr(session.config, "workerinput"):
                # xdist wants to hear what was collected; each row then says that nothing can be kept of it.
                return
            raise pytest.UsageError(printable(str(error), 4000)) from error

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """A test that is run again starts without the word of its first run."""
        if ROW_KEY in item.stash:
            del item.stash[ROW_KEY]

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Fail closed: a skip, an expected failure or a test that judged nothing is NOT PROVEN."""
        report = yield
        gate = gate_of(item, self.run)
        if gate is None:
            return report
        row = item.stash.get(ROW_KEY, None)
        if row is not None and row.gate != gate:
            row = None
        error = call.excinfo.value if call.excinfo is not None else None
        reason = ""
        if isinstance(error, NotProven | OsgatesError):
            reason = str(error)
        elif report.skipped:
            said = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            reason = f"the test was skipped: {one_line(said)}"
        elif hasattr(report, "wasxfail"):
            reason = "the test is marked as expected to fail, which is no verdict"
        elif report.failed and (row is None or row.verdict is not Verdict.FAIL):
            said = str(report.longrepr) if error is None else f"{type(error).__name__}: {error}"
            reason = f"the test broke {'before' if row is None else 'after'} it judged: {one_line(said)}"
            reason += self._keep_traceback(gate, case_of(item), str(report.longrepr))
        elif report.when == "call" and report.passed and row is None:
            reason = "the test ended without judging anything"
        elif report.when == "call" and report.passed and row is not None and row.verdict is not Verdict.PASS:
            reason = row.reason or "the verdict is not PASS, and the test did not say so"
        if reason:
            if row is None:
                row = RowRecord(gate, case_of(item), Verdict.NOT_PROVEN, reason)
            elif row.verdict is Verdict.PASS:
                row = replace(row, verdict=Verdict.NOT_PROVEN, reason=reason)
            item.stash[ROW_KEY] = row
            if hasattr(report, "wasxfail"):
                del report.wasxfail
            report.outcome = "failed"
            report.longrepr = f"{gate}{_row(row)}: {row.verdict}: {printable(reason, 2000)}"
            if report.when == "call" and row.verdict is not Verdict.FAIL:
                # pytest's JUnit report makes <error> of what fails outside the call, <failure> of what fails in it.
                report.when = "setup"
        elif isinstance(error, GateFailed):
            report.longrepr = f"{gate}{'' if row is None else _row(row)}: FAIL\n{printable(str(error), 20000)}"
        if row is not None:
            # pytest's JUnit report takes the properties of the last report of a test, which is the teardown's.
            report.user_properties = [*report.user_properties, *terminal.junit_properties(row)]
            if report.failed or report.when == "call":
                setattr(report, ROW_ATTRIBUTE, json.dumps(row.to_json()))
        return report

    def _keep_traceback(self, gate: str, case: str, text: str) -> str:
        """A defect in a gate, not a word about the image: where it can be read."""
        name = f"errors/{safe_name(gate)}{'-' if case else ''}{safe_name(case) if case else ''}.txt"
        try:
            self.run.evidence.write(name, text.encode("utf-8", "replace"))
        except OsgatesError:
            return ""
        return f" (traceback in {name})"


def _row(row: RowRecord) -> str:
    return f"[{row.case}]" if row.case else ""


class Controller:
    """Runs once, where the terminal is: keeps the ledger and the evidence, and says the last line."""

    def __init__(self, config: pytest.Config, run: Run, swept: int) -> None:
        self.config = config
        self.run = run
        self.swept = swept
        self.ledger = Ledger(run.profile, run.expected_cases())
        self.interrupted = ""
        self.broken: list[str] = []
        self.live = LiveProgress(run.evidence.root / "progress.jsonl", config)
        self._write()

    # -- evidence -------------------------------------------------------------------------------------------------

    def _write(self, launch: Launch = Launch.NOT_READY, *, ended: bool = False) -> None:
        """Verdicts, and a manifest. Until the run has ended, nothing is ready, whatever the gates say so far."""
        facts = self.run.facts(self.ledger.to_json(), str(launch), sorted(self.ledger.selected), "check")
        evidence = self.run.evidence
        write = evidence.finish if ended else evidence.go_on
        write(dump(facts), self.run.manifest_facts(self.interrupted))

    def _try_write(self) -> None:
        try:
            self._write()
        except OsgatesError as error:
            self._break(error)

    def _break(self, error: Exception) -> None:
        if (said := str(error)) not in self.broken:
            self.broken.append(said)

    # -- hooks ----------------------------------------------------------------------------------------------------

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:  # noqa: ANN401  (xdist's WorkerController)
        """Let a worker join this run."""
        node.workerinput[WORKER_INPUT] = json.dumps(self.run.to_worker())

    def pytest_report_header(self) -> list[str]:
        """What is about to be judged, and on what."""
        return terminal.header(self.run, self.swept)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self) -> None:
        """Show progress from here on."""
        self.live.start()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take each row's word as it comes."""
        self.live.pause()
        row = _row_of(report)
        if row is None:
            return
        self.ledger.select(self.run.read_selected())
        self.ledger.record(row, report.duration)
        self._try_write()

    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, Any] | None:
        """NOT PROVEN has a word and a letter of its own."""
        row = _row_of(report)
        if row is None or not report.failed:
            return None
        if row.verdict is Verdict.NOT_PROVEN:
            return "not proven", "N", ("NOT PROVEN", {"yellow": True})
        return None

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        """Remember why the run ended early."""
        self.interrupted = name_of(excinfo.value)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None, None, None]:
        """After everything else: complete the evidence, set the exit status, say the last line."""
        with INTERRUPTS.deferred(lambda error: None):
            self.live.stop()
            self.ledger.select(self.run.read_selected())
            try:
                yield
            except OSError as error:
                # The terminal, or who read from the pipe, is gone: nobody was told what is proven.
                self.broken.append(f"the summary could not be shown: {error.strerror}")
            if INTERRUPTS.held is not None:
                self.interrupted = name_of(INTERRUPTS.held)
                session.exitstatus = pytest.ExitCode.INTERRUPTED
            self._finish(session)

    def _finish(self, session: pytest.Session) -> None:
        with contextlib.suppress(OsgatesError, OSError):
            installed.forget(self.run.run_id)
        status = self.ledger.exit_status(int(session.exitstatus))
        launch = Launch.NOT_READY if self.broken else self.ledger.launch_at(status)
        try:
            self._write(launch, ended=True)
        except (OsgatesError, OSError, ValueError) as error:
            self._break(error)
            launch = Launch.NOT_READY
            with contextlib.suppress(OsgatesError, OSError, ValueError):
                self._write(launch)
        if self.broken and status in {0, 10}:
            # Verdicts without their evidence prove nothing.
            status = 10
        session.exitstatus = status
        reporter = cast("Any", self.config.pluginmanager.getplugin("terminalreporter"))
        if reporter is not None:
            with contextlib.suppress(OSError):
                terminal.last_lines(reporter, self.run, self.ledger, launch, self.broken)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:  # noqa: ANN401  (pytest's TerminalReporter)
        """A line for each gate, and its findings."""
        terminal.summary(terminalreporter, self.run, self.ledger)


def _row_of(report: pytest.TestReport) -> RowRecord | None:
    said = getattr(report, ROW_ATTRIBUTE, None)
    return None if said is None else RowRecord.from_json(json.loads(said))
