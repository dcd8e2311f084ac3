#!/bin/sh
# Build KenLM's lmplz and build_binary, which `python -m training.language_model` runs.
#
#     scripts/build_kenlm.sh            # into .venv/bin
#     scripts/build_kenlm.sh FOLDER     # somewhere else; set EARSIGHT_KENLM_BIN=FOLDER for training.language_model
#
# The source is that of the Python module (scripts/fetch_kenlm.sh). PYTHON names the interpreter whose pip downloads it
# (default: the one in .venv).
set -eu

MAX_ORDER=6 # the Python module's own limit
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
target=${1:-$root/.venv/bin}
python=${PYTHON:-$root/.venv/bin/python}

fail() {
    echo "error: $*" >&2
    exit 1
}

if [ -x "$target/lmplz" ] && [ -x "$target/build_binary" ]; then
    echo "lmplz and build_binary are in $target already"
    exit 0
fi
command -v "$python" >/dev/null || fail "no Python at $python: run 'make venv' first or set PYTHON"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

# One line names everything that is missing, so that one apt-get is enough.
packages=
command -v cmake >/dev/null || packages="$packages cmake"
command -v make >/dev/null || packages="$packages make"
if command -v c++ >/dev/null; then
    probe() { # package, header, library
        echo "#include <$2>
int main() {}" >"$work/probe.cc"
        c++ "$work/probe.cc" -o "$work/probe" "-l$3" 2>/dev/null || packages="$packages $1"
    }
    probe libboost-program-options-dev boost/program_options.hpp boost_program_options
    probe libboost-system-dev boost/system/error_code.hpp boost_system
    probe libboost-thread-dev boost/thread.hpp boost_thread
    probe libboost-test-dev boost/test/unit_test.hpp boost_unit_test_framework # KenLM's cmake demands it
else
    packages="$packages g++ libboost-program-options-dev libboost-system-dev libboost-thread-dev libboost-test-dev"
fi
[ -z "$packages" ] || fail "missing to build KenLM:$packages (Debian: apt-get install$packages)"

source=$("$root/scripts/fetch_kenlm.sh" "$python" "$work") || exit 1

log=$work/build.log
{
    cmake -S "$source" -B "$work/build" -DCMAKE_BUILD_TYPE=Release -DKENLM_MAX_ORDER=$MAX_ORDER \
        -DENABLE_INTERPOLATE=OFF -Wno-dev &&
        cmake --build "$work/build" --parallel "$(getconf _NPROCESSORS_ONLN)" --target lmplz build_binary
} >"$log" 2>&1 || {
    tail -n 30 "$log" >&2
    fail "KenLM did not build, see above"
}
mkdir -p "$target"
install -m 755 "$work/build/bin/lmplz" "$work/build/bin/build_binary" "$target"
echo "lmplz and build_binary are in $target, built from $(basename "$source")"
