# syntax=docker/dockerfile:1
# What training, evaluation and export jobs run in. No Airflow: a check at the end of the build says so.
#
#   docker build --file docker/jobs.Dockerfile --tag deepseek-ops-jobs:0.1.0-cpu .
#   docker build --file docker/jobs.Dockerfile --tag deepseek-ops-jobs:0.1.0-cuda \
#       --build-arg BASE_IMAGE=nvidia/cuda:13.0.2-devel-ubuntu24.04 --build-arg TORCH_BACKEND=cu130 .
ARG BASE_IMAGE=python:3.11-slim-bookworm
FROM ${BASE_IMAGE}

SHELL ["/bin/bash", "-o", "pipefail", "-c"]

# uv brings its own Python 3.11 where the base image has another one (CUDA images), and picks the torch build.
COPY --from=ghcr.io/astral-sh/uv:0.13.9 /uv /usr/local/bin/uv
# git for users' own preparation code, tini as the process that reaps, a compiler for DeepSpeed's CUDA operators.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates g++ git ninja-build tini \
    && rm -rf /var/lib/apt/lists/*

ENV UV_PYTHON_INSTALL_DIR=/opt/python \
    VIRTUAL_ENV=/opt/venv \
    PATH=/opt/venv/bin:${PATH} \
    PYTHONUNBUFFERED=1
RUN uv venv --python 3.11 /opt/venv

WORKDIR /opt/deepseek-ops
COPY requirements.lock pyproject.toml README.md LICENSE ./
COPY deepseek_ops ./deepseek_ops
ARG TORCH_BACKEND=cpu
# The lock pins every package of every extra; as constraints it installs none that the two extras do not need.
RUN uv pip install --no-cache --torch-backend "${TORCH_BACKEND}" --constraint requirements.lock ".[train,export]" \
    && ! python -c 'import airflow' 2>/dev/null

RUN useradd --create-home --uid 10001 trainer \
    && install --directory --owner=trainer --group=trainer /var/lib/deepseek-ops
USER 10001
WORKDIR /var/lib/deepseek-ops

# A launcher gives the job's folder as the argument; see `python -m deepseek_ops.jobs --help`.
ENTRYPOINT ["tini", "--", "python", "-m", "deepseek_ops.jobs"]
CMD ["--help"]
