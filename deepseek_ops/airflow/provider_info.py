"""What Airflow is told of this provider: connection types with typed fields, triggers, notifications."""

from __future__ import annotations

from typing import Any

import deepseek_ops


def get_provider_info() -> dict[str, Any]:
    """Return the provider metadata (schema: Airflow's ``provider_info.schema.json``)."""
    return {
        "package-name": "deepseek-ops",
        "name": "deepseek-ops",
        "description": deepseek_ops.__doc__,
        "versions": [deepseek_ops.__version__],
        "integrations": [
            {
                "integration-name": "deepseek-ops",
                "external-doc-url": "https://pypi.org/project/deepseek-ops/",
                "tags": ["software"],
            }
        ],
        "connection-types": [
            {
                "connection-type": "deepseek_store",
                "hook-name": "deepseek-ops object store",
                "hook-class-name": "deepseek_ops.airflow.hooks.StoreHook",
                "ui-field-behaviour": {
                    "hidden-fields": ["port", "schema"],
                    "relabeling": {"host": "URI", "login": "Access key id", "password": "Secret access key"},
                    "placeholders": {"host": "s3://bucket/prefix or file:///folder"},
                },
                "conn-fields": {
                    "endpoint_url": {
                        "label": "Endpoint URL",
                        "description": "For S3-compatible servers; empty for AWS.",
                        "schema": {"type": ["string", "null"]},
                    },
                    "region_name": {"label": "Region", "schema": {"type": ["string", "null"]}},
                },
            },
            {
                "connection-type": "deepseek_facts",
                "hook-name": "deepseek-ops facts database",
                "hook-class-name": "deepseek_ops.airflow.hooks.FactsHook",
                "ui-field-behaviour": {
                    "hidden-fields": ["port", "schema", "login"],
                    "relabeling": {"host": "DSN without password"},
                    "placeholders": {"host": "sqlite:////folder/facts.db or postgresql+psycopg://user@host/db"},
                },
            },
            {
                "connection-type": "deepseek_launcher",
                "hook-name": "deepseek-ops job launcher",
                "hook-class-name": "deepseek_ops.airflow.hooks.LauncherHook",
                "ui-field-behaviour": {
                    "hidden-fields": ["port", "schema", "login", "password"],
                    "relabeling": {"host": "Folder for jobs (engine local)"},
                },
            },
            {
                "connection-type": "deepseek_gateway",
                "hook-name": "deepseek-ops traffic gateway",
                "hook-class-name": "deepseek_ops.airflow.hooks.GatewayHook",
                "ui-field-behaviour": {
                    "hidden-fields": ["schema", "login", "password"],
                    "relabeling": {"host": "Folder of the gateway (Envoy, local)", "port": "Port clients use"},
                },
            },
            {
                "connection-type": "deepseek_tracker",
                "hook-name": "deepseek-ops experiment tracker",
                "hook-class-name": "deepseek_ops.airflow.hooks_reporting.TrackerHook",
                "ui-field-behaviour": {
                    "hidden-fields": ["port", "schema"],
                    "relabeling": {"host": "URL of MLflow, or folder for wandb", "password": "Password or token"},
                    "placeholders": {"host": "https://mlflow.host"},
                },
            },
        ],
        "extra-links": ["deepseek_ops.airflow.links.TrainingRunLink", "deepseek_ops.airflow.links.EngineLink"],
        "triggers": [
            {
                "integration-name": "deepseek-ops",
                "python-modules": [
                    "deepseek_ops.airflow.triggers.git",
                    "deepseek_ops.airflow.triggers.data",
                    "deepseek_ops.airflow.triggers.jobs",
                    "deepseek_ops.airflow.triggers.tracking",
                ],
            }
        ],
        "sensors": [
            {
                "integration-name": "deepseek-ops",
                "python-modules": ["deepseek_ops.airflow.sensors.git", "deepseek_ops.airflow.sensors.data"],
            }
        ],
    }
