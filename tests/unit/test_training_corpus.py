"""The raw corpus is read from source files, the same each time, and nothing of the library is run."""

from __future__ import annotations

import json
import sys

import pytest

from deepseek_ops.embedded.corpus import CorpusUnavailableError, collect_python_corpus


@pytest.fixture
def library(tmp_path):
    root = tmp_path / "lib"
    for path, text in {
        "pydoc_data/topics.py": "topics = {'b': 'second topic', 'a': 'first topic'}\n",
        "loud.py": '"""Module text."""\nimport sys\nsys.loud_was_imported = True\n'
        'class Thing:\n    """Class text."""\n    def do(self):\n        """Method text."""\n'
        '        def inner():\n            """Not collected."""\n',
        "broken.py": "def (:\n",
        "pack/__init__.py": '"""Package text."""\n',
        "test/noise.py": '"""Test text."""\n',
        "site-packages/other.py": '"""Somebody else\'s text."""\n',
    }.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


def documents(folder):
    return [json.loads(line) for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines()]


def test_topics_and_docstrings_of_the_library_are_collected(library, tmp_path):
    shards = collect_python_corpus(tmp_path / "raw", stdlib=library)
    assert [path.name for path in shards] == ["docstrings-00000.jsonl", "topics-00000.jsonl"]
    assert {document["id"]: document["text"] for document in documents(tmp_path / "raw")} == {
        "loud": "Module text.",
        "loud.Thing": "Class text.",
        "loud.Thing.do": "Method text.",
        "pack": "Package text.",
        "topic:a": "first topic",
        "topic:b": "second topic",
    }


def test_nothing_is_imported(library, tmp_path):
    collect_python_corpus(tmp_path / "raw", stdlib=library)
    assert not hasattr(sys, "loud_was_imported")


def test_two_collections_are_equal_byte_for_byte(library, tmp_path):
    for name in ("one", "two"):
        collect_python_corpus(tmp_path / name, stdlib=library)
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two
    assert {"LICENSE", "ORIGIN.md"} <= set(one)


def test_origin_and_licence_are_said(library, tmp_path):
    collect_python_corpus(tmp_path / "raw", stdlib=library)
    assert "Python Software Foundation" in (tmp_path / "raw" / "ORIGIN.md").read_text()
    assert (tmp_path / "raw" / "LICENSE").read_text()


def test_a_python_without_sources_is_an_error(tmp_path):
    (tmp_path / "lib").mkdir()
    with pytest.raises(CorpusUnavailableError, match="no Python sources with docstrings"):
        collect_python_corpus(tmp_path / "raw", stdlib=tmp_path / "lib")
