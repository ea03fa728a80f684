"""From Airflow connections to the ports of reporting: the review of a repository, and experiment trackers."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from deepseek_ops.airflow.hooks import ConnectionFieldError, GitRemoteHook, PortHook

if TYPE_CHECKING:
    from deepseek_ops.core.reporting import Review, Tracker


class ReviewHook(GitRemoteHook):
    """The review system of the repository behind a ``git`` connection.

    Extras: ``review`` = ``github``, ``gitlab``, ``notes`` or ``off`` (default: what the host is, where a token is
    given; else off), ``review_url`` = base URL of the API of one's own server, ``review_token`` where the token for
    Git may not write statuses.
    """

    @cached_property
    def review(self) -> Review | None:
        """The review system, or None where there is none. Nothing is contacted yet."""
        from deepseek_ops.adapters.review import NotesReview, open_review, review_place

        token = str(self.extra.get("review_token") or "") or self._login()[1]
        place = review_place(
            self.required("host", self.connection.host, "give the URL of the repository"),
            kind=str(self.extra.get("review") or ""),
            api=str(self.extra.get("review_url") or ""),
            token=bool(token),
        )
        return NotesReview(self.remote) if place.kind == "notes" else open_review(place, token)


class TrackerHook(PortHook):
    """The tracker behind a ``deepseek_tracker`` connection.

    MLflow: host = URL of the server; login and password for basic authentication, a password alone is a bearer token.
    Weights & Biases: extra ``tracker`` = ``wandb``, host = folder that all workers and triggerers see; offline runs are
    written there for ``wandb sync``. Extras ``entity`` and ``server`` make the address that commits carry.
    """

    conn_name_attr = "tracker_conn_id"
    default_conn_name = "deepseek_ops_tracker"
    conn_type = "deepseek_tracker"
    hook_name = "deepseek-ops experiment tracker"
    example = "--conn-type deepseek_tracker --conn-host https://mlflow.host"

    def __init__(self, tracker_conn_id: str = default_conn_name) -> None:
        super().__init__(tracker_conn_id)

    @cached_property
    def tracker(self) -> Tracker:
        """The tracker. Nothing is contacted yet."""
        kind = str(self.extra.get("tracker") or "mlflow")
        if kind == "wandb":
            return self._wandb()
        if kind != "mlflow":
            known = "the trackers are 'mlflow' and 'wandb'"
            raise ConnectionFieldError(self.conn_id, "extra tracker", f"is {kind!r}; {known}")
        from deepseek_ops.adapters.trackers import MLflowTracker

        url = self.required("host", self.connection.host, "give the URL of the MLflow server")
        if not url.startswith(("https://", "http://")):
            raise ConnectionFieldError(self.conn_id, "host", f"is {url!r}, no http(s) URL")
        return MLflowTracker(url, username=self.connection.login or "", password=self.connection.password or "")

    def _wandb(self) -> Tracker:
        from deepseek_ops.adapters.trackers import WandbTracker

        folder = self.required("host", self.connection.host, "give the folder of the offline runs")
        if not folder.startswith("/"):
            raise ConnectionFieldError(self.conn_id, "host", f"is {folder!r}, no absolute folder")
        server = str(self.extra.get("server") or "https://wandb.ai")
        return WandbTracker(Path(folder), entity=str(self.extra.get("entity") or ""), host=server)
