"""`jaxcam explain`: overlays, a panel and a JSON file for each image."""

import importlib.util
import inspect
import re
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxcam._errors import printable
from jaxcam.cli import _panel, _results
from jaxcam.cli._common import (
    add_model,
    advance,
    complain,
    count,
    keep_programs,
    muffled,
    pixels_at_most,
    progress,
    show,
    table,
)

BATCH = 16  # images explained at once
TABLES, MANY = 10, 100  # images: beyond, a line for each; and beyond, another command does it better
LONG = 10  # seconds that are worth an estimate
# Without --method: of each idea one that takes no more than some forward and backward passes.
USUAL = ("grad_cam", "layer_cam", "ablation_cam", "saliency", "guided_backprop", "integrated_gradients")
USUAL_OF_TOKENS = ("grad_cam", "layer_cam", "attention_relevance", "le_grad", "saliency", "integrated_gradients")


def add(commands) -> None:
    """Adds the command and its arguments to the parser."""
    parser = commands.add_parser("explain", help="explain images: overlays, a panel and a JSON file for each")
    parser.set_defaults(run=run)
    files = "image files, folders of them, or patterns such as 'photos/*.jpg' (default: a bundled photograph)"
    parser.add_argument("images", nargs="*", metavar="IMAGE", help=files)
    add_model(parser, "--model", default="efficientnet_lite0")
    usual = f'methods, or "all" (default: {" ".join(USUAL)}; of a vision transformer {" ".join(USUAL_OF_TOKENS)})'
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
    parser.add_argument("--theme", choices=["light", "dark"], default="light", help="of the pictures (default: light)")
    parser.add_argument("--format", choices=["png", "svg", "pdf"], default="png", help="of the panel (default: png)")
    scale = "of the panel's resolution: 1 is 1800 pixels across a slide, 2 is 3600 (default: 1)"
    parser.add_argument("--scale", type=float, default=1, metavar="NUMBER", help=scale)
    parser.add_argument("--no-panel", action="store_true", help="overlays and the JSON file alone")
    again = "explain images anew whose files are there already, made with the same settings"
    parser.add_argument("--again", action="store_true", help=again)


class Job(NamedTuple):
    """What is to be done, once everything that can be checked was checked."""

    classifier: Any
    layer: str
    targets: list[int]  # none: what the model predicts
    methods: list[str]
    paths: list[str]
    names: list[str]  # of each image's files
    settings: list[dict]  # of each image: what its files depend on
    finished: list[dict]  # reports of an earlier run with the same settings
    unreadable: dict[str, str]  # files, and what is wrong with each
    left_out: dict[str, str]  # methods that are not for this model, and why
    output: Path
    look: _panel.Look

    @property
    def is_short(self) -> bool:
        """Whether there is room for a table for each image."""
        return len(self.finished) + len(self.paths) <= TABLES


class Explained(NamedTuple):
    """What a method says of a batch."""

    heatmaps: Any  # float[n, t, h, w]
    drawn: Any  # on the panel: the same, or attributions [n, t, h, w, c]
    said: list[str]  # what the library warned of


class Batch(NamedTuple):
    """Some images, what they look like, and what the model takes them for."""

    paths: list[str]
    names: list[str]
    settings: list[dict]
    images: Any
    views: Any
    probabilities: Any
    targets: Any  # int[n, t]


def run(args) -> None:
    """Checks everything, then predicts, explains and writes batch by batch.

    Raises:
      ValueError: some of the images could not be read, or some of the methods that were named are not for this model;
        the others are explained.
    """
    keep_programs()
    methods = _methods(args.method)
    _panel.check(_look(args))
    _results.make_writable(args.output)
    remarks: list[str] = []
    with pixels_at_most(args.max_pixels), progress() as bar:
        task = bar.add_task("loading the model", total=len(methods))
        job = _job(args, methods)
        model = job.classifier.tap(job.layer)
        starts = range(0, len(job.paths), BATCH)
        bar.update(task, total=len(job.methods) * len(starts), description="predicting", refresh=True)
        _print_reports(bar, job, job.finished)
        if len(job.paths) > MANY:
            complain(
                f"for {len(job.paths)} images `jaxcam explain-dataset` is made: heatmaps in one place, and no pictures"
            )
        for start in starts:
            batch = _predicted(job, model, slice(start, start + BATCH))
            channels, found = _channels(job, model, batch), {}
            if start == 0:
                _estimate(job, model, batch, channels)
            for name in job.methods:
                if name in job.left_out:
                    continue
                bar.update(task, description=f"{name}: {_stage(job, start)}", refresh=True)
                began = time.perf_counter()
                try:
                    found[name] = _explained(model, batch, name)
                except (ValueError, TypeError) as error:
                    if len(job.methods) == 1:
                        raise
                    job.left_out[name] = str(error)
                    continue
                remarks += _remarks(job, batch, name, found[name])
                advance(bar, task, name, time.perf_counter() - began)
            if not found:
                break
            bar.update(task, description="drawing", refresh=True)
            _print_reports(bar, job, list(_written(job, batch, found, channels)))
    for remark in dict.fromkeys(remarks):
        complain(remark)
    _print_end(job, are_named=not _are_ours(args.method))


