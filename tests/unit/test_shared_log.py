"""A stream that many append to: one order, no gap, no piece twice, whatever is lost on the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_ops.adapters.remote_launcher import shared_log
from deepseek_ops.adapters.remote_launcher.shared_log import MAX_PIECE_BYTES, MAX_PIECE_LINES, SharedLog, cut
from deepseek_ops.adapters.stores.local import LocalStore
from deepseek_ops.core.errors import ObjectExistsError, StoreUnavailableError
from deepseek_ops.core.ports import ObjectInfo


class Counting(LocalStore):
    """A store that counts gets and lists, and loses the answer of the next create when it is told to."""

    lose_answer = False
    answered_again = False

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.asked: Counter[str] = Counter()

    def create(self, key: str, data: bytes) -> None:
        super().create(key, data)
        if self.lose_answer:
            self.lose_answer = False
            if self.answered_again:
                raise ObjectExistsError(key)  # a client that sent the request again by itself
            raise StoreUnavailableError(self.uri, "the answer was lost")

    def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        self.asked["get"] += 1
        return super().get(key, start=start, length=length)

    def list(self, prefix: str, *, start_after: str = "", limit: int | None = None) -> Iterator[ObjectInfo]:
        self.asked["list"] += 1
        return super().list(prefix, start_after=start_after, limit=limit)


@pytest.fixture
def store(tmp_path: Path) -> Counting:
    return Counting(tmp_path)


def everything(log: SharedLog, position: int = 0) -> bytes:
    """Return the stream from ``position`` on."""
    data = b""
    while pieces := log.read(position):
        data += b"".join(piece.data for piece in pieces)
        position = pieces[-1].position + log._measure(pieces[-1].data)
    return data


@pytest.mark.parametrize("lines", [False, True], ids=["bytes", "lines"])
def test_what_many_append_at_once_is_all_there_in_one_order(store: Counting, lines: bool) -> None:
    def write(writer: int) -> None:
        log = SharedLog(store, "log/", lines=lines)
        for number in range(10):
            log.append(b"".join(f"{writer}.{number}.{part}\n".encode() for part in range(1 + writer % 3)))

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(write, range(6)))
    read = everything(SharedLog(store, "log/", lines=lines)).decode().split()
    assert len(read) == len(set(read)) == sum(10 * (1 + writer % 3) for writer in range(6))
    for writer in range(6):
        own = [line for line in read if line.startswith(f"{writer}.")]
        assert own == [f"{writer}.{number}.{part}" for number in range(10) for part in range(1 + writer % 3)]


@pytest.mark.parametrize("answered_again", [False, True])
def test_a_piece_whose_answer_was_lost_is_stored_once(store: Counting, answered_again: bool) -> None:
    log = SharedLog(store, "log/")
    log.append(b"one\n")
    store.lose_answer, store.answered_again = True, answered_again
    if not answered_again:
        with pytest.raises(StoreUnavailableError):
            log.append(b"two\n")
    log.append(b"two\n")
    log.append(b"three\n")
    assert everything(log) == b"one\ntwo\nthree\n"


@pytest.mark.parametrize("lines", [False, True], ids=["bytes", "lines"])
def test_any_position_can_be_read_from(store: Counting, lines: bool) -> None:
    log = SharedLog(store, "log/", lines=lines)
    for number in range(12):
        log.append(b"".join(f"{number}-{part}\n".encode() for part in range(1 + number % 4)))
    whole = everything(log)
    ends = [0, *(index + 1 for index, byte in enumerate(whole) if byte == 10)] if lines else range(len(whole) + 1)
    for position, start in enumerate(ends):
        assert everything(SharedLog(store, "log/", lines=lines), position) == whole[start:]


def test_a_long_stream_is_read_by_few_requests_and_from_every_boundary(store: Counting, monkeypatch) -> None:
    monkeypatch.setattr(shared_log, "PAGE_KEYS", 40)
    monkeypatch.setattr(shared_log, "WHOLE_PIECES", 8)
    log = SharedLog(store, "log/", lines=True)
    for number in range(100):
        log.append(f"{number}\n".encode())
    while log.condense():
        pass
    assert not SharedLog(store, "log/", lines=True).condense(), "another attempt goes on where this one was"
    for start in (0, 1, 7, 8, 50, 95, 96, 99):
        store.asked.clear()
        read = everything(SharedLog(store, "log/", lines=True), start).split()
        assert read == [str(number).encode() for number in range(start, 100)]
    store.asked.clear()
    assert len(everything(SharedLog(store, "log/", lines=True)).split()) == 100
    assert store.asked["get"] <= 12 + 4, "12 wholes, and what is behind them"


def test_nothing_new_costs_one_listing(store: Counting) -> None:
    log = SharedLog(store, "log/")
    log.append(b"some words\n")
    end = 11
    assert log.read(0)[0].data == b"some words\n"
    assert log.read(end) == []
    store.asked.clear()
    assert log.read(end) == []
    assert store.asked == {"list": 1}


@given(text=st.text(max_size=400), size=st.integers(1, 40))
def test_cutting_loses_nothing_and_leaves_characters_whole(text: str, size: int) -> None:
    data, pieces = text.encode(), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared_log, "MAX_PIECE_BYTES", max(size, 4))
        while piece := cut(data, lines=False, last=True):
            pieces.append(piece)
            data = data[len(piece) :]
    assert data == b""
    assert "".join(piece.decode() for piece in pieces) == text


def test_lines_that_are_not_whole_wait_and_many_lines_go_in_several_pieces() -> None:
    assert cut(b'{"a": 1}\n{"b"', lines=True, last=True) == b'{"a": 1}\n'
    assert cut(b"{", lines=True) == b""
    assert cut(b"x\n" * 2 * MAX_PIECE_LINES, lines=True) == b"x\n" * MAX_PIECE_LINES
    assert cut(b"word", lines=False) == b"", "a log's line is followed by its end"
    assert len(cut(b"x" * 2 * MAX_PIECE_BYTES, lines=False)) == MAX_PIECE_BYTES
