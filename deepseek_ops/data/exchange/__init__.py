"""Versions to and from other tools: DVC, plain folders and prefixes, archives, Hugging Face folders, file tables.

Whatever comes in is read file by file into the store and becomes a version at once, or not at all; names that other
machines would not accept are refused (``paths``). Whatever goes out is verified on the way and appears complete.
"""

from deepseek_ops.data.exchange.archives import TargetTakenError, WrittenFile, archive_format, write_archive
from deepseek_ops.data.exchange.dvc_export import DvcExport, export_dvc
from deepseek_ops.data.exchange.dvc_files import DvcObjectMissingError, DvcObjects
from deepseek_ops.data.exchange.dvc_history import NoGitHistoryError, revisions_of
from deepseek_ops.data.exchange.dvc_import import DvcRevision, DvcSource, import_dvc, import_dvc_history
from deepseek_ops.data.exchange.intake import Arriving, Origin, commit_arriving
from deepseek_ops.data.exchange.manifest import manifest_format, write_manifest
from deepseek_ops.data.exchange.ordered import contents, stored_in_order
from deepseek_ops.data.exchange.paths import PathGate, RefusedMemberError
from deepseek_ops.data.exchange.prefixes import (
    ChangedInSourceError,
    PointerFileError,
    export_prefix,
    folder_files,
    prefix_files,
)
from deepseek_ops.data.exchange.splits import no_split_by_name, split_by_name
from deepseek_ops.data.exchange.unpacking import Limits, UnreadableArchiveError, archive_members

__all__ = [
    "Arriving",
    "ChangedInSourceError",
    "DvcExport",
    "DvcObjectMissingError",
    "DvcObjects",
    "DvcRevision",
    "DvcSource",
    "Limits",
    "NoGitHistoryError",
    "Origin",
    "PathGate",
    "PointerFileError",
    "RefusedMemberError",
    "TargetTakenError",
    "UnreadableArchiveError",
    "WrittenFile",
    "archive_format",
    "archive_members",
    "commit_arriving",
    "contents",
    "export_dvc",
    "export_prefix",
    "folder_files",
    "import_dvc",
    "import_dvc_history",
    "manifest_format",
    "no_split_by_name",
    "prefix_files",
    "revisions_of",
    "split_by_name",
    "stored_in_order",
    "write_archive",
    "write_manifest",
]
