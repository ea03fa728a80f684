"""The environment of a run: what pins, what does not, and that equal locks give equal keys."""

from __future__ import annotations

import pytest

from deepseek_ops.pipeline.environment import (
    EnvironmentMismatchError,
    UnpinnedLockError,
    environment_key,
    parse_lock,
    require_installed,
)


def test_every_line_that_does_not_pin_is_named_with_its_number():
    lines = [
        "torch==2.13.0",
        "transformers>=5",
        "# a comment",
        "numpy",
        "git+https://host/r.git",
        "a==1 --hash=sha256:b",
    ]
    with pytest.raises(UnpinnedLockError) as caught:
        parse_lock("\n".join(lines), file="requirements.txt")
    assert [number for number, _ in caught.value.lines] == [2, 4, 5]
    assert "requirements.txt does not pin: line 2: 'transformers>=5'" in str(caught.value)


def test_pins_are_read_with_extras_markers_hashes_and_other_spellings():
    text = "Foo_Bar[extra]==1.0 ; python_version >= '3.11'\nbaz==2.0 \\\n    --hash=sha256:aa\n-i https://index\n"
    with pytest.raises(UnpinnedLockError):
        parse_lock(text, file="r.txt")  # an index option of one dash is no pin
    assert parse_lock(text.replace("-i https://index\n", ""), file="r.txt") == {"foo-bar": "1.0", "baz": "2.0"}


def test_the_key_depends_on_lock_and_image_and_nothing_else():
    key = environment_key(lock="a==1\n", image="image:1")
    assert key == environment_key(lock="a==1\n", image="image:1")
    assert len({key, environment_key(lock="a==2\n", image="image:1"), environment_key(lock="a==1\n", image="b:1")}) == 3


def test_what_differs_from_the_lock_is_named():
    import pydantic

    require_installed({"pydantic": pydantic.VERSION}, file="r.txt")
    with pytest.raises(EnvironmentMismatchError) as caught:
        require_installed({"pydantic": "0.1", "no-such-package-of-ours": "1"}, file="r.txt")
    assert "no-such-package-of-ours==1 is not installed" in str(caught.value)
    assert f"pydantic==0.1, installed {pydantic.VERSION}" in str(caught.value)
