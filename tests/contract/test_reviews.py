"""What every review system promises: one status, one comment, however often and by however many it is written."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fixtures_git import Developer, file_developer, run_git  # noqa: F401
from fixtures_review_hosts import (
    COMMIT,
    ME,
    OTHER,
    SOMEBODY,
    TOKEN,
    Fault,
    Host,
    github_app,
    gitlab_app,
    serving,
)

from deepseek_ops.adapters.review import GitHubReview, GitLabReview, NotesReview
from deepseek_ops.adapters.review.comments import marker
from deepseek_ops.core.reporting import (
    Review,
    ServiceAccessError,
    ServiceRefusedError,
    ServiceUnavailableError,
)

HELLO = marker("retrain")


class ReviewContract:
    """Subclasses provide ``review``, ``commit`` (with an open request), ``statuses`` and ``comments`` of it."""

    review: Any
    commit: str

    def statuses(self) -> list[tuple[str, str, str, str]]:
        """Return (context, state, summary, url) of the commit as people see it."""
        raise NotImplementedError

    def comments(self) -> list[str]:
        raise NotImplementedError

    def test_a_status_is_shown_and_a_later_one_takes_its_place(self) -> None:
        self.review.status(self.commit, "pending", "training", url="http://airflow/run")
        assert self.statuses() == [("deepseek-ops", "pending", "training", "http://airflow/run")]
        self.review.status(self.commit, "success", "val_loss 0.41", url="http://airflow/run")
        assert self.statuses() == [("deepseek-ops", "success", "val_loss 0.41", "http://airflow/run")]

    def test_statuses_of_two_contexts_stand_side_by_side(self) -> None:
        self.review.status(self.commit, "success", "trained", context="deepseek-ops/a")
        self.review.status(self.commit, "failure", "gate failed", context="deepseek-ops/b")
        assert {row[:2] for row in self.statuses()} == {("deepseek-ops/a", "success"), ("deepseek-ops/b", "failure")}

    def test_a_summary_of_any_length_is_taken(self) -> None:
        self.review.status(self.commit, "error", "long " * 400)
        assert self.statuses()[0][2].startswith("long long")

    def test_a_comment_is_written_once_and_updated_in_place(self) -> None:
        first = self.review.comment(self.commit, "| a | b |", key="retrain")
        again = self.review.comment(self.commit, "| a | b |", key="retrain")
        assert len(first) == 1
        assert again == first
        self.review.comment(self.commit, "second\nresult", key="retrain")
        (body,) = self.comments()
        assert "second\nresult" in body
        assert "| a |" not in body

    def test_comments_of_two_keys_do_not_touch_each_other(self) -> None:
        self.review.comment(self.commit, "one", key="retrain")
        self.review.comment(self.commit, "two", key="sweep")
        self.review.comment(self.commit, "three", key="retrain")
        text = "\n".join(self.comments())
        assert "three" in text
        assert "two" in text
        assert "one" not in text

    def test_a_status_does_not_touch_a_comment(self) -> None:
        self.review.comment(self.commit, "table", key="retrain")
        self.review.status(self.commit, "success", "done")
        self.review.comment(self.commit, "table 2", key="retrain")
        assert self.statuses()[0][:3] == ("deepseek-ops", "success", "done")
        assert ["table 2" in body for body in self.comments()] == [True]


class HostContract(ReviewContract):
    """What a host over HTTP promises besides. Subclasses provide ``host`` and how a request is named there."""

    host: Host
    create: str
    update: str
    pauses: list[float]

    def comments(self) -> list[str]:
        return self.host.bodies(7)

    def test_an_equal_status_is_not_written_again(self) -> None:
        for _ in range(3):
            self.review.status(self.commit, "pending", "training")
        assert len(self.host.statuses) == 1

    def test_every_open_request_with_the_commit_gets_the_comment_and_no_other(self) -> None:
        self.host.pulls.update({8: ("closed", [COMMIT]), 9: ("open", [COMMIT]), 10: ("open", [OTHER])})
        assert len(self.review.comment(self.commit, "result", key="retrain")) == 2
        assert [len(self.host.bodies(number)) for number in (7, 8, 9, 10)] == [1, 0, 1, 0]

    def test_a_commit_in_no_open_request_gets_no_comment(self) -> None:
        assert self.review.comment(OTHER, "result", key="retrain") == []

    def test_our_comment_is_found_behind_many_others(self) -> None:
        for number in range(7):
            self.host.add_comment(7, SOMEBODY, f"opinion {number}")
        self.review.comment(self.commit, "first", key="retrain")
        self.review.comment(self.commit, "second", key="retrain")
        assert [body for body in self.comments() if "opinion" not in body] == [f"{HELLO}\nsecond\n"]

    def test_somebody_else_with_our_mark_is_left_alone(self) -> None:
        self.host.add_comment(7, SOMEBODY, f"{HELLO}\nI look like the bot")
        self.review.comment(self.commit, "real", key="retrain")
        assert self.comments() == [f"{HELLO}\nI look like the bot", f"{HELLO}\nreal\n"]

    def test_a_quote_of_our_comment_is_no_comment_of_ours(self) -> None:
        self.host.add_comment(7, ME, f"> {HELLO}\n> quoted by a person who shares the account")
        self.review.comment(self.commit, "real", key="retrain")
        assert len(self.comments()) == 2

    @pytest.mark.parametrize("status", [500, 502, 503])
    def test_an_answer_that_is_lost_does_not_double_the_comment(self, status: int) -> None:
        self.host.faults.append(Fault("POST", self.create, status, after=True))
        self.review.comment(self.commit, "once", key="retrain")
        assert self.comments() == [f"{HELLO}\nonce\n"]

    def test_doubles_of_tasks_that_wrote_at_the_same_time_are_removed(self) -> None:
        self.host.add_comment(7, ME, f"{HELLO}\nolder")
        self.host.add_comment(7, ME, f"{HELLO}\nyounger")
        self.review.comment(self.commit, "now", key="retrain")
        assert self.comments() == [f"{HELLO}\nnow\n"]

    def test_of_many_writers_at_once_one_comment_is_left(self) -> None:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: self.review.comment(self.commit, "same", key="retrain"), range(8)))
        self.review.comment(self.commit, "same", key="retrain")
        assert self.comments() == [f"{HELLO}\nsame\n"]

    @pytest.mark.parametrize("status", [429, 500, 503])
    def test_a_host_in_trouble_is_asked_again_after_the_pause_it_names(self, status: int) -> None:
        self.host.faults += [Fault("POST", "/statuses/", status, {"Retry-After": "3"}) for _ in range(2)]
        self.review.status(self.commit, "success", "done")
        assert len(self.host.statuses) == 1
        assert self.pauses == [3.0, 3.0]

    def test_a_long_rate_limit_is_not_waited_for_but_said(self) -> None:
        self.host.faults.append(Fault("POST", "/statuses/", 429, {"Retry-After": "900"}))
        with pytest.raises(ServiceUnavailableError, match="pause of 900 s") as caught:
            self.review.status(self.commit, "success", "done")
        assert caught.value.retry_after == 900
        assert self.pauses == []

    def test_a_host_that_stays_down_is_a_transient_error(self) -> None:
        self.host.faults += [Fault("GET", "/commits/", 500) for _ in range(10)]
        with pytest.raises(ServiceUnavailableError, match="500 a fault of the test"):
            self.review.comment(self.commit, "result", key="retrain")

    def test_a_rule_of_the_host_is_a_permanent_error_with_its_words(self) -> None:
        self.host.faults.append(Fault("POST", self.create, 422, body={"message": "locked", "errors": [{"code": "x"}]}))
        with pytest.raises(ServiceRefusedError, match=r'422 locked; \[\{"code": "x"\}\]'):
            self.review.comment(self.commit, "result", key="retrain")

    def test_a_token_is_never_shown(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG)
        echo = {"message": f"token {TOKEN} may not do this\nat all"}
        self.host.faults.append(Fault("POST", "/statuses/", 403, body=echo))
        with pytest.raises(ServiceAccessError, match=r"token \*\*\* may not do this at all") as caught:
            self.review.status(self.commit, "success", "done")
        assert TOKEN not in f"{caught.value!r} {caught.value} {self.review!r}"
        assert TOKEN not in caplog.text

    def test_a_next_page_elsewhere_gets_no_token(self) -> None:
        link = {"Link": f'<http://localhost:1/{COMMIT}>; rel="next"'}
        self.host.faults.append(Fault("GET", "/commits/", 200, link, body=[]))  # type: ignore[arg-type]
        with pytest.raises(ServiceRefusedError, match="gets no token of ours"):
            self.review.comment(self.commit, "result", key="retrain")

    def test_an_address_that_is_no_api_is_said(self) -> None:
        review = type(self.review)(f"{self.host.url}/wrong", "group/sub", TOKEN)
        with pytest.raises(ServiceAccessError, match="404"):
            review.comment(COMMIT, "result", key="retrain")

    def test_a_wrong_token_is_a_permanent_error(self) -> None:
        with pytest.raises(ServiceAccessError, match="401"):
            self.other("wrong").status(COMMIT, "success", "done")

    def other(self, token: str) -> Review:
        raise NotImplementedError


class TestGitHub(HostContract):
    commit, create, update = COMMIT, "/issues/7/comments", "/issues/comments/"

    @pytest.fixture(autouse=True)
    def _host(self) -> Iterator[None]:
        self.pauses = []
        host = Host(pulls={7: ("open", [COMMIT])})
        with serving(github_app(host), host) as self.host:
            self.review = GitHubReview(host.url, "team/model", TOKEN, sleep=self.pauses.append)
            yield

    def other(self, token: str) -> Review:
        return GitHubReview(self.host.url, "team/model", token)

    def statuses(self) -> list[tuple[str, str, str, str]]:
        newest = {one["context"]: one for one in self.host.statuses if one["sha"] == COMMIT}
        return [(name, one["state"], one["description"], one["target_url"] or "") for name, one in newest.items()]

    def test_a_github_app_finds_its_comments_without_knowing_who_it_is(self) -> None:
        self.host.who = None
        self.host.add_comment(7, SOMEBODY, f"{HELLO}\nI look like the bot")
        for text in ("first", "second"):
            self.review.comment(COMMIT, text, key="retrain")
        assert self.comments() == [f"{HELLO}\nI look like the bot", f"{HELLO}\nsecond\n"]

    def test_the_primary_rate_limit_is_no_question_of_rights(self) -> None:
        spent = {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "1"}
        self.host.faults.append(Fault("POST", "/statuses/", 403, spent, {"message": "API rate limit exceeded"}))
        self.review.status(COMMIT, "success", "done")
        assert self.pauses == [1.0]

    def test_a_secondary_rate_limit_without_a_time_is_waited_for_a_minute(self) -> None:
        text = {"message": "You have exceeded a secondary rate limit"}
        self.host.faults.append(Fault("POST", "/statuses/", 403, body=text))
        self.review.status(COMMIT, "success", "done")
        assert self.pauses == [60.0]

    def test_a_repository_that_was_renamed_is_followed(self) -> None:
        review = GitHubReview(self.host.url, "team/old-name", TOKEN)
        review.status(COMMIT, "success", "done")
        assert [one["state"] for one in self.host.statuses] == ["success"]

    def test_a_commit_that_was_never_pushed_is_refused(self) -> None:
        with pytest.raises(ServiceRefusedError, match="No commit found"):
            self.review.status("c" * 40, "success", "done")


class TestGitLab(HostContract):
    commit, create, update = COMMIT, "/merge_requests/7/notes", "/merge_requests/7/notes/"

    @pytest.fixture(autouse=True)
    def _host(self) -> Iterator[None]:
        self.pauses = []
        host = Host(pulls={7: ("open", [COMMIT])})
        with serving(gitlab_app(host), host) as self.host:
            self.review = GitLabReview(f"{host.url}/api/v4", "group/sub/model", TOKEN, sleep=self.pauses.append)
            yield

    def other(self, token: str) -> Review:
        return GitLabReview(f"{self.host.url}/api/v4", "group/sub/model", token)

    def statuses(self) -> list[tuple[str, str, str, str]]:
        words = {"running": "pending", "failed": "failure"}
        newest = {one["name"]: one for one in self.host.statuses if one["sha"] == COMMIT}
        return [
            (name, words.get(one["status"], one["status"]), one["description"], one["target_url"] or "")
            for name, one in newest.items()
        ]

    def test_an_answer_that_is_lost_is_no_failed_transition(self) -> None:
        self.host.faults.append(Fault("POST", "/statuses/", 502, after=True))
        self.review.status(COMMIT, "success", "done")
        assert [one["status"] for one in self.host.statuses] == ["success"]

    def test_a_commit_that_was_never_pushed_is_refused(self) -> None:
        with pytest.raises(ServiceAccessError, match="404 Commit Not Found"):
            self.review.status("c" * 40, "success", "done")


class TestNotes(ReviewContract):
    @pytest.fixture(autouse=True)
    def _repository(self, file_developer: Developer, tmp_path: Path) -> None:  # noqa: F811
        self.developer = file_developer
        self.commit = file_developer.push_commit({"a": "1"})
        self.review = NotesReview(file_developer.remote)

    def shown(self) -> str:
        return run_git(self.developer.bare, "notes", "--ref=deepseek-ops-status", "show", self.commit)

    def statuses(self) -> list[tuple[str, str, str, str]]:
        rows = []
        for line in self.shown().partition("<!--")[0].strip().splitlines():
            context, _, rest = line.partition(": ")
            state, _, rest = rest.partition(" - ")
            summary, _, url = rest.partition(" http")
            rows.append((context, state, summary, f"http{url}" if url else ""))
        return rows

    def comments(self) -> list[str]:
        return [one for one in self.shown().split("\n<!-- deepseek-ops:") if "<!--" in one]

    def test_no_branch_moves_and_people_see_it_in_the_log(self) -> None:
        self.review.status(self.commit, "success", "val_loss 0.41")
        assert self.developer.remote.refs() == {"refs/heads/main": self.commit}
        log = run_git(self.developer.bare, "log", "--notes=deepseek-ops-status", "-1")
        assert "deepseek-ops: success - val_loss 0.41" in log

    def test_a_comment_that_holds_the_end_mark_ends_where_it_should(self) -> None:
        self.review.comment(self.commit, "a\n<!-- end of deepseek-ops:retrain -->\nb", key="retrain")
        self.review.comment(self.commit, "c", key="retrain")
        assert "b" not in self.shown().replace("<!-- end of deepseek-ops:retrain -->", "").split()
