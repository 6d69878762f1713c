"""`jaxcam.compare`: ranks and intervals by hand, what is recommended when, files, and the command."""

import json
from functools import partial

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as parquet
import pytest
from PIL import Image

import jaxcam
from jaxcam import cli, compare, metrics
from jaxcam.compare import CONTROL, USUAL, USUAL_OF_TOKENS, Comparison, _named

IMAGES = helpers.images(6)
MODEL = helpers.small()
METHODS = ["grad_cam", "saliency", "random_cam"]
ROWS = np.array([0, 1, 2, 3]), np.array([4, 5, 5, 5])  # of batches of four
CHEAP = {"methods": METHODS, "metrics": {"average_gain": {}, "deletion": {"num_steps": 4}}}


def comparison(values, better=("high",), passes=None, names=None):
    values = np.asarray(values, float)
    m, k, _ = values.shape
    passes = np.arange(1.0, m + 1) if passes is None else np.asarray(passes)
    names = names or [f"m{i}" for i in range(m)]
    return Comparison(names, [f"k{i}" for i in range(k)], list(better), values, passes, passes / 10, {})


def test_ranks_by_hand():
    """Three methods through four metrics, of which three judge; two values tie by rounding."""
    means = [[3, 3, -0.1, 9], [2, 1, 0.3, 8], [2 + 1e-7, 2, 0.2, 7]]
    values = np.repeat(np.array(means)[..., None], 5, axis=-1)
    found = comparison(values, ("high", "low", "near zero", "describes"))
    np.testing.assert_allclose(found.ranks()[:, 0], [(1 + 0 + 1) / 3, (0.25 + 1 + 0) / 3, (0.25 + 0.5 + 0.5) / 3])
    np.testing.assert_allclose(found.ranks()[:, 1:], found.ranks()[:, :1].repeat(2, 1))  # nothing to resample
    np.testing.assert_allclose(found.means()[..., 0], means)


def test_intervals_are_those_of_the_bootstrap():
    """Of the mean of normal numbers: 1.96 standard errors; what is not defined does not count."""
    values = np.random.default_rng(0).normal(size=(1, 2, 400))
    values[:, 1, 200:] = np.nan
    means = comparison(values, ("high", "high")).means()
    for index, n in enumerate((400, 200)):
        kept = values[0, index, :n]
        half = 1.96 * kept.std() / np.sqrt(n)
        np.testing.assert_allclose(means[0, index], kept.mean() + np.array([0, -half, half]), atol=0.15 * half)
    assert np.isnan(comparison(np.full((1, 1, 5), np.nan)).means()).all()


NOISE = np.random.default_rng(1).normal(size=(1, 1, 30))
CLOSE = np.concatenate([NOISE + 3, NOISE[..., ::-1] + 3.001, NOISE])


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (comparison(CLOSE[1:]), "Take `m0`: it is better than every other method on these 30 images, for 1.0 forward"),
        (
            comparison(CLOSE),
            "Take `m0`, for 1.0 forward passes: on these 30 images it cannot be told from the best",
        ),
        (comparison(CLOSE, passes=[1.2, 1, 9]), "Take `m1`, for 1.0 forward passes: the best, and none that cannot be"),
        (comparison(CLOSE, passes=[1, 1.2, 9]), "Take `m1`, for 1.2 forward passes: the best, and none"),
        (
            comparison(CLOSE, passes=[1, 9, 9], names=["eigen_cam", "a", "b"]),
            "Take `a`, for 9.0 forward passes: the best",
        ),
        (
            comparison(CLOSE, passes=[9, 1, 9], names=["a", "eigen_cam", "b"]),
            "Take `eigen_cam`, for 1.0 forward passes",
        ),
        (
            comparison(CLOSE, names=["a", "random_cam", "b"]),
            "The data do not decide: `random_cam`, which knows",
        ),
        (comparison(CLOSE[..., :4]), "The data do not decide: 4 images cannot tell methods apart"),
        (comparison(CLOSE[:1]), "Take `m0`"),
    ],
)
def test_recommendation(found, said):
    assert found.recommendation().startswith(said), found.recommendation()


def test_pairs_decide():
    """Images differ far more than methods, but one method is better on each of them."""
    values = np.concatenate([NOISE, NOISE - 0.01])
    assert comparison(values).candidates() == ["m0"]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("comparison")
    return compare(MODEL, IMAGES, batch_size=4, output=folder, **CHEAP), folder


def test_values_are_those_of_the_metrics(found):
    """In batches of four, the last of which is filled up."""
    targets = MODEL(IMAGES).argmax(-1)
    maps = jaxcam.explain(MODEL, IMAGES, targets, methods=["grad_cam", "saliency"], percentile=100)
    for index, heatmaps in enumerate(maps.values()):
        gain = metrics.average_gain(MODEL, IMAGES, heatmaps, targets)
        np.testing.assert_allclose(found[0].values[index, 0], gain, atol=1e-6)
        deletion = metrics.deletion(MODEL, IMAGES, heatmaps, targets, num_steps=4)
        np.testing.assert_allclose(found[0].values[index, 1], deletion, atol=1e-6)
    assert found[0].methods == CHEAP["methods"] and found[0].better == ["high", "low"]
    assert (found[0].passes > 0).all() and (found[0].seconds > 0).all() and not found[0].errors


