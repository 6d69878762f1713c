"""The page about a run: its numbers are the table's, and whatever names hold is shown as text."""

import math
import shutil

import helpers
import jax
import numpy as np
import pytest
from PIL import Image

import jaxcam
from jaxcam import cli, dataset
from jaxcam.dataset.report import Page, mean, share

OPTIONS = {"batch_size": 8, "devices": jax.devices()[:1]}
NAMES = ("<b>cat</b>", "dog", "bird", "fish")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Ten pictures in folders for four classes, one of them broken."""
    folder = tmp_path_factory.mktemp("report")
    rng = np.random.default_rng(3)
    for index in range(10):
        place = folder / "pets" / "abcd"[index % 4] / f"{index}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (30, 40, 3), np.uint8)).save(place)
    place.write_bytes(b"<script>")
    preprocess = jaxcam.image.Preprocess(12, 12, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    options = {"methods": ["grad_cam", "saliency"], "metrics": ["average_drop", "gini"], "labels": NAMES, **OPTIONS}
    model = helpers.small(shape=(12, 12))
    return dataset.explain(model, folder / "pets", folder / "out", preprocess=preprocess, **options)


def test_numbers_are_those_of_the_table(results):
    page = Page(results, None, None)
    rows = [row for row in results.table().to_pylist() if row["error"] is None]
    right = sum(row["label"] == row["prediction"] for row in rows)
    assert f"Accuracy {right / 9:.1%}" in page.accuracy() and "9 images with a label" in page.accuracy()
    drop = np.mean([row["grad_cam_average_drop"] for row in rows])
    assert f"<td>all</td><td>9</td><td>{drop:.3g} " in page.metrics()
    best = min(rows, key=lambda row: row["grad_cam_average_drop"])
    assert f"<figcaption>{best['index']}: " in page.trust()[1].split("</figure>")[0]


def test_intervals():
    """Wilson's stays in [0, 1]; the mean's is the usual one, and knows what it cannot know."""
    assert share(0, 20).low == 0 and share(20, 20).high == 1 and 0.8 < share(20, 20).low < 0.9
    values = np.random.default_rng(0).normal(2, 3, 10_000)
    found = mean(np.append(values, np.nan))
    assert found.value == pytest.approx(values.mean())
    assert found.high - found.value == pytest.approx(1.96 * 3 / 100, rel=0.05)
    assert math.isnan(mean(np.array([1.0])).low) and math.isnan(share(0, 0).value)


def test_the_page(results, capsys):
    """One file with pictures in it, and no name that is taken for markup."""
    assert cli.main(["report", str(results.folder)]) == 0
    place = results.folder.with_name("out.html")
    assert f"report in {place}" in capsys.readouterr().out
    text = place.read_text()
    for words in ("Most trusted heatmaps: saliency", "Right predictions", "1 unreadable", "d/9.png", "&lt;b&gt;cat"):
        assert words in text or (words == "d/9.png" and "b/9.png" in text), words
    assert "<b>cat" not in text and "http" not in text and text.count("data:image/webp") > 40


def test_a_source_that_is_gone_or_another(results, tmp_path):
    folder = shutil.copytree(results.folder, tmp_path / "out")
    moved = shutil.copytree(results.folder.parent / "pets", tmp_path / "moved")
    assert "without their images" not in dataset.report(folder, source=moved).read_text()
    (moved / "a" / "0.png").unlink()
    text = dataset.report(folder, tmp_path / "page.html", source=moved).read_text()
    assert "The source is not what it was" in text and "data:image/webp" in text
    text = dataset.report(folder, tmp_path / "page.html", source=tmp_path / "nowhere").read_text()
    assert "Heatmaps are shown without their images: There is no file or folder" in text


def test_without_labels_metrics_or_results(results, tmp_path, capsys):
    model = helpers.small(shape=(12, 12))
    preprocess = jaxcam.image.Preprocess(12, 12, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    source = results.folder.parent / "pets" / "a"
    plain = dataset.explain(model, source, tmp_path / "plain", methods=["grad_cam"], preprocess=preprocess, **OPTIONS)
    text = dataset.report(plain.folder).read_text()
    assert "Accuracy" not in text and "Metrics" not in text and "<h2>Predictions</h2>" in text
    for path in (plain.folder / "done").iterdir():
        path.unlink()
    assert cli.main(["report", str(plain.folder)]) == 2
    assert "has no range that is done yet" in capsys.readouterr().err
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err
