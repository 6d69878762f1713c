"""`jaxcam export`: a method on a model as StableHLO, in a file that runs without jaxcam."""

from pathlib import Path
from typing import Any

from jaxcam._errors import printable, unknown
from jaxcam.cli._common import add_model, count
from jaxcam.cli.explain import class_index

TARGETS = ("argument", "predicted")


def add(commands) -> None:
    """Adds the command and its arguments to the parser."""
    parser = commands.add_parser("export", help="write a method on a model as StableHLO, which runs without jaxcam")
    parser.set_defaults(run=run)
    add_model(parser, "--model", default="efficientnet_lite0")
    parser.add_argument("--method", default="grad_cam", metavar="NAME", help="(default: grad_cam)")
    parser.add_argument("--layer", metavar="PATH", help="layer for the CAM methods (default: the model's own)")
    parser.add_argument("--size", type=count, metavar="N", help="side of the images (default: the model's own)")
    classes = "argument: each call names a class for each image; or predicted, or one class (default: argument)"
    parser.add_argument("--target", default="argument", metavar="INDEX_OR_LABEL", help=classes)
    platforms = "where it may run: cpu, cuda, rocm, tpu (default: cpu cuda tpu)"
    parser.add_argument("--platforms", nargs="+", default=("cpu", "cuda", "tpu"), metavar="NAME", help=platforms)
    weights = "constants are in the file; arguments lie beside it, as .safetensors (default: constants)"
    parser.add_argument("--weights", default="constants", metavar="HOW", help=weights)
    batch = "images of a call, or symbolic: any number (default: symbolic)"
    parser.add_argument("--batch", default="symbolic", metavar="N", help=batch)
    name = "(default: METHOD.stablehlo)"
    parser.add_argument("--output", type=Path, metavar="FILE", help=name)


def run(args) -> None:
    """Exports, writes the file or the two files, and says how to call them."""
    import jaxcam
    from jaxcam import _files

    if args.method not in jaxcam.METHODS:
        raise unknown("method", args.method, jaxcam.METHODS, "`jaxcam methods` lists them all.")
    output = args.output or Path(f"{args.method}.stablehlo")
    beside = output.with_suffix(".safetensors")
    if args.weights == "arguments" and beside == output:
        raise ValueError(f"'{output}' is where the weights go; give --output another ending, such as .stablehlo.")
    batch = int(args.batch) if args.batch.isdecimal() else args.batch
    classifier = jaxcam.load(args.model, architecture=args.architecture)
    model, side = classifier.tap(args.layer), args.size or classifier.preprocess.crop
    options = {"platforms": args.platforms, "weights": args.weights, "batch": batch}
    shape, target = (side, side, 3), _target(args.target, classifier.labels)
    try:
        exported = jaxcam.export(args.method, model, shape, target, **options)
    except (ImportError, TypeError) as error:
        raise ValueError(str(error)) from error
    _files.write(output, exported)
    print(f"{printable(str(output))}: {len(exported):,} bytes")
    given = []
    if args.weights == "arguments":
        from safetensors.numpy import save

        _files.write(beside, save(jaxcam.exported_weights(model)))
        print(f"{printable(str(beside))}: {beside.stat().st_size:,} bytes of weights")
        given.append("weights")
    _print_call(classifier.preprocess, given, batch, side, target)


def _target(text: str, labels) -> Any:
    if text in TARGETS:
        return None if text == "predicted" else text
    return class_index(text, labels)


def _print_call(preprocess, given, batch, side: int, target) -> None:
    """What a process with JAX alone has to know."""
    n = "n" if batch == "symbolic" else batch
    given = [*given, "images"] + ["targets"] * (target == "argument")
    print(f"jax.export.deserialize(content).call({', '.join(given)})")
    print(
        f"  images: float32[{n}, {side}, {side}, 3], RGB in [0, 1], less {preprocess.mean}, divided by {preprocess.std}"
    )
    if target == "argument":
        print(f"  targets: int32[{n}], a class for each image")
