"""Sentences that several files say to a person who made a mistake.

What they quote comes from anybody: a file's name, a label, a server's answer. So it is short, and nothing in it is
obeyed by a terminal.
"""

import difflib
import reprlib
import unicodedata
from collections.abc import Iterable
from typing import Any

LONGEST = 200  # characters of a value that an error quotes


def unknown(kind: str, name: str, known: Iterable[str], hint: str = "") -> ValueError:
    """The error for a name that does not exist: it names the closest ones, or all where they are few.

    Example:
      >>> str(unknown("method", "gradcam", ["grad_cam", "saliency"]))
      "Unknown method 'gradcam'. Did you mean 'grad_cam'?"
    """
    known = list(known)
    lowered = {each.lower(): each for each in known}
    close = [lowered[each] for each in difflib.get_close_matches(str(name).lower(), lowered, n=3, cutoff=0.5)]
    if close:
        advice = f"Did you mean {' or '.join(map(repr, close))}?"
    elif len(known) <= 20:
        advice = f"Known: {', '.join(known)}."
    else:
        advice = f"There are {len(known)}, such as {', '.join(known[:5])}."
    return ValueError(f"Unknown {kind} {shown(name)!r}. {advice}{' ' + hint if hint else ''}")


def printable(text: str) -> str:
    """Text with what a terminal would obey, reorder or hide written out as Python writes it.

    Example:
      >>> print(printable("cat\\x1b[2J.png"))
      cat\\x1b[2J.png
    """
    if text.isprintable():
        return text
    plain = (each.isprintable() or unicodedata.category(each) == "Zs" for each in text)  # spaces, also the wide ones
    return "".join(each if is_plain else ascii(each)[1:-1] for each, is_plain in zip(text, plain, strict=True))


def shown(value: Any) -> str:
    """What an error quotes of a value: printable, at most 200 characters, of a longer one its beginning and end.

    Example:
      >>> len(shown("a" * 1000))
      200
      >>> shown([[[[[[[[1]]]]]]]])
      '[[[[[[...]]]]]]'
    """
    text = value if isinstance(value, str) else str(value) if isinstance(value, Exception) else reprlib.repr(value)
    text = printable(text if len(text) <= 2 * LONGEST else text[:LONGEST] + text[-LONGEST:])
    half = LONGEST // 2
    return text if len(text) <= LONGEST else f"{text[: half - 1]}…{text[-half:]}"
