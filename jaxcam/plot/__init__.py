"""Heatmaps as pictures: colours, overlays, and the panel that shows one photograph with many explanations.

The only folder that imports matplotlib, and only inside functions. Figures are built from `Figure` and the Agg canvas
alone: no pyplot state and no rcParams are touched, so everything works headless, in threads and in notebooks.

Conventions:

- A heatmap is float `[h, w]` in [0, 1], of any resolution: it is stretched over its image bilinearly. Those of signals
  `[length]` and of volumes `[d, h, w]` likewise.
- An image to be shown is `[h, w, 3]`: uint8, float in [0, 1], or normalised floats as `preprocess` gives them, which
  are spread from their minimum to their maximum per image (`preprocess.restore` gives the exact colours). Arrays given
  together are judged together: all of them count as normalised where any value lies outside [0, 1].
- Layouts are computed in inches from the top left, so that nothing overlaps at any number of methods.
"""

from jaxcam.plot._layout import save
from jaxcam.plot._pixels import blend, colorize
from jaxcam.plot.charts import curves, intervals, matrix, scatter
from jaxcam.plot.panels import panel
from jaxcam.plot.pictures import gallery, overlay, volume
from jaxcam.plot.signals import signal

__all__ = [
    "blend",
    "colorize",
    "curves",
    "gallery",
    "intervals",
    "matrix",
    "overlay",
    "panel",
    "save",
    "scatter",
    "signal",
    "volume",
]
