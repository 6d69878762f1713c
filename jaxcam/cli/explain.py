"""`jaxcam explain`: overlays, a panel and a JSON file for each image."""

import importlib.util
import inspect
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxcam._errors import printable
from jaxcam.cli import _results
from jaxcam.cli._common import add_model, complain, count, keep_programs, muffled, pixels_at_most, progress, table

BATCH = 16  # images explained at once
# Without --method: of each idea one that takes no more than some forward and backward passes.
USUAL = ("grad_cam", "layer_cam", "ablation_cam", "saliency", "guided_backprop", "integrated_gradients")


def add(commands) -> None:
    """Adds the command and its arguments to the parser."""
    parser = commands.add_parser("explain", help="explain images: overlays, a panel and a JSON file for each")
    parser.set_defaults(run=run)
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="image files (default: a bundled photograph)")
    add_model(parser, "--model", default="efficientnet_lite0")
    usual = f'methods, or "all" (default: {" ".join(USUAL)})'
    parser.add_argument("--method", nargs="+", default=USUAL, metavar="NAME", help=usual)
    classes = "classes to explain, side by side if several (default: each image's prediction)"
    parser.add_argument("--target", nargs="+", default=(), metavar="INDEX_OR_LABEL", help=classes)
    parser.add_argument("--layer", metavar="PATH", help="layer for the CAM methods (default: the model's own)")
    parser.add_argument(
        "--output", type=Path, default=Path("jaxcam_output"), metavar="DIR", help="folder for the results"
    )
    pixels = "most pixels of an image that is decoded (default: 89 million)"
    parser.add_argument("--max-pixels", type=count, metavar="N", help=pixels)
    parser.add_argument("--colormap", default="inferno", metavar="NAME", help="any of matplotlib's, such as jet")


class Job(NamedTuple):
    """What is to be done, once everything that can be checked was checked."""

    classifier: Any
    name: str  # of the model, as it was given
    layer: str
    targets: list[int]  # none: what the model predicts
    methods: list[str]
    paths: list[str]
    names: list[str]  # of each image's files
    output: Path
    colormap: str


class Batch(NamedTuple):
    """Some images, what they look like, and what the model takes them for."""

    paths: list[str]
    names: list[str]
    images: Any
    views: Any
    probabilities: Any
    targets: Any  # int[n, t]


def run(args) -> None:
    """Checks everything, then predicts, explains and writes batch by batch."""
    keep_programs()
    methods = _methods(args.method)
    _check_colormap(args.colormap)
    _results.make_writable(args.output)
    remarks: list[str] = []
    with pixels_at_most(args.max_pixels), progress() as bar:
        task = bar.add_task("loading", total=None)
        job = _job(args, methods)
        model = job.classifier.tap(job.layer)
        starts = range(0, len(job.paths), BATCH)
        bar.update(task, total=len(job.methods) * len(starts))
        for start in starts:
            batch = _predicted(job, model, slice(start, start + BATCH))
            heatmaps = {}
            for name in job.methods:
                bar.update(task, description=name)
                heatmaps[name], said = _explained(model, batch, name)
                remarks += _remarks(job, batch, name, heatmaps[name], said)
                bar.advance(task)
            for report in _written(job, batch, heatmaps):
                _print_report(bar.console, report)
    for remark in dict.fromkeys(remarks):
        complain(remark)
    count = len(job.paths)
    print(f"{count} image{'s' if count > 1 else ''} explained; results in {printable(str(args.output))}")


def _methods(names: Sequence[str]) -> list[str]:
    """The methods that are meant, or an error that says why one of them cannot be."""
    from jaxcam._errors import unknown
    from jaxcam.attribution import METHODS

    missing = {name for name, row in METHODS.items() if row.on_host and importlib.util.find_spec(row.on_host) is None}
    if "all" in names:  # the models that the command line loads are convolutional
        names = [name for name, row in METHODS.items() if row.gives != "parts" and row.needs != "tokens"]
        for name in missing.intersection(names):
            complain(f"{name} is left out: it {_wants(METHODS[name].on_host)}")
        return [name for name in names if name not in missing]
    for name in names:
        if name not in METHODS and Path(name).exists():
            raise ValueError(f"{name!r} follows --method, so it was taken for a method; put images before --method.")
        if name not in METHODS:
            raise unknown("method", name, METHODS, "`jaxcam methods` lists them all.")
        if METHODS[name].gives == "parts":
            raise ValueError(f"{name} gives parts and their scores, no heatmap; call jaxcam.{name} from Python.")
        if name in missing:
            raise ValueError(f"{name} {_wants(METHODS[name].on_host)}")
    return list(dict.fromkeys(names))


def _wants(package: str) -> str:
    return f"needs {package}, which is not installed: pip install 'jaxcam-xai[superpixels]'."


def _check_colormap(name: str) -> None:
    import numpy as np

    from jaxcam import plot

    plot.colorize(np.zeros((1, 1, 1)), name)


def _job(args, methods: list[str]) -> Job:
    """Loads the model and looks at all images, so that a damaged file is found before anything is computed."""
    import jaxcam

    classifier = jaxcam.load(args.model, architecture=args.architecture)
    targets = list(dict.fromkeys(_class_index(each, classifier.labels) for each in args.target))
    layer = args.layer or classifier.layer
    if "all" in args.method and layer != classifier.layer:
        methods = [name for name in methods if name != "cam"]  # defined for the last convolutional layer alone
    paths = args.images or [str(jaxcam.sample())]
    maps = [file for method in methods for file in _files_of(method, targets, classifier.labels)]
    names = _results.unique_names(paths, maps)
    _results.refuse_to_overwrite(args.output, paths, names, maps)
    for path in paths:
        with muffled():
            jaxcam.image.open_image(path)
    return Job(classifier, args.model, layer, targets, methods, paths, names, args.output, args.colormap)


