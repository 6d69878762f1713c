"""Ways to cut an image into segments, which the perturbation methods then remove one or several at a time.

A segmentation is an array of labels, `int32[*space]` for all images or `int32[n, *space]` with one for each, counting
from zero. It is made on the host, before `jit`, because the number of segments shapes the compiled program. Segments
that overlap are masks, `bool[n, s, *space]`, which `jaxcam.xrai` takes. Labels and masks from elsewhere serve as well,
such as those of a segmentation model.
"""

import importlib
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxcam._checks import check_images, number, positive, sizes
from jaxcam._typing import Images

RESIZED = (224, 224)  # what the numbers of Felzenszwalb's method are for


def grid(shape: tuple[int, ...], window: int | tuple[int, ...]) -> np.ndarray:
    """A grid of equal patches, numbered row by row.

    `label[y, x] = (y // rows) * ceil(w / columns) + x // columns`, and so on for other numbers of axes; patches at the
    last edge of an axis may be smaller.

    Args:
      shape: the image's side along each axis of space, in pixels, such as `(h, w)`.
      window: side of a patch in pixels, or one for each axis of space.

    Returns:
      Labels `int32[*shape]`.

    Raises:
      ValueError: a size that is not a whole number above zero, or sizes for another number of axes.

    Example:
      >>> jaxcam.segments.grid((4, 6), 3).tolist()
      [[0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 1], [2, 2, 2, 3, 3, 3]]
    """
    shape = sizes("shape", tuple(shape), tuple(shape))
    window = sizes("window", window, shape)
    counts = [-(-side // step) for side, step in zip(shape, window, strict=True)]
    cells = np.meshgrid(*(np.arange(side) // step for side, step in zip(shape, window, strict=True)), indexing="ij")
    return np.ravel_multi_index(cells, counts).astype(np.int32)


def superpixels(images: Images, num_segments: int = 64, *, compactness: float = 10.0) -> np.ndarray:
    """Superpixels: patches of similar colour that follow the edges of each image, by SLIC of scikit-image.

    In volumes they are supervoxels. Each image is scaled to [0, 1] first, so that normalised images serve as they are.
    Needs scikit-image: `pip install 'jaxcam-xai[superpixels]'`. Runs on the host, so call it outside `jit`.

    Args:
      images: `float[n, h, w, c]` or `float[n, d, h, w, c]`.
      num_segments: how many segments to aim at; SLIC makes about as many, and not the same number for every image.
      compactness: higher values give squarer segments, lower ones follow colour more closely.

    Returns:
      Labels `int32[n, *space]`, counting from zero without gaps in each image.

    Raises:
      ImportError: scikit-image is not installed.
      ValueError: images of a wrong shape or type, or signals; `num_segments` below one or `compactness` not above
        zero.

    Reference: Achanta et al. 2012, SLIC Superpixels, https://doi.org/10.1109/TPAMI.2012.120

    Example:
      >>> segments = jaxcam.segments.superpixels(images, 30)
      >>> attributions = jaxcam.lime(model, images, segments=segments)
    """
    positive(num_segments=num_segments)
    number(above=0, compactness=compactness)
    images = _on_host(images)
    if images.ndim < 4:
        raise ValueError(
            f"images has shape {images.shape}; superpixels cut images of two or three axes of space. Cut a signal into "
            "equal parts: jaxcam.segments.grid((length,), 8)."
        )
    slic = _scikit_image("segmentation").slic

    def one_image(image):
        labels = slic(_scaled(image), num_segments, compactness, start_label=0, channel_axis=-1)
        return np.unique(labels, return_inverse=True)[1].reshape(labels.shape)

    return np.stack([one_image(image) for image in images]).astype(np.int32)


def felzenszwalb(
    images: Images,
    *,
    scales: Sequence[float | int] = (50, 100, 150, 250, 500, 1200),
    sigma: float | int = 0.8,
    min_size: int = 150,
    dilation: int | None = None,
) -> np.ndarray:
    """Overlapping segments from fine to coarse that follow the edges of each image: those that XRAI takes by default.

    `segments = dilate(felzenszwalb(resize(image, 224 x 224), scale))` for each scale, by scikit-image, with the
    numbers of the code of XRAI's authors. Each image is scaled to [-1, 1] first, so that normalised images serve as
    they are. Needs scikit-image: `pip install 'jaxcam-xai[superpixels]'`. Runs on the host, so call it outside `jit`.

    Args:
      images: `float[n, h, w, c]`.
      scales: how readily neighbours are joined; a higher one gives fewer, larger segments.
      sigma: deviation of the Gaussian that smooths an image first, in pixels of 224 x 224.
      min_size: the least segment, in pixels of 224 x 224; smaller ones join a neighbour.
      dilation: radius in pixels by which each segment grows, so that it holds its edges; `None` is 5, and in
        proportion less for images whose shorter side is below 224.

    Returns:
      Masks `bool[n, s, h, w]`, those of the first scale first; images with fewer segments have empty masks in the end.

    Raises:
      ImportError: scikit-image is not installed.
      ValueError: images of a wrong shape or type; no scales, or one not above zero; a negative `sigma` or `dilation`;
        `min_size` below one.

    Reference: Felzenszwalb and Huttenlocher 2004, Efficient Graph-Based Image Segmentation,
    https://doi.org/10.1023/B:VISI.0000022288.19776.77

    Example:
      >>> segments = jaxcam.segments.felzenszwalb(images)
      >>> attributions = jax.jit(jaxcam.xrai)(model, images, segments=segments)
    """
    positive(min_size=min_size)
    if not len(scales) or min(scales) <= 0:
        raise ValueError(f"scales is {scales}; it must hold one number above zero or more.")
    if sigma < 0 or (dilation or 0) < 0:
        raise ValueError(f"sigma is {sigma} and dilation is {dilation}; neither may be negative.")
    images = _on_host(images)
    if images.ndim != 4:
        raise ValueError(
            f"images has shape {images.shape}; Felzenszwalb's method cuts images, [n, h, w, c]. Cut signals and "
            "volumes into equal parts, jaxcam.segments.grid(shape, window), or volumes by jaxcam.segments.superpixels."
        )
    segment, resize = _scikit_image("segmentation").felzenszwalb, _scikit_image("transform").resize
    shape = images.shape[1:3]
    if dilation is None:
        dilation = round(5 * min(1, min(shape) / RESIZED[0]))

    def one_image(image):
        resized = resize(2 * _scaled(image) - 1, RESIZED, order=3, mode="constant", anti_aliasing=True)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Got image with third dimension")  # all that are no colours
            found = [segment(resized, scale, sigma, min_size) for scale in scales]
        labels = (resize(each, shape, order=0, preserve_range=True, anti_aliasing=False) for each in found)
        return np.concatenate([_masks(each.astype(np.int32), dilation) for each in labels])

    masks = [one_image(image) for image in images]
    most = max(map(len, masks))
    return np.stack([np.pad(each, ((0, most - len(each)), (0, 0), (0, 0))) for each in masks])


def _masks(labels, dilation: int) -> np.ndarray:
    """A mask for each label that occurs, grown by `dilation` pixels, `bool[s, h, w]`."""
    from scipy.ndimage import distance_transform_edt, find_objects

    boxes = [(label, box) for label, box in enumerate(find_objects(labels + 1)) if box is not None]
    masks = np.zeros((len(boxes), *labels.shape), bool)
    for mask, (label, box) in zip(masks, boxes, strict=True):
        box = tuple(slice(max(0, side.start - dilation), side.stop + dilation) for side in box)
        distance: Any = distance_transform_edt(labels[box] != label)
        mask[box] = distance <= dilation
    return masks


def _on_host(images) -> np.ndarray:
    return np.asarray(jax.device_get(check_images(images)), np.float32)


def _scaled(image) -> np.ndarray:
    """An image with values from 0 to 1."""
    span = np.ptp(image)
    return (image - image.min()) / (span if span > 0 else 1)


def _scikit_image(module: str):
    try:
        return importlib.import_module(f"skimage.{module}")
    except ImportError:
        raise ImportError(
            "Superpixels and Felzenszwalb's segments need scikit-image, which is not installed: "
            "pip install 'jaxcam-xai[superpixels]'. `jaxcam.segments.grid` needs nothing."
        ) from None
