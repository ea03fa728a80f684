"""The environment of a run: what pins, what does not, and that equal locks give equal keys, whatever wrote them."""

from __future__ import annotations

import json

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_ops.pipeline.environment import (
    EnvironmentMismatchError,
    LockFileError,
    UnpinnedLockError,
    differences,
    environment_key,
    parse_lock,
    require_installed,
)
from deepseek_ops.pipeline.environment_locks import read_lock
from deepseek_ops.pipeline.environment_requirements import parse_requirements

SHA = "a" * 64
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def lock(text, **files):
    return parse_requirements(text, file="requirements.txt", read=files.get)


def key(text, image="", **files):
    return environment_key(lock(text, **files), image=image)


def refused(text, read=lambda _path: None, path="requirements.txt"):
    """Return the error that a lock is refused with."""
    with pytest.raises(UnpinnedLockError) as caught:
        read_lock(path, lambda name: text if name == path else read(name))
    return caught.value


def test_every_line_that_does_not_pin_is_named_with_its_number():
    lines = [
        "torch==2.13.0",
        "transformers>=5",
        "# a comment",
        "numpy",
        "git+https://host/r.git#egg=r",
        f"a==1 --hash=sha256:{SHA}",
        "-e ./mine",
        "./wheels/x-1-py3-none-any.whl",
        "six==1.*",
    ]
    error = refused("\n".join(lines))
    assert [number for number, _ in error.lines] == [2, 4, 5, 7, 8, 9]
    assert "requirements.txt does not pin: line 2: 'transformers>=5'" in str(error)


@pytest.mark.parametrize(
    "line",
    [
        "r @ git+https://host/r.git@main",
        f"r @ git+https://host/r.git@{COMMIT[:12]}",
        "https://host/r-1.0-py3-none-any.whl",
        f"r @ http://host/r-1.0.zip --hash=sha256:{SHA}",
        f"git+https://user:hush@host/r.git@{COMMIT}#egg=r",
        "a==1 --hash=md5:0123",
        "a==1 --config-settings=x",
        "a===",
        "a==1,>0",
    ],
)
def test_what_only_looks_like_a_pin_is_refused_and_shows_no_password(line):
    assert "hush" not in str(refused(line))


@pytest.mark.parametrize(
    "line",
    [
        f"-e git+https://bob:hush@github.com/o/r.git@{COMMIT}#egg=r",
        "--editable git+https://hush@github.com/o/r.git",
        "-e git+https://bob:p@hush@github.com/o/r.git",
        "bare\nbare2 --unknown https://bob:hush@host/x",
        f"r @ git+https://bob:hush@host/r.git@{COMMIT}\nr==1\nr==2",
        "https://host/r.zip?private_token=hush&x=1",
    ],
)
def test_no_line_shows_a_credential_whatever_it_is_refused_for(line):
    error = refused(line)
    assert "hush" not in str(error) + repr(error)
    assert "://***@" in str(error) or "private_token=***" in str(error)
    entry = json.dumps(next(one for one in line.splitlines() if "hush" in one))
    text = CONDA.replace("humanize==4.0.0", entry).replace("      - -r more.txt\n", "")
    conda = refused(text, path="environment.yml")
    assert "hush" not in str(conda) + repr(conda)


def test_an_index_or_an_include_with_a_credential_is_told_without_it():
    noted = lock("--extra-index-url https://bob:hush@index/simple\n-i https://index/simple?token=hush\n").notes
    assert "https://***@index/simple is left out" in noted[0]
    assert "hush" not in "".join(noted)
    with pytest.raises(LockFileError) as caught:
        lock("-r https://bob:hush@host/r.txt")
    assert "'https://***@host/r.txt' is not in the repository" in str(caught.value)


def test_pins_are_read_with_extras_markers_hashes_and_other_spellings():
    text = (
        f"Foo_Bar[b, A]==1.0 ; python_version >= '3.11'\nbaz==2.0 \\\n    --hash=sha256:{SHA} \\\n"
        f"    # via foo-bar\nr @ git+ssh://git@host/r.git@{COMMIT}\n"
        f"https://host/wheel-1.0-py3-none-any.whl#sha256={SHA}\n--extra-index-url https://index\n--only-binary=:all:\n"
    )
    found = {pin.name: pin for pin in lock(text).pins}
    assert found["foo-bar"].requirement == "foo-bar[a,b]==1.0 ; python_version >= '3.11'"
    assert found["baz"].hashes == (f"sha256:{SHA}",)
    assert found["r"].url.endswith(COMMIT)
    assert found["wheel"].hashes == (f"sha256:{SHA}",)
    assert lock(text).require_hashes
    assert lock(text).options == ("--only-binary :all:",)
    assert "requirements.txt:7: --extra-index-url https://index is left out" in lock(text).notes[0]
    assert parse_lock("baz==2.0\n", file="r.txt") == {"baz": "2.0"}


