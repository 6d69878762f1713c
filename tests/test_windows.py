"""What a window changes is computed as if everything were, for less; whatever the model does on the way."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcam
from jaxcam._array import flat
from jaxcam._engine import config
from jaxcam._engine.windows import windowed
from jaxcam.attribution.occlusion import covered, drops_without
from jaxcam.models.resnet import BasicBlock, ResNet

SHAPE = (2, 40, 48, 3)
SIZE = (6, 5)
# In the corners, along the edges, at odd places inside.
STARTS = np.array([[0, 0], [34, 43], [0, 17], [13, 0], [11, 22], [20, 7], [34, 20], [7, 43]])


class Strided(nn.Module):
    """Large, strided, spread, grouped and 1x1 convolutions with every padding, and pooling of both kinds."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (7, 7), 2, padding=3)(x)) - 3
        x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        shortcut = nn.Conv(12, (1, 1), 2)(x)
        x = nn.Conv(12, (3, 3), 2, padding=((0, 1), (1, 0)))(nn.silu(nn.Conv(8, (3, 3), kernel_dilation=2)(x)))
        x = nn.relu(x + shortcut)
        x = nn.Conv(12, (2, 3), padding="VALID", feature_group_count=4)(nn.avg_pool(x, (2, 2), (1, 1), "SAME"))
        return nn.Dense(5)(x.mean((1, 2)))


class Dense(nn.Module):
    """Joined channels, pixels that are moved inwards, choices, and constants that differ from pixel to pixel."""

    @nn.compact
    def __call__(self, x):
        x = jnp.pad(x, ((0, 0), (1, 2), (2, 0), (0, 0)), constant_values=0.5)
        x = x + self.param("positions", nn.initializers.normal(), (1, *x.shape[1:3], 1))
        x = x * self.param("rows", nn.initializers.normal(), (1, x.shape[1], 1, 3))
        for _ in range(3):
            new = nn.Conv(4, (3, 3), padding="VALID" if x.shape[-1] > 8 else "SAME")(jnp.where(x > 0.1, x, 0.2 * x))
            x = jnp.concatenate([x, new], -1) if new.shape[1] == x.shape[1] else new
        return nn.Dense(5)(jnp.clip(x, -2, 2).mean((1, 2)))


class Normalised(nn.Module):
    """Normalisation and dense layers over channels, as in ConvNeXt; then a block that sees all pixels at once."""

    @nn.compact
    def __call__(self, x):
        x = nn.LayerNorm()(nn.Conv(8, (4, 4), 4, padding="VALID")(x))
        x = x + nn.Dense(8)(nn.gelu(nn.Dense(16)(nn.LayerNorm()(nn.Conv(8, (3, 3), feature_group_count=8)(x)))))
        x = nn.GroupNorm(2)(nn.Conv(8, (3, 3))(x))
        gates = nn.sigmoid(nn.Dense(8)(x.mean((1, 2))))
        x = nn.Conv(8, (3, 3))(x * gates[:, None, None])
        x = x.reshape(len(x), -1, 8)
        x = nn.softmax(x @ x.mT) @ x
        return nn.Dense(5)(x.mean(1))


# And the share of a forward pass that windows of these sizes leave to be computed, at most.
MODELS = [
    (Strided(), 0.1),
    (Dense(), 0.01),
    (Normalised(), 0.7),
    (ResNet((1, 1), BasicBlock, num_classes=5, width=4, stem="imagenet"), 0.4),
]


@pytest.fixture(scope="module", params=MODELS, ids=lambda each: type(each[0]).__name__)
def model(request):
    """A model none of whose biases is zero, so that what lies outside of the image is not what lies inside."""

    module, share = request.param

    @jax.jit
    def variables(key):
        leaves, structure = jax.tree.flatten(module.init(key, jnp.zeros(SHAPE)))
        keys = jax.random.split(key, len(leaves))
        leaves = [leaf + 0.1 * abs(jax.random.normal(key, leaf.shape)) for key, leaf in zip(keys, leaves, strict=True)]
        return jax.tree.unflatten(structure, leaves)

    return jax.jit(partial(module.apply, variables(jax.random.key(0)))), share


@pytest.fixture(scope="module")
def altered():
    """Images, and copies of which one window each was replaced."""
    images, other = jax.random.normal(jax.random.key(2), (2, *SHAPE))
    return images, jnp.arange(len(STARTS)), with_windows(images, other, STARTS, SIZE)


def with_windows(images, other, starts, size):
    """Copies `[n, m, *space, c]` of images; of the other ones there is what lies in the windows."""
    mask = np.zeros((len(starts), *images.shape[1:-1], 1), bool)
    for each, start in zip(mask, starts, strict=True):
        each[tuple(slice(first, first + length) for first, length in zip(start, size, strict=True))] = True
    return jnp.where(mask, other[:, None], images[:, None])


