"""The appearance of methods, equal on all plots: a name, a colour, a marker and a line.

Colours are from the palette of Okabe and Ito, which is safe for colour blindness. page.css holds
their values for light and dark pages under the method's key.
"""

from harness.attentions.alibi import Alibi
from harness.attentions.base import Style as Method
from harness.attentions.window import Window

EXACT, WINDOW = Alibi.style, Window.style
WINDOW_FUSED = Method("window-fused", "window of equal fused pairs", "square")
SLIDING_FUSED = Method("sliding", "sliding window of equal fused pairs", "hexagon")
WINDOW_PASSES = Method("window-passes", "window of equal pairs in passes", "triangle-up")
# by the names of `harness.attentions.registry.EQUAL_COST`
WINDOWS: dict[str, Method] = {"window": WINDOW_FUSED, "sliding": SLIDING_FUSED, "passes": WINDOW_PASSES}

__all__ = ["EXACT", "WINDOW", "WINDOWS", "WINDOW_FUSED", "WINDOW_PASSES", "Method"]
