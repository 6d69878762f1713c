"""How far something is: a bar on stderr that comes when something takes long, and goes when it is done.

It is there for eyes alone: on a terminal, and in a notebook that has `ipywidgets`, without which no line of a notebook
can be written anew.
"""

import contextlib
import importlib.util
import sys
import threading
from collections.abc import Callable, Iterator

PATIENCE = 2.0  # seconds


def is_seen(file) -> bool:
    """Whether somebody sees a bar that is written to `file`."""
    return can_rewrite() if "ipykernel" in sys.modules else file.isatty()


def can_rewrite() -> bool:
    """Whether this is no notebook, or one in which a line can be written anew."""
    return "ipykernel" not in sys.modules or importlib.util.find_spec("ipywidgets") is not None


@contextlib.contextmanager
def shown(text: str, total: int | None = None, *, enabled: bool = True) -> Iterator[Callable[[], None]]:
    """A bar for the block, beginning after two seconds; what it yields is called when one of `total` is done.

    Example:
      >>> with shown("reading", 2) as advance:
      ...     for _ in range(2):
      ...         advance()
    """
    done, bars = 0, []

    def advance() -> None:
        nonlocal done
        done += 1
        for bar in bars:
            bar.update(bar.task_ids[0], completed=done)

    def begin() -> None:
        bar = _bar()
        bar.add_task(text, total=total, completed=done)
        bars.append(bar)
        with contextlib.suppress(LiveError):  # somebody else shows one, around this one
            bar.start()

    if not enabled or not is_seen(sys.stderr):
        yield lambda: None
        return
    from rich.errors import LiveError

    timer = threading.Timer(PATIENCE, begin)
    timer.daemon = True
    timer.start()
    try:
        yield advance
    finally:
        timer.cancel()
        timer.join()
        for bar in bars:
            bar.stop()


def _bar():
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(20), MofNCompleteColumn()
    return Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True)
