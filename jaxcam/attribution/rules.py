"""Attributions that change the rules of backpropagation, on models that stay as they are.

The model's program is traced inside the engine and walked backwards (see `jaxcam._rewrite`); a method is what it lets
an operation pass on: a gradient cut at every ReLU, or a slope between two points. Where no rule applies, or none is
known for an operation on the way, the method raises: it never falls back to the plain gradient silently. All return
signed attributions `[n, h, w, c]`, which `heatmap` turns into heatmaps.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxcam._array import ROUNDING, resize
from jaxcam._inputs import check_baseline, check_images, check_targets, engine, predicted, require_tap
from jaxcam._rewrite import (
    ELEMENTWISE,
    MAXIMA,
    MOVES,
    PRODUCTS,
    SUMS,
    backward,
    bind,
    contains_relu,
    gather_to,
    gradient,
    is_inexact,
    is_rounding,
    no_rule,
    pull,
    relu_operand,
    replaced,
    trace,
)
from jaxcam._typing import Attributions, Baseline, Images, Score, Targets
from jaxcam.score import logit
from jaxcam.tap import Tap

# ----------------------------------------------------------------------------------------------- a cut at every ReLU


def guided_backprop(
    model: Tap | Callable, images: Images, targets: Targets = None, *, score: Score = logit
) -> Attributions:
    """Guided backpropagation: a ReLU passes only positive gradients, and only where it was active.

    `passed = relu(gradient) * (x > 0)` at every ReLU; everything else is differentiated as usual.

    A ReLU is found however the model spells it: `jax.nn.relu`, `jnp.maximum(x, 0)`, `jnp.where(x > 0, x, 0)`, under
    `nn.remat` or in `nn.scan`. Every image of a batch is explained by itself (pytorch-grad-cam: the first alone).
    Beware: the picture is sharp because it depends little on what the upper layers have learnt (Adebayo et al. 2018).

    Args:
      model: a tap or any callable `images -> logits`.
      images: `float[n, h, w, c]`, normalised as the model expects.
      targets: `int[n]`, one class for all, or `None` for each image's predicted class.
      score: the explained scalar, `(logits[n, k], targets[n]) -> [n]`; its own derivative is the usual one.

    Returns:
      Attributions `float32[n, h, w, c]`, in units of score per unit of the normalised pixel.

    Raises:
      ValueError: images or targets of a wrong shape, type or range; no ReLU between the images and the score; a ReLU in
        a `while`, `cond` or `shard_map`.

    Reference: Springenberg et al. 2015, Striving for Simplicity: The All Convolutional Net, https://arxiv.org/abs/1412.6806

    Example:
      >>> attributions = jaxcam.guided_backprop(model, images)
    """
    return _relu_method(_guided, model, images, targets, score)


def _guided(x, gradient):
    return jnp.where(x > 0, jax.nn.relu(gradient), 0)


def deconvnet(model: Tap | Callable, images: Images, targets: Targets = None, *, score: Score = logit) -> Attributions:
    """Deconvolution: a ReLU passes only positive gradients, wherever it was active.

    `passed = relu(gradient)` at every ReLU; everything else is differentiated as usual.

    Arguments, result and errors are those of `guided_backprop`.

    Reference: Zeiler and Fergus 2014, Visualizing and Understanding Convolutional Networks,
    https://arxiv.org/abs/1311.2901

    Example:
      >>> attributions = jaxcam.deconvnet(model, images)
    """
    return _relu_method(_deconvolution, model, images, targets, score)


def _deconvolution(x, gradient):
    return jax.nn.relu(gradient)


def guided_grad_cam(
    model: Tap, images: Images, targets: Targets = None, *, score: Score = logit, method: str = "bilinear"
) -> Attributions:
    """Guided Grad-CAM: guided backpropagation where Grad-CAM finds the class.

    `attribution = guided_backprop * resize(relu(sum_k mean_hw(G[:, :, k]) A[h, w, k]))`, with the activations `A` of
    the tapped layer and their gradient `G`; over several layers, the mean of their maps. The map is not scaled.

    Arguments, result and errors are those of `guided_backprop`, and:

    Args:
      model: a tap on one or several spatial layers.
      method: how the map is resized: `"bilinear"` as in the paper, or `"nearest"` as in Captum.

    Raises:
      TypeError: `model` is not a tap.

    Reference: Selvaraju et al. 2017, Grad-CAM: Visual Explanations from Deep Networks, https://arxiv.org/abs/1610.02391

    Example:
      >>> attributions = jaxcam.guided_grad_cam(model, images)
    """
    require_tap(model, "guided_grad_cam")
    if method not in ("bilinear", "nearest"):
        raise ValueError(f'method is {method!r}; it must be "bilinear" or "nearest".')
    images = check_images(images)
    targets = check_targets(model, images, targets)
    return _guided_grad_cam_engine(model, images, targets, score=score, method=method)


@engine(static=("score", "method"))
def _guided_grad_cam_engine(model, images, targets, *, score, method):
    def total_score(output):
        return score(output, predicted(output) if targets is None else targets).sum()

    guided = _relu_gradient(_guided, model, images, total_score)
    _, activations, gradients = model.gradients(images, total_score)
    shape, maps = images.shape[1:3], []
    for layer, A, G in zip(model.layers, activations, gradients, strict=True):
        if A.ndim != 4:
            raise ValueError(f"Layer {layer!r} returns {A.shape}, which is not spatial [n, h, w, k].")
        A, G = A.astype(jnp.float32), G.astype(jnp.float32)
        coarse = jax.nn.relu(jnp.sum(jnp.mean(G, (1, 2), keepdims=True) * A, -1))
        maps.append(resize(coarse, shape) if method == "bilinear" else _nearest(coarse, shape))
    return guided * (sum(maps) / len(maps))[..., None]


def _nearest(maps, shape):
    rows, columns = (jnp.arange(new) * old // new for new, old in zip(shape, maps.shape[1:], strict=True))
    return maps[:, rows][:, :, columns]


def _relu_method(relu_rule, model, images, targets, score):
    """Checks the arguments, then runs the engine with the method's rule for a ReLU."""
    images = check_images(images)
    targets = check_targets(model, images, targets)
    return _relu_engine(model, images, targets, relu_rule=relu_rule, score=score)


