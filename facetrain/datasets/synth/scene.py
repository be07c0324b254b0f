"""Everything around the face, drawn anew for every photograph: background, clothes, light and camera."""

from __future__ import annotations

import cv2
import numpy as np

from facetrain.datasets.synth.brush import (
    Canvas,
    Colour,
    Floats,
    Pixels,
    curve,
    ellipse,
    fill_mask,
    mirrored,
    mix,
    shade,
)
from facetrain.datasets.synth.person import Person
from facetrain.datasets.synth.shot import Camera, Light
from facetrain.datasets.synth.view import HEAD_CENTRE_Y, HEAD_HALF_WIDTH, View

BACKGROUND_PX = 64  # backgrounds are out of focus: drawn small, and enlarged


def background(rng: np.random.Generator, size_px: int) -> Pixels:
    """A blurred wall, window, crowd of lights, landscape or shelf: uint8 RGB [size_px, size_px, 3]."""
    n = BACKGROUND_PX
    first, second = _any_colour(rng), _any_colour(rng)
    angle = rng.uniform(0, 2 * np.pi)
    ramp = np.linspace(-0.5, 0.5, n, dtype=np.float32)
    along = 0.5 + (np.cos(angle) * ramp[None, :] + np.sin(angle) * ramp[:, None])
    image = cv2.merge([a + (b - a) * along for a, b in zip(first, second, strict=True)])
    kind = rng.integers(5)
    if kind == 1:  # lights out of focus
        for _ in range(rng.integers(6, 18)):
            x, y, radius = rng.uniform(0, n), rng.uniform(0, n), rng.uniform(2, 9)
            _blend(image, ellipse(x, y, radius, radius), _any_colour(rng), 0.5)
    elif kind == 2:  # blinds, panels, curtains
        period, turn = rng.uniform(5, 20), rng.uniform(0, np.pi)
        place = np.cos(turn) * ramp[None, :] + np.sin(turn) * ramp[:, None]
        wave = rng.uniform(0.05, 0.22) * np.sin(2 * np.pi * n / period * place)
        image += wave[:, :, None]
    elif kind == 3:  # furniture, frames, shelves
        for _ in range(rng.integers(4, 12)):
            x, y, w, h = rng.uniform(-8, n), rng.uniform(-8, n), rng.uniform(4, 30), rng.uniform(4, 30)
            _blend(image, np.array([(x, y), (x + w, y), (x + w, y + h), (x, y + h)]), _any_colour(rng), 0.8)
    elif kind == 4:  # out of doors: a skyline over foliage
        heights = rng.uniform(0.25, 0.7) * n + rng.normal(0, 4, 9)
        ridge = curve(np.stack([np.linspace(0, n, 9), heights], axis=1))
        _blend(image, np.concatenate([ridge, [(n, n), (0, n)]]), _any_colour(rng), 0.9)
    rough = rng.uniform(0.0, 0.05)
    lumps = rng.standard_normal((16, 16), dtype=np.float32)
    image += rough * cv2.resize(lumps, (n, n), interpolation=cv2.INTER_CUBIC)[:, :, None]
    image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.6, 2.5))
    small = np.clip(255 * image, 0, 255).astype(np.uint8)
    return cv2.resize(small, (size_px, size_px), interpolation=cv2.INTER_CUBIC)


def paint_body(canvas: Canvas, view: View, person: Person, rng: np.random.Generator) -> None:
    """Neck, shoulders and clothes."""
    head, u = person.head, rng.uniform
    base = view.place_at([(0.0, head.chin_y - 0.25)], -0.25)[0]
    sway = np.array([np.sin(view.roll) * 0.3, 0.0])

    def at(points: object) -> Floats:
        return base + (np.asarray(points) + sway * np.asarray(points)[:, 1:]) * view.unit

    neck, shoulder = head.neck, u(1.75, 2.2)
    skin = shade(person.skin, 0.94)
    canvas.fill(at(mirrored([(-neck, -0.6), (-neck * 0.97, 0.5), (-neck - 0.6, 1.9)])), skin)
    canvas.soft(at(ellipse(0, 0.18, neck * 1.1, 0.34)), (0.10, 0.05, 0.05), 0.55, 0.14)
    cloth = _any_colour(rng)
    collar = u(0.42, 0.68)
    half = [
        (neck * 1.02 + 0.10, collar - 0.14),
        (neck + 0.55, collar),
        (shoulder, collar + 0.45),
        (shoulder + 0.25, 3.2),
    ]
    dip = collar + (u(0.05, 0.3) if u() < 0.6 else u(0.5, 1.0))
    neckline = curve(mirrored([half[0], (neck * 0.6, 0.5 * (collar + dip)), (0, dip)]))
    right = curve(half)
    shirt = at(np.concatenate([mirrored(right), neckline[::-1][1:-1]]))
    canvas.fill(shirt, cloth)
    canvas.line(at(neckline), shade(cloth, 0.75), 0.05)
    pattern = rng.integers(4)
    if pattern == 1:  # an open jacket over the shirt
        jacket = _any_colour(rng)
        for side in (-1, 1):
            lapel = [(neck * 1.02 + 0.10, collar - 0.16), (neck * 0.5, 1.9), (0.25, 3.2)]
            edge = np.concatenate([right + np.array([0.02, -0.03]), lapel[::-1]])
            canvas.fill(at(edge * [side, 1]), jacket)
            canvas.line(at(np.array(lapel) * [side, 1]), shade(jacket, 0.7), 0.03)
    elif pattern == 2:  # stripes
        stripe, step = mix(cloth, _any_colour(rng), 0.6), u(0.12, 0.3)
        for y in np.arange(collar + 0.1, 3.2, step):
            band = at([(-2.6, y + 0.05), (0, y + 0.12), (2.6, y + 0.05)])
            canvas.soft(band, stripe, 0.8, line_width=step * 0.4, inside=shirt)


