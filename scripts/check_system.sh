#!/usr/bin/env bash
# Says in one line what the set-up needs and this machine lacks, before anything long begins.
#
#     PYTHON=python3.12 scripts/check_system.sh
set -euo pipefail

python=${PYTHON:-python3}
fail() { echo "error: $*" >&2; exit 1; }

command -v "$python" >/dev/null \
    || fail "no '$python' on this machine; earsight needs Python 3.11 or newer (Debian: apt-get install python3 python3-venv python3-dev g++)"
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
    || fail "'$python' is Python $version; earsight needs 3.11 or newer: name another one, as in make run PYTHON=python3.11"

missing=()
"$python" -c 'import ensurepip, venv' 2>/dev/null || missing+=("python$version-venv")
# KenLM comes as source and is compiled as a Python extension.
header=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include") + "/Python.h")')
[ -e "$header" ] || missing+=("python$version-dev")
command -v g++ >/dev/null || missing+=("g++")
command -v make >/dev/null || missing+=("make")
[ ${#missing[@]} -eq 0 ] || fail "missing on this machine: ${missing[*]} (Debian: apt-get install ${missing[*]})"
