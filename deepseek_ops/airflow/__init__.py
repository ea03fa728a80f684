"""The Airflow door: operators, sensors, triggers, hooks, notifiers. Parse, call, dump."""
