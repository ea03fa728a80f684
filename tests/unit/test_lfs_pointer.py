"""Git LFS pointers: read strictly, written as git-lfs would."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_ops.adapters.git_lfs.pointer import (
    LfsPointer,
    LfsPointerError,
    parse_pointer,
    pointer_text,
    pointers_below,
)

OID = "4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393"
HEAD = "version https://git-lfs.github.com/spec/v1\n"


def parse(text: str | bytes) -> LfsPointer | None:
    return parse_pointer(text if isinstance(text, bytes) else text.encode(), file="w.pt")


@given(st.text("0123456789abcdef", min_size=64, max_size=64), st.integers(0, (1 << 63) - 1))
def test_what_is_written_is_read(oid: str, size: int):
    assert parse(pointer_text(LfsPointer(oid, size))) == LfsPointer(oid, size)


@pytest.mark.parametrize("text", ["", "version 1", "weights", f"{HEAD}oid sha256:{OID}\nsize 5\n" + "x" * 1024])
def test_other_content_is_no_pointer(text: str):
    assert parse(text) is None


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (HEAD, "oid is ''"),
        (f"{HEAD}oid sha256:{OID}\n", "size is ''"),
        (f"{HEAD}oid sha256:{OID}\nsize -1\n", "size is '-1'"),
        (f"{HEAD}oid sha256:{OID}\nsize 9{'9' * 30}\n", "size is"),
        (f"{HEAD}oid sha256:{OID}\nsize ٣\n", "size is"),
        (f"{HEAD}oid sha256:{OID.upper()}\nsize 5\n", "oid is"),
        (f"{HEAD}oid sha256:../../../../etc/passwd\nsize 5\n", "oid is"),
        (f"{HEAD}oid md5:{OID}\nsize 5\n", "oid is"),
        (f"{HEAD}oid sha256:{OID}\noid sha256:{OID}\nsize 5\n", "not a new"),
        (f"{HEAD}<<<<<<< ours\noid sha256:{OID}\nsize 5\n", "not a new"),
        (f"{HEAD}ext-0-foo sha256:{OID}\noid sha256:{OID}\nsize 5\n", "extension ext-0-foo"),
        (HEAD.encode() + b"\xff\n", "not UTF-8"),
    ],
)
def test_a_damaged_pointer_is_refused_by_name(text: str | bytes, problem: str):
    with pytest.raises(LfsPointerError, match=problem) as caught:
        parse(text)
    assert "w.pt" in str(caught.value)


def test_pointers_are_found_below_a_folder_and_links_are_not_followed(tmp_path: Path):
    text = pointer_text(LfsPointer(OID, 5))
    for name in ("b/w.pt", "a.pt", ".git/w.pt", "b/code.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("print()" if name.endswith(".py") else text)
    (tmp_path / "link.pt").symlink_to(tmp_path / "a.pt")
    (tmp_path / "folder").symlink_to(tmp_path / "b")
    assert [path for path, _ in pointers_below(tmp_path)] == ["a.pt", "b/w.pt"]
