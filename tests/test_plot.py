"""Pictures: colours, overlays, and a panel on which nothing overlaps at any number of methods."""

import itertools
import pickle
import subprocess
import sys
from types import SimpleNamespace

import jax.numpy as jnp
import matplotlib.style
import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image, ImageShow

from jaxcam import plot
from jaxcam.attribution import METHODS
from jaxcam.image import Preprocess, sample
from jaxcam.plot import _layout, _pixels

PREPROCESS = Preprocess(32, 32, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
PREDICTIONS = [("cat", 0.871), ("dog", 0.093), ("frog", 0.0361), ("deer", 0.0002), ("a very long label, " * 9, 0.0)]


def photograph(height=60, width=60):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def heat(height=7, width=7):
    return np.random.default_rng(1).random((height, width), dtype=np.float32)


def signed(height=7, width=7):
    return np.random.default_rng(2).normal(size=(height, width, 3)).astype(np.float32)


def maps(count):
    return {f"method_of_20_chars{index:02}": heat() for index in range(count)}


def texts(figure):
    return [text.get_text() for text in figure.texts]


def labels(figure):
    return [axes.get_label() for axes in figure.axes]


def shown(figure, label):
    [axes] = [axes for axes in figure.axes if axes.get_label() == label]
    [image] = axes.images
    return np.asarray(image.get_array())


# Colours.

# The published tables: MATLAB's jet; inferno by Smith and van der Walt.
COLOURS = [
    ("jet", [[0, 0, 127], [125, 255, 122], [127, 0, 0]]),
    ("inferno", [[0, 0, 3], [188, 55, 84], [252, 255, 164]]),
    ("viridis", [[68, 1, 84], [33, 145, 140], [253, 231, 37]]),
]


@pytest.mark.parametrize(("name", "expected"), COLOURS)
def test_colours(name, expected):
    colours = plot.colorize(np.float32([[[0, 0.5, 1]]]), name)
    assert colours.dtype == np.uint8 and colours.shape == (1, 1, 3, 3)
    np.testing.assert_allclose(np.int64(colours[0, 0]), expected, atol=2)


def test_colours_of_many():
    heatmaps = jnp.asarray(np.stack([heat(3, 5), heat(3, 5).T.reshape(3, 5)]), jnp.bfloat16)
    colours = plot.colorize(heatmaps)
    assert colours.shape == (2, 3, 5, 3)
    np.testing.assert_array_equal(colours[1:], plot.colorize(heatmaps[1:], "inferno"))


# Blending.


def test_no_heat_shows_the_photograph():
    images = np.stack([photograph(), 255 - photograph()])
    np.testing.assert_array_equal(plot.blend(images, np.zeros((2, 7, 7))), images)


def test_opacity_follows_the_heat():
    image = np.zeros((1, 4, 4, 3), np.uint8)
    for value, opacity in ((0.25, 0.35), (0.5, 0.7), (1, 0.7)):
        heatmaps = np.full((1, 2, 2), value, np.float32)
        expected = opacity * np.int64(plot.colorize(heatmaps)[0, 0, 0])
        np.testing.assert_allclose(np.int64(plot.blend(image, heatmaps)[0, 3, 3]), expected, atol=1)


def test_constant_opacity():
    image, heatmaps = photograph()[None], np.stack([np.kron(np.eye(2, dtype=np.float32), np.ones((30, 30)))])
    expected = 0.25 * np.float64(plot.colorize(heatmaps, "jet")) + 0.75 * image
    np.testing.assert_allclose(plot.blend(image, heatmaps, colormap="jet", alpha=0.25), expected, atol=1)
    np.testing.assert_array_equal(plot.blend(image, heatmaps, alpha=0.0), image)
    np.testing.assert_array_equal(plot.blend(image, heatmaps, alpha=1.0), plot.colorize(heatmaps))


def test_heat_is_stretched_bilinearly():
    """Two values over eight pixels, with half-pixel centres: flat to the first centre, then a straight line."""
    blended = plot.blend(np.zeros((1, 2, 8, 3), np.uint8), np.float32([[[0, 1]]]), colormap="gray", alpha=1.0)
    expected = np.float64([0, 0, 0.125, 0.375, 0.625, 0.875, 1, 1]) * 255
    np.testing.assert_allclose(blended[0, 0, :, 0], expected, atol=1)


def test_the_three_kinds_of_images():
    image = photograph(32, 32)
    floats, normalised = np.float32(image) / 255, PREPROCESS(image)
    none = np.zeros((1, 7, 7))
    np.testing.assert_array_equal(plot.blend([floats], none)[0], image)
    np.testing.assert_array_equal(plot.blend(jnp.asarray(floats)[None], none)[0], image)
    np.testing.assert_array_equal(plot.blend(PREPROCESS.restore(normalised), none)[0], image)
    spread = plot.blend(normalised, none)[0]
    assert spread.min() == 0 and spread.max() == 255
    assert np.corrcoef(spread.ravel(), image.ravel())[0, 1] > 0.99


def test_a_dark_normalised_image_is_recognised_by_its_company():
    dark, bright = np.full((8, 8, 3), 0.25, np.float32), np.full((8, 8, 3), 2.0, np.float32)
    dark[0], bright[0] = 0.5, -2.0
    blended = plot.blend([dark, bright], np.zeros((2, 2, 2)))
    assert blended[:, 0].tolist() == [[[255] * 3] * 8, [[0] * 3] * 8]
    assert plot.blend(np.full((1, 4, 4, 3), -1.0), np.zeros((1, 2, 2))).max() == 0  # constant: no division by zero


# The overlay.


def test_overlay():
    images = [photograph(60, 40), photograph(300, 260), photograph(60, 80)]
    heatmaps = np.stack([heat(), np.zeros((7, 7)), heat()])
    figure = plot.overlay(images, heatmaps, titles=["one", "two", "three"])
    assert labels(figure) == ["overlay 1", "overlay 2", "overlay 3", "colour scale"]
    assert texts(figure) == ["one", "two", "three", "zero everywhere", "0", "relative importance", "1"]
    np.testing.assert_array_equal(shown(figure, "overlay 2"), images[1])
    assert len({round(axes.get_position().y1, 6) for axes in figure.axes[:3]}) == 1, "one row"


def test_overlay_wraps():
    figure = plot.overlay(np.stack([photograph()] * 15), np.stack([heat()] * 15), colormap="jet", alpha=0.5)
    assert len({round(axes.get_position().y0, 6) for axes in figure.axes[:15]}) > 1
    assert max(figure.get_size_inches()) < 15
    check_layout(figure)


@pytest.mark.parametrize("titles", [None, ["one", "two", "three"]], ids=["without titles", "with titles"])
def test_a_heatmap_of_zeros_is_said_to_be_one(titles):
    heatmaps = np.stack([heat(), np.zeros((7, 7)), heat()])
    figure = plot.overlay([photograph()] * 3, heatmaps, titles=titles)
    assert texts(figure).count("zero everywhere") == 1
    check_layout(figure)
    [said] = [text for text in figure.texts if text.get_text() == "zero everywhere"]
    second = figure.axes[1].get_position()
    assert said.get_position()[0] == pytest.approx(second.x0) and said.get_position()[1] > second.y1
    assert "zero everywhere" not in texts(plot.overlay([photograph()], heat()[None]))
    figure = plot.panel(photograph(), {**maps(7), "none": np.zeros((7, 7))}, predictions=PREDICTIONS, title="Cats")
    assert texts(figure).count("zero everywhere") == 1
    check_layout(figure)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("channels", [True, False])
def test_overlay_of_signs(theme, channels):
    """As on the panel, with a scale of its own; what the eye is shown is said."""
    given, image = signed() if channels else signed().sum(-1), photograph(300, 300)
    figure = plot.overlay([image], given[None], titles=["Integrated gradients"], theme=theme)
    assert labels(figure) == ["overlay 1", "scale of signs"]
    assert {"Integrated gradients", "against the class", "for the class"} < set(texts(figure))
    assert "Smoothed (σ 1% of the side) and clipped (percentile 99), for display only." in texts(figure)
    panel = plot.panel(image, {"ig": given[..., None] if not channels else given}, theme=theme)
    np.testing.assert_array_equal(shown(figure, "overlay 1"), shown(panel, "map ig"))
    check_layout(figure)


def test_attributions_of_one_sign_are_heat():
    figure = plot.overlay([photograph()] * 2, np.abs(np.stack([signed()] * 2)))
    assert labels(figure)[-1] == "colour scale" and "relative importance" in texts(figure)
    check_layout(figure)


@pytest.mark.parametrize("size", [(700, 500), (400, 900)])
def test_one_overlay_has_the_pixels_of_its_photograph(size):
    figure = plot.overlay([photograph(*size)], heat()[None], titles=["Grad-CAM++"])
    box = figure.axes[0].get_position()
    width, height = 150 * figure.get_size_inches()
    np.testing.assert_allclose((height * box.height, width * box.width), size, atol=0.01)
    check_layout(figure)


# The panel.


def test_methods_are_called_by_their_titles():
    written = texts(plot.panel(photograph(), {"grad_cam_plus_plus": heat(), "mine": heat()}))
    assert {"Grad-CAM++", "mine"} < set(written)
    titles = [method.title for method in METHODS.values()]
    assert len(set(titles)) == len(titles) and max(map(len, titles)) < 28
    drawn = [name for name, method in METHODS.items() if method.is_map]
    written = texts(plot.panel(photograph(), {name: heat() for name in drawn}))
    assert {METHODS[name].title for name in drawn} < set(written), "whole"


def boxes(figure):
    """What is drawn, in inches: pictures and texts."""
    renderer, size = figure.canvas.get_renderer(), figure.get_size_inches()
    for axes in figure.axes:
        yield axes.get_label(), axes.get_position().transformed(figure.transSubfigure).extents / figure.dpi
    for text in figure.texts:
        yield text.get_text(), text.get_window_extent(renderer).extents / figure.dpi
    assert (size > 0).all()


def check_layout(figure):
    """Nothing overlaps, nothing leaves the figure; labels may stand in the area of the bars that they belong to."""
    width, height = figure.get_size_inches()
    drawn = [(name, box) for name, box in boxes(figure) if name != "predictions"]
    for name, (left, bottom, right, top) in drawn:
        assert left >= 0.3 and bottom >= 0.2 and right <= width - 0.3 and top <= height - 0.2, name
    for (one, a), (other, b) in itertools.combinations(drawn, 2):
        apart = a[2] <= b[0] - 0.03 or b[2] <= a[0] - 0.03 or a[3] <= b[1] + 1e-3 or b[3] <= a[1] + 1e-3
        assert apart, f"{one!r} overlaps {other!r}"


SIZES = [(count, size, 1) for count in (1, 2, 3, 5, 8, 12) for size in ((60, 60), (60, 150), (150, 60), (4, 400))]
SEVERAL = [(1, (60, 60), 2), (6, (60, 150), 3), (12, (60, 60), 2)]


@pytest.mark.parametrize(("count", "size", "classes"), [*SIZES, (24, (60, 60), 1), (40, (60, 60), 1), *SEVERAL])
def test_panel_at_any_size(count, size, classes):
    """With notes and a signed map, or with several classes."""
    given, explained = maps(count), ["cat " * 50] * classes
    given |= {"method_of_20_chars00": signed()} if count > 1 else {}
    given = given if classes == 1 else {name: np.stack([each] * classes) for name, each in given.items()}
    options = {"notes": dict.fromkeys(given, "1 forward pass"), "explained": explained if classes > 1 else explained[0]}
    figure = plot.panel(photograph(*size), given, predictions=PREDICTIONS[2:], title="A title " * 40, **options)
    check_layout(figure)
    pictures = [axes.get_position() for axes in figure.axes if axes.get_label().startswith("map ")]
    assert len(pictures) == count * classes
    width, height = figure.get_size_inches()
    assert min(max(box.width * width, box.height * height) for box in pictures) >= 0.99, "large enough to see"
    assert max(width, height) < 12.1 + count * classes / 3
    if count <= 8 and size == (60, 60) and classes == 1:
        assert width <= 12.01 and height <= 6.76, "a slide"
    assert [name for name in maps(count) if name not in texts(figure)] == [], "names are whole"
    assert min(text.get_fontsize() for text in figure.texts) >= 7


def test_panel_contents():
    image, heatmaps = photograph(300, 300), {"cold": np.zeros((7, 7)), "some": jnp.asarray(heat())}
    figure = plot.panel(
        image,
        heatmaps,
        predictions=PREDICTIONS,
        model="resnet19",
        title="a $x_1$\n title",
        explained="dog",
        colormap="jet",
    )
    assert labels(figure)[:2] == ["image", "predictions"] and labels(figure)[-1] == "colour scale"
    np.testing.assert_array_equal(shown(figure, "image"), image)
    grey = 0.8 * np.float64(image) @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(shown(figure, "map cold"), grey[..., None] * np.ones(3), atol=1)
    assert (shown(figure, "map some") != shown(figure, "map cold")).any()
    written = texts(figure)
    for text in (
        "a $x_1$ title",
        "Explained class: dog",
        "Predicted by resnet19",
        "Image",
        "cold",
        "some",
        "cat",
        "87.1%",
        "<0.1%",
        "0.0%",
        "0",
        "1",
    ):
        assert text in written
    assert not any(text.get_parse_math() for text in figure.texts), "a label with two dollar signs is no formula"
    assert any(text.startswith("a very long") and text.endswith("…") for text in written)


def test_panel_bars():
    figure = plot.panel(photograph(), maps(1), predictions=PREDICTIONS, explained="dog")
    [axes] = [axes for axes in figure.axes if axes.get_label() == "predictions"]
    tracks, bars = axes.patches[::2], axes.patches[1::2]
    assert [bar.get_width() for bar in bars] == [probability for _, probability in PREDICTIONS]
    assert {track.get_width() for track in tracks} == {1}
    accent = matplotlib.colors.to_rgba(_layout.ACCENT)
    assert [bar.get_facecolor() == accent for bar in bars] == [False, True, False, False, False]
    heights = [bar.get_y() for bar in bars]
    assert heights == sorted(heights) and axes.yaxis_inverted(), "the best is on top"
    [axes] = [axes for axes in plot.panel(photograph(), maps(1), predictions=PREDICTIONS).axes if axes.patches[1:]]
    assert axes.patches[1].get_facecolor() == accent, "without an explained class, the first"


def test_panel_draws_at_most_ten_predictions():
    figure = plot.panel(photograph(), maps(1), predictions=[(f"class {index}", 0.01) for index in range(99)])
    assert sum(text.startswith("class") for text in texts(figure)) == 10
    check_layout(figure)


@pytest.mark.parametrize(
    ("probability", "text"), [(1, "100.0%"), (0.9996, ">99.9%"), (0.00049, "<0.1%"), (0.0006, "0.1%")]
)
def test_probabilities_never_pretend(probability, text):
    assert text in texts(plot.panel(photograph(), maps(1), predictions=[("cat", np.float32(probability))]))


def test_scale_shows_the_colours():
    figure = plot.panel(photograph(), maps(1), colormap="jet")
    [axes] = [axes for axes in figure.axes if axes.get_label() == "colour scale"]
    assert axes.images[0].get_cmap().name == "jet" and axes.images[0].get_clim() == (0, 1)
    assert np.asarray(axes.images[0].get_array()).ravel()[[0, -1]].tolist() == [0, 1]


# Attributions on the panel.


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_signs_are_centred_at_zero(theme):
    """Zero shows the faded photograph; equal parts for and against the class are as strong, in the scale's colours."""
    attributions = np.zeros((30, 30, 3), np.float32)
    attributions[:10, :, 0], attributions[20:, :, 2] = 2, -2
    image = np.full((300, 300, 3), 100, np.uint8)
    figure = plot.panel(image, {"ig": attributions}, smoothing=0, percentile=100, theme=theme)
    assert labels(figure) == ["image", "map ig", "scale of signs"]
    picture, [scale] = shown(figure, "map ig"), figure.axes[-1].images
    ends = scale.get_cmap()([0.0, 1.0], bytes=True)[:, :3]
    np.testing.assert_allclose([picture[250, 100], picture[50, 100]], ends, atol=1)
    paper, share = np.float64(_layout.blank(1, 1, theme).get_facecolor()[:3]) * 255, {"light": 0.3, "dark": 0.5}[theme]
    np.testing.assert_allclose(picture[150, 100], paper + share * (100 - paper), atol=1)
    assert scale.get_clim() == (0, 1) and texts(figure)[-3:] == ["against the class", "0", "for the class"]
    middle = np.float64(scale.get_cmap()(0.5)[:3]) * 255
    assert np.abs(middle - paper).max() < 30, "zero has the colour of the ground"


def test_attributions_are_made_legible():
    """Channels are summed, with their signs or without; a Gaussian keeps the sum; the colours end at the percentile."""
    attributions = np.zeros((50, 50, 2), np.float32)
    attributions[10, 10], attributions[30, 40] = (3, -1), (-4, -4)
    signs, magnitudes = (_pixels.legible(attributions, which, 0, 100) for which in (True, False))
    assert (signs[10, 10], signs[30, 40], signs[0, 0]) == (0.25, -1, 0)
    assert (magnitudes[10, 10], magnitudes[30, 40], magnitudes[0, 0]) == (0.5, 1, 0)
    smooth = _pixels.legible(attributions, True, 0.04, 100)
    width = np.sqrt((smooth[30] * (np.arange(50) - 40) ** 2).sum() / smooth[30].sum())
    assert width == pytest.approx(2, rel=0.02) and smooth.sum() / smooth.min() == pytest.approx(6 / 8 * 25.1, rel=0.01)
    ramp = np.linspace(-1, 1, 2001).reshape(1, -1, 1)
    np.testing.assert_allclose(_pixels.legible(ramp, True, 0, 50)[0], np.clip(2 * ramp[0, :, 0], -1, 1), atol=2e-3)
    assert not _pixels.legible(np.zeros((4, 4, 3)), True, 0.01, 99).any()
    assert _pixels.legible(5 * np.eye(50)[:, :3, None], True, 0, 50).max() == 1, "half are zero"


ALTERED = [
    ({}, "smoothed", "Smoothed (σ 1% of the side) and clipped (percentile 99), for display only."),
    ({"smoothing": 0}, "clipped", "Clipped (percentile 99), for display only."),
    ({"percentile": 100}, "smoothed", "Smoothed (σ 1% of the side), for display only."),
]


@pytest.mark.parametrize(("options", "word", "sentence"), ALTERED)
def test_the_panel_says_what_was_done_to_attributions(options, word, sentence):
    given = {"fem": heat(), "ig": signed(), "saliency": signed()}
    figure = plot.panel(photograph(), given, signed=["ig"], notes={"ig": "150 passes"}, **options)
    assert labels(figure)[-2:] == ["colour scale", "scale of signs"]
    assert {f"150 passes · {word}", word, sentence} < set(texts(figure)) and texts(figure).count(word) == 1
    assert not (np.diff(np.int64(shown(figure, "map ig"))) == 0).all(), "the signs have colours"
    written = texts(plot.panel(photograph(), given, smoothing=0, percentile=100))
    assert not any("display" in text for text in written), "nothing was done"
    written = texts(plot.panel(photograph(), {"fem": heat()}))
    assert not any("lipped" in text for text in written), "heatmaps are drawn as they are"
    assert sentence in texts(plot.panel(photograph(90, 30), {"ig": signed()}, **options)), "whole, beside a narrow map"


def test_several_classes_stand_side_by_side():
    given = {"fem": np.stack([heat(), 0 * heat()]), "ig": np.stack([signed(), -signed()])}
    figure = plot.panel(photograph(), given, explained=["cat", "dog"], predictions=PREDICTIONS)
    assert labels(figure)[2:6] == ["map fem cat", "map fem dog", "map ig cat", "map ig dog"]
    assert {"Explained classes: cat, dog", "dog · zero everywhere"} < set(texts(figure))
    for name, place in (("cat", 0), ("dog", 1)):
        alone = plot.panel(photograph(), {each: maps[place] for each, maps in given.items()}, explained=name)
        for each in given:
            np.testing.assert_array_equal(shown(figure, f"map {each} {name}"), shown(alone, f"map {each}"))
    colours = [bar.get_facecolor() for bar in figure.axes[1].patches[1::2]]
    assert colours[0] == colours[1] != colours[2], "the bars of both stand out"


# Themes.

THEMED = [
    lambda theme: plot.panel(photograph(), {"ig": signed()}, predictions=PREDICTIONS, title="t", theme=theme),
    lambda theme: plot.overlay([photograph()], heat()[None], titles=["t"], theme=theme),
    lambda theme: plot.gallery([[photograph(), PREDICTIONS]], columns="ab", labels=["a\nb"], title="t", theme=theme),
    lambda theme: plot.volume(blocks(), np.zeros((1, 2, 2, 2)), titles=["t"], theme=theme),
]


@pytest.mark.parametrize("drawn", THEMED, ids=["panel", "overlay", "gallery", "volume"])
def test_themes_have_contrast(drawn, tmp_path):
    """Words and bars stand out from the ground: 4.5 to 1 for words, as WCAG asks; also in the file."""

    def luminance(colour):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
        return np.dot(linear, [0.2126, 0.7152, 0.0722])

    def contrast(*colours):
        low, high = sorted(luminance(matplotlib.colors.to_rgba(colour)) for colour in colours)
        return (high + 0.05) / (low + 0.05)

    for theme, dark in (("light", False), ("dark", True)):
        figure = drawn(theme)
        paper = figure.get_facecolor()
        assert (luminance(paper) < 0.1) == dark
        assert min(contrast(text.get_color(), paper) for text in figure.texts) > 4.5
        bars = [bar for axes in figure.axes if axes.get_label() == "predictions" for bar in axes.patches[1::2]]
        assert min([contrast(bar.get_facecolor(), paper) for bar in bars], default=9) > 3
        plot.save(figure, tmp_path / "themed.png")
        with Image.open(tmp_path / "themed.png") as image:
            np.testing.assert_allclose(image.convert("RGB").getpixel((0, 0)), np.multiply(paper[:3], 255), atol=1)


def test_small_images_stay_crisp_and_their_heat_smooth():
    image = photograph(32, 32)
    figure = plot.panel(image, {"some": heat(4, 4)})
    enlarged = shown(figure, "image")
    np.testing.assert_array_equal(enlarged, image.repeat(8, axis=0).repeat(8, axis=1))
    assert len(np.unique(shown(figure, "map some")[100].reshape(-1, 3), axis=0)) > 50


def test_huge_images_are_scaled_down():
    figure = plot.panel(np.zeros((1500, 3000, 3), np.uint8), maps(1))
    assert shown(figure, "map method_of_20_chars00").shape == (512, 1024, 3)


def test_panel_of_a_normalised_image():
    [image] = np.asarray(PREPROCESS(str(sample())))
    assert shown(plot.panel(image, maps(1)), "image").max() == 255


# Whatever the user's settings.


def test_settings_of_the_user_neither_matter_nor_change():
    def figure():
        return plot.panel(photograph(), maps(2), predictions=PREDICTIONS, title="t", explained="cat")

    plain = figure()._repr_png_()
    with matplotlib.rc_context():
        matplotlib.style.use("dark_background")
        settings = {"axes.grid": True, "xtick.minor.visible": True, "figure.autolayout": True}
        settings |= {"savefig.bbox": "tight", "savefig.transparent": True, "text.usetex": True, "font.size": 30.0}
        settings |= {
            "image.origin": "lower",
            "image.interpolation": "gaussian",
            "image.cmap": "gray",
            "figure.dpi": 30.0,
        }
        matplotlib.rcParams.update(settings)
        before = dict(matplotlib.rcParams)
        assert figure()._repr_png_() == plain and figure().get_facecolor() == (1, 1, 1, 1)
        assert dict(matplotlib.rcParams) == before


def test_plotting_needs_no_pyplot():
    """In a fresh process: importing loads no matplotlib, and drawing loads no pyplot."""
    program = """
import sys
import numpy as np
from jaxcam import plot
assert "matplotlib" not in sys.modules
plot.panel(np.zeros((8, 8, 3), np.uint8), {"a": np.eye(2)}, predictions=[("cat", 1.0)])._repr_png_()
plot.overlay(np.zeros((1, 8, 8, 3), np.uint8), np.zeros((1, 2, 2)))
assert "matplotlib.figure" in sys.modules and "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)


def test_notebooks_and_pickle():
    figure = plot.overlay(photograph()[None], heat()[None])
    assert figure._repr_png_().startswith(b"\x89PNG")
    assert pickle.loads(pickle.dumps(figure))._repr_png_() == figure._repr_png_()
    formatters = pytest.importorskip("IPython.core.formatters")
    assert "image/png" in formatters.DisplayFormatter().format(figure)[0], "as the last line of a cell"


def test_show(monkeypatch):
    """Where the system has a viewer it gets the picture, in a notebook the cell does; otherwise one hears why not."""
    figure, seen = plot.overlay(photograph()[None], heat()[None]), []
    monkeypatch.setattr(ImageShow, "show", lambda image: seen.append(image.size) or True)
    figure.show()
    np.testing.assert_allclose(seen, [100 * figure.get_size_inches()], atol=1)
    monkeypatch.setattr(ImageShow, "show", lambda image: False)
    with pytest.raises(OSError, match=r"no viewer of pictures here; jaxcam.plot.save"):
        figure.show()
    IPython = pytest.importorskip("IPython")
    monkeypatch.setattr(IPython, "get_ipython", lambda: SimpleNamespace(kernel=None))
    monkeypatch.setattr("IPython.display.display", seen.append)
    figure.show()
    assert seen[1:] == [figure]


# Saving.


def test_save(tmp_path):
    path = tmp_path / "new" / "folder" / "panel.png"
    figure = plot.panel(photograph(), maps(1))
    plot.save(figure, path)
    with Image.open(path) as image:
        assert image.format == "PNG"
        np.testing.assert_allclose(image.size, 150 * figure.get_size_inches(), atol=1)
        assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
    plot.save(figure, str(path))  # again: replaces
    assert [each.name for each in path.parent.iterdir()] == ["panel.png"]


def test_save_where_no_folder_can_be(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"Cannot write '.*file/panel.png': .+\. Choose another output folder\."):
        plot.save(plot.overlay(photograph()[None], heat()[None]), tmp_path / "file" / "panel.png")
    (tmp_path / "taken.png").mkdir()
    with pytest.raises(OSError, match=r"Cannot write '.*taken.png'"):
        plot.save(plot.overlay(photograph()[None], heat()[None]), tmp_path / "taken.png")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["file", "taken.png"]


@pytest.mark.parametrize("step", ["os.fsync", "pathlib.Path.replace"])
def test_save_leaves_nothing_half_written(tmp_path, monkeypatch, step):
    figure = plot.overlay(photograph()[None], heat()[None])
    (tmp_path / "old.png").write_bytes(b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(step, full)
    with pytest.raises(OSError, match=r"Cannot write '.*old.png': No space left on device"):
        plot.save(figure, tmp_path / "old.png")
    assert [each.name for each in tmp_path.iterdir()] == ["old.png"] and (tmp_path / "old.png").read_bytes() == b"old"


@pytest.mark.parametrize("kind", ["svg", "pdf"])
def test_save_as_vectors(tmp_path, kind):
    """Words are no pixels, pictures are, and the file does not say when it was written."""
    figure = plot.panel(photograph(300, 300), {"grad_cam": heat()}, title="A cat")
    files = [tmp_path / f"{scale}.{kind}" for scale in (1, 2)]
    for scale, file in enumerate(files, 1):
        plot.save(figure, file, scale=scale)
    small, large = (file.read_bytes() for file in files)
    start, picture, letters, date = {
        "svg": (b"<?xml", b"data:image/png;base64", b'id="DejaVuSans-', b"<dc:date>"),
        "pdf": (b"%PDF", b"/Subtype /Image", b"/Type /Font", b"/CreationDate"),
    }[kind]
    assert small.startswith(start) and letters in small and date not in small
    assert small.count(picture) >= 3, "the photograph, the map and the scale"
    assert len(large) > 2 * len(small), "the pictures have more pixels"


def test_save_at_a_scale(tmp_path):
    figure = plot.overlay(photograph()[None], heat()[None])
    for scale in (1, 2, 0.5):
        plot.save(figure, tmp_path / "overlay.png", scale=scale)
        with Image.open(tmp_path / "overlay.png") as image:
            np.testing.assert_allclose(image.size, 150 * scale * figure.get_size_inches(), atol=1)
    for scale in (0, -1, 9, float("nan")):
        with pytest.raises(ValueError, match=rf"scale is {scale}; expected a number above 0 and at most 8"):
            plot.save(figure, tmp_path / "overlay.png", scale=scale)


def test_save_knows_three_formats(tmp_path):
    with pytest.raises(ValueError, match=r"panel.tif' does not end in .png, .svg or .pdf; figure.savefig writes other"):
        plot.save(plot.overlay(photograph()[None], heat()[None]), tmp_path / "panel.tif")


# Mistakes.

NAN = np.where(np.eye(7), np.nan, 0.5)
HEATMAP_MISTAKES = [
    (heat(), r"The heatmaps have shape \(7, 7\); expected \[n, h, w\]. Use heatmap\[None\] for one"),
    (np.zeros((2, 0, 7)), r"have shape \(2, 0, 7\)"),
    (np.zeros((3, 7, 7)), r"There are 3 heatmaps and 2 images; give one heatmap per image"),
    (np.stack([heat(), NAN]), r"Heatmap 2 of 2 has NaN or infinite values"),
    (np.stack([heat(), 255 * heat()]), r"Heatmap 2 of 2 ranges from .* to .*; expected \[0, 1\]"),
]


@pytest.mark.parametrize(("heatmaps", "message"), HEATMAP_MISTAKES)
@pytest.mark.parametrize("function", [plot.blend, plot.overlay])
def test_wrong_heatmaps(function, heatmaps, message):
    with pytest.raises(ValueError, match=message):
        function([photograph()] * 2, heatmaps)


SIGNED = [
    (np.zeros((2, 7, 7, 3)), r"expected \[n, h, w\]. For attributions, use jaxcam.heatmap\(attributions\)"),
    (
        np.stack([heat() - 0.5, heat()]),
        r"Heatmap 1 of 2 ranges from -0.* For signed attributions, use jaxcam.plot.over",
    ),
]


@pytest.mark.parametrize(("given", "message"), SIGNED)
def test_attributions_are_no_colours_of_blend(given, message):
    with pytest.raises(ValueError, match=message):
        plot.blend([photograph()] * 2, given)


ATTRIBUTION_MISTAKES = [
    (np.stack([signed()] * 3), r"There are 3 attributions and 2 images; give one per image"),
    (np.stack([signed(), np.nan * signed()]), r"Map 2 of 2 has NaN or infinite values"),
    (np.ones((2, 7, 7, 64)), r"Map 1 of 2 has shape \(7, 7, 64\); expected .* of attributions"),
]


@pytest.mark.parametrize(("given", "message"), ATTRIBUTION_MISTAKES)
def test_wrong_attributions(given, message):
    with pytest.raises(ValueError, match=message):
        plot.overlay([photograph()] * 2, given)


IMAGE_MISTAKES = [
    (photograph(), r"The images have shape \(60, 60, 3\); expected \[n, h, w, 3\] or a list. Use \[image\] for one"),
    ([photograph(), photograph()[0]], r"Image 2 of 2 has shape \(60, 3\); expected \[h, w, 3\]"),
    (np.zeros((2, 3, 8, 8)), r"Image 1 of 2 has shape \(3, 8, 8\); expected \[h, w, 3\]"),
    (["cat.jpg"], r"The image has shape \(\); expected \[h, w, 3\]. For files, use preprocess.view\(files\)"),
    ([], r"There are no images"),
    (np.zeros((1, 0, 8, 3)), r"has shape \(0, 8, 3\)"),
    (np.full((1, 8, 8, 3), np.nan), r"The image has NaN or infinite pixels"),
    (np.zeros((1, 8, 8, 3), np.int32), r"The image holds int32; expected uint8 or floating point"),
]


@pytest.mark.parametrize(("images", "message"), IMAGE_MISTAKES)
@pytest.mark.parametrize("function", [plot.blend, plot.overlay])
def test_wrong_images(function, images, message):
    with pytest.raises(ValueError, match=message):
        function(images, np.zeros((1, 7, 7)))


def test_wrong_colormap():
    calls = [
        lambda: plot.colorize(heat()[None], "infreno"),
        lambda: plot.blend(photograph()[None], heat()[None], colormap="infreno"),
        lambda: plot.overlay(photograph()[None], heat()[None], colormap="infreno"),
        lambda: plot.panel(photograph(), maps(1), colormap="infreno"),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"Unknown colour map 'infreno'. Did you mean 'inferno'"):
            call()


@pytest.mark.parametrize("alpha", [-0.1, 1.5, float("nan")])
def test_wrong_alpha(alpha):
    with pytest.raises(ValueError, match=rf"alpha is {alpha}; expected a number in \[0, 1\], or None"):
        plot.blend(photograph()[None], heat()[None], alpha=alpha)


def test_blend_takes_one_size():
    with pytest.raises(ValueError, match=r"shapes \[\(60, 60, 3\), \(70, 60, 3\)\]; blend takes images of one size"):
        plot.blend([photograph(), photograph(70)], np.zeros((2, 7, 7)))


def test_wrong_number_of_titles():
    with pytest.raises(ValueError, match=r"There are 2 titles and 1 images"):
        plot.overlay(photograph()[None], heat()[None], titles=["a", "b"])


# Curves.


def test_labels_of_curves_stay_apart_and_inside():
    values = {"integrated gradients / saliency": [0.1, 0.5], "b": [0.3, 0.5], "c": [0.2, 0.501]}
    figure = plot.curves(values, x=[0.4, 0.9], intervals={"b": [0.1, 0.1]}, limits=(0.25, 1), xlabel="accuracy")
    [axes] = figure.axes
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in axes.texts]
    [band] = axes.collections
    assert len(boxes) == 3 and np.ptp(band.get_paths()[0].vertices[:, 1]) == pytest.approx(0.6 - 0.25)
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert all(box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1 for box in boxes)
    np.testing.assert_array_equal(axes.lines[0].get_xdata(), [0.4, 0.9])


@pytest.mark.parametrize("seed", [0, 2])  # by the width on the screen two labels would meet, and two leave the chart
def test_labels_of_points_stay_apart_and_inside_at_a_files_resolution(seed):
    rng = np.random.default_rng(seed)
    points = {f"method_number_{k}": (10 ** rng.uniform(0, 3), rng.uniform(0.2, 0.8)) for k in range(40)}
    figure = plot.scatter({"": points}, log_x=True)
    figure.set_dpi(200)  # where letters are wider
    figure.canvas.draw()
    [axes] = figure.axes
    boxes = [Text.get_window_extent(text) for text in axes.texts]  # without the lines that lead to them
    assert len(boxes) == len(points)
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert all(axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1 + 30 * 200 / 72 for box in boxes)


def test_points_in_one_place_share_a_label_however_many():
    names = [f"Grad-CAM{k}" for k in range(30)]  # in one line they would be wider than the chart
    [axes] = plot.scatter({"": {**dict.fromkeys(names, (1.0, 2.0)), "other": (3.0, 4.0)}}).axes
    assert sorted(text.get_text().replace("\n", " ") for text in axes.texts) == [", ".join(names), "other"]


def test_places_that_are_whole_numbers_have_no_halves_between():
    [axes] = plot.curves({"a": [0.1, 0.5, 0.2]}, x=range(3)).axes
    ticks = axes.get_xticks()
    np.testing.assert_array_equal(ticks, np.round(ticks))


PANEL_MISTAKES = [
    ({}, {}, r"There are no heatmaps"),
    ({"grad_cam": heat()[None]}, {}, r"'grad_cam' has shape \(1, 7, 7\); expected \[h, w\], or \[h, w, c\]"),
    ({"grad_cam": heat()[None, None]}, {}, r"'grad_cam' has shape \(1, 1, 7, 7\); expected \[h, w\]"),
    ({"saliency": NAN[..., None]}, {}, r"The heatmap 'saliency' has NaN"),
    ({"fem": heat()[None]}, {"explained": ["cat", "dog"]}, r"There are 1 heatmaps 'fem'; .* each of the 2 classes"),
    (maps(1), {"percentile": 0}, r"percentile is 0 and smoothing 0.01; expected \(0, 100\], and 0 or more"),
    (maps(1), {"smoothing": -1}, r"smoothing -1; expected"),
    (maps(1), {"theme": "drak"}, r"Unknown theme 'drak'. Did you mean 'dark'"),
    ({"saliency": heat() - 1}, {}, r"The heatmap 'saliency' ranges from -"),
    ({"saliency": NAN}, {}, r"The heatmap 'saliency' has NaN"),
    (maps(1), {"predictions": [("cat", 87.1)]}, r"The probability of 'cat' is 87.1; expected a number in \[0, 1\]"),
    (maps(1), {"predictions": [("cat", float("nan"))]}, r"The probability of 'cat' is nan"),
]


@pytest.mark.parametrize(("heatmaps", "options", "message"), PANEL_MISTAKES)
def test_wrong_panels(heatmaps, options, message):
    with pytest.raises(ValueError, match=message):
        plot.panel(photograph(), heatmaps, **options)


# Figures of studies.


def test_gallery_draws_each_kind_of_cell():
    image, map_ = photograph(32, 32), heat()
    row = [image, map_, (image, map_), list(PREDICTIONS), None]
    columns = ["image", "heat", "both", "predictions", "nothing"]
    figure = plot.gallery([row] * 3, columns=columns, labels=["cat\nright"] * 3, title="Cats", across=2)
    expected = [f"{kind} {index}.{place}" for index in (1, 2, 3) for place, kind in ((1, "image"), (2, "heatmap"))]
    assert set(expected) < set(labels(figure)) and labels(figure).count("predictions") == 3
    assert labels(figure)[-1] == "colour scale"
    assert texts(figure).count("heat") == 2 and texts(figure).count("right") == 3 and texts(figure)[0] == "Cats"
    np.testing.assert_array_equal(shown(figure, "overlay 3.3")[::256], shown(figure, "overlay 1.3")[::256])
    assert _layout.written(figure, "png", 50)


def test_gallery_rows_stand_below_or_beside_each_other():
    def corners(**options):
        figure = plot.gallery([[photograph()]] * 4, **options)
        return [tuple(np.round(axes.get_position().bounds[:2], 6)) for axes in figure.axes]

    for across, columns in ((1, 1), (2, 2), (9, 4)):
        found = corners(across=across)
        assert len({x for x, _ in found}) == columns and len({y for _, y in found}) == 4 // columns
    assert labels(plot.gallery([[photograph()]])) == ["image 1.1"]  # no heat, no scale


def test_matrix_writes_every_count():
    figure = plot.matrix([[1200, 1], [0, 8]], ["cat", "dog"], xlabel="predicted", ylabel="true", title="Confusions")
    [axes] = figure.axes
    assert [text.get_text() for text in axes.texts] == ["1,200", "1", "0", "8"]
    assert texts(figure).count("cat") == 2 and {"predicted", "true", "Confusions"} < set(texts(figure))


def test_intervals_are_drawn_where_they_are():
    values = {"first": {"a": (0.5, 0.1), "b": (0.25, 0.0)}, "second": {"a": (-1.0, 2.0), "once": (0.75, np.nan)}}
    figure = plot.intervals(values, xlabel="share", title="Shares", reference=0)
    [axes] = figure.axes
    assert [container.lines[0].get_xdata()[0] for container in axes.containers] == [0.5, 0.25, -1.0, 0.75]
    assert {"first", "second", "a", "b", "0.500 ± 0.100", "0.750"} < set(texts(figure))
    [ratios] = plot.intervals({"": {"a": (0.5, 0.1), "b": (500.0, 1.0)}}, log_x=True).axes
    assert ratios.get_xscale() == "log"


# Signals.


def waves(channels=3, length=200):
    return np.sin(np.linspace(0, 20, length)[:, None] + np.arange(channels)).astype(np.float32)


def lines(axes):
    """The coloured curves of each channel, without their glow: the points of each stretch, and its colour."""
    return [(np.array(each.get_segments()), each.get_colors()) for each in axes.collections[1::2]]


def test_signals_are_coloured_by_their_heat():
    heatmaps = np.zeros((2, 4), np.float32)
    heatmaps[0, 3] = 1
    figure = plot.signal(
        [waves(1), 100 * waves(3)], heatmaps, titles=["one", "two"], x=np.linspace(0, 4, 200), xlabel="seconds"
    )
    assert labels(figure) == ["signal 1", "signal 2", "colour scale"]
    assert texts(figure) == ["one", "0", "1", "2", "two", "zero everywhere", "0", "relative importance", "1"]
    first, second, _ = figure.axes
    [(points, colours)] = lines(first)
    assert points[:, :, 0].min() > 2.4, "where the heat begins: after the centre of the third of four stretches"
    np.testing.assert_allclose(colours[-1][:3], np.array([252, 255, 164]) / 255, atol=0.01)  # the hottest of inferno
    np.testing.assert_allclose(first.lines[0].get_xydata(), np.stack([np.linspace(0, 4, 200), waves(1)[:, 0]], -1))
    assert [len(segments) for segments, _ in lines(second)] == [0] * 3, "no heat, no colour"
    assert first.get_xlabel() == "" and second.get_xlabel() == "seconds"


def test_channels_have_bands_of_their_own():
    values = np.concatenate([waves(2) * [1, 1000], np.ones((200, 1))], axis=-1)
    figure = plot.signal(values[None], np.ones((1, 200)), channels=["a", "b", "a name that is far too long"])
    axes = figure.axes[0]
    heights = [line.get_ydata() for line in axes.lines if len(line.get_ydata()) == 200]
    assert [(round(each.min(), 3), round(each.max(), 3)) for each in heights] == [(0.1, 0.9), (1.1, 1.9), (2.5, 2.5)]
    assert np.argmin(heights[0]) == np.argmax(values[:, 0]), "what is larger is higher up"
    assert axes.yaxis_inverted() and {"a", "b"} < set(texts(figure))
    check_layout(figure)


def test_long_signals_keep_their_extremes():
    values = np.random.default_rng(0).normal(size=(100_000, 1)).astype(np.float32)
    values[77_777], values[5] = 40, -40
    [drawn] = plot.signal(values[None], np.ones((1, 9))).axes[0].lines
    assert len(drawn.get_xdata()) < 7000
    assert {5, 77_777, 0, 99_999} < set(drawn.get_xdata()) and drawn.get_ydata().max() == 40


SIGNAL_MISTAKES = [
    ((waves(), np.ones((1, 9))), {}, r"Signal 1 of 200 has shape \(3,\); expected \[length, c\].*use signals\[None\]"),
    (([], np.ones((1, 9))), {}, r"There are no signals"),
    (([waves()[:1]], np.ones((1, 9))), {}, r"The signal has shape \(1, 3\).*two places or more"),
    (([waves() * np.nan], np.ones((1, 9))), {}, r"The signal has NaN"),
    (([waves()], np.ones(9)), {}, r"The heatmaps have shape \(9,\); expected \[n, length\]. Use heatmap\[None\]"),
    (([waves()], np.ones((1, 9, 3))), {}, r"expected \[n, length\]. For attributions, use jaxcam.heatmap"),
    (([waves()], np.ones((2, 9))), {}, r"There are 2 heatmaps and 1 signals; give one heatmap per signal"),
    (([waves()], 2 * np.ones((1, 9))), {}, r"Heatmap 1 of 1 ranges from 2 to 2; expected \[0, 1\]"),
    (([waves()], np.ones((1, 9))), {"titles": ["a", "b"]}, r"2 titles and 1 signals"),
    (([waves()], np.ones((1, 9))), {"channels": ["a", "b"]}, r"2 names and signal 1 has 3 channels"),
    (([waves()], np.ones((1, 9))), {"x": range(9)}, r"9 places in x, and signal 1 has 200 values"),
    (([waves()], np.ones((1, 9))), {"colormap": "infreno"}, r"Unknown colour map 'infreno'"),
]


@pytest.mark.parametrize(("given", "options", "message"), SIGNAL_MISTAKES)
def test_wrong_signals(given, options, message):
    with pytest.raises(ValueError, match=message):
        plot.signal(*given, **options)


# Volumes.


def blocks(n=1):
    return np.random.default_rng(0).integers(0, 256, (n, 8, 10, 12, 1), dtype=np.uint8)


@pytest.mark.parametrize(("axis", "places"), [(0, [2, 6]), (1, [2, 7]), (2, [3, 9])])
def test_volumes_are_cut_where_the_captions_say(axis, places):
    volumes, heatmaps = blocks(2), np.zeros((2, 4, 5, 6), np.float32)
    figure = plot.volume(volumes, heatmaps, axis=axis, num_slices=2, titles=["one", "two"])
    length = volumes.shape[1 + axis]
    assert labels(figure) == ["overlay 1.1", "overlay 1.2", "overlay 2.1", "overlay 2.2", "colour scale"]
    captions = [f"{place + 1} / {length}" for place in places]
    assert texts(figure)[:6] == [*captions, "one", "zero everywhere", "two", "zero everywhere"]
    for row, column in np.ndindex(2, 2):
        expected = volumes[row].take(places[column], axis)[..., 0]
        picture = shown(figure, f"overlay {row + 1}.{column + 1}")
        times = len(picture) // len(expected)
        np.testing.assert_array_equal(picture[::times, ::times], expected[..., None].repeat(3, -1))
    check_layout(figure)


def test_heat_is_stretched_through_the_volume():
    """Four values over eight slices: halfway between two centres lies their weighted mean."""
    heatmaps = np.float32([0, 0, 1, 1])[None, :, None, None] * np.ones((1, 4, 5, 6), np.float32)
    figure = plot.volume(np.zeros((1, 8, 10, 12, 3), np.uint8), heatmaps, num_slices=99, colormap="gray", alpha=1.0)
    found = [shown(figure, f"overlay 1.{index}").mean() / 255 for index in range(1, 9)]
    np.testing.assert_allclose(found, [0, 0, 0, 0.25, 0.75, 1, 1, 1], atol=0.01)
    assert "zero everywhere" not in texts(figure) and texts(figure)[0] == "1 / 8"
    assert len({round(axes.get_position().y0, 6) for axes in figure.axes[:8]}) == 1, "one row"


def test_floats_are_spread_over_their_volume():
    volumes = np.linspace(-1000, 3000, 8 * 10 * 12).reshape(1, 8, 10, 12, 1)
    figure = plot.volume(volumes, np.zeros((1, 2, 2, 2)), num_slices=8)
    pictures = [shown(figure, f"overlay 1.{index}") for index in range(1, 9)]
    assert pictures[0].min() == 0 and pictures[-1].max() == 255
    assert pictures[0].max() < 50, "not each slice for itself"


VOLUME_MISTAKES = [
    ((blocks()[0], np.ones((1, 2, 2, 2))), {}, r"have shape \(8, 10, 12, 1\); expected \[n, d, h, w, 1\] or"),
    ((np.zeros((1, 4, 4, 4, 2)), np.ones((1, 2, 2, 2))), {}, r"expected .* Use volumes\[..., :1\]"),
    (([], np.ones((1, 2, 2, 2))), {}, r"The volumes are none"),
    (([blocks()[0], blocks()[0, 1:]], np.ones((2, 2, 2, 2))), {}, r"shapes .* give volumes of one size"),
    ((blocks() * np.nan, np.ones((1, 2, 2, 2))), {}, r"A volume has NaN or infinite voxels"),
    ((blocks().astype(np.int32), np.ones((1, 2, 2, 2))), {}, r"A volume holds int32"),
    ((blocks(), np.ones((2, 2, 2))), {}, r"expected \[n, d, h, w\]. Use heatmap\[None\] for one"),
    ((blocks(), np.ones((1, 2, 2, 2, 3))), {}, r"expected \[n, d, h, w\]. For attributions, use jaxcam.heatmap"),
    ((blocks(), np.ones((2, 2, 2, 2))), {}, r"2 heatmaps and 1 volumes; give one heatmap per volume"),
    ((blocks(), np.ones((1, 2, 2, 2))), {"axis": 3}, r"axis is 3; a volume has the axes of space 0, 1 and 2"),
    ((blocks(), np.ones((1, 2, 2, 2))), {"num_slices": 0}, r"num_slices is 0; expected at least 1"),
    ((blocks(), np.ones((1, 2, 2, 2))), {"titles": ["a", "b"]}, r"2 titles and 1 volumes"),
]


@pytest.mark.parametrize(("given", "options", "message"), VOLUME_MISTAKES)
def test_wrong_volumes(given, options, message):
    with pytest.raises(ValueError, match=message):
        plot.volume(*given, **options)


STUDY_MISTAKES = [
    (lambda: plot.gallery([]), "equally many cells"),
    (lambda: plot.gallery([[photograph()], [photograph()] * 2]), "equally many cells"),
    (lambda: plot.gallery([[photograph()]], columns=["a", "b"]), "2 columns and 0 labels for 1x1"),
    (lambda: plot.gallery([[photograph()]], labels=["a", "b"]), "0 columns and 2 labels for 1x1"),
    (lambda: plot.gallery([[2 * heat()]]), r"The heatmap ranges from .*; expected \[0, 1\]"),
    (lambda: plot.matrix([[1, 2]], ["a"]), r"shape \(1, 2\); expected 1 labels"),
    (lambda: plot.intervals({"a": {}}), "nothing to draw"),
    (lambda: plot.intervals({"a": {"b": (0.0, 1.0)}}, log_x=True), "no place on a logarithmic axis; leave log_x out"),
]


@pytest.mark.parametrize(("call", "message"), STUDY_MISTAKES)
def test_wrong_figures_of_studies(call, message):
    with pytest.raises(ValueError, match=message):
        call()
