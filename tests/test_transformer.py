"""Vision transformers: token sequences as maps, attention rollout, and every CAM method on a small ViT."""

from functools import partial

import flax.linen as nn
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxcam
from jaxcam.attribution import attention_rollout
from jaxcam.taps import tokens

GRID = (3, 4)


class Positions(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x + self.param("positions", nn.initializers.normal(0.5), (1, *x.shape[1:]))


class ClassToken(nn.Module):
    @nn.compact
    def __call__(self, x):
        token = self.param("token", nn.initializers.normal(1), (1, 1, x.shape[-1]))
        return jnp.concatenate([jnp.broadcast_to(token, (x.shape[0], 1, x.shape[-1])), x], 1)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        init = nn.initializers.normal(0.4)  # sharper attention than at the usual start
        y = nn.LayerNorm(name="norm1")(x)
        x = x + nn.MultiHeadDotProductAttention(num_heads=2, kernel_init=init, name="attention")(y)
        y = nn.gelu(nn.Dense(16, name="up")(nn.LayerNorm(name="norm2")(x)))
        return x + nn.Dense(8, name="down")(y)


class ViT(nn.Module):
    """Two blocks of width 8 on 3 x 4 patches; the head reads the class token, or the mean of the patches."""

    pool: bool = False
    block: type[nn.Module] = Block

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (4, 4), 4, name="patches")(x).reshape(x.shape[0], -1, 8)
        x = x if self.pool else ClassToken(name="class_token")(x)
        x = Positions(name="positions")(x)
        for index in range(2):
            x = self.block(name=f"block_{index}")(x)
        x = nn.LayerNorm(name="norm")(x)
        return nn.Dense(4, name="head")(x.mean(1) if self.pool else x[:, 0])


def vit(layer="block_1.norm1", reshape=None, **options):
    """A tap on a seeded ViT, by default where the class token still looks at the patches."""
    module = ViT(**options)
    variables = ViT(options.get("pool", False)).init(jax.random.key(1), helpers.images(1))
    reshape = reshape or tokens(GRID, drop=0 if options.get("pool") else 1)
    return jaxcam.tap(module, variables, layer, reshape=reshape)


METHODS = [
    (jaxcam.grad_cam, {}),
    (jaxcam.grad_cam_plus_plus, {}),
    (jaxcam.x_grad_cam, {}),
    (jaxcam.hires_cam, {}),
    (jaxcam.layer_cam, {}),
    (jaxcam.grad_cam_elementwise, {}),
    (jaxcam.smooth_grad_cam_plus_plus, {"num_samples": 2, "chunk_size": 4}),
    (jaxcam.shapley_cam, {}),
    (jaxcam.finer_cam, {"alpha": 0.5}),
    (jaxcam.random_cam, {}),
    (jaxcam.score_cam, {"chunk_size": 8}),
    (jaxcam.ss_cam, {"num_samples": 2, "chunk_size": 8, "max_channels": 3}),
    (jaxcam.is_cam, {"num_samples": 2, "chunk_size": 8, "max_channels": 3}),
    (jaxcam.ablation_cam, {"chunk_size": 8}),
    (jaxcam.eigen_cam, {}),
    (jaxcam.eigen_grad_cam, {}),
    (jaxcam.kpca_cam, {}),
    (jaxcam.fem, {"deviations": 1}),
    (jaxcam.full_grad, {}),
    (jaxcam.attention_rollout, {}),
    (jaxcam.attention_rollout, {"fusion": "max", "residual": 0.2}),
    (jaxcam.attention_relevance, {}),
    (jaxcam.le_grad, {}),
]


@pytest.mark.parametrize(("method", "options"), METHODS, ids=[method.__name__ for method, _ in METHODS])
def test_every_cam_method_explains_tokens(method, options):
    """Heatmaps of the size of the images, in range, and of each image by itself."""
    model, images = vit(), helpers.images()
    heatmaps = method(model, images, 1, **options)
    assert heatmaps.shape == (3, 12, 16) and heatmaps.dtype == jnp.float32
    assert bool(jnp.isfinite(heatmaps).all()) and float(heatmaps.min()) == 0
    np.testing.assert_allclose(heatmaps.max((1, 2)).max(), 1, rtol=1e-6)
    order = jnp.array([2, 0, 1])
    np.testing.assert_allclose(method(model, images[order], 1, **options), heatmaps[order], atol=1e-4)


