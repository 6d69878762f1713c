"""Files from the Hugging Face hub and from torchvision's address, cached or else downloaded.

Every function gives the path of a file and the digits that its sha256 must begin with. A cached file is used without
asking the network; an address that does not answer within seconds is given up, in a sentence.
"""

import hashlib
import os
import queue
import re
import shutil
import threading
import urllib.request
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

TORCHVISION = "https://download.pytorch.org/models/"
PATIENCE = float(os.environ.get("HF_HUB_ETAG_TIMEOUT", 2.5))  # seconds that each address has to answer


def hub_cached(repository: str, files: Iterable[str], revision: str) -> tuple[Path, str] | None:
    """The first of the files in the hub's cache, and its sha256 where the hub recorded it. Asks no network."""
    from huggingface_hub import try_to_load_from_cache

    for file in files:
        path = try_to_load_from_cache(repository, file, revision=revision)
        if isinstance(path, str):
            # The cache links to a blob named by its ETag, which is the sha256 of a large file. One link only: the blob
            # may itself link to a store that is shared under other names.
            return Path(path), _sha256_of(Path(os.readlink(path)).name if os.path.islink(path) else "")
    return None


def _sha256_of(etag: str | None) -> str:
    return etag if re.fullmatch("[0-9a-f]{64}", etag or "") else ""


MISSING = {
    "RepositoryNotFoundError": "there is no such repository, or it is private: check the name, or run `hf auth login`",
    "GatedRepoError": "the repository is gated: ask for access on its page, and run `hf auth login`",
    "RevisionNotFoundError": "the repository has no such revision",
}


def hub_download(repository: str, files: Iterable[str], revision: str) -> tuple[Path, str]:
    """The first of the files that the hub has, downloaded into its cache, and its sha256."""
    import huggingface_hub as hub
    from huggingface_hub.errors import RemoteEntryNotFoundError

    for file in files:
        url = hub.hf_hub_url(repository, file, revision=revision)
        try:
            etag = _within(PATIENCE, partial(_etag, url))
            path = hub.hf_hub_download(repository, file, revision=revision)
        except RemoteEntryNotFoundError:
            continue
        except Exception as error:  # the HTTP library below the hub, and so its exceptions, changes with the version
            reason = MISSING.get(type(error).__name__)
            if reason:
                raise FileNotFoundError(f"{url}: {reason}.") from error
            raise ConnectionError(f"{url}: {_first_line(error)}.") from error
        return Path(path), _sha256_of(etag)
    raise FileNotFoundError(f"The repository {repository} ({revision}) on the hub has no {' or '.join(files)}.")


def _etag(url: str) -> str | None:
    """Asks once whether anybody is there; hf_hub_download alone would repeat the question for half a minute."""
    from huggingface_hub import get_hf_file_metadata
    from huggingface_hub.errors import RemoteEntryNotFoundError

    try:
        return get_hf_file_metadata(url, timeout=PATIENCE).etag
    except RemoteEntryNotFoundError:  # it is there; hf_hub_download says the same, and notes it in its cache
        return None


def cache_folder() -> Path:
    """Where this package keeps files: `$JAXCAM_CACHE`, or `~/.cache/jaxcam`."""
    return Path(os.environ.get("JAXCAM_CACHE", "~/.cache/jaxcam")).expanduser()


def torchvision_cached(name: str, sha256: str) -> tuple[Path, str] | None:
    path = cache_folder() / name
    return (path, sha256) if path.is_file() else None


def torchvision_download(name: str, sha256: str) -> tuple[Path, str]:
    """The file from torchvision's own address; it enters the cache only whole and verified."""
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from rich.console import Console
    from rich.progress import wrap_file

    url, path = f"{TORCHVISION}{name}", cache_folder() / name
    if HF_HUB_OFFLINE:
        raise ConnectionError(f"{url}: not asked, because HF_HUB_OFFLINE is set.")
    part = path.with_name(f"{name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _within(PATIENCE, partial(urllib.request.urlopen, url, timeout=30)) as response, open(part, "wb") as file:
            size = int(response.headers.get("Content-Length", 0))
            with wrap_file(response, size, description=name, console=Console(stderr=True)) as body:
                shutil.copyfileobj(body, file)
        data = part.read_bytes()
        if not (found := hashlib.sha256(data).hexdigest()).startswith(sha256):
            raise ValueError(
                f"truncated or altered on the way ({len(data)} of {size} bytes, sha256 {found} instead of "
                f"{sha256}...); nothing was kept"
            )
        part.replace(path)
    except Exception as error:
        raise ConnectionError(f"{url}: {_first_line(error)}.") from error
    finally:
        part.unlink(missing_ok=True)
    return path, sha256


def _within(seconds: float, call: Callable[[], Any]) -> Any:
    """`call()`, given up after so long: looking up a name and trying each of its addresses obey no other limit."""
    results = queue.SimpleQueue()

    def run():
        try:
            results.put((call(), None))
        except Exception as error:
            results.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        result, error = results.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer in {seconds:g} seconds") from None
    if error:
        raise error
    return result


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def unavailable(name: str, problems: list[str]) -> OSError:
    from huggingface_hub.constants import HF_HUB_CACHE

    return OSError(
        f"{name} is not in the cache ({HF_HUB_CACHE}, {cache_folder()}) and could not be downloaded. "
        f"{' '.join(problems)} "
        "Load it once where there is a network (HF_HUB_ETAG_TIMEOUT=20 for a slow one), or download the file "
        'elsewhere and call jaxcam.load("FILE", architecture="...").'
    )
