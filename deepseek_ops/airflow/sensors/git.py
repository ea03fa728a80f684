"""Wait for a push inside a DAG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from airflow.providers.common.compat.sdk import PokeReturnValue
from airflow.sdk import Context
from pydantic import JsonValue

from deepseek_ops.airflow.hooks import GitRemoteHook
from deepseek_ops.airflow.sensors.waiting import WaitSensor
from deepseek_ops.airflow.triggers.git import GitRefTrigger


class GitRefSensor(WaitSensor):
    """Wait until a watched branch or tag moves, and return it as a :class:`~deepseek_ops.core.records.GitRef`.

    :param git_conn_id: connection of the repository (templated).
    :param refs: globs on full ref names; ``*`` crosses ``/`` (templated).
    :param paths: path globs a branch must have touched; empty means any change (templated).
    :param pipeline_file: read this file from the pushed commit and let its own Git triggers decide (templated).
    :param after: ref -> commit that is old; ``{}`` takes what exists as new; None: what exists when the first try
        starts is old (templated).
    :param poll_interval: seconds between two looks while deferred.
    """

    template_fields: Sequence[str] = ("git_conn_id", "refs", "paths", "pipeline_file", "after")

    def __init__(
        self,
        *,
        git_conn_id: str = GitRemoteHook.default_conn_name,
        refs: Sequence[str] = ("refs/heads/main",),
        paths: Sequence[str] = (),
        pipeline_file: str = "",
        after: Mapping[str, str] | None = None,
        poll_interval: float = 30.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.git_conn_id = git_conn_id
        self.refs = refs
        self.paths = paths
        self.pipeline_file = pipeline_file
        self.after = after
        self.poll_interval = poll_interval

    def execute(self, context: Context) -> Any:
        if not self.deferrable:
            return super().execute(context)
        known = self._known(context)
        if found := self._look(known):
            return found
        return self.wait_for(
            GitRefTrigger(
                git_conn_id=self.git_conn_id,
                refs=self.refs,
                paths=self.paths,
                pipeline_file=self.pipeline_file,
                poll_interval=self.poll_interval,
                after=known,
            )
        )

    def poke(self, context: Context) -> PokeReturnValue:
        found = self._look(self._known(context))
        return PokeReturnValue(is_done=found is not None, xcom_value=found)

    def _known(self, context: Context) -> dict[str, str]:
        if self.after is None:
            remote = GitRemoteHook(self.git_conn_id).remote
            there: Any = self.baseline(context, lambda: dict(remote.refs(tuple(self.refs))))
            self.after = dict(there)  # poking in this process goes on from here, whatever Airflow remembers
        return dict(self.after)

    def _look(self, known: Mapping[str, str]) -> dict[str, JsonValue] | None:
        """Return the first watched ref that moved and is wanted."""
        from deepseek_ops.airflow.triggers.wanted import is_wanted
        from deepseek_ops.core.records import GitRef

        remote = GitRemoteHook(self.git_conn_id).remote
        for name, commit in sorted(remote.refs(tuple(self.refs)).items()):
            if known.get(name) != commit:
                ref = GitRef(repository=remote.url, name=name, commit=commit, previous=known.get(name))
                if is_wanted(remote, ref, paths=self.paths, pipeline_file=self.pipeline_file):
                    return ref.dump()
        return None
