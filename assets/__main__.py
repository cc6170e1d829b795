"""`make assets`: draw the README's figure again from the report that `make demo` wrote. Needs a Chrome or Chromium."""

import sys
from pathlib import Path

import plotly.io

SOURCE = Path("report/cosine-by-layer.json")
TARGET = Path("assets/cosine-by-layer.png")

if not SOURCE.is_file():
    sys.exit(f"{SOURCE} is not there: run make demo first")
figure = plotly.io.read_json(SOURCE)
plotly.io.write_image(figure, TARGET, width=1000, height=680, scale=2)
