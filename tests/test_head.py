"""A head started as README and cluster files say: nothing of it answers to who has no token, and it is on loopback.

What Ray answers to everybody is named here too, so that a release of Ray that adds to it is noticed.
"""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import clusters
import pytest
from clusters import short_folder, started, with_token
from listening import listeners
from running import until

pytest.importorskip("aiohttp_cors", reason="no dashboard: want ray[default]")
pytestmark = [pytest.mark.slow, pytest.mark.cluster]

TOKEN = "5f" * 32
REFUSED = (
    ("GET", "/api/jobs/"),
    ("POST", "/api/jobs/"),
    ("GET", "/api/version"),
    ("GET", "/api/v0/tasks"),
    ("GET", "/api/v0/actors"),
    ("GET", "/api/v0/nodes"),
    ("GET", "/api/v0/logs"),
    ("GET", "/nodes?view=summary"),
    ("GET", "/logical/actors"),
    ("GET", "/api/cluster_status"),
    ("GET", "/api/packages/gcs/_ray_pkg_0.zip"),
    ("PUT", "/api/packages/gcs/_ray_pkg_0.zip"),
    ("GET", "/api/serve/applications/"),
    ("GET", "/api/grafana_health"),
)
# The page that asks for a token, and whether Ray lives: no data of a run.
OPEN = ("/", "/api/authentication_mode", "/api/gcs_healthz")
# One call of each server inside Ray: state, actors, a node's manager and its objects.
CALLS = (
    "NodeInfoGcsService/GetAllNodeInfo",
    "InternalKVGcsService/InternalKVKeys",
    "NodeManagerService/GetNodeStats",
    "ObjectManagerService/Pull",
    "LogService/ListLogs",
    "ReporterService/GetTraceback",
    "RayletDriver/ClusterInfo",
)


class Head(NamedTuple):
    """A head of Ray, where its dashboard is and what belongs to it."""

    session: int
    url: str
    environment: dict[str, str]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    port, dashboard, client = clusters.free_port(), clusters.free_port(), clusters.free_port()
    environment = with_token() | {"HOME": str(tmp_path_factory.mktemp("home")), "RAY_AUTH_TOKEN": TOKEN}
    ports = [f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}", "--dashboard-agent-listen-port=0"]
    with short_folder() as folder:
        command = clusters.head(port, folder, "--num-cpus=0", "--dashboard-host=127.0.0.1", *ports)
        with started(command, environment, folder / "log", folder) as session:
            head = Head(session, f"http://127.0.0.1:{dashboard}", environment)
            until(lambda: _is_up(head, client), folder / "log")
            yield head


def _is_up(head: Head, client: int) -> bool:
    """Whether all of it listens that will: some of it starts when the rest is there."""
    listening = listeners(head.session)
    if "raylet" not in {one.name for one in listening} or client not in {one.port for one in listening}:
        return False
    try:
        return asked(head, "/api/jobs/", token=TOKEN)[0] == 200
    except OSError:
        return False


def asked(
    head: Head, path: str, method: str = "GET", *, token: str | None = None, body: Any = None, **headers: str
) -> tuple[int, str]:
    """Status and text of an answer."""
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    data = json.dumps(body or {}).encode() if method in ("POST", "PUT") else None
    request = urllib.request.Request(head.url + path, data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")


def speaks_http(address: str) -> bool:
    """Whether it answers HTTP/1; gRPC's servers answer with frames of HTTP/2 or hang up."""
    try:
        asked(Head(0, f"http://{address}", {}), "/")
    except (http.client.HTTPException, OSError):
        return False
    return True


@pytest.mark.parametrize(("method", "path"), REFUSED, ids=[" ".join(pair) for pair in REFUSED])
def test_a_request_without_the_token_is_refused(head: Head, method: str, path: str) -> None:
    assert asked(head, path, method)[0] == 401
    assert asked(head, path, method, token="0" * 64)[0] == 403
    assert asked(head, path, method, token="")[0] in (401, 403)


def test_a_job_that_comes_without_the_token_does_not_run(head: Head, tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    job = {"entrypoint": f"touch {proof}"}
    assert asked(head, "/api/jobs/", "POST", body=job)[0] == 401
    assert asked(head, "/api/jobs/", "POST", body=job, Cookie="ray-authentication-token=" + "0" * 64)[0] == 403
    assert asked(head, "/api/jobs/", token=TOKEN) == (200, "[]")
    time.sleep(2.0)
    assert not proof.exists()


def test_with_the_token_jobs_and_state_answer(head: Head) -> None:
    assert asked(head, "/api/version", token=TOKEN)[0] == 200
    status, text = asked(head, "/api/v0/nodes", token=TOKEN)
    assert status == 200 and json.loads(text)["result"]


def test_what_ray_shows_to_everybody_is_its_empty_page_and_that_it_lives(head: Head) -> None:
    for path in OPEN:
        status, text = asked(head, path)
        assert status == 200, path
        assert "127.0.0.1" not in text and TOKEN not in text


@pytest.mark.parametrize("environment", [{}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}])
def test_a_client_of_the_state_api_without_the_token_is_refused(head: Head, environment: dict[str, str]) -> None:
    clean = {name: value for name, value in head.environment.items() if not name.startswith("RAY_")}
    code = f"from ray.util.state import list_nodes; print(list_nodes({head.url!r}))"
    command = [sys.executable, "-c", code]
    answer = subprocess.run(command, env=clean | environment, capture_output=True, text=True, timeout=60, check=False)
    assert answer.returncode != 0 and answer.stdout == ""
    assert "uthenticat" in answer.stderr


def test_every_other_port_refuses_calls_without_the_token(head: Head) -> None:
    grpc = pytest.importorskip("grpc")
    port = int(head.url.rpartition(":")[2])
    others = [one for one in listeners(head.session) if one.port != port]
    assert {"gcs_server", "raylet"} <= {one.name for one in others}
    for one in others:
        address = f"{'127.0.0.1' if one.address.is_unspecified or one.is_loopback else one.address}:{one.port}"
        if speaks_http(address):
            status, body = asked(head._replace(url=f"http://{address}"), "/api/job_agent/jobs/")
            assert status == 401 or body.startswith("# HELP"), one  # counters for Prometheus are open
        else:
            answers = set()
            for method in CALLS:
                with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError) as refused:
                    channel.unary_unary(f"/ray.rpc.{method}")(b"", timeout=20, wait_for_ready=True)
                answers.add(refused.value.code())
            assert grpc.StatusCode.UNAUTHENTICATED in answers, (one, answers)
            assert answers <= {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED}, one


def test_dashboard_and_job_server_listen_on_loopback_only(head: Head) -> None:
    port = int(head.url.rpartition(":")[2])
    (dashboard,) = [one for one in listeners(head.session) if one.port == port]
    assert dashboard.is_loopback
