"""What was done, by whom: writing to the hash-chained log and reading it.

The chain itself is the database adapter's (``core.ports.Facts.append_audit``): only the database can serialise appends
of many processes.
"""

from deepseek_ops.audit.log import record, render

__all__ = ["record", "render"]