def _print_reports(bar, job: Job, reports: list[dict]) -> None:
    bar.stop()  # the line makes room
    for report in reports:
        (_print_report if job.is_short else _print_line)(report)
    bar.start()


def _print_end(job: Job, are_named: bool) -> None:
    for name, reason in job.left_out.items():
        complain(f"{name} is left out: {reason}")
    if job.methods and len(job.left_out) == len(job.methods):
        raise ValueError("None of the methods is for this model.")
    count, before = len(job.paths), len(job.finished)
    new = f"{count} image{'s' * (count != 1)} explained" if count or not before else ""
    old = f"{before} had been before, with the same settings (--again explains them anew)" if before else ""
    print(f"{', '.join(filter(None, [new, old]))}; results in {printable(str(job.output))}")
    if job.unreadable:
        for message in job.unreadable.values():
            complain(message)
        raise ValueError(f"{len(job.unreadable)} of {count + before + len(job.unreadable)} images could not be read.")
    if job.left_out and are_named:
        raise ValueError(f"{len(job.left_out)} of {len(job.methods)} methods are not for this model.")


def _stage(job: Job, start: int) -> str:
    """Programs are compiled for the first images, and for the last ones where these are fewer."""
    new = start == 0 or start + BATCH > len(job.paths)
    return "compiling and running" if new else "running"


def _estimate(job: Job, model, batch: Batch, channels: int | None) -> None:
    """Says how long it takes, by the time of a forward pass and the methods' costs, if that is long."""
    from jaxcam.attribution import METHODS

    start = time.perf_counter()
    model(batch.images).block_until_ready()
    passes = sum(_panel.passes(METHODS[name], channels) or 0 for name in job.methods)
    seconds = (time.perf_counter() - start) * passes * len(job.paths) / len(batch.paths)
    if seconds >= LONG:
        long = f"{seconds / 60:.0f} minutes" if seconds >= 100 else f"{seconds:.0f} seconds"
        complain(
            f"{len(job.methods)} methods take {passes:,} forward passes an image: about {long}, and time to compile"
        )


def _look(args) -> _panel.Look:
    return _panel.Look(args.colormap, args.theme, None if args.no_panel else args.format, args.scale)


def _are_ours(methods: Sequence[str]) -> bool:
    """Whether nobody named them one by one, so that those which a model has no use for may be missing."""
    return methods is USUAL or "all" in methods


def _methods(names: Sequence[str]) -> list[str]:
    """The methods that are meant, or an error that says why one of them cannot be."""
    from jaxcam._errors import unknown
    from jaxcam.attribution import METHODS

    missing = {name for name, row in METHODS.items() if row.on_host and importlib.util.find_spec(row.on_host) is None}
    if "all" in names:
        names = [name for name, row in METHODS.items() if row.is_map]
        for name in missing.intersection(names):
            complain(f"{name} is left out: it {_wants(METHODS[name].on_host)}")
        return [name for name in names if name not in missing]
    for name in names:
        if name not in METHODS and Path(name).exists():
            raise ValueError(f"{name!r} follows --method, so it was taken for a method; put images before --method.")
        if name not in METHODS:
            raise unknown("method", name, METHODS, "`jaxcam methods` lists them all.")
        if not METHODS[name].is_map:
            raise ValueError(f"{name} gives {METHODS[name].gives}, no heatmap; call jaxcam.{name} from Python.")
        if name in missing:
            raise ValueError(f"{name} {_wants(METHODS[name].on_host)}")
    return list(dict.fromkeys(names))


