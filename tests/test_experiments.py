"""Every study runs from start to end in smoke mode and leaves what it promises."""

import argparse
import importlib.util
import json
from functools import partial

import numpy as np
import pytest
from PIL import Image

import jaxcam
from experiments import _pasted, _report, _statistics, _study, photos, sanity, similarity, transport

STUDIES = {
    "train_cifar10": ["table.md", "curves.png", "resnet18_cifar10.safetensors", "resnet18_cifar10.json"],
    "similarity": ["table.md", "examples.png", "accuracy-pearson.png", "accuracy-iou.png"],
    "bias": ["table.md", "examples-4px.png", "found-grad_cam.png", "faithful-others.png"],
    "leaderboard": ["table.md", "table.csv", "quality-against-cost.png", "pasted.jpg"],
    "sanity": ["table.md", "sanity.png"],
    "transport": ["table.md", "examples.png", "groups.png", "stability.png", "photos.png"],
    "compare_pytorch": ["table.md", "maps.png"],
    "photos": ["table.md", "overview.jpg", "index.html", "01-chelsea.jpg"],
    "mistakes": ["table.md", "confusion.png", "spread.png", "examples.png", "mistakes.png", "disagreement.png"],
}


NEEDS = {"compare_pytorch": ("torch", "captum", "pytorch_grad_cam")}


@pytest.fixture(scope="module")
def photo_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)).save(folder / "noise.png")
    return folder


@pytest.fixture(scope="module", params=STUDIES)
def finished(request, tmp_path_factory, photo_folder):
    """Each study; the leaderboard without CIFAR-10, on which `sanity` calls the same functions."""
    if not all(map(importlib.util.find_spec, NEEDS.get(request.param, ()))):
        pytest.skip('needs the PyTorch libraries: pip install -e ".[torch]"')
    output = tmp_path_factory.mktemp(request.param)
    given = {"transport": ["--photos", str(photo_folder)], "leaderboard": ["--data", "shapes", "photographs"]}
    main = partial(run, request.param, ["--smoke", "--output", str(output), *given.get(request.param, [])])
    main()
    return request.param, main, output


def run(name, arguments):
    importlib.import_module(f"experiments.{name}").main(arguments)


def test_it_writes_what_it_promises(finished):
    name, _, output = finished
    for file in STUDIES[name]:
        assert (output / file).stat().st_size > 0
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["settings"]["smoke"] is True
    assert metrics["device"] and set(metrics["versions"]) >= {"python", "jax", "flax"}


def test_it_resumes(finished, capsys):
    """A second run finds everything done, and ends in the same numbers."""
    name, main, output = finished
    before = json.loads((output / "metrics.json").read_text())
    capsys.readouterr()
    main()
    assert json.loads((output / "metrics.json").read_text()) == before
    assert "epoch   1" not in capsys.readouterr().out


def test_the_trained_model_loads(finished):
    name, _, output = finished
    if name == "train_cifar10":
        about = json.loads((output / "resnet18_cifar10.json").read_text())
        classifier = jaxcam.load(output / "resnet18_cifar10.safetensors", architecture="resnet18")
        assert classifier.module.width == about["width"] and classifier.labels == tuple(about["labels"])
        assert classifier.about["sha256"] == about["sha256"]


def test_effect_counts_pairs():
    rng = np.random.default_rng(0)
    ones, others = rng.integers(1, 9, 40), rng.integers(0, 8, 60)  # with ties, of which each side gets half
    found = _statistics.effect(ones, others)
    pairs = (ones[:, None] > others) + 0.5 * (ones[:, None] == others)
    assert found["auc"]["mean"] == pytest.approx(pairs.mean())
    assert found["cohen_d"]["mean"] == pytest.approx((ones.mean() - others.mean()) / 2.3, abs=0.1)
    resampled = ((rng.choice(ones, 40), rng.choice(others, 60)) for _ in range(500))  # the bootstrap's error
    again = [_statistics.effect(*each) for each in resampled]
    for name, value in found.items():
        spread = np.std([each[name]["mean"] for each in again])
        assert value["interval"] == pytest.approx(1.96 * spread, rel=0.15), name


def test_intervals_cover_the_mean_as_often_as_they_say():
    rng = np.random.default_rng(0)
    drawn = [_statistics.over_images(rng.exponential(1, 50)) for _ in range(400)]
    covered = np.mean([abs(each["mean"] - 1) <= each["interval"] for each in drawn])
    assert 0.89 < covered < 0.97  # of a skewed distribution, by 50 of its values: somewhat too few
    rest = {"std": 1.0, "interval": 0.3, "count": 50}
    found = [_statistics.over_seeds([{"mean": each, **rest} for each in rng.normal(2, 0.1, 3)]) for _ in range(400)]
    assert 0.92 < np.mean([abs(each["mean"] - 2) <= each["runs_interval"] for each in found]) < 0.98
    others = rng.normal(2, 0.1, 400)  # one more run
    assert (
        0.92
        < np.mean([abs(each["mean"] - o) <= each["next_run"] for each, o in zip(found, others, strict=True)])
        < 0.98
    )
    assert found[0]["interval"] == pytest.approx(0.3) and found[0]["runs"] == 3
    assert _statistics.over_images([3.0, np.nan])["mean"] == 3 and np.isnan(_statistics.over_images([])["mean"])


