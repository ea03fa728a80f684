"""Signatures of what we write, with an SSH key (``gpg.format=ssh``): git itself verifies the commits and tags.

An Ed25519 key signs equal bytes equally, so a retry still builds the same objects; ECDSA and hardware keys do not.
"""

from __future__ import annotations

import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from deepseek_ops.adapters.git.command import Git, file_of
from deepseek_ops.core.errors import PermanentError

SECONDS = 30.0
BEGIN = "-----BEGIN SSH SIGNATURE-----"


@dataclass(eq=False)
class SigningError(PermanentError):
    """The signing key cannot sign. ``problem`` never holds the key."""

    repository: str
    problem: str

    def __str__(self) -> str:
        return (
            f"the signing key for {self.repository} does not sign: {self.problem}. Give an Ed25519 private key without "
            "passphrase, and install ssh-keygen (OpenSSH 8.2 or newer)."
        )


def signature(git: Git, payload: bytes) -> str:
    """Return the armoured signature of ``payload``, "" where no key is configured. Raises SigningError."""
    key = git.credentials.signing_key
    if not key:
        return ""
    with tempfile.TemporaryDirectory(prefix="deepseek-ops-sign-") as folder:
        place = file_of(key, Path(folder, "key"))
        command = ["ssh-keygen", "-Y", "sign", "-q", "-n", "git", "-f", str(place)]
        environment = {name: value for name, value in git.environment().items() if name == "PATH"}
        try:
            done = subprocess.run(
                command, input=payload, capture_output=True, check=False, timeout=SECONDS, env=environment, cwd="/"
            )
        except (FileNotFoundError, subprocess.TimeoutExpired) as error:
            raise SigningError(git.address.url, type(error).__name__) from None
    if done.returncode or BEGIN.encode() not in done.stdout:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no signature came"]
        raise SigningError(git.address.url, lines[-1].replace(str(place), "the key"))
    return done.stdout.decode()


def signed_commit(work: Git, commit: str) -> str:
    """Return the commit with our signature in it; the same commit where no key is configured."""
    if not work.credentials.signing_key:
        return commit
    content = work.run("cat-file", "commit", commit)
    head, _, message = content.partition(b"\n\n")
    folded = signature(work, content).rstrip("\n").replace("\n", "\n ")
    signed = head + b"\ngpgsig " + folded.encode() + b"\n\n" + message
    return work.run("hash-object", "-t", "commit", "-w", "--stdin", data=signed).decode().strip()


def without_signature(message: str) -> str:
    """Return a tag's message without the signature at its end."""
    return message.partition(BEGIN)[0]