def lighting(light: Light, view: View, person: Person, head_mask: Pixels) -> Floats:
    """What to multiply the painted colours by: float32 RGB at the mask's size [h, w, 3].

    The head is a relief, an ellipsoid with a nose, brow ridges, eye sockets, cheeks, lips and a chin of soft
    bumps, lit by one lamp and an even ambient light; neck and clothes are lit as an upright cylinder.
    ``view`` is that of a canvas as wide as ``head_mask``.
    """
    n = len(head_mask)
    grid = np.arange(n, dtype=np.float32) + 0.5
    cos, sin = np.float32(np.cos(view.roll) / view.unit), np.float32(np.sin(view.roll) / view.unit)
    dx, dy = grid[None, :] - np.float32(view.centre[0]), grid[:, None] - np.float32(view.centre[1])
    x, y = dx * cos + dy * sin, dy * cos - dx * sin
    top_y = person.head.forehead_y - 0.6 * person.hair.top
    middle_y = 0.5 * (top_y + person.head.chin_y) - HEAD_CENTRE_Y
    half_height = 0.57 * (person.head.chin_y - top_y)
    outside = (x / HEAD_HALF_WIDTH) ** 2 + ((y - middle_y) / half_height) ** 2
    # past the edge of the ellipsoid the surface falls away evenly, so that hair there is lit sideways too
    relief = np.sqrt(np.maximum(1.0 - outside, 0.12)) - 1.4 * np.maximum(outside - 0.88, 0.0)
    for bx, by, lift, wide, tall, height in _bumps(person):
        px, py = view.place([(bx, by)], lift)[0] - view.centre
        cx, cy = float(px * cos + py * sin), float(py * cos - px * sin)
        across, down = (x - cx) * (1 / wide), (y - cy) * (1 / tall)
        relief += height * np.exp(-(across * across + down * down))
    step = np.float32(0.125 * view.unit)
    gx = cv2.Sobel(relief, cv2.CV_32F, 1, 0) * step
    gy = cv2.Sobel(relief, cv2.CV_32F, 0, 1) * step
    lx, ly, lz = light.direction
    head_light = (lz - lx * gx - ly * gy) / np.sqrt(1.0 + gx * gx + gy * gy)
    turn = np.clip(dx / np.float32(2.6 * view.unit), -0.9, 0.9)
    body_light = lx * turn + lz * np.sqrt(1 - turn * turn) - 0.2 * ly
    inside = cv2.GaussianBlur(head_mask, (0, 0), 0.02 * view.unit).astype(np.float32) / 255.0
    lambert = np.maximum(body_light + inside * (head_light - body_light), 0.0)
    mirror = np.maximum(head_light, 0.0) ** 2
    gloss = light.gloss * inside * mirror * mirror**2 * mirror**2  # to the tenth power: a broad shine
    return cv2.merge([a + 1.35 * k * lambert + gloss for a, k in zip(light.ambient, light.key, strict=True)])


