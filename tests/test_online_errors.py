"""What goes wrong outside of a route, told in OpenAI's format."""

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from jobs.online_errors import answer_errors


@pytest.fixture
def client() -> TestClient:
    app = FastAPI()
    answer_errors(app)

    @app.get("/broken/{name}")
    async def broken(name: str) -> None:
        raise RuntimeError(f"a secret of {name}")

    @app.delete("/broken/{name}")
    async def remove(name: str) -> None:
        pass

    return TestClient(app, raise_server_exceptions=False)


def test_a_failure_of_ours_says_no_more_than_that(client: TestClient) -> None:
    answer = client.get("/broken/x")
    assert answer.status_code == 500
    error = answer.json()["error"]
    assert (error["type"], error["code"]) == ("server_error", "internal")
    assert "secret" not in answer.text


def test_unknown_paths_and_methods_are_told(client: TestClient) -> None:
    nowhere, wrong = client.get("/nowhere"), client.put("/broken/x")
    assert nowhere.status_code == 404
    assert wrong.status_code == 405
    assert wrong.headers["allow"] == "DELETE, GET"
    for answer in (nowhere, wrong):
        assert answer.json()["error"].keys() == {"message", "type", "param", "code"}
