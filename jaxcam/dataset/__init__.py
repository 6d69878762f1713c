"""Whole data sets: every image explained, on all devices of any number of machines, and nothing lost.

>>> jaxcam.dataset.explain("efficientnet_lite0", "photos/", "out", methods=["grad_cam"])  # doctest: +SKIP
>>> results = jaxcam.dataset.open("out")  # doctest: +SKIP
"""

from jaxcam.dataset.ray import Explainer
from jaxcam.dataset.report import report
from jaxcam.dataset.run import Progress, explain
from jaxcam.dataset.store import Results, open

__all__ = ["Explainer", "Progress", "Results", "explain", "open", "report"]
