"""The files that `jaxcam explain` writes: names that do not collide, nothing of anybody else's lost."""

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from jaxcam import _files
from jaxcam._errors import shown

LONGEST_STEM = 120  # bytes; a name may have 255, with the method and the class that follow


def make_writable(folder: Path) -> None:
    """Creates the output folder, so that a place that cannot be written is found before anything is computed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # of no name that another process could remove
            _files.sweep(folder)
    except OSError as error:
        raise OSError(
            f"Cannot write to the output folder '{shown(str(folder))}': {error.strerror}. Choose another with --output."
        ) from None


def files(name: str, maps: Sequence[str], kind: str | None) -> dict[str, str]:
    """What is written for one image: its maps by what they are called, a panel of this kind if any, and the report."""
    overlays = {each: f"{name}_{each}.png" for each in maps}
    panel = {"panel": f"{name}_panel.{kind}"} if kind else {}
    return overlays | panel | {"report": f"{name}.json"}


def unique_names(paths: Sequence[str], maps: Sequence[str], kind: str | None) -> list[str]:
    """One name per image, so that those of a/dog.jpg and b/dog.jpg, and of a.jpg and a_x.jpg, are different files."""
    names: list[str] = []
    taken: set[str] = set()
    for path in paths:
        name = stem = _stem(path)
        count = 1
        while taken.intersection(files(name, maps, kind).values()):
            count += 1
            name = f"{stem}-{count}"
        names.append(name)
        taken.update(files(name, maps, kind).values())
    return names


def _stem(path: str) -> str:
    """The name that an image lends to its files: without what a terminal would obey, and no longer than leaves room."""
    stem = "".join(each if each.isprintable() else "_" for each in Path(path).stem)
    return stem.encode()[:LONGEST_STEM].decode(errors="ignore")


def refuse_to_overwrite(
    folder: Path, paths: Sequence[str], names: Sequence[str], maps: Sequence[str], kind: str | None
):
    """Files of an earlier run may be written again; an image that is explained, or a report of someone else, not."""
    images = {os.path.realpath(path) for path in paths}  # unlike Path.resolve, of a link to itself too
    for name in names:
        own = files(name, maps, kind)
        for file in own.values():
            if os.path.realpath(folder / file) in images:
                raise ValueError(f"'{folder / file}' is one of the images; choose another folder with --output.")
        report = folder / own["report"]
        if report.exists() and _report(report) is None:
            raise ValueError(f"'{report}' exists and is no report of jaxcam; choose another folder with --output.")


def finished(folder: Path, name: str, settings: dict) -> dict | None:
    """The report of an earlier run with these settings, if all files that it names are there."""
    report = _report(folder / f"{name}.json")
    as_written = json.loads(json.dumps(settings))
    if report is None or any(report.get(key) != value for key, value in as_written.items()):
        return None
    return report if all((folder / file).is_file() for file in report["files"].values()) else None


def _report(path: Path) -> dict | None:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    is_one = isinstance(content, dict) and {"predictions", "methods", "targets", "files"} <= set(content)
    return content if is_one else None


def write(folder: Path, name: str, overlays: dict, panel, report: dict, look) -> None:
    """The overlay of each map, the panel, and last the report, which names them."""
    from jaxcam import plot

    own = files(name, list(overlays), look.format)
    for each, figure in overlays.items():
        plot.save(figure, folder / own[each])
    if panel is not None:
        plot.save(panel, folder / own["panel"], scale=look.scale)
    place = folder / own.pop("report")
    _files.write(place, (json.dumps({**report, "files": own}, indent=2) + "\n").encode())
