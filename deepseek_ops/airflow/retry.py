"""Which errors are worth another try: one policy for every DAG, read off the error's family.

``RETRY_IF_TRANSIENT`` is for ``default_args["retry_policy"]``. Airflow below 3.3 has no retry policies: there it is
None, which Airflow ignores, and ``fail_fast_if_permanent`` gives operators the same behaviour.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from airflow.providers.common.compat.sdk import AirflowFailException

from deepseek_ops.core.errors import JobPreemptedError, PermanentError, TransientError


def _policy() -> Any:
    try:
        from airflow.sdk import ExceptionRetryPolicy, RetryAction, RetryRule
    except ImportError:
        return None
    return ExceptionRetryPolicy(
        rules=[
            RetryRule(exception=PermanentError, action=RetryAction.FAIL),
            RetryRule(exception=JobPreemptedError, action=RetryAction.RETRY, retry_delay=timedelta(seconds=1)),
            RetryRule(exception=TransientError, action=RetryAction.RETRY),
        ]
    )


RETRY_IF_TRANSIENT: Any = _policy()


@contextlib.contextmanager
def fail_fast_if_permanent() -> Iterator[None]:
    """Turn a PermanentError into Airflow's own "do not retry" where no retry policy can (below Airflow 3.3)."""
    try:
        yield
    except PermanentError as error:
        if RETRY_IF_TRANSIENT is not None:
            raise
        raise AirflowFailException(str(error)) from error
