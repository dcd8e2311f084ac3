"""The native kernels' library: compiled by g++ on first use, cached, called through ctypes."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.utils import cpp_extension

_SOURCES = ("unit.cpp", "images.hpp", "window.hpp", "channels.hpp", "vectors.hpp")
_FLAGS: tuple[str, ...] = ("-std=c++20", "-O3", "-march=native", "-shared", "-fPIC", "-fopenmp")
# Parts of -ffast-math, which as a whole would link code that turns off subnormal numbers for the whole process.
_FLAGS += ("-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math", "-freciprocal-math")
_KEEP_MEMORY = {-1: 2**31 - 1, -3: 32 << 20}  # malloc.h: M_TRIM_THRESHOLD, and M_MMAP_THRESHOLD at its limit


def call(name: str, *arguments: Tensor | float | None) -> None:
    """The kernel `name` of unit.cpp. Tensors are passed by address, None as a null pointer."""
    getattr(load(), name)(*map(_argument, arguments))


def _argument(value: Tensor | float | None) -> ctypes.c_void_p | ctypes.c_int64 | ctypes.c_double:
    if value is None:
        return ctypes.c_void_p(None)
    if isinstance(value, Tensor):
        return ctypes.c_void_p(value.data_ptr())
    return ctypes.c_int64(value) if isinstance(value, int) else ctypes.c_double(value)


@cache
def load() -> ctypes.CDLL:
    """Raises RuntimeError when the kernels cannot be built."""
    folder = Path(__file__).parent
    digest = hashlib.sha256(" ".join((*_FLAGS, torch.__version__)).encode())
    for source in _SOURCES:
        digest.update((folder / source).read_bytes())
    cache_folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "earsight"
    cached = cache_folder / f"unit-{digest.hexdigest()[:16]}.so"
    if not cached.exists():
        _compile(folder / _SOURCES[0], cached)
    return ctypes.CDLL(str(cached))


def keep_freed_memory() -> None:
    """Lets glibc's malloc keep what a step frees for the next one: to get it anew costs a page fault each 4 KiB."""
    process = ctypes.CDLL(None)
    if hasattr(process, "mallopt"):  # glibc has it; another library may not
        for option, value in _KEEP_MEMORY.items():
            process.mallopt(option, value)


def _compile(source: Path, target: Path) -> None:
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise RuntimeError(
            f"the native kernel needs a C++ compiler, and {compiler!r} is not there: install g++ or set CXX"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_suffix(f".{os.getpid()}")  # several processes may compile at once; renaming is atomic
    includes = [f"-I{path}" for path in cpp_extension.include_paths()]
    libraries = [f"-L{path}" for path in cpp_extension.library_paths()]
    command = [compiler, *_FLAGS, *includes, str(source), "-o", str(unfinished), *libraries, "-lc10", "-ltorch_cpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the native kernel did not compile with {compiler}: {done.stderr.strip().splitlines()[0]}")
    unfinished.replace(target)
