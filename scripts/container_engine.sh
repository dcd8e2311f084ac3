# Sourced by build_image.sh and check_image.sh: which program builds and runs images here.

fail() { echo "error: $*" >&2; exit 1; }

# docker counts only when its daemon answers; the other two have none.
find_engine() {
    if command -v docker >/dev/null && docker info >/dev/null 2>&1; then echo docker
    elif command -v podman >/dev/null; then echo podman
    elif command -v buildah >/dev/null; then echo buildah
    else fail "no container engine: install docker (and start its daemon), podman or buildah"; fi
}

ENGINE=${ENGINE:-$(find_engine)}
IMAGE=${IMAGE:-earsight}
