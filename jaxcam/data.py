"""Data sets as plain arrays in a fixed order; the only importer of tensorflow-datasets.

CIFAR-10 is read through TFDS's `data_source`, which needs no TensorFlow. Where it is not prepared yet, the original
archive is downloaded, checked against its sha256 and written in TFDS's own layout, also without TensorFlow.
"""

import colorsys
import contextlib
import hashlib
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxcam._errors import unknown
from jaxcam.models import CIFAR10_LABELS as CIFAR10_LABELS
from jaxcam.models._download import fetch

CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
CIFAR10_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
CIFAR10_FILES = {
    "train": [f"cifar-10-batches-bin/data_batch_{index}.bin" for index in range(1, 6)],
    "test": ["cifar-10-batches-bin/test_batch.bin"],
}


class Split(NamedTuple):
    """One split of a data set: `images uint8[n, h, w, 3]` and `labels int32[n]`, in the data set's original order."""

    images: np.ndarray
    labels: np.ndarray


def cifar10(split: str, *, data_dir: str | Path | None = None) -> Split:
    """CIFAR-10, `split="train"` (50,000 images of 32x32) or `"test"` (10,000).

    `data_dir` is a TFDS data directory (default `$TFDS_DATA_DIR`, else `~/tensorflow_datasets`). If the data set is not
    there, it is downloaded (170 MB) and prepared there, once.

    Raises:
      ValueError: an unknown split, or an archive whose bytes are not the published ones.
      OSError: not prepared, and the download failed; the message says how to prepare it.

    Reference: Krizhevsky 2009, Learning multiple layers of features from tiny images.

    Example:
      >>> images, labels = cifar10("test")  # doctest: +SKIP
    """
    if split not in CIFAR10_FILES:
        raise unknown("split of CIFAR-10", split, CIFAR10_FILES)
    default = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    data_dir = Path(default if data_dir is None else data_dir).expanduser()
    with _quiet_absl():
        import tensorflow_datasets as tfds

        if not list(data_dir.glob("cifar10/3.0.2/*.array_record*")):
            prepare_cifar10(data_dir)
        source: Any = tfds.data_source("cifar10", split=split, data_dir=str(data_dir), download=False)
        rows = sorted(source.__getitems__(range(len(source))), key=lambda row: row["id"])
    images = np.stack([row["image"] for row in rows])
    return Split(images, np.array([row["label"] for row in rows], np.int32))


def encoded(name: str, split: str, *, data_dir: str | Path | None = None):
    """A prepared TFDS data set whose images stay encoded: `source[row]["image"]` are the bytes of a file.

    Nothing is held in memory, and no TensorFlow is needed. The order is that of the files on disk.

    Returns:
      `source`, with `len(source)` and rows that are dicts, and what TFDS knows of it (`builder.info`).

    Raises:
      ValueError: it is not prepared in `data_dir`, has no such split, or has no images.

    Example:
      >>> source, info = encoded("cifar10", "test[:100]")  # doctest: +SKIP
    """
    default = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    data_dir = Path(default if data_dir is None else data_dir).expanduser()
    with _quiet_absl():
        import tensorflow_datasets as tfds

        if name == "cifar10" and not list(data_dir.glob("cifar10/3.0.2/*.array_record*")):
            prepare_cifar10(data_dir)
        try:
            builder: Any = tfds.builder(name, data_dir=str(data_dir))
        except Exception as error:  # an unknown name ends in one of many
            raise ValueError(f"There is no TFDS data set {name!r} ({str(error).splitlines()[0]}).") from error
        if not Path(builder.data_dir).is_dir():
            raise ValueError(
                f"{name} is not prepared in {data_dir}. Prepare it with `tfds.load({name!r}, data_dir=...)`, in the "
                "format array_record, and pass that folder as data_dir."
            )
        known = list(builder.info.splits)
        if split.partition("[")[0] not in known:
            raise unknown(f"split of {name}", split, known)
        if "image" not in builder.info.features:
            raise ValueError(f"{name} has no images: its rows hold {', '.join(builder.info.features)}.")
        skip = {"image": tfds.decode.SkipDecoding()}
        return builder.as_data_source(split=split, decoders=skip), builder.info