def _bumps(person: Person) -> list[tuple[float, float, float, float, float, float]]:
    """The relief of a face: x, y, lift above the surface, width, height on the face, height above it."""
    eyes, nose, head, mouth = person.eyes, person.nose, person.head, person.mouth
    mouth_y = nose.tip_y + mouth.below_nose
    return [
        (nose.skew, nose.tip_y - 0.12, 0.25, 0.16 + 0.3 * (nose.half_width - 0.2), 0.14, 0.16),
        (nose.skew * 0.5, 0.22, 0.12, nose.bridge + 0.04, 0.30, 0.14),
        (-eyes.apart, -0.02, 0.0, 0.24, 0.16, -0.06 - 0.08 * eyes.depth),
        (eyes.apart, -0.02, 0.0, 0.24, 0.16, -0.06 - 0.08 * eyes.depth),
        (0.0, person.brows.y, 0.05, 0.55, 0.12, 0.05),
        (-0.60, 0.42, 0.0, 0.24, 0.20, 0.04 + 0.06 * head.cheekbone),
        (0.60, 0.42, 0.0, 0.24, 0.20, 0.04 + 0.06 * head.cheekbone),
        (0.0, mouth_y + 0.02, 0.0, 0.34, 0.16, 0.07),
        (0.0, head.chin_y - 0.18, 0.0, 0.22, 0.14, 0.09),
    ]


def comb(
    light: Floats, hair_mask: Pixels, rng: np.random.Generator, view: View, person: Person, *, curly: bool
) -> None:
    """Vary ``light`` [n, n, 3], in place, where ``hair_mask`` is set: streaks that fan out from the crown, or
    tufts."""
    left, top, width, height = cv2.boundingRect(hair_mask)
    if not width:
        return
    if curly:
        cells = rng.standard_normal((40, 40), dtype=np.float32)
        relief = 0.08 * cv2.resize(cells, hair_mask.shape[::-1], interpolation=cv2.INTER_CUBIC)
        relief = relief[top : top + height, left : left + width]
    else:
        crown = view.place_at([(0.5 * person.hair.part, person.head.forehead_y - 0.05)], 0.0)[0]
        dx = np.arange(left, left + width, dtype=np.float32)[None, :] - np.float32(crown[0])
        dy = np.arange(top, top + height, dtype=np.float32)[:, None] - np.float32(crown[1])
        radius, angle = cv2.cartToPolar(np.repeat(dx, height, axis=0), np.repeat(dy, width, axis=1))
        hairs = rng.standard_normal((8, 512), dtype=np.float32)
        table = cv2.GaussianBlur(hairs, (0, 0), sigmaX=1.2, sigmaY=1.0)
        wobble = 6.0 * person.hair.wave * np.sin(radius / np.float32(0.18 * view.unit))
        turn, reach = angle * np.float32(511 / (2 * np.pi)) + wobble, radius * np.float32(1.5 / view.unit)
        relief = 0.30 * cv2.remap(table, turn, reach, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    box = slice(top, top + height), slice(left, left + width)
    strength = 1.0 + relief * (hair_mask[box] * np.float32(1 / 255))
    light[box] *= cv2.merge((strength, strength, strength))


def expose(image: Pixels, camera: Camera, rng: np.random.Generator) -> Pixels:
    """What the camera makes of uint8 RGB [n, n, 3]: the same, in its colours, with its blur and noise."""
    n = len(image)
    balance = np.array(camera.white_balance) if camera.saturation > 0 else np.ones(3)
    to_grey = np.tile([0.299, 0.587, 0.114], (3, 1))
    colour = to_grey + camera.saturation * (np.eye(3) - to_grey)
    curve_8bit = np.rint(255 * np.linspace(0, 1, 256) ** camera.gamma).astype(np.uint8)
    picture = cv2.LUT(cv2.transform(image, camera.exposure * balance[:, None] * colour), curve_8bit)
    if camera.blur > 0.3:
        picture = cv2.GaussianBlur(picture, (0, 0), camera.blur * n / 250)
    dice = rng.integers(0, 256, (2, n, n), dtype=np.uint8)  # the sum of two has mean 255 and deviation 104.5
    noise = (cv2.add(dice[0], dice[1], dtype=cv2.CV_32F) - 255) * np.float32(camera.noise / 104.5)
    return cv2.add(picture, cv2.merge((noise, noise, noise)), dtype=cv2.CV_8U)


def _any_colour(rng: np.random.Generator) -> Colour:
    """Any colour, muted ones more often than loud ones."""
    value, loud = rng.uniform(0.08, 0.95), 0.85 * rng.uniform(0, 1) ** 2
    red, green, blue = rng.uniform(-0.5, 0.5, 3) * loud
    clip = [float(min(max(value + c, 0.0), 1.0)) for c in (red, green, blue)]
    return (clip[0], clip[1], clip[2])


def _blend(image: Floats, points: Floats, colour: Colour, strength: float) -> None:
    """Paint a polygon into float32 RGB, in place."""
    mask = np.zeros(image.shape[:2], np.uint8)
    fill_mask(mask, points)
    alpha = mask[:, :, None] * np.float32(strength / 255.0)
    image += alpha * (np.array(colour, np.float32) - image)
