"""What exists (records), what the outside must do (ports), what can go wrong (errors), what people write (config).

Nothing here knows Airflow, torch, S3 or Git: every other package imports this one and this one imports none of them.
"""
