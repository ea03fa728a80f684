"""Triggers: wait in the triggerer for pushes, data and jobs, without a worker slot and without losing an event.

Decisions that bind every watcher here:

* **At least once.** An event is remembered as announced only some seconds after it was handed over, because Airflow
  stores it a moment after ``yield``. After a crash in between it is announced again; consumers go by the name of the
  move (see ``announcements``) or by the listing's digest.
* **Missed while paused means: announce the newest state once.** With a watermark, every ref (or prefix) that differs
  from it is announced one time, with all that changed since. Without one (first start, or changed filters) what exists
  is history and is skipped, unless ``on_start="announce"``.
* **A watcher never ends.** Airflow starts a trigger that raises or returns again at once and without a pause, so
  errors are logged here and waited out with back-off and jitter.
* **No secret in arguments.** Triggers carry connection ids; arguments are plain JSON.
"""
