"""Relevance propagation: the score is handed back, layer by layer, in proportion to contributions.

The model's program is traced inside the engine and walked backwards (see `_engine.program`), so a model stays as it is.
A layer is one affine map, a convolution or matrix product with what follows it (bias, BatchNorm), and takes the
rule that a composite has for it (`lrp_rules`); all else passes relevance on, or raises where no rule is known.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from jaxcam._checks import is_known, prepare
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
    softmax_parts,
    trace,
    unmoved,
)
from jaxcam._errors import shown, unknown
from jaxcam._scores import scores
from jaxcam._typing import Attributions, Images, Score, Targets
from jaxcam.lrp_rules import COMPOSITES, STABILIZER, Contributions, Layer, Rule, stable
from jaxcam.score import logit
from jaxcam.taps import Tap


def lrp(
    model: Tap | Callable,
    images: Images,
    targets: Targets = None,
    *,
    score: Score = logit,
    composite: str | Callable[[Layer], Rule] = "epsilon_plus",
) -> Attributions:
    """LRP (layer-wise relevance propagation): the score is handed back, layer by layer, in proportion to contributions.

    `relevance_i = sum_j c_ij / sum_i c_ij relevance_j`, where the layer's rule says what counts as the contribution
    `c_ij` of input `i` to output `j`: `x_i w_ij`, its positive part, or another choice.

    A layer is a convolution or a matrix product together with the biases, scales and BatchNorm that follow it, as one
    affine map. Activation functions and shuffling pass relevance on as it is, a maximum gives it to the winner, sums
    (skip connections, average pooling) share it by the epsilon rule, and a gate (`x * sigmoid(x)`) gives it to `x`.
    Transformers follow AttnLRP: of two factors that depend on the image (queries and keys, attention and values) each
    gets half, by the epsilon rule; a softmax gives `x_i (R_i - p_i sum_j R_j)` to its logits; in a LayerNorm what is
    divided by the deviation gets all.
    The relevance of an image sums to its score, less what biases and epsilon absorb, and under the z+ rule less what
    arrives where nothing contributes positively (behind a skip connection). Without biases, the others lose nothing.
    It starts from `logits * d score / d logits`, the logit itself by default.

    No ReLU is needed.

    Args:
      model: a tap or any callable `images -> output`.
      images: `float[n, *space, c]`, normalised as the model expects.
      targets: `int[n]`, one class for all, `int[n, t]` for `t` maps an image, or `None` for the predicted class.
      score: the explained scalar, `(output, targets[n]) -> [n]`; its own derivative is the usual one.
      composite: which rule a layer takes. `"epsilon"` everywhere; or epsilon for dense layers and another rule for
        convolutions (and matrix products applied to every cell of a map with as many axes as the images, which are 1x1
        convolutions): `"epsilon_plus"` z+, `"epsilon_alpha2_beta1"` alpha-beta, each also with `_flat` for the flat
        rule where the image comes in, `"epsilon_gamma_box"` gamma 0.25 and there the box rule for pixels from -3 to 3.
        `"attn_lrp"`, for vision transformers: gamma 0.25 for convolutions, 0.05 for dense layers.
        With numbers of your own: `jaxcam.lrp_rules.Composite(convolution=Gamma(0.1), dense=Epsilon(0.25))`. Or any
        function `layer -> rule` of a `jaxcam.lrp_rules.Layer`.

    Returns:
      Attributions `float32[n, *space, c]`, in units of score per unit of the normalised pixel.

    Raises:
      ValueError: an unknown composite; pixels outside of the box of `"epsilon_gamma_box"`; an operation with no rule,
        such as a sort.
      TypeError: a composite that returns no rule.

    When: dense, low-noise attributions with conservation layer by layer. Not without looking at the composite: its
    rules decide the picture, and z+ shows little of the class.

    Reference: Bach et al. 2015, On Pixel-Wise Explanations for Non-Linear Classifier Decisions by Layer-Wise Relevance
    Propagation, https://doi.org/10.1371/journal.pone.0130140; composites: Kohlbrenner et al. 2020,
    https://arxiv.org/abs/1910.09840; transformers: Achtibat et al. 2024, https://arxiv.org/abs/2402.05602

    Example:
      >>> attributions = jaxcam.lrp(model, images, composite="epsilon_gamma_box")
    """
    model, images, targets = prepare(model, images, targets)
    return _lrp_engine(model, images, targets, score=score, composite=_composite(composite, images))


def _composite(given: Any, images) -> Callable[[Layer], Rule]:
    if callable(given):
        return given  # pyright: ignore[reportReturnType]
    if given not in COMPOSITES:
        raise unknown("composite", given, COMPOSITES, "Or pass a function `layer -> rule`.")
    box: Any = COMPOSITES[given].first
    if hasattr(box, "low") and is_known(images) and images.size:
        low, high = float(images.min()), float(images.max())
        if low < box.low or high > box.high:
            raise ValueError(
                f"{given!r} takes pixels for values in [{box.low:g}, {box.high:g}], and these are in [{low:.3g}, "
                f"{high:.3g}]. Pass composite=jaxcam.lrp_rules.Composite(Gamma(), first=ZBox(low, high)) with theirs."
            )
    return COMPOSITES[given]


@engine
def _lrp_engine(model, images, targets, *, score, composite):
    program = trace(model, images)
    values = program.run(images)
    layers = _layers(program, images.ndim)

    def rule(equation, arrived):
        if equation.outvars[0] not in layers:
            return _relevance(program, values, equation, arrived)
        product, tail, layer = layers[equation.outvars[0]]
        chosen = composite(layer)
        if not callable(chosen):
            raise TypeError(
                f"The composite returns {shown(repr(chosen))} for {layer.name or f'layer {layer.index}'}; it must "
                "return a rule, such as jaxcam.lrp_rules.Epsilon()."
            )
        return [_layer_relevance(program, values, product, tail, arrived[0], chosen)]

    output = program.output(values)
    slopes = seeds(lambda output: scores(score, output, targets).sum(), output)
    starts = [
        None if slope is None else (leaf * slope).astype(jnp.float32)
        for leaf, slope in zip(jax.tree.leaves(output), slopes, strict=True)
    ]
    relevance = backward(program, starts, rule)
    return jnp.zeros_like(images, jnp.float32) if relevance is None else relevance.astype(jnp.float32)


# --- Layers -----------------------------------------------------------------------------------------------------------


def _layers(program, rank: int):
    """`{last variable: (product, tail, Layer)}`: every product, with the constants that are added and multiplied after.

    What is multiplied must be one number for each output feature, so that it can be folded into the weights.
    """
    layers, behind = {}, set()  # what a layer influences
    for equation in program.equations:
        active = program.active(equation)
        seen = any(equation.invars[i] in behind for i in active)
        is_layer = equation.primitive.name in PRODUCTS and len(active) == 1
        if is_layer:
            x, w = equation.invars[active[0]].aval, equation.invars[1 - active[0]].aval
            cells = equation.primitive.name == "conv_general_dilated" or x.ndim == rank
            kind = "convolution" if cells else "dense"
            tail = _tail(program, equation, _features(equation, active[0]))
            last = (tail or [equation])[-1].outvars[0]
            layers[last] = equation, tail, _path(equation), (kind, len(layers), not seen, w.shape)
        if seen or is_layer:
            behind.update(equation.outvars)
    whole = {path[:1] for _, _, path, _ in layers.values()}  # the name of the model, if all begin with it
    names = slice(1 if len(whole) == 1 else 0, None)
    return {
        last: (product, tail, Layer(".".join(path[names]), *facts))
        for last, (product, tail, path, facts) in layers.items()
    }


def _tail(program, product, features) -> list:
    """The equations by which constants are added to a product, and multiplied."""
    tail, last = [], product.outvars[0]
    while len(users := program.used_by.get(last, ())) == 1 and users[0] is not None:
        (equation,) = users
        if not (_is_affine(program, equation) and _is_foldable(program, equation, features)):
            break
        tail.append(equation)
        last = equation.outvars[0]
    return tail


def _path(equation) -> tuple[str, ...]:
    """The names of the modules that an equation is in, from the outermost."""
    parts = str(equation.source_info.name_stack).split("/")
    return tuple(part for part in parts if part and "(" not in part)


def _features(product, active: int) -> dict[int, int]:
    """The axes of the output that are output features of the weights, and which axis of the weights each is."""
    if product.primitive.name == "conv_general_dilated":
        numbers = product.params["dimension_numbers"]
        return {numbers.out_spec[1]: numbers.rhs_spec[0]} if active == 0 else {}
    contracting, batch = product.params["dimension_numbers"]
    free = [
        [axis for axis in range(each.aval.ndim) if axis not in (*contracting[side], *batch[side])]
        for side, each in enumerate(product.invars)
    ]
    first = len(batch[0]) + (len(free[0]) if active == 0 else 0)
    return {first + place: axis for place, axis in enumerate(free[1 - active])}


def _is_affine(program, equation):
    """Whether an equation adds a constant to its one active operand, or multiplies by one."""
    name, active = equation.primitive.name, program.active(equation)
    known = (
        name in ("add", "add_any", "sub", "mul", "neg") or is_rounding(equation) or (name == "div" and active == [0])
    )
    return known and len(active) == 1 and equation.invars[active[0]].aval.shape == equation.outvars[0].aval.shape


def _is_foldable(program, equation, features) -> bool:
    """Whether what an equation multiplies by, if it does, is the same wherever the feature is the same."""
    if equation.primitive.name not in ("mul", "div"):
        return True
    constant = equation.invars[1 - program.active(equation)[0]]
    return _varies(program, constant) <= set(features)


def _varies(program, variable) -> set[int]:
    """The axes along which a constant may differ from place to place."""
    axes = {axis for axis, size in enumerate(variable.aval.shape) if size > 1}
    equation = None if isinstance(variable, Literal) else program.made_by.get(variable)
    if not axes or equation is None:
        return axes
    inner = [_varies(program, each) for each in equation.invars if each.aval.shape]
    if equation.primitive.name == "broadcast_in_dim":
        places = equation.params["broadcast_dimensions"]
        return {places[axis] for axis in (inner[0] if inner else ())}
    return axes & set().union(*inner) if equation.primitive.name in ELEMENTWISE else axes


def _layer_relevance(program, values, product, tail, relevance, rule):
    """The layer's input, and what a rule hands back to it."""
    (index,) = program.active(product)
    operands = [values(variable) for variable in product.invars]
    x, w, z = operands[index], operands[1 - index], values(product.outvars[0])

    def multiply(x, w):
        return bind(product, replaced(operands, [index, 1 - index], [x, w]))[0]

    def finish(z):
        for equation in tail:
            inputs = [values(variable) for variable in equation.invars]
            (z,) = bind(equation, replaced(inputs, program.active(equation), [z]))
        return z.astype(jnp.float32)

    bias, scale = jax.jvp(finish, (jnp.zeros_like(z),), (jnp.ones_like(z),))
    features = _features(product, index)
    scale = scale[tuple(slice(None) if axis in features else 0 for axis in range(scale.ndim))]
    folded = w.astype(jnp.float32) * jax.lax.broadcast_in_dim(
        scale, w.shape, [features[axis] for axis in sorted(features)]
    )
    positive = _is_positive(program, product.invars[index])
    relevance = relevance.astype(jnp.float32)
    layer = Contributions(x, folded.astype(w.dtype), bias, finish(z), relevance, multiply, positive)
    return product.invars[index], rule(layer)


