"""CAM methods without gradients: what the score is when only one channel is shown, or when one is taken away.

Score-CAM and its kin show the image through a channel, upsampled and scaled to a mask; each is one formula for the
mask, and the channels are weighted by a softmax over their scores. Ablation-CAM takes a channel away at the layer.
Masks and ablated activations are made inside chunks, and what lies below the layer is computed once for a chunk.
"""

from functools import partial

import jax
import jax.numpy as jnp

from jaxcam._array import normalise, resize
from jaxcam._cam import checked, finish, spatial
from jaxcam._inputs import engine, positive, predicted
from jaxcam._loops import chunked_map
from jaxcam._typing import Images, Maps, Score, Targets
from jaxcam.score import logit
from jaxcam.tap import Tap


def score_cam(
    model: Tap,
    images: Images,
    targets: Targets = None,
    *,
    score: Score = logit,
    raw: bool = False,
    chunk_size: int | None = None,
    top_k: int | None = None,
) -> Maps:
    """Score-CAM: channels weighted by the score of the image seen through them; no gradient.

    `w = softmax_k score(image * scale(upsample(A_k)))`; `map = sum_k w_k A_k`, where `scale` brings a mask to [0, 1].

    Masks are upsampled with aligned corners and no baseline score is subtracted, as in pytorch-grad-cam.
    Arguments, result and errors are those of `grad_cam`, and:

    Args:
      chunk_size: masked images in one forward pass; masks are made inside the pass and never held all at once.
        By default what suits the device.
      top_k: use only so many channels of each image, those whose activations vary most over space; `None` uses all.

    Reference: Wang et al. 2020, Score-CAM: Score-Weighted Visual Explanations, https://arxiv.org/abs/1910.01279

    Example:
      >>> heatmaps = jaxcam.score_cam(model, images, chunk_size=64)
    """
    return _masked("score_cam", _plain_mask, model, images, targets, score, raw, chunk_size, top_k, 1)


def _plain_mask(mask, channel, sample):
    return mask


def ss_cam(
    model: Tap,
    images: Images,
    targets: Targets = None,
    *,
    score: Score = logit,
    raw: bool = False,
    num_samples: int = 35,
    noise: float | int = 2.0,
    key: jax.Array | None = None,
    chunk_size: int | None = None,
    top_k: int | None = None,
) -> Maps:
    """SS-CAM: Score-CAM with the score averaged over noisy masks.

    `w = softmax_k mean_i score(image * (scale(upsample(A_k)) + noise_i))`; `map = sum_k w_k A_k`.

    Masks are made as by `score_cam`; torch-cam scales before it upsamples. It takes `num_samples` forward passes for
    each channel: `top_k` makes it affordable. Arguments, result and errors are those of `score_cam`, and:

    Args:
      num_samples: noisy masks for each channel.
      noise: standard deviation of the noise on a mask, which lies in [0, 1] without it.
      key: of the noise, which is the same for every image; `None` means `jax.random.key(0)`.

    Reference: Wang et al. 2020, SS-CAM: Smoothed Score-CAM for Sharper Visual Feature Localization,
    https://arxiv.org/abs/2006.14255

    Example:
      >>> heatmaps = jaxcam.ss_cam(model, images, num_samples=4, top_k=16)
    """
    key = jax.random.key(0) if key is None else key
    call = (model, images, targets, score, raw, chunk_size, top_k, num_samples)
    return _masked("ss_cam", _noisy_mask, *call, jnp.asarray(noise, jnp.float32), key)


def _noisy_mask(mask, channel, sample, noise, key):
    key = jax.random.fold_in(jax.random.fold_in(key, channel), sample)
    return mask + noise * jax.random.normal(key, mask.shape)


def is_cam(
    model: Tap,
    images: Images,
    targets: Targets = None,
    *,
    score: Score = logit,
    raw: bool = False,
    num_samples: int = 10,
    chunk_size: int | None = None,
    top_k: int | None = None,
) -> Maps:
    """IS-CAM: Score-CAM with the score averaged over masks that grow step by step.

    `w = softmax_k mean_i score(image * (1 + 2 + ... + i) / N * scale(upsample(A_k)))` for `i = 1 ... N = num_samples`;
    `map = sum_k w_k A_k`.

    The steps add up, as in the paper and in torch-cam, so that the last masks exceed one. Masks are made as by
    `score_cam`; torch-cam scales before it upsamples. Arguments, result and errors are those of `score_cam`, and:

    Args:
      num_samples: steps for each channel.

    Reference: Naidu et al. 2020, IS-CAM: Integrated Score-CAM for Axiomatic-based Explanations,
    https://arxiv.org/abs/2010.03023

    Example:
      >>> heatmaps = jaxcam.is_cam(model, images, num_samples=4, top_k=16)
    """
    call = (model, images, targets, score, raw, chunk_size, top_k, num_samples)
    return _masked("is_cam", _growing_mask, *call, jnp.float32(num_samples))


