"""The lineage pages inside Airflow's API server, for people who are logged in there and may see the store."""

from __future__ import annotations

from typing import Any

from deepseek_ops.airflow.hooks import FactsHook, GitRemoteHook, StoreHook, cache_folder


def build_lineage_app() -> Any:
    """Return the application over the default connections; they are read by each request."""
    from deepseek_ops.airflow.ui.lfs import airflow_person
    from deepseek_ops.web.lineage_pages import lineage_app

    return lineage_app(open_sources, authorise=airflow_person("read"))


def open_sources() -> Any:
    """Return the sources behind the connections; facts or Git that are away are named in the answer."""
    from deepseek_ops.adapters.git.tracing import GitTracer, open_tracer, tracer_of
    from deepseek_ops.core.errors import DeepSeekOpsError
    from deepseek_ops.pipeline.lineage_sources import Sources

    problems: list[str] = []
    facts, repository = None, None
    try:
        facts = FactsHook().facts
    except DeepSeekOpsError as error:
        problems.append(str(error))
    try:
        repository = GitRemoteHook().remote
    except DeepSeekOpsError as error:
        problems.append(str(error))

    def tracer(url: str) -> GitTracer:
        cache = cache_folder() / "git"
        # The connection's login is for its own repository: others are asked without one.
        ours = repository is not None and url == repository.url
        return tracer_of(repository, cache) if ours and repository else open_tracer(url, cache=cache)

    sources = Sources(
        stores=StoreHook(),
        facts=facts,
        repositories=(repository.url,) if repository else (),
        open_tracer=tracer,
    )
    for problem in problems:
        sources.say(problem)
    return sources
