"""``requirements.txt`` in every dialect that lock tools write, read as pins; what does not pin is refused by line.

A pin is ``name==version`` (extras, marker and hashes welcome), a VCS URL that names a whole commit id, or an archive
URL with a hash. ``-r`` includes, ``-c`` constrains; a bare name that a constraint pins is pinned. Options that choose
an index are left out with a note: where packages come from, and with which credentials, is the worker's business.
"""

from __future__ import annotations

import posixpath
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from deepseek_ops.core.environments import EnvironmentLock, Pin, canonical_name
from deepseek_ops.core.errors import PermanentError
from deepseek_ops.core.masking import masked

MAX_INCLUDES = 50
_NAME = r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[(?P<extras>[A-Za-z0-9._,\s-]*)\])?\s*"
_PINNED = re.compile(rf"^{_NAME}===?\s*(?P<version>[A-Za-z0-9.!+_-]+)$")
_BARE = re.compile(rf"^{_NAME}$")
_AT_URL = re.compile(rf"^{_NAME}@\s*(?P<url>\S+)$")
_COMMIT = re.compile(r"^(?:git|hg)\+(?:https|ssh|file)://\S+@[0-9a-f]{40}(?:[0-9a-f]{24})?(?:#\S*)?$")
_HASH = re.compile(r"^(sha256|sha384|sha512):[0-9a-f]{64,128}$")
_INDEX_OPTIONS = frozenset(
    {"-i", "--index-url", "--extra-index-url", "-f", "--find-links", "--no-index", "--trusted-host", "--pypi-url"}
)
_DECIDING = frozenset({"--no-binary", "--only-binary"})
_FLAGS = frozenset({"--pre", "--prefer-binary", "--use-pep517", "--no-index", "--require-hashes"})
_COMMENT = re.compile(r"(^|\s)#.*$")

Read = Callable[[str], str | None]
"""Gives the text of a file of the model repository by path, or None when there is none."""


@dataclass(eq=False)
class UnpinnedLockError(PermanentError):
    """Lines of the lock file that do not name one exact version; credentials in them are starred out."""

    file: str
    lines: tuple[tuple[int, str], ...]
    places: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.lines = tuple((number, masked(text)) for number, text in self.lines)

    def __str__(self) -> str:
        named = self.places or (self.file,) * len(self.lines)
        rows = zip(named, self.lines, strict=True)
        shown = [f"{'' if at == self.file else at + ' '}line {number}: {text!r}" for at, (number, text) in rows]
        more = f"; and {len(shown) - 10} more" if len(shown) > 10 else ""
        return (
            f"{self.file} does not pin: {'; '.join(shown[:10])}{more}. Write name==version on every line, or let a "
            "lock tool write it; URLs need a whole commit id (git+https://host/repo@<40 hex digits>) or a --hash."
        )


@dataclass(eq=False)
class LockFileError(PermanentError):
    """A lock file that cannot be read at all."""

    file: str
    line: int
    problem: str
    remedy: str

    def __post_init__(self) -> None:
        self.problem = masked(self.problem)

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        return f"{where}: {self.problem} {self.remedy}"