def test_changed_windows_give_what_the_whole_images_give_for_less(model, altered):
    (function, share), (images, window, changed) = model, altered

    @jax.jit
    def run(window, changed):
        return windowed(function, images, STARTS, SIZE)[1](window, changed)

    local, once, whole = (
        each.lower(*given).compile()
        for each, given in ((run, (window, changed)), (function, [images]), (function, [flat(changed)]))
    )
    result = local(window, changed)
    np.testing.assert_allclose(result, whole(flat(changed)), rtol=1e-5, atol=1e-5)
    assert abs(result.reshape(2, len(STARTS), -1) - once(images)[:, None]).max(2).min() > 1e-4  # every window matters
    local, once, whole = (each.cost_analysis()["flops"] for each in (local, once, whole))
    assert local < once + share * whole


def test_windows_of_the_whole_image(model, altered):
    (function, _), (images, window, changed) = model, altered
    run = jax.jit(windowed(function, images, np.zeros((1, 2), int), SHAPE[1:3])[1])
    np.testing.assert_allclose(run(0 * window, changed), function(flat(changed)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "mixed",
    [
        lambda x: x.sum(1),
        lambda x: jnp.einsum("nhwc,hk->nwck", x, jnp.eye(6) + 1),
        lambda x: jnp.broadcast_to(x.sum(3)[:, :, None], x.shape),
        lambda x: jnp.concatenate([x, x], 1)[:, 3:9],
        lambda x: jnp.einsum("nhwc,k->nhwck", jnp.sum(x, ()), jnp.arange(3.0)),
    ],
    ids=["sum", "product", "broadcast", "joined", "nothing summed"],
)
def test_rows_and_columns_are_not_told_by_their_length(mixed):
    images, other = jax.random.normal(jax.random.key(0), (2, 1, 6, 6, 6))
    changed = images.at[:, 4:, 1:3].set(other[:, 4:, 1:3])
    weights = jax.random.normal(jax.random.key(1), jax.eval_shape(mixed, images).shape)

    def function(images):
        return (jnp.sin(mixed(images)) * weights).reshape(1, -1).sum(1)

    _, run = windowed(function, images, np.array([[4, 1]]), (2, 2))
    np.testing.assert_allclose(run(jnp.zeros(1, int), changed[:, None]), function(changed), rtol=1e-4)


@jax.custom_vjp
def rounded(x):
    return jnp.round(x)


rounded.defvjp(lambda x: (jnp.round(x), None), lambda _, change: (2 * change,))


@pytest.mark.parametrize("own", [rounded, jax.lax.stop_gradient, nn.relu])
def test_derivatives_are_those_of_the_function(own, altered):
    images, window, changed = altered
    weights = jax.random.normal(jax.random.key(0), (3,))

    def function(images):
        return nn.avg_pool(own(4 * jnp.where(images > 0.3, 0, images)), (3, 3), (2, 2)).mean((1, 2))

    def of_windows(changed):
        return (jnp.sin(windowed(function, images, STARTS, SIZE)[1](window, changed)) * weights).sum()

    result = jax.jit(jax.grad(of_windows))(changed)
    expected = jax.jit(jax.grad(lambda changed: (jnp.sin(function(flat(changed))) * weights).sum()))(changed)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    "other",
    [lambda x, n: jnp.sin(x) if n > 2 else x, lambda x, n: x * (2.0 if n > 2 else 3.0)],
    ids=["steps", "numbers"],
)
def test_another_program_for_another_number_of_images(other, altered):
    images, window, changed = altered

    def function(images):
        return other(images, len(images)).mean((1, 2))

    _, run = windowed(function, images, STARTS, SIZE)
    np.testing.assert_allclose(run(window, changed), function(flat(changed)), rtol=1e-6)


def test_outputs_that_are_numbers_types_without_infinity_and_wide_indices(altered):
    images, window, changed = altered
    small = images.astype(jnp.float8_e4m3fn), changed.astype(jnp.float8_e4m3fn)

    def function(images):
        return nn.max_pool(images, (3, 3), (2, 2), "SAME").astype(jnp.float32).mean((1, 2)), 2.0

    result, number = windowed(function, small[0], STARTS, SIZE)[1](window, small[1])
    np.testing.assert_allclose(result, function(flat(small[1]))[0], rtol=1e-5)
    assert number == 2
    with jax.enable_x64(True):
        run = windowed(function, images, STARTS, SIZE)[1]
        result, _ = run(jnp.asarray(window, jnp.int32), changed)
        np.testing.assert_allclose(result, function(flat(changed))[0], rtol=1e-5)


