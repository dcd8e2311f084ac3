#!/bin/sh
# Brings KenLM's source, the package that pip installs the Python module from, at the version of constraints.txt: a
# model file then always fits what reads it.
#
#     scripts/fetch_kenlm.sh PYTHON FOLDER      # makes FOLDER/kenlm-VERSION and prints that path
#
# From the environment: EARSIGHT_KENLM_SOURCE, a folder that has it already (then nothing is fetched), and PIP_ARGS,
# options for pip.
set -eu

python=$1
folder=$2
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
version=$(sed -n 's/^kenlm==//p' "$root/constraints.txt")

if [ -n "${EARSIGHT_KENLM_SOURCE:-}" ]; then
    echo "$EARSIGHT_KENLM_SOURCE"
    exit 0
fi
if [ ! -e "$folder/kenlm-$version/lm/model.cc" ]; then
    mkdir -p "$folder"
    # pip asks the package for its metadata even when it only downloads; setuptools is enough for that.
    "$python" -c 'import setuptools' 2>/dev/null || "$python" -m pip install --quiet setuptools wheel >&2
    # shellcheck disable=SC2086  # PIP_ARGS are several words
    "$python" -m pip download ${PIP_ARGS:-} --quiet --disable-pip-version-check --no-deps --no-binary kenlm --no-build-isolation \
        --dest "$folder" "kenlm==$version" >&2 || {
        echo "error: pip could not download kenlm==$version; EARSIGHT_KENLM_SOURCE=FOLDER names an unpacked one" >&2
        exit 1
    }
    tar -xzf "$folder/kenlm-$version.tar.gz" -C "$folder"
fi
echo "$folder/kenlm-$version"
