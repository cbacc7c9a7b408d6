"""Colours that are told apart with any colour vision (Okabe and Ito, 2008)."""

BLUE, ORANGE, GREY = "#56B4E9", "#E69F00", "#666666"
