"""The LFS server inside Airflow's own API application: mounted by the plugin, guarded, with tokens for its users."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures_airflow import copy_of_migrated_database

SERVE = """
import asyncio, json, os
os.environ["_AIRFLOW_PROCESS_CONTEXT"] = "server"
from airflow.api_fastapi.app import create_app, get_auth_manager
app = create_app(apps="core")
from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
from starlette.testclient import TestClient
client = TestClient(app, base_url="http://testserver")
manager = get_auth_manager()
def login(name, role):
    return {"Authorization": "Bearer " + manager.generate_jwt(SimpleAuthManagerUser(username=name, role=role))}
LFS = {"Accept": "application/vnd.git-lfs+json", "Content-Type": "application/vnd.git-lfs+json"}
TOKENS, SERVER = "/deepseek-ops/lfs-tokens", "/deepseek-ops/lfs/team/model"
wanted = {"repository": "team/model", "days": 1}
seen = {}
def note(name, answer):
    seen[name] = [answer.status_code, answer.json() if answer.content else None, dict(answer.headers)]
    return answer
for name, headers in (("nobody", {}), ("viewer", login("vera", "VIEWER")), ("op", login("Otto O.", "OP"))):
    for access in ("read", "write"):
        note(f"{name}-{access}", client.post(f"{TOKENS}/{access}", json=wanted, headers=headers))
    note(f"{name}-list", client.get(f"{TOKENS}/", headers=headers))
form = {**login("o", "OP"), "Content-Type": "text/plain"}
note("form", client.post(f"{TOKENS}/write", content=json.dumps(wanted), headers=form))
token = seen["op-write"][1]["token"]
body = {"operation": "upload", "objects": [{"oid": "a" * 64, "size": 3}]}
note("batch-nobody", client.post(f"{SERVER}/objects/batch", json=body, headers=LFS))
note("batch-airflow-login", client.post(f"{SERVER}/objects/batch", json=body, headers={**LFS, **login("o", "ADMIN")}))
ours = {**LFS, "Authorization": f"Bearer {token}"}
note("batch", client.post(f"{SERVER}/objects/batch", json=body, headers=ours))
token_id = seen["op-write"][1]["id"]
note("viewer-revoke", client.post(f"{TOKENS}/{token_id}/revoke", json={}, headers=login("vera", "VIEWER")))
note("revoke", client.post(f"{TOKENS}/{token_id}/revoke", json={"reason": "lost"}, headers=login("o", "OP")))
note("batch-revoked", client.post(f"{SERVER}/objects/batch", json=body, headers=ours))
note("plugins", client.get("/api/v2/plugins", headers=login("o", "ADMIN")))
note("import-errors", client.get("/api/v2/plugins/importErrors", headers=login("o", "ADMIN")))
print("SEEN" + json.dumps(seen))
"""


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[object]]:
    """What an Airflow of its own answered: a process, because its configuration is read once."""
    home: Path = tmp_path_factory.mktemp("airflow")
    copy_of_migrated_database(tmp_path_factory, home)
    store = home / "store"
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")},
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db",
        "AIRFLOW__API_AUTH__JWT_SECRET": base64.b64encode(b"x" * 64).decode(),
        "AIRFLOW_CONN_DEEPSEEK_OPS_STORE": json.dumps({"conn_type": "generic", "host": store.as_uri()}),
        "AIRFLOW_CONN_DEEPSEEK_OPS_LFS": json.dumps({"conn_type": "generic", "password": "s" * 40}),
    }
    done = subprocess.run(
        [sys.executable, "-c", SERVE], env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    line = next((line for line in done.stdout.splitlines() if line.startswith("SEEN")), "")
    assert line, done.stdout[-2000:] + done.stderr[-6000:]
    answers: dict[str, list[object]] = json.loads(line.removeprefix("SEEN"))
    return answers


pytestmark = pytest.mark.slow


def test_the_plugin_is_loaded_and_its_applications_are_listed(seen: dict[str, list[object]]) -> None:
    status, body, _ = seen["plugins"]
    assert status == 200
    ours = next(plugin for plugin in body["plugins"] if plugin["name"] == "deepseek_ops")
    assert {app["url_prefix"] for app in ours["fastapi_apps"]} >= {"/deepseek-ops/lfs", "/deepseek-ops/lfs-tokens"}
    assert not seen["import-errors"][1]["import_errors"]


@pytest.mark.parametrize("action", ["read", "write", "list"])
def test_nobody_gets_a_token_without_a_login(seen: dict[str, list[object]], action: str) -> None:
    assert seen[f"nobody-{action}"][0] == 401


@pytest.mark.parametrize("action", ["read", "write", "list", "revoke"])
def test_a_user_without_the_right_on_the_store_gets_none(seen: dict[str, list[object]], action: str) -> None:
    assert seen[f"viewer-{action}"][0] == 403


def test_a_user_with_the_right_gets_a_token_in_their_name_that_is_not_cached(seen: dict[str, list[object]]) -> None:
    status, body, headers = seen["op-write"]
    assert (status, body["subject"], body["access"]) == (201, "Otto-O.", "write")
    assert headers["cache-control"] == "no-store"
    assert "token" not in seen["op-list"][1]["tokens"][0]


def test_a_form_of_another_site_gets_none(seen: dict[str, list[object]]) -> None:
    assert seen["form"][0] == 415


def test_the_server_wants_our_token_not_an_airflow_login(seen: dict[str, list[object]]) -> None:
    assert [seen[name][0] for name in ("batch-nobody", "batch-airflow-login", "batch")] == [401, 401, 200]
    assert seen["batch-nobody"][2]["lfs-authenticate"] == 'Basic realm="Git LFS"'
    link = seen["batch"][1]["objects"][0]["actions"]["upload"]["href"]
    assert link == f"http://testserver/deepseek-ops/lfs/team/model/objects/{'a' * 64}"


def test_a_revoked_token_opens_nothing(seen: dict[str, list[object]]) -> None:
    assert (seen["revoke"][0], seen["batch-revoked"][0]) == (200, 401)
