"""Under xdist: what shares a machine goes to one worker, the rest to whoever is free."""

from __future__ import annotations

import json

import pytest

from .conftest import BOOT_ROWS, Bench

NOTED = """
import os
from pathlib import Path

@pytest.fixture(autouse=True)
def noted(request):
    worker = os.environ["PYTEST_XDIST_WORKER"]
    with Path("noted").open("a") as file:
        file.write(f"{request.node.originalname}{request.node.name.partition('[')[2].rstrip(']')} {worker}\\n")

# Bytes in an id, an "@" and a "]" are no business of the scheduler's.
@pytest.mark.parametrize("number", [f"@{n}" for n in range(6)])
@pytest.mark.xdist_group("one")
def test_one(number):
    pass

@pytest.mark.parametrize("number", [f"]@x{n}" for n in range(6)])
@pytest.mark.xdist_group(name="two")
def test_two(number):
    pass

@pytest.mark.parametrize("number", range(12))
def test_alone(number):
    pass
"""


@pytest.mark.parametrize("arguments", [("-n", "2"), ("-n", "2", "--dist", "loadgroup")])
def test_a_group_goes_to_one_worker(bench: Bench, arguments: tuple[str, ...]) -> None:
    bench.rows(NOTED)
    done = bench.run(*arguments).check_manifest()
    assert done.status == 0, done.output
    workers: dict[str, str] = dict(line.split() for line in (bench.path / "noted").read_text().splitlines())
    assert len(workers) == 6 + 6 + 12 + len(BOOT_ROWS) + 1
    for group in ("test_one", "test_two"):
        assert len({worker for test, worker in workers.items() if test.startswith(group)}) == 1
    assert set(workers.values()) == {"gw0", "gw1"}
    groups = json.loads((done.root / "groups.json").read_text())
    assert {"one", "two"} <= set(groups.values())
    assert not any("test_alone" in test for test in groups)


def test_another_distribution_is_the_users_choice(bench: Bench) -> None:
    bench.rows(NOTED)
    done = bench.run("-n", "2", "--dist", "loadfile")
    assert done.status == 0, done.output
    assert len({line.split()[1] for line in (bench.path / "noted").read_text().splitlines()}) == 1
