#!/usr/bin/env bash
# Proves the image that build_image.sh built: starts it, waits for its health check, transcribes the bundled sample and
# classifies the bundled image inside it, makes sure that it has no compiler and no root, and stops it with SIGTERM.
#
#     scripts/check_image.sh
#
# From the environment: IMAGE and ENGINE as in build_image.sh. With buildah, which has no networks of its own, PORT is
# the port to take on this machine (50051).
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/container_engine.sh

PORT=${PORT:-50051}
SITE='/opt/earsight/lib/python3*/site-packages'
name=earsight-check-$$
log=$(mktemp)

start() {
    case $ENGINE in
        docker | podman) "$ENGINE" run --detach --name "$name" "$IMAGE" >/dev/null ;;
        buildah)
            buildah from --name "$name" "$IMAGE" >/dev/null
            local command
            command=$(buildah inspect --format \
                '{{range .OCIv1.Config.Entrypoint}}{{.}} {{end}}{{range .OCIv1.Config.Cmd}}{{.}} {{end}}' "$name")
            # shellcheck disable=SC2086  # the words of the command
            buildah run "$name" -- $command --port "$PORT" >"$log" 2>&1 &
            runner=$!
            ;;
    esac
}

inside() {
    case $ENGINE in
        docker | podman) "$ENGINE" exec "$name" "$@" ;;
        buildah) buildah run "$name" -- "$@" ;;
    esac
}

logs() { if [ "$ENGINE" = buildah ]; then cat "$log"; else "$ENGINE" logs "$name" 2>&1; fi; }

running() {
    case $ENGINE in
        docker | podman) [ "$("$ENGINE" inspect --format '{{.State.Running}}' "$name")" = true ] ;;
        buildah) kill -0 "$runner" 2>/dev/null ;;
    esac
}

# buildah does not pass signals on: the server is the last of its line of children.
server_process() {
    local process=$runner child
    while child=$(pgrep --parent "$process" --oldest); do process=$child; done
    echo "$process"
}

# Sends SIGTERM and leaves the server's exit status in $status.
stop() {
    status=0
    case $ENGINE in
        docker | podman)
            "$ENGINE" stop --time 30 "$name" >/dev/null
            status=$("$ENGINE" inspect --format '{{.State.ExitCode}}' "$name")
            ;;
        buildah)
            kill -TERM "$(server_process)"
            wait "$runner" || status=$?
            runner=
            ;;
    esac
}

remove() {
    case $ENGINE in
        docker | podman) "$ENGINE" rm --force "$name" ;;
        buildah) if [ -n "${runner:-}" ]; then kill "$(server_process)" && wait "$runner"; fi; buildah rm "$name" ;;
    esac >/dev/null 2>&1 || true
    rm -f "$log"
}
trap remove EXIT

say() { printf '%-14s %s\n' "$1" "$2"; }

[ "$ENGINE" = buildah ] || PORT=50051
start
began=$SECONDS
until inside python -m asr_server.healthcheck "127.0.0.1:$PORT" 2>/dev/null; do
    if ! running || [ $((SECONDS - began)) -gt 120 ]; then
        logs >&2
        fail "the server in $IMAGE did not become healthy"
    fi
    sleep 1
done
say healthy "after $((SECONDS - began)) s"

user=$(inside id -u)
[ "$user" != 0 ] || fail "the image runs as root"
say user "$user"
for tool in cc gcc g++ c++ make cmake; do
    if inside sh -c "command -v $tool" >/dev/null 2>&1; then fail "the image contains $tool"; fi
done
say compilers none

transcript=$(inside sh -c "asr-server transcribe --server 127.0.0.1:$PORT $SITE/asr_server/samples/*.wav")
say transcript "$transcript"
labels=$(inside sh -c "vision-zoo classify --server 127.0.0.1:$PORT $SITE/vision_zoo/samples/*.png")
say label "${labels%%$'\n'*}"
[ -n "$transcript" ] && [ -n "$labels" ] || fail "an answer was empty"

stop
[ "$status" = 0 ] || { logs >&2; fail "the server ended with status $status on SIGTERM"; }
say SIGTERM "ended with status 0"
