"""What several commands share: an argument, tables, a bar, and how they complain."""

import contextlib
import os
import stat
import sys
from pathlib import Path

from jaxcam._errors import printable, shown

PROGRAMS = 512 * 2**20  # bytes of compiled programs that are kept; the oldest go first


def add_model(parser, name: str, **options) -> None:
    described = "a registered name, a weight file, or hf:owner/repo"
    parser.add_argument(name, metavar="NAME_OR_PATH" if name.startswith("-") else "MODEL", help=described, **options)
    parser.add_argument(
        "--architecture",
        metavar="NAME",
        help="that a weight file must have, such as resnet50; else as its tensors show",
    )


def complain(message: str) -> None:
    """One line on stderr, in which nothing is obeyed by a terminal, whoever named a file or a label so."""
    print(f"jaxcam: {printable(' '.join(message.split()))}", file=sys.stderr)


def count(text: str) -> int:
    """An argument that counts something: a whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise ValueError
    return int(text)


@contextlib.contextmanager
def muffled():
    """Nothing arrives on stderr: libraries in C say there what an error will say in a sentence."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@contextlib.contextmanager
def pixels_at_most(count: int | None):
    """Images are refused beyond so many pixels; `None` leaves Pillow's limit."""
    from PIL import Image

    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = before if count is None else count
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def table(*columns: str):
    """An empty table of these columns."""
    from rich.table import Column, Table

    headers = [Column(name, overflow="fold") for name in columns]
    return Table(*headers, box=None, header_style="bold", pad_edge=False)


def show(*renderables) -> None:
    from rich.console import Console

    Console(highlight=False).print(*renderables)


def progress():
    """A line on stderr that is written anew, and goes when it is done; without a terminal there is none."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = SpinnerColumn(), MofNCompleteColumn(), BarColumn(20), TimeElapsedColumn()
    options = {"console": console, "transient": True, "disable": not console.is_terminal}
    return Progress(*columns, TextColumn("{task.description}"), **options)


def advance(bar, task, text: str, seconds: float) -> None:
    """A step is done; without a terminal, which would show a bar, that is a line on stderr."""
    bar.advance(task)
    if bar.disable:
        about = bar.tasks[task]
        complain(f"{about.completed:.0f}/{about.total} {text}: {seconds:.1f} s")
        sys.stderr.flush()


def keep_programs() -> None:
    """Compiled programs stay on disk, so that a second run begins at once; `$JAX_COMPILATION_CACHE_DIR` goes first.

    A compiled program is run as it is, so a folder that others may write to is not read.
    """
    import platform

    import jax

    from jaxcam._engine import kept
    from jaxcam.models._download import cache_folder

    if jax.config.jax_compilation_cache_dir is not None:  # pyright: ignore[reportAttributeAccessIssue]
        return
    # A folder for each machine: a program for one processor may not run on another that shares the home folder.
    folder = cache_folder() / "programs" / platform.node()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if writer := _other_writer(folder):
            complain(f"compiled programs are not kept: others may write to '{shown(str(writer))}'")
            return
        _remove_halves(folder)
    except OSError:
        return
    kept.folder = folder
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", PROGRAMS)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def _other_writer(folder: Path) -> Path | None:
    """The folder, or one that it lies in, by which somebody else could put a file into it."""
    if not hasattr(os, "geteuid"):  # Windows keeps a user's folders by other means
        return None
    folder = folder.resolve()
    for place in (folder, *folder.parents):
        about = place.stat()
        by_anybody = about.st_mode & stat.S_IWOTH
        by_group = about.st_mode & stat.S_IWGRP and (place == folder or about.st_gid != os.getegid())
        renamed_by_owners_alone = place != folder and about.st_mode & stat.S_ISVTX
        if about.st_uid not in (0, os.geteuid()) or ((by_anybody or by_group) and not renamed_by_owners_alone):
            return place
    return None


def _remove_halves(folder: Path) -> None:
    """What a process that was killed while writing left: JAX would neither read nor replace it, and warn each time.

    A program is whole once the time of its last use stands beside it.
    """
    from filelock import FileLock, Timeout

    from jaxcam import _files

    _files.sweep(folder)
    with contextlib.suppress(Timeout), FileLock(folder / ".lockfile", timeout=1):  # JAX's own
        names = {path.name for path in folder.iterdir()}
        for name in names:
            stem, _, kind = name.rpartition("-")
            if kind in ("cache", "atime") and not {f"{stem}-cache", f"{stem}-atime"} <= names:
                (folder / name).unlink()
