"""One page about a finished run, in one HTML file: how good the model is, and how far its heatmaps can be trusted.

It is computed from the folder alone; pictures are read again from the source, if that is still what it was. Numbers
come with 95 % intervals: Wilson's for shares, the mean's by the normal approximation for metrics.
"""

import base64
import html
import io
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxcam import _files
from jaxcam.dataset import read, sources, store
from jaxcam.dataset.program import column
from jaxcam.image import Preprocess
from jaxcam.metrics import METRICS

Z = 1.959964  # of a 95 % interval
SHOWN = 12  # pictures in each gallery
SIDE = 128  # pixels of a picture on the page
LISTED = 20  # unreadable images that are named
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c1c1c; margin: 2.5rem auto; max-width: 72rem; padding: 0 1.5rem; }
h1 { font-size: 1.7rem; margin-bottom: .2rem; } h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; }
p.facts, figcaption, .note { color: #5c5c5c; font-size: .86rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .25rem .9rem .25rem 0; text-align: right; border-bottom: 1px solid #e6e6e6; white-space: nowrap; }
th { font-weight: 600; } th:first-child, td:first-child { text-align: left; } .wide { overflow-x: auto; }
.gallery { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { margin: 0; width: 17rem; } figure.one { width: 8.5rem; } figcaption { overflow-wrap: anywhere; }
figure img { height: 8rem; border-radius: 3px; image-rendering: pixelated; }
svg { vertical-align: middle; }
"""


class Interval(NamedTuple):
    """A number and where it lies with 95 % confidence."""

    value: float
    low: float
    high: float


def share(hits: int, count: int) -> Interval:
    """A share and Wilson's interval, `(p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)`.

    Example:
      >>> tuple(round(each, 3) for each in share(9, 10))
      (0.9, 0.596, 0.982)
    """
    if not count:
        return Interval(math.nan, math.nan, math.nan)
    p, z = hits / count, Z**2 / count
    middle, half = (p + z / 2) / (1 + z), math.sqrt(p * (1 - p) * z + z * z / 4) / (1 + z)
    return Interval(p, max(0.0, middle - half), min(1.0, middle + half))


def mean(values: np.ndarray) -> Interval:
    """The mean and `+- z s / sqrt(n)`; what is no number does not count.

    Example:
      >>> tuple(round(each, 3) for each in mean(np.array([1.0, 2.0, 3.0])))
      (2.0, 0.868, 3.132)
    """
    values = values[np.isfinite(values)]
    if not len(values):
        return Interval(math.nan, math.nan, math.nan)
    middle = float(values.mean())
    half = Z * float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return Interval(middle, middle - half, middle + half)


def report(folder: str | os.PathLike, output: str | os.PathLike | None = None, *, source=None, data_dir=None) -> Path:
    """Writes a page about the results in a folder: accuracy, metrics by class, heatmaps and predictions to look at.

    Args:
      folder: what `jaxcam.dataset.explain` wrote; of a run that is not finished, what is done is shown.
      output: the page; by default `FOLDER.html`, beside the folder.
      source: where the images are now, if they have moved.
      data_dir: of TFDS, if it has moved.

    Returns:
      The path of the page.

    Raises:
      OSError: there is no run in the folder, or the page cannot be written.
      ValueError: nothing is done yet.

    Example:
      >>> jaxcam.dataset.report("out")  # doctest: +SKIP
      PosixPath('out.html')
    """
    folder = Path(folder)
    page = Page(store.open(folder), source, data_dir)
    place = Path(output) if output is not None else folder.resolve().with_name(f"{folder.resolve().name}.html")
    parts = [page.heading(), page.accuracy(), page.metrics(), *page.trust(), *page.predictions(), page.errors()]
    title = html.escape(folder.resolve().name)
    head = f'<meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    body = "\n".join(each for each in parts if each)
    _files.write(
        place, f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'.encode()
    )
    return place


class Page:
    """The parts of the page, from the columns of the table."""

    def __init__(self, results: store.Results, source, data_dir):
        self.results, self.manifest = results, results.manifest
        self.settings, self.names = self.manifest["settings"], self.manifest["labels"]
        self.methods, self.measures = list(self.settings["methods"]), list(self.settings["metrics"])
        values = [column(method, metric) for method in self.methods for metric in self.measures]
        table = results.table(["index", "label", "prediction", "target", "top5_probability", *values])
        self.index, self.label, self.prediction, self.target = (
            table[name].fill_null(-1).to_numpy() for name in ("index", "label", "prediction", "target")
        )
        best = table["top5_probability"].combine_chunks()
        self.probability = np.array([each[0].as_py() if each.is_valid else np.nan for each in best], np.float32)
        self.values = {name: table[name].to_numpy().astype(np.float64) for name in values}
        self.readable = self.prediction >= 0
        self.judged = self.readable & (self.label >= 0)
        self.right = self.judged & (self.label == self.prediction)
        self.pictures = Pictures(self.manifest, source, data_dir)

    def name(self, label: int) -> str:
        known = self.names and 0 <= label < len(self.names)
        return html.escape(self.names[label] if known else f"class {label}")

    def heading(self) -> str:
        about = self.manifest
        done = (
            f"{len(self.index):,} of {about['images']:,} images"
            if not self.results.is_complete
            else f"{about['images']:,} images"
        )
        methods, metrics = ", ".join(self.methods), ", ".join(self.measures) or "none"
        facts = [
            f"{done} of {about['place']['source']}",
            f"methods: {methods}; metrics: {metrics}; targets: {self.settings['targets']}",
            f"weights {about['model']['sha256'][:12]}, layer {', '.join(about['model']['layers'])}",
            f"jax {about['versions']['jax']} on {about['device']['count']} x {about['device']['kind']}",
        ]
        lines = "<br>".join(html.escape(each) for each in facts)
        remark = f'<p class="note">{html.escape(self.pictures.remark)}</p>' if self.pictures.remark else ""
        return f"<h1>{html.escape(self.results.folder.resolve().name)}</h1><p class=facts>{lines}</p>{remark}"

    def accuracy(self) -> str:
        """In all and by class, the worst first; nothing where nothing is labelled."""
        count = int(self.judged.sum())
        if not count:
            return ""
        overall = share(int(self.right.sum()), count)
        rows = []
        for label in np.unique(self.label[self.judged]):
            of_class = self.judged & (self.label == label)
            rows.append((share(int((self.right & of_class).sum()), int(of_class.sum())), label, int(of_class.sum())))
        rows.sort(key=lambda row: row[0].value)
        cells = [[self.name(label), f"{n:,}", percent(each), bar(each, 0, 1)] for each, label, n in rows]
        head = f"<h2>Accuracy {overall.value:.1%}</h2><p>95 % interval {overall.low:.1%} to {overall.high:.1%}, "
        return f"{head}{count:,} images with a label.</p>" + table_of(["class", "images", "accuracy", ""], cells)

    def metrics(self) -> str:
        """Each metric of each method, in all and by the class that is explained."""
        if not self.values:
            return ""
        parts = ["<h2>Metrics</h2><p class=note>Means with 95 % intervals, by the class that is explained.</p>"]
        for metric in self.measures:
            better = METRICS[metric].better
            hint = {"high": "higher is better", "low": "lower is better"}.get(better, better)
            names = [column(method, metric) for method in self.methods]
            groups = [("all", self.readable)]
            groups += [(self.name(each), self.target == each) for each in np.unique(self.target[self.readable])]
            found = [
                (title, int(mask.sum()), [mean(self.values[name][mask]) for name in names]) for title, mask in groups
            ]
            every = [bound for *_, each in found for interval in each for bound in interval if math.isfinite(bound)]
            low, high = (min(every), max(every)) if every else (0, 1)
            cells = [
                [title, f"{n:,}", *(cell for each in row for cell in (number(each), bar(each, low, high)))]
                for title, n, row in found
            ]
            heads = ["class", "images", *(head for method in self.methods for head in (method, ""))]
            parts.append(f"<h3>{metric} <span class=note>({hint})</span></h3>{table_of(heads, cells)}")
        return "".join(parts)

    def trust(self) -> list[str]:
        """The heatmaps that fare best and worst, by the first metric that judges."""
        judging = [metric for metric in self.measures if METRICS[metric].better in ("high", "low")]
        if not judging:
            return []
        metric, parts = judging[0], []
        for method in self.methods:
            values = self.values[column(method, metric)]
            order = np.flatnonzero(np.isfinite(values))
            order = order[np.argsort(values[order], kind="stable")]
            order = order[::-1] if METRICS[metric].better == "high" else order
            captions = {int(row): f"{metric} {values[row]:.3g}" for row in {*order[:SHOWN], *order[-SHOWN:]}}
            for title, rows in (("Most", order[:SHOWN]), ("Least", order[::-1][:SHOWN])):
                parts.append(f"<h2>{title} trusted heatmaps: {method}, by {metric}</h2>")
                parts.append(self.gallery(rows, [method], captions))
        return parts

    def predictions(self) -> list[str]:
        """Wrong predictions, the surest first, and right ones, spread over the data set."""
        wrong = np.flatnonzero(self.judged & ~self.right)
        wrong = wrong[np.argsort(-self.probability[wrong], kind="stable")][:SHOWN]
        right = np.flatnonzero(self.right if self.judged.any() else self.readable)
        right = right[np.linspace(0, len(right) - 1, min(SHOWN, len(right)), dtype=int)] if len(right) else right
        parts = []
        good = "Right predictions" if self.judged.any() else "Predictions"
        for title, rows in (("Wrong predictions, the surest first", wrong), (good, right)):
            if len(rows):
                parts += [f"<h2>{title}</h2>", self.gallery(rows, self.methods[:1], {})]
        return parts

    def gallery(self, rows: np.ndarray, methods: Sequence[str], captions: dict[int, str]) -> str:
        return f"<div class=gallery>{''.join(self.figure(int(row), methods, captions) for row in rows)}</div>"

    def figure(self, row: int, methods: Sequence[str], captions: dict[int, str]) -> str:
        """An image, its heatmap laid over it, and what the model says of it."""
        index = int(self.index[row])
        maps = [np.asarray(self.results.maps[method][index]) for method in methods]
        heats = [each / 255 if each.dtype == np.uint8 else each.astype(np.float32) for each in maps]
        said = f"{self.name(self.prediction[row])} {self.probability[row]:.0%}"
        if self.judged[row]:
            said += " (right)" if self.right[row] else f", is {self.name(self.label[row])}"
        if self.target[row] != self.prediction[row]:
            said += f", explained {self.name(self.target[row])}"
        lines = [f"{index}: {said}", *([captions[row]] if row in captions else [])]
        images = "".join(f'<img src="{each}" alt="image {index}"> ' for each in self.pictures.of(index, heats))
        kind = "" if images.count("<img") > 1 else " class=one"
        return f"<figure{kind}>{images}<figcaption>{'<br>'.join(lines)}</figcaption></figure>"

    def errors(self) -> str:
        """What could not be read."""
        table = self.results.table(["index", "file", "error"])
        rows = table.filter(table["error"].is_valid()).slice(0, LISTED).to_pylist()
        if not rows:
            return ""
        cells = [[str(row["index"]), html.escape(row["file"]), html.escape(row["error"])] for row in rows]
        count = int(len(table) - table["error"].null_count)
        return f"<h2>{count:,} unreadable</h2>{table_of(['row', 'file', 'error'], cells)}"


class Pictures:
    """The images of the source as the model sees them, or their heatmaps alone where the source is gone."""

    def __init__(self, manifest: dict, source, data_dir):
        self.remark, self.source, place = "", None, manifest["place"]
        try:
            found = sources.source_of(source or place["source"], data_dir or place["data_dir"])
            if found.digest() == manifest["source"]["sha256"]:
                self.source = found
            else:
                self.remark = "The source is not what it was, so heatmaps are shown without their images."
        except (OSError, ValueError, TypeError) as error:
            self.remark = f"Heatmaps are shown without their images: {error}"
        about = manifest["model"]["preprocess"]
        fields: dict[str, Any] = (
            {key: tuple(value) if isinstance(value, list) else value for key, value in about.items()}
            if isinstance(about, dict)
            else {}
        )
        self.preprocess = Preprocess(**fields) if "crop" in fields else None

    def of(self, index: int, heats: Sequence[np.ndarray]) -> list[str]:
        """The image and the heatmaps over it, as data URIs."""
        from jaxcam import plot

        heats = [np.clip(np.nan_to_num(each), 0, 1) for each in heats]
        view = self.view(index, heats[0].shape)
        if view is None:
            return [_uri(_enlarged(each)) for each in plot.colorize(np.stack(heats))]
        return [_uri(view), *(_uri(plot.blend(view[None], each[None])[0]) for each in heats)]

    def view(self, index: int, shape) -> np.ndarray | None:
        if self.source is None:
            return None
        try:
            image = read.opened(self.source.read([index])[0])
        except (OSError, ValueError):
            return None
        view = self.preprocess.view(image)[0] if self.preprocess else np.asarray(image.resize(shape[::-1]))
        return _enlarged(view)


def _enlarged(pixels: np.ndarray) -> np.ndarray:
    """At the size of the page; small images by whole pixels, so that one sees what the model sees."""
    from PIL import Image

    height, width = pixels.shape[:2]
    if height < SIDE:
        return pixels.repeat(SIDE // height, 0).repeat(SIDE // height, 1)
    return np.asarray(Image.fromarray(pixels).resize((round(width * SIDE / height), SIDE), Image.Resampling.LANCZOS))


def _uri(pixels: np.ndarray) -> str:
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format="WEBP", quality=85)
    return f"data:image/webp;base64,{base64.b64encode(content.getvalue()).decode()}"


def table_of(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{each}</th>" for each in heads)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<div class=wide><table><tr>{head}</tr>{body}</table></div>"


def percent(each: Interval) -> str:
    return f"{each.value:.1%} <span class=note>{each.low:.1%} to {each.high:.1%}</span>"


def number(each: Interval) -> str:
    bounds = f" <span class=note>{each.low:.3g} to {each.high:.3g}</span>" if math.isfinite(each.low) else ""
    return f"{each.value:.3g}{bounds}" if math.isfinite(each.value) else "none"


def bar(each: Interval, low: float, high: float) -> str:
    """An interval as a line with a dot, on the scale of its column."""
    if not math.isfinite(each.value):
        return ""
    low_end, high_end = (each.low, each.high) if math.isfinite(each.low) else (each.value, each.value)
    x, left, right = (4 + 112 * (value - low) / ((high - low) or 1) for value in (each.value, low_end, high_end))
    line = '<line x1="4" x2="116" y1="7" y2="7" stroke="#e6e6e6"/>'
    line += f'<line x1="{left:.1f}" x2="{right:.1f}" y1="7" y2="7" stroke="#3b6ea5" stroke-width="3"/>'
    return f'<svg width="120" height="14">{line}<circle cx="{x:.1f}" cy="7" r="3.5" fill="#1f4468"/></svg>'
