"""Files from the hub and from URLs: caches, offline, partial and altered downloads."""

import dataclasses
import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import huggingface_hub
import pytest
from huggingface_hub import errors

from layerwise.errors import WeightsError
from layerwise.weights import hub
from layerwise.weights.cards import CARDS

CONTENT = bytes(range(256)) * 5000  # 1.28 MB, more than one chunk
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """/whole answers with everything, /half breaks off, anything else is not there."""

    def do_GET(self):
        if self.path not in ("/whole", "/half"):
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT if self.path == "/whole" else CONTENT[:700_000])

    def log_message(self, *args: Any):
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("LAYERWISE_WEIGHTS", raising=False)


# ---- URLs --------------------------------------------------------------------------------------
def test_download(server: str, tmp_path: Path):
    path = hub.download(f"{server}/whole", tmp_path / "new" / "w.bin", DIGEST[:8])
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("place", "sha256", "message"),
    [
        ("half", "", "700,000 of 1,280,000 bytes; try again|connection broke"),
        ("whole", "0" * 64, "sha256 .* came, 0000000000000000 was expected; nothing was kept"),
        ("nothing", "", "answered 404"),
    ],
)
def test_what_is_not_right_is_not_kept(
    server: str, tmp_path: Path, place: str, sha256: str, message: str
):
    with pytest.raises(WeightsError, match=message):
        hub.download(f"{server}/{place}", tmp_path / "w.bin", sha256)
    assert list(tmp_path.iterdir()) == []


def test_no_network(tmp_path: Path):
    with pytest.raises(WeightsError, match=r"network cannot be reached.*curl -LO"):
        hub.download("http://127.0.0.1:9/w.bin", tmp_path / "w.bin")


def test_offline_is_respected(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(WeightsError, match="HF_HUB_OFFLINE forbids the network"):
        hub.download(f"{server}/whole", tmp_path / "w.bin")
    with pytest.raises(WeightsError, match=r"HF_HUB_OFFLINE forbids the network.*hf download"):
        hub.fetch("nobody/never-there", "config.json")


# ---- cards -------------------------------------------------------------------------------------
@pytest.fixture
def card(server: str):
    return dataclasses.replace(
        CARDS["resnet20.akamaster_cifar10"],
        source=f"{server}/whole",
        sha256=DIGEST,
        filename="w.th",
    )


def test_a_card_is_downloaded_once(card, monkeypatch: pytest.MonkeyPatch):
    assert hub.find_card(card) is None
    path = hub.fetch_card(card)
    assert path.parent == hub.weights_folder()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert hub.fetch_card(card) == path == hub.find_card(card)
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(WeightsError, match=r"w\.th: sha256 .* Delete it and fetch it again"):
        hub.fetch_card(card)
    path.unlink()


def test_a_folder_of_weights(card, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "w.th").write_bytes(CONTENT)
    monkeypatch.setenv("LAYERWISE_WEIGHTS", str(tmp_path))
    assert hub.find_card(card) == tmp_path / "some" / "w.th"


def test_a_card_without_a_download():
    card = CARDS["mobilenet_v1_075.google_in1k"]
    with pytest.raises(WeightsError, match=r"cannot be downloaded.*LAYERWISE_WEIGHTS"):
        hub.fetch_card(card)


# ---- the hub -----------------------------------------------------------------------------------
def answer(status: int) -> Any:
    response = mock.Mock(status_code=status, headers={}, url="https://huggingface.co/x")
    response.request = mock.Mock(url="https://huggingface.co/x", method="GET")
    return response


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (errors.LocalEntryNotFoundError("no"), "network cannot be reached.*hf download o/n"),
        (errors.RepositoryNotFoundError("no", response=answer(404)), "knows no such repository"),
        (errors.GatedRepoError("no", response=answer(403)), "accept them on https"),
        (errors.HFValidationError("no"), "check the spelling"),
        (errors.HfHubHTTPError("boom", response=answer(500)), "download failed .boom"),
        (ConnectionResetError("reset"), "download failed"),
    ],
)
def test_errors_of_the_hub(error: Exception, message: str, monkeypatch: pytest.MonkeyPatch):
    def fail(*args: Any, **kwargs: Any):
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(WeightsError, match=message):
        hub.fetch("o/n", "config.json")


def test_the_first_file_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def download(hub_id: str, filename: str, **kwargs: Any) -> str:
        if filename == "a":
            raise errors.EntryNotFoundError("no a")
        return str(tmp_path / filename)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert hub.fetch_first("o/n", ("a", "b")) == tmp_path / "b"
    with pytest.raises(WeightsError, match="has none of a"):
        hub.fetch_first("o/n", ("a",))


def test_the_cache_comes_before_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *a: str(tmp_path / "c"))
    assert hub.fetch("o/n", "c") == tmp_path / "c"
    assert hub.fetch_first("o/n", ("b", "c")) == tmp_path / "c"


@pytest.mark.parametrize(
    ("source", "is_one"),
    [("timm/resnet18.a1_in1k", True), ("./here/x", False), ("a/b/c", False), ("resnet18", False)],
)
def test_is_hub_id(source: str, is_one: bool):
    assert hub.is_hub_id(source) is is_one