def test_what_judges_several_maps_at_once(tmp_path, monkeypatch):
    """Three methods, two at a time, the last of which are filled up: the numbers of one at a time, and files of all."""
    monkeypatch.setitem(compare.__globals__, "TOGETHER", 2)
    chosen = {"methods": METHODS, "metrics": {"mu_fidelity": {"num_samples": 4}, "average_gain": {}}}
    found = compare(MODEL, IMAGES, batch_size=4, output=tmp_path, **chosen)
    targets = MODEL(IMAGES).argmax(-1)
    maps = jaxcam.explain(MODEL, IMAGES, targets, methods=METHODS, percentile=100)
    for values, heatmaps in zip(found.values[:, 0], maps.values(), strict=True):
        # Sets are drawn for each place in a batch, so the images stand where they stood.
        halves = [
            metrics.mu_fidelity(MODEL, IMAGES[rows], heatmaps[rows], targets[rows], num_samples=4) for rows in ROWS
        ]
        np.testing.assert_allclose(values, np.concatenate(halves)[:6], atol=1e-5)
    assert parquet.read_table(tmp_path / "saliency.parquet").column_names == ["image", "average_gain", "mu_fidelity"]
    again = compare(MODEL, IMAGES, batch_size=4, output=tmp_path, **chosen)
    np.testing.assert_array_equal(again.values, found.values)
    bare = compare(lambda images: MODEL(images), IMAGES, batch_size=4, **{**chosen, "methods": ["saliency"]})
    np.testing.assert_allclose(bare.values[0], found.values[1], atol=1e-4)
    with pytest.raises(ValueError, match="num_samples"):
        compare(MODEL, IMAGES, methods=METHODS, metrics={"mu_fidelity": {"num_samples": 0}, "average_gain": {}})


def test_the_table_names_everything(found):
    head, _, *rows = found[0].table().splitlines()
    assert head == "| method | mean rank ↑ | forward passes | ms an image | average_gain ↑ | deletion ↓ |"
    assert {row.split("`")[1] for row in rows} == set(METHODS)
    ranks = [float(row.split("|")[2].split("[")[0]) for row in rows]
    assert ranks == sorted(ranks, reverse=True)


def test_it_goes_on_where_it_stopped(found, monkeypatch):
    """What is there is not measured again, unless the images, the model or the settings are others."""
    before, folder = found
    table = parquet.read_table(folder / "saliency.parquet")
    assert table.column_names == ["image", "average_gain", "deletion"]
    np.testing.assert_array_equal(table["deletion"].to_numpy(), before.values[1, 1])
    assert set(json.loads(table.schema.metadata[b"jaxcam"])) == {"settings", "passes", "seconds"}
    measured = []
    measure = jaxcam.compare.__globals__["_measure"]
    monkeypatch.setitem(
        jaxcam.compare.__globals__, "_measure", lambda name, *rest: (measured.append(name), measure(name, *rest))[1]
    )
    (folder / "grad_cam.parquet").unlink()
    again = compare(MODEL, IMAGES, batch_size=4, output=folder, **CHEAP)
    np.testing.assert_array_equal(again.values, before.values)
    compare(MODEL, IMAGES.at[0].add(1), batch_size=4, output=folder, methods=["saliency"], metrics=CHEAP["metrics"])
    compare(MODEL, IMAGES, batch_size=4, output=folder, methods={"saliency": {}}, metrics=["average_gain"])
    assert measured == ["grad_cam", "saliency", "saliency"]
    (folder / "grad_cam.parquet").write_bytes(b"something else")
    with pytest.raises(ValueError, match="grad_cam.parquet' holds no comparison; choose another folder"):
        compare(MODEL, IMAGES, output=folder, **CHEAP)


def test_every_kind_of_metric():
    """Masks, sanity of the method, robustness, a twin, and a function of one's own."""
    twin = jaxcam.tap(MODEL.network.module, jax.tree.map(lambda leaf: -leaf, MODEL.variables), "late")
    chosen = {
        "pointing_game": {},
        "gini": {},
        "cascading_randomization": {},
        "label_randomization": {},
        "max_sensitivity": {"num_samples": 2},
        "own": lambda model, images, heatmaps, targets: heatmaps.mean((1, 2)),
        "least": ("low", lambda model, images, heatmaps, targets: heatmaps.mean((1, 2))),
    }
    masks = jnp.ones((2, 12, 16), bool)
    found = compare(MODEL, IMAGES[:2], 1, methods=["grad_cam"], metrics=chosen, masks=masks, twin=twin)
    assert found.better == ["high", "describes", "near zero", "near zero", "low", "high", "low"]
    assert found.values.shape == (1, 7, 2) and np.isfinite(found.values).all()
    np.testing.assert_array_equal(found.values[0, 5], found.values[0, 6])
    assert (found.values[0, 0] == 1).all()


