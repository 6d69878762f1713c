"""Every study runs from start to end in smoke mode and leaves what it promises."""

import importlib
import json

import pytest

import jaxcam

STUDIES = {
    "train_cifar10": ["table.md", "curves.png", "resnet18_cifar10.safetensors", "resnet18_cifar10.json"],
    "similarity": ["table.md", "examples.png", "accuracy-pearson.png", "accuracy-iou.png"],
    "bias": ["table.md", "examples-4px.png", "mass-grad_cam.png", "mass-guided_grad_cam.png"],
    "leaderboard": ["table.md", "table.csv", "quality-against-cost.png"],
}


@pytest.fixture(scope="module", params=STUDIES)
def finished(request, tmp_path_factory):
    output = tmp_path_factory.mktemp(request.param)
    main = importlib.import_module(f"experiments.{request.param}").main
    main(["--smoke", "--output", str(output)])
    return request.param, main, output


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
    main(["--smoke", "--output", str(output)])
    assert json.loads((output / "metrics.json").read_text()) == before
    assert "epoch   1" not in capsys.readouterr().out


def test_the_trained_model_loads(finished):
    name, _, output = finished
    if name == "train_cifar10":
        about = json.loads((output / "resnet18_cifar10.json").read_text())
        classifier = jaxcam.load(output / "resnet18_cifar10.safetensors", architecture="resnet18")
        assert classifier.module.width == about["width"] and classifier.labels == tuple(about["labels"])
        assert classifier.about["sha256"] == about["sha256"]
