"""Getting published files onto this machine: the Hugging Face hub, plain URLs, and their caches.

What lies in the cache is used without asking the network. HF_HUB_OFFLINE=1 forbids the network. A
file takes its name only when all of it has arrived and its sha256 is right, so a partial download
is never loaded.
"""

import contextlib
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException, HTTPResponse
from pathlib import Path

from layerwise.errors import WeightsError
from layerwise.storage import cache_folder, replacing
from layerwise.weights.cards import Card, sha256_of

CHUNK = 1 << 20  # bytes read at a time
TIMEOUT = 30  # seconds without an answer


class MissingFileError(WeightsError):
    """The hub's repository has no such file."""


def offline() -> bool:
    """Whether the network must not be used."""
    return os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")


def weights_folder() -> Path:
    """Where files from plain URLs are kept: LAYERWISE_CACHE, or ~/.cache/layerwise."""
    return cache_folder() / "weights"


def searched_folders() -> Iterator[Path]:
    """Where published files are looked for by name: LAYERWISE_WEIGHTS (several folders as in PATH,
    each with those directly below it), then the cache."""
    for name in filter(None, os.environ.get("LAYERWISE_WEIGHTS", "").split(os.pathsep)):
        folder = Path(name).expanduser()
        if folder.is_dir():
            yield folder
            yield from sorted(p for p in folder.iterdir() if p.is_dir())
    yield weights_folder()


def is_hub_id(source: str) -> bool:
    """Whether this reads as owner/name."""
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+", source)) and not source.startswith((".", "/"))


# ---- a card's file -----------------------------------------------------------------------------
def find_card(card: Card) -> Path | None:
    """The card's file if it is on this machine already, else None. Does not use the network."""
    if is_hub_id(card.source):
        return cached(card.source, card.filename)
    places = (folder / card.filename for folder in searched_folders())
    return next((path for path in places if path.is_file()), None)


def fetch_card(card: Card) -> Path:
    """The card's file, downloaded where need be, its sha256 checked where known."""
    path = find_card(card)
    if path is None and is_hub_id(card.source):
        path = fetch(card.source, card.filename)
    if path is None and card.source.startswith("http"):
        return download(card.source, weights_folder() / card.filename, card.sha256)
    if path is None:
        raise WeightsError(
            f"{card.name}: {card.filename} is not on this machine and cannot be downloaded "
            f"({card.source}). Name the file itself, or put it into a folder named by "
            f"LAYERWISE_WEIGHTS."
        )
    check_sha256(path, card.sha256)
    return path


def check_sha256(path: Path, expected: str) -> None:
    """Errors: WeightsError when the file is not the one that was published."""
    if expected and not (found := sha256_of(path)).startswith(expected):
        raise WeightsError(
            f"{path}: sha256 {found[:16]}... came, {expected[:16]} was expected; "
            f"the file is damaged or another one. Delete it and fetch it again."
        )


# ---- the hub -----------------------------------------------------------------------------------
def cached(hub_id: str, filename: str) -> Path | None:
    """A hub file that the local cache holds, else None."""
    import huggingface_hub

    found = huggingface_hub.try_to_load_from_cache(hub_id, filename)
    return Path(found) if isinstance(found, str) else None


def fetch(hub_id: str, filename: str) -> Path:
    """A file of a hub repository, from the cache or downloaded into it.

    Errors: MissingFileError when the repository lacks the file; WeightsError, with what to do, when
    it is unknown or private, or the hub cannot be reached and the cache does not hold the file.
    """
    import huggingface_hub
    from huggingface_hub import errors

    if found := cached(hub_id, filename):
        return found
    try:
        return Path(huggingface_hub.hf_hub_download(hub_id, filename, local_files_only=offline()))
    except errors.LocalEntryNotFoundError as e:
        raise _unreachable(f"{hub_id} ({filename})", f"hf download {hub_id}") from e
    except errors.EntryNotFoundError as e:
        raise MissingFileError(f"{hub_id}: the repository has no file {filename}") from e
    except errors.GatedRepoError as e:
        raise WeightsError(
            f"{hub_id}: its owner asks you to agree to terms; accept them on "
            f"https://huggingface.co/{hub_id} and log in with `hf auth login`"
        ) from e
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as e:
        why = "the hub knows no such repository (or it is private: `hf auth login`)"
        raise WeightsError(f"{hub_id}: {why}; check the spelling") from e
    except (errors.HfHubHTTPError, OSError) as e:
        raise WeightsError(f"{hub_id}: download failed ({_line(e)}); try again") from e


def fetch_first(hub_id: str, filenames: tuple[str, ...]) -> Path:
    """The first of these files that the repository has."""
    for filename in filenames:
        if found := cached(hub_id, filename):
            return found
    for filename in filenames:
        with contextlib.suppress(MissingFileError):
            return fetch(hub_id, filename)
    raise WeightsError(f"{hub_id}: the repository has none of {', '.join(filenames)}")


def _unreachable(what: str, command: str) -> WeightsError:
    why = "HF_HUB_OFFLINE forbids the network" if offline() else "the network cannot be reached"
    return WeightsError(
        f"{what} is not in the cache on this machine, and {why}. Unset HF_HUB_OFFLINE or connect; "
        f"or run `{command}` where there is a network, copy what it fetched, and name the copy."
    )


def _line(e: Exception) -> str:
    return str(e).strip().split("\n")[0][:160]


# ---- plain URLs --------------------------------------------------------------------------------
def download(url: str, path: Path, sha256: str = "") -> Path:
    """The file behind a URL, at `path`: whole and with the right sha256, or not at all."""
    if offline():
        raise _unreachable(f"{path.name} ({url})", f"curl -LO {url}")
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as response, replacing(path) as temporary:
            _receive(response, temporary)
            size = temporary.stat().st_size
            expected = int(response.headers.get("Content-Length") or size)
            if size != expected:
                raise WeightsError(
                    f"{url}: the connection ended after {size:,} of {expected:,} bytes; try again"
                )
            if not (found := sha256_of(temporary)).startswith(sha256):
                raise WeightsError(
                    f"{url}: sha256 {found[:16]}... came, {sha256[:16]} was expected; "
                    f"nothing was kept. Try again; if it persists, the file was replaced."
                )
    except urllib.error.HTTPError as e:
        raise WeightsError(f"{url}: the server answered {e.code} {e.reason}") from e
    except (urllib.error.URLError, TimeoutError, ConnectionError) as e:
        raise _unreachable(f"{path.name} ({url})", f"curl -LO {url}") from e
    return path


def _receive(response: HTTPResponse, path: Path) -> None:
    """Write what comes. A connection that breaks must not look like a disk that does, so it leaves
    as a WeightsError."""
    with path.open("wb") as file:
        while chunk := _read(response):
            file.write(chunk)


def _read(response: HTTPResponse) -> bytes:
    try:
        return response.read(CHUNK)
    except (OSError, HTTPException) as e:
        raise WeightsError(f"{response.url}: the connection broke ({_line(e)}); try again") from e
