"""The contract of every object store, kept by S3 on a bad day."""

from __future__ import annotations

import fixtures_faulty_s3 as faulty
import pytest
from contract_object_store import ObjectStoreContract
from fixtures_faulty_s3 import FaultyS3, moderate

from deepseek_ops.adapters.stores import store_environment
from deepseek_ops.core.ports import ObjectStore

faulty_s3, faulty_store, faulty_credentials = faulty.faulty_s3, faulty.faulty_store, faulty.faulty_credentials


@pytest.mark.slow
class TestContractThroughFaults(ObjectStoreContract):
    """Without lost answers: after one of those, who won is for the writer to find out."""

    @pytest.fixture
    def store(self, faulty_s3: FaultyS3, faulty_store: ObjectStore) -> ObjectStore:
        faulty_s3.will(*moderate(lost_answers=False))
        return faulty_store

    @pytest.fixture
    def environment(self, store: ObjectStore, faulty_credentials: dict[str, str]) -> dict[str, str]:
        return store_environment(store.uri, faulty_credentials)
