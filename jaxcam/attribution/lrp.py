"""Relevance propagation: the score is handed back, layer by layer, in proportion to contributions.

The model's program is traced inside the engine and walked backwards (see `_engine.program`), so a model stays as it is.
A layer is one affine map, a convolution or matrix product with what follows it (bias, BatchNorm), and its rule is one
function, the sum of contributions; every other operation passes relevance on, or raises where no rule is known.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxcam._checks import number, prepare
from jaxcam._engine import engine
from jaxcam._engine.program import (
    ELEMENTWISE,
    MAXIMA,
    MOVES,
    PRODUCTS,
    REPEATS,
    SUMS,
    backward,
    bind,
    gather_to,
    is_inexact,
    is_rounding,
    no_rule,
    pull,
    replaced,
    seeds,
    trace,
)
from jaxcam._errors import shown
from jaxcam._scores import scores
from jaxcam._typing import Attributions, Images, Score, Targets
from jaxcam.score import logit
from jaxcam.taps import Tap


def lrp(
    model: Tap | Callable,
    images: Images,
    targets: Targets = None,
    *,
    score: Score = logit,
    rule: str = "composite",
    gamma: float | int = math.inf,
    epsilon: float | int = 1e-6,
) -> Attributions:
    """Layer-wise relevance propagation: the score is handed back, layer by layer, in proportion to contributions.

    `relevance_i = sum_j c_ij / (sum_i c_ij + b_j + epsilon sign) relevance_j`, with contributions
    `c_ij = x_i w_ij + gamma (x_i w_ij)^+`, and the bias `b_j` likewise.

    A layer is a convolution or a matrix product together with the biases, scales and BatchNorm that follow it, as one
    affine map. Activation functions and shuffling pass relevance on as it is, a maximum gives it to the winner, sums
    (skip connections, average pooling) share it by the epsilon rule, and a gate (`x * sigmoid(x)`) gives it to `x`.
    The relevance of an image sums to its score, less what biases and epsilon absorb, and under the z+ rule less what
    arrives where nothing contributes positively (behind a skip connection). Without biases, the others lose nothing.
    It starts from `logits * d score / d logits`, the logit itself by default.

    No ReLU is needed.

    Args:
      model: a tap or any callable `images -> output`.
      images: `float[n, *space, c]`, normalised as the model expects.
      targets: `int[n]`, one class for all, `int[n, t]` for `t` maps an image, or `None` for the predicted class.
      score: the explained scalar, `(output, targets[n]) -> [n]`; its own derivative is the usual one.
      rule: `"composite"` takes gamma for convolutions (and matrix products applied to every cell of a map with as
        many axes as the images, which are 1x1 convolutions) and zero for dense layers; `"epsilon"` takes zero
        everywhere.
      gamma: how much positive contributions are favoured. Infinity is the z+ rule (alpha 1, beta 0), under which only
        they count; 0.25 is Captum's `GammaRule`. What counts is the sign of `x w`, so negative pixels are in good
        hands; Captum looks at `w` alone, and agrees where a layer's inputs are positive and it has no bias.
      epsilon: keeps the denominators from zero; larger values absorb weak relevance.

    Returns:
      Attributions `float32[n, *space, c]`, in units of score per unit of the normalised pixel.

    Raises:
      ValueError: an unknown rule, a negative gamma, an epsilon that is not positive; an operation with no rule, such as
        the product of two values that depend on the image (attention, LayerNorm).

    Reference: Bach et al. 2015, On Pixel-Wise Explanations for Non-Linear Classifier Decisions by Layer-Wise Relevance
    Propagation, https://doi.org/10.1371/journal.pone.0130140; the composite is that of Kohlbrenner et al. 2020,
    https://arxiv.org/abs/1910.09840

    Example:
      >>> attributions = jaxcam.lrp(model, images, gamma=0.25)
    """
    if rule not in ("composite", "epsilon"):
        raise ValueError(f'rule is {shown(repr(rule))}; it must be "composite" or "epsilon".')
    number(infinite=True, gamma=gamma)
    number(epsilon=epsilon)
    if not gamma >= 0:
        raise ValueError(f"gamma is {gamma!r}; it must be zero or more (infinity is the z+ rule).")
    if not epsilon > 0:
        raise ValueError(f"epsilon is {epsilon!r}; it must be a positive number.")
    model, images, targets = prepare(model, images, targets)
    gamma = 0.0 if rule == "epsilon" else float(gamma)
    return _lrp_engine(model, images, targets, score=score, gamma=gamma, epsilon=float(epsilon))


@engine
def _lrp_engine(model, images, targets, *, score, gamma, epsilon):
    program = trace(model, images)
    values = program.run(images)
    layers = _layers(program)

    def rule(equation, arrived):
        if equation.outvars[0] in layers:
            product, tail = layers[equation.outvars[0]]
            favour = gamma if _is_of_cells(product, program.active(product)[0], images.ndim) else 0
            return _layer_relevance(program, values, product, tail, arrived[0], favour, epsilon)
        return _relevance(program, values, equation, arrived, epsilon)

    output = program.output(values)
    slopes = seeds(lambda output: scores(score, output, targets).sum(), output)
    starts = [
        None if slope is None else (leaf * slope).astype(jnp.float32)
        for leaf, slope in zip(jax.tree.leaves(output), slopes, strict=True)
    ]
    relevance = backward(program, starts, rule)
    return jnp.zeros_like(images, jnp.float32) if relevance is None else relevance.astype(jnp.float32)


def _is_of_cells(product, active: int, rank: int) -> bool:
    """Whether a product is a convolution, or one of each cell of a map on as many axes as the images: a 1x1 one."""
    return product.primitive.name == "conv_general_dilated" or product.invars[active].aval.ndim == rank


def _layers(program):
    """`{last variable: (product, tail)}`: every product with the constants that are added and multiplied after it."""
    used_by = {}
    for equation in program.equations:
        for variable in {equation.invars[i] for i in program.active(equation)}:
            used_by.setdefault(variable, []).append(equation)
    layers = {}
    for product in program.equations:
        if product.primitive.name in PRODUCTS and len(program.active(product)) == 1:
            last, tail = product.outvars[0], []
            while len(used_by.get(last, ())) == 1 and last not in program.jaxpr.outvars:
                (equation,) = used_by[last]
                if not _is_affine(program, equation):
                    break
                tail.append(equation)
                last = equation.outvars[0]
            layers[last] = (product, tail)
    return layers


def _is_affine(program, equation):
    """Whether an equation adds a constant to its one active operand, or multiplies by one."""
    name, active = equation.primitive.name, program.active(equation)
    known = (
        name in ("add", "add_any", "sub", "mul", "neg") or is_rounding(equation) or (name == "div" and active == [0])
    )
    return known and len(active) == 1 and equation.invars[active[0]].aval.shape == equation.outvars[0].aval.shape


def _layer_relevance(program, values, product, tail, relevance, gamma, epsilon):
    """The layer's sum of contributions, linear in `x`: its gradient times `x` is what each input contributes."""
    (index,) = program.active(product)
    operands = [values(variable) for variable in product.invars]
    x, w = operands[index], operands[1 - index]

    def multiply(x, w):
        return bind(product, replaced(operands, [index, 1 - index], [x, w]))[0]

    def finish(z):
        for equation in tail:
            inputs = [values(variable) for variable in equation.invars]
            (z,) = bind(equation, replaced(inputs, program.active(equation), [z]))
        return z.astype(jnp.float32)

    def agreeing(x, w):
        """The sum of those contributions that are positive."""
        found = multiply(jax.nn.relu(x), jax.nn.relu(w)) + multiply(jax.nn.relu(-x), jax.nn.relu(-w))
        return found.astype(jnp.float32)

    def total(x):
        z = multiply(x, w)
        if not gamma:
            return finish(z)
        bias, scale = jax.jvp(finish, (jnp.zeros_like(z),), (jnp.ones_like(z),))
        up, down = jax.nn.relu(scale), jax.nn.relu(-scale)
        favoured = up * agreeing(x, w) + down * agreeing(x, -w) + jax.nn.relu(bias)
        return favoured if gamma == math.inf else finish(z) + gamma * favoured

    sums, pullback = jax.vjp(total, x)
    (slopes,) = pullback(relevance.astype(jnp.float32) / _stable(sums, epsilon))
    return [(product.invars[index], x.astype(jnp.float32) * slopes.astype(jnp.float32))]


