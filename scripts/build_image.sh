#!/usr/bin/env bash
# Builds the container image.
#
#     scripts/build_image.sh [OPTION...]      # options go to the engine's build command, such as --network host
#
# From the environment: IMAGE (earsight), TARGET (server; tools has the training code and lmplz), ENGINE (docker, podman
# or buildah), and the Dockerfile's build arguments BASE, TORCH and PIP_ARGS.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/container_engine.sh

options=(--tag "$IMAGE" --file Dockerfile)
for name in BASE TORCH PIP_ARGS; do
    if [ -n "${!name:-}" ]; then options+=(--build-arg "$name=${!name}"); fi
done
if [ "${TARGET:-server}" != server ]; then options+=(--target "$TARGET"); fi
# The OCI format has no health check, so the engines that default to it are told to write docker's.
case $ENGINE in
    docker) docker build "${options[@]}" "$@" . ;;
    podman | buildah) "$ENGINE" build --format docker "${options[@]}" "$@" . ;;
    *) fail "ENGINE=$ENGINE is unknown; choose docker, podman or buildah" ;;
esac
echo "built $IMAGE with $ENGINE"
