"""Files are whole or absent: written beside their place, flushed to the disk, and renamed.

Who is killed in the middle leaves what was there before, and at most a hidden `.….unfinished` beside it, which
`sweep` removes a day later. Reading opens regular files only: a pipe would wait for ever, a device never end.
"""

import contextlib
import errno
import hashlib
import os
import secrets
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from jaxcam._errors import shown

UNFINISHED = ".unfinished"
DIGEST = "digest.sha256"  # of all other files in a folder
STALE = 24 * 3600  # seconds after which an unfinished file is nobody's any more
REASONS = {
    errno.ENOENT: "there is no such file",
    errno.ENOTDIR: "there is no such file",
    errno.EISDIR: "it is a folder; name the files in it",
    errno.EACCES: "you have no permission to read it",
    errno.EPERM: "you have no permission to read it",
    errno.ELOOP: "it is a symbolic link that leads back to itself",
    errno.ENAMETOOLONG: "its name is too long to be that of a file",
    errno.ENXIO: "it is no regular file",
}


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[IO[bytes]]:
    """A binary file that takes the place of `path` when the block ends, and disappears where the block raises.

    Several processes may write one path: the last one stays, whole.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{secrets.token_hex(6)}{UNFINISHED}")  # short: a name may be as long as it can be
    try:
        with unfinished.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise
    _flush_folder(path.parent)


def write(path: str | os.PathLike, content: bytes | str) -> None:
    """Puts `content`, text as UTF-8, in the place of what was at `path`; makes the folders that are missing.

    Raises:
      OSError: the folder cannot be made or written. What was there is as it was, and nothing half-written stays.
    """
    name, advice = shown(os.fspath(path)), "Choose another output folder."
    try:
        with writing(path) as file:
            file.write(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise type(error)(f"Cannot write '{name}': {error.strerror}. {advice}") from error
    except ValueError as error:  # a name that holds NUL
        raise ValueError(f"Cannot write '{name}': {error}. {advice}") from error


def _flush_folder(folder: Path) -> None:
    """A new name is on the disk once its folder is; not every system opens folders."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sweep(folder: str | os.PathLike) -> None:
    """Removes what writers that were killed left in a folder a day ago or earlier."""
    with contextlib.suppress(OSError):
        for path in Path(folder).glob(f".*{UNFINISHED}"):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > STALE:
                    path.unlink()


def read(path: str | os.PathLike, most: int | None = None) -> bytes:
    """The content of a regular file of at most so many bytes, by default as many as the machine has memory.

    Raises:
      OSError: it is missing, a folder, a pipe or a device, or cannot be read.
      ValueError: its name holds NUL, or it is larger.
    """
    name = shown(os.fspath(path))
    limit = _memory() if most is None else most
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            status = os.fstat(file.fileno())
            fits = stat.S_ISREG(status.st_mode) and status.st_size <= limit
            content = file.read(status.st_size) if fits else None
    except OSError as error:
        raise type(error)(f"Cannot open '{name}': {REASONS.get(error.errno or 0, error.strerror)}.") from None
    except ValueError:
        raise ValueError(f"Cannot open '{name}': no file's name holds NUL.") from None
    except MemoryError:
        raise ValueError(f"'{name}' has {status.st_size:,} bytes, more than the free memory.") from None
    if not stat.S_ISREG(status.st_mode):
        raise OSError(f"Cannot open '{name}': it is no regular file.")
    if content is None:
        raise ValueError(f"'{name}' has {status.st_size:,} bytes, more than the {limit:,} that are read.")
    return content


def _without_waiting(path, flags) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _memory() -> int:
    """Of the machine, in bytes."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 2**36


def digest(folder: Path) -> str:
    """One sha256 of every file below `folder` but its digest, of its name and its bytes."""
    whole = hashlib.sha256()
    for file in sorted(file for file in folder.rglob("*") if file.is_file() and file.name != DIGEST):
        whole.update(f"{file.relative_to(folder)} {file.stat().st_size} ".encode())
        whole.update(file.read_bytes())
    return whole.hexdigest()
