"""Progress bars on stderr, where a person is looking."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from deepseek_ops.core.ports import Progress


@contextmanager
def shown_progress(*, enabled: bool = True) -> Iterator[Progress | None]:
    """Give a listener that draws a bar, or None when stderr is no terminal; the bar goes when the work is done."""
    if not enabled or not sys.stderr.isatty():
        yield None
        return
    columns = (BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("", total=None)

        def listen(line: str, fraction: float | None) -> None:
            bars.update(task, description=line, total=None if fraction is None else 1.0, completed=fraction or 0.0)

        yield listen
