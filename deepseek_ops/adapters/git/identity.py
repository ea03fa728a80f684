"""Who writes, and when: a fixed identity and derived dates, so that a retry builds the very same objects."""

from __future__ import annotations

from deepseek_ops.adapters.git.command import Git

NAME, EMAIL = "deepseek-ops", "deepseek-ops@localhost"


def identity(seconds: int) -> dict[str, str]:
    """Return the environment that makes git write in our name, at Unix time ``seconds``."""
    date = f"@{seconds} +0000"
    both = {
        f"GIT_{who}_{what}": value
        for who in ("AUTHOR", "COMMITTER")
        for what, value in (("NAME", NAME), ("EMAIL", EMAIL))
    }
    return {**both, "GIT_AUTHOR_DATE": date, "GIT_COMMITTER_DATE": date}


def date_of(work: Git, commit: str) -> int:
    """Return when a commit was committed, in Unix seconds."""
    return int(work.run("log", "-1", "--no-show-signature", "--format=%ct", "--end-of-options", commit))
