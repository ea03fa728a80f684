"""Whether every byte that was registered is still there and still the same."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from pydantic import Field

from deepseek_ops.core.errors import IntegrityError, ObjectNotFoundError
from deepseek_ops.core.ports import Facts, ObjectStore
from deepseek_ops.core.records import ModelVersion, Record, digest_of
from deepseek_ops.registry import aliases
from deepseek_ops.registry.aliases import AliasEntry
from deepseek_ops.registry.bundle import Bundle, parse_bundle
from deepseek_ops.registry.errors import VersionNotFoundError
from deepseek_ops.registry.layout import (
    alias_names,
    bundle_key,
    claim_key,
    claimed_versions,
    folder_key,
    plain_version,
)
from deepseek_ops.registry.mirror import ALIAS_KIND, REGISTRY_KIND, VERSION_KIND, version_key
from deepseek_ops.registry.reading import stored_digest

_WORKERS = 8
_LIMIT = 100_000


class VerifyProblem(Record):
    """One thing that is not as it was registered."""

    version: str = Field(description="Empty for an alias.")
    path: str = Field(description="Below the version's folder, or the alias.")
    problem: str = Field(description="missing, changed, unexpected or damaged.")
    detail: str = ""


class VerifyReport(Record):
    """What was read back, and what is wrong with it."""

    registry: str
    versions: tuple[str, ...] = Field(description="Versions that were checked.")
    unfinished: tuple[str, ...] = Field(default=(), description="Claimed numbers that were never committed; harmless.")
    num_files: int = Field(ge=0)
    num_bytes: int = Field(ge=0)
    problems: tuple[VerifyProblem, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.problems


def verify(
    store: ObjectStore, *, name: str | None = None, version: str | None = None, facts: Facts | None = None
) -> VerifyReport:
    """Read back every file of a version, or of all versions (of a model), and with them the alias logs.

    With ``facts`` the committed bundles are compared with what the database remembers. A version's files are hashed as
    they are read; nothing is written. Raises VersionNotFoundError for a version that does not exist.
    """
    wanted = claimed_versions(store) if version is None else [plain_version(version)]
    checks = [_Check(store, number, facts) for number in wanted]
    checks = [check for check in checks if name is None or check.name in (None, name)]
    if version is not None and not any(check.committed or check.problems for check in checks):
        raise VersionNotFoundError(store.uri, f"v{wanted[0]}" + (f" of {name}" if name else ""))
    for check in checks:
        check.read_files()
    problems = [problem for check in checks for problem in check.problems]
    if version is None:
        problems += _alias_problems(store, name, facts)
        problems += _vanished(store, name, facts, {check.version for check in checks})
    return VerifyReport(
        registry=store.uri,
        versions=tuple(check.version for check in checks if check.committed),
        unfinished=tuple(check.version for check in checks if not check.committed and not check.problems),
        num_files=sum(check.num_files for check in checks),
        num_bytes=sum(check.num_bytes for check in checks),
        problems=tuple(problems),
    )


class _Check:
    """One version while it is being checked."""

    def __init__(self, store: ObjectStore, version: str, facts: Facts | None) -> None:
        self.version = version
        self.problems: list[VerifyProblem] = []
        self.num_files = self.num_bytes = 0
        self._store = store
        self._bundle = self._read_bundle(facts)

    @property
    def committed(self) -> bool:
        return self._bundle is not None

    @property
    def name(self) -> str | None:
        return self._bundle.name if self._bundle else None

    def _add(self, path: str, problem: str, detail: str = "") -> None:
        self.problems.append(VerifyProblem(version=self.version, path=path, problem=problem, detail=detail))

    def _read_bundle(self, facts: Facts | None) -> Bundle | None:
        """Return the bundle; what it must be is said by the claim it was written from, and by the facts."""
        key = bundle_key(self.version)
        data, claim = _get(self._store, key), _get(self._store, claim_key(self.version))
        if data is None:
            if remembered := self._remembered(claim, facts):
                self._add("bundle.json", "missing", f"the facts remember {remembered}")
            return None
        try:
            bundle = parse_bundle(data, where=f"{self._store.uri}/{key}")
        except IntegrityError as error:
            self._add("bundle.json", "damaged", str(error))
            return None
        if claim is not None and claim != data:
            self._add("bundle.json", "changed", f"{digest_of(data)}, was claimed as {digest_of(claim)}")
        remembered = self._remembered(data, facts)
        if remembered and remembered != digest_of(data):
            self._add("bundle.json", "changed", f"{digest_of(data)}, the facts remember {remembered}")
        return bundle

    def _remembered(self, data: bytes | None, facts: Facts | None) -> str:
        if facts is None or data is None:
            return ""
        try:
            name = parse_bundle(data, where="").name
        except IntegrityError:
            return ""
        fact = facts.get(VERSION_KIND, version_key(name, self.version))
        return ModelVersion.load(fact.body).bundle if fact else ""

    def read_files(self) -> None:
        """Compare the version's folder with its bundle: names, sizes, then digests."""
        if self._bundle is None:
            return
        folder = folder_key(self.version)
        found = {info.key.removeprefix(folder): info.size for info in self._store.list(folder)}
        found.pop("bundle.json", None)
        whole = []
        for entry in self._bundle.files:
            size = found.pop(entry.path, None)
            if size is None:
                self._add(entry.path, "missing")
            elif size != entry.size:
                self._add(entry.path, "changed", f"{size} bytes, expected {entry.size}")
            else:
                whole.append(entry)
        for path in sorted(found):
            self._add(path, "unexpected", "not part of the bundle")
        with ThreadPoolExecutor(_WORKERS) as pool:
            digests = pool.map(lambda one: stored_digest(self._store, folder + one.path, one.size), whole)
            for entry, digest in zip(whole, digests, strict=True):
                if digest != entry.digest:
                    self._add(entry.path, "changed", f"digest {digest}, expected {entry.digest}")
        self.num_files = len(whole)
        self.num_bytes = sum(entry.size for entry in whole)


