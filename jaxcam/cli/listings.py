"""`jaxcam models`, `methods`, `metrics` and `layers`: what there is to choose from."""

from collections.abc import Iterable
from itertools import groupby

from jaxcam.cli._common import add_model, show, table


def add(commands) -> None:
    """Adds the commands and their arguments to the parser."""
    models = commands.add_parser("models", help="list the registered models")
    models.set_defaults(run=list_models)
    methods = commands.add_parser("methods", help="list the methods")
    methods.set_defaults(run=list_methods)
    metrics = commands.add_parser("metrics", help="list the metrics")
    metrics.set_defaults(run=list_metrics)
    layers = commands.add_parser("layers", help="list a model's layers with their shapes")
    layers.set_defaults(run=list_layers)
    add_model(layers, "model")


def versions() -> str:
    """In a line, what a bug report should say."""
    import platform
    from importlib.metadata import version

    import jax

    packages = ", ".join(f"{name} {version(name)}" for name in ("jax", "jaxlib", "flax", "numpy"))
    devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    own = f"jaxcam {version('jaxcam-xai')}, {packages}, Python {platform.python_version()}"
    return f"{own}, {platform.platform()}, {devices}, {_weights('efficientnet_lite0')}"


def _weights(name: str) -> str:
    """A model that is installed, with the first digits of its file's sha256 as it lies there."""
    import hashlib

    from jaxcam.models._find import find

    try:
        digest = hashlib.sha256(find(name, None).path.read_bytes()).hexdigest()
    except OSError as error:
        return f"{name}: {error}"
    return f"{name} {digest[:8]}"


def list_models(args) -> None:
    """The models that `jaxcam.load` knows by name."""
    from jaxcam.models import models

    rows = table("name", "architecture", "trained on", "top-1", "licence")
    for row in models().values():
        top1 = "" if row.top1 is None else f"{row.top1:.1f} %"
        rows.add_row(row.name, row.architecture, row.data, top1, row.licence)
    show(rows)


def list_methods(args) -> None:
    """The registry of methods; first those of maps, which `explain` takes."""
    _list(every_method().values(), "needs", "cost")
    show(
        "\nNeeds: a tap of a layer, tokens (a tap of a transformer, with reshape), any callable, or what others gave. "
        "Costs are forward passes with the default options, for k channels of the layer and d segments."
    )


def every_method() -> dict:
    from jaxcam import influence, regions
    from jaxcam.attribution import METHODS

    return METHODS | influence.METHODS | regions.METHODS


def list_metrics(args) -> None:
    """The registry of metrics; what they need is said in `jaxcam.metrics.Metric`."""
    from jaxcam.metrics import METRICS

    _list(METRICS.values(), "needs", "better", "cost")


def _list(rows: Iterable, *facts: str) -> None:
    """By families: the name and some facts in a line, then what it is and where it was published."""
    from rich.markup import escape
    from rich.padding import Padding

    rows = list(rows)
    names = max(len(row.name) for row in rows)
    widths = [max(len(getattr(row, fact)) for row in rows) for fact in facts]
    for family, members in groupby(rows, key=lambda row: row.family):
        show(f"\n[bold]{escape(family)}[/bold]")
        for row in members:
            known = [f"{fact} {getattr(row, fact):<{width}}" for fact, width in zip(facts, widths, strict=True)]
            show(f"[bold]{row.name:<{names}}[/bold]  {escape('  '.join(known)).rstrip()}")
            show(Padding(f"{escape(row.summary)}\n[dim]{escape(row.reference)}[/dim]", (0, 0, 0, 4), expand=False))


def list_layers(args) -> None:
    """The layers of a model, with the shapes that they return."""
    import jax
    import jax.numpy as jnp

    import jaxcam

    classifier = jaxcam.load(args.model, architecture=args.architecture)
    side = classifier.preprocess.crop
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    rows = table("layer", f"shape for one image of {side} x {side} pixels")
    for path, shape in jaxcam.layers(classifier.module, images, classifier.variables).items():
        rows.add_row(path, " x ".join(map(str, shape[1:])) + (" (default)" if path == classifier.layer else ""))
    show(rows)
