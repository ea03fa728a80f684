"""What is in a dataset: records compared between versions, schema and quality, leaks, known evaluation items.

``record_diff`` compares two versions record by record; ``examine`` judges the records of one against the checks of a
pipeline file; ``Survey`` is the pass over all records that both the prepare job and ``examine`` make. All of it
streams: memory holds some ten bytes per record, the rest lies on disk and comes back part by part. It needs the extra
``data``.
"""

from deepseek_ops.data.content.diff_records import RecordDiff
from deepseek_ops.data.content.examine import Examined, examine
from deepseek_ops.data.content.findings import ContentReport, DataGateError, Example, Finding
from deepseek_ops.data.content.record_diff import DiffOptions, record_diff

__all__ = [
    "ContentReport",
    "DataGateError",
    "DiffOptions",
    "Examined",
    "Example",
    "Finding",
    "RecordDiff",
    "examine",
    "record_diff",
]
