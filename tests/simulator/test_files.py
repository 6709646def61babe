"""Files: what is uploaded comes back byte for byte."""

from hashlib import sha256

import pytest

from tests.simulator.conftest import JumpingClock, Simulation

DATA = bytes(range(256)) * 5000 + b"\r\n--not a boundary\r\n\r\n"


def upload(sim: Simulation, data: bytes = DATA, name: str = "übung.bin", **form: str) -> dict[str, object]:
    response = sim.client.post("/v1/files", files={"file": (name, data, "application/x-thing")}, data=form)
    assert response.status_code == 200, response.text
    file: dict[str, object] = response.json()
    return file


def test_a_file_comes_back_as_it_was(sim: Simulation) -> None:
    file = upload(sim)
    assert (file["filename"], file["mime_type"], file["size_bytes"]) == ("übung.bin", "application/x-thing", len(DATA))
    assert sim.client.get(f"/v1/files/{file['id']}").json() == file
    response = sim.client.get(f"/v1/files/{file['id']}/content")
    assert response.content == DATA
    assert response.headers["content-type"] == "application/x-thing"


def test_an_upload_is_recorded_by_its_raw_body(sim: Simulation) -> None:
    request = sim.client.build_request("POST", "/v1/files", files={"file": ("a", DATA)})
    content = request.read()
    sim.client.send(request)
    recorded = sim.client.get("/_simulator/requests").json()[-1]
    assert (recorded["body_bytes"], recorded["body_sha256"]) == (len(content), sha256(content).hexdigest())


def test_an_empty_file_is_a_file(sim: Simulation) -> None:
    assert sim.client.get(f"/v1/files/{upload(sim, b'')['id']}/content").content == b""


def test_files_are_listed_by_page_and_by_id_and_can_be_deleted(sim: Simulation) -> None:
    ids = [str(upload(sim, b"x")["id"]) for _ in range(3)]
    page = sim.client.get("/v1/files?limit=2").json()
    assert [file["id"] for file in page["data"]] == [ids[2], ids[1]]
    rest = sim.client.get("/v1/files", params={"page": page["next_page"]}).json()
    assert [file["id"] for file in rest["data"]] == [ids[0]]
    some = sim.client.get("/v1/files", params={"ids[]": ids[:2]}).json()
    assert {file["id"] for file in some["data"]} == set(ids[:2])
    assert sim.client.delete(f"/v1/files/{ids[0]}").json() == {"id": ids[0], "type": "file_deleted"}
    assert sim.client.get(f"/v1/files/{ids[0]}").status_code == 404


def test_a_file_expires_when_it_was_told_to(sim: Simulation) -> None:
    file = upload(sim, expires_in_seconds="60")
    assert isinstance(sim.clock, JumpingClock)
    sim.clock.now += 61
    error = sim.client.get(f"/v1/files/{file['id']}").json()["error"]
    assert error["details"] == {"error_code": "file_expired"}


@pytest.mark.parametrize(
    ("content_type", "content"),
    [
        ("application/json", b"{}"),
        ("multipart/form-data; boundary=b", b""),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\ncontent-disposition: form-data; name="other"\r\n\r\nx\r\n--b--\r\n',
        ),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\ncontent-disposition: form-data; name="file"; filename="f"\r\n\r\nx',
        ),
    ],
)
def test_a_body_without_a_file_is_a_400(sim: Simulation, content_type: str, content: bytes) -> None:
    response = sim.client.post("/v1/files", content=content, headers={"content-type": content_type})
    assert (response.status_code, response.json()["error"]["type"]) == (400, "invalid_request_error")