def test_factorization_explains_tokens():
    heatmaps, scores = jaxcam.deep_feature_factorization(vit(), helpers.images(), 1, num_components=2)
    assert heatmaps.shape == (3, 2, 12, 16) and scores.shape == (3, 2)
    np.testing.assert_allclose(heatmaps.max((2, 3)), 1, rtol=1e-6)


def test_tokens_become_maps_row_by_row():
    sequence = jnp.arange(2 * 13 * 5.0).reshape(2, 13, 5)
    maps = tokens(GRID)(sequence)
    assert maps.shape == (2, 3, 4, 5)
    np.testing.assert_array_equal(maps[1, 2, 1], sequence[1, 1 + 2 * 4 + 1])
    np.testing.assert_array_equal(tokens(GRID, drop=0)(sequence[:, 1:]), maps)


def test_grad_cam_of_tokens_is_its_formula():
    """Activations and gradients of the model as Flax gives them, class token dropped, in NumPy."""
    model, images = vit(), helpers.images()
    _, (A,), (G,) = model.gradients(images, lambda logits: logits[:, 1].sum())
    assert A.shape == (3, 13, 8)  # the tap itself gives tokens
    A, G = np.asarray(A)[:, 1:], np.asarray(G)[:, 1:]
    expected = np.einsum("ntk,nk->nt", A, G.mean(1)).reshape(3, *GRID)
    np.testing.assert_allclose(jaxcam.grad_cam(model, images, 1, raw=True), expected, rtol=1e-4, atol=1e-6)


def test_ablation_takes_the_channel_from_all_tokens():
    model, images = vit(), helpers.images(2)
    (A,) = model.run(images)[1]
    whole, weights = model(images)[:, 1], []
    for channel in range(8):
        without = model.run(images, [jnp.zeros_like(A).at[..., channel].set(-A[..., channel])])[0][:, 1]
        weights.append((whole - without) / jnp.abs(whole))
    expected = jnp.einsum("ntk,kn->nt", A[:, 1:], jnp.stack(weights)).reshape(2, *GRID)
    found = jaxcam.ablation_cam(model, images, 1, raw=True, chunk_size=3)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)


def test_cam_of_pooled_tokens():
    """Mean pooling and one dense layer after the last norm: CAM is the dense layer on each token."""
    model, images = vit("norm", pool=True), helpers.images()
    features = model.features(images).reshape(3, *GRID, 8)
    expected = features @ model.variables["params"]["head"]["kernel"][:, 2]
    np.testing.assert_allclose(jaxcam.cam(model, images, 2, raw=True), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="'block_1.norm1' is not followed by global average pooling"):
        jaxcam.cam(vit(), images)


def test_several_token_layers_fuse():
    images, layers = helpers.images(), ("block_1.norm1", "block_0")
    raw = jaxcam.hires_cam(vit(layers), images, 1, raw=True)
    assert [each.shape for each in raw] == [(3, 3, 4), (3, 3, 4)]
    np.testing.assert_allclose(raw[1], jaxcam.hires_cam(vit("block_0"), images, 1, raw=True), atol=1e-6)


def test_full_grad_of_tokens():
    """Biases of all token layers, and of the position embedding, lie on the grid; those of the head do not."""
    contributions = jaxcam.full_grad(vit(), helpers.images(), 1, raw=True)
    shapes = [each.shape for each in contributions]
    # patches; positions; in each block norm1, query, key, value, out, norm2, up, down; norm
    assert shapes == [(3, 12, 16)] + [(3, 3, 4)] * (1 + 1 + 1 + 2 * 8 + 1) + [(3, 1, 1)]
    found = np.asarray(contributions[3])
    model, images = vit("positions"), helpers.images()
    _, _, (G,) = model.gradients(images, lambda logits: logits[:, 1].sum())
    expected = (model.variables["params"]["positions"]["positions"] * G).sum(-1)[:, 1:].reshape(3, *GRID)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)


def test_equal_tokens_do_not_recompile():
    images, traces = helpers.images(), []

    @jax.jit
    def run(model, images):
        traces.append(1)
        return jaxcam.grad_cam(model, images)

    for _ in range(2):
        run(vit(), images)
    assert len(traces) == 1
    run(vit(reshape=lambda x: tokens(GRID)(x)), images)
    assert len(traces) == 2


