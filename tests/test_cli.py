"""The command line, as a person uses it."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

import jaxcam
from jaxcam import cli
from jaxcam.attribution import FOR_TRANSFORMERS, METHODS
from jaxcam.metrics import METRICS

pytestmark = pytest.mark.optimized

APPLICABLE = set(METHODS) - set(FOR_TRANSFORMERS)


@pytest.fixture(autouse=True)
def keep_no_programs(monkeypatch):
    """Not in this process, whose settings all tests share."""
    monkeypatch.setattr(cli, "_keep_programs", lambda: None)


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return str(tmp_path / "photo.png")


def size(path):
    with Image.open(path) as image:
        return image.size


def test_explain_with_no_arguments(tmp_path, monkeypatch, capsys):
    """The bundled photograph, the bundled model, all methods; no network."""
    monkeypatch.chdir(tmp_path)
    assert cli.main(["explain"]) == 0
    folder = tmp_path / "jaxcam_output"
    expected = {f"chelsea_{method}.png" for method in APPLICABLE} | {"chelsea_panel.png", "chelsea.json"}
    assert {path.name for path in folder.iterdir()} == expected
    report = json.loads((folder / "chelsea.json").read_text())
    assert report["predictions"][0]["label"] == "cat" == report["target"]["label"]
    assert sum(each["probability"] for each in report["predictions"]) == pytest.approx(1, abs=0.05)
    assert report["layer"] == "layer4" and set(report["methods"]) == APPLICABLE
    assert report["methods"]["integrated_gradients"]["num_steps"] == 50
    assert set(report["files"]) == {*APPLICABLE, "panel"}
    assert size(folder / "chelsea_grad_cam.png") == (300, 300)  # what the model sees, at the photograph's resolution
    assert min(size(folder / "chelsea_panel.png")) > 500
    printed = capsys.readouterr().out
    assert "cat" in printed and "explained" in printed and "jaxcam_output" in printed


def test_options(photo, tmp_path, capsys):
    output = tmp_path / "out"
    options = ["--method", "grad_cam", "saliency", "--target", "Frog", "--layer", "layer3", "--output", str(output)]
    assert cli.main(["explain", photo, *options, "--colormap", "jet"]) == 0
    report = json.loads((output / "photo.json").read_text())
    assert report["target"]["index"] == 6 and report["target"]["label"] == "frog"
    assert report["layer"] == "layer3" and set(report["methods"]) == {"grad_cam", "saliency"}
    by_index = tmp_path / "by_index"
    assert cli.main(["explain", photo, "--method", "grad_cam", "--target", "6", "--output", str(by_index)]) == 0
    assert json.loads((by_index / "photo.json").read_text())["target"] == report["target"]


def test_the_overlay_is_the_heatmap_of_that_class(photo, tmp_path):
    """The file holds what the functions give for the same image, target and layer."""
    options = ["--method", "grad_cam", "--target", "2", "--output", str(tmp_path / "out")]
    assert cli.main(["explain", photo, *options]) == 0
    classifier = jaxcam.load("resnet18_cifar10")
    model = jaxcam.tap(classifier.module, classifier.variables, "layer4")
    heatmaps = jaxcam.grad_cam(model, classifier.preprocess(photo), 2)
    expected = jaxcam.plot.blend(classifier.preprocess.view(photo), heatmaps)[0]
    with Image.open(tmp_path / "out" / "photo_grad_cam.png") as image:
        difference = np.abs(np.asarray(image, int) - expected.astype(int))
    assert difference.max() <= 2


def test_files_of_one_name_do_not_overwrite_each_other(photo, tmp_path):
    (tmp_path / "other").mkdir()
    second = str(tmp_path / "other" / "photo.jpg")
    Image.new("RGB", (50, 50), "red").save(second)
    output = tmp_path / "out"
    assert cli.main(["explain", photo, second, "--method", "saliency", "--output", str(output)]) == 0
    assert json.loads((output / "photo.json").read_text())["image"] == photo
    assert json.loads((output / "photo-2.json").read_text())["image"] == second


def test_nothing_is_overwritten(photo, tmp_path, monkeypatch, capsys):
    """Neither what belongs to another image of the run, nor an image, nor a file of someone else."""
    monkeypatch.chdir(tmp_path)
    names = ["a.png", "a_x.png", "b_grad_cam.png", "d\udcff.png"]
    for name in names:
        shutil.copy(photo, name)
    run = ["--method", "grad_cam", "x_grad_cam", "--output"]
    assert cli.main(["explain", "a.png", "a_x.png", names[-1], *run, "out"]) == 0
    files = [json.loads(path.read_text())["files"].values() for path in Path("out").glob("*.json")]
    assert len({file for each in files for file in each}) == 9 == len(list(Path("out").glob("*.png")))
    Path("a.json").write_text('{"shapes": []}')
    for image, message in (("b.png", "'b_grad_cam.png' is one of the images"), ("a.png", "'a.json' exists and is no")):
        shutil.copy(photo, image)
        assert cli.main(["explain", image, "b_grad_cam.png", *run, "."]) == 2
        assert message in capsys.readouterr().err
    assert Path("a.json").read_text() == '{"shapes": []}'


def test_labels_are_no_markup(capsys):
    entry = {"index": 0, "label": "[bold]", "probability": 0.5}
    cli._print_report(Console(width=80), {"image": "[x].jpg", "predictions": [entry], "target": entry})
    assert "[bold]" in (shown := capsys.readouterr().out) and "[x].jpg" in shown


def test_a_weight_file_of_ones_own(photo, tmp_path):
    """`--model FILE --architecture NAME`, in torchvision's layout."""
    import helpers

    from jaxcam.models import ARCHITECTURES, save

    module = ARCHITECTURES["resnet18"](width=4, num_classes=7)
    file = tmp_path / "own.safetensors"
    save(file, helpers.random_variables(module, (64, 64)))
    options = [
        "--model",
        str(file),
        "--architecture",
        "resnet18",
        "--method",
        "grad_cam",
        "--output",
        str(tmp_path / "o"),
    ]
    assert cli.main(["explain", photo, *options]) == 0
    report = json.loads((tmp_path / "o" / "photo.json").read_text())
    assert re.fullmatch(r"class \d", report["predictions"][0]["label"])


