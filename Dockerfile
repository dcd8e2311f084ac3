# Both services in one image: no compilers in it, no root.
#
#     make image                                         # docker, podman or buildah, whichever is there
#     docker run --rm -p 50051:50051 earsight            # the shipped models
#     docker run --rm -p 50051:50051 -v ./mine:/models/mine:ro earsight    # and a bundle of yours beside them
#
# Build arguments:
#     BASE      a Debian (or derived) image with Python 3.11 or newer in its packages
#     TORCH     requirements for torch and torchvision in place of the pinned ones, which carry CUDA and make up most of
#               the image's size; the CPU builds are named as in "torch==2.15.0+cpu torchvision==0.29.2+cpu"
#     PIP_ARGS  options for pip, such as the index that has the builds named in TORCH
# Targets: the last one is the server; `--target tools` has the training code, KenLM's lmplz and a compiler.

ARG BASE=debian:bookworm-slim

FROM ${BASE} AS python
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates python3 \
    && rm -rf /var/lib/apt/lists/*
ENV PATH=/opt/earsight/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1


FROM python AS builder
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ make python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
# The dependencies are a layer of their own: installing empty packages brings them, and a change of the sources does
# not bring them again.
ARG TORCH=""
ARG PIP_ARGS=""
COPY pyproject.toml constraints.txt LICENSE ./
RUN touch README.md \
    && mkdir asr_server vision_zoo training \
    && grep -vE "^(${TORCH:+torch|torchvision})==" constraints.txt > /opt/constraints.txt \
    && python3 -m venv /opt/earsight \
    && EARSIGHT_NATIVE=0 pip install --no-cache-dir --progress-bar off $PIP_ARGS --constraint /opt/constraints.txt \
        $TORCH .
COPY . .
RUN pip install --no-cache-dir --no-deps --force-reinstall $PIP_ARGS .
# What takes the shipped networks seconds to compile at their first start is done here.
ENV XDG_CACHE_HOME=/opt/earsight/cache
RUN cd / && python -c "from vision_zoo import bundle, classifier; \
    [classifier.Classifier(bundle.load(each)).close() for each in bundle.shipped()]"


FROM builder AS tools
RUN apt-get update \
    && apt-get install -y --no-install-recommends cmake libboost-program-options-dev libboost-system-dev \
        libboost-test-dev libboost-thread-dev \
    && rm -rf /var/lib/apt/lists/*
RUN pip install --no-cache-dir $PIP_ARGS --constraint /opt/constraints.txt '.[train]' \
    && PYTHON=/opt/earsight/bin/python scripts/build_kenlm.sh /opt/earsight/bin
WORKDIR /work


FROM python
COPY --from=builder /opt/earsight /opt/earsight
# /models holds links to the shipped bundles, so that one mounted beside them joins them and one mounted over the
# whole folder replaces them.
RUN useradd --system --uid 10001 --user-group --create-home earsight \
    && mkdir /models \
    && find /opt/earsight/lib -path '*/models/*/bundle.json' -printf '%h\n' | xargs -r -I{} ln -s {} /models/
ENV XDG_CACHE_HOME=/opt/earsight/cache
USER 10001:10001
WORKDIR /home/earsight
EXPOSE 50051 9464
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-m", "asr_server.healthcheck", "127.0.0.1:50051"]
# The default host is the loopback, which nobody outside the container could reach.
ENTRYPOINT ["asr-server"]
CMD ["serve", "--host", "0.0.0.0", "--port", "50051", "--models", "/models", "--allow-insecure", "--metrics-host", "0.0.0.0", "--metrics-port", "9464"]
