"""A Hugging Face Space of a Morphogen model: every task with a form. Also `python app.py`, on this machine alone."""

import os

from morphogen import Pipeline
from morphogen.studio.gradio_app import build_app, theme

MODEL = os.environ.get("MORPHOGEN_MODEL", "tissue")  # a bundled model, a hub id, or a run's folder beside this file

page = build_app(Pipeline.from_pretrained(MODEL), MODEL.rpartition("/")[2])

if __name__ == "__main__":
    page.launch(theme=theme(), ssr_mode=False)
