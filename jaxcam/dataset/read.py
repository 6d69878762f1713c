"""From the rows of a source to batches that are ready for the model, decoded and prepared ahead by Grain.

A batch is a pure function of its number, so that threads and processes may make any of them, in order. An image that
cannot be read is a row with its error.
"""

import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from jaxcam._errors import shown
from jaxcam.dataset.sources import Item
from jaxcam.image import decode_image, open_image


class Batch(NamedTuple):
    """What is computed at once; `images` has as many rows as the program takes, and zeros where an image is missing."""

    index: int
    start: int
    names: list[str]
    hashes: list[str | None]  # sha256 of the upright RGB pixels
    labels: list[int | None]
    errors: list[str | None]
    images: np.ndarray  # float32[size, h, w, c]


@dataclass(frozen=True)
class Loader:
    """Batch `index` of a source, ready for the model: a pure function, so that any process may call it."""

    source: Any
    preprocess: Callable
    size: int  # images
    padded: int  # rows of the array
    classes: tuple[int | None, ...] | None  # the model's class for each of the source's

    def __call__(self, index: int) -> Batch:
        start = index * self.size
        items = rows_of(self.source, range(start, min(start + self.size, len(self.source))))
        found = [image_of(item) for item in items]
        arrays = prepared([image for image, *_ in found], self.preprocess)
        errors = [error or said for (_, _, error), (_, said) in zip(found, arrays, strict=True)]
        shape = next((each.shape for each, _ in arrays if each is not None), None) or shape_of(self.preprocess)
        images = np.zeros((self.padded, *shape), np.float32)
        for row, (pixels, _) in enumerate(arrays):
            if pixels is not None:
                images[row] = pixels
        labels = [_mapped(item.label, self.classes) for item in items]
        names = [item.name.encode("utf-8", "replace").decode() for item in items]
        return Batch(index, start, names, [digest for _, digest, _ in found], labels, errors, images)


def rows_of(source, rows: Sequence[int]) -> list[Item]:
    """The rows of a source; where they cannot be read together, those that can be read alone."""
    try:
        return source.read(rows)
    except Exception as error:
        if len(rows) == 1:
            return [Item(f"row {rows[0]}", error, None)]
        return [item for row in rows for item in rows_of(source, [row])]


def image_of(item: Item) -> tuple[Any, str | None, str | None]:
    """The upright RGB image of a row, the sha256 of its pixels, and what was wrong with it."""
    try:
        image = opened(item)
        return image, hashlib.sha256(np.asarray(image).tobytes()).hexdigest(), None
    except Exception as error:  # whatever a broken image makes a decoder raise
        return None, None, _said(error)


def prepared(images: Sequence, preprocess: Callable) -> list[tuple[np.ndarray | None, str | None]]:
    """Images as the model takes them, `[h, w, c]`, each with what was wrong with it; `None` for those that are none."""
    good = [each for each in images if each is not None]
    on_host = getattr(preprocess, "on_host", preprocess)  # workers have no device
    try:
        arrays = [(each, None) for each in np.asarray(on_host(good), np.float32)] if good else []
    except Exception as error:
        alone = len(good) == 1  # else, which of them is it?
        arrays = [(None, _said(error))] if alone else [prepared([each], preprocess)[0] for each in good]
    given = iter(arrays)
    return [(None, None) if each is None else next(given) for each in images]


def pixels_of(array):
    """The RGB image of pixels, uint8 `[h, w, 3]` or grey, and what was wrong with them."""
    from PIL import Image

    try:
        return Image.fromarray(np.asarray(array, np.uint8)).convert("RGB"), None
    except Exception as error:
        return None, _said(error)


def _said(error: Exception) -> str:
    return shown(" ".join(str(error).split())) or type(error).__name__


def opened(item: Item):
    """The upright RGB image of a row."""
    if isinstance(item.content, Exception):
        raise item.content
    if isinstance(item.content, bytes):
        return decode_image(item.content)
    return open_image(item.content)


@functools.lru_cache(maxsize=8)
def shape_of(preprocess: Callable) -> tuple[int, ...]:
    """What the model's images look like."""
    from PIL import Image

    [(pixels, error)] = prepared([Image.new("RGB", (64, 64))], preprocess)
    shape = getattr(pixels, "shape", ())
    if len(shape) != 3:
        raise ValueError(f"preprocess does not turn [image] into an array [1, h, w, c]: {error or shape}")
    return shape


def _mapped(label, classes: tuple[int | None, ...] | None) -> int | None:
    if label is None or int(label) < 0:
        return None
    return int(label) if classes is None else classes[int(label)]


def batches(loader: Loader, indices: Sequence[int], *, threads: int = 2, workers: int = 0) -> Iterator[Batch]:
    """The batches of these numbers, in this order, read ahead by Grain."""
    try:
        import grain
    except ImportError:
        raise ValueError("Reading a data set needs grain: pip install 'jaxcam-xai[dataset]'.") from None
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    data = grain.MapDataset.source(indices).map(loader).to_iter_dataset(options)
    if workers:
        from absl import flags

        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain's processes look at them, and only absl.app.run parses them
        data = data.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2))
    yield from data
