"""A serve job answers like an OpenAI server, keeps its address, and ends as it should."""

from __future__ import annotations

import json
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from fixtures_tiny_model import tiny_model

from deepseek_ops.adapters.local_launcher.folder import JobFolder, StopRequest
from deepseek_ops.adapters.stores.local import LocalStore
from deepseek_ops.core.errors import InvalidRecordError, TransientError
from deepseek_ops.core.jobs import JobSpec
from deepseek_ops.data import StoreBlobs
from deepseek_ops.jobs import serve
from deepseek_ops.jobs.context import JobContext
from deepseek_ops.jobs.serve_routes import PinnedRoutes

__all__ = ["tiny_model"]

NAME = "deepseek-tiny"
pytestmark = pytest.mark.slow  # importing torch and transformers


def serve_context(folder: Path, model: Path, **payload: object) -> JobContext:
    store = LocalStore(folder / "store")
    files = StoreBlobs(store).put_folder(model).dump()
    spec = JobSpec(name="serve", kind="serve", payload={"model": files, "name": NAME, **payload})
    return JobContext(spec, folder / "job", store=store)


def ready_url(context: JobContext, running: Future[object], *, number: int = 0) -> str:
    events = JobFolder(context.folder).events
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not running.done():
        lines = [json.loads(line) for line in events.read_text().splitlines()] if events.exists() else []
        ready = [line for line in lines if line["kind"] == "ready"]
        if len(ready) > number:
            return str(ready[number]["url"])
        time.sleep(0.05)
    raise AssertionError(f"the job is not ready: {running.exception(timeout=1)}")


@contextmanager
def serving(context: JobContext, *, number: int = 0) -> Iterator[tuple[str, Future[object]]]:
    """Run the job on a thread and stop it at the end."""
    files = JobFolder(context.folder)
    (context.folder / "stop.json").unlink(missing_ok=True)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(serve.run, context)
        try:
            yield ready_url(context, running, number=number), running
        finally:
            files.request_stop(StopRequest(attempt=context.attempt, reason="enough"))
            running.exception(timeout=60)


@pytest.fixture(scope="module")
def server(tmp_path_factory, tiny_model):
    with serving(serve_context(tmp_path_factory.mktemp("serve"), tiny_model)) as (url, running):
        yield url, running


def complete(url: str, **body: object) -> httpx.Response:
    return httpx.post(f"{url}/v1/completions", json={"model": NAME, "prompt": "def add(", **body}, timeout=60)


def test_a_completion_is_the_models_own_greedy_continuation(server, tiny_model):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    url, _ = server
    answer = complete(url, max_tokens=8, temperature=0)
    assert answer.status_code == 200
    body = answer.json()
    assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 8, "total_tokens": 11}
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    inputs = tokenizer("def add(", return_tensors="pt")
    tokens = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert body["choices"][0]["text"] == tokenizer.decode(tokens, skip_special_tokens=True)


def test_tokens_are_streamed(server):
    url, _ = server
    body = {"model": NAME, "prompt": "The", "max_tokens": 4, "stream": True}
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as answer:
        lines = [line for line in answer.iter_lines() if line.startswith("data: ")]
    assert answer.status_code == 200
    assert len(lines) >= 2


def test_many_requests_at_once_are_all_answered(server):
    url, _ = server
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda number: complete(url, max_tokens=number % 4 + 1), range(16)))
    assert [answer.status_code for answer in answers] == [200] * 16


def test_only_the_one_model_is_there_and_its_health_is_told(server):
    url, _ = server
    assert httpx.get(f"{url}/health").json() == {"status": "ok"}
    assert [model["id"] for model in httpx.get(f"{url}/v1/models").json()["data"]] == [NAME]
    assert complete(url, model="another").status_code == 400


@pytest.mark.parametrize("path", ["/reset", "/load_model", "/v1/audio/transcriptions", "/docs", "/v1/systemone"])
def test_routes_that_drop_or_load_models_are_closed(server, path):
    url, running = server
    assert httpx.post(f"{url}{path}", json={"model": "/etc"}).status_code == 404
    assert httpx.get(f"{url}{path}").status_code == 404
    assert complete(url, max_tokens=1).status_code == 200
    assert not running.done()


def test_it_listens_on_the_loopback_interface_only(server):
    url, _ = server
    port = int(url.rpartition(":")[2])
    listening = [line.split() for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]]
    addresses = {fields[1] for fields in listening if fields[3] == "0A" and fields[1].endswith(f":{port:04X}")}
    assert addresses == {f"0100007F:{port:04X}"}


def test_a_stop_ends_the_server_and_the_next_attempt_has_the_same_address(tmp_path, tiny_model):
    context = serve_context(tmp_path, tiny_model)
    with serving(context) as (url, running):
        complete(url, max_tokens=1)
    assert running.result() == {"url": url, "requests": 2, "reason": "enough"}
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health")
    with serving(context, number=1) as (again, _):
        assert again == url
        assert complete(again, max_tokens=1).status_code == 200


def test_a_server_that_dies_is_lost_and_says_why():
    class Dying:
        should_exit = False

        def run(self, sockets: object = None) -> None:
            raise OSError("the disk is gone")

    with socket.socket() as listener:
        server = serve.ModelServer(NAME, Dying(), PinnedRoutes(Dying, NAME), listener)
        server.stop()
        with pytest.raises(serve.ServerLostError, match="the disk is gone") as caught:
            server.require_alive()
    assert isinstance(caught.value, TransientError)


def test_a_model_that_cannot_be_loaded_is_refused_with_the_reason(tmp_path, tiny_model):
    broken = tmp_path / "broken"
    shutil.copytree(tiny_model, broken)
    (broken / "model.safetensors").unlink()
    with pytest.raises(serve.UnservableModelError, match=rf"{NAME} cannot be served: .*safetensors"):
        serve.run(serve_context(tmp_path, broken))


def test_a_port_that_is_taken_is_refused_by_number(tmp_path, tiny_model):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(serve.PortTakenError, match=f"127.0.0.1:{port} cannot be listened on"):
            serve.run(serve_context(tmp_path, tiny_model, port=port))


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.1", "example.com"])  # noqa: S104
def test_an_address_that_others_can_reach_is_refused(tmp_path, tiny_model, host):
    with pytest.raises(InvalidRecordError, match="host"):
        serve.run(serve_context(tmp_path, tiny_model, host=host))


def test_no_thread_is_left_behind(tmp_path, tiny_model):
    def servers() -> set[int | None]:
        return {thread.ident for thread in threading.enumerate() if thread.name == "model-server"}

    before = servers()
    with serving(serve_context(tmp_path, tiny_model)):
        assert len(servers() - before) == 1
    assert servers() == before