def _is_positive(program, variable) -> bool:
    """Whether a variable is known to be nowhere negative: after a ReLU, pooled or moved."""
    if isinstance(variable, Literal):
        return bool(np.all(np.asarray(variable.val) >= 0))
    equation = program.made_by.get(variable)
    if equation is None:
        return False
    name, operands = equation.primitive.name, equation.invars
    if name in ("logistic", "exp", "abs", "square"):
        return True
    test = any if name == "max" else all
    kept = ("max", "min", "mul", "div", "add", "add_any", "convert_element_type", "reduce_sum", "reduce_window_sum")
    return name in MOVES | MAXIMA | set(kept) and test(_is_positive(program, each) for each in operands)


# --- All else ---------------------------------------------------------------------------------------------------------


def _relevance(program, values, equation, arrived):
    """What an equation other than a layer hands back."""
    name = equation.primitive.name
    active = [i for i in program.active(equation) if is_inexact(equation.invars[i].aval)]
    operands = [values(variable) for variable in equation.invars]
    variables = [equation.invars[i] for i in active]
    if name in MOVES | MAXIMA | {"select_n"} or (name in ("max", "min") and len(active) == 2):
        return zip(variables, pull(equation, operands, arrived, active), strict=True)
    if name in SUMS or (name == "dot_general" and len(active) == 2):
        sums = bind(equation, operands)[0].astype(jnp.float32)
        relevance = arrived[0].astype(jnp.float32) / (1 if name in SUMS else 2)
        slopes = pull(equation, operands, [relevance / stable(sums, STABILIZER)], active)
        shares = [
            operands[i].astype(jnp.float32) * slope.astype(jnp.float32) for i, slope in zip(active, slopes, strict=True)
        ]
        return zip(variables, shares, strict=True)
    if name in ELEMENTWISE and len(program.active(equation)) == 1:
        variable = equation.invars[program.active(equation)[0]]
        return [(variable, gather_to(arrived[0], variable))]
    if name == "div" and (logits := _softmax_of(program, equation)) is not None:
        return [(logits, _softmax_relevance(program, values, equation, logits, arrived[0]))]
    if name in ("mul", "div"):
        first, second = equation.invars
        for value, scale in ((first, second), (second, first))[: 2 if name == "mul" else 1]:
            if _made_of(program, scale, _root(program, value)) or _only_scales(program, scale):
                return [(value, gather_to(arrived[0], value))]
        if name == "mul":
            return [(each, gather_to(arrived[0] / 2, each)) for each in (first, second)]
    raise no_rule("lrp", equation)


