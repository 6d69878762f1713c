"""The command line, `jaxcam explain | models | methods | metrics | layers`: argument parsing and printing only.

Bad input ends with one line on stderr and exit code 2. Everything slow is imported after the arguments are parsed, so
that `--help` and a mistyped option answer at once.
"""

import argparse
import inspect
import json
import re
import sys
from pathlib import Path

BATCH = 16  # images explained at once
PROGRAMS = 512 * 2**20  # bytes of compiled programs that are kept; the oldest go first


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise ValueError(f"{message} (see {self.prog} --help)")


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    try:
        args = _parser().parse_args(argv)
        args.run(args)
    except (ValueError, OSError) as error:
        print(f"jaxcam: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("jaxcam: interrupted", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="jaxcam", description="Explain image classifiers in JAX.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    explain = commands.add_parser("explain", help="explain images: overlays, a panel and a JSON file for each")
    explain.set_defaults(run=_explain)
    explain.add_argument("images", nargs="*", metavar="IMAGE", help="image files (default: a bundled photograph)")
    _add_model(explain, "--model", default="resnet18_cifar10")
    explain.add_argument("--method", nargs="+", default=["all"], metavar="NAME", help='methods, or "all" (the default)')
    explain.add_argument(
        "--target", metavar="INDEX_OR_LABEL", help="class to explain (default: each image's prediction)"
    )
    explain.add_argument("--layer", metavar="PATH", help="layer for the CAM methods (default: the model's own)")
    explain.add_argument(
        "--output", type=Path, default=Path("jaxcam_output"), metavar="DIR", help="folder for the results"
    )
    explain.add_argument("--colormap", default="inferno", metavar="NAME", help="any of matplotlib's, such as jet")

    models = commands.add_parser("models", help="list the registered models")
    models.set_defaults(run=_models)
    methods = commands.add_parser("methods", help="list the methods")
    methods.set_defaults(run=_methods)
    metrics = commands.add_parser("metrics", help="list the metrics")
    metrics.set_defaults(run=_metrics)
    layers = commands.add_parser("layers", help="list a model's layers with their shapes")
    layers.set_defaults(run=_layers)
    _add_model(layers, "model")
    return parser


def _add_model(parser, name: str, **options) -> None:
    described = "a registered name, a weight file, or hf:owner/repo"
    parser.add_argument(name, metavar="NAME_OR_PATH" if name.startswith("-") else "MODEL", help=described, **options)
    parser.add_argument(
        "--architecture", metavar="NAME", help="of a weight file that does not say it, such as resnet50"
    )


def _explain(args) -> None:
    import jax
    import numpy as np

    import jaxcam
    from jaxcam import plot

    _keep_programs()
    logits = jax.jit(lambda model, images: model(images))
    methods = _chosen_methods(args.method)
    plot.colorize(np.zeros((1, 1, 1)), args.colormap)  # a mistyped name is found before anything is computed
    _writable(args.output)
    with _progress() as progress:
        task = progress.add_task("loading", total=None)
        classifier = jaxcam.load(args.model, architecture=args.architecture)
        target = None if args.target is None else _class_index(args.target, classifier.labels)
        layer = args.layer or classifier.layer
        if "all" in args.method and layer != classifier.layer:
            methods.pop("cam")  # defined for the last convolutional layer alone
        model = jaxcam.tap(classifier.module, classifier.variables, layer)
        paths = args.images or [str(jaxcam.sample())]
        names = _unique_names(paths, methods)
        _refuse_to_overwrite(args.output, paths, names, methods)
        for path in paths:  # a damaged file is found before anything is computed
            jaxcam.image.open_image(path)
        progress.update(task, total=len(methods) * -(-len(paths) // BATCH))
        for start in range(0, len(paths), BATCH):
            batch = paths[start : start + BATCH]
            images, views = classifier.preprocess(batch), classifier.preprocess.view(batch)
            probabilities = np.asarray(jax.nn.softmax(logits(model, images), axis=-1))
            targets = probabilities.argmax(-1) if target is None else np.full(len(batch), target)
            heatmaps = {}
            for name, method in methods.items():
                progress.update(task, description=name)
                found = jaxcam.explain(model, images, targets, methods={name: method}, percentile=99)
                heatmaps[name] = np.asarray(found[name])
                progress.advance(task)
            for index, path in enumerate(batch):
                own = {name: maps[index] for name, maps in heatmaps.items()}
                report = _report(args, path, classifier, layer, probabilities[index], int(targets[index]), methods)
                _write(args.output, names[start + index], views[index], own, report, args.colormap)
                _print_report(progress.console, report)
    print(f"{len(paths)} image{'s' if len(paths) > 1 else ''} explained; results in {args.output}")


def _keep_programs() -> None:
    """Compiled programs stay on disk, so that a second run begins at once; `$JAX_COMPILATION_CACHE_DIR` goes first."""
    import platform

    import jax

    from jaxcam.models._download import cache_folder

    if jax.config.jax_compilation_cache_dir is None:
        # A folder for each machine: a program for one processor may not run on another that shares the home folder.
        folder = cache_folder() / "programs" / platform.node()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            return
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_compilation_cache_max_size", PROGRAMS)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def _chosen_methods(names: list[str]) -> dict:
    from jaxcam._errors import unknown
    from jaxcam.attribution import FOR_TRANSFORMERS, GIVES_PARTS, METHODS

    if "all" in names:  # the models that the command line loads are convolutional
        return {name: method for name, method in METHODS.items() if name not in FOR_TRANSFORMERS}
    for name in names:
        if name in GIVES_PARTS:
            raise ValueError(f"{name} gives parts and their scores, no heatmap; call jaxcam.{name} from Python.")
        if name not in METHODS and Path(name).exists():
            raise ValueError(f"{name!r} follows --method, so it was taken for a method; put images before --method.")
        if name not in METHODS:
            raise unknown("method", name, METHODS, "`jaxcam methods` lists them all.")
    return {name: METHODS[name] for name in names}


def _class_index(target: str, labels: tuple[str, ...]) -> int:
    """A class by its index or by its label, whatever its case."""
    from jaxcam._errors import unknown

    if re.fullmatch(r"[+-]?\d+", target):
        if not 0 <= int(target) < len(labels):
            raise ValueError(
                f"Target {target} is out of range: the model has {len(labels)} classes, 0 to {len(labels) - 1}."
            )
        return int(target)
    matches = [index for index, label in enumerate(labels) if label.lower() == target.lower()]
    if not matches:
        raise unknown("label", target, labels)
    if len(matches) > 1:
        raise ValueError(f"Label {target!r} names the classes {' and '.join(map(str, matches))}; give the index.")
    return matches[0]


def _writable(folder: Path) -> None:
    """Creates the output folder, so that a place that cannot be written is found before anything is computed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".jaxcam"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OSError(
            f"Cannot write to the output folder '{folder}': {error.strerror}. Choose another with --output."
        ) from None


def _files(name: str, methods) -> dict[str, str]:
    """What is written for one image."""
    return {each: f"{name}_{each}.png" for each in [*methods, "panel"]} | {"report": f"{name}.json"}


def _unique_names(paths: list[str], methods) -> list[str]:
    """One name per image, so that those of a/dog.jpg and b/dog.jpg, and of a.jpg and a_x.jpg, are different files."""
    names: list[str] = []
    taken: set[str] = set()
    for path in paths:
        stem, name, count = Path(path).stem, Path(path).stem, 1
        while taken.intersection(_files(name, methods).values()):
            count += 1
            name = f"{stem}-{count}"
        names.append(name)
        taken.update(_files(name, methods).values())
    return names


def _refuse_to_overwrite(folder: Path, paths: list[str], names: list[str], methods) -> None:
    """Files of an earlier run may be written again; an image that is explained, or a report of someone else, not."""
    images = {Path(path).resolve() for path in paths}
    for name in names:
        files = _files(name, methods)
        for file in files.values():
            if (folder / file).resolve() in images:
                raise ValueError(f"'{folder / file}' is one of the images; choose another folder with --output.")
        report = folder / files["report"]
        if report.exists() and not _is_report(report):
            raise ValueError(f"'{report}' exists and is no report of jaxcam; choose another folder with --output.")


def _is_report(path: Path) -> bool:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {"predictions", "methods", "target"} <= set(content)


def _report(args, path, classifier, layer, probabilities, target, methods) -> dict:
    def entry(index):
        return {"index": int(index), "label": classifier.labels[index], "probability": float(probabilities[index])}

    return {
        "image": path,
        "model": args.model,
        "layer": layer,
        "predictions": [entry(index) for index in probabilities.argsort()[::-1][:5]],
        "target": entry(target),
        "methods": {name: _settings(method) for name, method in methods.items()},
    }


def _settings(method) -> dict:
    """The options that a method ran with; the command line leaves them at their defaults."""
    options = {
        name: each.default
        for name, each in inspect.signature(method).parameters.items()
        if each.kind == each.KEYWORD_ONLY
    }
    return {name: getattr(value, "__name__", value) for name, value in options.items()}


def _write(folder: Path, name: str, view, heatmaps: dict, report: dict, colormap: str) -> None:
    from PIL import Image

    from jaxcam import plot

    files = _files(name, heatmaps)
    for method, maps in heatmaps.items():
        overlay = plot.blend(view[None], maps[None], colormap=colormap)[0]
        Image.fromarray(overlay).save(folder / files[method])
    figure = plot.panel(
        view,
        heatmaps,
        predictions=[(each["label"], each["probability"]) for each in report["predictions"]],
        title=_legible(name),
        explained=report["target"]["label"],
        colormap=colormap,
    )
    plot.save(figure, folder / files["panel"])
    report_file = files.pop("report")
    report["files"] = files
    (folder / report_file).write_text(json.dumps(report, indent=2) + "\n")


def _legible(text: str) -> str:
    """Text without what is no UTF-8 in it: the names of old files."""
    return text.encode("utf-8", "replace").decode()


def _print_report(console, report: dict) -> None:
    from rich.markup import escape

    console.print(f"\n[bold]{escape(_legible(report['image']))}[/bold]")
    table = _table(None, "class", "probability", "")
    for each in report["predictions"]:
        explained = "explained" if each["index"] == report["target"]["index"] else ""
        table.add_row(escape(each["label"]), f"{each['probability']:.1%}", explained)
    if report["target"] not in report["predictions"]:
        table.add_row(escape(report["target"]["label"]), f"{report['target']['probability']:.1%}", "explained")
    console.print(table)


def _models(args) -> None:
    from jaxcam.models import models

    table = _table(None, "name", "architecture", "trained on", "top-1", "licence")
    for row in models().values():
        table.add_row(
            row.name, row.architecture, row.data, "" if row.top1 is None else f"{row.top1:.1f} %", row.licence
        )
    _print(table)


def _methods(args) -> None:
    from jaxcam.attribution import GIVES_PARTS, METHODS

    _list(METHODS | GIVES_PARTS)


def _metrics(args) -> None:
    from jaxcam.metrics import METRICS

    _list(METRICS)


def _list(functions: dict) -> None:
    """One line and a reference for each function, from its docstring."""
    table = _table(None, "name", "what it is", "reference")
    for name, function in functions.items():
        doc = inspect.getdoc(function)
        summary = doc.split("\n\n")[0].split(": ", 1)[-1]
        reference = re.search(r"References?: (.+?)(?:\n\n|$)", doc, re.DOTALL)[1]
        table.add_row(name, " ".join(summary.split()), " ".join(reference.split()))
    _print(table)


def _layers(args) -> None:
    import jax
    import jax.numpy as jnp

    import jaxcam

    classifier = jaxcam.load(args.model, architecture=args.architecture)
    side = classifier.preprocess.crop
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    table = _table(None, "layer", f"shape for one image of {side} x {side} pixels")
    for path, shape in jaxcam.layers(classifier.module, images, classifier.variables).items():
        table.add_row(path, " x ".join(map(str, shape[1:])) + (" (default)" if path == classifier.layer else ""))
    _print(table)


def _table(title: str | None, *columns: str):
    from rich.table import Column, Table

    headers = [Column(name, overflow="fold") for name in columns]
    return Table(*headers, title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)


def _print(table) -> None:
    from rich.console import Console

    Console().print(table)


def _progress():
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    return Progress(*columns, transient=True)


if __name__ == "__main__":
    sys.exit(main())