@dataclass
class _Reading:
    """One lock while it is read: what was found, and what is wrong, over all included files."""

    read: Read
    file: str
    pins: dict[tuple[str, str], Pin] = field(default_factory=dict)
    constraints: dict[tuple[str, str], Pin] = field(default_factory=dict)
    bare: list[tuple[str, int, str, Pin]] = field(default_factory=list)
    wrong: list[tuple[str, int, str]] = field(default_factory=list)
    options: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    seen: set[tuple[str, bool]] = field(default_factory=set)
    require_hashes: bool = False

    def include(self, path: str, text: str, *, constraint: bool) -> None:
        if (path, constraint) in self.seen:
            return
        self.seen.add((path, constraint))
        if len(self.seen) > MAX_INCLUDES:
            raise LockFileError(path, 0, f"more than {MAX_INCLUDES} files include each other.", "Write one lock.")
        for number, line in _lines(text):
            if line.startswith("-"):
                self._option(path, number, line, constraint=constraint)
            else:
                self._requirement(path, number, line, constraint=constraint)

    def _option(self, path: str, number: int, line: str, *, constraint: bool) -> None:
        name, value = _split_option(line)
        if name in ("-r", "--requirement", "-c", "--constraint"):
            self._included(path, number, value, constraint=constraint or name in ("-c", "--constraint"))
        elif name in _INDEX_OPTIONS:
            shown = masked(f"{name} {value}".strip())
            self.notes.append(f"{path}:{number}: {shown} is left out: the worker's environment names the index")
        elif name == "--require-hashes":
            self.require_hashes = True
        elif name in _DECIDING and value:
            self.options.add(f"{name} {value}")
        elif name not in _FLAGS:
            self.wrong.append((path, number, line))

    def _included(self, path: str, number: int, value: str, *, constraint: bool) -> None:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), value))
        if "://" in value or target.startswith(("/", "..")):
            raise LockFileError(path, number, f"{value!r} is not in the repository.", "Include files of the commit.")
        text = self.read(target)
        if text is None:
            raise LockFileError(path, number, f"{target} is not in the commit.", "Push it, or correct the path.")
        self.include(target, text, constraint=constraint)

    def _requirement(self, path: str, number: int, line: str, *, constraint: bool) -> None:
        pin, pinned = _pin(line)
        if pin is None or (not pinned and (constraint or pin.url)):
            self.wrong.append((path, number, line))
        elif not pinned:
            self.bare.append((path, number, line, pin))
        else:
            self._keep(path, number, line, pin, constraint=constraint)

    def _keep(self, path: str, number: int, line: str, pin: Pin, *, constraint: bool) -> None:
        found = self.constraints if constraint else self.pins
        before = found.get((pin.name, pin.marker))
        if before is not None and (before.version, before.url) != (pin.version, pin.url):
            self.wrong.append((path, number, f"{line} (pinned to {before.version or before.url} before)"))
            return
        hashes = tuple(sorted({*pin.hashes, *(before.hashes if before else ())}))
        extras = tuple(sorted({*pin.extras, *(before.extras if before else ())}))
        found[(pin.name, pin.marker)] = pin.evolve(hashes=hashes, extras=extras)

    def lock(self) -> EnvironmentLock:
        """Return the whole lock. Raises UnpinnedLockError naming every line that does not pin."""
        for path, number, line, bare in self.bare:
            known = [pin for (name, _), pin in self.constraints.items() if name == bare.name]
            if not known:
                self.wrong.append((path, number, line))
            for pin in known:
                self._keep(path, number, line, pin.evolve(extras=bare.extras), constraint=False)
        self._same_name_twice()
        if self.wrong:
            found = sorted(self.wrong, key=lambda one: (one[0] != self.file, one[0], one[1]))
            lines = tuple((number, text) for _, number, text in found)
            raise UnpinnedLockError(self.file, lines, tuple(path for path, _, _ in found))
        return EnvironmentLock(
            file=self.file,
            pins=_sorted(self.pins),
            constraints=_sorted(self.constraints),
            options=tuple(sorted(self.options)),
            require_hashes=self.require_hashes or any(pin.hashes for pin in self.pins.values() if not pin.url),
            notes=tuple(self.notes),
        )

    def _same_name_twice(self) -> None:
        """Refuse a name that has two versions where neither says by a marker when it holds."""
        for (name, marker), pin in self.pins.items():
            others = [one for (other, mark), one in self.pins.items() if other == name and mark != marker]
            if not marker and any((one.version, one.url) != (pin.version, pin.url) for one in others):
                self.wrong.append((self.file, 0, f"{pin.requirement} and {others[0].requirement}"))


