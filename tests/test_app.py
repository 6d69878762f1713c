"""The page in the browser: what it computes, and the page itself in a real browser, where there is one."""

import base64
import importlib.util
import inspect
import io
import json
import shutil
import sys
import threading
import xml.etree.ElementTree
from functools import partial
from pathlib import Path

import helpers
import jax
import numpy as np
import pytest
from PIL import Image

import jaxcam
from jaxcam import _visit, cli
from jaxcam._visit import Asked, Visit
from jaxcam.attribution import METHODS

LEFT_OUT = {  # numbers that are no sliders, and why
    "chunk_size": "it changes no map",
    "token": "the index of a token, not an amount",
    "num_components": "of methods that give parts",
    "num_iterations": "of methods that give parts",
    "num_segments": "it goes with segments",
    "min_pixels": "it goes with segments",
    "deviation": "another unit of the noise",
    "kernel_scale": "it goes with a kernel",
    "max_sigma": "it goes with the image's size",
}


@pytest.fixture(scope="module")
def classifier():
    return helpers.tiny_classifier()


@pytest.fixture(scope="module")
def model(classifier):
    return classifier.tap()


def picture(seed=0, size=(60, 40)):
    """The bytes of a PNG."""
    content = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), np.uint8)
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(content, "PNG")
    return content.getvalue()


@pytest.fixture
def visit(classifier, model):
    """A photograph, two classes, a heatmap and attributions."""
    visit = Visit(asked=[Asked("grad_cam"), Asked("input_x_gradient")])
    visit.add([_visit.photograph(classifier, model, picture(), "<b>photo.png")])
    visit.pick(4)
    visit.pick(7, beside=True)
    return visit


def done(model, visit):
    return list(_visit.maps_of(model, visit, threading.Lock()))


# --- Options ----------------------------------------------------------------------------------------------------------


MAPS = {name: row for name, row in jaxcam.METHODS.items() if row.gives != "concepts"}


def test_every_number_of_a_method_is_a_slider_or_left_out_for_a_reason():
    numbers = {
        name
        for row in MAPS.values()
        for name, each in inspect.signature(row.function).parameters.items()
        if each.kind == each.KEYWORD_ONLY
        and (type(each.default) in (int, float) or str(each.annotation) in ("int | None", "float | int | None"))
    }
    sizes = {"window", "stride"}  # for each axis of space
    assert numbers | sizes == set(_visit.RANGES) | set(LEFT_OUT)
    assert not set(_visit.RANGES) & set(LEFT_OUT)


def test_every_word_of_a_method_is_a_choice_or_left_out_for_a_reason():
    words = {
        name
        for row in MAPS.values()
        for name, each in inspect.signature(row.function).parameters.items()
        if each.kind == each.KEYWORD_ONLY and type(each.default) in (str, bool)
    }
    assert words - {"raw", "return_delta"} == set(_visit.CHOICES)  # these two give something other than a heatmap


@pytest.mark.parametrize("method", MAPS)
def test_controls_meet_the_default(method, model):
    """Which then is no option at all, so that the program is the one that is compiled already."""
    takes = inspect.signature(METHODS[method].function).parameters
    given = {"segments": jaxcam.segments.grid((32, 32), 8)} if "segments" in takes else {}
    for name, slider in _visit.controls(method).items():
        if isinstance(slider, _visit.Choice):
            assert slider.start in slider.values and _visit.changed(method, {name: slider.start}) == {}
            assert _visit.changed(method, {name: "<b>"}) == {}
            for value in set(slider.values) - {slider.start}:
                assert _visit.changed(method, {name: value}) == {name: value}
                chosen = partial(METHODS[method].function, **given, **{name: value})
                if method in _visit.available(model):  # the method takes the word
                    jax.eval_shape(lambda images, chosen=chosen: chosen(model, images, 0), np.zeros((1, 32, 32, 3)))
            continue
        assert slider.low <= slider.start <= slider.high
        steps = (slider.start - slider.low) / slider.step
        assert abs(steps - round(steps)) < 1e-6, name
        assert _visit.changed(method, {name: slider.start}) == {}
        assert _visit.changed(method, {name: 1e9}) == {name: slider.high}
        moved = _visit.changed(method, {name: slider.high})[name]
        default = inspect.signature(jaxcam.METHODS[method].function).parameters[name].default
        assert isinstance(moved, int) or isinstance(default, float | int) and not isinstance(slider.step, int)


