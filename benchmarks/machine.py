"""What the kernel says about the machine and about processes on it; Linux's /proc."""

import os
import platform
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PROC = Path("/proc")
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")  # what products are fast with


@dataclass(frozen=True)
class Usage:
    """Of a process and its children. Memory in MiB; pages that children share are counted in each."""

    cpu_seconds: float
    resident: float
    peak: float


def usage(pid: int) -> Usage:
    family = [pid, *children(pid)]
    statuses = [status(each) for each in family]
    resident, peak = (sum(each.get(name, 0.0) for each in statuses) for name in ("VmRSS", "VmHWM"))
    return Usage(sum(map(cpu_seconds, family)), resident, peak)


def cpu_seconds(pid: int) -> float:
    """User and system time of all threads; 0 for a process that has gone."""
    try:
        fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def busy_seconds() -> float:
    """Processor time of everything on the machine; a guest's stolen time counts, because nobody here had it."""
    user, nice, system, _idle, _waiting, *rest = map(int, (PROC / "stat").read_text().split("\n")[0].split()[1:9])
    return (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")


def children(pid: int) -> list[int]:
    """Children of all its threads, and theirs."""
    found: list[int] = []
    for task in (PROC / str(pid) / "task").glob("*/children"):
        with suppress(FileNotFoundError, ProcessLookupError):
            found += map(int, task.read_text().split())
    return found + [grandchild for child in found for grandchild in children(child)]


def status(pid: int) -> dict[str, float]:
    """The sizes in /proc/PID/status, in MiB."""
    try:
        lines = (PROC / str(pid) / "status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    pairs = (line.partition(":")[::2] for line in lines if line.endswith(" kB"))
    return {name: int(value.split()[0]) / 1024 for name, value in pairs}


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0))


def facts() -> dict[str, object]:
    """What a figure has to be read with."""
    lines = [line.partition(":")[::2] for line in (PROC / "cpuinfo").read_text().splitlines()]
    info = {name.strip(): value.strip() for name, value in reversed(lines)}
    has = info.get("flags", "").split()
    packages = {}
    for name in ("torch", "grpcio", "pocketsphinx"):
        with suppress(PackageNotFoundError):
            packages[name] = version(name)
    return {
        "cores": cores(),
        "cpu": info.get("model name", platform.processor()),
        "cpu_flags": [flag for flag in FLAGS if flag in has],
        "python": platform.python_version(),
        **packages,
    }