def _get(store: ObjectStore, key: str) -> bytes | None:
    try:
        return store.get(key)
    except ObjectNotFoundError:
        return None


def _alias_problems(store: ObjectStore, name: str | None, facts: Facts | None) -> list[VerifyProblem]:
    """Return what is wrong with the alias logs: a broken chain, a move that is not the one the facts remember."""
    logs = set(alias_names(store))
    remembered = _remembered_moves(store, facts)
    problems = []
    for model, alias in sorted(logs | remembered.keys()):
        if name not in (None, model):
            continue
        problem, detail = _alias_problem(store, model, alias, remembered.get((model, alias)))
        if problem:
            path = f"{model}/{alias}"
            problems.append(VerifyProblem(version="", path=path, problem=problem, detail=detail))
    return problems


def _alias_problem(store: ObjectStore, model: str, alias: str, known: AliasEntry | None) -> tuple[str, str]:
    try:
        moves = list(aliases.history(store, model, alias))
    except IntegrityError as error:
        return "damaged", str(error)
    if known is not None and known not in moves:
        return "changed", f"the facts remember move {known.sequence} to v{known.version}, {known.fingerprint}"
    newest = moves[0]
    data = _get(store, bundle_key(newest.version))
    if data is None or digest_of(data) != newest.bundle:
        return "damaged", f"v{newest.version} is {'missing' if data is None else 'not the bundle it was set to'}"
    return "", ""


def _remembered_moves(store: ObjectStore, facts: Facts | None) -> dict[tuple[str, str], AliasEntry]:
    entries = [] if facts is None else [AliasEntry.load(fact.body) for fact in facts.find(ALIAS_KIND, limit=_LIMIT)]
    return {(entry.name, entry.alias): entry for entry in entries if _is_here(store, facts, entry.name)}


def _vanished(store: ObjectStore, name: str | None, facts: Facts | None, seen: set[str]) -> list[VerifyProblem]:
    """Return the versions that the facts remember and of which the store has not even the claim."""
    found = [] if facts is None else [ModelVersion.load(fact.body) for fact in facts.find(VERSION_KIND, limit=_LIMIT)]
    return [
        VerifyProblem(
            version=one.version, path="bundle.json", problem="missing", detail=f"the facts remember {one.name}"
        )
        for one in found
        if name in (None, one.name) and one.version not in seen and _is_here(store, facts, one.name)
    ]


def _is_here(store: ObjectStore, facts: Facts | None, name: str) -> bool:
    """Return whether the facts say that the model's registry is this one: they may mirror several, or a moved one."""
    fact = facts.get(REGISTRY_KIND, name) if facts is not None else None
    return fact is not None and fact.body.get("uri") == store.uri