def test_methods_are_those_of_the_model(model):
    names = _visit.available(model)
    assert {"grad_cam", "occlusion", "lrp"} < set(names)
    assert not {"deep_feature_factorization", "attention_rollout"} & set(names)
    of_tokens = helpers.dataclasses.replace(model, reshape=jaxcam.tokens((4, 4)))
    assert "attention_rollout" in _visit.available(of_tokens)
    assert len({METHODS[name].title for name in names}) == len(names)


# --- What is computed -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "'<i>bad.png' is empty (0 bytes)."),
        (b"no image", "'<i>bad.png' is not an image that Pillow can read, or its header is damaged."),
        (picture()[:-300], "'<i>bad.png' is truncated or damaged: "),
        (bytes(_visit.LARGEST + 1), "'<i>bad.png' has 64 MB, and the page takes 64."),
    ],
    ids=["empty", "none", "truncated", "large"],
)
def test_uploads_are_checked(content, message, classifier, model):
    with pytest.raises(ValueError) as raised:
        _visit.photograph(classifier, model, content, "<i>bad.png")
    assert str(raised.value).startswith(message) and "\n" not in str(raised.value)


def test_a_decompression_bomb_is_refused(classifier, model, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match="is too large"):
        _visit.photograph(classifier, model, picture(), "bomb.png")


def test_maps_are_those_of_the_library(classifier, model, visit):
    done(model, visit)
    images, targets = visit.photo.images, np.int32([7])
    expected = jaxcam.grad_cam(model, images, targets)[0]
    found = visit.maps[visit.photo, 7, Asked("grad_cam")]
    np.testing.assert_array_equal(found.heat, expected)
    attributions = jaxcam.input_x_gradient(model, images, targets)
    found = visit.maps[visit.photo, 7, Asked("input_x_gradient")]
    np.testing.assert_array_equal(found.drawn, attributions[0])
    np.testing.assert_array_equal(found.heat, jaxcam.heatmap(attributions)[0])
    np.testing.assert_allclose(visit.photo.probabilities.sum(), 1, atol=1e-6)


def test_a_method_that_fails_is_a_sentence(model, visit):
    visit.asked = [Asked("occlusion", (("window", 64),)), Asked("grad_cam")]
    done(model, visit)
    failed, drawn = (visit.maps[visit.photo, 4, each] for each in visit.asked)
    assert failed.heat is None and failed.said == "window is (64, 64), which is larger than the images, (32, 32)."
    assert drawn.heat is not None


def test_the_share_of_a_box():
    heat = np.zeros((4, 8), np.float32)
    heat[1, 2], heat[3, 7] = 0.75, 0.25
    assert _visit.share(heat, (0.25, 0.25, 0.375, 0.5)) == {"energy": 0.75, "points": 1, "area": 1 / 32}
    assert _visit.share(heat, (0.3, 0.3, 0.3, 0.3)) == {"energy": 0.75, "points": 1, "area": 1 / 32}  # a point
    assert _visit.share(heat, (0.25, 0.25, 0.25, 0.25))["area"] == 1 / 32  # between two pixels
    assert _visit.share(heat, (1, 1, 1, 1)) == {"energy": 0.25, "points": 0, "area": 1 / 32}  # at the very edge
    assert _visit.share(heat, (0, 0, 1, 1)) == {"energy": 1, "points": 1, "area": 1}


def test_metrics_are_those_of_the_library(classifier, model, visit):
    done(model, visit)
    assert {"deletion", "insertion", "road"} <= set(_visit.judges()) and "infidelity" not in _visit.judges()
    said = list(_visit.values_of(model, visit, ["average_drop"], threading.Lock()))
    assert said[0] == (0, 4, "average_drop of Grad-CAM") and len(said) == 4
    heat = visit.maps[visit.photo, 4, Asked("grad_cam")].heat
    expected = jaxcam.metrics.average_drop(model, visit.photo.images, heat[None], np.int32([4]))
    table = _visit.board(visit, classifier)
    assert table["metrics"] == [{"name": "average_drop", "better": "low"}]
    assert table["maps"][0]["stages"][0]["metrics"] == [float(expected[0])]


# --- A visit ----------------------------------------------------------------------------------------------------------