MISTAKES = [
    ([], "required: COMMAND"),
    (["explian"], "invalid choice: 'explian'"),
    (["explain", "--foo"], "unrecognized arguments: --foo"),
    (["explain", "--method", "gradcam"], "Unknown method 'gradcam'. Did you mean 'grad_cam'"),
    (["explain", "--method", "deep_feature_factorization"], "gives parts and their scores, no heatmap"),
    (["explain", "--target", "catt"], "Unknown label 'catt'. Did you mean 'cat'?"),
    (["explain", "--target", "10"], "Target 10 is out of range: the model has 10 classes, 0 to 9."),
    (["explain", "--target", "-1"], "Target -1 is out of range"),
    (["explain", "--layer", "layer5"], "Unknown layer 'layer5'. Did you mean 'layer4'"),
    (["explain", "--layer", "fc", "--method", "grad_cam"], "'fc' returns (1, 10), which is not spatial"),
    (["explain", "--colormap", "jett"], "Unknown colour map 'jett'. Did you mean 'jet'"),
    (["explain", "--model", "resnet19"], "Unknown model 'resnet19'. Did you mean"),
    (["explain", "missing.jpg"], "Cannot open 'missing.jpg': there is no such file."),
    (["explain", "--method", "grad_cam", "taken"], "'taken' follows --method, so it was taken for a method"),
    (["explain", "--output", "taken/folder"], "Cannot write to the output folder"),
    (["layers", "resnet19"], "Unknown model 'resnet19'"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=[" ".join(row[0]) or "nothing" for row in MISTAKES])
def test_mistakes_are_one_line_and_exit_code_2(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("a file where a folder is wanted")
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.startswith("jaxcam: ") and captured.err.count("\n") == 1


def test_ambiguous_label():
    with pytest.raises(ValueError, match="names the classes 0 and 2; give the index"):
        cli._class_index("crane", ("crane", "other", "Crane"))


def test_models_methods_layers(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    assert cli.main(["models"]) == 0
    printed = capsys.readouterr().out
    assert "resnet18_cifar10" in printed and "resnet152.tv2_in1k" in printed
    assert cli.main(["methods"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in [*METHODS, "deep_feature_factorization"])
    assert "https://arxiv.org/abs/1610.02391" in printed
    assert cli.main(["metrics"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in METRICS)
    assert cli.main(["layers", "resnet18_cifar10"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"layer4 +4 x 4 x 256 \(default\)", printed)


def test_installed_command_and_help():
    result = subprocess.run([sys.executable, "-m", "jaxcam.cli", "--help"], capture_output=True, text=True, check=True)
    assert all(command in result.stdout for command in ("explain", "models", "methods", "layers"))


def test_a_second_run_finds_the_compiled_programs(photo, tmp_path):
    """In the package's own folder, unless the user has named another; a place that cannot be written is no error."""
    arguments = ["explain", photo, "--method", "grad_cam", "--output", str(tmp_path / "out")]

    def programs(folder, **environment):
        environment = {**os.environ, **environment}
        ran = subprocess.run([sys.executable, "-m", "jaxcam.cli", *arguments], env=environment, capture_output=True)
        assert ran.returncode == 0 and not ran.stderr
        return {path.name for path in folder.rglob("*-cache")}

    first = programs(tmp_path / "own", JAXCAM_CACHE=str(tmp_path / "own"))
    assert any("explain" in name for name in first)
    assert programs(tmp_path / "own", JAXCAM_CACHE=str(tmp_path / "own")) == first
    users = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "users"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    assert programs(tmp_path / "users", **users)
    (tmp_path / "file").touch()
    assert not programs(tmp_path / "file", JAXCAM_CACHE=str(tmp_path / "file"))
