"""Computes XRAI, blur and guided integrated gradients with PAIR's `saliency`, and writes `xrai.npz`.

    python -m pip install saliency==0.2.1 scikit-image
    python tests/golden/make_xrai.py               # half a minute

The models are such that their gradients are written down at once: `weights . image`, whose integrated gradients no
quadrature changes, the hyperbolic tangent of it, and that plus half a square, of which the path matters. `test_xrai.py`
reads the file without `saliency`.
"""

from importlib.metadata import version
from pathlib import Path

import numpy as np
import scipy.ndimage
from saliency.core import INPUT_OUTPUT_GRADIENTS, BlurIG, XRAIParameters, blur_ig, guided_ig, xrai

SHAPE, SMALL = (224, 240), (14, 12)
MAX_SIGMA, NUM_STEPS = 3.0, 300  # the authors' code takes differences over 0.01: so many steps that none is left out

GUIDED, GUIDED_STEPS = [(0.25, 0.02), (0.25, 0.2), (0.6, 0.2)], 1000  # shares that move, how far, and steps


def picture(random) -> np.ndarray:
    """Discs of all colours and sizes on a slope of colour, in [0, 1]."""
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    image = np.stack([y / SHAPE[0], x / SHAPE[1], 1 - y / SHAPE[0]], -1) / 2
    for _ in range(40):
        centre, radius = random.uniform(0, SHAPE), random.uniform(8, 35)
        disc = np.hypot(y - centre[0], x - centre[1]) < radius
        image[disc] = random.uniform(0, 1, 3)
    return np.round(255 * image).astype(np.uint8)


def full(coarse) -> np.ndarray:
    """The weights of the linear model: patches, and something on them that makes no two segments equally dense."""
    return np.kron(coarse, np.ones((16, 16, 1))) + np.sin(np.arange(np.prod(SHAPE) * 3)).reshape(*SHAPE, 3)


def linear(weights):
    def call(images, call_model_args=None, expected_keys=None):
        return {INPUT_OUTPUT_GRADIENTS: np.broadcast_to(weights, images.shape)}

    return call


def bent(weights):
    def call(images, call_model_args=None, expected_keys=None):
        slopes = 1 - np.tanh((weights * images).sum((1, 2, 3))) ** 2
        return {INPUT_OUTPUT_GRADIENTS: slopes[:, None, None, None] * weights}

    return call


def inside(image, sigma):
    """The blur that averages what is inside of the image, in the place of that with zeros around."""
    if sigma == 0:
        return image
    both = (scipy.ndimage.gaussian_filter(each, (sigma, sigma, 0), mode="constant") for each in (image, image * 0 + 1))
    return np.divide(*both)


def regions(image, weights, masks, *, min_pixels=50, total=False) -> np.ndarray:
    parameters = XRAIParameters()
    parameters.experimental_params["min_pixel_diff"] = min_pixels
    options = {"segments": list(masks), "extra_parameters": parameters}
    if total:
        middle = (image.min() + image.max()) / 2
        sums = (weights * (image - middle)).sum(-1, keepdims=True)
        options["base_attribution"] = np.repeat(sums, 3, -1)  # whose largest channel is the sum
    return xrai.XRAI().GetMask(image, linear(weights), batch_size=20, **options).astype(np.float32)


def blurred(image, weights, blur) -> np.ndarray:
    blur_ig.gaussian_blur = blur
    return BlurIG().GetMask(image, bent(weights), max_sigma=MAX_SIGMA, steps=NUM_STEPS)


def guided(image, weights, others) -> dict[str, np.ndarray]:
    """By path: the gradient of `tanh(weights . image) + (others . image)^2 / 2`, step by step from zero."""

    def gradient(point):
        return (1 - np.tanh((weights * point).sum()) ** 2) * weights + (others * point).sum() * others

    quantile = np.quantile  # whose `interpolation` is `method` since NumPy 2.4
    np.quantile = lambda values, share, interpolation: quantile(values, share, method=interpolation)
    found = {
        f"guided_{fraction}_{distance}": guided_ig.guided_ig_impl(
            image, np.zeros_like(image), gradient, GUIDED_STEPS, fraction, distance
        ).astype(np.float32)
        for fraction, distance in GUIDED
    }
    np.quantile = quantile
    return found


def main():
    random = np.random.Generator(np.random.PCG64(7))
    pixels = picture(random)
    image = (pixels / np.float32(127.5) - 1).astype(np.float32)
    coarse = random.normal(size=(14, 15, 3)).astype(np.float32)
    weights = full(coarse)
    masks = np.stack(xrai._get_segments_felzenszwalb(image))
    small, thin = (random.normal(size=(*SMALL, 3)) for _ in range(2))
    thin /= 20
    zeros = blur_ig.gaussian_blur
    arrays = {
        "pixels": pixels,
        "weights": coarse,
        "masks": np.packbits(masks, axis=0),
        "count": len(masks),
        "default": regions(image, weights, masks),
        "few": regions(image, weights, masks[::5], min_pixels=900),
        "sum": regions(image, weights, masks, total=True),
        "small": small.astype(np.float32),
        "thin": thin.astype(np.float32),
        "blur_zeros": blurred(small, thin, zeros).astype(np.float32),
        "blur_inside": blurred(small, thin, inside).astype(np.float32),
        "others": (others := random.normal(size=(*SMALL, 3)) / 20).astype(np.float32),
        **guided(small, thin, others),
        "versions": np.array([f"{name} {version(name)}" for name in ("saliency", "scikit-image", "scipy")]),
    }
    np.savez_compressed(Path(__file__).parent / "xrai.npz", **arrays)


if __name__ == "__main__":
    main()
