"""Files from the Hugging Face hub and from torchvision's address, cached or else downloaded.

Every function gives the path of a file and the digits that its sha256 must begin with. A cached file is used without
asking the network; an address that does not answer within seconds is given up, in a sentence, and so is a download
that has stopped: it runs in a thread of its own, whose bytes are counted here, and what its client logs is the reason.
"""

import contextlib
import hashlib
import http.client
import logging
import os
import queue
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from jaxcam import _files
from jaxcam._errors import shown

TORCHVISION = "https://download.pytorch.org/models/"
PATIENCE = float(os.environ.get("HF_HUB_ETAG_TIMEOUT", 2.5))  # seconds that each address has to answer
SILENCE = float(os.environ.get("HF_HUB_DOWNLOAD_TIMEOUT", 10))  # seconds without a byte that end a download
TOTAL = float(os.environ.get("JAXCAM_DOWNLOAD_TIMEOUT", 3600))  # seconds that it may take altogether
BLOCK = 2**14  # bytes after which a download is heard of


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
    return etag if etag and re.fullmatch("[0-9a-f]{64}", etag) else ""


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
            path = followed(file, partial(_from_hub, repository, file, revision))
        except RemoteEntryNotFoundError:
            continue
        except Exception as error:  # the HTTP library below the hub, and so its exceptions, changes with the version
            reason = MISSING.get(type(error).__name__)
            if reason:
                raise FileNotFoundError(f"{url}: {reason}.") from error
            raise ConnectionError(f"{url}: {_first_line(error)}.") from error
        return Path(path), _sha256_of(etag)
    raise FileNotFoundError(f"The repository {repository} ({revision}) on the hub has no {' or '.join(files)}.")


def _from_hub(repository: str, file: str, revision: str, received: Callable) -> str:
    import huggingface_hub as hub

    class Bar(hub.utils.tqdm):
        """Shows nothing, and says how many bytes came."""

        def __init__(self, *args, total=None, **options):
            super().__init__(*args, total=total, **{**options, "disable": True})
            received(0, total)

        def update(self, count=1):
            received(count)

    before, hub.constants.DOWNLOAD_CHUNK_SIZE = hub.constants.DOWNLOAD_CHUNK_SIZE, BLOCK
    try:
        return hub.hf_hub_download(repository, file, revision=revision, tqdm_class=Bar)
    finally:
        hub.constants.DOWNLOAD_CHUNK_SIZE = before


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
    return Path(os.path.expanduser(os.environ.get("JAXCAM_CACHE", "~/.cache/jaxcam")))


def torchvision_cached(name: str, sha256: str) -> tuple[Path, str] | None:
    path = cache_folder() / name
    return (path, sha256) if path.is_file() else None


def torchvision_download(name: str, sha256: str) -> tuple[Path, str]:
    """The file from torchvision's own address; it enters the cache only whole and verified."""
    from huggingface_hub.constants import HF_HUB_OFFLINE

    url, path = f"{TORCHVISION}{name}", cache_folder() / name
    if HF_HUB_OFFLINE:
        raise ConnectionError(f"{url}: not asked, because HF_HUB_OFFLINE is set.")
    try:
        fetch(url, path, sha256)
    except Exception as error:
        raise ConnectionError(f"{url}: {_first_line(error)}.") from error
    return path, sha256


def fetch(url: str, path: Path, sha256: str = "") -> None:
    """Puts what an address serves at `path`, whole and with this beginning of its sha256, or nothing.

    Raises:
      OSError: it does not answer, stops, ends early, or sends something else.
    """

    def body(received):
        digest, count = hashlib.sha256(), 0
        with _within(PATIENCE, partial(_answer, url)) as response:
            size = int(response.headers.get("Content-Length", 0))
            received(0, size)
            with _files.writing(path) as file:
                with contextlib.suppress(http.client.IncompleteRead):  # said below
                    while block := _block(response):
                        received(len(block))
                        count += len(block)
                        digest.update(block)
                        file.write(block)
                if count < size:
                    raise OSError(f"the connection ended after {count:,} of {size:,} bytes; nothing was kept")
                if not digest.hexdigest().startswith(sha256):
                    found = f"sha256 {digest.hexdigest()} instead of {sha256}..."
                    raise OSError(f"truncated or altered on the way ({count:,} bytes, {found}); nothing was kept")

    _files.sweep(path.parent)
    followed(path.name, body)