def with_square(
    split: Split,
    label: int | None = None,
    size: int = 4,
    color: tuple[int, int, int] = (255, 255, 0),
    share: float | int = 1,
) -> Split:
    """The biased copy of a split: a square of `color` in the top left corner of every image of class `label`.

    Args:
      split: images and labels; they stay as they are.
      label: the class that gets the square; `None` for all images.
      size: side of the square, in pixels.
      color: RGB, 0 to 255; bright yellow by default.
      share: of those images that get it, the first ones.

    Raises:
      ValueError: a square that is empty or larger than the images, or a share that is not between 0 and 1.

    Example:
      >>> split = Split(np.zeros((2, 8, 8, 3), np.uint8), np.array([0, 1]))
      >>> with_square(split, 1, size=2).images[:, 0, :3, 0].tolist()
      [[0, 0, 0], [255, 255, 0]]
    """
    side = min(split.images.shape[1:3])
    if not 1 <= size <= side:
        raise ValueError(f"size is {size}; the square must have 1 to {side} pixels on images of this size.")
    if not 0 <= share <= 1:
        raise ValueError(f"share is {share}; it must be between 0 and 1.")
    chosen = np.arange(len(split.labels)) if label is None else np.flatnonzero(split.labels == label)
    chosen = chosen[: round(share * len(chosen))]
    images = split.images.copy()
    images[chosen, :size, :size] = color
    return Split(images, split.labels)


SHAPES_LABELS = ("circle", "ring", "square", "triangle", "cross", "star")


class Shapes(NamedTuple):
    """Generated images in which the right answer is known.

    `images uint8[n, s, s, 3]`; `labels int32[n]`, one of the classes that are there; `masks bool[n, k, s, s]`, the
    pixels of each class's object, empty where the class is absent (so `masks.any((2, 3))` says which are there).
    """

    images: np.ndarray
    labels: np.ndarray
    masks: np.ndarray


def shapes(num_images: int, *, size: int = 64, seed: int = 0) -> Shapes:
    """Two or three objects of different shape per image, in random colours on a background of natural statistics.

    The class is the shape alone (`SHAPES_LABELS`): colour, place, size and rotation say nothing. The background is
    noise whose amplitude falls as `1 / frequency`, as in photographs. Objects do not overlap.

    Raises:
      ValueError: fewer than one image, or a size below 32 pixels, in which shapes cannot be told apart.

    Example:
      >>> images, labels, masks = shapes(4)
      >>> images.shape, masks.shape
      ((4, 64, 64, 3), (4, 6, 64, 64))
    """
    if num_images < 1 or size < 32:
        raise ValueError(f"num_images is {num_images} and size is {size}; they must be at least 1 and 32.")
    rng = np.random.default_rng(seed)
    classes = len(SHAPES_LABELS)
    images = _natural_noise(rng, num_images, size)
    masks = np.zeros((num_images, classes, size, size), bool)
    kinds = rng.permuted(np.tile(np.arange(classes), (num_images, 1)), axis=1)[:, :3]
    corners = rng.permuted(np.tile(np.arange(4), (num_images, 1)), axis=1)[:, :3]
    counts = rng.integers(2, 4, num_images)
    rows, columns = np.mgrid[:size, :size] + 0.5
    for index in range(num_images):
        for kind, corner in zip(kinds[index, : counts[index]], corners[index], strict=False):
            radius = size * rng.uniform(0.14, 0.2)
            room = size / 2 - radius  # the centre moves within its quarter of the image, so nothing overlaps
            row, column = size / 2 * np.array(divmod(corner, 2)) + rng.uniform(radius, np.maximum(room, radius), 2)
            angle = rng.uniform(0, 2 * np.pi)
            turned = (np.cos(angle) * (columns - column) + np.sin(angle) * (rows - row)) / radius
            across = (np.cos(angle) * (rows - row) - np.sin(angle) * (columns - column)) / radius
            distance = _shape_distance(SHAPES_LABELS[kind], turned, across) * radius
            opacity = np.clip(0.5 - distance, 0, 1)[..., None]  # one pixel of antialiasing
            colour = np.array(colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(0.6, 1), rng.uniform(0.6, 1)))
            images[index] = (1 - opacity) * images[index] + opacity * colour
            masks[index, kind] = distance < 0
    labels = kinds[np.arange(num_images), rng.integers(0, counts)]
    return Shapes(np.round(255 * images).astype(np.uint8), labels.astype(np.int32), masks)


