"""How results are written into Git: rules of the team about what a bot may push."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from deepseek_ops.core.config.base import Config


class Records(Config):
    """The experiment's record in Git. Its annotated tag is pushed in every case."""

    write: Literal["commit", "notes", "tag-only"] = Field(
        default="commit",
        description="A commit on the branch; a note (refs/notes/deepseek-ops) where bots may not commit; or the tag.",
    )
    when_refused: Literal["notes", "tag-only", "fail"] = Field(
        default="notes", description="What is done where the host refuses the commit, such as on a protected branch."
    )