def _answer(url: str) -> Any:
    try:
        return urllib.request.urlopen(url, timeout=SILENCE)
    except urllib.error.HTTPError as error:
        error.close()  # it is an answer, too
        raise


def _block(response) -> bytes:
    try:
        return response.read1(BLOCK)
    except TimeoutError:  # of the socket, which may notice before `followed` does
        raise _silent() from None


def _silent(reason: str = "") -> TimeoutError:
    return TimeoutError(f"nothing came for {SILENCE:g} seconds, HF_HUB_DOWNLOAD_TIMEOUT{reason}")


def followed(name: str, download: Callable[[Callable], Any]) -> Any:
    """The result of `download(received)` under a bar; given up where it stops, or where it takes too long altogether.

    Args:
      name: what is downloaded, beside the bar.
      download: calls `received(count, total=None)` for what has come.

    Raises:
      TimeoutError: nothing came for `SILENCE` seconds, or it was not whole after `TOTAL`. A download that wakes up
        later ends at its next byte.
    """
    news, given_up, said = queue.SimpleQueue(), threading.Event(), []

    def received(count, total=None):
        if given_up.is_set():
            raise TimeoutError("nobody waits for it any more")
        news.put((count, total))

    def run():
        try:
            news.put(download(received))
        except BaseException as error:
            news.put(error)

    thread = threading.Thread(target=_overheard, args=(run, said), daemon=True)
    end = time.monotonic() + TOTAL
    with _bar(name) as bar:
        task = bar.add_task(shown(name), total=None)
        thread.start()
        try:
            while isinstance(came := news.get(timeout=max(0, min(SILENCE, end - time.monotonic()))), tuple):
                bar.update(task, advance=came[0], **({"total": came[1]} if came[1] else {}))
        except queue.Empty:
            given_up.set()
            thread.join(0.5)  # it may be about to notice, and to clear away what it has
            reason = f" ({shown(said[-1]).rstrip('.')})" if said else ""
            if time.monotonic() >= end:
                raise TimeoutError(f"not whole after {TOTAL:g} seconds, JAXCAM_DOWNLOAD_TIMEOUT{reason}") from None
            raise _silent(reason) from None
    if isinstance(came, BaseException):
        raise came
    return came


def _overheard(run: Callable, said: list[str]) -> None:
    """Runs it with what the hub's client logs in this thread kept for the sentence that is to come."""
    own = threading.get_ident()

    def listen(record):
        if record.thread == own:
            said.append(record.getMessage())
        return record.thread != own

    handlers = [*logging.getLogger("huggingface_hub").handlers, *logging.getLogger().handlers]
    for handler in handlers:
        handler.addFilter(listen)
    try:
        run()
    finally:
        for handler in handlers:
            handler.removeFilter(listen)


def _bar(name: str):
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn()
    return Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True))


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
    return shown((str(error).strip() or type(error).__name__).splitlines()[0].rstrip("."))


def unavailable(name: str, problems: list[str]) -> OSError:
    from huggingface_hub.constants import HF_HUB_CACHE

    return OSError(
        f"{name} is not in the cache ({HF_HUB_CACHE}, {cache_folder()}) and could not be downloaded. "
        f"{' '.join(problems)} "
        "Load it once where there is a network (HF_HUB_ETAG_TIMEOUT=20 for a slow one), or download the file "
        'elsewhere and call jaxcam.load("FILE", architecture="...").'
    )