def test_classes_are_picked_alone_or_beside_each_other(visit):
    assert visit.targets == [4, 7]
    visit.pick(9, beside=True)
    assert visit.targets == [7, 9]
    visit.pick(7, beside=True)
    assert visit.targets == [9]
    visit.pick(9, beside=True)
    assert visit.targets == [9]
    for nonsense in (-1, 10, None, "7", 2.5):
        visit.pick(nonsense)
        visit.choose(nonsense)
        visit.mark(nonsense)
    assert visit.targets == [9] and visit.chosen == 0 and visit.box is None
    visit.mark([0.2, -1, "x", 1])
    assert visit.box is None
    visit.mark([0.2, -1, 0.5, 7])
    assert visit.box == (0.2, 0, 0.5, 1)


def test_photographs_come_and_go(classifier, model, visit):
    first = visit.photo
    photos = [_visit.photograph(classifier, model, picture(seed), f"{seed}") for seed in range(_visit.PHOTOGRAPHS)]
    visit.add([])
    assert visit.photo is first and visit.targets == [4, 7]
    visit.add(photos[:1])
    assert visit.photo is photos[0] and visit.targets == [photos[0].probabilities.argmax()]
    visit.choose(1)
    assert visit.photo is first
    visit.add(photos[1:])
    assert first not in visit.photographs and len(visit.photographs) == _visit.PHOTOGRAPHS


def test_a_map_is_computed_once_and_only_while_it_is_wanted(model, visit):
    computing = _visit.maps_of(model, visit, threading.Lock())
    assert next(computing) == (0, 4, "Grad-CAM")
    visit.turn += 1  # another question
    assert list(computing) == [] and visit.maps == {}
    assert [each[:2] for each in done(model, visit)] == [(0, 4), (1, 4), (2, 4), (3, 4)]
    assert done(model, visit) == []
    visit.pick(4)
    assert done(model, visit) == []
    for number in range(2 * _visit.KEPT):
        visit.keep(visit.maps, (None, number, "old"), None)
    assert len(visit.maps) == _visit.KEPT and set(visit.wanted()) < set(visit.maps)  # what is shown stays


def test_what_is_shown(classifier, model, visit):
    """As JSON, with values within a step of 256."""
    empty = _visit.board(visit, classifier, (0, 4, "Grad-CAM"))
    assert not any(stage["ready"] for each in empty["maps"] for stage in each["stages"])
    done(model, visit)
    visit.mark([0, 0, 0.5, 0.5])
    shown = json.loads(json.dumps(_visit.board(visit, classifier), allow_nan=False))
    assert [each["title"] for each in shown["maps"]] == ["Grad-CAM", "Input times gradient"]
    assert [each["signed"] for each in shown["maps"]] == [False, True]
    stage = shown["maps"][0]["stages"][1]
    assert stage["label"] == classifier.labels[7]
    values = np.frombuffer(base64.b64decode(stage["values"]), np.uint8).reshape(stage["shape"])
    found = visit.maps[visit.photo, 7, Asked("grad_cam")].heat
    np.testing.assert_allclose(values / 255, found, atol=0.5 / 255 + 1e-6)
    assert stage["share"] == _visit.share(found, visit.box)
    seen = json.loads(json.dumps(_visit.sights(visit, classifier)))
    assert {each["index"] for each in seen["classes"] if each["explained"]} == {4, 7}
    assert _visit.sights(Visit(problems=["It is broken."]), classifier) == {"problems": ["It is broken."]}


def test_downloads(classifier, model, visit):
    with pytest.raises(ValueError, match="There is no heatmap yet"):
        _visit.download(visit, classifier, "layer4", "png")
    done(model, visit)
    visit.mark([0, 0, 0.5, 0.5])
    files = {kind: _visit.download(visit, classifier, "layer4", kind) for kind in ("png", "svg", "json", "npz")}
    assert Image.open(io.BytesIO(files["png"])).size[0] > 1000
    assert xml.etree.ElementTree.fromstring(files["svg"]).tag.endswith("svg")
    report = json.loads(files["json"])
    assert report["image"] == "<b>photo.png" and report["layer"] == "layer4" and len(report["maps"]) == 4
    arrays = np.load(io.BytesIO(files["npz"]))
    assert arrays["targets"].tolist() == [4, 7] and json.loads(str(arrays["report"])) == report
    expected = [visit.maps[visit.photo, target, Asked("grad_cam")].heat for target in (4, 7)]
    np.testing.assert_array_equal(arrays["Grad-CAM"], expected)


# --- The command ------------------------------------------------------------------------------------------------------


