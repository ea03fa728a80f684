"""Tokens and links of the LFS server: what is believed, for how long, and what never is."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek_ops.adapters.git_lfs.links import Tickets
from deepseek_ops.adapters.git_lfs.problems import LfsRequestError, TokenRefusedError
from deepseek_ops.adapters.git_lfs.signing import ServerSecretError, Signer, read_secrets, write_secret
from deepseek_ops.adapters.git_lfs.tokens import (
    REVOCATION_SECONDS,
    RepositoryNameError,
    TokenBook,
    UnknownTokenError,
    repository_name,
)
from deepseek_ops.adapters.stores import open_store
from deepseek_ops.core.errors import LocalDiskError
from deepseek_ops.core.ports import ObjectStore
from deepseek_ops.web.lfs_transfers import wanted_range

SECRET, OTHER = b"s" * 40, b"o" * 40
OID = "a" * 64


class Clock:
    def __init__(self) -> None:
        self.seconds = 1_800_000_000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return open_store(str(tmp_path / "store"))


@pytest.fixture
def book(store: ObjectStore, clock: Clock) -> TokenBook:
    return TokenBook(store, [SECRET], now=clock)


def test_a_token_says_what_it_was_issued_for(book: TokenBook) -> None:
    token, grant = book.issue("team/model.git", "write", "ada@example.com", days=90)
    assert book.check(token) == grant
    assert (grant.repository, grant.may_write, grant.subject) == ("team/model", True, "ada@example.com")


def test_a_token_ends_on_its_day(book: TokenBook, clock: Clock) -> None:
    token, _ = book.issue("m", "read", "ada", days=1)
    clock.seconds += 86_399
    book.check(token)
    clock.seconds += 1
    with pytest.raises(TokenRefusedError, match="expired"):
        book.check(token)


def test_a_revocation_reaches_other_servers_within_seconds(book: TokenBook, store: ObjectStore, clock: Clock) -> None:
    token, grant = book.issue("m", "read", "ada", days=1)
    elsewhere = TokenBook(store, [SECRET], now=clock)
    elsewhere.check(token)
    book.revoke(grant.id, by="operator")
    book.revoke(grant.id, by="operator")
    with pytest.raises(TokenRefusedError, match="revoked"):
        book.check(token)
    clock.seconds += REVOCATION_SECONDS
    with pytest.raises(TokenRefusedError, match="revoked"):
        elsewhere.check(token)


@pytest.mark.parametrize("token_id", ["", "x", "0" * 16, "../../refs/heads/x", "a/b"])
def test_only_issued_tokens_can_be_revoked(book: TokenBook, token_id: str) -> None:
    with pytest.raises(UnknownTokenError):
        book.revoke(token_id, by="operator")


def test_the_store_lists_tokens_but_does_not_hold_them(book: TokenBook, store: ObjectStore) -> None:
    token, grant = book.issue("m", "read", "ada", days=1)
    revoked, gone = book.issue("m", "write", "bob", days=2)
    book.revoke(gone.id, by="operator", reason="lost laptop")
    assert book.issued() == [(gone, True), (grant, False)]
    everything = b"".join(store.get(info.key) for info in store.list(""))
    for text in (token, revoked):
        assert text.rpartition(".")[2].encode() not in everything


def test_a_replaced_secret_is_believed_until_it_is_dropped(store: ObjectStore) -> None:
    old = TokenBook(store, [OTHER]).issue("m", "read", "ada", days=1)[0]
    both = TokenBook(store, [SECRET, OTHER])
    both.check(old)
    new = both.issue("m", "read", "ada", days=1)[0]
    TokenBook(store, [SECRET]).check(new)
    with pytest.raises(TokenRefusedError):
        TokenBook(store, [SECRET]).check(old)


@pytest.mark.parametrize("days", [0, -1, 367, float("inf"), float("nan")])
def test_no_token_is_for_ever(book: TokenBook, days: float) -> None:
    with pytest.raises(TokenRefusedError):
        book.issue("m", "read", "ada", days=days)


@pytest.mark.parametrize("subject", ["", "a b", "a\nb", "-x", "x" * 101])
def test_a_subject_is_a_plain_name(book: TokenBook, subject: str) -> None:
    with pytest.raises(TokenRefusedError, match="subject"):
        book.issue("m", "read", subject, days=1)


@given(st.text(max_size=300))
@settings(max_examples=200, deadline=None)
def test_arbitrary_text_is_never_a_token(text: str) -> None:
    for candidate in (text, f"dsotoken.{text}", f"dsotoken.e30.{text}"):
        with pytest.raises(TokenRefusedError):
            Signer([SECRET], "dsotoken").read(candidate)


@given(st.integers(min_value=0, max_value=10_000), st.integers(min_value=1, max_value=127))
@settings(max_examples=200, deadline=None)
def test_every_changed_character_of_a_token_is_noticed(place: int, change: int) -> None:
    signer = Signer([SECRET], "dsotoken")
    text = signer.sign({"repository": "team/model", "access": "read"})
    at = place % len(text)
    changed = text[:at] + chr(ord(text[at]) ^ change) + text[at + 1 :]
    if changed != text:
        with pytest.raises(TokenRefusedError):
            signer.read(changed)


def test_a_link_is_no_token_and_a_token_no_link(book: TokenBook, clock: Clock) -> None:
    token, grant = book.issue("m", "write", "ada", days=1)
    tickets = Tickets([SECRET], 60, now=clock)
    link = tickets.header("upload", grant, OID, 1)["Authorization"].removeprefix("Bearer ")
    tickets.read(link, "upload", "m", OID)
    with pytest.raises(TokenRefusedError):
        book.check(link)
    with pytest.raises(TokenRefusedError):
        tickets.read(token, "upload", "m", OID)


def test_a_link_is_for_one_object_one_operation_and_a_while(book: TokenBook, clock: Clock) -> None:
    grant = book.issue("m", "write", "ada", days=1)[1]
    tickets = Tickets([SECRET], 60, now=clock)
    link = tickets.header("upload", grant, OID, 1)["Authorization"].removeprefix("Bearer ")
    for operation, repository, oid in (("download", "m", OID), ("upload", "n", OID), ("upload", "m", "b" * 64)):
        with pytest.raises(LfsRequestError) as refused:
            tickets.read(link, operation, repository, oid)
        assert refused.value.status == 403
    clock.seconds += 61
    with pytest.raises(LfsRequestError, match="expired"):
        tickets.read(link, "upload", "m", OID)


@pytest.mark.parametrize("text", ["team/model", "/team/model.git/info/lfs", "team/model.git", "team/model/"])
def test_spellings_of_a_repository_are_one_name(text: str) -> None:
    assert repository_name(text) == "team/model"


@pytest.mark.parametrize(
    "text",
    [
        *("", "/", ".git", "..", "a/../b", "a//b", "a/-/b", "-", ".hidden", "a\0b", "a b", "a/b.", "a..b", "é"),
        *("a\\b", "a/b/c/d/e/f", "x" * 101, "a/%2e%2e", "a\n", "objects/../../x"),
    ],
)
def test_what_could_leave_its_place_in_the_store_is_no_repository(text: str) -> None:
    with pytest.raises(RepositoryNameError):
        repository_name(text)


def test_a_secret_comes_from_a_private_file_or_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    write_secret(file)
    assert file.stat().st_mode & 0o777 == 0o600
    assert len(read_secrets(file, {})[0]) >= 32
    with pytest.raises(LocalDiskError):
        write_secret(file)
    assert read_secrets(None, {"DEEPSEEK_OPS_LFS_SECRET": "e" * 40}) == [b"e" * 40]
    file.chmod(0o644)
    with pytest.raises(ServerSecretError, match="chmod"):
        read_secrets(file, {})
    for bad in ("", "short"):
        with pytest.raises(ServerSecretError):
            read_secrets(None, {"DEEPSEEK_OPS_LFS_SECRET": bad})


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", (0, 100, False)),
        ("bytes=0-", (0, 100, True)),
        ("bytes=10-19", (10, 20, True)),
        ("bytes=90-500", (90, 100, True)),
        ("bytes=-10", (90, 100, True)),
        ("bytes=-500", (0, 100, True)),
        ("bytes=20-10", (0, 100, False)),
        ("bytes=0-1,5-6", (0, 100, False)),
        ("bytes=-", (0, 100, False)),
        ("lines=1-2", (0, 100, False)),
    ],
)
def test_a_range_is_one_part_or_everything(header: str, expected: tuple[int, int, bool]) -> None:
    assert wanted_range(header, 100) == expected


@pytest.mark.parametrize("header", ["bytes=100-", "bytes=500-600", "bytes=-0"])
def test_a_range_beyond_the_end_is_an_error(header: str) -> None:
    with pytest.raises(LfsRequestError) as refused:
        wanted_range(header, 100)
    assert refused.value.status == 416