def test_pairs_are_the_closest_ones_and_each_is_used_once():
    first, second = _statistics.matched([0.5, 0.52, 0.9, 0.1], [0.51, 0.525, 0.3, 0.905], tolerance=0.02)
    assert sorted(zip(first.tolist(), second.tolist(), strict=True)) == [(0, 0), (1, 1), (2, 3)]
    first, _ = _statistics.matched([0.2, 0.1, 0.0], [0.32, 0.22, 0.12], tolerance=0.05)
    assert sorted(first) == [0, 1]  # another set of the same total has one pair alone
    found = _statistics.paired([2, 3, 4, 5.0], [1, 3, 2, 6.0])
    assert found["larger"]["mean"] == 0.625 and found["difference"]["mean"] == 0.5
    assert _statistics.paired([1, 2.0], [1, 2.0])["p"] == 1
    rng = np.random.default_rng(0)
    assert _statistics.paired(rng.normal(1, 1, 80), rng.normal(0, 1, 80))["p"] < 0.01


def test_many_tests_find_something_by_lot_as_often_as_one():
    np.testing.assert_allclose(_statistics.holm([0.01, 0.04, 0.03, 0.5]), [0.04, 0.09, 0.09, 0.5])
    p = np.random.default_rng(0).uniform(size=(2000, 8))
    assert np.mean([_statistics.holm(each).min() < 0.05 for each in p]) == pytest.approx(0.05, abs=0.015)


def test_a_difference_is_inside_of_what_another_seed_and_other_images_would_make():
    mean, std = similarity.ORIGINAL["Grad-CAM / IG"]["pearson"]
    sampling = 1.96 * std / np.sqrt(similarity.FEW)
    for away, inside in ((0.99, True), (1.01, False)):
        ours = {
            pair: {each: {"mean": 0.0, "next_run": 0.05} for each in of} for pair, of in similarity.ORIGINAL.items()
        }
        ours["Grad-CAM / IG"]["pearson"]["mean"] = mean + away * np.hypot(0.05, sampling)
        assert similarity.differences(ours)["Grad-CAM / IG"]["pearson"]["inside"] is inside


def test_a_method_is_sane_if_its_map_changes_with_each_kind_of_knowledge():
    row = dict.fromkeys(sanity.COLUMNS, {"mean": 0.1, "interval": 0.1})
    assert sanity.passes(row)
    for column in (sanity.WEIGHTS, sanity.LABELS, sanity.CLASS):
        for all_of_it in (0.9, -0.9):  # an inverted map is the same picture
            assert not sanity.passes(row | {column: {"mean": all_of_it, "interval": 0.1}})
    blind = row | {sanity.CLASS: {"mean": 0.9, "interval": 0.1}}
    found = {"methods": {"one": row, "other": row | {sanity.SHIFTED: blind[sanity.CLASS]}, "blind": blind}}
    assert sanity.answer(found).startswith("2 of 3 methods") and "1 hardly see the class" in sanity.answer(found)
    assert sanity.table(found["methods"], 16).index("`one`") < sanity.table(found["methods"], 16).index("`blind`")


def test_a_part_is_computed_once_for_the_same_settings(tmp_path):
    args, calls = argparse.Namespace(output=tmp_path, smoke=True), []

    def compute():
        calls.append(1)
        return {"values": np.arange(3), "about": {"accuracy": (0.5,)}}

    for _ in range(2):
        part = _study.part(args, "first", compute, images=8)
        assert part["values"].tolist() == [0, 1, 2] and part["about"] == {"accuracy": [0.5]} and len(calls) == 1
    with pytest.raises(SystemExit, match="made with other settings; delete that file"):
        _study.part(args, "first", compute, images=9)


def test_a_study_writes_its_own_part_of_the_page_and_no_other(tmp_path):
    page = tmp_path / "README.md"
    page.write_text("| bias | <!-- answer bias -->old<!-- /answer bias --> |\n\n<!-- bias -->\n<!-- /bias -->\nend\n")
    _report.write_section("answer bias", r"It is \1 of [10](a b c).", page)
    _report.write_section("bias", "\n| a | b |\n", page)
    expected = r"| bias | <!-- answer bias -->It is \1 of [10](a b c).<!-- /answer bias --> |"
    assert page.read_text() == f"{expected}\n\n<!-- bias -->\n| a | b |\n<!-- /bias -->\nend\n"
    with pytest.raises(ValueError, match="has 0 places for 'photos', not one"):
        _report.write_section("photos", "", page)
    with pytest.raises(ValueError, match="has 26 words, more than 25"):
        _report.write_section("bias", "\n| a | " + "word " * 26 + "|\n", page)
    assert expected in page.read_text()


