"""Model versions, bundles and aliases in the object store; facts mirror them for queries.

Decision: the store is the registry and the database is a copy of it. A version is a folder that is complete by itself
(``v1.2.0/bundle.json`` names every file beside it by digest), so it survives the database, can be copied to another
bucket, and can be read by people. What it costs: files of a version are stored twice, once content-addressed and once
by name.

Layout below the registry's prefix; every key is created once and never overwritten::

    v1.2.0/bundle.json                 the commit point, written last
    v1.2.0/README.md                   model card
    v1.2.0/safetensors/... onnx/...    one folder per format
    v1.2.0/evaluations/<stage>/...     per-item results
    versions/v1.2.0.json               claim of the number (``publish``)
    identities/<digest>.json           run -> version
    aliases/<model>/<alias>/<n>.json   log of moves, newest first (``aliases``)
"""

from deepseek_ops.registry.aliases import AliasEntry
from deepseek_ops.registry.bundle import Bundle
from deepseek_ops.registry.errors import AliasMovedError, InvalidBundleError, VersionNotFoundError, VersionRaceError
from deepseek_ops.registry.layout import Bump, next_version
from deepseek_ops.registry.mirror import ALIAS_KIND, REGISTRY_KIND, VERSION_KIND, RebuildReport, rebuild
from deepseek_ops.registry.reading import read_bundle, resolve, versions
from deepseek_ops.registry.registry import Registry
from deepseek_ops.registry.verify import VerifyProblem, VerifyReport, verify

__all__ = [
    "ALIAS_KIND",
    "REGISTRY_KIND",
    "VERSION_KIND",
    "AliasEntry",
    "AliasMovedError",
    "Bump",
    "Bundle",
    "InvalidBundleError",
    "RebuildReport",
    "Registry",
    "VerifyProblem",
    "VerifyReport",
    "VersionNotFoundError",
    "VersionRaceError",
    "next_version",
    "read_bundle",
    "rebuild",
    "resolve",
    "verify",
    "versions",
]