def _wants(package: str | None) -> str:
    return f"needs {package}, which is not installed: pip install 'jaxcam-xai[superpixels]'."


def _job(args, methods: list[str]) -> Job:
    """Loads the model and looks at all images, so that a damaged file is found before anything is computed."""
    import jaxcam

    classifier = jaxcam.load(args.model, architecture=args.architecture)
    targets = list(dict.fromkeys(class_index(each, classifier.labels) for each in args.target))
    layer = args.layer or classifier.layer
    methods = _suitable(args, methods, classifier)
    look, paths = _look(args), _image_files(args.images) or [str(jaxcam.sample())]
    maps = [file for method in methods for file in _files_of(method, targets, classifier.labels)]
    names = _results.unique_names(paths, maps, look.format)
    _results.refuse_to_overwrite(args.output, paths, names, maps, look.format)
    new, settings, finished, unreadable, left_out = {}, [], [], {}, {}
    for path, name in zip(paths, names, strict=True):
        try:
            own = _settings(args, classifier, layer, targets, methods, look, path)
            report = None if args.again else _results.finished(args.output, name, own)
            with muffled():
                if not report:
                    jaxcam.image.open_image(path)
        except (ValueError, OSError) as error:
            if len(paths) == 1:
                raise
            unreadable[path] = str(error)
            continue
        if report is not None:
            finished.append(report)
            left_out |= report.get("left_out", {})
            continue
        new[path] = name
        settings.append(own)
    found = list(new), list(new.values()), settings, finished, unreadable, left_out
    return Job(classifier, layer, targets, methods, *found, args.output, look)


def _suitable(args, methods: list[str], classifier) -> list[str]:
    """Of methods that nobody named one by one, those for the kind of model and for the layer."""
    from jaxcam.attribution import METHODS

    has_tokens = getattr(classifier.module, "reshape", None) is not None
    if args.method is USUAL and has_tokens:
        return list(USUAL_OF_TOKENS)
    if "all" in args.method and not has_tokens:
        methods = [name for name in methods if METHODS[name].needs != "tokens"]
    if "all" in args.method and args.layer not in (None, classifier.layer):
        methods = [name for name in methods if name != "cam"]  # defined for the last convolutional layer alone
    return methods


def _settings(args, classifier, layer, targets, methods, look, path) -> dict:
    """What the files of an image depend on, in words that a JSON file holds."""
    from hashlib import sha256
    from importlib.metadata import version

    from jaxcam import _files
    from jaxcam.attribution import METHODS

    return {
        "model": args.model,
        "weights": classifier.about.get("sha256"),
        "layer": layer,
        "methods": {name: _options(METHODS[name].function) for name in methods},
        "asked": [classifier.labels[each] for each in targets] or "predicted",
        "look": look._asdict(),
        "jaxcam": version("jaxcam-xai"),
        "sha256": sha256(_files.read(path)).hexdigest(),
    }


def _image_files(named: Sequence[str]) -> list[str]:
    """The files that are meant; folders and patterns hold some."""
    found = []
    for each in named:
        if re.match("[a-z]+://", each):
            raise ValueError(f"'{printable(each)}' is an address; download it first, and name the file.")
        found += _held(each) if any(sign in each for sign in "*?[") or Path(each).is_dir() else [each]
    return list(dict.fromkeys(found))


def _held(folder: str) -> list[str]:
    from jaxcam.dataset.sources import Files, source_of

    source = source_of(folder)
    if not isinstance(source, Files):
        raise ValueError(f"'{printable(folder)}' holds records, no image files; `jaxcam explain-dataset` reads them.")
    return [str(source.root / name) for name in source.names]


def _files_of(method: str, targets: Sequence[int], labels: Sequence[str]) -> list[str]:
    """What the files of a method's heatmaps are called: by the class, too, where there are several.

    Labels may be those of two classes (ImageNet's cranes), or hold nothing that a file's name may: the index tells.
    """
    if len(targets) < 2:
        return [method]
    spelt = {target: re.sub("[^0-9A-Za-z]+", "-", labels[target])[:60].strip("-") for target in targets}
    return [f"{method}_{target}-{spelt[target]}" for target in targets]


def class_index(target: str, labels: Sequence[str]) -> int:
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
    probabilities = np.asarray(jax.nn.softmax(model(images), axis=-1))
    targets = np.tile(job.targets, (len(paths), 1)) if job.targets else probabilities.argmax(-1)[:, None]
    return Batch(paths, job.names[part], job.settings[part], images, views, probabilities, targets)


