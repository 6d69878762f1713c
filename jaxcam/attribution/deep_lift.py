"""DeepLIFT: backpropagation with slopes between two points, on models that stay as they are.

The model's program is traced inside the engine, run at image and baseline, and walked backwards (see
`_engine.program`); a rule says for each operation which slope it passes on. Where none is known, the method raises: it
never falls back to the plain gradient silently.
"""

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp

from jaxcam._array import ROUNDING, flat, repeated
from jaxcam._checks import is_several, picked, samples_of
from jaxcam._engine import spread
from jaxcam._engine.program import (
    ELEMENTWISE,
    MAXIMA,
    MOVES,
    PRODUCTS,
    REPEATS,
    SUMS,
    Literal,
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
from jaxcam._typing import Baseline, Explained, Images, Score, Targets
from jaxcam.attribution._method import as_method
from jaxcam.attribution.paths import Paths, integral
from jaxcam.score import logit
from jaxcam.taps import Tap


@as_method
def deep_lift(
    model: Tap | Callable,
    images: Images,
    targets: Targets = None,
    *,
    score: Score = logit,
    baseline: Baseline = None,
    multiply_by_inputs: bool = True,
    return_delta: bool = False,
    chunk_size: int | None = None,
) -> Explained:
    """DeepLIFT (rescale rule): backpropagation where a nonlinearity passes its slope between baseline and image.

    `attribution = (image - baseline) * multipliers`: the chain rule with `(f(x) - f(x0)) / (x - x0)` for `f'(x)`.
    The attributions of an image sum to `score(image) - score(baseline)`, with two passes instead of a path of them.
    With several baselines they are the mean over them: DeepLiftShap (Lundberg and Lee 2017,
    https://arxiv.org/abs/1705.07874).

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
      baseline: `[n, *space, c]`, anything that broadcasts to it, or `None` for zeros (the mean colour). Several are
        `[1 or n, m, *space, c]`.
      multiply_by_inputs: `False` leaves the factor `image - baseline` out: the multipliers.
      return_delta: give also what the attributions miss, `sum - (score(image) - score(baseline))`.
      chunk_size: pairs of image and baseline in one pass; by default what suits the device.

    Returns:
      Attributions `float32[n, *space, c]`, in units of the score. With `return_delta` a pair of them and the deltas
      `float32[n]`, or `[n, m]` of several baselines, which do not depend on `multiply_by_inputs`.

    Raises:
      ValueError: a baseline that does not fit; an operation with no rule, such as `sort` or `while`, under which the
        attributions would not add up.

    When: integrated gradients' sums for two passes. Not without a thought about the baseline, as there.

    Reference: Shrikumar et al. 2017, Learning Important Features Through Propagating Activation Differences,
    https://arxiv.org/abs/1704.02685

    Example:
      >>> attributions = jaxcam.deep_lift(model, images)
    """
    targets = chosen(model, images, targets)
    samples = jnp.zeros_like(images)[:, None] + samples_of(baseline, images)  # varies over a mesh as the images do
    count, is_one = samples.shape[1], not is_several(baseline, images)

    def slopes(starts):
        m = starts.shape[1]
        copies = repeated(model, m), flat(jnp.broadcast_to(images[:, None], starts.shape))
        rest = jnp.repeat(targets, m, axis=0), spread(flat(starts)), repeated(score, m)
        return _multipliers(*copies, *rest).reshape(starts.shape)

    def pairs(indices):  # a path of one step, from one end to the other
        starts = picked(samples, indices)
        way = images.astype(jnp.float32)[:, None] - starts.astype(jnp.float32)
        return starts, jnp.full(len(indices), 1 / count, jnp.float32), way

    options = {"score": score, "chunk_size": chunk_size, "slopes": slopes}
    options["paths"] = Paths(count, partial(picked, samples), is_one, multiply_by_inputs, return_delta)
    return integral(model, images, targets, pairs, 1, **options)


def _multipliers(model, images, targets, baseline, score):
    """The slope of each image's score between its baseline and itself, for each pixel."""
    program = trace(lambda images: scores(score, model(images), targets), images)
    ends, starts = program.run(images), program.run(baseline)

    def rule(equation, arrived):
        maximum = _own_maximum(program, equation)
        if maximum is not None:
            x = equation.invars[0]
            return [(x, _shifted_slope(maximum.params["axes"], starts(x), ends(x), arrived[0]))]
        active = program.active(equation)
        end, start = ([each(variable) for variable in equation.invars] for each in (ends, starts))
        shares = _slope_rule(equation)(equation, start, end, arrived, active)
        return zip([equation.invars[i] for i in active], shares, strict=True)

    multipliers = backward(program, [jnp.ones_like(program.output(ends))], rule)
    return jnp.zeros_like(images, jnp.float32) if multipliers is None else multipliers.astype(jnp.float32)


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


def _own_maximum(program, equation):
    """The maximum of `x` in an equation `x - max(x)`, with which every softmax begins, or `None`."""
    if equation.primitive.name != "sub":
        return None
    x, variable = equation.invars
    while not isinstance(variable, Literal) and (made := program.made_by.get(variable)) is not None:
        name, operands = made.primitive.name, [made.invars[i] for i in program.active(made)]
        if name == "reduce_max":
            return made if operands == [x] else None
        if name not in REPEATS | {"reshape", "max"} or len(operands) != 1:  # a maximum with -inf
            return None
        (variable,) = operands
    return None


def _shifted_slope(axes, start, end, arrived):
    """The slope of `x - max(x)`, whose sum does not drown in logits that are large.

    One cell has the maximum's change, the winner at the end if it rises and that at the start if it falls. What that
    cell receives goes to its way from the maximum, what the others receive to the maximum's way: between both, no large
    numbers cancel.
    """
    start, end, arrived = (x.astype(jnp.float32) for x in (start, end, arrived))
    low, high = (x.max(axes, keepdims=True) for x in (start, end))
    rises = high >= low
    first = jnp.where(rises, end == high, start == low)
    then = jnp.where(first, jnp.where(rises, start, end), -jnp.inf)  # who won at the other side too
    wins = first & (then == then.max(axes, keepdims=True))
    share = wins / wins.sum(axes, keepdims=True)
    among = jnp.where(wins, arrived, 0).sum(axes, keepdims=True) - arrived
    others = jnp.where(wins, 0, arrived).sum(axes, keepdims=True) + among
    shifted = (end - high) - (start - low)
    change = arrived * (shifted + (1 - share) * (high - low)) - share * (high - low) * others
    derivative = arrived - share * (others + arrived)
    return jnp.where(wins, _slope(change, start, end, derivative), arrived)


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