def parse_requirements(text: str, *, file: str, read: Read = lambda _path: None) -> EnvironmentLock:
    """Return the lock that ``text`` and what it includes make.

    Raises UnpinnedLockError naming every line that does not pin, and LockFileError for an include that leads nowhere.
    """
    reading = _Reading(read, file)
    reading.include(posixpath.normpath(file), text, constraint=False)
    return reading.lock()


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield (number of its first line, logical line): comments gone, continuation lines joined."""
    start, parts = 0, list[str]()
    for number, raw in enumerate(text.removeprefix("\ufeff").splitlines(), start=1):
        line = _COMMENT.sub("", raw).strip() if not raw.lstrip().startswith("#") else ""
        start = start or number
        going_on = line.endswith("\\")
        parts.append(line.rstrip("\\").strip())
        if going_on:
            continue
        whole = " ".join(part for part in parts if part)
        if whole:
            yield start, whole
        start, parts = 0, []
    if whole := " ".join(part for part in parts if part):
        yield start, whole


def _split_option(line: str) -> tuple[str, str]:
    if line.startswith("--"):
        name, _, value = re.sub(r"\s+", "=", line, count=1).partition("=")
        return name, value.strip()
    return line[:2], line[2:].strip().lstrip("=").strip()


def _pin(line: str) -> tuple[Pin | None, bool]:
    """Return the requirement and whether it is pinned; None for what is no requirement that can be."""
    what, _, tail = line.partition(" --")
    hashes = _hashes(f"--{tail}") if tail else ()
    if hashes is None:
        return None, False
    what, marker = _marker(what.strip())
    if match := _AT_URL.match(what):
        return _from_url(match["url"], match["name"], match["extras"], marker, hashes)
    if "://" in what:
        name = re.search(r"[#&]egg=([A-Za-z0-9][A-Za-z0-9._-]*)", what)
        wheel = re.search(r"/([A-Za-z0-9][A-Za-z0-9._]*)-[^/]*\.(?:whl|tar\.gz|zip)", what)
        found = name or wheel
        return _from_url(what, found[1], "", marker, hashes) if found else (None, False)
    match, pinned = _PINNED.match(what), True
    if match is None:
        match, pinned = _BARE.match(what), False
    if match is None:
        return None, False
    version = match["version"] if pinned else ""
    pin = Pin(
        name=canonical_name(match["name"]), version=version, extras=_extras(match["extras"]), marker=marker,
        hashes=hashes,
    )  # fmt: skip
    return pin, pinned


def _from_url(url: str, name: str, extras: str | None, marker: str, hashes: tuple[str, ...]) -> tuple[Pin | None, bool]:
    password = urlsplit(url.partition("+")[2] if "+" in url.partition("://")[0] else url)
    user_only = password.username is not None and password.password is None and url.startswith("git+ssh://")
    if password.username is not None and not user_only:
        return None, False  # a password in a lock is read by everybody who may read the repository
    inside = re.search(r"#(?:.*&)?(sha256|sha384|sha512)=([0-9a-f]{64,128})", url)
    if inside:
        hashes = tuple(sorted({*hashes, f"{inside[1]}:{inside[2]}"}))
    pin = Pin(name=canonical_name(name), url=url, extras=_extras(extras), marker=marker, hashes=hashes)
    return pin, bool(_COMMIT.match(url)) or (url.startswith("https://") and bool(hashes))


def _hashes(options: str) -> tuple[str, ...] | None:
    """Return the hashes of a requirement's options, sorted; None when there is another option or no real hash."""
    try:
        words = shlex.split(options.replace("=", " "))
    except ValueError:
        return None
    found = words[1::2]
    known = all(word == "--hash" for word in words[::2]) and len(words) % 2 == 0
    return tuple(sorted(set(found))) if known and all(_HASH.match(one) for one in found) else None


def _marker(what: str) -> tuple[str, str]:
    """Return requirement and marker; a URL's marker needs a space before its semicolon."""
    head, found, marker = what.partition(" ;") if "://" in what else what.partition(";")
    return (head.strip(), " ".join(marker.split()).replace('"', "'")) if found else (what, "")


def _extras(text: str | None) -> tuple[str, ...]:
    return tuple(sorted({canonical_name(one.strip()) for one in (text or "").split(",") if one.strip()}))


def _sorted(pins: dict[tuple[str, str], Pin]) -> tuple[Pin, ...]:
    return tuple(pins[key] for key in sorted(pins))