@engine(static=("relu_rule", "score"))
def _relu_engine(model, images, targets, *, relu_rule, score):
    def total_score(output):
        return score(output, predicted(output) if targets is None else targets).sum()

    return _relu_gradient(relu_rule, model, images, total_score)


def _relu_gradient(relu_rule, model, images, total_score):
    """The gradient of `total_score(model(images))` where a ReLU passes `relu_rule(x, gradient)`."""
    program = trace(model, images, keep=lambda equation: not contains_relu(equation))
    values = program.run(images)
    found = []

    def rule(equation, arrived):
        x = relu_operand(program, equation)
        if x is not None:
            found.append(x)
            return [(x, relu_rule(values(x), arrived[0]))]
        if contains_relu(equation):
            raise ValueError(f"A ReLU inside {equation.primitive.name!r} is out of reach; write the model without it.")
        return gradient(program, values, equation, arrived)

    seeds = jax.tree.leaves(jax.grad(total_score)(program.output(values)))
    result = backward(program, seeds, rule)
    if not found:
        raise ValueError(
            "There is no ReLU between the images and the score, so this would be the plain gradient. "
            "Use `saliency`, or a method for any activation, such as `deep_lift` or `integrated_gradients`."
        )
    return result.astype(jnp.float32)


# ------------------------------------------------------------------------------------------ slopes between two points


def deep_lift(
    model: Tap | Callable,
    images: Images,
    targets: Targets = None,
    *,
    score: Score = logit,
    baseline: Baseline = None,
) -> Attributions:
    """DeepLIFT with the rescale rule: backpropagation where a nonlinearity passes its slope between baseline and image.

    `attribution = (image - baseline) * multipliers`: the chain rule with `(f(x) - f(x0)) / (x - x0)` for `f'(x)`.
    The attributions of an image sum to `score(image) - score(baseline)`, with two passes instead of a path of them.

    The rule holds for every elementwise operation, `tanh` and `gelu` as well as ReLU. A max-pool gives a rise to the
    cell that wins in the image and a fall to the one that wins in the baseline, as Captum means to (its sums miss the
    difference where windows overlap, or where the pool follows a ReLU at once). What joins two values that depend on
    the image (a product, a quotient, a `where`) is shared between them as by Shapley. Where image and baseline agree,
    the slope is the derivative.

    Arguments, result and errors are those of `guided_backprop`, but no ReLU is needed, and:

    Args:
      baseline: `[n, h, w, c]`, anything that broadcasts to it, or `None` for zeros (the mean colour).

    Raises:
      ValueError: a baseline that does not fit; an operation with no rule, such as `sort` or `while`, under which the
        attributions would not add up.

    Reference: Shrikumar et al. 2017, Learning Important Features Through Propagating Activation Differences,
    https://arxiv.org/abs/1704.02685

    Example:
      >>> attributions = jaxcam.deep_lift(model, images)
    """
    images = check_images(images)
    targets = check_targets(model, images, targets)
    return _deep_lift_engine(model, images, targets, check_baseline(baseline, images), score=score)