def test_a_key_is_a_setting(tmp_path):
    """Of JAX's own type, too: another one is another method."""
    drawn = [partial(jaxcam.random_cam, key=jax.random.key(seed)) for seed in (0, 0, 1)]
    means = [
        compare(MODEL, IMAGES[:2], methods={"drawn": each}, metrics=CHEAP["metrics"], output=tmp_path).values
        for each in drawn
    ]
    assert (means[0] == means[1]).all() and (means[0] != means[2]).any()


def test_what_compares_images_sees_all_of_them():
    """However few are explained at once."""
    found = compare(MODEL, IMAGES, 1, methods=["saliency"], metrics=["sufficiency"], batch_size=2)
    maps = jaxcam.explain(MODEL, IMAGES, 1, methods=["saliency"], percentile=100)["saliency"]
    np.testing.assert_array_equal(found.values[0, 0], metrics.sufficiency(MODEL, IMAGES, maps))


def test_the_usual_methods_are_those_for_the_kind_of_model():
    tap = helpers.small()
    assert list(_named(None, tap)) == [*USUAL, CONTROL]
    of_tokens = jaxcam.tap(helpers.Small(), tap.variables, "early", reshape=jaxcam.tokens((2, 2)))
    assert list(_named(None, of_tokens)) == [*USUAL, *USUAL_OF_TOKENS, CONTROL]
    assert list(_named(None, lambda images: images)) == ["saliency", "smooth_grad", "integrated_gradients", "lrp"]


def test_a_method_that_cannot_be_run_is_left_out(as_user):
    def model(images):
        return jnp.sort(images.mean(-1).reshape(len(images), -1))[:, :4]

    found = compare(model, IMAGES, 1, methods=["saliency", "lrp", "grad_cam"], metrics=["average_gain"])
    assert found.methods == ["saliency"]
    assert "lrp has no rule for the operation 'sort'" in found.errors["lrp"]
    assert "grad_cam needs activations" in found.errors["grad_cam"]
    with pytest.raises(ValueError, match="None of the methods could be run: lrp: lrp has no rule"):
        compare(model, IMAGES, 1, methods=["lrp"], metrics=["average_gain"])


def test_a_bare_function_leaves_no_files(tmp_path):
    """Another one could take them for its own."""
    with pytest.raises(TypeError, match="output is given, and the model is a bare function"):
        compare(lambda images: MODEL(images), IMAGES, methods=["saliency"], metrics=["average_gain"], output=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"methods": ["gradcam"]}, ValueError, "Unknown method 'gradcam'. Did you mean 'grad_cam'"),
        ({"metrics": ["deletions"]}, ValueError, "Unknown metric 'deletions'. Did you mean 'deletion'"),
        ({"metrics": "deletion"}, TypeError, "metrics is 'deletion'; it must be a list of metrics"),
        ({"metrics": {"deletion": 3}}, TypeError, "The metric 'deletion' is 3; it must be a function"),
        ({"metrics": {"own": ("best", len)}}, ValueError, "own is better 'best'; that must be one of high, low"),
        ({"metrics": ["pearson"]}, ValueError, "pearson looks at two maps"),
        ({"metrics": ["pointing_game"]}, ValueError, "pointing_game needs masks"),
        ({"metrics": ["label_randomization"]}, ValueError, "label_randomization needs twin"),
        ({"metrics": ["gini"]}, ValueError, "None of the metrics says what is better"),
        ({"targets": np.zeros((6, 2), int)}, ValueError, "targets has shape (6, 2); to compare, give one class"),
        ({"batch_size": 0}, ValueError, "batch_size"),
    ],
)
def test_what_is_wrong(options, error, message):
    with pytest.raises(error) as caught:
        compare(MODEL, IMAGES, **{**CHEAP, **options})
    assert message in str(caught.value)


def test_the_command(tmp_path, capsys):
    draw = np.random.default_rng(0).integers(0, 255, (5, 32, 32, 3), np.uint8)
    for index, image in enumerate(draw):
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / "photos" / f"{index}.png")
    chosen = ["--methods", "grad_cam", "random_cam", "--metrics", "average_gain", "--model", "resnet18_cifar10"]
    command = ["compare", str(tmp_path / "photos"), *chosen, "--output", str(tmp_path / "out")]
    assert cli.main(command) == 0
    said = capsys.readouterr().out
    assert "grad_cam" in said and "mean rank" in said and ("Take " in said or "The data do not decide" in said)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"grad_cam.parquet", "random_cam.parquet", "comparison.md", "comparison.png"}
    assert (tmp_path / "out" / "comparison.md").read_text().count("`grad_cam`") >= 1
    (tmp_path / "none").mkdir()
    assert cli.main(["compare", str(tmp_path / "none")]) == 2
    assert "holds no images" in capsys.readouterr().err
