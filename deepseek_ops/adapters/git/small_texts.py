"""The small texts of a repository: what names things that lie elsewhere (LFS pointers, dataset pointers, messages).

The copy is made with the filter ``blob:limit``, so a server that knows filters never sends a large file; one that does
not sends all, and only the small ones are read. Whether a file is small is asked before it is read.
"""

from __future__ import annotations

from collections.abc import Iterator

from deepseek_ops.adapters.git.command import Git

READ_BYTES = 8 << 20
"""Contents read at once."""
MAX_MESSAGE_BYTES = 1 << 20


def small_texts(git: Git, *, max_bytes: int, history: bool) -> Iterator[bytes]:
    """Yield commits, annotated tags and files below ``max_bytes`` that refs of this repository reach, each once."""
    reach = ["--all"] if history else ["--all", "--no-walk"]
    listed = git.run("rev-list", "--objects", "--no-object-names", "--missing=print", *reach, seconds=900)
    present = b"\n".join(line for line in listed.split(b"\n") if line and not line.startswith(b"?"))
    if not present:
        return
    sizes = git.run("cat-file", "--batch-check=%(objecttype) %(objectsize) %(objectname)", data=present, seconds=900)
    batch: list[bytes] = []
    waiting = 0
    for line in sizes.splitlines():
        kind, size, oid = line.split(b" ")
        limit = {b"blob": max_bytes - 1, b"commit": MAX_MESSAGE_BYTES, b"tag": MAX_MESSAGE_BYTES}.get(kind, -1)
        if int(size) > limit:
            continue
        batch.append(oid)
        waiting += int(size)
        if waiting >= READ_BYTES:
            yield from _contents(git, batch)
            batch, waiting = [], 0
    if batch:
        yield from _contents(git, batch)


def _contents(git: Git, oids: list[bytes]) -> Iterator[bytes]:
    output = git.run("cat-file", "--batch=%(objectsize)", data=b"\n".join(oids) + b"\n", seconds=900)
    at = 0
    while at < len(output):
        end = output.index(b"\n", at)
        size = int(output[at:end])
        yield output[end + 1 : end + 1 + size]
        at = end + 1 + size + 1
