"""Which review system a repository has, and where its API is: from the repository's address and what people set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from deepseek_ops.adapters.git.address import Address, parse_address
from deepseek_ops.adapters.review.github import GitHubReview
from deepseek_ops.adapters.review.gitlab import GitLabReview
from deepseek_ops.core.errors import PermanentError
from deepseek_ops.core.reporting import Review

ReviewKind = Literal["github", "gitlab", "notes", "off"]
KINDS: tuple[ReviewKind, ...] = ("github", "gitlab", "notes", "off")


@dataclass(eq=False)
class ReviewSettingError(PermanentError):
    """What is set about reviews does not say where to report."""

    repository: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"reviews of {self.repository}: {self.problem}. {self.remedy}"


@dataclass(frozen=True, slots=True)
class ReviewPlace:
    """Where reviews are: the kind, the base URL of the API and the project's path there."""

    kind: ReviewKind
    api: str = ""
    project: str = ""


def review_place(repository: str, *, kind: str = "", api: str = "", token: bool = True) -> ReviewPlace:
    """Return where reviews of a repository are.

    Without a ``kind`` the host decides: github.com and ``*.ghe.com`` are GitHub, gitlab.com and ``gitlab.*`` GitLab,
    every other host has none, and neither has one without a ``token``. Raises ReviewSettingError for a kind that is
    unknown, has no token or no address.
    """
    address = parse_address(repository)
    chosen = kind or (_kind_of(address.host) if token else "off")
    if chosen not in KINDS:
        raise ReviewSettingError(address.url, f"kind {chosen!r} is unknown", f"Use one of {', '.join(KINDS)}.")
    if chosen in ("notes", "off"):
        return ReviewPlace(chosen)
    if not token:
        raise ReviewSettingError(address.url, f"{chosen} needs a token", "Give review_token or the password.")
    if not address.host and not api:
        raise ReviewSettingError(address.url, f"a folder is not on {chosen}", "Give review_url, or use notes.")
    base = (api or _api_of(chosen, address)).rstrip("/")
    if not base.startswith(("https://", "http://")):
        raise ReviewSettingError(address.url, f"review_url {base!r} is no http(s) URL", "Give the URL of the API.")
    return ReviewPlace(chosen, base, _project(address, chosen, base))


def open_review(place: ReviewPlace, token: str) -> Review | None:
    """Return the review on a host, or None for ``off``; notes are opened from the repository itself."""
    if place.kind == "github":
        return GitHubReview(place.api, place.project, token)
    if place.kind == "gitlab":
        return GitLabReview(place.api, place.project, token)
    return None


def _kind_of(host: str) -> ReviewKind:
    name = host.lower()
    if name == "github.com" or name.endswith(".ghe.com"):
        return "github"
    return "gitlab" if name.startswith("gitlab.") else "off"


def _api_of(kind: ReviewKind, address: Address) -> str:
    host = address.host.lower()
    # Over ssh the port is the SSH server's; a web server elsewhere than on 443 is named in review_url.
    port = f":{address.port}" if address.transport == "https" and address.port != 443 else ""
    if kind == "gitlab":
        return f"https://{host}{port}/api/v4"
    if host == "github.com" or host.endswith(".ghe.com"):
        return f"https://api.{host}"
    return f"https://{host}{port}/api/v3"


def _project(address: Address, kind: ReviewKind, base: str) -> str:
    path = urlsplit(address.url).path if "://" in address.url else address.url.partition(":")[2]
    project = path.strip("/").removesuffix(".git")
    # A host below a folder: https://host/git/group/name, API at https://host/git/api/v4.
    folder = urlsplit(base).path.strip("/").removesuffix("/api/v4").removesuffix("/api/v3")
    if folder and folder not in ("api/v4", "api/v3"):
        project = project.removeprefix(f"{folder}/")
    parts = project.split("/")
    if len(parts) < 2 or (kind == "github" and len(parts) != 2):
        raise ReviewSettingError(address.url, f"{project!r} is no project of {kind}", "Give owner/name in the address.")
    return project
