"""What the command line says a push starts is what the watcher announces."""

from __future__ import annotations

import pytest

from deepseek_ops.airflow.triggers.wanted import Change, asks_for
from deepseek_ops.core.config import load_pipeline
from deepseek_ops.core.records import GitRef
from deepseek_ops.pipeline.push_verdict import push_verdict

TEXT = "name: tiny\ndata: {raw: r/, prepare: 'a.b:c'}\ntraining: {model: m.json}\n"
TRIGGERS = (
    "",
    "triggers: [{type: git-push}]",
    "triggers: [{type: git-push, branches: ['exp/*', '!exp/no']}]",
    "triggers: [{type: git-push, branches: ['exp/*'], paths: ['src/**']}, {type: git-push, branches: ['exp/x']}]",
    "triggers: [{type: git-push, branches: ['exp/*'], paths: ['src/**', '!src/old/**']}]",
    "triggers: [{type: git-tag, tags: ['v*']}, {type: schedule, cron: '@daily'}]",
)
REFS = ("refs/heads/main", "refs/heads/exp/x", "refs/heads/exp/no", "refs/tags/v1", "refs/tags/x")
PATHS: tuple[tuple[str, ...], ...] = ((), ("README.md",), ("src/a.py",), ("README.md", "src/old/a.py"), ("b.py",))


@pytest.mark.parametrize("triggers", TRIGGERS, ids=range(len(TRIGGERS)))
def test_the_verdict_is_what_the_watcher_decides(triggers: str) -> None:
    config = load_pipeline(f"{TEXT}{triggers}\n".encode(), file="deepseek.yaml")
    for name in REFS:
        ref = GitRef(repository="https://host/model", name=name, commit="a" * 40)
        for paths in PATHS:
            for nothing_new in (False, True) if not paths else (False,):
                told = push_verdict(config, ref, paths, nothing_new=nothing_new)
                tag = name.startswith("refs/tags/")
                decided = asks_for(config, ref, Change(() if tag else paths, nothing_new=nothing_new)).wanted
                assert told.starts is decided, (name, paths, nothing_new, told)
                assert told.text().startswith(f"a push of it starts {'a' if decided else 'no'} run: ")


def test_why_no_run_starts_is_named() -> None:
    config = load_pipeline(f"{TEXT}{TRIGGERS[4]}\n".encode(), file="deepseek.yaml")

    def why(name: str, paths: tuple[str, ...] | None) -> str:
        return push_verdict(config, GitRef(repository="https://h/m", name=name, commit="a" * 40), paths).why

    assert why("refs/heads/exp/x", ("b.py",)) == "no changed path is one of the git-push trigger: src/**, !src/old/**"
    assert why("refs/heads/exp/x", None) == "where it changes a path of the git-push trigger: src/**, !src/old/**"
    assert why("refs/heads/main", ("b.py",)).endswith("its git-push triggers watch exp/*")
    assert why("refs/heads/exp/x", ("README.md",)) == "it changes documentation only"