def _seen(preprocess, path: str) -> tuple:
    """What the model gets of an image, and what a person sees of it; a large image is decoded once, and let go."""
    from jaxcam.image import open_image

    with muffled():
        image = open_image(path)
    return preprocess(image), preprocess.view(image)[0]


def _explained(model, batch: Batch, name: str) -> Explained:
    import jax
    import numpy as np

    from jaxcam.attribution import METHODS, heatmap

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        found = METHODS[name].function(model, batch.images, batch.targets)
        heatmaps = found if METHODS[name].gives == "heatmaps" else jax.jit(heatmap)(found, batch.images)
    found, heatmaps = np.asarray(found), np.asarray(heatmaps)
    said = dict.fromkeys(str(each.message) for each in caught)
    return Explained(heatmaps, _panel.drawn(name, found, heatmaps), list(said))


def _channels(job: Job, model, batch: Batch) -> int | None:
    """Of the layer, where a method's cost depends on them."""
    import jax

    from jaxcam.attribution import METHODS

    if not any(re.search(r"\bk\b", METHODS[name].cost) for name in job.methods):
        return None
    return jax.eval_shape(_features, model, batch.images).shape[-1]


def _features(model, images):  # one function, so that its trace is remembered for the next batch
    return model.features(images)


def _remarks(job: Job, batch: Batch, name: str, found: Explained) -> list[str]:
    """A sentence for each heatmap that is zero everywhere, with the reason where the library said one."""
    zeros = []
    for path, maps, targets in zip(batch.paths, found.heatmaps, batch.targets, strict=True):
        for heat, target in zip(maps, targets, strict=True):
            of_class = f" for {job.classifier.labels[target]}" if len(targets) > 1 else ""
            zeros += [] if heat.any() else [" ".join([f"{path}: {name} is zero everywhere{of_class}.", *found.said])]
    return zeros or list(found.said)


def _written(job: Job, batch: Batch, found: dict[str, Explained], channels: int | None):
    """Writes the files of each image, and gives its report."""
    labels = job.classifier.labels
    for index, name in enumerate(batch.names):
        report, view = _report(job, batch, index), batch.views[index]
        targets, overlays = batch.targets[index], {}
        maps = {method: each.drawn[index] for method, each in found.items()}
        for method, of_classes in maps.items():
            for file, target, each in zip(_files_of(method, targets, labels), targets, of_classes, strict=True):
                overlays[file] = _panel.overlay(view, each, method, labels[target], job.look)
        panel = _panel.panel(view, maps, report, printable(name), channels, job.look) if job.look.format else None
        _results.write(job.output, name, overlays, panel, report, job.look)
        yield report


def _report(job: Job, batch: Batch, index: int) -> dict:
    probabilities = batch.probabilities[index]

    def entry(index):
        return {"index": int(index), "label": job.classifier.labels[index], "probability": float(probabilities[index])}

    return {
        "image": batch.paths[index],
        **batch.settings[index],
        "predictions": [entry(index) for index in probabilities.argsort()[::-1][:5]],
        "targets": [entry(each) for each in batch.targets[index]],
        "left_out": job.left_out,
    }


def _options(method) -> dict:
    """Those that a method ran with; the command line leaves them at their defaults."""
    options = {
        name: each.default
        for name, each in inspect.signature(method).parameters.items()
        if each.kind == each.KEYWORD_ONLY
    }
    return {name: getattr(value, "__name__", value) for name, value in options.items()}


def _print_line(report: dict) -> None:
    """What an image is taken for, and what else was explained."""
    listed = [report["predictions"][0], *(each for each in report["targets"] if each != report["predictions"][0])]
    found = ", ".join(f"{each['label']} {each['probability']:.1%}" for each in listed)
    print(printable(f"{report['image']}: {found}"))


def _print_report(report: dict) -> None:
    from rich.markup import escape

    show(f"\n[bold]{escape(printable(report['image']))}[/bold]")
    rows = table("class", "probability", "")
    others = [each for each in report["targets"] if each not in report["predictions"]]
    for each in [*report["predictions"], *others]:
        explained = "explained" if each in report["targets"] else ""
        rows.add_row(escape(printable(each["label"])), f"{each['probability']:.1%}", explained)
    show(rows)
