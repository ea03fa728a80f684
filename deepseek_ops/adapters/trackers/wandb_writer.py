"""``python -P wandb_writer.py REQUEST``: one offline run of W&B from a JSON file.

A process of its own, because the package starts a service, reads the environment and installs exit handlers; nothing
of that belongs into an Airflow worker.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

_EXIT = {"finished": 0, "failed": 1, "killed": 255}


def main(request: str) -> None:
    """Write the run that the file describes below its ``folder``."""
    import wandb

    known = json.loads(Path(request).read_text())
    ended = known["ended"]
    settings = wandb.Settings(
        console="off", disable_code=True, disable_git=True, x_disable_meta=True, x_disable_stats=True
    )
    run = wandb.init(
        dir=known["folder"],
        id=known["id"],
        project=known["project"],
        entity=known["entity"] or None,
        name=known["name"],
        config={**known["config"], "deepseek_ops": {**known["tags"], **ended["tags"]}},
        notes=known["tags"].get("mlflow.note.content", ""),
        mode="offline",
        settings=settings,
    )
    for row in known["rows"]:
        values = {name: float(value) for name, value in row["values"].items()}
        run.log({**values, "_timestamp": row["time_ms"] / 1000}, step=row["step"])
    run.summary.update({"state": ended["end"], **ended["tags"]})
    run.finish(exit_code=_EXIT[ended["end"]])


if __name__ == "__main__":
    main(sys.argv[1])
