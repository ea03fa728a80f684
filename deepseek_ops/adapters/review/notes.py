"""Reviews as Git notes: works with every host, and needs no right but to push ``refs/notes/deepseek-ops-status``.

``git log --notes=deepseek-ops-status`` shows them beside the commits. A status is one line for each context, a comment
a block between two marks.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Protocol

from deepseek_ops.adapters.review.comments import marker
from deepseek_ops.core.reporting import STATUS_CONTEXT, ReviewState

STATUS_REF = "refs/notes/deepseek-ops-status"


class Annotates(Protocol):
    """The part of a Git repository that is needed here."""

    url: str

    def annotate(self, commit: str, edit: Callable[[str], str], *, ref: str) -> str:
        """Push the note of a commit as ``edit`` makes it from what is there."""


class NotesReview:
    """The ``Review`` of any Git repository."""

    name = "notes"

    def __init__(self, git: Annotates) -> None:
        self._git = git

    def status(
        self, commit: str, state: ReviewState, summary: str, *, url: str = "", context: str = STATUS_CONTEXT
    ) -> None:
        """Put ``<context>: <state> - <summary> <url>`` in the place of the context's earlier line."""
        line = " ".join(f"{context}: {state} - {summary} {url}".split())

        def edit(note: str) -> str:
            head, *rest = re.split(r"(?m)^(?=<!-- deepseek-ops:)", note, maxsplit=1)
            lines = [one for one in head.splitlines() if one and not one.startswith(f"{context}: ")]
            return "\n".join([*sorted([*lines, line]), *(["", *rest] if rest else [""])])

        self._git.annotate(commit, edit, ref=STATUS_REF)

    def comment(self, commit: str, body: str, *, key: str) -> list[str]:
        """Put the comment in the place of the earlier one with its key; the note of the commit is its place."""
        begin, end = marker(key), f"<!-- end of deepseek-ops:{key} -->"
        text = body.strip().replace("<!-- end of ", "<!- - end of ")
        block = f"{begin}\n{text}\n{end}\n"

        def edit(note: str) -> str:
            pattern = re.compile(rf"^{re.escape(begin)}\n.*?^{re.escape(end)}\n?", re.MULTILINE | re.DOTALL)
            if pattern.search(note):
                return pattern.sub(lambda _: block, note, count=1)
            return f"{note.rstrip()}\n\n{block}".lstrip("\n")

        self._git.annotate(commit, edit, ref=STATUS_REF)
        return [f"{self._git.url} {STATUS_REF} {commit}"]
