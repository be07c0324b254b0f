"""Synthetic photographs of people: deterministic, free of anyone's rights, hard enough to learn something on.

A person's features are fixed; pose, expression, light, background, clothes and camera are drawn anew for each
photograph.

    person.py      what stays the same: the measures and colours of one person
    shot.py        what changes: pose, expression, light, camera
    view.py        from the measures of a head to pixels
    brush.py       curves and a canvas
    face.py, hair.py, scene.py    the painting
    photograph.py  puts one photograph together
    tree.py        a folder of many, in parallel
    landmarks.py   where the face is
    laid_out.py    a folder in the layout of a set of the field, with its lists
    layouts/       those layouts
"""

from facetrain.datasets.synth.laid_out import synthesise_layout
from facetrain.datasets.synth.landmarks import face_landmarks
from facetrain.datasets.synth.photograph import draw_face
from facetrain.datasets.synth.tree import SynthReport, synthesise

__all__ = ["SynthReport", "draw_face", "face_landmarks", "synthesise", "synthesise_layout"]