def _files_of(method: str, targets: Sequence[int], labels: Sequence[str]) -> list[str]:
    """What the files of a method's heatmaps are called: by the class, too, where there are several.

    Labels may be those of two classes (ImageNet's cranes), or hold nothing that a file's name may: the index tells.
    """
    if len(targets) < 2:
        return [method]
    spelt = {target: re.sub("[^0-9A-Za-z]+", "-", labels[target])[:60].strip("-") for target in targets}
    return [f"{method}_{target}-{spelt[target]}" for target in targets]


def _class_index(target: str, labels: Sequence[str]) -> int:
    """A class by its index or by its label, whatever its case."""
    from jaxcam._errors import unknown

    if re.fullmatch(r"[+-]?\d+", target):
        if not 0 <= int(target) < len(labels):
            raise ValueError(
                f"Target {target} is out of range: the model has {len(labels)} classes, 0 to {len(labels) - 1}."
            )
        return int(target)
    matches = [index for index, label in enumerate(labels) if label.lower() == target.lower()]
    if not matches and Path(target).exists():
        raise ValueError(f"{target!r} follows --target, so it was taken for a class; put images before --target.")
    if not matches:
        raise unknown("label", target, labels)
    if len(matches) > 1:
        raise ValueError(f"Label {target!r} names the classes {' and '.join(map(str, matches))}; give the index.")
    return matches[0]


def _predicted(job: Job, model, part: slice) -> Batch:
    import jax
    import numpy as np

    paths = job.paths[part]
    seen = [_seen(job.classifier.preprocess, path) for path in paths]
    images, views = jax.numpy.asarray(np.concatenate([image for image, _ in seen])), [view for _, view in seen]
    probabilities = np.asarray(jax.jit(_probabilities)(model, images))
    targets = np.tile(job.targets, (len(paths), 1)) if job.targets else probabilities.argmax(-1)[:, None]
    return Batch(paths, job.names[part], images, views, probabilities, targets)


def _seen(preprocess, path: str) -> tuple:
    """What the model gets of an image, and what a person sees of it; a large image is decoded once, and let go."""
    from jaxcam.image import open_image

    with muffled():
        image = open_image(path)
    return preprocess(image), preprocess.view(image)[0]


def _probabilities(model, images):
    import jax

    return jax.nn.softmax(model(images), axis=-1)


def _explained(model, batch: Batch, name: str) -> tuple[Any, list[str]]:
    """The heatmaps `[n, t, h, w]` of a method, and what the library warned of."""
    import numpy as np

    import jaxcam

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        found = jaxcam.explain(model, batch.images, batch.targets, methods=[name], percentile=99)
    return np.asarray(found[name]), list(dict.fromkeys(str(each.message) for each in caught))


def _remarks(job: Job, batch: Batch, name: str, heatmaps, said: Sequence[str]) -> list[str]:
    """A sentence for each heatmap that is zero everywhere, with the reason where the library said one."""
    zeros = []
    for path, maps, targets in zip(batch.paths, heatmaps, batch.targets, strict=True):
        for heat, target in zip(maps, targets, strict=True):
            of_class = f" for {job.classifier.labels[target]}" if len(targets) > 1 else ""
            zeros += [] if heat.any() else [" ".join([f"{path}: {name} is zero everywhere{of_class}.", *said])]
    return zeros or list(said)


def _written(job: Job, batch: Batch, heatmaps: dict):
    """Writes the files of each image, and gives its report."""
    for index, name in enumerate(batch.names):
        report = _report(job, batch, index)
        own = {}
        for method, maps in heatmaps.items():
            own |= zip(_files_of(method, batch.targets[index], job.classifier.labels), maps[index], strict=True)
        _results.write(job.output, name, batch.views[index], own, report, job.colormap)
        yield report


def _report(job: Job, batch: Batch, index: int) -> dict:
    from jaxcam.attribution import METHODS

    probabilities = batch.probabilities[index]

    def entry(index):
        return {"index": int(index), "label": job.classifier.labels[index], "probability": float(probabilities[index])}

    return {
        "image": batch.paths[index],
        "model": job.name,
        "layer": job.layer,
        "predictions": [entry(index) for index in probabilities.argsort()[::-1][:5]],
        "targets": [entry(each) for each in batch.targets[index]],
        "methods": {name: _settings(METHODS[name].function) for name in job.methods},
    }


def _settings(method) -> dict:
    """The options that a method ran with; the command line leaves them at their defaults."""
    options = {
        name: each.default
        for name, each in inspect.signature(method).parameters.items()
        if each.kind == each.KEYWORD_ONLY
    }
    return {name: getattr(value, "__name__", value) for name, value in options.items()}


def _print_report(console, report: dict) -> None:
    from rich.markup import escape

    console.print(f"\n[bold]{escape(printable(report['image']))}[/bold]")
    rows = table("class", "probability", "")
    others = [each for each in report["targets"] if each not in report["predictions"]]
    for each in [*report["predictions"], *others]:
        explained = "explained" if each in report["targets"] else ""
        rows.add_row(escape(printable(each["label"])), f"{each['probability']:.1%}", explained)
    console.print(rows)
