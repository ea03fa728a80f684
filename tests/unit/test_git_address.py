"""Only addresses become addresses, and credentials stay out of what is shown."""

from __future__ import annotations

import pytest

from deepseek_ops.adapters.git.address import parse_address
from deepseek_ops.adapters.git.command import Credentials
from deepseek_ops.adapters.git.errors import GitCommandError, RepositoryAddressError, explain
from deepseek_ops.core.errors import GitAccessError, GitUnreachableError, RefNotFoundError
from deepseek_ops.core.records import GitRef


@pytest.mark.parametrize(
    ("url", "shown", "transport", "port"),
    [
        ("https://host.example/team/model.git", "https://host.example/team/model.git", "https", 443),
        ("https://me:s3cret@host.example:8443/m.git/", "https://host.example:8443/m.git", "https", 8443),
        ("http://127.0.0.1:3000/m", "http://127.0.0.1:3000/m", "http", 3000),
        ("https://[::1]:9/m", "https://[::1]:9/m", "https", 9),
        ("ssh://git@host:2222/team/m.git", "ssh://git@host:2222/team/m.git", "ssh", 2222),
        ("git@github.com:team/m.git", "git@github.com:team/m.git", "ssh", 22),
        ("file:///srv/m%20x.git", "file:///srv/m x.git", "file", 0),
        ("/srv/m.git", "file:///srv/m.git", "file", 0),
    ],
)
def test_an_address_is_parsed_without_its_credentials(url: str, shown: str, transport: str, port: int) -> None:
    address = parse_address(url)
    assert (address.url, address.transport, address.port) == (shown, transport, port)
    assert "s3cret" not in repr(address)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "-oProxyCommand=touch",
        "--upload-pack=touch /tmp/x",
        "ext::sh -c touch% /tmp/x",
        "fd::17",
        "git://host/m.git",
        "ftp://host/m.git",
        "ssh://-oProxyCommand=x/m.git",
        "ssh://-x@host/m.git",
        "ssh://host/-x",
        "user@-host:m.git",
        "-user@host:m.git",
        "git@host:-x",
        "https://host",
        "https:///m.git",
        "https://host:port/m",
        "file://relative",
        "file:///srv/../etc",
        "relative/m.git",
        "https://host/m\n--upload-pack=x",
        "https://host/a b",
    ],
)
def test_what_git_could_take_for_a_command_is_refused(url: str) -> None:
    with pytest.raises(RepositoryAddressError):
        parse_address(url)


def test_a_refused_address_does_not_show_its_password() -> None:
    with pytest.raises(RepositoryAddressError) as refused:
        parse_address("gopher://me:s3cret@host/m")
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    ("message", "kind", "words"),
    [
        ("fatal: unable to access 'u': Could not resolve host: nowhere", GitUnreachableError, "resolve host"),
        ("fatal: unable to access 'u': The requested URL returned error: 503", GitUnreachableError, "503"),
        (
            "ssh: connect to host h port 22: Connection refused\nfatal: Could not read from",
            GitUnreachableError,
            "refused",
        ),
        ("fatal: Authentication failed for 'u'", GitAccessError, "Authentication failed"),
        ("fatal: repository 'u' not found", GitAccessError, "not found"),
        ("fatal: '/x' does not appear to be a git repository", GitAccessError, "does not appear"),
        ("Host key verification failed.\nfatal: Could not read from remote repository.", GitAccessError, "Host key"),
        ("fatal: remote error: upload-pack: not our ref " + "a" * 40, RefNotFoundError, "a" * 40),
        ("error: unable to write file: No space left on device", GitCommandError, "No space left"),
        ("", GitCommandError, "no message"),
    ],
)
def test_what_git_says_becomes_the_error_a_caller_can_act_on(message: str, kind: type, words: str) -> None:
    error = explain("https://host/m", "fetch", message)
    assert type(error) is kind
    assert words in str(error)


def test_a_password_is_masked_in_messages_and_absent_from_the_representation() -> None:
    credentials = Credentials("me", "s3cret", "-----BEGIN KEY-----")
    assert credentials.mask("bad password s3cret") == "bad password ***"
    assert "s3cret" not in repr(credentials)
    assert "BEGIN" not in repr(credentials)


@pytest.mark.parametrize("name", ["refs/heads/a\n", "refs/heads/a b", "main", "refs/notes/x", "refs/heads/a..b"])
def test_a_ref_record_holds_only_names_that_git_accepts(name: str) -> None:
    with pytest.raises(ValueError, match="full ref name"):
        GitRef(repository="https://host/m", name=name, commit="a" * 40)
