"""Token shards: what is written is what is read, each token is predicted once, damage is named."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek_ops.jobs.tokens import TokenShardError, TokenSplit, TokenWriter
from deepseek_ops.training.errors import TooFewSamplesError


def write(folder, documents, *, vocab_size=300, shard_tokens=1 << 20):
    writer = TokenWriter(folder, "train", vocab_size=vocab_size, shard_tokens=shard_tokens)
    for document in documents:
        writer.add(document)
    writer.close()
    return writer


@given(
    documents=st.lists(st.lists(st.integers(0, 299), min_size=1, max_size=30), min_size=1, max_size=20),
    length=st.integers(2, 9),
)
@settings(max_examples=40, deadline=None)
def test_samples_are_consecutive_windows_of_the_stream(tmp_path_factory, documents, length):
    folder = tmp_path_factory.mktemp("tokens")
    write(folder, documents)
    stream = [token for document in documents for token in document]
    count = (len(stream) - 1) // length
    if not count:
        with pytest.raises(TooFewSamplesError):
            TokenSplit(folder, "train", length=length)
        return
    split = TokenSplit(folder, "train", length=length)
    assert len(split) == count
    assert split.samples(range(count)).tolist() == [
        stream[at * length : at * length + length + 1] for at in range(count)
    ]
    predicted = [token for sample in split.samples(range(count)).tolist() for token in sample[1:]]
    assert predicted == stream[1 : 1 + count * length], "every token once"


def test_shards_hold_whole_documents_and_samples_stay_within_them(tmp_path):
    documents = [[number] * 10 for number in range(20)]
    writer = write(tmp_path, documents, shard_tokens=40)
    assert len(list(tmp_path.glob("train-*.bin"))) == 5
    assert (writer.num_documents, writer.num_tokens) == (20, 200)
    split = TokenSplit(tmp_path, "train", length=13)
    assert len(split) == 5 * 3
    last_of_first, first_of_second = split.samples([2, 3]).tolist()
    assert set(last_of_first) == {2, 3}
    assert set(first_of_second) == {4, 5}
    index = json.loads((tmp_path / "train-00000.json").read_text())
    assert index["documents"] == [0, 10, 20, 30]


@pytest.mark.parametrize(("vocab_size", "width"), [(65_536, 2), (129_280, 4)])
def test_large_vocabularies_get_wider_tokens(tmp_path, vocab_size, width):
    write(tmp_path, [[vocab_size - 1, 0, 1]], vocab_size=vocab_size)
    assert (tmp_path / "train-00000.bin").stat().st_size == 3 * width
    assert TokenSplit(tmp_path, "train", length=2).samples([0]).tolist() == [[vocab_size - 1, 0, 1]]


def test_equal_documents_give_equal_bytes(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / name, [[1, 2, 3], [4, 5]])
    assert [path.read_bytes() for path in sorted((tmp_path / "a").iterdir())] == [
        path.read_bytes() for path in sorted((tmp_path / "b").iterdir())
    ]


def test_a_cut_shard_is_named(tmp_path):
    write(tmp_path, [[1, 2, 3, 4, 5]])
    (tmp_path / "train-00000.bin").write_bytes(b"\1\0")
    with pytest.raises(TokenShardError, match=r"train-00000.bin: it has 2 bytes and its index says 10"):
        TokenSplit(tmp_path, "train", length=2)


def test_a_missing_split_has_no_samples(tmp_path):
    with pytest.raises(TooFewSamplesError, match="val"):
        TokenSplit(tmp_path, "val", length=2)
