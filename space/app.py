"""The demo as a Space of the Hugging Face hub: ``python app.py``."""

from __future__ import annotations

from capsdesc import CAPSExtractor
from capsdesc.demo.page import MAX_UPLOAD, build_page
from capsdesc.demo.photographs import EXAMPLE, read_photograph

MAX_SIZE = 1024  # pixels of the longer edge
WAITING = 20  # visitors

first, second = (read_photograph(path, MAX_SIZE) for path in EXAMPLE)
demo = build_page(CAPSExtractor(), (first, second), MAX_SIZE)

if __name__ == "__main__":
    # Where to listen, the hub says in the environment.
    demo.queue(max_size=WAITING).launch(max_file_size=MAX_UPLOAD, show_error=True, ssr_mode=False)