def test_the_command(monkeypatch, capsys):
    from jaxcam.cli import app as command

    served = []
    monkeypatch.setattr(command, "keep_programs", lambda: None)
    monkeypatch.setattr(jaxcam.app, "serve", lambda *args, **options: served.append((args[1:], options)))
    assert cli.main(["app", "--model", "resnet18_cifar10"]) == 0
    assert cli.main(["app", "--model", "resnet18_cifar10", "--host", "0.0.0.0", "--port", "80", "--layer", "x"]) == 0
    assert served == [((None,), {"host": "127.0.0.1", "port": None}), (("x",), {"host": "0.0.0.0", "port": 80})]
    assert cli.main(["app", "--port", "none"]) == 2
    capsys.readouterr()
    monkeypatch.undo()
    monkeypatch.setattr(command, "keep_programs", lambda: None)
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert cli.main(["app", "--model", "resnet18_cifar10"]) == 2
    said = "jaxcam: The page needs gradio, which is not installed: pip install 'jaxcam-xai[app]'.\n"
    assert capsys.readouterr().err == said


# --- In a browser -----------------------------------------------------------------------------------------------------

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MISSING = [name for name in ("gradio", "playwright") if importlib.util.find_spec(name) is None]
MISSING += [] if CHROMIUM else ["Chromium (apt-get install chromium)"]
in_a_browser = pytest.mark.skipif(bool(MISSING), reason=f"needs {' and '.join(MISSING)}")
foreign = pytest.mark.filterwarnings("ignore")  # of gradio and what it needs
STAGE = ".stage:not(.bare)"


@pytest.fixture(scope="module")
def address(classifier):
    blocks = jaxcam.app.serve(classifier, block=False)
    yield blocks.local_url
    blocks.close(verbose=False)


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


@pytest.fixture
def visitors(browser, address):
    """Opens the page as somebody new; what the pages asked for and complained of is looked at in the end."""
    opened, asked, errors = [], [], []

    def new():
        context = browser.new_context(viewport={"width": 1300, "height": 1000})
        opened.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        page.locator(".viewer .hint").wait_for()
        return page

    yield new
    for context in opened:
        context.close()
    assert not errors
    assert {url for url in asked if not url.startswith((address, "data:", "blob:"))} == set()


def show(page, *files):
    """Uploads files, `(name, content)`."""
    payload = [{"name": name, "mimeType": "image/png", "buffer": content} for name, content in files]
    page.locator("input[type=file]").first.set_input_files(payload)


def settled(page, count):
    """When that many maps are drawn and nothing is being computed."""
    page.wait_for_function(
        "count => document.querySelectorAll('.stage:not(.bare)').length === count && !document.querySelector('.busy')",
        arg=count,
    )


def only_the_first(page):
    """Takes the other methods away, one after the other."""
    for name in _visit.FIRST[1:]:
        page.get_by_role("button", name=f"Remove {METHODS[name].title}").or_(
            page.locator(".token", has_text=METHODS[name].title).locator(".token-remove")
        ).first.click()


