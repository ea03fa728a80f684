"""Real servers that need no installation beyond packages: S3 (SeaweedFS), Git over HTTP, Airflow standalone."""
