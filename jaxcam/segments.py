"""Ways to cut an image into segments, which the perturbation methods then remove one or several at a time.

A segmentation is an array of labels, `int32[*space]` for all images or `int32[n, *space]` with one for each, counting
from zero. It is made on the host, before `jit`, because the number of segments shapes the compiled program; labels from
elsewhere serve as well, such as the masks of a segmentation model.
"""

import numpy as np

from jaxcam._checks import check_images, positive, sizes
from jaxcam._typing import Images


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
    if not compactness > 0:
        raise ValueError(f"compactness is {compactness}; it must be above 0.")
    images = np.asarray(check_images(images), np.float32)
    if images.ndim < 4:
        raise ValueError(
            f"images has shape {images.shape}; superpixels cut images of two or three axes of space. Cut a signal into "
            "equal parts: jaxcam.segments.grid((length,), 8)."
        )
    try:
        from skimage.segmentation import slic
    except ImportError:
        raise ImportError(
            "Superpixels need scikit-image, which is not installed: pip install 'jaxcam-xai[superpixels]'. "
            "`jaxcam.segments.grid` needs nothing."
        ) from None

    def one_image(image):
        span = np.ptp(image)
        scaled = (image - image.min()) / (span if span > 0 else 1)
        labels = slic(scaled, num_segments, compactness, start_label=0, channel_axis=-1)
        return np.unique(labels, return_inverse=True)[1].reshape(labels.shape)

    return np.stack([one_image(image) for image in images]).astype(np.int32)
