"""Hair, behind the head and over it, and beards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from facetrain.datasets.synth.brush import Canvas, Floats, curve, mirrored, mix, shade
from facetrain.datasets.synth.face import HEAD_EDGE_DEPTH, SHADOW, head_outline
from facetrain.datasets.synth.person import LONG_STYLES, Person
from facetrain.datasets.synth.shot import Expression
from facetrain.datasets.synth.view import View

CURLY = ("curly", "long curly")


@dataclass(frozen=True)
class HairShapes:
    """Outlines on the canvas: hair covers ``locks`` and ``cap`` less ``window``, where the head is bare."""

    cap: Floats | None  # None: bald
    window: Floats
    locks: tuple[Floats, ...]


def hair_shapes(view: View, person: Person, outline: Floats, puff: float) -> HairShapes:
    """Where hair lies on the head, whose ``outline`` [n, 2] is given; ``puff`` widens the hair a little."""
    head, hair = person.head, person.hair
    outline_px = view.place_at(outline, HEAD_EDGE_DEPTH)
    if hair.style == "bald":
        patch = np.array([(0.98, -0.55), (1.05, -0.35), (1.04, 0.05), (0.94, 0.12), (0.90, -0.25)])
        patches = [view.place_at(patch * [side * head.width, 1], 0.05) for side in (-1, 1)]
        return HairShapes(None, outline_px, tuple(curve(p, closed=True) for p in patches))
    crown = _crown(person, puff)
    corner = np.array([(head.width, 0.22), (head.width - 0.07, 0.12)])
    edge = np.concatenate([corner, _hairline(person), (corner * [-1, 1])[::-1]])
    jaw = view.place_at(_below(outline, 0.22)[::-1], HEAD_EDGE_DEPTH)
    window = np.concatenate([view.place(curve(edge)), jaw])
    return HairShapes(view.place_at(crown, 0.0), window, tuple(_locks(view, person, crown)))


def _below(outline: Floats, y: float) -> Floats:
    """The part of the head's outline under height ``y``, from the right over the chin to the left."""
    lower = outline[outline[:, 1] > y]
    right, left = lower[lower[:, 0] >= 0], lower[lower[:, 0] < 0]
    return np.concatenate([right[np.argsort(right[:, 1])], left[np.argsort(-left[:, 1])]])


def _crown(person: Person, puff: float) -> Floats:
    """The outer edge of the hair [n, 2], from its left end over the top to its right end at ear height."""
    head, hair = person.head, person.hair
    close = hair.style in ("cropped", "receding", "tied back", "slicked back")
    top, side = (0.05 + 0.2 * hair.top, 0.02) if close else (hair.top, hair.side)
    angle = np.radians(np.linspace(-92, 92, 47))
    if hair.style in CURLY:
        top, side = top + 0.12, side + 0.16
        bump = 0.022 * np.abs(np.sin(8 * angle + hair.part)) + 0.012 * np.sin(17 * angle)
    else:
        bump = 0.006 * np.sin(7 * angle + 5 * hair.part)
    reach = 1 + puff + bump * (0.5 + hair.wave)
    sin, cos = np.sin(angle), np.cos(angle)
    x = (head.width + side) * np.sign(sin) * np.abs(sin) ** 0.85 * reach
    y = (head.forehead_y - top) * np.sign(cos) * np.abs(cos) ** 0.9 * reach
    ends = np.array([(0.5 * (x[-1] + head.width) + 0.01, 0.12), (head.width - 0.02, 0.26)])
    return np.concatenate([(ends * [-1, 1])[::-1], np.stack([x, y], axis=1), ends])


def _ends(person: Person) -> float:
    """How far down the hair reaches in front of the ears; 0: not at all."""
    hair = person.hair
    if hair.style == "bob":
        return 0.75 + 0.3 * hair.wave
    if hair.style == "tied back" or hair.style not in LONG_STYLES:
        return 0.0
    return hair.length


def _locks(view: View, person: Person, crown: Floats) -> Iterator[Floats]:
    """Long hair that falls over ears and shoulders, one lock a side."""
    ends_y = _ends(person)
    if not ends_y:
        return
    head, hair = person.head, person.hair
    outer_x, swing = crown[:, 0].max(), 0.07 * hair.wave
    t = np.array([0.0, 0.3, 0.55, 0.8, 1.0])
    wave = swing * np.sin(7.0 * t + hair.part)
    outer = np.stack([outer_x * (1 + 0.06 * t) + wave - 0.16 * t**6, -0.35 + (ends_y + 0.35) * t], axis=1)
    inner_x = head.width + np.array([0.04, -0.08, -0.10, -0.09, -0.08]) + wave
    inner = np.stack([inner_x, -0.45 + (ends_y + 0.38) * t], axis=1)
    if hair.style in CURLY:
        outer[1:, 0] += [0.04, -0.02, 0.05, 0.0]
    for side in (-1, 1):
        edge = np.concatenate([curve(outer), curve(inner)[::-1]]) * [side, 1]
        yield view.place_at(edge, 0.12)