def _relevance(program, values, equation, arrived, epsilon):
    """What an equation other than a layer hands back."""
    name = equation.primitive.name
    active = [i for i in program.active(equation) if is_inexact(equation.invars[i].aval)]
    operands = [values(variable) for variable in equation.invars]
    variables = [equation.invars[i] for i in active]
    if name in MOVES | MAXIMA | {"select_n"} or (name in ("max", "min") and len(active) == 2):
        return zip(variables, pull(equation, operands, arrived, active), strict=True)
    if name in SUMS:
        sums = bind(equation, operands)[0].astype(jnp.float32)
        slopes = pull(equation, operands, [arrived[0].astype(jnp.float32) / _stable(sums, epsilon)], active)
        shares = [
            operands[i].astype(jnp.float32) * slope.astype(jnp.float32) for i, slope in zip(active, slopes, strict=True)
        ]
        return zip(variables, shares, strict=True)
    if name in ELEMENTWISE and len(program.active(equation)) == 1:
        variable = equation.invars[program.active(equation)[0]]
        return [(variable, gather_to(arrived[0], variable))]
    if name in ("mul", "div"):
        first, second = equation.invars
        for value, gate in ((first, second), (second, first))[: 2 if name == "mul" else 1]:
            if _made_of(program, gate, _root(program, value)):
                return [(value, gather_to(arrived[0], value))]
    raise no_rule("lrp", equation)


def _root(program, variable):
    """What a variable is before constants are added to it and multiplied."""
    equation = program.made_by.get(variable)
    if equation is None or not _is_affine(program, equation):
        return variable
    return _root(program, equation.invars[program.active(equation)[0]])


def _made_of(program, variable, source):
    """Whether `variable` is an elementwise function of `source` alone."""
    if variable is source:
        return True
    equation = program.made_by.get(variable)
    if equation is None or equation.primitive.name not in ELEMENTWISE | REPEATS | {"select_n"}:
        return False
    return all(_made_of(program, equation.invars[i], source) for i in program.active(equation))


def _stable(sums, epsilon):
    return jnp.where(sums < 0, sums - epsilon, sums + epsilon)
