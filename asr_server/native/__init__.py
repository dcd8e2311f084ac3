"""The native core of the beam search, `core`, compiled from the C++ beside this file.

`core` is None where it was not built: the reference search then does the same, far slower.
"""

from importlib import import_module
from typing import Any

core: Any
try:
    core = import_module("asr_server.native.core")
except ModuleNotFoundError:
    core = None
