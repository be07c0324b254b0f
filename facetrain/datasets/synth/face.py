"""The parts of the face, each painted on the canvas by one function: from the skin up to the glasses.

``side`` is -1 for the left of the photograph and 1 for its right.
"""

from __future__ import annotations

import numpy as np

from facetrain.datasets.synth.brush import Canvas, Colour, Floats, curve, ellipse, mirrored, mix, shade
from facetrain.datasets.synth.person import Person
from facetrain.datasets.synth.shot import Expression
from facetrain.datasets.synth.view import View

SHADOW: Colour = (0.16, 0.07, 0.06)  # what soft shadows and folds are tinted with
HEAD_EDGE_DEPTH = 0.05  # the outline of the head lies a little before the ears


def head_outline(person: Person, expression: Expression) -> Floats:
    """The closed outline of skull, cheeks and jaw [n, 2]; the chin drops with the mouth."""
    head = person.head
    drop = 0.10 * expression.mouth_open
    right = [
        (0.0, head.forehead_y),
        (0.55, head.forehead_y + 0.15),
        (head.temple, -0.66),
        (head.width, -0.15),
        (head.width * (0.97 + 0.02 * head.cheekbone), 0.35),
        (head.jaw + 0.06, head.jaw_y - 0.12 + 0.3 * drop),
        (head.chin + 0.20, head.chin_y - 0.26 + 0.8 * drop),
        (head.chin, head.chin_y - 0.06 + drop),
    ]
    return curve(mirrored([*right, (0.0, head.chin_y + drop)])[:-1], closed=True)


def paint_ear(canvas: Canvas, view: View, person: Person, side: int) -> None:
    head = person.head
    x, s = side * (head.width - 0.02), head.ear_size
    rim = np.array([(0, -0.22), (0.6, -0.30), (1.0, -0.12), (0.85, 0.12), (0.45, 0.34), (0, 0.36)])
    outline = np.stack([x + side * rim[:, 0] * (head.ear_out + 0.06) * s, 0.16 + rim[:, 1] * s], axis=1)
    placed = curve(view.place_at(outline, -0.12), closed=True)
    canvas.fill(placed, shade(person.skin, 0.93))
    inner = outline * [1.0, 0.6] + [-side * 0.03, 0.07]
    canvas.soft(curve(view.place_at(inner, -0.10), closed=True), SHADOW, 0.45, 0.025)


def paint_cheeks(canvas: Canvas, view: View, person: Person) -> None:
    """Blush, hollows, freckles, lines on the forehead, the cleft of the chin."""
    marks, head = person.marks, person.head
    red = (min(1.0, person.skin[0] * 1.03), person.skin[1] * 0.72, person.skin[2] * 0.74)
    for side in (-1, 1):
        cheek = view.place(ellipse(side * 0.56, 0.46, 0.24, 0.20))
        canvas.soft(cheek, red, marks.blush, 0.12)
        hollow = view.place(
            [(side * 0.80, 0.35), (side * 0.86, 0.62), (side * 0.50, 0.95), (side * 0.62, 0.62)]
        )
        canvas.soft(hollow, SHADOW, 0.22 * head.cheekbone, 0.10)
    for x, y, radius in marks.freckles:
        canvas.fill(view.place(ellipse(x, y, radius, radius, 8)), mix(person.skin, (0.50, 0.26, 0.14), 0.35))
    if marks.forehead_lines > 0.1:
        for row in range(3):
            y = -0.62 - 0.13 * row
            fold = curve(view.place([(-0.42, y + 0.03), (-0.2, y - 0.01), (0.2, y), (0.42, y + 0.04)]))
            canvas.soft(fold, SHADOW, 0.35 * marks.forehead_lines, 0.012, line_width=0.018)
    if head.cleft:
        cleft = view.place([(0.0, head.chin_y - 0.20), (0.0, head.chin_y - 0.06)])
        canvas.soft(cleft, SHADOW, 0.5 * head.cleft, 0.02, line_width=0.03)


