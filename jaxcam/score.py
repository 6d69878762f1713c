"""What is explained: one number per image, a function `(output, targets[n]) -> [n]` of the model's whole output.

Every method takes such a function as `score=`; the default is the logit, as in the papers. A score of your own is a
line: `lambda output, targets: output[:, 3] - output[:, 5]`. Scores that carry arrays are `jax.tree_util.Partial`s: the
arrays are arguments of the compiled program, so a new one does not compile again. An array with a row for each image is
carried as `Rows`, so that its rows follow the images wherever a method repeats them.
"""

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from jaxcam._array import Rows
from jaxcam._scores import described

__all__ = [
    "Rows",
    "box",
    "concept",
    "contrast",
    "cosine_similarity",
    "counterfactual",
    "log_probability",
    "logit",
    "margin",
    "neuron",
    "pixels",
    "probability",
]


def logit(output, targets):
    """The target class's logit, `output[targets]`; of a model that returns one number, the number itself.

    For an output `[n]` or `[n, 1]`, target 1 is the number and target 0 its negative, as of a binary classifier;
    without targets it is the number. A target out of range gives NaN, also under `jit`, where no error can be raised.

    Raises:
      ValueError: the output is not `[n, k]`, `[n, 1]` or `[n]`.

    Example:
      >>> logit(jnp.array([[1.0, 2.0]]), jnp.array([1]))
      Array([2.], dtype=float32)
    """
    return _pick(_logits(output), targets[:, None])[:, 0]


def _logits(output):
    """The output as logits `[n, k]` of classes, a single number being the logit of class 1 against class 0."""
    shape = getattr(output, "shape", None)
    if shape is None or len(shape) not in (1, 2):
        raise ValueError(
            f"The model returns {described(output)} where this score expects logits [n, k]. Pick them, such as "
            '`jaxcam.tap(..., output="logits")`, or pass a `score` that reads this output, such as score.pixels().'
        )
    if len(shape) == 2 and shape[1] != 1:
        return output
    value = output.reshape(-1, 1)
    return jnp.concatenate([-value, value], 1)


def _pick(logits, targets):
    """`logits[..., target]`, and NaN for a target out of range, where indexing would silently clamp.

    A factor of 0 / 0, not a choice: the gradient has to be NaN as well.
    """
    num_classes = logits.shape[-1]
    picked = jnp.take_along_axis(logits, jnp.clip(targets, 0, num_classes - 1), axis=-1)
    exists = ((targets >= 0) & (targets < num_classes)).astype(picked.dtype)
    return picked * (exists / exists)


def _for_softmax(output):
    """Logits whose softmax is the model's probability: a single number is that of a sigmoid, so half of it each way."""
    logits = _logits(output)
    return logits if logits is output else logits / 2


def probability(output, targets):
    """The target class's softmax probability; of a single number, its sigmoid.

    Raises:
      ValueError: the output is not `[n, k]`, `[n, 1]` or `[n]`.

    Example:
      >>> probability(jnp.array([[0.0, 0.0]]), jnp.array([1]))
      Array([0.5], dtype=float32)
    """
    return logit(jax.nn.softmax(_for_softmax(output), axis=-1), targets)


def log_probability(output, targets):
    """The logarithm of the target class's softmax probability; of a single number, of its sigmoid.

    Raises:
      ValueError: the output is not `[n, k]`, `[n, 1]` or `[n]`.

    Example:
      >>> log_probability(jnp.array([[0.0, 0.0]]), jnp.array([1]))
      Array([-0.6931472], dtype=float32)
    """
    return logit(jax.nn.log_softmax(_for_softmax(output), axis=-1), targets)


def counterfactual(output, targets):
    """The negative logit: what it highlights speaks against the target class.

    Reference: Selvaraju et al. 2017, Grad-CAM, section 7, https://arxiv.org/abs/1610.02391

    Example:
      >>> counterfactual(jnp.array([[1.0, 2.0]]), jnp.array([1]))
      Array([-2.], dtype=float32)
    """
    return -logit(output, targets)


def margin(output, targets):
    """The target class's logit less the best of all others, `z_t - max_{k != t} z_k`: why this class and no other?

    Reference: Carlini and Wagner 2017, Towards Evaluating the Robustness of Neural Networks (the objective `f_6`),
    https://arxiv.org/abs/1608.04644

    Example:
      >>> margin(jnp.array([[1.0, 5.0, 3.0]]), jnp.array([1]))
      Array([2.], dtype=float32)
    """
    logits = _logits(output)
    is_target = jnp.arange(logits.shape[-1]) == targets[:, None]
    return logit(output, targets) - jnp.max(jnp.where(is_target, -jnp.inf, logits), -1)


