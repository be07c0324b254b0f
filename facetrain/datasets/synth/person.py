"""What stays the same in every photograph of one synthetic person.

Lengths are in head half-widths (about 7 cm): x to the right of the photograph, y down, from the point midway
between the eyes. Colours are RGB in 0..1 under white light.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from facetrain.datasets.synth.brush import Colour, mix

SKIN_TONES: tuple[Colour, ...] = (
    (0.97, 0.83, 0.75),
    (0.93, 0.76, 0.64),
    (0.84, 0.65, 0.51),
    (0.72, 0.52, 0.38),
    (0.58, 0.40, 0.29),
    (0.47, 0.32, 0.24),
)
HAIR_COLOURS: tuple[Colour, ...] = (
    (0.10, 0.08, 0.08),
    (0.19, 0.13, 0.10),
    (0.31, 0.20, 0.13),
    (0.45, 0.29, 0.17),
    (0.52, 0.27, 0.14),
    (0.72, 0.55, 0.32),
    (0.84, 0.72, 0.50),
)
GREY_HAIR: Colour = (0.74, 0.73, 0.72)
IRIS_COLOURS: tuple[Colour, ...] = (
    (0.20, 0.11, 0.06),
    (0.32, 0.19, 0.09),
    (0.42, 0.32, 0.16),
    (0.36, 0.42, 0.28),
    (0.32, 0.46, 0.58),
    (0.45, 0.50, 0.54),
)
HAIR_STYLES = ("short", "side parting", "fringe", "slicked back", "curly", "cropped", "receding", "bald")
LONG_STYLES = ("long", "long parted", "bob", "long fringe", "long curly", "tied back")
BEARDS = ("none", "stubble", "moustache", "goatee", "full")


@dataclass(frozen=True)
class Head:
    width: float
    forehead_y: float  # top of the skull, negative
    temple: float  # half widths at the temples, the angle of the jaw and the chin
    jaw: float
    jaw_y: float
    chin: float
    chin_y: float
    cleft: float
    cheekbone: float
    ear_size: float
    ear_out: float
    neck: float


@dataclass(frozen=True)
class Eyes:
    apart: float  # half the distance between the pupils
    half_width: float
    upper: float  # height of the lids over the line between the corners
    lower: float
    peak: float  # -1: the upper lid is highest towards the nose; 1: outwards
    tilt: float
    iris: float
    colour: Colour
    crease: float  # height of the fold over the lid; 0: none
    depth: float
    bags: float
    lashes: float


@dataclass(frozen=True)
class Brows:
    y: float
    gap: float
    length: float
    thickness: float
    arch: float
    tilt: float
    density: float
    colour: Colour


@dataclass(frozen=True)
class Nose:
    tip_y: float
    half_width: float
    bridge: float
    tip: float
    lift: float
    nostril: float
    wing: float
    skew: float


@dataclass(frozen=True)
class Mouth:
    below_nose: float
    half_width: float
    upper: float
    lower: float
    bow: float
    corner: float
    colour: Colour


@dataclass(frozen=True)
class Hair:
    style: str
    colour: Colour
    top: float  # how far it stands off the skull
    side: float
    line_y: float
    corner: float  # how high the hairline reaches at the temples
    part: float
    length: float  # y of the ends of long hair
    wave: float
    beard: str
    beard_length: float


@dataclass(frozen=True)
class Marks:
    moles: tuple[tuple[float, float, float], ...]  # x, y, radius
    freckles: tuple[tuple[float, float, float], ...]
    folds: float  # from nose to mouth
    forehead_lines: float
    blush: float
    glasses: str  # "none", "round", "square" or "oval"
    glasses_colour: Colour


@dataclass(frozen=True)
class Person:
    skin: Colour
    head: Head
    eyes: Eyes
    brows: Brows
    nose: Nose
    mouth: Mouth
    hair: Hair
    marks: Marks


def stream(seed: int, identity: int, image: int) -> np.random.Generator:
    """The random numbers of one photograph (``image`` >= 1), or of the person (``image`` 0)."""
    return np.random.default_rng([seed, identity, image])


def make_person(seed: int, identity: int) -> Person:
    """Person number ``identity`` of world ``seed``; the same at every call."""
    rng = stream(seed, identity, 0)
    u = rng.uniform
    masculine, age, tone = u(), u(), u()
    fair = tone < 0.45
    skin = _along(SKIN_TONES, tone)
    skin = (skin[0] * u(0.97, 1.03), skin[1] * u(0.96, 1.03), skin[2] * u(0.92, 1.06))
    hair = _make_hair(rng, masculine, age, fair)
    eyes = Eyes(
        apart=u(0.40, 0.50),
        half_width=u(0.165, 0.235),
        upper=u(0.055, 0.115),
        lower=u(0.030, 0.065),
        peak=u(-0.8, 0.8),
        tilt=u(-0.035, 0.055),
        iris=u(0.078, 0.100),
        colour=IRIS_COLOURS[
            rng.choice(6, p=(0.3, 0.2, 0.1, 0.12, 0.18, 0.1) if fair else (0.6, 0.4, 0, 0, 0, 0))
        ],
        crease=0.0 if u() < 0.15 else u(0.03, 0.09),
        depth=u(),
        bags=age * u(0.2, 1.0),
        lashes=u(0.012, 0.030) * (1.3 - 0.6 * masculine),
    )
    brow_colour = mix(mix(hair.colour, (0.16, 0.11, 0.09), 0.55), skin, u(0.0, 0.15))
    brows = Brows(
        y=-u(0.25, 0.37),
        gap=u(0.13, 0.25),
        length=u(0.42, 0.58),
        thickness=u(0.028, 0.055) + 0.04 * masculine * u(),
        arch=u(-0.01, 0.10) * (1.3 - 0.6 * masculine),
        tilt=u(-0.06, 0.05),
        density=u(0.6, 0.95),
        colour=brow_colour,
    )
    nose = Nose(
        tip_y=u(0.58, 0.74),
        half_width=u(0.20, 0.34),
        bridge=u(0.08, 0.16),
        tip=u(0.5, 1.0),
        lift=u(-0.03, 0.05),
        nostril=u(0.045, 0.075),
        wing=u(0.3, 1.0),
        skew=rng.normal(0, 0.015),
    )
    lips = mix(skin, (0.72, 0.26, 0.28), u(0.30, 0.60) if masculine > 0.5 else u(0.40, 0.80))
    mouth = Mouth(
        below_nose=u(0.25, 0.36),
        half_width=u(0.34, 0.47),
        upper=u(0.04, 0.115),
        lower=u(0.07, 0.155),
        bow=u(0.0, 0.045),
        corner=u(-0.03, 0.03),
        colour=lips,
    )
    mouth_y = nose.tip_y + mouth.below_nose
    head = Head(
        width=u(0.93, 1.05),
        forehead_y=-u(1.18, 1.36),
        temple=u(0.86, 0.97),
        jaw=u(0.60, 0.76) + 0.12 * masculine,
        jaw_y=u(0.85, 1.10),
        chin=u(0.24, 0.40) + 0.10 * masculine,
        chin_y=mouth_y + u(0.44, 0.64),
        cleft=u() if u() < 0.25 else 0.0,
        cheekbone=u(),
        ear_size=u(0.75, 1.2),
        ear_out=u(0.05, 0.22),
        neck=u(0.44, 0.54) + 0.18 * masculine,
    )
    return Person(skin, head, eyes, brows, nose, mouth, hair, _make_marks(rng, head, age, fair))


def _along(colours: tuple[Colour, ...], share: float) -> Colour:
    """The colour at ``share`` (0..1) of the way along ``colours``."""
    place = share * (len(colours) - 1)
    first = min(int(place), len(colours) - 2)
    return mix(colours[first], colours[first + 1], place - first)


def _make_hair(rng: np.random.Generator, masculine: float, age: float, fair: bool) -> Hair:
    u = rng.uniform
    long_hair = u() < (0.85 if masculine < 0.5 else 0.08)
    styles = LONG_STYLES if long_hair else HAIR_STYLES if masculine > 0.5 else HAIR_STYLES[:6]
    colour = _along(HAIR_COLOURS, u(0.0, 1.0) ** 1.3 if fair else u(0.0, 0.3))
    if u() < 1.6 * (age - 0.5):
        colour = mix(colour, GREY_HAIR, u(0.4, 1.0))
    return Hair(
        style=str(rng.choice(styles)),
        colour=colour,
        top=u(0.08, 0.28),
        side=u(0.03, 0.16),
        line_y=-u(0.78, 1.00),
        corner=u(-0.05, 0.18),
        part=u(-0.6, 0.6),
        length=u(1.2, 2.6),
        wave=u(0.0, 1.0),
        beard=str(rng.choice(BEARDS, p=[0.4, 0.2, 0.1, 0.12, 0.18])) if masculine > 0.5 else "none",
        beard_length=u(0.0, 0.25),
    )


def _make_marks(rng: np.random.Generator, head: Head, age: float, fair: bool) -> Marks:
    u = rng.uniform
    moles = []
    for _ in range(rng.choice(4, p=[0.55, 0.28, 0.13, 0.04])):
        down = u()  # the face narrows towards the chin
        across = u(-0.62, 0.62) * (1 - 0.55 * down)
        moles.append((across, 0.10 + (head.chin_y - 0.35) * down, u(0.012, 0.028)))
    count = int(u(25, 70)) if u() < 0.2 and fair else 0
    freckles = [
        (0.62 * np.sin(rng.normal(0, 0.8)), rng.normal(0.32, 0.14), u(0.010, 0.020)) for _ in range(count)
    ]
    return Marks(
        moles=tuple(moles),
        freckles=tuple(freckles),
        folds=age * u(0.4, 1.0),
        forehead_lines=max(0.0, age - 0.45) * u(0.5, 1.6),
        blush=u(0.0, 0.7),
        glasses=str(rng.choice(("none", "round", "square", "oval"), p=[0.82, 0.06, 0.06, 0.06])),
        glasses_colour=((0.08, 0.07, 0.07), (0.30, 0.18, 0.10), (0.45, 0.43, 0.40))[rng.integers(3)],
    )
