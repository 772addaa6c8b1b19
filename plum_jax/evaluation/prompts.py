"""The one question that an evaluation asks about a name: by default the first of the templates that train."""

from data_pipelines.conversation import IMAGE
from data_pipelines.naming import SLOT, is_reserved
from plum_jax.errors import UserError


def add_flag(parser):
    parser.add_argument("--question", metavar="TEXT", help=f"how to ask, with {SLOT} for the name; default of the family")


def template(given, default):
    """--question or the default, without the placeholder of the image. UserError for a text without exactly one slot."""
    text = default.removeprefix(f"{IMAGE}\n") if given is None else given
    if text.count(SLOT) != 1 or is_reserved(text):
        raise UserError(f"--question {text!r}: write {SLOT} once where the name goes, and no {IMAGE}")
    return text
