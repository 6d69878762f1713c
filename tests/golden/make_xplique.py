"""Computes methods and metrics with Xplique, whose authors coined HSIC attribution, and writes `xplique.npz`.

    python -m pip install tensorflow-cpu tensorflow-probability tf-keras einops scipy scikit-learn
    python -m pip install opencv-python-headless matplotlib scikit-image deprecated
    git clone https://github.com/deel-ai/xplique && git -C xplique checkout 0c90fa417bf7102854afba564b8ce72470c38f08
    PYTHONPATH=xplique python tests/golden/make_xplique.py       # some seconds, after `make_authors.py`

The model, the images and the maps are those of `metrics.npz`; what is drawn was drawn by jaxcam, and stored by
`make_authors.py`.
"""

import subprocess
from importlib.metadata import version
from pathlib import Path

import numpy as np
import tensorflow as tf
import xplique
from xplique import attributions, metrics
from xplique.attributions.global_sensitivity_analysis.hsic_estimators import BinaryEstimator
from xplique.attributions.global_sensitivity_analysis.samplers import Sampler

FOLDER = Path(__file__).parent
GIVEN, DRAWN = (dict(np.load(FOLDER / f"{name}.npz")) for name in ("metrics", "authors"))
IMAGES, PREDICTED = GIVEN["images"], GIVEN["logits"].argmax(1)
MIXED = np.array([0, 1, 1])  # added to the predicted classes: one score falls and two rise where a part is shown
GRID, FRACTIONS = 4, (0.25, 0.5)


def model(images):
    features = tf.nn.relu(tf.nn.conv2d(images, GIVEN["conv"], 1, "VALID") + GIVEN["bias"])
    return tf.reshape(features, (tf.shape(images)[0], -1)) @ GIVEN["dense"]


def one_hot(targets):
    return np.eye(GIVEN["dense"].shape[1], dtype=np.float32)[targets]


def each_image(maps=None, targets=PREDICTED):
    """Arguments of Xplique for each image alone, whose metrics are means over a batch."""
    given = (IMAGES, one_hot(targets)) if maps is None else (IMAGES, one_hot(targets), maps)
    for index in range(len(IMAGES)):
        yield tuple(each[index : index + 1] for each in given)


class Given(Sampler):
    def __call__(self, dimension, nb_design):
        return DRAWN["hsic/draws"].astype(np.float32)


def hsic():
    """The kernel's width there is the median score. A constant is added to the score that makes it what it is here,
    the median distance of two scores, and changes nothing else."""
    masks, found = DRAWN["hsic/draws"].reshape(-1, GRID, GRID, 1).astype(np.float32), []
    count = len(masks)
    for image, target in each_image():
        large = tf.image.resize(masks, image.shape[1:3], method="nearest").numpy()
        scores = model(image * large).numpy()[:, target[0] > 0][:, 0]
        added = np.median(np.abs(scores[:, None] - scores)) - np.median(scores)
        explain = attributions.HsicAttributionMethod(
            lambda x, added=added: model(x) + added, GRID, count, Given(True), BinaryEstimator(), batch_size=count
        )
        estimator, seen = explain.estimator, []

        def estimate(*args, estimator=estimator, seen=seen):
            seen.append(estimator(*args))
            return seen[-1]

        explain.estimator = estimate
        explain(image, target)
        found.append(seen[0][..., 0] / count)  # a mean over one of the samples only there
    yield "hsic/xplique", found


def fidelity():
    """With sets of exactly this size, where Xplique draws each patch by itself."""
    orders = DRAWN["mu_fidelity/draws"]
    tf.random.uniform = lambda *_, **__: tf.constant((orders + 0.5) / GRID**2, tf.float32)
    for name, activation, fractions in (
        ("mu_fidelity", "softmax", FRACTIONS[:1]),
        ("sensitivity_n", None, FRACTIONS),  # a mean over sizes
    ):
        options = {"grid_size": GRID, "nb_samples": len(orders), "activation": activation}
        found = [
            np.mean([metrics.MuFidelity(model, *given, subset_percent=each, **options)(maps) for each in fractions])
            for *given, maps in each_image(GIVEN["heatmaps"])
        ]
        yield f"{name}/xplique", found


def curves():
    for name, metric in (("deletion", metrics.Deletion), ("insertion", metrics.Insertion)):
        found = [
            metric(model, *given, steps=24, activation="softmax")(maps)
            for *given, maps in each_image(GIVEN["heatmaps"])
        ]
        yield f"{name}/xplique", found


def shown():
    low, high = (each(GIVEN["heatmaps"], (1, 2), keepdims=True) for each in (np.min, np.max))
    maps, targets = (GIVEN["heatmaps"] - low) / (high - low), (PREDICTED + MIXED) % 4
    for name, metric in (
        ("average_drop", metrics.AverageDropMetric),
        ("average_gain", metrics.AverageGainMetric),
        ("average_increase", metrics.AverageIncreaseMetric),
    ):
        found = [metric(model, *given, activation="softmax")(each) for *given, each in each_image(maps, targets)]
        yield f"{name}/xplique", found


def main() -> None:
    commit = ["git", "-C", Path(xplique.__file__).parent, "rev-parse", "HEAD"]
    commit = subprocess.run(commit, capture_output=True, text=True, check=True).stdout.strip()
    libraries = [f"{each} {version(each)}" for each in ("tensorflow-cpu", "tensorflow-probability", "scipy")]
    contents = {"versions": np.array([*libraries, f"deel-ai/xplique@{commit}"])}
    for family in (hsic, curves, shown, fidelity):
        contents |= {name: np.asarray(values, np.float32) for name, values in family()}
    path = FOLDER / "xplique.npz"
    np.savez_compressed(path, **contents)
    print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
