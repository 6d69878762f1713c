"""CAM methods without gradients: what the score is when only one channel is shown, or when one is taken away.

Score-CAM and its kin show the image through a channel, upsampled and scaled to a mask; each is one formula for the
mask, and the channels are weighted by a softmax over their scores. Ablation-CAM takes a channel away at the layer.
Masks and ablated activations are made inside chunks, and what lies below the layer is computed once for each image.
"""

import warnings

import jax
import jax.numpy as jnp

from jaxcam._array import normalize, resize
from jaxcam._engine import chunked_map
from jaxcam._scores import predicted, scores, scores_of_copies
from jaxcam._typing import Images, Key, Maps, Raw, Score, Targets
from jaxcam.attribution._cam import cells, finish, scores_with
from jaxcam.attribution._method import as_method
from jaxcam.score import logit
from jaxcam.taps import Tap

MANY = 5_000  # forward passes for one image: more are rarely meant


@as_method
def score_cam(
    model: Tap,
    images: Images,
    targets: Targets = None,
    *,
    score: Score = logit,
    raw: Raw = False,
    chunk_size: int | None = None,
    max_channels: int | None = None,
) -> Maps:
    """Score-CAM: channels weighted by the score of the image seen through them; no gradient.

    `w = softmax_k score(image * scale(upsample(A_k)))`; `map = sum_k w_k A_k`, where `scale` brings a mask to [0, 1].

    Masks are upsampled with aligned corners and no baseline score is subtracted, as in pytorch-grad-cam.

    Args:
      model: a tap on one or several spatial layers.
      images: `float[n, *space, c]`, normalised as the model expects.
      targets: `int[n]`, one class for all, `int[n, t]` for `t` maps an image, or `None` for the predicted class.
      score: the explained scalar, `(output, targets[n]) -> [n]`.
      raw: return the weighted sum itself, signed and at the layer's resolution (a tuple for several layers); with
        `"channels"` its terms, `[n, *cells, k]`.
      chunk_size: masked images in one forward pass; masks are made inside the pass and never held all at once. By
        default what suits the device.
      max_channels: use only so many channels of each image, those whose mean activation is largest; `None` uses all.

    Returns:
      Heatmaps `float32[n, *space]` in [0, 1]; zeros where nothing speaks for the class.

    Raises:
      ValueError: images or targets of a wrong shape, type or range; an unknown or non-spatial layer.
      TypeError: `model` is not a tap.

    When: models whose gradients are not to be had or not to be trusted. Not when there are many channels and little
    time; nor where the masked images look like nothing the model knows.

    Reference: Wang et al. 2020, Score-CAM: Score-Weighted Visual Explanations, https://arxiv.org/abs/1910.01279

    Example:
      >>> heatmaps = jaxcam.score_cam(model, images, chunk_size=64)
    """
    return _masked("score_cam", _plain, model, images, targets, score, raw, chunk_size, max_channels)


def _plain(masks, channels, samples):
    return masks


@as_method
def ss_cam(
    model: Tap,
    images: Images,
    targets: Targets = None,
    *,
    score: Score = logit,
    raw: Raw = False,
    num_samples: int = 35,
    mask_noise: float | int = 2.0,
    key: Key = 0,
    chunk_size: int | None = None,
    max_channels: int | None = None,
) -> Maps:
    """SS-CAM: Score-CAM with the score averaged over noisy masks.

    `w = softmax_k mean_i score(image * (scale(upsample(A_k)) + noise_i))`; `map = sum_k w_k A_k`.

    Masks are made as by `score_cam`; torch-cam scales before it upsamples. It takes `num_samples` forward passes for
    each channel: `max_channels` makes it affordable.

    Args:
      model: a tap on one or several spatial layers.
      images: `float[n, *space, c]`, normalised as the model expects.
      targets: `int[n]`, one class for all, `int[n, t]` for `t` maps an image, or `None` for the predicted class.
      score: the explained scalar, `(output, targets[n]) -> [n]`.
      raw: return the weighted sum itself, signed and at the layer's resolution (a tuple for several layers); with
        `"channels"` its terms, `[n, *cells, k]`.
      num_samples: noisy masks for each channel.
      mask_noise: standard deviation of the noise on a mask, which lies in [0, 1] without it.
      key: of the noise, which is the same for every image: a key, or the seed of one.
      chunk_size: masked images in one forward pass; masks are made inside the pass and never held all at once. By
        default what suits the device.
      max_channels: use only so many channels of each image, those whose mean activation is largest; `None` uses all.

    Returns:
      Heatmaps `float32[n, *space]` in [0, 1]; zeros where nothing speaks for the class.

    Raises:
      ValueError: images or targets of a wrong shape, type or range; an unknown or non-spatial layer; a negative
        `mask_noise`.

    When: Score-CAM that should not depend on a single masked image. Not with default settings at the last stage of a
    large network: its passes are samples times channels.

    Reference: Wang et al. 2020, SS-CAM: Smoothed Score-CAM for Sharper Visual Feature Localization,
    https://arxiv.org/abs/2006.14255

    Example:
      >>> heatmaps = jaxcam.ss_cam(model, images, num_samples=4, max_channels=16)
    """

    def noisy(masks, channels, samples):
        def draw(channel, sample):
            of_mask = jax.random.fold_in(jax.random.fold_in(key, channel), sample)
            return jax.random.normal(of_mask, masks.shape[2:], jnp.float32)

        return masks + mask_noise * jax.vmap(jax.vmap(draw), (0, None))(channels, samples)

    return _masked("ss_cam", noisy, model, images, targets, score, raw, chunk_size, max_channels, num_samples)


