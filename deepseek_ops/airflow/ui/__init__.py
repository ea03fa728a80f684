"""What the plugin adds to Airflow's API server. Imported late: only that server needs it."""