@engine(static=("score",))
def _deep_lift_engine(model, images, targets, baseline, *, score):
    targets = predicted(model(images)) if targets is None else targets
    program = trace(lambda images: score(model(images), targets), images)
    ends, starts = program.run(images), program.run(baseline)

    def rule(equation, arrived):
        active = program.active(equation)
        end, start = ([each(variable) for variable in equation.invars] for each in (ends, starts))
        shares = _slope_rule(equation)(equation, start, end, arrived, active)
        return zip([equation.invars[i] for i in active], shares, strict=True)

    multipliers = backward(program, [jnp.ones(images.shape[0])], rule)
    if multipliers is None:
        return jnp.zeros(images.shape, jnp.float32)
    return multipliers.astype(jnp.float32) * (images - baseline).astype(jnp.float32)


def _slope_rule(equation):
    name = equation.primitive.name
    if name in MOVES | SUMS | PRODUCTS | {"mul", "neg"} or is_rounding(equation):
        return _bilinear_slope
    if name in ELEMENTWISE:
        return _elementwise_slope
    if name in MAXIMA:
        return _maximum_slope
    if name == "select_n" and equation.invars[0].aval.dtype == bool:
        return _select_slope
    raise no_rule("deep_lift", equation)


def _bilinear_slope(equation, start, end, arrived, active):
    """A product changes by what its gradient half-way says, exactly; a linear operation by what any gradient says."""
    if any(jnp.issubdtype(end[i].dtype, jnp.integer) for i in active):
        raise no_rule("deep_lift", equation)
    if any(end[i].dtype == bool for i in active):
        start, end = ([_numbers(x) for x in values] for values in (start, end))
    return pull(equation, replaced(end, active, [(start[i] + end[i]) / 2 for i in active]), arrived, active)


def _elementwise_slope(equation, start, end, arrived, active):
    """Each operand's change, averaged over where the other one stands."""
    if len(active) > 2:
        raise no_rule("deep_lift", equation)
    shape = equation.outvars[0].aval.shape
    start, end = ([jnp.broadcast_to(_exact(x), shape) for x in values] for values in (start, end))

    def change(i, operands):
        rise = [_exact(bind(equation, replaced(operands, [i], [at[i]]))[0]).astype(jnp.float32) for at in (start, end)]
        return rise[1] - rise[0]

    shares = []
    for i in active:
        others = [j for j in active if j != i]
        settings = [end, replaced(end, others, [start[j] for j in others])] if others else [end]
        rise = sum(change(i, operands) for operands in settings) / len(settings)
        smooth = is_inexact(end[i]) and is_inexact(equation.outvars[0].aval)
        derivative = pull(equation, end, [jnp.ones_like(rise)], [i])[0] if smooth else 0
        share = arrived[0] * _slope(rise, start[i], end[i], derivative)
        shares.append(gather_to(share, equation.invars[i]))
    return shares


def _maximum_slope(equation, start, end, arrived, active):
    """What a maximum rises goes to the cell that wins at the end, what it falls to the one that wins at the start."""
    (x0,), (x,) = ([values[i] for i in active] for values in (start, end))
    low, high = bind(equation, start)[0], bind(equation, end)[0]
    top = jnp.maximum(low, high)
    rise = pull(equation, end, [arrived[0] * (top - low)], active)[0]
    fall = pull(equation, start, [arrived[0] * (high - top)], active)[0]
    return [_slope(rise + fall, x0, x, pull(equation, end, arrived, active)[0])]


def _select_slope(equation, start, end, arrived, active):
    """`where(p, b, a) = a + p (b - a)` with `p` of 0 or 1: products, so the gradient half-way is exact."""
    (p0, a0, b0), (p, a, b) = ([_numbers(x) for x in values] for values in (start, end))
    middle = (p0 + p) / 2
    share = (jnp.where(p == p0, 0, (b0 + b - a0 - a) / 2), 1 - middle, middle)
    return [gather_to(arrived[0] * share[i], equation.invars[i]) for i in active]


def _slope(rise, start, end, derivative):
    """`rise / (end - start)`, and the derivative where that is rounding."""
    start, end = start.astype(jnp.float32), end.astype(jnp.float32)
    run = end - start
    flat = jnp.abs(run) <= ROUNDING * jnp.maximum(jnp.abs(start), jnp.abs(end))
    return jnp.where(flat, derivative, rise / jnp.where(flat, 1, run))


def _numbers(x):
    """Truth values as 0 and 1."""
    return x.astype(jnp.float32) if x.dtype == bool else x


def _exact(x):
    return x.astype(jnp.float32) if is_inexact(x) else x