def _softmax_of(program, division):
    """The variable whose softmax a quotient is, or `None`: `exp(x - a) / sum(exp(x - a))`, explained as one of `x`."""
    power, _ = softmax_parts(program, division)
    if power is None:
        return None
    shifted = program.made_by.get(power.invars[0])
    return shifted.invars[0] if shifted is not None and shifted.primitive.name == "sub" else power.invars[0]


def _softmax_relevance(program, values, division, logits, relevance):
    """`x_i (R_i - p_i sum_j R_j)`: the input times its gradient, which is the first order of Taylor's series."""
    _, sums = softmax_parts(program, division)
    p, x = (values(each).astype(jnp.float32) for each in (division.outvars[0], logits))
    rest = relevance - p * relevance.sum(sums.params["axes"], keepdims=True)
    return jnp.where(p > 0, x, 0) * rest  # what a mask has set to minus infinity has no part


def _only_scales(program, variable) -> bool:
    """Whether a variable is a gate or the inverse of a norm, up to constants: the other factor is what counts."""
    equation = program.made_by.get(_root(program, unmoved(program, variable)))
    if equation is None:
        return False
    if equation.primitive.name in MOVES:
        return _only_scales(program, equation.invars[0])
    return equation.primitive.name in ("logistic", "rsqrt", "sqrt")


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
