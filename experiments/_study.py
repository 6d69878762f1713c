"""What every study shares: its command line, the data, and results that say what produced them."""

import argparse
import io
import json
import os
import platform
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import jaxcam
from jaxcam import _files, data, metrics, train
from jaxcam.models.resnet import BasicBlock, ResNet

PACKAGES = ("jax", "flax", "optax", "numpy")


def arguments(name: str, description: str) -> argparse.ArgumentParser:
    """A parser with the options that all studies have; the script adds its own."""
    parser = argparse.ArgumentParser(
        prog=f"python -m experiments.{name}",
        description=description,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--smoke", action="store_true", help="seconds, on generated images")
    parser.add_argument("--data-dir", help="TFDS data directory (default: $TFDS_DATA_DIR or ~/tensorflow_datasets)")
    parser.add_argument("--output", type=Path, default=Path("results") / name, help="folder for everything it writes")
    return parser


def add_dtype(parser: argparse.ArgumentParser) -> None:
    """The option of studies that train; what is explained and shipped computes in float32."""
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16"],
        default="float32" if jax.default_backend() == "cpu" else "bfloat16",
        help="what the network computes in while it is trained; half is faster where the device has instructions",
    )


def cifar10(args: argparse.Namespace) -> tuple[data.Split, data.Split]:
    """The training and the test split; in smoke mode, images whose hue tells the class."""
    if not args.smoke:
        return data.cifar10("train", data_dir=args.data_dir), data.cifar10("test", data_dir=args.data_dir)
    rng = np.random.default_rng(0)
    splits = []
    for size in (512, 128):
        labels = np.arange(size, dtype=np.int32) % 10
        angles = 2 * np.pi * (labels / 10)[:, None] + np.array([0, 2.1, 4.2])
        images = 128 + 60 * np.cos(angles)[:, None, None] + rng.normal(0, 30, (size, 32, 32, 3))
        splits.append(data.Split(images.clip(0, 255).astype(np.uint8), labels))
    return splits[0], splits[1]


def resnet18(args: argparse.Namespace, **options) -> ResNet:
    """A ResNet-18 with the CIFAR stem; in smoke mode one block a stage, which compiles in half the time."""
    depth = (1, 1, 1, 1) if args.smoke else (2, 2, 2, 2)
    return ResNet(depth, BasicBlock, **{"num_classes": 10, "stem": "cifar"} | options)


def bundled(args: argparse.Namespace, name: str = "resnet18_cifar10", **options) -> jaxcam.Classifier:
    """The classifier of that name; in smoke mode a small untrained network in its place."""
    classifier = jaxcam.load(name, **options)
    if not args.smoke:
        return classifier
    module = resnet18(args, width=8)
    variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    return replace(classifier, module=module, variables=variables, layer="layer4")


def environment() -> dict:
    """Device and versions, to stand beside every number."""
    device = jax.devices()[0]
    processor = platform.processor() or platform.machine()
    return {
        "device": device.device_kind if device.platform != "cpu" else f"CPU, {os.cpu_count()} cores ({processor})",
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
    }


