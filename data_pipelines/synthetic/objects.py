"""The catalogue: objects, their parts, and one canonical colour per part name, shared by all objects that have the part."""

from collections.abc import Callable
from typing import NamedTuple

from data_pipelines.synthetic import animals, household, vehicles


class ObjectKind(NamedTuple):
    """An object class and the parts that it can have."""

    name: str
    category: str
    draw: Callable  # draw(u) -> list of Piece; u(low, high) is a random number
    always: tuple[str, ...]  # parts that every instance has
    core: tuple[str, ...]  # parts that nearly every instance has
    optional: tuple[str, ...]  # parts that half of the instances have
    held_out: tuple[str, str] | None = None  # optional parts that occur together in the heldout split, and only there
    needs: tuple[tuple[str, str], ...] = ()  # (part, the part that carries it)

    @property
    def parts(self):
        return tuple(sorted(self.always + self.core + self.optional))


OBJECTS = (
    ObjectKind(
        "car", "vehicles", vehicles.car, ("body",), ("wheel", "window"), ("door", "headlight", "roof rack", "spoiler"),
        held_out=("roof rack", "spoiler"),
    ),
    ObjectKind(
        "truck", "vehicles", vehicles.truck, ("cab",), ("wheel", "cargo box"), ("window", "headlight", "exhaust pipe"),
    ),
    ObjectKind(
        "train", "vehicles", vehicles.train, ("boiler",), ("cab", "wheel"), ("window", "headlight", "chimney", "bumper"),
        held_out=("chimney", "bumper"), needs=(("window", "cab"),),
    ),
    ObjectKind(
        "airplane", "vehicles", vehicles.airplane, ("fuselage",), ("wing", "tail"), ("engine", "window", "propeller", "wheel"),
        needs=(("engine", "wing"),),
    ),
    ObjectKind(
        "sailboat", "vehicles", vehicles.sailboat, ("hull",), ("sail", "mast"), ("flag", "cabin", "window", "rudder"),
        held_out=("flag", "rudder"), needs=(("flag", "mast"),),
    ),
    ObjectKind(
        "desk lamp", "lamps", household.desk_lamp, ("arm",), ("shade", "base"), ("bulb", "switch", "cord"),
        held_out=("bulb", "cord"), needs=(("switch", "base"), ("cord", "base")),
    ),
    ObjectKind(
        "floor lamp", "lamps", household.floor_lamp, ("pole",), ("shade", "base"), ("bulb", "switch", "cord", "tray"),
        needs=(("cord", "base"),),
    ),
    ObjectKind("lantern", "lamps", household.lantern, ("globe",), ("base", "cap"), ("handle", "flame", "knob")),
    ObjectKind(
        "bird", "animals", animals.bird, ("body", "head"), ("wing",), ("tail", "leg", "beak", "crest"),
        held_out=("tail", "crest"),
    ),
    ObjectKind("cat", "animals", animals.cat, ("body", "head"), ("leg",), ("tail", "ear", "collar")),
    ObjectKind("fish", "animals", animals.fish, ("body",), ("tail", "head"), ("fin", "eye", "gill"), needs=(("eye", "head"),)),
    ObjectKind(
        "hammer", "tools", household.hammer, ("handle",), ("head", "claw"), ("grip", "cap", "strap"), needs=(("claw", "head"),),
    ),
    ObjectKind("wheelbarrow", "tools", household.wheelbarrow, ("tray",), ("wheel", "handle"), ("leg", "grip", "bumper")),
    ObjectKind(
        "chair", "furniture", household.chair, ("seat",), ("back", "leg"), ("armrest", "cushion", "headrest"),
        held_out=("armrest", "headrest"), needs=(("headrest", "back"),),
    ),
    ObjectKind(
        "cabinet", "furniture", household.cabinet, ("body",), ("door", "drawer"), ("leg", "handle", "mirror"),
    ),
)  # fmt: skip

PART_COLOURS = {  # hue in degrees, saturation, value
    "arm": (20, 0.60, 0.80), "armrest": (285, 0.40, 0.62), "back": (150, 0.40, 0.62), "base": (228, 0.45, 0.52),
    "beak": (50, 0.85, 0.95), "body": (28, 0.72, 0.95), "boiler": (145, 0.50, 0.52), "bulb": (54, 0.60, 1.00),
    "bumper": (330, 0.55, 0.80), "cab": (3, 0.70, 0.82), "cabin": (265, 0.40, 0.75), "cap": (46, 0.75, 0.88),
    "cargo box": (208, 0.50, 0.82), "chimney": (285, 0.50, 0.56), "claw": (165, 0.50, 0.60), "collar": (130, 0.60, 0.55),
    "cord": (326, 0.55, 0.68), "crest": (350, 0.68, 0.86), "cushion": (50, 0.65, 0.95), "door": (176, 0.60, 0.66),
    "drawer": (224, 0.50, 0.80), "ear": (340, 0.45, 0.92), "engine": (46, 0.72, 0.90), "exhaust pipe": (285, 0.35, 0.58),
    "eye": (55, 0.60, 1.00), "fin": (142, 0.52, 0.64), "flag": (350, 0.75, 0.90), "flame": (22, 0.88, 1.00),
    "fuselage": (216, 0.55, 0.86), "gill": (345, 0.60, 0.82), "globe": (195, 0.38, 0.90), "grip": (352, 0.68, 0.76),
    "handle": (34, 0.60, 0.68), "head": (212, 0.48, 0.76), "headlight": (54, 0.75, 1.00), "headrest": (350, 0.55, 0.82),
    "hull": (14, 0.64, 0.64), "knob": (135, 0.50, 0.62), "leg": (14, 0.62, 0.44), "mast": (46, 0.50, 0.86),
    "mirror": (185, 0.22, 0.96), "pole": (30, 0.45, 0.62), "propeller": (6, 0.68, 0.74), "roof rack": (272, 0.45, 0.62),
    "rudder": (100, 0.60, 0.52), "sail": (186, 0.50, 0.86), "seat": (214, 0.55, 0.68), "shade": (96, 0.50, 0.72),
    "spoiler": (115, 0.55, 0.60), "strap": (300, 0.50, 0.62), "switch": (0, 0.80, 0.90), "tail": (284, 0.42, 0.72),
    "tray": (180, 0.52, 0.62), "wheel": (220, 0.18, 0.28), "window": (198, 0.32, 0.98), "wing": (142, 0.50, 0.66),
}  # fmt: skip

PARTS = tuple(sorted(PART_COLOURS))
PART_GRAPH = {kind.name: list(kind.parts) for kind in sorted(OBJECTS)}
INSTANCE_GRAPH = {c: sorted(k.name for k in OBJECTS if k.category == c) for c in sorted({k.category for k in OBJECTS})}
