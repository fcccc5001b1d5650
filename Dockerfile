# syntax=docker/dockerfile:1.7
# CPU:  docker build --tag longvit:cpu .
# CUDA: docker build --tag longvit:cuda --target cuda .
# Use:  docker run --rm --user "$(id -u):$(id -g)" --volume "$PWD:/data" longvit:cpu doctor
ARG BASE=python:3.11.14-slim-bookworm

FROM ${BASE} AS wheel
WORKDIR /build
COPY pyproject.toml MANIFEST.in README.md LICENSE ./
COPY src src
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheel .

FROM ${BASE} AS base
LABEL org.opencontainers.image.title="longvit" \
      org.opencontainers.image.version="1.0.0" \
      org.opencontainers.image.licenses="MIT AND BSD-3-Clause"
# Any user may write these: `docker run --user` gives a number without a home.
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
    HOME=/tmp MPLCONFIGDIR=/tmp/matplotlib TORCHINDUCTOR_CACHE_DIR=/tmp/torch TRITON_CACHE_DIR=/tmp/triton
RUN useradd --uid 1000 --create-home longvit
WORKDIR /data
COPY constraints.txt requirements.lock /opt/longvit/
COPY --from=wheel /wheel /opt/longvit/wheel

# PyPI's torch brings its CUDA libraries along; the host needs the driver and the NVIDIA container toolkit alone.
FROM base AS cuda
RUN pip install -c /opt/longvit/constraints.txt -c /opt/longvit/requirements.lock /opt/longvit/wheel/*.whl \
    && longvit --version
USER longvit
ENTRYPOINT ["longvit"]
CMD ["--help"]

FROM base AS cpu
RUN pip install --index-url https://download.pytorch.org/whl/cpu -c /opt/longvit/constraints.txt torch \
    && pip install -c /opt/longvit/constraints.txt -c /opt/longvit/requirements.lock /opt/longvit/wheel/*.whl \
    && longvit doctor
USER longvit
ENTRYPOINT ["longvit"]
CMD ["--help"]
