"""The category names of PACO-LVIS, PASCAL-Part and PartImageNet taken apart: the pieces [object] or [object, part] (D 2).

What a piece may hold and how it is written is up to those who use it: questions keep the words of the source and refuse a name
that does not fit, training puts them into the form of its templates and leaves such a category out.
"""

SENSE = "_("  # what follows only tells senses of a word apart: mouse_(animal)


def paco_lvis(category):
    """`mug_(cup):handle` -> ["mug", "handle"]; without a colon an object."""
    return [piece.partition(SENSE)[0] for piece in category["name"].split(":")]


def pascal_part(category):
    """`aeroplane:wing` -> ["aeroplane", "wing"]; there are no whole objects."""
    return category["name"].split(":")


def partimagenet(category):
    """`Quadruped Head` of the supercategory `Quadruped` -> ["quadruped", "head"], `Quadruped` alone -> ["quadruped"]."""
    whole, name = (" ".join(category[field].split()).lower() for field in ("supercategory", "name"))
    rest = name.removeprefix(whole)
    if not rest:
        return [whole]
    return [whole, rest.strip(" _-") if rest[0] in " _-" else name]
