"""One synthetic photograph, from its three numbers."""

from __future__ import annotations

import cv2
import numpy as np

from facetrain.datasets.synth import face, hair, scene
from facetrain.datasets.synth.brush import Canvas, Pixels, fill_mask, grain_tile
from facetrain.datasets.synth.person import Person, make_person, stream
from facetrain.datasets.synth.shot import make_shot
from facetrain.datasets.synth.view import View

SUPERSAMPLING = 2


def draw_face(seed: int, identity: int, image: int, size_px: int = 250) -> Pixels:
    """Photograph ``image`` of person ``identity``, both counted from 1, before its JPEG compression.

    :returns: uint8 RGB [size_px, size_px, 3].
    """
    if identity < 1 or image < 1:
        raise ValueError(f"people and photographs are counted from 1: {identity}, {image}")
    return draw_photograph(make_person(seed, identity), stream(seed, identity, image), size_px)[0]


def draw_photograph(person: Person, rng: np.random.Generator, size_px: int) -> tuple[Pixels, int]:
    """A photograph of ``person``, uint8 RGB [size_px, size_px, 3], and the JPEG quality to store it with."""
    shot = make_shot(rng)
    expression = shot.expression
    canvas_px = SUPERSAMPLING * size_px
    view = View(shot.pose, canvas_px)
    canvas = Canvas(canvas_px, view.unit, grain_tile(rng, canvas_px))

    puff = rng.uniform(-0.02, 0.04)  # hair is not combed the same every day
    outline = face.head_outline(person, expression)
    shapes = hair.hair_shapes(view, person, outline, puff)
    outline_px = view.place_at(outline, face.HEAD_EDGE_DEPTH)
    hair.paint_back_hair(canvas, view, person, puff)
    scene.paint_body(canvas, view, person, rng)
    for side in (-1, 1):
        face.paint_ear(canvas, view, person, side)
    canvas.fill(outline_px, person.skin)
    hair.paint_hair(canvas, person, shapes, outline_px)
    face.paint_cheeks(canvas, view, person)
    hair.paint_beard(canvas, view, person, expression)
    face.paint_mouth(canvas, view, person, expression)
    for side in (-1, 1):
        face.paint_eye(canvas, view, person, expression, side)
    face.paint_nose(canvas, view, person)
    face.paint_moles(canvas, view, person)
    for side in (-1, 1):
        face.paint_brow(canvas, view, person, expression, side)
    hair.paint_locks(canvas, person, shapes)
    if person.marks.glasses != "none" and shot.glasses_on:
        face.paint_glasses(canvas, view, person)

    hair_mask = np.zeros((size_px, size_px), np.uint8)
    head_mask = np.zeros((size_px, size_px), np.uint8)
    fill_mask(head_mask, outline_px / SUPERSAMPLING)
    if shapes.cap is not None:
        fill_mask(hair_mask, shapes.cap / SUPERSAMPLING)
        fill_mask(head_mask, shapes.cap / SUPERSAMPLING)
        fill_mask(hair_mask, shapes.window / SUPERSAMPLING, 0)
        for lock in shapes.locks:
            fill_mask(hair_mask, lock / SUPERSAMPLING)

    half_size = (size_px // 2, size_px // 2)  # light is smooth: worked out at half the size
    half_mask = cv2.resize(head_mask, half_size, interpolation=cv2.INTER_AREA)
    light = scene.lighting(shot.light, View(shot.pose, size_px // 2), person, half_mask)
    light = cv2.resize(light, (size_px, size_px), interpolation=cv2.INTER_LINEAR)
    scene.comb(light, hair_mask, rng, View(shot.pose, size_px), person, curly=person.hair.style in hair.CURLY)

    painted = cv2.resize(canvas.pixels, (size_px, size_px), interpolation=cv2.INTER_AREA)
    alpha = cv2.cvtColor(cv2.extractChannel(painted, 3), cv2.COLOR_GRAY2RGB)
    colours = cv2.min(cv2.cvtColor(painted, cv2.COLOR_RGBA2RGB), alpha)  # no soft paint beside the figure
    figure = cv2.multiply(colours, light, dtype=cv2.CV_8U)
    behind = cv2.multiply(scene.background(rng, size_px), cv2.bitwise_not(alpha), scale=1 / 255)
    return scene.expose(cv2.add(figure, behind), shot.camera, rng), shot.camera.jpeg_quality