def _natural_noise(rng, num_images: int, size: int) -> np.ndarray:
    """Coloured noise with an amplitude of 1 / frequency, `float[n, s, s, 3]` in [0, 1]."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size))
    frequency[0, 0] = np.inf
    white = np.fft.rfft2(rng.normal(size=(num_images, 3, size, size)))
    noise = np.fft.irfft2(white / frequency, s=(size, size)).transpose(0, 2, 3, 1)
    grey = noise.mean(-1, keepdims=True)
    noise = grey + 0.4 * (noise - grey)  # photographs are less colourful than independent channels
    spread = noise.std((1, 2, 3), keepdims=True)
    return np.clip(rng.uniform(0.35, 0.65, (num_images, 1, 1, 3)) + 0.13 * noise / spread, 0, 1)


def _shape_distance(name: str, x, y):
    """How far outside the shape of radius one each point lies; negative inside. Exact enough near the edge."""
    radius, angle = np.hypot(x, y), np.arctan2(y, x)

    def polygon(corners, depth):
        """A regular polygon or star: the edge's radius swings between one and `depth`."""
        part = np.abs((angle * corners / (2 * np.pi)) % 1 - 0.5) * 2  # 1 at a corner, 0 between two
        swing = part * np.pi / corners
        tip, dent = np.array([1.0, 0.0]), depth * np.array([np.cos(np.pi / corners), np.sin(np.pi / corners)])
        px, py = radius * np.cos(np.pi / corners - swing), radius * np.sin(np.pi / corners - swing)
        edge = dent - tip
        normal = np.array([edge[1], -edge[0]]) / np.hypot(*edge)
        return (px - tip[0]) * normal[0] + (py - tip[1]) * normal[1]

    return {
        "circle": lambda: radius - 0.9,
        "ring": lambda: np.abs(radius - 0.72) - 0.24,
        "square": lambda: np.maximum(np.abs(x), np.abs(y)) - 0.75,
        "triangle": lambda: polygon(3, np.cos(np.pi / 3)),
        "cross": lambda: np.minimum(
            np.maximum(np.abs(x) - 0.95, np.abs(y) - 0.3), np.maximum(np.abs(y) - 0.95, np.abs(x) - 0.3)
        ),
        "star": lambda: polygon(5, 0.42),
    }[name]()


def prepare_cifar10(data_dir: str | Path, *, url: str | None = None, sha256: str = CIFAR10_SHA256) -> None:
    """Downloads CIFAR-10's binary archive and writes it as the TFDS data set `cifar10/3.0.2` in `data_dir`."""
    from tensorflow_datasets.core import registered
    from tensorflow_datasets.image_classification import cifar

    data_dir, url = Path(data_dir), url or CIFAR10_URL
    archive = data_dir / "downloads" / Path(url).name
    try:
        archive.parent.mkdir(parents=True, exist_ok=True)
        if not archive.exists():
            fetch(url, archive)
    except (OSError, TimeoutError) as error:
        raise OSError(
            f"CIFAR-10 is not prepared in {data_dir} and {url} could not be downloaded ({error}). Prepare it where "
            "there is network, with `tfds.load('cifar10', data_dir=...)` or with this function, and pass that folder "
            f"as data_dir; or put the archive at {archive} and try again."
        ) from error
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != sha256:
        raise ValueError(
            f"{archive} is not the published CIFAR-10 archive: its sha256 is {found}, not {sha256}. "
            "Delete it and try again."
        )
    with registered.skip_registration():

        class Cifar10(cifar.Cifar10):
            """TFDS's own builder, with examples that carry PIL images: those are encoded without TensorFlow."""

            pkg_dir_path = None

            def _split_generators(self, dl_manager):
                features: Any = self.info.features
                features["label"].names = CIFAR10_LABELS
                return {split: _read_archive(archive, split) for split in CIFAR10_FILES}

        builder = Cifar10(data_dir=str(data_dir), file_format="array_record")
        builder.download_and_prepare()


def _read_archive(archive: Path, split: str) -> Iterator[tuple[int, dict]]:
    import PIL.Image

    index = 0
    with tarfile.open(archive) as tar:
        for name in CIFAR10_FILES[split]:
            file: Any = tar.extractfile(name)
            records = np.frombuffer(file.read(), np.uint8).reshape(-1, 1 + 3 * 32 * 32)
            for record in records:
                image = PIL.Image.fromarray(record[1:].reshape(3, 32, 32).transpose(1, 2, 0).copy())
                yield index, {"id": f"{split}_{index:05d}", "image": image, "label": int(record[0])}
                index += 1


@contextlib.contextmanager
def _quiet_absl():
    """TFDS advises installing OpenCV on every read; that is not this user's concern."""
    from absl import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)