def _growing_mask(mask, channel, sample, count):
    return mask * (sample + 1) * (sample + 2) / (2 * count)


def _masked(method, variant, model, images, targets, score, raw, chunk_size, top_k, num_samples, *options):
    positive(chunk_size=chunk_size, num_samples=num_samples, **({} if top_k is None else {"top_k": top_k}))
    images, targets = checked(method, model, images, targets)
    static = {"score": score, "raw": raw, "chunk_size": chunk_size, "top_k": top_k, "num_samples": num_samples}
    return _masked_engine(model, images, targets, options, variant=variant, **static)


@engine(static=("variant", "score", "raw", "chunk_size", "top_k", "num_samples"))
def _masked_engine(model, images, targets, options, *, variant, score, raw, chunk_size, top_k, num_samples):
    logits, activations = model.run(images)
    targets = predicted(logits) if targets is None else targets

    def coarse_map(A):
        chosen = _channels(A, top_k)

        def scores(image, rank, sample):
            channel = chosen[image, rank]
            masks = normalise(resize(A[image, :, :, channel], images.shape[1:3], align_corners=True))
            masks = jax.vmap(lambda *each: variant(*each, *options))(masks, channel, sample)
            return score(model(images[image] * masks[..., None].astype(images.dtype)), targets[image])

        means = chunked_map(scores, (*chosen.shape, num_samples), chunk_size).mean(-1)
        shown = jnp.take_along_axis(A, chosen[:, None, None, :], -1)
        weights = jax.nn.softmax(means.astype(jnp.float32), axis=-1)
        return jnp.einsum("nabk,nk->nab", shown, weights, precision=jax.lax.Precision.HIGHEST)

    return finish([coarse_map(A) for A in spatial(model, activations)], images, raw)


def _channels(A, top_k):
    """The channels that are used, `int[n, top_k]`: all, or those that vary most over space."""
    n, k = A.shape[0], A.shape[3]
    if top_k is None or top_k >= k:
        return jnp.broadcast_to(jnp.arange(k), (n, k))
    return jax.lax.top_k(jnp.var(A, (1, 2)), top_k)[1]


def ablation_cam(
    model: Tap,
    images: Images,
    targets: Targets = None,
    *,
    score: Score = logit,
    raw: bool = False,
    chunk_size: int = 32,
) -> Maps:
    """Ablation-CAM: channels weighted by the share of the score that is lost without them; no gradient.

    `w_k = (score - score_without_k) / |score|`; `map = sum_k w_k A_k`. A channel is taken away by setting it to zero.

    For positive scores these are the paper's weights and pytorch-grad-cam's. Dividing by a negative score, as both do,
    would favour the channels that speak against the class, hence the absolute value; a score of zero divides nothing.
    pytorch-grad-cam sets a channel of a layer with negative activations to -1e7, the paper and this method to zero.
    Arguments, result and errors are those of `grad_cam`, and:

    Args:
      chunk_size: ablated channels in one forward pass. Only what follows the layer is computed for each of them.

    Reference: Desai and Ramaswamy 2020, Ablation-CAM: Visual Explanations for Deep Convolutional Network via
    Gradient-free Localization, https://doi.org/10.1109/WACV45572.2020.9093360

    Example:
      >>> heatmaps = jaxcam.ablation_cam(model, images, chunk_size=64)
    """
    positive(chunk_size=chunk_size)
    images, targets = checked("ablation_cam", model, images, targets)
    return _ablation_engine(model, images, targets, score=score, raw=raw, chunk_size=chunk_size)


@engine(static=("score", "raw", "chunk_size"))
def _ablation_engine(model, images, targets, *, score, raw, chunk_size):
    logits, activations = model.run(images)
    targets = predicted(logits) if targets is None else targets
    whole = score(logits, targets).astype(jnp.float32)[:, None]
    maps = []
    for layer, activation, A in zip(model.layers, activations, spatial(model, activations), strict=True):
        ablated = partial(_ablated_scores, model, layer, score, chunk_size)
        without = jax.lax.map(lambda each, ablated=ablated: ablated(*each), (images, targets, activation))
        weights = (whole - without) / jnp.where(whole == 0, 1, jnp.abs(whole))
        maps.append(jnp.einsum("nabk,nk->nab", A, weights, precision=jax.lax.Precision.HIGHEST))
    return finish(maps, images, raw)


def _ablated_scores(model, layer, score, chunk_size, image, target, activation):
    """The score of one image without each of the layer's channels, `float32[k]`."""

    def without(channel):
        taken = jnp.where(jnp.arange(activation.shape[-1]) == channel, -activation, 0)
        # The image is outside of what `vmap` maps over, so the layers below are computed once for a whole chunk.
        return score(model.run(image[None], [taken[None]], layers=(layer,))[0], target[None])[0].astype(jnp.float32)

    return chunked_map(jax.vmap(without), activation.shape[-1:], chunk_size)
