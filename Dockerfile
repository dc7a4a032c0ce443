# The packages of a pod, those of requirements.lock, so that a pod of this image starts at once. The
# code is a clone on the volume, and so is everything made. docs/pod.md says how it is run.
#
# Pin the base by digest where the image is built:
#   docker buildx imagetools inspect python:3.11-slim-bookworm --format '{{.Manifest.Digest}}'
#   docker build --build-arg BASE=python:3.11-slim-bookworm@sha256:... --tag shielded-recrl .
# CUDA comes with the torch wheel, the driver from the host.
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE}

SHELL ["/bin/bash", "-o", "pipefail", "-c"]

# Debian keeps the newest version of a package only: one named here would soon be gone.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git make openssh-client rsync tmux \
    && rm -rf /var/lib/apt/lists/*

ENV VIRTUAL_ENV=/opt/venv \
    PATH=/opt/venv/bin:$PATH \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1

WORKDIR /opt/packages
COPY pyproject.toml requirements.lock README.md LICENSE ./
# Dependencies alone: of the library itself, the clone's is the one that runs.
RUN mkdir workflow \
    && python -m venv "$VIRTUAL_ENV" \
    && pip install --constraint requirements.lock --upgrade pip \
    && pip install --constraint requirements.lock --only-deps '.[quant,s3]'

# A volume of RunPod belongs to root: build with --build-arg USER=root there.
ARG USER=study
RUN id "$USER" || useradd --create-home --uid 1000 "$USER"
USER ${USER}

ENV PYTHONPATH=/workspace/shielded-recrl/workflow
WORKDIR /workspace/shielded-recrl
CMD ["sleep", "infinity"]