def markdown(header: list[str], rows: list[list]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    lines = [header, ["---"] + ["--:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def write_metrics(args: argparse.Namespace, metrics: dict) -> Path:
    """Writes `metrics.json`: the numbers, the settings and the environment."""
    path = args.output / "metrics.json"
    _files.write(path, json.dumps({**metrics, "settings": settings(args), **environment()}, indent=2) + "\n")
    return path


def settings(args: argparse.Namespace) -> dict:
    """The arguments that say what was computed; of a folder or file its name, not where it lay."""
    named = {name: value.name if isinstance(value, Path) else value for name, value in vars(args).items()}
    return {name: value for name, value in named.items() if name not in ("data_dir", "output")}


def save_jpeg(figure, path: Path) -> None:
    """Writes a figure of photographs, which takes a tenth of a PNG's room."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="jpeg", dpi=120, pil_kwargs={"quality": 85})
    _files.write(path, buffer.getvalue())


def progress():
    """A live progress bar, as a context manager."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns)


def part(args: argparse.Namespace, name: str, compute, **settings) -> dict:
    """What `compute()` returns, arrays and JSON values by name, done once: a later run reads it from `parts/`."""
    path = args.output / "parts" / f"{name}.npz"
    wanted = json.dumps({"smoke": args.smoke, **settings}, sort_keys=True, default=str)
    if not path.exists():
        result = {key: value if hasattr(value, "shape") else json.dumps(value) for key, value in compute().items()}
        with _files.writing(path) as file:
            np.savez(file, settings=wanted, **result)
    with np.load(path) as file:
        saved = {key: file[key] for key in file.files}
    if str(saved.pop("settings")) != wanted:
        raise SystemExit(f"{path} was made with other settings; delete that file, or choose another --output.")
    return {key: json.loads(str(value)) if value.dtype.kind == "U" else value for key, value in saved.items()}


def padded(array: np.ndarray, start: int, size: int) -> np.ndarray:
    """`array[start : start + size]`; where that is shorter, its last row again and again, so that shapes stay."""
    return array[np.minimum(np.arange(start, start + size), len(array) - 1)]


SIMILARITIES = {  # of two sets of maps
    "Pearson": metrics.pearson,
    "Spearman": metrics.spearman,
    "IoU, top 20 %": lambda a, b: metrics.iou_top(a, b, fraction=0.2),
}

RANDOM = "random weights: a test of the script, not a result"


def random_weights(path: Path, architecture: str = "resnet50", *, passes: int = 30, **options) -> Path:
    """An ImageNet state dict for want of a real one: random weights, and BatchNorm statistics measured on noise.

    The options are those of the architecture, such as `width`.
    """
    from jaxcam.models import ARCHITECTURES, save

    if path.exists():
        return path
    module = ARCHITECTURES[architecture](**options)
    first, *keys = jax.random.split(jax.random.key(0), passes + 1)
    side = getattr(module, "image_size", 64)  # a vision transformer takes one
    variables = jax.jit(module.init)(first, np.zeros((1, side, side, 3), np.float32))
    measure = jax.jit(lambda variables, images: module.apply(variables, images, train=True, mutable=["batch_stats"])[1])
    for key in keys if "batch_stats" in variables else ():
        # Of what the running averages were at first, 30 passes leave a twentieth.
        variables = variables | measure(variables, jax.random.normal(key, (8, 64, 64, 3)))
    save(path, variables, metadata={"architecture": architecture, "note": RANDOM})
    return path


def train_until(epoch: int, *data_and_model, checkpoint_dir: Path, **options) -> tuple[train.State, dict]:
    """The state after an epoch of `train.fit` and that epoch's record; it goes on from the checkpoint of the last one.

    A study that measures after every epoch calls this epoch by epoch, and so can be interrupted anywhere.
    """
    state, history = train.fit(*data_and_model, num_epochs=epoch, checkpoint_dir=checkpoint_dir, **options)
    return state, history[-1]


def batched(
    function, *arrays, size: int = 64, description: str = "", saved_by: argparse.Namespace | None = None, **settings
):
    """`function` on `size` rows of the arrays at a time, under a progress bar; results are NumPy arrays of all rows.

    The last batch is filled up by repeating its last row, so that one compilation serves. With the study's arguments as
    `saved_by`, every batch is a `part` of its own, named after the description and made with these settings.
    """
    total, results = len(arrays[0]), []
    settings |= {"size": size, "of": total}
    with progress() as bar:
        for start in bar.track(range(0, total, size), description=description):
            compute = partial(function, *(padded(each, start, size) for each in arrays))
            found = part(saved_by, f"{description}-{start}", compute, **settings) if saved_by else compute()
            results.append(jax.tree.map(np.asarray, found))
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:total], *results)
