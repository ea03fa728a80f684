"""Words, runs of words, MinHash and banding: the same everywhere, right about known similarity."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek_ops.data.content.minhash import HASHES, Banding, banding, signatures, similarity
from deepseek_ops.data.content.similar import CROWD, SimilarDocuments
from deepseek_ops.data.content.words import PIECE_BYTES, pieces, word_runs, words_of

WORDS = [f"w{number}" for number in range(3000)]


def shingles(words, length=5):
    return {tuple(words[at : at + length]) for at in range(len(words) - length + 1)}


def jaccard(left, right):
    return len(shingles(left) & shingles(right)) / len(shingles(left) | shingles(right))


def near_copy(words, target, mark):
    """Return a text whose shingles have about this Jaccard similarity to those of ``words``."""
    count = len(words) - 4
    shared = round(count * 2 * target / (1 + target))
    return words[: shared + 4] + [f"{mark}{number}" for number in range(count - shared)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Hello,  WORLD_x!", b"hello world x"),
        ("don't", b"don t"),
        ("\u00c4\u00d6 \ufb01t", "\u00e4\u00f6 fit".encode()),
        ("\u4f60\u597d ok", "\u4f60 \u597d ok".encode()),
        (" ... ", b""),
        ("\u0928\u092e\u0938\u094d\u0924\u0947", "\u0928\u092e\u0938\u094d\u0924\u0947".encode()),
    ],
)
def test_words_ignore_case_spacing_and_punctuation(text, words):
    assert words_of(text) == words


@given(st.text(st.characters(max_codepoint=127), max_size=60))
def test_the_quick_way_for_ascii_and_the_other_agree(text):
    assert words_of(text + " \u00e4") == (words_of(text) + " \u00e4".encode()).strip()


@settings(max_examples=60)
@given(st.lists(st.lists(st.sampled_from(["a", "b", "cc", "d1"]), max_size=12), max_size=6), st.integers(1, 6))
def test_equal_runs_have_equal_numbers_and_others_do_not(documents, length):
    batch = [" ".join(words).encode() for words in documents]
    runs = word_runs(batch)
    hashes, first = runs.hashes(length)
    expected = [
        (number, tuple(words[at : at + length]))
        for number, words in enumerate(documents)
        for at in range(len(words) - length + 1)
    ]
    assert [int(runs.documents[one]) for one in first] == [number for number, _ in expected]
    names = [run for _, run in expected]
    assert len({(int(value), run) for value, run in zip(hashes, names, strict=True)}) == len(set(names))
    assert len(set(hashes.tolist())) == len(set(names))


def test_a_run_has_the_same_number_wherever_it_stands():
    alone, _ = word_runs([b"one two three"]).hashes(3)
    among, _ = word_runs([b"x y z " * 50 + b"one two three", b"one two three four"]).hashes(3)
    assert alone[0] in set(among.tolist())


def test_no_run_is_lost_between_the_pieces_of_a_long_document():
    words = " ".join(random.Random(1).choices(WORDS, k=120_000)).encode()  # noqa: S311
    assert len(words) > 2 * PIECE_BYTES
    whole = set(word_runs([words]).hashes(13)[0].tolist())
    assert whole == {value for piece in pieces(words) for value in word_runs([piece]).hashes(13)[0].tolist()}
    parts, _ = signatures([words])
    assert parts.shape == (1, HASHES)


@pytest.mark.parametrize("target", [0.5, 0.8, 0.9])
def test_the_estimate_is_the_jaccard_similarity(target):
    draw = random.Random(2)  # noqa: S311
    errors = []
    for _ in range(60):
        words = draw.choices(WORDS, k=150)
        other = near_copy(words, target, f"x{len(errors)}y")
        signed, _ = signatures([" ".join(words).encode(), " ".join(other).encode()])
        errors.append(float(similarity(signed[:1], signed[1:])[0]) - jaccard(words, other))
    assert abs(sum(errors) / len(errors)) < 0.02
    assert max(map(abs, errors)) < 0.2


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.95])
def test_the_banding_finds_98_percent_at_its_threshold(threshold):
    cut = banding(threshold)
    assert cut.meets(threshold) >= 0.98
    assert cut.bands * cut.rows <= HASHES
    assert cut.steep < threshold


def test_the_curve_is_the_one_of_the_book():
    assert Banding(20, 5).meets(0.8) == pytest.approx(0.9996, abs=1e-4)


def found_pairs(folder, documents, groups, threshold=0.8, *, across=False):
    similar = SimilarDocuments(folder, threshold)
    similar.add(range(len(documents)), groups, [" ".join(words).encode() for words in documents])
    return {(pair.first, pair.second) for pair in similar.pairs(across=across)}


def test_recall_and_precision_on_pairs_of_known_similarity(tmp_path):
    draw = random.Random(3)  # noqa: S311
    documents, truth = [], {}
    for _ in range(400):
        words = draw.choices(WORDS, k=100)
        other = near_copy(words, draw.choice([0.3, 0.5, 0.65, 0.92, 0.95]), f"x{len(documents)}y")
        truth[len(documents), len(documents) + 1] = jaccard(words, other)
        documents += [words, other]
    found = found_pairs(tmp_path, documents, [0] * len(documents))
    wanted = {pair for pair, value in truth.items() if value >= 0.9}
    assert len(found & wanted) >= 0.98 * len(wanted)
    assert not {pair for pair in found if truth.get(pair, 0) < 0.7}


def test_short_documents_are_compared_as_a_whole(tmp_path):
    documents = [["only", "three", "words"], ["only", "three", "words"], ["only", "two"], []]
    assert found_pairs(tmp_path, documents, [0, 1, 0, 1]) == {(0, 1)}


def test_across_sees_only_pairs_of_different_groups(tmp_path):
    words = random.Random(4).choices(WORDS, k=50)  # noqa: S311
    assert found_pairs(tmp_path, [words] * 4, [0, 0, 1, 1], across=True) == {(0, 2), (0, 3), (1, 2), (1, 3)}


def test_a_crowd_is_linked_without_comparing_all_pairs(tmp_path):
    words = random.Random(5).choices(WORDS, k=50)  # noqa: S311
    count = 8 * CROWD
    found = found_pairs(tmp_path, [words] * count, [0] * (count - 1) + [1])
    assert {second for _, second in found} == set(range(1, count)), "each is near an earlier one"
    assert len(found) < 5 * count
