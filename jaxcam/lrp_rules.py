"""Rules and composites of relevance propagation: how one layer hands back relevance, and which layer takes which rule.

A layer is the affine map `z = x w + b`, with the BatchNorm and all other constants that follow it folded into `w` and
`b`. Every rule is a choice of inputs, weights and bias that take their places in `x w / z`; `Contributions.share` is
that quotient, and a rule its formula. A composite is any function from a `Layer` to a rule; the usual ones are a table.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import relu

STABILIZER = 1e-6


def stable(sums, epsilon):
    """A denominator, kept from zero by `epsilon` of its own sign."""
    return jnp.where(sums < 0, sums - epsilon, sums + epsilon)


class Layer(NamedTuple):
    """What a composite decides by.

    Attributes:
      name: of the layer in the model, such as `"layer1.0.conv1"`: the program's `jax.named_scope`s, which Linen sets
        for every module, less a first one that all layers share; empty where there is none.
      kind: `"convolution"` (or a matrix product of every cell of a map with as many axes as the images, a 1x1 one) or
        `"dense"`.
      index: its place among the layers, from 0.
      first: whether its input is the image, with no layer before it.
      shape: of its weights.
    """

    name: str
    kind: str
    index: int
    first: bool
    shape: tuple[int, ...]


class Contributions(NamedTuple):
    """What a rule computes with: a layer's input `x`, weights `w`, bias `b` and output `z`, and its relevance.

    Attributes:
      relevance: of the output, of the shape of `z`.
      multiply: `(x, w) -> x w`, the convolution or matrix product.
      positive: whether no input is negative, as after a ReLU: half of the products below are zero then.
    """

    x: Any
    w: Any
    b: Any
    z: Any
    relevance: Any
    multiply: Callable
    positive: bool

    def share(self, pairs, bias, relevance=None, *, stabilizer=STABILIZER, sums=None) -> Any:
        """`sum_k x_k w_k / (sum_k x_k w_k + bias) relevance` over pairs `(x_k, w_k)`, of the shape of the input."""
        inputs, weights = zip(*pairs, strict=True)

        def total(*inputs):
            return sum(self.multiply(x, w).astype(jnp.float32) for x, w in zip(inputs, weights, strict=True)) + bias

        found, pullback = jax.vjp(total, *inputs)
        relevance = self.relevance if relevance is None else relevance
        slopes = pullback(relevance / stable(found if sums is None else sums, stabilizer))
        return sum(x.astype(jnp.float32) * slope.astype(jnp.float32) for x, slope in zip(inputs, slopes, strict=True))

    @property
    def agreeing(self) -> list:
        """The pairs that contribute positively."""
        pairs = [(relu(self.x), relu(self.w)), (-relu(-self.x), -relu(-self.w))]
        return pairs[: 1 if self.positive else 2]

    @property
    def opposing(self) -> list:
        """The pairs that contribute negatively."""
        pairs = [(relu(self.x), -relu(-self.w)), (-relu(-self.x), relu(self.w))]
        return pairs[: 1 if self.positive else 2]


Rule = Callable[[Contributions], jax.Array]


class Epsilon(NamedTuple):
    """`R_i = sum_j x_i w_ij / (z_j + epsilon sign(z_j)) R_j`; larger values of `epsilon` absorb weak relevance.

    Reference: Bach et al. 2015, https://doi.org/10.1371/journal.pone.0130140
    """

    epsilon: float = STABILIZER

    def __call__(self, layer: Contributions):
        return layer.share([(layer.x, layer.w)], layer.b, stabilizer=self.epsilon, sums=layer.z)


class Gamma(NamedTuple):
    """Contributions of the sign of `z_j` count `1 + gamma` times: the generalised gamma rule, for inputs of any sign.

    `R_i = sum_j (c_ij + gamma c_ij^s) / (z_j + gamma z_j^s) R_j` with `c_ij = x_i w_ij`, of which `c^s` is the part and
    `z^s` the sum of the parts and the bias's, whose sign is that of `z_j`. So no denominator crosses zero.

    Reference: Montavon et al. 2019, https://doi.org/10.1007/978-3-030-28954-6_10; Andéol et al. 2021,
    https://arxiv.org/abs/2106.04149
    """

    gamma: float = 0.25
    stabilizer: float = STABILIZER

    def __call__(self, layer: Contributions):
        b, z, relevance = layer.b, layer.z, layer.relevance

        def favouring(pairs, bias, where):
            pairs = [(x, layer.w + self.gamma * w) for x, w in pairs]
            relevant = jnp.where(where, relevance, 0)
            return layer.share(pairs, b + self.gamma * bias, relevant, stabilizer=self.stabilizer)

        return favouring(layer.agreeing, relu(b), z > 0) + favouring(layer.opposing, -relu(-b), z < 0)


class AlphaBeta(NamedTuple):
    """`R_i = sum_j (alpha c_ij^+ / z_j^+ - beta c_ij^- / z_j^-) R_j` with `alpha - beta = 1`.

    Reference: Bach et al. 2015, https://doi.org/10.1371/journal.pone.0130140
    """

    alpha: float = 2.0
    beta: float = 1.0
    stabilizer: float = STABILIZER

    def __call__(self, layer: Contributions):
        for_it = layer.share(layer.agreeing, relu(layer.b), stabilizer=self.stabilizer)
        if not self.beta:
            return self.alpha * for_it
        return self.alpha * for_it - self.beta * layer.share(
            layer.opposing, -relu(-layer.b), stabilizer=self.stabilizer
        )


class ZPlus(NamedTuple):
    """`R_i = sum_j c_ij^+ / z_j^+ R_j`: only positive contributions count; alpha 1, beta 0.

    Reference: Montavon et al. 2017, https://doi.org/10.1016/j.patcog.2016.11.008
    """

    stabilizer: float = STABILIZER

    def __call__(self, layer: Contributions):
        return AlphaBeta(1.0, 0.0, self.stabilizer)(layer)


class WSquare(NamedTuple):
    """`R_i = sum_j w_ij^2 / (sum_i w_ij^2 + b_j^2) R_j`: for a first layer whose inputs have no bounds.

    Reference: Montavon et al. 2017, https://doi.org/10.1016/j.patcog.2016.11.008
    """

    stabilizer: float = STABILIZER

    def __call__(self, layer: Contributions):
        return layer.share([(jnp.ones_like(layer.x), layer.w**2)], layer.b**2, stabilizer=self.stabilizer)


class Flat(NamedTuple):
    """`R_i = sum_j 1 / n_j R_j` over the `n_j` inputs that `z_j` sees: relevance is spread evenly.

    Reference: Lapuschkin et al. 2019, https://doi.org/10.1038/s41467-019-08987-4
    """

    stabilizer: float = STABILIZER

    def __call__(self, layer: Contributions):
        return layer.share([(jnp.ones_like(layer.x), jnp.ones_like(layer.w))], 0.0, stabilizer=self.stabilizer)


class ZBox(NamedTuple):
    """`R_i = sum_j (x_i w_ij - low w_ij^+ - high w_ij^-) / (the sum over i) R_j`, for pixels in `[low, high]`.

    `low` and `high` are numbers, or arrays that broadcast to an image, such as `[c]`: of a normalised image,
    `(0 - mean) / deviation` and `(1 - mean) / deviation`.

    Reference: Montavon et al. 2017, https://doi.org/10.1016/j.patcog.2016.11.008
    """

    low: Any
    high: Any
    stabilizer: float = STABILIZER

    def __call__(self, layer: Contributions):
        low, high = (jnp.broadcast_to(jnp.asarray(each, layer.x.dtype), layer.x.shape) for each in self[:2])
        pairs = [(layer.x, layer.w), (low, -relu(layer.w)), (high, relu(-layer.w))]
        return layer.share(pairs, 0.0, stabilizer=self.stabilizer)


class Composite(NamedTuple):
    """Rules by the kind of layer; `first` for what sees the image itself, if it is to have one of its own."""

    convolution: Rule
    dense: Rule = Epsilon()
    first: Rule | None = None

    def __call__(self, layer: Layer) -> Rule:
        if layer.first and self.first is not None:
            return self.first
        return self.convolution if layer.kind == "convolution" else self.dense


COMPOSITES = {
    "epsilon": Composite(Epsilon()),
    "epsilon_plus": Composite(ZPlus()),
    "epsilon_plus_flat": Composite(ZPlus(), first=Flat()),
    "epsilon_gamma_box": Composite(Gamma(), first=ZBox(-3.0, 3.0)),
    "epsilon_alpha2_beta1": Composite(AlphaBeta()),
    "epsilon_alpha2_beta1_flat": Composite(AlphaBeta(), first=Flat()),
    "attn_lrp": Composite(Gamma(), Gamma(0.05)),
}
