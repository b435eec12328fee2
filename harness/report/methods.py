"""Methods as a reader sees them: a name, and a colour, marker and line that are the same on every
plot of every page.

Colours are Okabe and Ito's, which readers with and without colour blindness tell apart; page.css
holds their values for a light and a dark page under the method's key.
"""

from harness.attentions.alibi import Alibi
from harness.attentions.base import Style as Method
from harness.attentions.window import Window

EXACT, WINDOW = Alibi.style, Window.style
WINDOW_FUSED = Method("window-fused", "window of equal fused pairs", "square")
WINDOW_PASSES = Method("window-passes", "window of equal pairs in passes", "triangle-up")

__all__ = ["EXACT", "WINDOW", "WINDOW_FUSED", "WINDOW_PASSES", "Method"]
