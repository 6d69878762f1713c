"""A bar for what takes long: it comes late, says how far it is, and goes; nobody sees one who does not look."""

import io
import re
import sys
import time
import types

import helpers
import pytest

import jaxcam
from jaxcam import _progress
from jaxcam.image import Preprocess, sample


class Terminal(io.StringIO):
    def isatty(self):
        return True


def terminal(monkeypatch):
    """Within the test: pytest puts its own stderr there after the fixtures."""
    monkeypatch.setattr(_progress, "PATIENCE", 0)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys, "stderr", Terminal())
    return sys.stderr


def written(seen):
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.getvalue())


def wait_for(bar):
    """The bar comes from a thread of its own, some milliseconds later."""
    for _ in range(500):
        if not bar():
            time.sleep(0.01)


def test_a_bar_counts_and_goes(monkeypatch):
    """With the real timer."""
    seen = terminal(monkeypatch)
    with _progress.shown("reading", 3) as advance:
        wait_for(seen.getvalue)
        for _ in range(3):
            advance()
    assert "reading" in written(seen) and "3/3" in written(seen)
    assert seen.getvalue().endswith("\x1b[2K"), "the line goes"


def test_nobody_who_does_not_look_has_one(monkeypatch):
    """A pipe, or a notebook that cannot write a line anew: there is not even a thread."""
    terminal(monkeypatch)
    monkeypatch.setattr(_progress.threading, "Timer", lambda *_: pytest.fail("a bar would come"))
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with _progress.shown("reading", 1) as advance:
        advance()


def test_what_is_quick_shows_nothing(monkeypatch):
    seen = terminal(monkeypatch)
    monkeypatch.setattr(_progress, "PATIENCE", 60)
    with _progress.shown("reading", 1) as advance:
        advance()
    assert not seen.getvalue()


def test_a_bar_within_a_bar_is_not_shown(monkeypatch):
    seen = terminal(monkeypatch)
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(file=io.StringIO())), _progress.shown("inner", 1) as advance:
        advance()
    assert "Traceback" not in seen.getvalue()


class AtOnce:
    """A timer that is over when it starts."""

    def __init__(self, seconds, call):
        self.start, self.cancel, self.join = call, lambda: None, lambda: None


SEEN = [
    (lambda **options: jaxcam.explain(MODEL.tap(), helpers.images(2, 16, 16), methods=["fem"], **options), "fem of 2"),
    (lambda **options: Preprocess(32, 32, (0.5,) * 3, (0.5,) * 3)([sample()] * 3, **options), "preparing images"),
    (
        lambda **options: jaxcam.compare(
            MODEL.tap(), helpers.images(5, 16, 16), methods=["fem"], metrics=["gini", "average_gain"], **options
        ),
        "measuring methods",
    ),
]
MODEL = helpers.tiny_classifier()


@pytest.mark.parametrize(("call", "text"), SEEN, ids=["explain", "preprocess", "compare"])
def test_who_shows_one(monkeypatch, call, text):
    seen = terminal(monkeypatch)
    call(progress=False)
    assert not seen.getvalue()
    monkeypatch.setattr(_progress.threading, "Timer", AtOnce)
    call()
    assert text in written(seen)


@pytest.mark.parametrize(
    ("file", "notebook", "widgets", "seen"),
    [
        (Terminal(), False, False, True),
        (io.StringIO(), False, True, False),
        (Terminal(), True, False, False),
        (io.StringIO(), True, True, True),
    ],
)
def test_who_sees_one(monkeypatch, file, notebook, widgets, seen):
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    if notebook:
        monkeypatch.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))
    monkeypatch.setattr(_progress.importlib.util, "find_spec", lambda name: object() if widgets else None)
    assert _progress.is_seen(file) == seen