def _carried(name: str, value, rank: int, dtype=jnp.float32):
    """The array that a score carries: of `rank` axes for all images, or of one more with a row for each."""
    array = jnp.asarray(value, dtype)
    if array.ndim not in (rank, rank + 1):
        raise ValueError(
            f"{name} has shape {array.shape}; it must have {rank} axes, for all images alike, or {rank + 1} with a row "
            "for each image."
        )
    return Rows(array) if array.ndim > rank else array


def _of_each(value):
    """What a score carries, with an axis of images in front."""
    return value.array if isinstance(value, Rows) else value[None]


def contrast(other):
    """The target class's logit less that of the class `other`, `z_t - z_other`: why this and not that?

    Args:
      other: a class, or `int[n]`, one for each image. NaN for a class beyond the last.

    Example:
      >>> contrast(0)(jnp.array([[1.0, 5.0]]), jnp.array([1]))
      Array([4.], dtype=float32)
    """
    return Partial(_contrast, _carried("other", other, 0, jnp.int32))


def _contrast(other, output, targets):
    return logit(output, targets) - logit(output, jnp.broadcast_to(_of_each(other), targets.shape))


def cosine_similarity(embedding):
    """The cosine of the angle between the model's output and an embedding, or its mean over several; no targets.

    `score = mean_m <output, e_m> / (|output| |e_m|)`. For a model that returns embeddings: what makes this image
    similar to that one, or to that text?

    Args:
      embedding: `[k]`; or `[m, k]`, several that are shared by all images; or `Rows([n, k])`, one for each image, and
        `Rows([n, m, k])`, several for each.

    Raises:
      ValueError: an embedding of another shape.

    Example:
      >>> cosine_similarity(jnp.array([0.0, 2.0]))(jnp.array([[3.0, 4.0]]), None)
      Array([0.8], dtype=float32)
    """
    array = jnp.asarray(embedding.array if isinstance(embedding, Rows) else embedding, jnp.float32)
    array = array if isinstance(embedding, Rows) else array[None]
    if array.ndim not in (2, 3):
        raise ValueError(f"embedding has shape {array.shape}; it must be [k], [m, k], or Rows of one of these.")
    array = array[:, None] if array.ndim == 2 else array
    return Partial(_cosine_similarity, Rows(array) if isinstance(embedding, Rows) else array)


def _cosine_similarity(embeddings, output, targets):
    embeddings = embeddings.array if isinstance(embeddings, Rows) else embeddings  # [1 or n, m, k]
    norms = jnp.linalg.norm(output, axis=-1)[:, None] * jnp.linalg.norm(embeddings, axis=-1)
    products = jnp.sum(output[:, None] * embeddings, axis=-1)
    return jnp.mean(products / jnp.maximum(norms, 1e-12), -1)


def concept(direction):
    """The projection of the model's output on a direction, `<output, d> / |d|`; targets play no part.

    For an output, or hidden features, `[n, k]`, in which a concept is a direction (a concept activation vector); maps
    `[n, *cells, k]` are averaged over their cells first.

    Args:
      direction: `[k]`, or `[n, k]`, one for each image.

    Reference: Kim et al. 2018, Interpretability Beyond Feature Attribution (TCAV), https://arxiv.org/abs/1711.11279

    Example:
      >>> concept(jnp.array([0.0, 2.0]))(jnp.array([[3.0, 4.0]]), None)
      Array([4.], dtype=float32)
    """
    return Partial(_concept, _carried("direction", direction, 1))


def _concept(direction, output, targets):
    direction, features = _of_each(direction), output.mean(tuple(range(1, output.ndim - 1)))
    return jnp.sum(features * direction, -1) / jnp.maximum(jnp.linalg.norm(direction, axis=-1), 1e-12)


def neuron(*index):
    """One number of the output of each image, `output[:, *index]`; targets play no part.

    For `tap.features`: the channel `k` at the cell `(y, x)` is `neuron(y, x, k)`, and `neuron(..., k)` is its sum over
    all cells.

    Example:
      >>> neuron(1)(jnp.array([[3.0, 4.0]]), None)
      Array([4.], dtype=float32)
    """
    return Partial(_Neuron(index))


class _Neuron:
    """A picture of one neuron, equal for equal places, so that it is compiled once."""

    def __init__(self, index):
        self.index = index

    def __call__(self, output, targets):
        picked = output[(slice(None), *self.index)]
        return picked.sum(tuple(range(1, picked.ndim)))

    def __eq__(self, other):
        return isinstance(other, _Neuron) and self.index == other.index

    def __hash__(self):
        return hash(self.index)


def pixels(mask=None):
    """For segmentation, output `[n, *space, k]`: the target class's logits, summed over the pixels of `mask`.

    Args:
      mask: `[*space]` for all images, or `Rows([n, *space])`, one for each; `None` counts all pixels.

    Raises:
      ValueError: an output without axes of space, or a mask of another shape.

    Reference: Vinogradova et al. 2020, Towards Interpretable Semantic Segmentation via Gradient-weighted Class
    Activation Mapping, https://arxiv.org/abs/2002.11434

    Example:
      >>> pixels()(jnp.ones((1, 2, 2, 3)), jnp.array([1]))
      Array([4.], dtype=float32)
    """
    if mask is None or isinstance(mask, Rows):
        return Partial(_pixels, mask)
    return Partial(_pixels, jnp.asarray(mask, jnp.float32))


