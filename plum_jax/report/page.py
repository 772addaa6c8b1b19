"""The frame of every page that we write: head, style, navigation. One file, no script, no request.

A page extends templates/page.html, and brings templates and style of its own; autoescape is on, so that only style sheets and
charts are trusted markup.
"""

from pathlib import Path

import jinja2
from markupsafe import Markup

HERE = Path(__file__).parent


def render(template, *, folder=None, styles=(), **context):
    """Name of a template -> HTML text.

    Args:
      folder: where the page has its own templates, beside those of the report. styles: its CSS files, after ours.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([*([folder] if folder else []), HERE / "templates"]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["words"] = lambda name: name.replace("_", " ")
    style = Markup("".join(path.read_text(encoding="utf-8") for path in (HERE / "style.css", *styles)))
    text = environment.get_template(template).render(style=style, **context)
    return text.encode("utf-8", "replace").decode("utf-8")  # a JSON file may hold halves of surrogate pairs
