"""MegaFace: probes in ``facescrub_images/<person>/``, strangers in ``megaface_images/<a>/<b>/``, and the dev-kit's lists of
both. There are up to ten strangers for each person: 10, 100, 1,000, …"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from facetrain.datasets.synth.layouts import Drawing, Layout
from facetrain.errors import UserError
from facetrain.files import write_bytes

STRANGERS = 1_000_000  # numbers of people from here on, so that a larger set extends a smaller one


def lay_out(identities: int, images: int, seed: int, size_px: int) -> Layout:
    if images < 2:
        raise UserError("MegaFace needs two probes of each person: ask for 2 images or more")
    people = [f"Person_{number}" for number in range(1, identities + 1) for _ in range(images)]
    probes = [f"{name}/{name}_{1 + i % images}.png" for i, name in enumerate(people)]
    drawings = [
        Drawing(f"facescrub_images/{path}", 1 + i // images, 1 + i % images, size_px)
        for i, path in enumerate(probes)
    ]
    sizes = [10**power for power in range(1, len(str(identities)) + 1)]
    strangers = [f"{number // 100:03d}/{number:06d}/0.jpg" for number in range(1, sizes[-1] + 1)]
    drawings += [
        Drawing(f"megaface_images/{path}", STRANGERS + i, 1, size_px)
        for i, path in enumerate(strangers, start=1)
    ]

    def write_lists(out: Path) -> None:
        (out / "templatelists").mkdir(exist_ok=True)
        _write(out, "facescrub_features_list.json", {"path": probes, "id": people})
        for size in sizes:
            rows = np.random.default_rng((seed, size)).permutation(len(strangers))[:size]
            paths = [strangers[row] for row in rows]
            _write(out, f"megaface_features_list.json_{size}_1", {"path": paths, "id": list(range(size))})

    return Layout(drawings, write_lists)


def _write(out: Path, name: str, content: dict[str, Any]) -> None:
    write_bytes(out / "templatelists" / name, json.dumps(content, indent=0).encode())
