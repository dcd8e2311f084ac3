#!/usr/bin/env bash
# Makes the virtual environment that `make venv` promises: earsight from this checkout with all its extras, at the
# versions of constraints.txt. Safe to run again after it was interrupted.
#
#     PYTHON=python3 scripts/setup_venv.sh .venv
set -euo pipefail
cd "$(dirname "$0")/.."

venv=${1:-.venv}
log=$venv/install.log
PYTHON=${PYTHON:-python3} scripts/check_system.sh

echo "Setting up $venv: several minutes and about 6 GB of disk the first time (details in $log)"
"$venv/bin/python" -c 'import pip' 2>/dev/null || "${PYTHON:-python3}" -m venv --clear "$venv"

# One line that moves on a terminal, nothing but the beginning and the end in a log.
show_progress() {
    local line
    while IFS= read -r line; do
        case $line in Collecting* | Building* | Installing*) ;; *) continue ;; esac
        if [ -t 1 ]; then printf '\r\033[K%4d s  %.90s' "$SECONDS" "$line"; fi
    done
    if [ -t 1 ]; then printf '\r\033[K'; fi
}

if ! "$venv/bin/python" -m pip install --disable-pip-version-check --progress-bar off \
    --constraint constraints.txt --editable '.[dev,microphone,tracing,keras,train,benchmarks]' 2>&1 | tee "$log" | show_progress; then
    tail -n 20 "$log" >&2
    echo "error: pip could not install the packages; the lines above say why, and all of it is in $log" >&2
    exit 1
fi
echo "$venv is ready after $SECONDS s"