def test_errors_name_the_layer_and_the_way_out(as_user):
    images, model = helpers.images(), vit()
    plain = jaxcam.tap(ViT(), model.variables, "block_0")
    with pytest.raises(ValueError, match=r"'block_0' returns \(3, 13, 8\), which is not spatial.*jaxcam.tokens"):
        jaxcam.grad_cam(plain, images)
    with pytest.raises(
        ValueError, match=r"returns \(3, 13, 8\), and Tokens\(grid=\(4, 4\), drop=1\) reads \[n, 17, k\]"
    ):
        jaxcam.grad_cam(vit(reshape=tokens((4, 4))), images)
    with pytest.raises(ValueError, match="needs to know how tokens lie on the image"):
        attention_rollout(plain, images)
    small = helpers.small()
    with pytest.raises(ValueError, match="found no attention layer"):
        attention_rollout(jaxcam.tap(helpers.Small(), small.variables, "late", reshape=tokens(GRID)), images)


# --- attention rollout ---


def attention_by_hand(model, images):
    """Each block's weights from its queries and keys, as Flax captures them."""
    _, state = ViT().apply(model.variables, images, capture_intermediates=True, mutable=["intermediates"])
    for index in range(2):
        node = state["intermediates"][f"block_{index}"]["attention"]
        query, key = (np.asarray(node[name]["__call__"][0], np.float64) for name in ("query", "key"))
        logits = np.einsum("nqhd,nkhd->nhqk", query, key) / np.sqrt(query.shape[-1])
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        yield weights / weights.sum(-1, keepdims=True)


@pytest.mark.parametrize("block", [Block, nn.remat(Block)], ids=["plain", "remat"])
def test_rollout_oracle(block):
    model, images = vit(block=block), helpers.images()
    first, second = ((each.mean(1) + np.eye(13)) / 2 for each in attention_by_hand(vit(), images))
    expected = second @ first
    found = attention_rollout(model, images, raw=True)
    np.testing.assert_allclose(found, expected[:, 0, 1:].reshape(3, *GRID), rtol=1e-4)
    found = attention_rollout(model, images, raw=True, token=None)
    np.testing.assert_allclose(found, expected.mean(1)[:, 1:].reshape(3, *GRID), rtol=1e-4)
    assert np.ptp(expected[:, 0, 1:], 1).min() > 0.01  # a map, not a constant


@pytest.mark.parametrize("fusion", ["mean", "max", "min"])
@pytest.mark.parametrize("residual", [0.0, 0.3, 1.0])
def test_rollout_of_other_heads_and_residuals(fusion, residual):
    model, images = vit(), helpers.images()
    heads = [getattr(each, fusion)(1) for each in attention_by_hand(model, images)]
    steps = [residual * np.eye(13) + (1 - residual) * each for each in heads]
    first, second = (each / each.sum(-1, keepdims=True) for each in steps)
    found = attention_rollout(model, images, raw=True, fusion=fusion, residual=residual)
    np.testing.assert_allclose(found, (second @ first)[:, 0, 1:].reshape(3, *GRID), rtol=1e-4)


def test_rollout_jit_and_class():
    model, images = vit(), helpers.images()
    jitted = jax.jit(attention_rollout)(model, images)
    with jax.disable_jit():
        np.testing.assert_allclose(jitted, attention_rollout(model, images, 1), atol=1e-5)


class Attend(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.MultiHeadAttention(2, 3, 8, decode=False, rngs=rngs) for _ in range(2)])
        self.head = nnx.Linear(3, 4, rngs=rngs)

    def __call__(self, x):
        x = x.reshape(x.shape[0], -1, 3)
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x.mean(1))


def test_rollout_of_an_nnx_model():
    images, net = helpers.images(3, 3, 4), Attend(nnx.Rngs(0))
    model = jaxcam.tap(net, None, "layers.0", reshape=tokens(GRID, drop=0))
    x, steps = images.reshape(3, 12, 3), []
    for layer in net.layers:
        query, key = layer.query(x), layer.key(x)
        weights = jax.nn.softmax(jnp.einsum("nqhd,nkhd->nhqk", query, key) / jnp.sqrt(query.shape[-1]))
        steps.append((weights.mean(1) + jnp.eye(12)) / 2)
        x = x + layer(x)
    expected = (steps[1] @ steps[0]).mean(1).reshape(3, *GRID)
    np.testing.assert_allclose(attention_rollout(model, images, raw=True, token=None), expected, rtol=1e-4)
    assert not hasattr(net.layers[0], "attention_weights")  # the user's model is untouched


