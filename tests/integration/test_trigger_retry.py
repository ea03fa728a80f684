"""An error's family decides about another try, with retry policies and without."""

from __future__ import annotations

import pytest
from airflow.sdk import RetryAction
from airflow.sdk.exceptions import AirflowFailException

from deepseek_ops.airflow import retry
from deepseek_ops.airflow.retry import RETRY_IF_TRANSIENT, fail_fast_if_permanent
from deepseek_ops.core.errors import GitAccessError, GitUnreachableError, StaleRefError


@pytest.mark.parametrize(
    ("error", "action"),
    [
        (GitAccessError("u", "401"), RetryAction.FAIL),
        (GitUnreachableError("u", "away"), RetryAction.RETRY),
        (StaleRefError("u", "main"), RetryAction.RETRY),
    ],
)
def test_permanent_errors_fail_at_once_and_transient_ones_are_tried_again(
    error: Exception, action: RetryAction
) -> None:
    assert RETRY_IF_TRANSIENT.evaluate(error, 1, 3, {}).action is action


def test_without_retry_policies_a_permanent_error_becomes_airflows_own(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(GitAccessError), fail_fast_if_permanent():
        raise GitAccessError("u", "401")
    monkeypatch.setattr(retry, "RETRY_IF_TRANSIENT", None)
    with pytest.raises(AirflowFailException, match="refuses access: 401"), fail_fast_if_permanent():
        raise GitAccessError("u", "401")
    with pytest.raises(GitUnreachableError), fail_fast_if_permanent():
        raise GitUnreachableError("u", "away")
