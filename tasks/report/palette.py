"""The colours of every figure: Okabe and Ito's, told apart by colour-blind readers, and in grey by lightness and marker.

Ink is a sentinel, which becomes `currentColor`: one file serves light, dark and print.
"""

INK = "#010203"
BLUE, ORANGE, GREEN, RED, GREY = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#8a8f98"
