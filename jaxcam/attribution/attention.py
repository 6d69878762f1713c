"""What a vision transformer's attention brings from the patches to the token that the head reads.

Rollout reads the attention of every layer of the unmodified model through the tap, whichever layer is tapped. The
methods with a class need the gradient with respect to the attention too: they find every softmax over keys in the
model's own program (see `_engine.program`), so it does not matter who computes it. The tap's `reshape` says how tokens
lie on the image.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp

from jaxcam._array import EXACT
from jaxcam._checks import choice
from jaxcam._engine.program import backward, gradient, softmax_parts, trace
from jaxcam._errors import shown
from jaxcam._scores import chosen, described, scores
from jaxcam._typing import Images, Maps, Score, Targets
from jaxcam.attribution._cam import cells, finish
from jaxcam.attribution._method import as_method
from jaxcam.score import logit
from jaxcam.taps import Tap

FUSIONS = {"mean": jnp.mean, "max": jnp.max, "min": jnp.min}  # of the heads


@as_method
def attention_rollout(
    model: Tap,
    images: Images,
    targets: Targets = None,
    *,
    score: Score = logit,
    raw: bool = False,
    token: int | None = 0,
    residual: float | int = 0.5,
    fusion: str = "mean",
    attention: Sequence[str] | Callable | None = None,
) -> Maps:
    """Attention rollout: how much of each patch arrives at the token that the head reads, by attention alone.

    `R = B_L ... B_2 B_1` with `B = residual I + (1 - residual) mean_heads(attention)` of each layer, its rows scaled to
    sum to one; `map = R[token]` at the patches.

    All attention layers of the model count, whichever layer is tapped; the tap's `reshape` says which tokens are
    patches. `targets` and `score` change nothing.

    Args:
      model: a tap with `reshape=jaxcam.tokens(...)`.
      images: `float[n, *space, c]`, normalised as the model expects.
      targets: `int[n]`, one class for all, `int[n, t]` for `t` maps an image, or `None` for the predicted class.
      score: the explained scalar, `(output, targets[n]) -> [n]`.
      raw: return the weighted sum itself, signed and at the layer's resolution (a tuple for several layers).
      token: the token that the head reads: 0 is the class token, `None` the mean over all tokens.
      residual: what the skip connection carries: the share of a token that stays where it is; a half in the paper.
      fusion: of the heads: `"mean"` as in the paper, `"max"` or `"min"`.
      attention: where the weights `[n, heads, queries, keys]` come from, the first layer's first. `None` means every
        attention layer of the framework's own kind, such as `nn.MultiHeadDotProductAttention` or
        `nnx.MultiHeadAttention`. For attention that the model computes itself: the paths of layers that return the
        weights, as `jaxcam.layers` lists them, such as the dropout of each block, or a function `(model, images)`
        that gives a sequence of them. It is static: pass the same one again, and nothing is compiled anew.

    Returns:
      Heatmaps `float32[n, *space]` in [0, 1]; zeros where nothing speaks for the class.

    Raises:
      ValueError: images or targets of a wrong shape, type or range; an unknown or non-spatial layer; a tap
        without `reshape`; a model without attention layers, or with layers that attend
        to another sequence; `attention` that gives no such weights; a token beyond the sequence's end; a `residual`
        outside of [0, 1]; an unknown `fusion`.

    When: where a transformer's information comes from, at once. Not for a class: it shows the same map for each.

    Reference: Abnar and Zuidema 2020, Quantifying Attention Flow in Transformers, https://arxiv.org/abs/2005.00928

    Example:
      >>> import flax.linen as nn
      >>> patches, flat = nn.Conv(8, (8, 8), 8), lambda x: x.reshape(len(x), -1, 8)
      >>> module = nn.Sequential([patches, flat, nn.MultiHeadDotProductAttention(2), lambda x: x.mean(1), nn.Dense(4)])
      >>> variables = module.init(jax.random.key(0), images)
      >>> model = jaxcam.tap(module, variables, "layers_2", reshape=jaxcam.tokens((4, 4), drop=0))
      >>> heatmaps = jaxcam.attention_rollout(model, images, token=None)
    """
    _check_tokens("attention_rollout", model)
    choice(FUSIONS, fusion=fusion)
    layers = _same_sequence("attention_rollout", _weights(model, images, attention))
    identity = rollout = jnp.eye(layers[0].shape[-1], dtype=jnp.float32)
    for weights in layers:
        step = residual * identity + (1 - residual) * FUSIONS[fusion](weights.astype(jnp.float32), 1)
        total = step.sum(-1, keepdims=True)
        rollout = jnp.matmul(step / jnp.where(total > 0, total, 1), rollout, precision=EXACT)
    return _of_token(model, rollout, images, raw, token)


def _check_tokens(method, model) -> None:
    if model.reshape is None:
        raise ValueError(
            f"{method} needs to know how tokens lie on the image: `jaxcam.tap(..., reshape=jaxcam.tokens((h, w)))`."
        )


def _of_token(model, arrived, images, raw, token):
    """What arrived at the token that the head reads, of `arrived [n, queries, keys]`, as a map."""
    count = arrived.shape[-1]
    if token is not None and not -count <= token < count:
        raise ValueError(f"token is {token}, and the sequence has {count}, from 0 to {count - 1}.")
    return _of_keys(model, arrived.mean(1) if token is None else arrived[:, token], images, raw)


def _of_keys(model, values, images, raw):
    """Numbers of the tokens, `[n, t]`, as maps."""
    (A,) = cells(replace(model, layers=("attention",)), [values[..., None]], images)
    return finish([A.laid(A.values[..., 0])], images, raw)


@as_method
def attention_relevance(
    model: Tap,
    images: Images,
    targets: Targets = None,
    *,
    score: Score = logit,
    raw: bool = False,
    token: int | None = 0,
) -> Maps:
    """Attention relevance: rollout of attention weighted by its gradient, so that the map shows a class.

    `R = (I + C_L) ... (I + C_1)` with `C = mean_heads(relu(attention * gradient))` of each layer; `map = R[token]` at
    the patches.

    Every softmax over keys `[n, heads, queries, keys]` in the model counts, whoever computes it and whichever layer is
    tapped; the tap's `reshape` says which tokens are patches.

    Args:
      model: a tap with `reshape=jaxcam.tokens(...)`.
      images: `float[n, *space, c]`, normalised as the model expects.
      targets: `int[n]`, one class for all, `int[n, t]` for `t` maps an image, or `None` for the predicted class.
      score: the explained scalar, `(output, targets[n]) -> [n]`.
      raw: return the relevance itself, at the patches.
      token: the token that the head reads: 0 is the class token, `None` the mean over all tokens.

    Returns:
      Heatmaps `float32[n, *space]` in [0, 1]; zeros where nothing speaks for the class.

    Raises:
      ValueError: images or targets of a wrong shape, type or range; a tap without `reshape`; a model without attention,
        or with layers that attend to another sequence; a token beyond the sequence's end.

    When: a transformer's map for a class. Not for models without softmax attention.

    Reference: Chefer et al. 2021, Generic Attention-model Explainability for Interpreting Bi-Modal and Encoder-Decoder
    Transformers, https://arxiv.org/abs/2103.15679

    Example:
      >>> module = jaxcam.models.ViT(depth=2, width=16, num_heads=2, patch_size=8, num_classes=10, image_size=32)
      >>> variables = module.init(jax.random.key(0), images)
      >>> model = jaxcam.tap(module, variables, module.layer, reshape=module.reshape)
      >>> heatmaps = jaxcam.attention_relevance(model, images)
    """
    _check_tokens("attention_relevance", model)
    targets = chosen(model, images, targets)
    program = trace(lambda images: scores(score, model(images), targets).sum(), images)
    values, found = program.run(images), {}
    attention = _attention(program, images)

    def rule(equation, arrived):
        if id(equation) in attention:
            found[id(equation)] = arrived[0]
        return gradient(program, values, equation, arrived)

    backward(program, [jnp.ones((), jnp.float32)], rule)
    pairs = [(values(each.outvars[0]), found[name]) for name, each in attention.items() if name in found]
    if not pairs:
        raise _no_attention("attention_relevance")
    _same_sequence("attention_relevance", [weights for weights, _ in pairs])
    relevance = jnp.eye(pairs[0][0].shape[-1], dtype=jnp.float32)
    for weights, slopes in pairs:
        step = jax.nn.relu(weights.astype(jnp.float32) * slopes.astype(jnp.float32)).mean(1)
        relevance = relevance + jnp.matmul(step, relevance, precision=EXACT)
    return _of_token(model, relevance, images, raw, token)


@as_method
def le_grad(model: Tap, images: Images, targets: Targets = None, *, score: Score = logit, raw: bool = False) -> Maps:
    """LeGrad: how sensitive the score is to the attention of each layer, when that layer's tokens are read out at once.

    `map = mean_l mean_heads,queries relu(d score(head(tokens_l)) / d attention_l)` at the patches, over the tapped
    layers `l`.

    Tap the output of every block, as below. `head` is the model from the last of them on, so that the tokens of each
    are read as the last ones are; `attention_l` is the one that was computed last before them. The authors' code for
    CLIP reads the mean of the tokens instead of the class token.

    Args:
      model: a tap on the blocks of a transformer, the first one first, with `reshape=jaxcam.tokens(...)`.
      images: `float[n, *space, c]`, normalised as the model expects.
      targets: `int[n]`, one class for all, `int[n, t]` for `t` maps an image, or `None` for the predicted class.
      score: the explained scalar, `(output, targets[n]) -> [n]`.
      raw: return the sensitivity itself, at the patches.

    Returns:
      Heatmaps `float32[n, *space]` in [0, 1]; zeros where nothing speaks for the class.

    Raises:
      ValueError: images or targets of a wrong shape, type or range; a tap without `reshape`; tapped layers that return
        no such tokens, or before which there is no attention.

    When: a transformer's map for a class from the attention of all blocks. Not where the head reads something else than
    the tokens of the tapped blocks.

    Reference: Bousselham et al. 2025, LeGrad: An Explainability Method for Vision Transformers via Feature Formation
    Sensitivity, https://arxiv.org/abs/2404.03214

    Example:
      >>> module = jaxcam.models.ViT(depth=2, width=16, num_heads=2, patch_size=8, num_classes=10, image_size=32)
      >>> variables = module.init(jax.random.key(0), images)
      >>> blocks = [f"encoder.layers.encoder_layer_{index}" for index in range(2)]
      >>> heatmaps = jaxcam.le_grad(jaxcam.tap(module, variables, blocks, reshape=module.reshape), images)
    """
    _check_tokens("le_grad", model)
    targets = chosen(model, images, targets)
    program = trace(lambda images: tuple(model.run(images)[1]), images)
    values = program.run(images)
    tokens, attention = program.output(values), _attention(program, images)

    def read(tokens):
        return scores(score, model.run(images, [tokens], layers=model.layers[-1:], put=True)[0], targets).sum()

    def sensitivity(index):
        seeds, found = [None] * len(tokens), []
        seeds[index] = jax.grad(read)(tokens[index])

        def rule(equation, arrived):  # back to the nearest attention, and no further
            if id(equation) in attention and not found:
                found.append(arrived[0])
            return [] if found else gradient(program, values, equation, arrived)

        backward(program, seeds, rule)
        if not found:
            raise _no_attention("le_grad", f" before the layer {model.layers[index]!r}")
        return jax.nn.relu(found[0].astype(jnp.float32)).mean((1, 2))

    if len({each.shape for each in tokens}) > 1:
        shapes = ", ".join(str(each.shape) for each in tokens)
        raise ValueError(f"le_grad reads the tokens of one layer as those of another, and they have shapes {shapes}.")
    return _of_keys(model, sum(map(sensitivity, range(len(tokens)))) / len(tokens), images, raw)


def _attention(program, images) -> dict:
    """The equations that give attention `[n, heads, queries, keys]`, a softmax over keys, by what identifies them."""
    return {id(each): each for each in program.equations if _is_attention(program, each, images.shape[0])}


def _is_attention(program, equation, n) -> bool:
    shape = equation.outvars[0].aval.shape
    if equation.primitive.name != "div" or len(shape) != 4 or shape[0] != n:
        return False
    _, sums = softmax_parts(program, equation)
    return sums is not None and tuple(sums.params["axes"]) == (3,)


def _no_attention(method, where=""):
    return ValueError(
        f"{method} found no attention in the model{where}: no softmax over the last of four axes [n, heads, queries, "
        "keys] on which the score depends."
    )


def _same_sequence(method, layers):
    shapes = {each.shape[-2:] for each in layers}
    if len(shapes) > 1 or len(set(*shapes)) > 1:
        raise ValueError(f"{method} follows one token sequence, and attention has shapes {sorted(shapes)}.")
    return layers


def _weights(model, images, attention) -> Sequence:
    """The attention `[n, heads, t, t]` of each layer: found, named by its path, or given by a function."""
    if attention is None:
        layers = model.attention(images)
        if not layers:
            raise ValueError(
                "attention_rollout found no attention layer (nn.MultiHeadDotProductAttention, nnx.MultiHeadAttention) "
                "in the model. Where the model computes attention itself, name the layers that return its weights "
                '[n, heads, queries, keys], attention=("block0.attention.dropout", ...), or pass a function of them, '
                "attention=lambda model, images: [...]."
            )
    elif callable(attention):
        layers = tuple(attention(model, images))  # pyright: ignore[reportArgumentType]
    else:
        layers = model.run(images, layers=(attention,) if isinstance(attention, str) else tuple(attention))[1]
    if not layers:
        raise ValueError(f"attention is {shown(repr(attention))}, which gives no layers; name one at least.")
    for each in layers:
        if len(getattr(each, "shape", ())) != 4:
            raise ValueError(f"attention gives {described(each)}; weights are [n, heads, queries, keys] of each layer.")
    return layers
