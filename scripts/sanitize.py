"""Runs the tests of the beam search on a core that is built with the address and undefined-behaviour sanitizers.

.venv/bin/python scripts/sanitize.py                    # or: make sanitize
.venv/bin/python scripts/sanitize.py -k committed       # pytest's options

The core is built in build/sanitize; the installed one stays as it is.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "sanitize"
CORE = "asr_server.native.core"
TESTS = ("test_beam_search.py", "test_native_search.py", "test_hot_words.py", "test_recognizer.py", "test_precision.py")
RUNTIMES = ("libasan.so", "libubsan.so", "libstdc++.so")
ENVIRONMENT = {
    # CPython keeps memory until its end on purpose; a test watches the core's own. Freed memory is soon used again,
    # so that the test sees the process grow only if something leaks.
    "ASAN_OPTIONS": "detect_leaks=0:quarantine_size_mb=1",
    "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
    "PYTHONMALLOC": "malloc",  # else the interpreter's own pools hide what is wrong in them
}


def build() -> Path:
    configure = ["cmake", "-S", str(ROOT), "-B", str(BUILD), "-DCMAKE_BUILD_TYPE=Debug", "-DEARSIGHT_SANITIZE=ON"]
    subprocess.run([*configure, f"-DPython_EXECUTABLE={sys.executable}"], check=True, stdout=subprocess.DEVNULL)
    jobs = str(os.cpu_count() or 1)
    subprocess.run(["cmake", "--build", str(BUILD), "--parallel", jobs], check=True, stdout=subprocess.DEVNULL)
    (core,) = BUILD.glob("core.*.so")
    return core


def again_with_runtimes(core: Path) -> None:
    """This program, in a process that has the sanitizers' runtimes from its start."""
    find = [["g++", f"-print-file-name={name}"] for name in RUNTIMES]
    paths = [subprocess.run(each, check=True, capture_output=True, text=True).stdout.strip() for each in find]
    environment = {**os.environ, **ENVIRONMENT, "LD_PRELOAD": " ".join(paths), "SANITIZED_CORE": str(core)}
    os.execve(sys.executable, [sys.executable, __file__, *sys.argv[1:]], environment)


def load(core: str) -> None:
    """In place of the installed core."""
    spec = importlib.util.spec_from_file_location(CORE, core)
    assert spec and spec.loader
    sys.modules[CORE] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


def main() -> int:
    if "SANITIZED_CORE" not in os.environ:
        again_with_runtimes(build())
    load(os.environ["SANITIZED_CORE"])
    tests = [str(ROOT / "tests" / name) for name in TESTS]
    return int(pytest.main(["-q", *tests, *sys.argv[1:]]))


if __name__ == "__main__":
    sys.exit(main())
