"""Signed requests, the pace of a store, and unfinished downloads, without a server."""

from __future__ import annotations

import hashlib
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import botocore.auth
import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given
from hypothesis import strategies as st

from deepseek_ops.adapters.stores.pace import Pace
from deepseek_ops.adapters.stores.resuming import ResumableFile
from deepseek_ops.adapters.stores.s3_requests import S3Place, encoded_url, signature_headers
from deepseek_ops.core.errors import LocalDiskError, StoreUnavailableError

NOW = datetime(2026, 11, 22, 4, 5, 6, tzinfo=UTC)
segments = st.text(st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters="/"), min_size=1, max_size=12)


@given(
    path=st.lists(segments.filter(lambda name: name not in (".", "..")), min_size=1, max_size=4).map("/".join),
    query=st.dictionaries(st.sampled_from(["uploads", "prefix", "partNumber", "uploadId"]), segments, max_size=3),
    body=st.binary(max_size=50),
    token=st.sampled_from(["", "session/token=="]),
)
def test_signatures_are_those_of_amazons_own_client(path: str, query: dict[str, str], body: bytes, token: str) -> None:
    place = S3Place("http://127.0.0.1:9000/bucket", "eu-west-1", "AKIDEXAMPLE", "secret/key+", token)
    url = encoded_url(place.base, path, query)
    ours = signature_headers(
        place, "PUT", url, {"x-amz-checksum-sha256": "abc="}, hashlib.sha256(body).hexdigest(), NOW
    )
    theirs = AWSRequest("PUT", url, headers={"x-amz-checksum-sha256": "abc="}, data=body)
    signer = S3SigV4Auth(Credentials(place.key, place.secret, token or None), "s3", place.region)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(botocore.auth, "get_current_datetime", lambda: NOW)
        signer.add_auth(theirs)
    assert ours["authorization"] == theirs.headers["Authorization"]


def test_keys_are_not_shown() -> None:
    assert "secret" not in repr(S3Place("http://x/bucket", "us-east-1", "key", "secret"))


class TestPace:
    def test_a_busy_server_gets_half_the_requests_and_more_again_later(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(time, "sleep", lambda seconds: None)
        pace = Pace(8)
        pace.slow_down(0)
        pace.slow_down(0)
        assert pace.limit == 4, "refusals that come together are one"
        for _ in range(100):
            pace.went_well()
        assert pace.limit == 8

    def test_pauses_grow_and_differ(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pauses: list[float] = []
        monkeypatch.setattr(time, "sleep", pauses.append)
        for attempt in (0, 1, 2, 0, 1, 2):
            Pace().slow_down(attempt)
        assert all(0.5 * 2**attempt <= pauses[attempt] <= 2**attempt for attempt in range(3))
        assert pauses[:3] != pauses[3:]

    def test_no_more_requests_run_than_the_limit(self) -> None:
        pace, running, most, lock = Pace(3), 0, 0, threading.Lock()

        def work() -> None:
            nonlocal running, most
            with pace.request():
                with lock:
                    running += 1
                    most = max(most, running)
                time.sleep(0.005)
                with lock:
                    running -= 1

        threads = [threading.Thread(target=work) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert most == 3


class TestResumableFile:
    DATA = bytes(range(250))
    DIGEST = hashlib.sha256(DATA).hexdigest()

    def opened(self, folder: Path) -> ResumableFile:
        return ResumableFile(folder / "target", self.DIGEST, len(self.DATA), 100)

    def cut_short(self, folder: Path, part: bytes, start: int) -> None:
        with suppress(StoreUnavailableError), self.opened(folder) as file:
            assert file.missing() == [0, 100, 200]
            file.write_part(part, start)
            raise StoreUnavailableError("s3://x", "lost")

    def test_goes_on_with_the_parts_that_are_there(self, tmp_path: Path) -> None:
        self.cut_short(tmp_path, self.DATA[100:200], 100)
        with self.opened(tmp_path) as file:
            assert file.missing() == [0, 200]
            file.write_part(self.DATA[:100], 0)
            file.write_part(self.DATA[200:], 200)
            assert file.is_right()
            file.commit()
        assert (tmp_path / "target").read_bytes() == self.DATA
        assert [path.name for path in tmp_path.iterdir()] == ["target"]

    def test_what_a_power_loss_damaged_is_noticed(self, tmp_path: Path) -> None:
        self.cut_short(tmp_path, bytes(100), 0)
        with self.opened(tmp_path) as file:
            for start in file.missing():
                file.write_part(self.DATA[start : start + 100], start)
            assert not file.is_right()
            file.reset()
            assert file.missing() == [0, 100, 200]

    def test_a_permanent_error_leaves_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(LocalDiskError), self.opened(tmp_path):
            raise LocalDiskError("target", "full")
        assert list(tmp_path.iterdir()) == []

    def test_one_process_holds_it(self, tmp_path: Path) -> None:
        with self.opened(tmp_path) as first, self.opened(tmp_path) as second:
            assert (first.held, second.held) == (True, False)

    @pytest.mark.parametrize("left", [b"", b"x" * 10, bytes(277), bytes(250) + b"dsopart0" + bytes(19)])
    def test_a_file_that_is_none_of_ours_is_started_over(self, tmp_path: Path, left: bytes) -> None:
        (tmp_path / f".{self.DIGEST}.part").write_bytes(left)
        with self.opened(tmp_path) as file:
            assert file.missing() == [0, 100, 200]

    def test_follows_no_link(self, tmp_path: Path) -> None:
        (tmp_path / "victim").write_bytes(b"mine")
        (tmp_path / f".{self.DIGEST}.part").symlink_to(tmp_path / "victim")
        with pytest.raises(LocalDiskError), self.opened(tmp_path):
            pass
        assert (tmp_path / "victim").read_bytes() == b"mine"
