"""Train, release and operate DeepSeek-family models with Airflow, Git and S3."""

__version__ = "0.1.0"