def _hairline(person: Person) -> Floats:
    """The edge of the hair over the forehead [5, 2], from the right temple to the left."""
    hair, temple = person.hair, person.head.temple
    line, corner, part = hair.line_y, hair.corner, hair.part
    if hair.style in ("fringe", "long fringe"):
        y = -0.46 - 0.10 * hair.wave
        return mirrored([(temple - 0.08, y + 0.10), (0.45, y), (0.0, y - 0.03)])
    if hair.style in ("side parting", "long parted", "bob"):
        sweep = 0.20 + 0.2 * hair.wave
        right = line + (sweep if part < 0 else 0.05)
        left = line + (0.05 if part < 0 else sweep)
        end = temple - 0.08
        return np.array([(end, -0.5), (0.55, right), (part, line - 0.1), (-0.55, left), (-end, -0.5)])
    if hair.style == "receding":
        return mirrored([(temple - 0.04, -0.66), (0.52, line - 0.20), (0.0, line - 0.04)])
    return mirrored([(temple - 0.08, -0.50), (0.56, line + 0.10 - corner), (0.0, line + 0.05 * part)])


def paint_back_hair(canvas: Canvas, view: View, person: Person, puff: float) -> None:
    """What is seen behind neck and ears."""
    hair, head = person.hair, person.head
    colour = shade(hair.colour, 0.70)
    ends_y = _ends(person)
    if hair.style == "tied back" and hair.wave > 0.5:
        y = head.forehead_y - 0.12
        knot = mirrored([(-0.30, y + 0.2), (-0.30, y - 0.12), (0.0, y - 0.26)])
        canvas.fill(curve(view.place_at(knot, -0.5), closed=True), hair.colour)
    if ends_y > 0:
        x = _crown(person, puff)[:, 0].max()
        back = mirrored([(-0.98 * x, -0.4), (-x, 0.6 * ends_y), (-0.85 * x, ends_y)])
        canvas.fill(view.place_at(back, -0.3), colour)
    elif hair.style != "bald":
        nape = mirrored([(-0.94, -0.4), (-0.88, 0.4), (-0.6, 0.7)])
        canvas.fill(view.place_at(nape * [head.width, 1], -0.3), colour)


def paint_hair(canvas: Canvas, person: Person, shapes: HairShapes, outline: Floats) -> None:
    """Hair over the head; then the bare part of the head again, with the shadow of the hair on it."""
    hair, skin = person.hair, person.skin
    if shapes.cap is None:
        for patch in shapes.locks:
            canvas.soft(patch, hair.colour, 0.6, 0.03, grain=0.6)
        return
    thin = 0.30 if hair.style == "cropped" else 0.0
    canvas.fill(shapes.cap, mix(hair.colour, skin, thin))
    canvas.soft(shapes.window, skin, 1.0, 0.035 if thin else 0.010, inside=outline)
    canvas.soft(shapes.window, SHADOW, 0.25, 0.04, line_width=0.05, inside=shapes.window)


def paint_locks(canvas: Canvas, person: Person, shapes: HairShapes) -> None:
    """Long hair in front of ears and shoulders."""
    if shapes.cap is not None:
        for lock in shapes.locks:
            canvas.soft(lock, SHADOW, 0.30, 0.05, inside=shapes.window)
            canvas.fill(lock, person.hair.colour)


def paint_beard(canvas: Canvas, view: View, person: Person, expression: Expression) -> None:
    hair, head = person.hair, person.head
    if hair.beard == "none":
        return
    colour = mix(hair.colour, (0.25, 0.15, 0.10), 0.2)
    nose_y = person.nose.tip_y
    y = nose_y + person.mouth.below_nose
    w = person.mouth.half_width
    drop = 0.26 * expression.mouth_open
    chin = head.chin_y + 0.10 * expression.mouth_open
    strength = 0.42 if hair.beard == "stubble" else 0.85
    blur = 0.06 if hair.beard == "stubble" else 0.035
    if hair.beard in ("stubble", "full"):
        low = _below(head_outline(person, expression) * [0.985, 1.0], 0.30)
        if hair.beard == "full":
            low[:, 1] += hair.beard_length * np.clip((low[:, 1] - 0.7) / 0.9, 0, 1)
        cheek = [
            (-0.90, 0.45),
            (-0.74, 0.72),
            (-w - 0.12, y - 0.12),
            (-w * 0.5, nose_y + 0.09),
            (0, nose_y + 0.10),
        ]
        area = np.concatenate([view.place_at(low, 0.12), view.place(curve(mirrored(cheek)))])
        canvas.soft(area, colour, strength * 0.7, blur)
        canvas.soft(area, colour, strength, blur, grain=0.7)
    if hair.beard in ("moustache", "goatee"):
        over = mirrored([(-w - 0.05, y + 0.02), (-w * 0.6, nose_y + 0.12), (0, nose_y + 0.09)])
        under = mirrored([(w * 0.5, y - 0.03), (0, y - 0.05)])
        lip = view.place(curve([*over, *under], closed=True), 0.05)
        canvas.soft(lip, colour, strength, 0.02, grain=0.4)
    if hair.beard == "goatee":
        low_y = chin + hair.beard_length * 0.6
        around = mirrored([(-w - 0.02, y), (-w * 0.9, y + drop + 0.25), (-head.chin * 0.8, low_y)])
        below_lip = mirrored([(w * 0.75, y + drop + 0.14)])
        tuft = view.place(curve([*around, *below_lip], closed=True), 0.05)
        canvas.soft(tuft, colour, strength, 0.03, grain=0.4)
