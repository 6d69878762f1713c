"""Sentences that several files say to a person who made a mistake."""

import difflib
from collections.abc import Iterable


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
    return ValueError(f"Unknown {kind} {name!r}. {advice}{' ' + hint if hint else ''}")