@in_a_browser
@foreign
def test_a_visit(visitors, classifier):
    """A photograph, its classes, methods with options, a box, values, metrics and a file."""
    page = visitors()
    show(page, ("photo.png", picture(1)))
    settled(page, len(_visit.FIRST))
    assert page.locator(".pick").count() == _visit.PREDICTIONS
    explained = page.locator(".pick[aria-pressed=true] .name")
    first, other = page.locator(".pick .name").nth(0).inner_text(), page.locator(".pick .name").nth(1).inner_text()
    assert explained.all_inner_texts() == [first] and first in classifier.labels

    page.locator(".pick").nth(1).click()  # another class
    page.locator(f".stage[data-label='{other}']").first.wait_for()
    settled(page, len(_visit.FIRST))
    assert explained.all_inner_texts() == [other]
    page.locator(".beside").nth(0).click()  # both
    settled(page, 2 * len(_visit.FIRST))
    page.locator(".beside").nth(0).click()
    settled(page, len(_visit.FIRST))

    page.get_by_text("Options of the methods").click()  # first: what is typed as they are being drawn is lost
    only_the_first(page)  # other methods
    settled(page, 1)
    page.get_by_label("Methods").fill("SmoothGrad")
    page.get_by_role("option", name="SmoothGrad", exact=True).click()
    page.keyboard.press("Escape")
    settled(page, 2)
    page.get_by_label("number input for num_samples").locator("visible=true").fill("10")
    page.keyboard.press("Tab")
    page.get_by_text("num_samples 10", exact=True).wait_for()
    settled(page, 2)

    stage = page.locator(".stage").first  # a box, a point, a value
    box = stage.bounding_box()
    at = [(box["x"] + part * box["width"], box["y"] + part * box["height"]) for part in (0.25, 0.75)]
    page.mouse.move(*at[0])
    page.mouse.down()
    page.mouse.move(*at[1], steps=3)
    page.mouse.up()
    page.locator(".share").first.wait_for()
    assert " of the heat in 25 % of the picture" in page.locator(".share").first.inner_text()
    assert 0 <= float(page.locator(".hovered .tag").first.inner_text()) <= 1
    page.mouse.click(*at[0])
    page.wait_for_function("document.querySelector('.share').innerText.includes('in 0.1 % of')")

    page.get_by_label("Opacity").fill("0")
    assert stage.locator("canvas").evaluate("node => getComputedStyle(node).opacity") == "0"
    page.get_by_role("button", name="Measure").click()
    page.wait_for_function("document.querySelectorAll('.table td').length === 6 && !document.querySelector('.busy')")
    assert all(float(text) == float(text) for text in page.locator(".table td").all_inner_texts())
    with page.expect_download() as saved:
        page.get_by_role("button", name="Download JSON").click()
    report = json.loads(Path(saved.value.path()).read_text())
    assert report["image"] == "photo.png" and [each["method"] for each in report["maps"]] == ["grad_cam", "smooth_grad"]
    assert report["maps"][1]["options"] == {"num_samples": 10} and set(report["maps"][0]["metrics"]) == set(
        _visit.JUDGES
    )


@in_a_browser
@foreign
def test_nothing_is_lost_while_a_map_takes_long(visitors):
    """Somebody else's: predictions come all the same, and of several questions the last one is answered."""
    page = visitors()
    with jaxcam.app.TURN:
        show(page, ("photo.png", picture(6)))
        page.locator(".stage").nth(len(_visit.FIRST) - 1).wait_for()
        only_the_first(page)
        page.wait_for_function("document.querySelectorAll('.stage').length === 1 && document.querySelector('.busy')")
        page.locator(".pick").nth(1).click()
        page.locator(f".stage[data-label='{page.locator('.pick .name').nth(1).inner_text()}']").wait_for()
    settled(page, 1)


@in_a_browser
@foreign
def test_an_option_that_is_a_word(visitors):
    page = visitors()
    show(page, ("photo.png", picture(1)))
    settled(page, len(_visit.FIRST))
    page.get_by_text("Options of the methods").click()
    page.get_by_label("Methods").fill("LRP")
    page.get_by_role("option", name="LRP", exact=True).click()
    page.keyboard.press("Escape")
    settled(page, len(_visit.FIRST) + 1)
    page.get_by_label("composite").locator("visible=true").first.click()
    page.get_by_role("option", name="epsilon_plus_flat", exact=True).click()
    page.get_by_text("composite epsilon_plus_flat", exact=True).wait_for()
    settled(page, len(_visit.FIRST) + 1)


@in_a_browser
@foreign
def test_a_broken_file_is_a_sentence(visitors):
    """Beside it what is whole is shown; and a name is text, whatever it says."""
    page = visitors()
    show(page, ("broken.png", b"no image"), ("whole.png", picture(2)))
    said = page.locator(".problem").inner_text()
    assert said == "'broken.png' is not an image that Pillow can read, or its header is damaged."
    settled(page, len(_visit.FIRST))
    show(page, ("whole.png", picture(3)))
    page.locator(".strip").wait_for()
    assert page.locator(".strip img").count() == 2 and page.locator(".problem").count() == 0


@in_a_browser
@foreign
def test_two_visitors_do_not_see_each_other(visitors):
    one, other = visitors(), visitors()
    show(one, ("one.png", picture(4)))
    show(other, ("other.png", picture(5)))
    for page, name in ((one, "one.png"), (other, "other.png")):
        settled(page, len(_visit.FIRST))
        assert set(page.locator(".stage img").evaluate_all("all => all.map(each => each.alt)")) == {name}
    drawn = [page.locator(".stage img").first.get_attribute("src") for page in (one, other)]
    assert drawn[0] != drawn[1]
    late = visitors()
    assert late.locator(".stage").count() == 0 and late.locator(".pick").count() == 0