def _pixels(mask, output, targets):
    shape = getattr(output, "shape", ())
    if len(shape) < 3:
        raise ValueError(f"The model returns {described(output)} where score.pixels expects [n, *space, k].")
    mask = jnp.ones((1, *(1,) * (len(shape) - 2))) if mask is None else _of_each(mask)
    sides = zip(mask.shape, shape, strict=False)
    if mask.ndim != len(shape) - 1 or any(here not in (1, there) for here, there in sides):
        raise ValueError(
            f"The mask of score.pixels is for {mask.shape[1:]} pixels, and the model returns {described(output)}. "
            "A mask for each image goes in as score.Rows([n, *space])."
        )
    picked = _pick(output, targets.reshape(-1, *(1,) * (len(shape) - 1)))[..., 0]
    return jnp.sum(picked * mask, axis=tuple(range(1, picked.ndim)))


def box(box, label=None, *, read=None):
    """For a detector: how well it finds one box, `max_j IoU(box, box_j) p_j[label] objectness_j` over its boxes `j`.

    With `jaxcam.rise` this is D-RISE, whose masks have 16 cells a side; any other method takes it too.

    Args:
      box: `[4]`, left, top, right and bottom edge in the units of the detector's boxes; or `[n, 4]`, one for each
        image.
      label: the class of the box, or `int[n]`; `None` is the target of each image. Class probabilities, `float[k]` or
        `[n, k]`, such as those of a detection, are compared with `p_j` by the cosine of their angle, as in D-RISE.
      read: how the model's output is read, a function to `(boxes [n, j, 4], probabilities [n, j, k], objectness
        [n, j])`; by default the output is such a tuple, a dict with these keys, or the first two alone.

    Raises:
      ValueError: an output that cannot be read so.

    Reference: Petsiuk et al. 2021, Black-box Explanation of Object Detectors via Saliency Maps (D-RISE),
    https://arxiv.org/abs/2006.03204

    Example:
      >>> found = jnp.array([[[0.0, 0, 2, 2]]]), jnp.array([[[0.2, 0.8]]]), jnp.array([[0.5]])
      >>> box(jnp.array([0.0, 0, 2, 1]), 1)(found, jnp.array([0]))
      Array([0.2], dtype=float32)
    """
    if label is not None:
        is_class = jnp.issubdtype(jnp.asarray(label).dtype, jnp.integer)
        label = _carried("label", label, 0, jnp.int32) if is_class else _carried("label", label, 1)
    return Partial(Partial(_box, read=_read_boxes if read is None else read), _carried("box", box, 1), label)


def _box(box, label, output, targets, *, read):
    boxes, probabilities, objectness = read(output)
    shares = _intersection_over_union(_of_each(box)[:, None], boxes)
    return jnp.max(shares * _likeness(probabilities, label, targets) * objectness, -1)


def _likeness(probabilities, label, targets):
    """How far each box `[n, j]` is of a class, or has the class probabilities of another one."""
    label = targets if label is None else _of_each(label)
    if jnp.issubdtype(label.dtype, jnp.integer):
        return _pick(probabilities, jnp.broadcast_to(label, targets.shape)[:, None, None])[..., 0]
    norms = jnp.linalg.norm(probabilities, axis=-1) * jnp.linalg.norm(label, axis=-1)[:, None]
    return jnp.sum(probabilities * label[:, None], -1) / jnp.maximum(norms, 1e-12)


def _read_boxes(output):
    if isinstance(output, dict) and {"boxes", "probabilities"} <= set(output):
        output = [output[name] for name in ("boxes", "probabilities", "objectness") if name in output]
    if not isinstance(output, tuple | list) or len(output) not in (2, 3) or output[0].shape[-1:] != (4,):
        raise ValueError(
            f"The model returns {described(output)} where score.box expects (boxes [n, j, 4], probabilities [n, j, k], "
            "objectness [n, j]). Say how it is read: score.box(box, label, read=lambda output: (..., ..., ...))."
        )
    boxes, probabilities, *rest = output
    return boxes, probabilities, rest[0].reshape(boxes.shape[:2]) if rest else jnp.ones(boxes.shape[:2])


def _intersection_over_union(a, b):
    """Of boxes `[..., 4]`, left, top, right, bottom."""

    def area(corners):
        return jnp.prod(jnp.maximum(corners[..., 2:] - corners[..., :2], 0), -1)

    common = jnp.concatenate([jnp.maximum(a[..., :2], b[..., :2]), jnp.minimum(a[..., 2:], b[..., 2:])], -1)
    union = area(a) + area(b) - area(common)
    return area(common) / jnp.where(union > 0, union, 1)