def paint_moles(canvas: Canvas, view: View, person: Person) -> None:
    for x, y, radius in person.marks.moles:
        canvas.fill(view.place(ellipse(x, y, radius, radius, 10)), mix(person.skin, (0.22, 0.11, 0.08), 0.75))


def paint_eye(canvas: Canvas, view: View, person: Person, expression: Expression, side: int) -> None:
    eyes, skin = person.eyes, person.skin
    x, w = side * eyes.apart, side * eyes.half_width  # w points outwards
    squint = 0.25 * max(expression.smile, 0.0)
    opening = expression.eyes_open * (1.0 - squint)
    upper, lower = eyes.upper * opening, eyes.lower * (1.0 - 1.2 * squint) * min(opening, 1.0)
    inner, outer = (x - w, 0.02), (x + w, -eyes.tilt)
    high = x + w * 0.35 * eyes.peak
    lid = curve(
        [inner, (high - 0.55 * w, -0.72 * upper), (high, -upper), (high + 0.5 * w, -0.85 * upper), outer]
    )
    under = curve([outer, (x + 0.45 * w, 0.9 * lower), (x - 0.3 * w, lower + 0.01), inner])

    socket = view.place(ellipse(x, -0.06, 0.30, 0.19))
    canvas.soft(socket, SHADOW, 0.08 + 0.26 * eyes.depth, 0.09)
    bag = curve([(x - 0.8 * w, 0.13), (x, 0.08 + lower + 0.09), (x + 0.8 * w, 0.11)])
    canvas.soft(view.place(bag), SHADOW, 0.12 + 0.38 * eyes.bags, 0.025, line_width=0.035)
    if eyes.crease:
        fold = lid * [1.03, 1.0] - [0.03 * x, eyes.crease]
        canvas.soft(view.place(fold), SHADOW, 0.50, 0.010, line_width=0.022)

    opening_px = view.place(np.concatenate([lid, under[1:-1]]))
    canvas.fill(opening_px, (0.93, 0.91, 0.89))
    at = (x + expression.gaze_x, -0.25 * eyes.upper + expression.gaze_y)
    iris, pupil = eyes.iris, eyes.iris * 0.45
    canvas.soft(view.place(ellipse(*at, iris, iris)), shade(eyes.colour, 0.45), 1.0, inside=opening_px)
    canvas.soft(view.place(ellipse(*at, iris * 0.8, iris * 0.8)), eyes.colour, 1.0, 0.01, inside=opening_px)
    canvas.soft(view.place(ellipse(*at, pupil, pupil)), (0.03, 0.03, 0.03), 1.0, inside=opening_px)
    lid_shade = view.place(lid + np.array([0, 0.02]))
    canvas.soft(lid_shade, SHADOW, 0.5, 0.02, line_width=0.04, inside=opening_px)
    canvas.fill(view.place(ellipse(at[0] - 0.025, at[1] - 0.03, 0.014, 0.014, 10)), (1.0, 1.0, 1.0))
    tear_duct = view.place([inner, (inner[0] + 0.12 * w, inner[1])])
    canvas.soft(tear_duct, (0.75, 0.42, 0.40), 0.7, line_width=0.03)

    lashes = mix(skin, (0.08, 0.05, 0.05), 0.85)
    tail = np.array([[outer[0] + 0.08 * w, outer[1] - 0.01]])
    edge = np.concatenate([lid, tail, (lid - [0, eyes.lashes + 0.012])[::-1]])
    canvas.fill(view.place(edge), lashes)
    canvas.soft(view.place(under), mix(skin, SHADOW, 0.6), 0.55, 0.006, line_width=0.014)