@as_method
def is_cam(
    model: Tap,
    images: Images,
    targets: Targets = None,
    *,
    score: Score = logit,
    raw: Raw = False,
    num_samples: int = 10,
    chunk_size: int | None = None,
    max_channels: int | None = None,
) -> Maps:
    """IS-CAM: Score-CAM with the score averaged over masks that grow step by step.

    `w = softmax_k mean_i score(image * (1 + 2 + ... + i) / N * scale(upsample(A_k)))` for `i = 1 ... N = num_samples`;
    `map = sum_k w_k A_k`.

    The steps add up, as in the paper and in torch-cam, so that the last masks exceed one. Masks are made as by
    `score_cam`; torch-cam scales before it upsamples.

    Args:
      model: a tap on one or several spatial layers.
      images: `float[n, *space, c]`, normalised as the model expects.
      targets: `int[n]`, one class for all, `int[n, t]` for `t` maps an image, or `None` for the predicted class.
      score: the explained scalar, `(output, targets[n]) -> [n]`.
      raw: return the weighted sum itself, signed and at the layer's resolution (a tuple for several layers); with
        `"channels"` its terms, `[n, *cells, k]`.
      num_samples: steps for each channel.
      chunk_size: masked images in one forward pass; masks are made inside the pass and never held all at once. By
        default what suits the device.
      max_channels: use only so many channels of each image, those whose mean activation is largest; `None` uses all.

    Returns:
      Heatmaps `float32[n, *space]` in [0, 1]; zeros where nothing speaks for the class.

    Raises:
      ValueError: images or targets of a wrong shape, type or range; an unknown or non-spatial layer.
      TypeError: `model` is not a tap.

    When: as `ss_cam`, with masks that grow instead of noise. Not for many channels, for the same reason.

    Reference: Naidu et al. 2020, IS-CAM: Integrated Score-CAM for Axiomatic-based Explanations,
    https://arxiv.org/abs/2010.03023

    Example:
      >>> heatmaps = jaxcam.is_cam(model, images, num_samples=4, max_channels=16)
    """

    def growing(masks, channels, samples):
        step = jnp.expand_dims(samples.astype(jnp.float32) + 1, range(1, masks.ndim - 1))
        return masks * (step * (step + 1) / (2 * num_samples))

    return _masked("is_cam", growing, model, images, targets, score, raw, chunk_size, max_channels, num_samples)


def _masked(method, variant, model, images, targets, score, raw, chunk_size, max_channels, num_samples=1):
    """A method that is a formula of the masks, `variant(masks[n, m, *space], channels[1 or n, m], samples[m])`."""
    output, activations = model.run(images)
    targets = predicted(output) if targets is None else targets

    def coarse_map(A):
        used = _channels(A, max_channels)
        _say_cost(method, used.shape[1], num_samples)

        def masked_scores(indices):
            ranks, samples = jnp.divmod(indices, num_samples)
            channels = jnp.take(used, ranks, axis=1)
            masks = _of_channels(A, channels)
            masks = masks.reshape(*masks.shape[:2], *A.space)
            masks = normalize(resize(masks, images.shape[1:-1], align_corners=True), 2)
            masks = variant(masks, channels, samples)[..., None].astype(images.dtype)
            return scores_of_copies(model, images[:, None] * masks, targets, score)

        found = chunked_map(masked_scores, used.shape[1] * num_samples, images, chunk_size)
        means = found.reshape(images.shape[0], used.shape[1], num_samples).mean(-1)
        weights = jax.nn.softmax(means, axis=-1)
        return A.laid(jnp.moveaxis(_of_channels(A, used) * weights[..., None], 1, -1))

    return finish([coarse_map(A) for A in cells(model, activations, images)], images, raw)


