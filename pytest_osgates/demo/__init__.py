"""A small Debian live distribution, built from locked packages: what the gates are tried on."""

from pytest_osgates.demo.build import BuiltIso, ProgressCallback, build_demo_iso
from pytest_osgates.demo.cached import cached_demo_iso
from pytest_osgates.demo.definition import Definition, load_definition
from pytest_osgates.demo.disk import BuiltDisk, build_demo_disk
from pytest_osgates.demo.fault import Fault, FaultIso, add_fault, fault_names, load_fault
from pytest_osgates.demo.lock import Lock, read_lock

__all__ = [
    "BuiltDisk",
    "BuiltIso",
    "Definition",
    "Fault",
    "FaultIso",
    "Lock",
    "ProgressCallback",
    "add_fault",
    "build_demo_disk",
    "build_demo_iso",
    "cached_demo_iso",
    "fault_names",
    "load_definition",
    "load_fault",
    "read_lock",
]
