"""Reviews: results go back to where a change is discussed.

GitHub and GitLab over their documented REST interfaces, Git notes for every other host.
"""

from __future__ import annotations

from deepseek_ops.adapters.review.choice import (
    KINDS,
    ReviewKind,
    ReviewPlace,
    ReviewSettingError,
    open_review,
    review_place,
)
from deepseek_ops.adapters.review.github import GitHubReview
from deepseek_ops.adapters.review.gitlab import GitLabReview
from deepseek_ops.adapters.review.notes import STATUS_REF, NotesReview

__all__ = [
    "KINDS",
    "STATUS_REF",
    "GitHubReview",
    "GitLabReview",
    "NotesReview",
    "ReviewKind",
    "ReviewPlace",
    "ReviewSettingError",
    "open_review",
    "review_place",
]