def test_a_name_may_be_pinned_by_a_constraint_and_by_an_include():
    found = lock("-r base/more.txt\n-c pins.txt\nwcwidth[x]\n", **{"base/more.txt": "a==1\n", "pins.txt": "wcwidth==2"})
    assert [pin.requirement for pin in found.pins] == ["a==1", "wcwidth[x]==2"]
    error = refused("-r more.txt\nb\n", {"more.txt": "a\n"}.get)
    assert "more.txt line 1: 'a'" in str(error)
    assert "line 2: 'b'" in str(error)


@pytest.mark.parametrize("line", ["-r ../secrets.txt", "-r /etc/passwd", "-r https://host/r.txt", "-c not-there.txt"])
def test_an_include_that_leads_out_of_the_repository_or_nowhere_names_its_line(line):
    with pytest.raises(LockFileError, match=r"^requirements.txt:2: "):
        lock(f"a==1\n{line}\n")


def test_two_versions_of_one_package_are_refused_unless_markers_tell_them_apart():
    assert "pinned to 1 before" in str(refused("a==1\na==2\n"))
    assert "a==1" in str(refused("a==1\na==2 ; python_version < '3.12'\n"))
    assert len(lock("a==1 ; python_version >= '3.12'\na==2 ; python_version < '3.12'\n").pins) == 2


@given(st.permutations(["Torch==2.13.0", "numpy==2.4.6 # why", "a_b==1 ; python_version>'3'", "# a comment", ""]))
def test_comments_order_and_spelling_do_not_change_the_key(lines):
    assert key("\n".join(lines)) == key("a-b==1;python_version>'3'\nnumpy==2.4.6\ntorch==2.13.0\n")


def test_the_key_depends_on_lock_and_image():
    texts = ["a==1", "a==2", "a[x]==1", f"a==1 --hash=sha256:{SHA}", "a==1 ; os_name == 'nt'", "a==1\n-c c", "b==1"]
    keys = [key(text, c="z==1") for text in texts]
    assert len({*keys, key("a==1", image="image:1"), environment_key(None, image="")}) == len(texts) + 2


def test_what_differs_from_the_lock_is_named():
    require_installed(lock(f"pydantic=={pydantic.VERSION}\nno-such-package==1 ; os_name == 'nt'\n"))
    with pytest.raises(EnvironmentMismatchError) as caught:
        require_installed(lock(f"pydantic==0.1\nno-such-package-of-ours==1\nr @ git+https://h/r@{COMMIT}"))
    assert "no-such-package-of-ours==1 is not installed" in str(caught.value)
    assert f"pydantic==0.1, installed {pydantic.VERSION}" in str(caught.value)
    assert len(caught.value.differences) == 3


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Return a function that makes a package look installed, from a URL if one is given."""
    monkeypatch.syspath_prepend(tmp_path)

    def install(name, version, **source):
        folder = tmp_path / f"{name}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        if source:
            (folder / "direct_url.json").write_text(json.dumps(source))

    return install


def test_a_local_build_tag_is_the_same_version_unless_the_lock_names_one(installed):
    installed("tagged", "1.0+cpu")
    assert differences(lock("tagged==1.0")) == differences(lock("tagged==1.0+cpu")) == ()
    assert differences(lock("tagged==1.0+cu130")) == ("tagged==1.0+cu130, installed 1.0+cpu",)


def test_a_package_from_a_repository_is_the_same_only_at_the_commit(installed):
    installed("fetched", "1.0", url="https://h/r", vcs_info={"vcs": "git", "commit_id": COMMIT})
    assert differences(lock(f"fetched @ git+https://h/r@{COMMIT}")) == ()
    assert len(differences(lock(f"fetched @ git+https://h/r@{'f' * 40}"))) == 1


CONDA = """\
name: mine
channels: [conda-forge]
dependencies:
  - python=3.11.9
  - pip
  - numpy=2.4.6=py311h1
  - pip:
      - humanize==4.0.0
      - -r more.txt
"""


def test_an_environment_file_is_what_conda_and_pip_install():
    found = read_lock("environment.yml", {"environment.yml": CONDA, "more.txt": "wcwidth==0.2.5"}.get)
    assert found.conda == ("numpy=2.4.6=py311h1",)
    assert found.python == "3.11"
    assert [pin.requirement for pin in found.pins] == ["humanize==4.0.0", "wcwidth==0.2.5"]
    assert "conda packages" in "".join(differences(found))


def test_an_environment_file_that_does_not_pin_is_refused_by_its_lines():
    text = CONDA.replace("numpy=2.4.6=py311h1", "numpy>=2").replace("humanize==4.0.0", "humanize")
    assert refused(text, path="environment.yml").lines == ((6, "numpy>=2"), (8, "humanize"))


@pytest.mark.parametrize("text", ["a: [", "dependencies: 3", "prefixes: x\ndependencies: []", "- a"])
def test_an_environment_file_that_is_none_is_one_clear_error(text):
    with pytest.raises(LockFileError, match=r"^environment\.yml"):
        read_lock("environment.yml", lambda _path: text)