@pytest.mark.parametrize("targets, chunk_size", [(None, 1), (None, 2), ((2, 0, 1), 2), ((2, 0, 1), 50)])
def test_occlusion_is_the_same_for_any_chunk(targets, chunk_size):
    def function(images):
        return (nn.avg_pool(images, (5, 5), (3, 3), "SAME") ** 2).mean((1, 2))

    images = jax.random.normal(jax.random.key(3), (3, *SHAPE[1:]))
    options = {"baseline": 1.0, "window": 16, "stride": 12}
    classes = np.asarray(function(images).argmax(-1)) if targets is None else np.array(targets)
    result = jaxcam.occlusion(function, images, targets and classes, chunk_size=chunk_size, **options)
    rows, columns = covered(40, 16, 12), covered(48, 16, 12)
    expected = np.zeros(images.shape[:3])
    for row in rows:
        for column in columns:
            mask = row[:, None] * column
            logits = function(jnp.where(mask[..., None] > 0, 1.0, images))
            drop = np.take_along_axis(np.asarray(function(images) - logits), classes[:, None], 1)
            expected += drop[:, :, None] * mask / (rows.sum(0)[:, None] * columns.sum(0))
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)


# --- Other axes of space, rows of images, and the plain route ---


class AnySpace(nn.Module):
    """Convolutions and pooling along as many axes as there are."""

    @nn.compact
    def __call__(self, x):
        rank = x.ndim - 2
        x = nn.relu(nn.Conv(6, (3,) * rank, 2)(x))
        x = nn.max_pool(x, (3,) * rank, (2,) * rank, padding=((1, 1),) * rank) + 1
        x = nn.LayerNorm()(nn.Conv(8, (3,) * rank)(x))
        return nn.Dense(5)(x.mean(range(1, rank + 1)))


SPACES = {1: (200,), 2: (40, 48), 3: (24, 24, 32)}
in_all_spaces = pytest.mark.parametrize("space", SPACES.values(), ids=["signals", "images", "volumes"])


@in_all_spaces
def test_windows_of_signals_and_volumes(space):
    images, other = jax.random.normal(jax.random.key(0), (2, 2, *space, 3))
    module, size = AnySpace(), (4,) * len(space)
    function = jax.jit(partial(module.apply, module.init(jax.random.key(1), images)))
    starts = np.array([[0] * len(space), [side - 4 for side in space], [side // 3 for side in space]])
    window, changed = jnp.arange(3), with_windows(images, other, starts, size)
    run = jax.jit(lambda *given: windowed(function, images, starts, size)[1](*given))
    np.testing.assert_allclose(run(window, changed), function(flat(changed)), rtol=1e-5, atol=1e-5)
    local, whole = (
        each.lower(*given).compile().cost_analysis()["flops"]
        for each, given in ((run, (window, changed)), (function, [flat(jnp.repeat(changed, 8, 1))]))
    )
    assert local < whole / 8


@in_all_spaces
def test_occlusion_without_rewriting_is_the_same(space, monkeypatch):
    images = jax.random.normal(jax.random.key(0), (2, *(side // 2 for side in space), 3))
    module = AnySpace()
    model = jaxcam.tap(module, module.init(jax.random.key(1), images), "Conv_0")
    result = jaxcam.occlusion(model, images)
    monkeypatch.setattr(config, "rewrite", False)
    plain = jaxcam.occlusion(model, images)
    assert result.shape == images.shape[:-1] and result.dtype == jnp.float32
    np.testing.assert_allclose(result, plain, rtol=1e-4, atol=1e-6)


def test_rows_of_images_go_with_their_windows():
    """What the model takes besides the images, and what the score carries, has a row for each image."""
    images, offsets = jax.random.normal(jax.random.key(0), (3, 12, 16, 3)), jax.random.normal(jax.random.key(1), (3, 5))
    weights = jax.random.normal(jax.random.key(2), (3, 3, 3, 5))

    def function(weights, images, offsets):
        x = jax.lax.conv_general_dilated(images, weights, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return jnp.tanh(nn.relu(x + offsets[:, None, None]) * x.shape[1]).mean((1, 2))

    def explain(images, offsets, others):
        model = jaxcam.tap(function, weights, context=offsets)
        return jaxcam.occlusion(model, images, 1, score=jaxcam.score.contrast(others), window=4, chunk_size=6)

    others = jnp.array([0, 2, 4])
    together = explain(images, offsets, others)
    for index in range(3):
        alone = explain(*(each[index : index + 1] for each in (images, offsets, others)))
        np.testing.assert_allclose(together[index], alone[0], rtol=1e-4, atol=1e-6)


def test_drops_of_each_window():
    """One for each choice of a window along each axis, in their order; rows of the score are repeated."""
    images, weights = jax.random.normal(jax.random.key(0), (2, 2, 6, 9, 1))
    sides = covered(6, 2, 2), covered(9, 4, 3)

    drops = drops_without(lambda x: x.sum(3), images, jnp.zeros(2, int), weights, sides, lambda x, _: x.sum((1, 2)), 4)
    expected = jnp.einsum("nyxc,ay,bx->nab", images - weights, *sides)
    np.testing.assert_allclose(drops, expected, rtol=1e-4, atol=1e-5)


def test_images_too_small_for_the_model(as_user):
    def model(images):
        return nn.avg_pool(images, (2, 2), (2, 2)).mean((1, 2))

    with pytest.raises(ValueError, match="Images of 1 x 5 pixels are too small for this model"):
        jaxcam.occlusion(model, jnp.ones((2, 1, 5, 3)))
