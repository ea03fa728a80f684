# syntax=docker/dockerfile:1
# Airflow with deepseek-ops: scheduler, DAG processor, triggerer, API server and workers run from this image.
#
#   docker build --file docker/airflow.Dockerfile --tag deepseek-ops-airflow:0.1.0 .
#
# EXTRAS decides what is in it. The default is the Airflow side, without torch. The `local` engine runs jobs on the
# machine of the worker, so a worker that trains needs more: EXTRAS=airflow,sweep,postgres,export,serve, and for torch
# without CUDA PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu (compose.yaml sets both).
ARG BASE_IMAGE=apache/airflow:3.3.2-python3.11
FROM ${BASE_IMAGE}

SHELL ["/bin/bash", "-o", "pipefail", "-c"]

# Folders that named volumes are mounted on: a new volume takes the owner of the folder below it.
USER 0
RUN install --directory --owner=airflow --group=root --mode=0775 /opt/deepseek-ops /var/lib/deepseek-ops

# The user airflow of the base image.
USER 50000
WORKDIR /opt/deepseek-ops

# Naming the Airflow that is there keeps it: the project only adds to the base image.
COPY --chown=airflow:root pyproject.toml README.md LICENSE ./
COPY --chown=airflow:root deepseek_ops ./deepseek_ops
ARG EXTRAS=airflow,sweep,postgres
ARG PIP_EXTRA_INDEX_URL=
# The project's own metadata says which versions it works with.
# hadolint ignore=DL3013
RUN airflow_version="$(python -c 'from importlib.metadata import version; print(version("apache-airflow"))')" \
    && pip install --no-cache-dir "apache-airflow==${airflow_version}" ".[${EXTRAS}]"

# Entry points register the plugin and the connection types, so plugins/ is not needed here.
COPY --chown=airflow:root dags /opt/airflow/dags
COPY --chown=airflow:root include /opt/deepseek-ops/include
ENV DEEPSEEK_OPS_CACHE=/var/lib/deepseek-ops/cache \
    DEEPSEEK_OPS_PRICES=/opt/deepseek-ops/include/configs/prices.yaml
WORKDIR /opt/airflow
