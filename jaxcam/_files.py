"""Files are whole or absent: written beside their place, and renamed."""

import contextlib
import os
from pathlib import Path


def write(path: str | os.PathLike, content: bytes) -> None:
    """Puts `content` at `path`, in the place of what was there; makes the folders that are missing.

    Raises:
      OSError: the folder cannot be made or written. What was there is as it was, and nothing half-written stays.
    """
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_bytes(content)
        unfinished.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise type(error)(f"Cannot write '{path}': {error.strerror}. Choose another output folder.") from error
