"""DeepLIFT: backpropagation with slopes between two points, on models that stay as they are.

The model's program is traced inside the engine, run at image and baseline, and walked backwards (see
`_engine.program`); a rule says for each operation which slope it passes on. Where none is known, the method raises: it
never falls back to the plain gradient silently.
"""

from collections.abc import Callable

import jax.numpy as jnp

from jaxcam._array import ROUNDING
from jaxcam._checks import check_baseline, filled, prepare
from jaxcam._engine import engine
from jaxcam._engine.program import (
    ELEMENTWISE,
    MAXIMA,
    MOVES,
    PRODUCTS,
    SUMS,
    backward,
    bind,
    gather_to,
    is_inexact,
    is_rounding,
    no_rule,
    pull,
    replaced,
    trace,
)
from jaxcam._scores import chosen, scores
from jaxcam._typing import Attributions, Baseline, Images, Score, Targets
from jaxcam.score import logit
from jaxcam.taps import Tap


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

    No ReLU is needed.

    Args:
      model: a tap or any callable `images -> output`.
      images: `float[n, *space, c]`, normalised as the model expects.
      targets: `int[n]`, one class for all, `int[n, t]` for `t` maps an image, or `None` for the predicted class.
      score: the explained scalar, `(output, targets[n]) -> [n]`; its own derivative is the usual one.
      baseline: `[n, *space, c]`, anything that broadcasts to it, or `None` for zeros (the mean colour).

    Returns:
      Attributions `float32[n, *space, c]`, in units of score per unit of the normalised pixel.

    Raises:
      ValueError: a baseline that does not fit; an operation with no rule, such as `sort` or `while`, under which the
        attributions would not add up.

    Reference: Shrikumar et al. 2017, Learning Important Features Through Propagating Activation Differences,
    https://arxiv.org/abs/1704.02685

    Example:
      >>> attributions = jaxcam.deep_lift(model, images)
    """
    model, images, targets = prepare(model, images, targets)
    return _deep_lift_engine(model, images, targets, check_baseline(baseline, images), score=score)


@engine
def _deep_lift_engine(model, images, targets, baseline, *, score):
    targets = chosen(model, images, targets)
    program = trace(lambda images: scores(score, model(images), targets), images)
    baseline = jnp.zeros_like(images) + filled(baseline, images)  # under `shard_map` it varies as the images do
    ends, starts = program.run(images), program.run(baseline)

    def rule(equation, arrived):
        active = program.active(equation)
        end, start = ([each(variable) for variable in equation.invars] for each in (ends, starts))
        shares = _slope_rule(equation)(equation, start, end, arrived, active)
        return zip([equation.invars[i] for i in active], shares, strict=True)

    multipliers = backward(program, [jnp.ones_like(program.output(ends))], rule)
    if multipliers is None:
        return jnp.zeros_like(images, jnp.float32)
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
        derivative = pull(equation, end, [jnp.ones_like(rise)], [i])[0].astype(jnp.float32) if smooth else 0
        share = arrived[0].astype(jnp.float32) * _slope(rise, start[i], end[i], derivative)
        shares.append(gather_to(share, equation.invars[i]))
    return shares


def _maximum_slope(equation, start, end, arrived, active):
    """What a maximum rises goes to the cell that wins at the end, what it falls to the one that wins at the start."""
    (x0,), (x,) = ([values[i] for i in active] for values in (start, end))
    low, high = (bind(equation, values)[0].astype(jnp.float32) for values in (start, end))
    top, change = jnp.maximum(low, high), arrived[0].astype(jnp.float32)
    rise = pull(equation, end, [change * (top - low)], active)[0]
    fall = pull(equation, start, [change * (high - top)], active)[0]
    derivative = pull(equation, end, arrived, active)[0].astype(jnp.float32)
    return [_slope(rise + fall, x0, x, derivative)]


def _select_slope(equation, start, end, arrived, active):
    """`where(p, b, a) = a + p (b - a)` with `p` of 0 or 1: products, so the gradient half-way is exact."""
    (p0, a0, b0), (p, a, b) = ([x.astype(jnp.float32) for x in values] for values in (start, end))
    middle = (p0 + p) / 2
    share = (jnp.where(p == p0, 0, (b0 + b - a0 - a) / 2), 1 - middle, middle)
    return [gather_to(arrived[0].astype(jnp.float32) * share[i], equation.invars[i]) for i in active]


def _slope(rise, start, end, derivative):
    """`rise / (end - start)`, and the derivative where that is rounding."""
    start, end = start.astype(jnp.float32), end.astype(jnp.float32)
    run = end - start
    flat = jnp.abs(run) <= ROUNDING * jnp.maximum(jnp.abs(start), jnp.abs(end))
    return jnp.where(flat, derivative, rise.astype(jnp.float32) / jnp.where(flat, 1, run))


def _numbers(x):
    """Truth values as 0 and 1."""
    return x.astype(jnp.float32) if x.dtype == bool else x


def _exact(x):
    return x.astype(jnp.float32) if is_inexact(x) else x
