"""Where reviews are: from the repository's address and what people set."""

from __future__ import annotations

import pytest

from deepseek_ops.adapters.review import ReviewPlace, ReviewSettingError, review_place

HUB, LAB = "https://api.github.com", "https://gitlab.com/api/v4"


@pytest.mark.parametrize(
    ("repository", "settings", "expected"),
    [
        ("https://github.com/team/model.git", {}, ReviewPlace("github", HUB, "team/model")),
        ("git@github.com:team/model.git", {}, ReviewPlace("github", HUB, "team/model")),
        ("ssh://git@github.com/team/model", {}, ReviewPlace("github", HUB, "team/model")),
        ("https://acme.ghe.com/team/model", {}, ReviewPlace("github", "https://api.acme.ghe.com", "team/model")),
        (
            "https://git.corp/team/model",
            {"kind": "github"},
            ReviewPlace("github", "https://git.corp/api/v3", "team/model"),
        ),
        ("https://gitlab.com/group/sub/model.git", {}, ReviewPlace("gitlab", LAB, "group/sub/model")),
        (
            "https://gitlab.corp:8443/group/model.git",
            {},
            ReviewPlace("gitlab", "https://gitlab.corp:8443/api/v4", "group/model"),
        ),
        (
            "ssh://git@gitlab.corp:2222/group/model.git",
            {},
            ReviewPlace("gitlab", "https://gitlab.corp/api/v4", "group/model"),
        ),
        (
            "https://host/git/group/model.git",
            {"kind": "gitlab", "api": "https://host/git/api/v4/"},
            ReviewPlace("gitlab", "https://host/git/api/v4", "group/model"),
        ),
        ("https://gitea.corp/team/model.git", {}, ReviewPlace("off")),
        ("https://gitea.corp/team/model.git", {"kind": "notes", "token": False}, ReviewPlace("notes")),
        ("https://github.com/team/model.git", {"kind": "off"}, ReviewPlace("off")),
        ("git@github.com:team/model.git", {"token": False}, ReviewPlace("off")),
        ("file:///srv/model.git", {}, ReviewPlace("off")),
    ],
)
def test_the_host_decides_unless_people_do(repository: str, settings: dict[str, str], expected: ReviewPlace) -> None:
    assert review_place(repository, **settings) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("repository", "settings", "words"),
    [
        ("https://github.com/team/model.git", {"kind": "bitbucket"}, "Use one of github, gitlab, notes, off"),
        ("git@github.com:team/model.git", {"kind": "github", "token": False}, "needs a token"),
        ("file:///srv/model.git", {"kind": "github"}, "a folder is not on github"),
        ("https://github.com/model.git", {}, "no project of github"),
        ("https://github.com/a/b/c.git", {}, "no project of github"),
        ("https://git.corp/a/b", {"kind": "gitlab", "api": "file:///etc"}, "no http"),
    ],
)
def test_what_cannot_be_reported_to_is_said(repository: str, settings: dict[str, str], words: str) -> None:
    with pytest.raises(ReviewSettingError, match=words):
        review_place(repository, **settings)  # type: ignore[arg-type]