def paint_brow(canvas: Canvas, view: View, person: Person, expression: Expression, side: int) -> None:
    brows = person.brows
    raised = brows.y - expression.brow_raise - expression.lopsided * side
    inner = brows.gap - 0.03 * expression.frown
    t = np.array([0.0, 0.04, 0.3, 0.65, 1.0])
    x = side * (inner + brows.length * t)
    frown = 0.05 * expression.frown
    middle = raised + brows.tilt * t + np.array([frown, 0.8 * frown, -0.4 * brows.arch, -brows.arch, 0.03])
    half = brows.thickness * np.array([0.35, 0.75, 1.0, 0.75, 0.12])
    top = np.stack([x, middle - half], axis=1)
    bottom = np.stack([x, middle + half], axis=1)
    placed = view.place(np.concatenate([curve(top), curve(bottom)[::-1]]), 0.05)
    canvas.soft(placed, brows.colour, 0.5 * brows.density, 0.022)
    canvas.soft(placed, brows.colour, brows.density, 0.008, grain=0.5)


def paint_nose(canvas: Canvas, view: View, person: Person) -> None:
    nose = person.nose
    w, y, c = nose.half_width, nose.tip_y, nose.skew
    base = y - nose.lift
    for side in (-1, 1):
        flank = [
            (side * nose.bridge + c * 0.3, -0.12),
            (side * (nose.bridge + 0.08) + c * 0.3, -0.05),
            (side * (nose.bridge + 0.10), 0.35),
            (side * w * 0.95 + c, y - 0.14),
            (side * w * 0.55 + c, y - 0.12),
            (side * nose.bridge * 0.9 + c, 0.35),
        ]
        canvas.soft(curve(view.place(flank, 0.10), closed=True), SHADOW, 0.20, 0.04)
    underside = [(-w * 0.85 + c, y - 0.02), (c, base + 0.02), (w * 0.85 + c, y - 0.02), (c, y + 0.08)]
    canvas.soft(curve(view.place(underside, 0.10), closed=True), SHADOW, 0.40, 0.035)
    for side in (-1, 1):
        wing = [
            (side * w * 0.78 + c, y - 0.19),
            (side * w * 1.00 + c, y - 0.10),
            (side * w * 0.97 + c, y - 0.01),
            (side * w * 0.72 + c, y + 0.015),
        ]
        canvas.soft(curve(view.place(wing, 0.12)), SHADOW, 0.35 + 0.3 * nose.wing, 0.012, line_width=0.028)
        nostril = ellipse(side * w * 0.48 + c, base - 0.015, nose.nostril * 1.25, nose.nostril * 0.6, 16)
        canvas.soft(view.place(nostril, 0.16), (0.12, 0.04, 0.04), 0.85, 0.012)
    rim = [(-w * 0.5 * nose.tip + c, base - 0.01), (c, base + 0.045), (w * 0.5 * nose.tip + c, base - 0.01)]
    canvas.soft(curve(view.place(rim, 0.22)), SHADOW, 0.40, 0.015, line_width=0.03)
    tip = view.place(ellipse(c, base - 0.14, 0.07 + 0.05 * nose.tip, 0.06), 0.28)
    canvas.soft(tip, mix(person.skin, (1, 1, 1), 0.5), 0.30, 0.04)