def _say_cost(method: str, channels: int, num_samples: int) -> None:
    """Before it starts: while the program is traced."""
    if channels * num_samples > MANY:
        warnings.warn(
            f"{method} takes {channels * num_samples:,} forward passes for each image, {num_samples} for each of "
            f"{channels:,} channels; with fewer of both (num_samples=4, max_channels=64) it is done sooner.",
            stacklevel=2,
        )


def _channels(A, max_channels):
    """The channels used: all, `int[1, k]`, or those of each image with the largest mean, `int[n, max_channels]`."""
    k = A.values.shape[-1]
    if max_channels is None or max_channels >= k:
        return jnp.arange(k)[None]
    return jnp.argsort(-A.values.mean(1), axis=1)[:, :max_channels]


def _of_channels(A, channels):
    """The cells of each image's `channels [1 or n, m]`, `[n, m, p]`."""
    return jnp.take_along_axis(jnp.moveaxis(A.values, -1, 1), channels[:, :, None], axis=1)


@as_method
def ablation_cam(
    model: Tap,
    images: Images,
    targets: Targets = None,
    *,
    score: Score = logit,
    raw: Raw = False,
    chunk_size: int | None = None,
) -> Maps:
    """Ablation-CAM: channels weighted by the share of the score that is lost without them; no gradient.

    `w_k = (score - score_without_k) / |score|`; `map = sum_k w_k A_k`. A channel is taken away by setting it to zero.

    For positive scores these are the paper's weights and pytorch-grad-cam's. Dividing by a negative score, as both do,
    would favour the channels that speak against the class, hence the absolute value; a score of zero divides nothing.
    pytorch-grad-cam sets a channel of a layer with negative activations to -1e7, the paper and this method to zero.

    Args:
      model: a tap on one or several spatial layers.
      images: `float[n, *space, c]`, normalised as the model expects.
      targets: `int[n]`, one class for all, `int[n, t]` for `t` maps an image, or `None` for the predicted class.
      score: the explained scalar, `(output, targets[n]) -> [n]`.
      raw: return the weighted sum itself, signed and at the layer's resolution (a tuple for several layers); with
        `"channels"` its terms, `[n, *cells, k]`.
      chunk_size: ablated activations in one pass of what follows the layer, which alone is computed for each of them.
        By default what suits the device.

    Returns:
      Heatmaps `float32[n, *space]` in [0, 1]; zeros where nothing speaks for the class.

    Raises:
      ValueError: images or targets of a wrong shape, type or range; an unknown or non-spatial layer.
      TypeError: `model` is not a tap.

    When: Score-CAM's question at a fraction of its cost: only what lies above the layer runs again. Not for early
    layers of a deep network.

    Reference: Desai and Ramaswamy 2020, Ablation-CAM: Visual Explanations for Deep Convolutional Network via
    Gradient-free Localization, https://doi.org/10.1109/WACV45572.2020.9093360

    Example:
      >>> heatmaps = jaxcam.ablation_cam(model, images, chunk_size=64)
    """
    output, activations = model.run(images)
    targets = predicted(output) if targets is None else targets
    whole = scores(score, output, targets)[:, None]

    def coarse_map(layer, activation, A):
        def without(channels):
            taken = jnp.arange(activation.shape[-1]) == channels[:, None]
            taken = jnp.expand_dims(taken, range(1, activation.ndim - 1))  # [m, ..., k]
            values = jnp.where(taken, 0, activation[:, None])
            return scores_with(model, layer, images, values, targets, score)

        ablated = chunked_map(without, activation.shape[-1], activation, chunk_size)
        weights = (whole - ablated) / jnp.where(whole == 0, 1, jnp.abs(whole))
        return A.laid(A.values * weights[:, None])

    layers = zip(model.layers, activations, cells(model, activations, images), strict=True)
    return finish([coarse_map(*each) for each in layers], images, raw)
