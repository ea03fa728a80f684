"""Spot notices as each cloud gives them, asked of a metadata service on loopback that follows its protocol."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from fixtures_launcher import until

from deepseek_ops.jobs.spot_notice import SpotNoticeAddressError, SpotWatch, place_of


class Metadata(ThreadingHTTPServer):
    """What the metadata services of three clouds know of this machine."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.tokens, self.expire, self.asked = 0, False, 0
        self.action = ""
        self.preempted = "FALSE"
        self.events: list[dict[str, object]] = []

    @property
    def host(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Metadata

    def do_PUT(self) -> None:
        self.server.tokens += 1
        wanted = self.path == "/latest/api/token" and self.headers["X-aws-ec2-metadata-token-ttl-seconds"] == "21600"
        self._answer(200 if wanted else 400, f"token-{self.server.tokens}")

    def do_GET(self) -> None:
        self.server.asked += 1
        parts = urlsplit(self.path)
        if parts.path.startswith("/latest/"):
            self._aws()
        elif parts.path == "/computeMetadata/v1/instance/preempted":
            known = self.headers["Metadata-Flavor"] == "Google"
            self._answer(200 if known else 403, self.server.preempted if known else "Missing Metadata-Flavor:Google")
        elif parts.path.startswith("/metadata/"):
            self._azure(parts.path, parse_qs(parts.query))
        else:
            self._answer(200, self.server.action)

    def _aws(self) -> None:
        if self.headers["X-aws-ec2-metadata-token"] != f"token-{self.server.tokens}" or self.server.expire:
            self.server.expire = False
            return self._answer(401, "")
        known = self.path == "/latest/meta-data/spot/instance-action" and self.server.action
        return self._answer(200 if known else 404, self.server.action)

    def _azure(self, path: str, query: dict[str, list[str]]) -> None:
        if self.headers["Metadata"] != "true" or "api-version" not in query:
            return self._answer(400, '{"error": "Bad request"}')
        if path == "/metadata/instance/compute/name" and query.get("format") == ["text"]:
            return self._answer(200, "trainers_3")
        return self._answer(200, json.dumps({"DocumentIncarnation": 2, "Events": self.server.events}))

    def _answer(self, status: int, body: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def metadata() -> Iterator[Metadata]:
    server = Metadata()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def event(kind: str, *machines: str) -> dict[str, object]:
    return {
        "EventId": f"{kind}-of-{machines[0]}",
        "EventType": kind,
        "ResourceType": "VirtualMachine",
        "Resources": list(machines),
        "EventStatus": "Scheduled",
        "NotBefore": "Sun, 22 Nov 2026 08:22:00 GMT",
    }


def test_aws_tells_it_to_who_has_a_token_and_the_token_is_renewed(metadata: Metadata) -> None:
    told: list[str] = []
    with SpotWatch(place_of("aws", host=metadata.host), told.append, seconds=0.02):
        until(lambda: metadata.tokens == 1)
        metadata.expire = True
        until(lambda: metadata.tokens == 2)
        assert told == []
        metadata.action = '{"action": "terminate", "time": "2026-11-22T08:22:00Z"}'
        until(lambda: told)
    assert told == [metadata.action]


def test_gcp_answers_false_until_it_is_true(metadata: Metadata) -> None:
    told: list[str] = []
    with SpotWatch(place_of("gcp", host=metadata.host), told.append, seconds=0.02):
        until(lambda: metadata.asked >= 3)
        assert told == [], "an answer with status 200 is no notice by itself"
        metadata.preempted = "<html>somebody else's page</html>"
        before = metadata.asked
        until(lambda: metadata.asked >= before + 3)
        assert told == []
        metadata.preempted = "TRUE"
        until(lambda: told)
    assert told == ["Compute Engine preempts this machine"]


def test_azure_names_the_machine_and_what_becomes_of_it(metadata: Metadata) -> None:
    told: list[str] = []
    with SpotWatch(place_of("azure", host=metadata.host), told.append, seconds=0.02):
        until(lambda: metadata.asked >= 3)
        metadata.events = [event("Freeze", "trainers_3"), event("Preempt", "trainers_1", "trainers_30")]
        before = metadata.asked
        until(lambda: metadata.asked >= before + 5)
        assert told == [], "events of other kinds and of other machines are none of ours"
        metadata.events = [*metadata.events, event("Preempt", "trainers_2", "trainers_3")]
        until(lambda: told)
    assert json.loads(told[0])["EventId"] == "Preempt-of-trainers_2"


def test_a_file_or_another_address_can_announce_it_too(metadata: Metadata, tmp_path: Path) -> None:
    told: list[str] = []
    with SpotWatch(place_of((tmp_path / "leave").as_uri()), told.append, seconds=0.02):
        (tmp_path / "leave.part").write_text("the machine goes at noon\n")
        (tmp_path / "leave.part").replace(tmp_path / "leave")
        until(lambda: told)
    assert told == ["the machine goes at noon"]
    with SpotWatch(place_of(f"{metadata.host}/own"), told.append, seconds=0.02):
        until(lambda: metadata.asked >= 2)
        metadata.action = "at one"
        until(lambda: len(told) == 2)
    assert told[1] == "at one"


def test_no_address_asks_nobody_and_a_wrong_one_is_named() -> None:
    assert place_of("") is None
    for wrong in ("ftp://host/x", "amazon", "file://"):
        with pytest.raises(SpotNoticeAddressError, match=r"DEEPSEEK_OPS_SPOT_NOTICE.*aws, gcp, azure"):
            place_of(wrong)