def test_every_study_has_its_places_on_the_page(tmp_path):
    page = tmp_path / "README.md"
    page.write_text(_report.README.read_text())
    for name in STUDIES:
        _report.write_section(f"answer {name}", "short", page)
        _report.write_section(name, "", page)
    assert all(len(_report.words(cell)) <= _report.LONGEST_CELL for cell in _report.cells(_report.README.read_text()))


def test_a_photograph_on_which_the_model_guesses_is_flagged(tmp_path):
    photo = tmp_path / "<b>noise & co.png"
    grey = np.random.default_rng(0).integers(112, 144, (300, 400, 3), np.uint8)
    Image.fromarray(grey).save(photo)
    photos.main([str(photo), "--model", "resnet18_cifar10", "--output", str(tmp_path / "out")])
    report, *spoiled = json.loads((tmp_path / "out" / "metrics.json").read_text())["photos"]
    assert [each["altered"] for each in spoiled] == list(photos.ALTERED)
    assert "low confidence" in report["flags"] and "below 50%" in report["flags"]["low confidence"]
    page = (tmp_path / "out" / "index.html").read_text()
    assert "&lt;b&gt;noise &amp; co.png" in page and "<b>noise" not in page and "data:image/jpeg;base64," in page
    with pytest.raises(SystemExit):
        photos.main(["missing.png", "--output", str(tmp_path / "out")])


def test_heat_on_the_frame():
    corner, centre = np.zeros((2, 16, 16), np.float32)
    corner[0, 0], centre[8, 8] = 1, 1
    found = photos.on_frame(np.stack([corner, centre, np.ones((16, 16)), np.zeros((16, 16))]))
    np.testing.assert_allclose(found, [1, 0, 1 - (12 / 16) ** 2, 0])


def test_where_a_map_looks():
    heat = np.zeros((56, 56), np.float32)
    heat[:28, 42:] = 0.6
    heat[1, 50] = 1
    assert transport.place(heat) == "top right, 12 %"
    heat[28, 28] = 2
    assert transport.place(heat / 2) == "centre, 0 %"
    assert transport.place(np.eye(3)[:, ::-1] * [[0], [0], [1]]) == "bottom left, 11 %"


def test_look_alikes_are_one_kind():
    kinds = photos.members([str(each) for each in range(1000)])
    assert (kinds.sum(1) == 1).all() and kinds.shape[1] < 750
    doubt = np.zeros((2, 1000), np.float32)
    doubt[0, [281, 282, 285]], doubt[1, [281, 151, 500]] = 1 / 3, 1 / 3  # three cats; a cat, a dog and a cliff dwelling
    confidence, candidates = (flag.measure(doubt @ kinds, None) for flag in photos.FLAGS[:2])
    np.testing.assert_allclose(confidence, [1, 1 / 3], rtol=1e-5)
    np.testing.assert_allclose(candidates, [1, 3], rtol=1e-5)
    assert photos.kind_of(range(1000), 282, doubt[0])[0] == "cat" and photos.kind_of(range(10), 3, doubt[0]) is None


def test_photographs_are_spoiled_where_they_were_hot_or_cold():
    picture, heatmap = np.full((32, 32, 3), 200, np.uint8), np.zeros((32, 32))
    heatmap[4:12, 20:28], picture[20:, :8] = 1, 7
    covered = (photos.occluded(picture, heatmap) == 128).all(-1)
    np.testing.assert_array_equal(covered, heatmap == 1)
    heatmap[20:, 20:] = heatmap[:8, :8] = 0.1
    assert (np.asarray(photos.cropped(picture, heatmap))[-8:, :8] == 7).all()  # the lower left quarter


def test_pasted_objects_are_where_the_masks_say():
    pytest.importorskip("skimage")
    found = _pasted.pasted(None, size=64)
    assert found.names == [
        (a, b) for a in ("cat", "espresso", "motorcycle") for b in ("cat", "espresso", "motorcycle") if a != b
    ]
    assert found.images.shape == (6, 64, 64, 3) and found.masks.shape == (6, 2, 64, 64)
    assert not found.masks[:, 0, :, 32:].any() and not found.masks[:, 1, :, :32].any()
    assert (found.masks.mean((2, 3)) > 0.02).all()
    espresso = found.images[0][found.masks[0, 1]].mean(0)  # red
    assert espresso[0] > 1.5 * espresso[2]
