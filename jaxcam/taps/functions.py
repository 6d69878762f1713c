"""Two functions, up to a layer and from there on, or one: any model of any framework."""

from collections.abc import Callable
from dataclasses import dataclass

from jaxcam._errors import unknown
from jaxcam.taps.tap import Layer, Network

LAYER = "features"  # what the one layer of two functions is called


def matches(model) -> bool:
    if isinstance(model, tuple):
        return len(model) == 2 and all(map(callable, model)) and not hasattr(model, "apply")
    return callable(model) and not isinstance(model, type) and not hasattr(model, "apply")


def wrap(model, variables, options: dict):
    """The network of two functions or one, and their first argument."""
    return Functions(*model) if isinstance(model, tuple) else Function(model), variables


def layers(model) -> tuple[str, ...]:
    """The layers that are tapped where none is named."""
    return (LAYER,) if isinstance(model, tuple) else ()


@dataclass(frozen=True)
class Functions(Network):
    """The network of `features(variables, images) -> activations` and `head(variables, activations) -> output`."""

    features: Callable
    head: Callable
    shows_layers = False

    def resolve(self, model, layer):
        if layer != LAYER:
            raise unknown("layer", layer, [LAYER], "Two functions have this one layer, and it need not be named.")
        return layer

    def run(self, variables, images, inputs, options, visit, rows):
        def call(images):
            return self.features(variables, images, *inputs.placed, **inputs.named, **options)

        activations, kept = visit(Layer(LAYER, call, call, set), (images,), {}, rows)
        output = self.head(variables, activations, *inputs.placed, **inputs.named, **options)
        return output, {} if kept is None else {LAYER: [kept]}


@dataclass(frozen=True)
class Function(Network):
    """The network of one function `(variables, images) -> output`, which has no layer."""

    function: Callable
    shows_layers = False

    def resolve(self, model, layer):
        raise ValueError(
            f"layer is {layer!r}, and one function has no layer. Give two, jaxcam.tap((features, head), variables), or "
            "leave the layer out for methods that need none."
        )

    def run(self, variables, images, inputs, options, visit, rows):
        return self.function(variables, images, *inputs.placed, **inputs.named, **options), {}