def paint_mouth(canvas: Canvas, view: View, person: Person, expression: Expression) -> None:
    mouth, skin, smile = person.mouth, person.skin, expression.smile
    nose_y = person.nose.tip_y
    y = nose_y + mouth.below_nose
    w = mouth.half_width * (1.0 + 0.16 * smile - 0.10 * expression.mouth_open)
    gap = 0.26 * expression.mouth_open
    thin = 1.0 - 0.25 * max(smile, 0.0)
    upper, lower = mouth.upper * thin, mouth.lower * thin
    lift = 0.09 * smile + 0.015 - mouth.corner
    left, right = (-w, y - lift - expression.lopsided), (w, y - lift + expression.lopsided)

    def across(*half: tuple[float, float]) -> Floats:
        return curve([left, *mirrored(half), right])

    top = across((-0.45 * w, y - 0.8 * upper), (-0.16 * w, y - upper - mouth.bow), (0, y - upper))
    between = across((-0.4 * w, y + 0.01 * (1 - smile)), (0, y + 0.02))
    between_low = across((-0.45 * w, y + 0.8 * gap), (0, y + 0.02 + gap))
    bottom = across((-0.5 * w, y + gap + 0.75 * lower), (0, y + 0.02 + gap + lower))

    for side in (-1, 1):
        strength = 0.45 * person.marks.folds + 0.35 * max(smile, 0.0)
        start, bend = person.nose.half_width + 0.03, w * 0.5 + 0.30
        fold = [(start, nose_y - 0.06), (bend, nose_y + 0.16), (w + 0.10, y + 0.04)]
        fold_px = curve(view.place(np.array(fold) * [side, 1]))
        canvas.soft(fold_px, SHADOW, strength, 0.025, line_width=0.035)
        corner = view.place(ellipse(side * (w + 0.02), (left, right)[side > 0][1], 0.04, 0.03, 12))
        canvas.soft(corner, SHADOW, 0.45, 0.02)
    groove = view.place([(0, nose_y + 0.07), (0, y - upper - 0.04)])
    canvas.soft(groove, SHADOW, 0.18, 0.025, line_width=0.05)
    pout = view.place(ellipse(0, y + gap + lower + 0.10, 0.55 * w, 0.045))
    canvas.soft(pout, SHADOW, 0.30, 0.04)

    reach = 0.04
    upper_lip = view.place(np.concatenate([top, between[::-1]]), reach)
    lower_lip = view.place(np.concatenate([between_low, bottom[::-1]]), reach)
    canvas.soft(upper_lip, shade(mouth.colour, 0.86), 1.0, 0.008)
    canvas.soft(lower_lip, mouth.colour, 1.0, 0.008)
    shine = view.place(ellipse(0, y + 0.03 + gap + 0.45 * lower, 0.45 * w, 0.22 * lower), reach)
    canvas.soft(shine, mix(mouth.colour, (1, 1, 1), 0.45), 0.5, 0.03)
    if gap > 0.02:
        inside = view.place(np.concatenate([between, between_low[::-1]]), reach - 0.03)
        canvas.fill(inside, (0.22, 0.06, 0.07))
        teeth = ellipse(0, y + 0.01, 0.80 * w, 0.30 * gap + 0.04)
        canvas.soft(view.place(teeth), (0.90, 0.87, 0.82), 0.95, 0.006, inside=inside)
        tongue = ellipse(0, y + gap + 0.03, 0.5 * w, 0.35 * gap)
        canvas.soft(view.place(tongue), (0.62, 0.28, 0.28), 0.8, 0.02, inside=inside)
    line = mix(skin, (0.20, 0.05, 0.06), 0.8)
    canvas.soft(view.place(between, reach), line, 0.9, 0.006, line_width=0.022)


def paint_glasses(canvas: Canvas, view: View, person: Person) -> None:
    eyes, colour = person.eyes, person.marks.glasses_colour
    for side in (-1, 1):
        x = side * (eyes.apart + 0.02)
        if person.marks.glasses == "square":
            corners = np.array(
                [(-0.31, -0.20), (0, -0.22), (0.33, -0.20), (0.29, 0.17), (0, 0.21), (-0.27, 0.18)]
            )
            rim = curve(corners * [side, 1] + [x, 0.02], closed=True)
        else:
            rim = ellipse(x, 0.03, 0.31, 0.29 if person.marks.glasses == "round" else 0.21, 40)
        placed = view.place_at(rim, 0.92)
        canvas.soft(placed, (0.85, 0.92, 1.0), 0.10)
        canvas.line(placed, colour, 0.028, closed=True)
        hinge = [(x + side * 0.32, -0.05), (side * (person.head.width + 0.02), -0.06)]
        canvas.line(view.place_at(hinge, np.array([0.88, 0.1])), colour, 0.028)
    gap = eyes.apart - 0.29
    bridge = curve([(-gap, 0.0), (0, -0.05), (gap, 0.0)])
    canvas.line(view.place_at(bridge, 0.98), colour, 0.03)