def test_biases_of_an_nnx_model():
    images, net = helpers.images(3, 3, 4), Attend(nnx.Rngs(0))
    model = jaxcam.tap(net, None, "layers.0", reshape=tokens(GRID, drop=0))
    contributions = jaxcam.full_grad(model, images, 1, raw=True)
    # The image; query, key, value and out twice; the head.
    assert [each.shape for each in contributions] == [(3, 3, 4)] * 9 + [(3, 1, 1)]
    np.testing.assert_allclose(contributions[-1].ravel(), jnp.broadcast_to(net.head.bias[1], (3,)))


def test_attention_inside_a_loop_is_refused():
    class Body(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return x + nn.MultiHeadDotProductAttention(num_heads=2, name="attention")(x), None

    class Looped(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dense(4)(x.reshape(x.shape[0], -1, 3))
            loop = nn.scan(Body, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
            return nn.Dense(4, name="head")(loop(name="loop")(x, None)[0].mean(1))

    images = helpers.images(2, 3, 4)
    model = jaxcam.tap(Looped(), Looped().init(jax.random.key(0), images), "head", reshape=tokens(GRID, drop=0))
    for method in (attention_rollout, jaxcam.full_grad):
        with pytest.raises(ValueError, match="inside a scan, vmap or checkpoint"):
            method(model, images)


def test_maps_are_never_taken_for_tokens():
    """An image as high as there are tokens, 16, and a layer that is called by keyword."""

    class Patches(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Conv(5, (4, 4), 4)(nn.Conv(3, (3, 3), name="stem")(x))
            x = nn.Dense(5, name="mix", bias_init=nn.initializers.normal(1))(inputs=x.reshape(len(x), -1, 5))
            return nn.Dense(3)(nn.relu(x).mean(1))

    images = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
    variables = Patches().init(jax.random.key(1), images)
    model = jaxcam.tap(Patches(), variables, "mix", reshape=jaxcam.tokens((4, 4), drop=0))
    terms = jaxcam.full_grad(model, images, 1, raw=True)
    assert [each.shape[1:] for each in terms] == [(16, 16), (16, 16), (4, 4), (4, 4), (1, 1)]
    np.testing.assert_allclose(terms[0], jaxcam.input_x_gradient(model, images, 1).sum(-1), atol=1e-6)
    np.testing.assert_allclose(sum(each.sum((1, 2)) for each in terms), model(images)[:, 1], atol=1e-5)


def test_a_layer_that_calls_its_parent_class_is_one_layer():
    class Parents(nn.MultiHeadDotProductAttention):
        @nn.compact
        def __call__(self, x, *, sow_weights=False):
            return super().__call__(x, sow_weights=sow_weights)

    class Attend(nn.Module):
        attention: type

        @nn.compact
        def __call__(self, x):
            x = nn.Conv(8, (4, 4), 4)(x).reshape(len(x), -1, 8)
            return nn.Dense(3)(self.attention(2, name="attend")(x).mean(1))

    images = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
    variables = Attend(nn.MultiHeadDotProductAttention).init(jax.random.key(1), images)
    reshape = jaxcam.tokens((4, 4), drop=0)
    for method in (partial(jaxcam.attention_rollout, token=None), jaxcam.grad_cam, jaxcam.full_grad):
        maps = []
        for attention in (nn.MultiHeadDotProductAttention, Parents):
            maps.append(method(jaxcam.tap(Attend(attention), variables, "attend", reshape=reshape), images, 1))
        np.testing.assert_allclose(*maps, atol=1e-6)
    with pytest.raises(ValueError, match="token is 16, and the sequence has 16, from 0 to 15"):
        jaxcam.attention_rollout(jaxcam.tap(Attend(Parents), variables, "attend", reshape=reshape), images, token=16)


def test_a_layer_that_the_class_token_no_longer_reads_is_said_so():
    """After the last attention the head reads the class token alone: every patch's gradient is zero."""
    images = helpers.images()
    with pytest.warns(UserWarning, match="tap the layer before it, such as the last block.s first norm"):
        np.testing.assert_array_equal(jaxcam.grad_cam(vit("block_1"), images), 0)
    assert float(jaxcam.grad_cam(vit("block_1.norm1"), images).max()) > 0.99


class OwnAttention(nn.Module):
    """Attention from one dense layer of queries, keys and values, its weights through a layer of their own."""

    @nn.compact
    def __call__(self, x):
        q, k, v = jnp.split(nn.Dense(24, name="qkv")(x).reshape(*x.shape[:2], 2, 12), 3, -1)
        weights = jax.nn.softmax(jnp.einsum("nqhd,nkhd->nhqk", q, k))
        weights = nn.Dropout(0.0, deterministic=True, name="weights")(weights)
        return jnp.einsum("nhqk,nkhd->nqhd", weights, v).reshape(*x.shape[:2], 8)


class OwnViT(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (4, 4), 4, name="patches")(x).reshape(x.shape[0], -1, 8)
        for index in range(2):
            x = x + OwnAttention(name=f"attention{index}")(x)
        return nn.Dense(4, name="head")(x.mean(1))


def test_rollout_of_an_attention_of_ones_own(as_user):
    images = helpers.images()
    variables = OwnViT().init(jax.random.key(0), images)
    model = jaxcam.tap(OwnViT(), variables, "patches", reshape=tokens(GRID, drop=0))
    with pytest.raises(ValueError, match="found no attention layer.*name the layers that return its weights"):
        attention_rollout(model, images)
    layers = ("attention0.weights", "attention1.weights")
    found = attention_rollout(model, images, raw=True, token=None, attention=layers)
    weights = jaxcam.tap(OwnViT(), variables, layers).features(images)
    first, second = ((np.asarray(each).mean(1) + np.eye(12)) / 2 for each in weights)
    np.testing.assert_allclose(found, (second @ first).mean(1).reshape(3, *GRID), rtol=1e-4)
    function = attention_rollout(model, images, raw=True, token=None, attention=lambda model, images: weights)
    np.testing.assert_allclose(function, found, rtol=1e-5)


# --- attention with its gradient ---


class Watched(nn.Module):
    """A block of `OwnAttention` whose weights take a perturbation, so that Flax itself has their gradient."""

    @nn.compact
    def __call__(self, x):
        q, k, v = jnp.split(nn.Dense(24, name="qkv")(x).reshape(*x.shape[:2], 2, 12), 3, -1)
        weights = self.perturb("weights", jax.nn.softmax(jnp.einsum("nqhd,nkhd->nhqk", q, k)))
        x = x + jnp.einsum("nhqk,nkhd->nqhd", weights, v).reshape(*x.shape[:2], 8)
        return x + nn.Dense(8, name="mlp")(nn.gelu(x))


class WatchedViT(nn.Module):
    @nn.compact
    def __call__(self, x, read=None):
        """The logits and the tokens after each block; or with `read`, the logits of these tokens."""
        x = nn.Conv(8, (4, 4), 4, name="patches")(x).reshape(x.shape[0], -1, 8)
        x, found = Positions(name="positions")(ClassToken(name="class_token")(x)), []
        for index in range(3):
            x = Watched(name=f"block_{index}")(x)
            found.append(x)
        x = x if read is None else found[read]
        return nn.Dense(4, name="head")(nn.LayerNorm(name="norm")(x)[:, 0])


@pytest.fixture(scope="module")
def watched():
    """The variables, and the attention of each block with the gradient of class 1 read out after block `read`."""
    images = helpers.images()
    state = WatchedViT().init(jax.random.key(3), images)

    def by_hand(read):
        def total(zeros):
            return WatchedViT().apply({"params": state["params"], "perturbations": zeros}, images, read)[:, 1].sum()

        gradients = jax.grad(total)(state["perturbations"])
        _, captured = WatchedViT().apply({"params": state["params"]}, images, capture_intermediates=True)
        captured, weights = captured["intermediates"], []
        for index in range(3):
            dense = captured[f"block_{index}"]["qkv"]["__call__"][0]
            q, k, _ = np.split(np.asarray(dense, np.float64).reshape(3, 13, 2, 12), 3, -1)
            logits = np.exp(np.einsum("nqhd,nkhd->nhqk", q, k))
            weights.append(logits / logits.sum(-1, keepdims=True))
        return weights, [np.asarray(gradients[f"block_{index}"]["weights"], np.float64) for index in range(3)]

    return {"params": state["params"]}, images, by_hand


BLOCKS = ("block_0", "block_1", "block_2")


def test_attention_relevance_by_its_formula(watched):
    """`R + relu(A * G) R` from the first block to the last, as in the authors' notebook."""
    variables, images, by_hand = watched
    expected = np.eye(13)
    for weights, gradient in zip(*by_hand(2), strict=True):
        expected = expected + np.maximum(weights * gradient, 0).mean(1) @ expected
    model = jaxcam.tap(WatchedViT(), variables, "block_1", reshape=tokens(GRID))
    found = jaxcam.attention_relevance(model, images, 1, raw=True)
    expected = expected[:, 0, 1:].reshape(3, *GRID)
    np.testing.assert_allclose(found, expected, atol=1e-5 * expected.max())
    assert not np.allclose(found, jaxcam.attention_relevance(model, images, 2, raw=True), rtol=0.1)
    both = jaxcam.attention_relevance(model, images, jnp.array([[1, 2]] * 3), raw=True)
    np.testing.assert_allclose(both[:, 0], found, atol=1e-5 * expected.max())


def test_le_grad_by_its_formula(watched):
    """The tokens after each block go through the norm and the head; its own attention alone counts."""
    variables, images, by_hand = watched
    expected = np.mean([np.maximum(by_hand(index)[1][index], 0).mean((1, 2)) for index in range(3)], 0)
    model = jaxcam.tap(WatchedViT(), variables, BLOCKS, reshape=tokens(GRID))
    found = jaxcam.le_grad(model, images, 1, raw=True)
    np.testing.assert_allclose(found, expected[:, 1:].reshape(3, *GRID), atol=1e-5 * expected.max())
    heatmaps = jax.jit(jaxcam.le_grad)(model, images, 1)
    assert heatmaps.shape == (3, 12, 16) and heatmaps.max() == 1


def test_attention_that_flax_computes_is_found_too():
    """Of MultiHeadDotProductAttention, inside `remat` as well; the gradient of what it returns says the same."""
    images = helpers.images()
    plain, inside = (jaxcam.attention_relevance(vit(block=each), images, 1) for each in (Block, nn.remat(Block)))
    np.testing.assert_allclose(inside, plain, atol=1e-5)
    own = jaxcam.tap(OwnViT(), OwnViT().init(jax.random.key(0), images), "patches", reshape=tokens(GRID, drop=0))
    assert float(jaxcam.attention_relevance(own, images, 1, token=None).max()) == 1


def test_errors_of_attention_with_its_gradient(as_user, watched):
    variables, images, _ = watched
    small = helpers.small()
    plain = jaxcam.tap(helpers.Small(), small.variables, "late", reshape=lambda x: x)
    with pytest.raises(ValueError, match="attention_relevance found no attention in the model: no softmax"):
        jaxcam.attention_relevance(plain, images, 1)
    with pytest.raises(ValueError, match="le_grad needs to know how tokens lie on the image"):
        jaxcam.le_grad(helpers.small(), images, 1)
    model = jaxcam.tap(WatchedViT(), variables, ("positions", "block_2"), reshape=tokens(GRID))
    with pytest.raises(ValueError, match="le_grad found no attention in the model before the layer 'positions'"):
        jaxcam.le_grad(model, images, 1)
    model = jaxcam.tap(WatchedViT(), variables, ("block_1.mlp", "block_1.qkv"), reshape=tokens(GRID))
    with pytest.raises(ValueError, match="le_grad reads the tokens of one layer as those of another"):
        jaxcam.le_grad(model, images, 1)
    with pytest.raises(ValueError, match="token is 13, and the sequence has 13"):
        jaxcam.attention_relevance(jaxcam.tap(WatchedViT(), variables, BLOCKS, reshape=tokens(GRID)), images, token=13)
    with pytest.raises(ValueError, match="residual is 2; it must be at least 0 and at most 1"):
        attention_rollout(vit(), images, residual=2)
    with pytest.raises(ValueError, match="Unknown fusion 'men'. Did you mean 'mean'"):
        attention_rollout(vit(), images, fusion="men")
