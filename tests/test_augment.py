"""Augmentation: every operation against an independent one, exact where nothing is asked for, bounded by the strength,
the same for the same draws."""

from __future__ import annotations

import gc
import io
import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from facetrain.datasets import augment as module
from facetrain.datasets.augment import Augment, Draws, define_flip, define_pipeline, draw
from facetrain.errors import UserError

SIZE = 48
N = 30


def needs_gpu(test: Callable[..., None]) -> Callable[..., None]:
    return pytest.mark.gpu(
        pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here")(test)
    )


@pytest.fixture(scope="module")
def images(drawn: Path) -> torch.Tensor:
    photographs = [Image.open(path).resize((SIZE, SIZE)) for path in sorted(drawn.rglob("*.jpg"))]
    assert len(photographs) == N
    return torch.from_numpy(np.stack([np.asarray(p.convert("RGB")) for p in photographs]))


@pytest.fixture(scope="module")
def augment() -> Augment:
    return Augment(SIZE, 1, max_batch=N)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def drawn_as(**changes: Any) -> Draws:
    """Draws that do nothing but what is given here, for each image or for all alike."""
    nothing = {
        "flipped": np.int32(0),
        "matrix": np.eye(3, dtype=np.float32),
        "brightness": np.float32(1),
        "contrast": np.float32(1),
        "saturation": np.float32(1),
        "hue_deg": np.float32(0),
        "blurred": np.bool_(False),
        "sigma_px": np.float32(2),
        "compressed": np.bool_(False),
        "quality": np.int32(20),
        "anchor_px": np.zeros(2, np.float32),
        "shape_px": np.zeros(2, np.float32),
        "colour": np.full(3, 77, np.float32),
    }
    assert set(changes) <= set(nothing)
    draws = {}
    for name, value in nothing.items():
        given = np.asarray(changes.get(name, value), value.dtype)
        draws[name] = np.ascontiguousarray(np.broadcast_to(given, (N, *value.shape)))
    assert set(draws) == set(draw(rng(), 1, SIZE, 1))
    return draws


def uniform(low: float, high: float, seed: int = 0) -> np.ndarray:
    return rng(seed).uniform(low, high, N).astype(np.float32)


# -- each operation --------------------------------------------------------------------------------------------------


def test_nothing_changes_nothing(images: torch.Tensor, augment: Augment) -> None:
    out = augment.apply(images, drawn_as())
    assert torch.equal(out, images)
    assert out.data_ptr() != images.data_ptr()


def test_a_flip_is_exact(images: torch.Tensor, augment: Augment) -> None:
    mirrored = [[-1, 0, SIZE], [0, 1, 0], [0, 0, 1]]
    assert torch.equal(augment.apply(images, drawn_as(matrix=mirrored)), images.flip(2))


def test_a_shift_is_exact_and_carries_the_border_on(images: torch.Tensor, augment: Augment) -> None:
    """The matrix leads from the result to the source."""
    out = augment.apply(images, drawn_as(matrix=[[1, 0, -5], [0, 1, 3], [0, 0, 1]]))
    assert torch.equal(out[:, :-3, 5:], images[:, 3:, :-5])
    assert torch.equal(out[:, :-3, :5], images[:, 3:, :1].expand(-1, -1, 5, -1))
    assert torch.equal(out[:, -3:, 5:], images[:, -1:, :-5].expand(-1, 3, -1, -1))


def test_the_warp_is_bilinear(images: torch.Tensor, augment: Augment) -> None:
    """Against the definition, in float64; coordinates are counted from corners."""
    matrices = draw(rng(3), N, SIZE, 5)["matrix"]
    out = augment.apply(images, drawn_as(matrix=matrices)).numpy()
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5
    for image, source, matrix in zip(out, images.numpy().astype(float), matrices.astype(float), strict=True):
        u, v = (
            np.clip(row @ [x.ravel(), y.ravel(), 0 * x.ravel() + 1] - 0.5, 0, SIZE - 1) for row in matrix[:2]
        )
        left, top = np.floor(u).astype(int), np.floor(v).astype(int)
        right, bottom = np.minimum(left + 1, SIZE - 1), np.minimum(top + 1, SIZE - 1)
        u, v = (u - left)[:, None], (v - top)[:, None]
        upper = source[top, left] * (1 - u) + source[top, right] * u
        lower = source[bottom, left] * (1 - u) + source[bottom, right] * u
        expected = (upper * (1 - v) + lower * v).reshape(image.shape)
        assert np.abs(image - expected).max() < 1.01
        assert np.abs(image - expected).mean() < 0.3  # rounding alone makes 0.25


def test_a_drawn_matrix_flips_then_turns_scales_and_shifts_about_the_centre() -> None:
    """As OpenCV composes it, in the coordinates of pixel centres."""
    angle_rad, scale, shift_px = (
        np.array([0.2, -0.1]),
        np.array([1.1, 0.9]),
        np.array([[3.0, -2.0], [0.5, 4.0]]),
    )
    found = module._matrix(np.array([False, True]), angle_rad, scale, shift_px, SIZE)
    for i, flipped in enumerate([False, True]):
        turn = cv2.getRotationMatrix2D((SIZE / 2, SIZE / 2), -np.degrees(angle_rad[i]), scale[i])
        mirror = np.array([[-1.0, 0, SIZE], [0, 1, 0], [0, 0, 1]]) if flipped else np.eye(3)
        expected = turn @ mirror
        expected[:, 2] += shift_px[i]
        np.testing.assert_allclose(found[i, :2], expected, atol=1e-12)
        assert found[i, 2].tolist() == [0, 0, 1]


def test_colours(images: torch.Tensor, augment: Augment) -> None:
    """Saturation and hue scale and turn the colour plane of YIQ; contrast is about 128; brightness multiplies."""
    brightness, contrast, saturation, hue_deg = uniform(0.4, 1.6), uniform(0.4, 1.6, 1), uniform(0, 1.6, 2), uniform(-20, 20, 3)  # fmt: skip
    draws = drawn_as(brightness=brightness, contrast=contrast, saturation=saturation, hue_deg=hue_deg)
    out = augment.apply(images, draws).numpy()
    yiq = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.321], [0.211, -0.523, 0.311]])
    for i, (image, source) in enumerate(zip(out, images.numpy(), strict=True)):
        cos, sin = (
            saturation[i] * np.cos(np.radians(hue_deg[i])),
            saturation[i] * np.sin(np.radians(hue_deg[i])),
        )
        turn = np.linalg.inv(yiq) @ [[1, 0, 0], [0, cos, sin], [0, -sin, cos]] @ yiq
        expected = brightness[i] * (128 + contrast[i] * (source @ turn.T - 128))
        np.testing.assert_allclose(image, np.clip(expected, 0, 255), atol=0.51)


def test_grey_is_luma(images: torch.Tensor, augment: Augment) -> None:
    grey = augment.apply(images, drawn_as(saturation=0)).numpy().astype(int)
    assert np.abs(grey - grey[..., :1]).max() <= 1
    np.testing.assert_allclose(grey[..., 0], images.numpy() @ (0.299, 0.587, 0.114), atol=1.01)


def test_the_blur_is_gaussian_with_sigma_in_pixels(images: torch.Tensor, augment: Augment) -> None:
    sigma_px, blurred = uniform(0.2, 3), rng().random(N) < 0.5
    out = augment.apply(images, drawn_as(blurred=blurred, sigma_px=sigma_px)).numpy()
    for i, (image, source) in enumerate(zip(out, images.numpy(), strict=True)):
        if not blurred[i]:
            np.testing.assert_array_equal(image, source)
            continue
        window = 2 * int(np.ceil(3 * sigma_px[i])) + 1
        expected = cv2.GaussianBlur(
            source.astype(np.float32), (window, window), float(sigma_px[i]), borderType=cv2.BORDER_REFLECT_101
        )
        np.testing.assert_allclose(image, expected, atol=0.51)


def test_pixels_are_rounded_once_after_colour_and_blur(images: torch.Tensor, augment: Augment) -> None:
    """What colour lifts above 255 is there for the blur."""
    draws = drawn_as(brightness=1.7, blurred=True, sigma_px=1.5)
    out = augment.apply(images, draws).numpy()
    for image, source in zip(out, images.numpy(), strict=True):
        brighter = source.astype(np.float32) * np.float32(1.7)
        expected = cv2.GaussianBlur(brighter, (11, 11), 1.5, borderType=cv2.BORDER_REFLECT_101)
        np.testing.assert_allclose(image, np.minimum(expected, 255), atol=0.51)


def test_compression_is_that_of_a_jpeg_file(images: torch.Tensor, augment: Augment) -> None:
    quality, compressed = rng().integers(20, 91, N), rng(1).random(N) < 0.5
    out = augment.apply(images, drawn_as(compressed=compressed, quality=quality)).numpy()
    for i, (image, source) in enumerate(zip(out, images.numpy(), strict=True)):
        if not compressed[i]:
            np.testing.assert_array_equal(image, source)
            continue
        file = io.BytesIO()
        Image.fromarray(source).save(file, "jpeg", quality=int(quality[i]), subsampling="4:2:0")
        np.testing.assert_allclose(
            image, np.asarray(Image.open(file)), atol=2
        )  # decoders may differ a little


def test_erasing_fills_a_rectangle_and_comes_last(images: torch.Tensor, augment: Augment) -> None:
    anchor_px, shape_px, colour = rng().integers(0, 30, (N, 2)), rng(1).integers(0, 18, (N, 2)), rng(2).integers(0, 256, (N, 3))  # fmt: skip
    erased = {"anchor_px": anchor_px, "shape_px": shape_px, "colour": colour}
    expected = images.numpy().copy()
    for image, (y, x), (height, width), fill in zip(expected, anchor_px, shape_px, colour, strict=True):
        image[y : y + height, x : x + width] = fill
    np.testing.assert_array_equal(augment.apply(images, drawn_as(**erased)).numpy(), expected)
    changed = {"saturation": 0, "blurred": True, "compressed": True}
    out = augment.apply(images, drawn_as(**erased, **changed)).numpy()
    for image, (y, x), (height, width), fill in zip(out, anchor_px, shape_px, colour, strict=True):
        assert (image[y : y + height, x : x + width] == fill).all()


def test_operations_come_in_order(images: torch.Tensor, augment: Augment) -> None:
    """Warp, colour, blur, JPEG: all at once is one after the other, but for the roundings in between."""
    draws = draw(rng(9), N, SIZE, 3)
    draws |= {"blurred": np.ones(N, bool), "compressed": np.ones(N, bool)}
    together = augment.apply(images, draws)
    one_by_one = images
    for names in (
        ["matrix"],
        ["brightness", "contrast", "saturation", "hue_deg"],
        ["blurred", "sigma_px"],
        ["compressed", "quality"],
        ["anchor_px", "shape_px", "colour"],
    ):
        one_by_one = augment.apply(one_by_one, drawn_as(**{name: draws[name] for name in names}))
    difference = (together.int() - one_by_one).abs()
    assert difference.float().mean() < 1
    assert difference.max() < 40  # where JPEG rounds a coefficient the other way


# -- whole batches ---------------------------------------------------------------------------------------------------


def test_strength_zero_flips_and_does_nothing_else(images: torch.Tensor) -> None:
    out = Augment(SIZE, 0, max_batch=N)(images, rng())
    flipped = draw(rng(), N, SIZE, 0)["flipped"].astype(bool)
    assert 5 < flipped.sum() < 25
    assert torch.equal(out[flipped], images[flipped].flip(2))
    assert torch.equal(out[~flipped], images[~flipped])


@pytest.mark.parametrize("strength", [0, 0.3, 5])
def test_the_result_is_like_the_batch(images: torch.Tensor, strength: float) -> None:
    before = images.clone()
    out = Augment(SIZE, strength, max_batch=N + 3)(images, rng())
    assert (out.dtype, out.shape, out.device) == (torch.uint8, images.shape, images.device)
    assert out.is_contiguous()
    assert torch.equal(images, before)


@pytest.mark.parametrize("strength", [0, 3])
def test_the_same_draws_give_the_same_pixels(images: torch.Tensor, strength: float) -> None:
    one, other = Augment(SIZE, strength, max_batch=N), Augment(SIZE, strength, max_batch=64, threads=2)
    out = one(images, rng(5))
    assert torch.equal(other(images, rng(5)), out)
    assert not torch.equal(one(images, rng(6)), out)
    assert torch.equal(one(images, rng(5)), out)


@pytest.mark.parametrize("strength", [0, 5])
def test_batches_of_any_size_and_an_image_for_itself(images: torch.Tensor, strength: float) -> None:
    """An image's place in the batch counts, not its company."""
    augment = Augment(SIZE, strength, max_batch=N)
    whole = augment(images, rng(2))
    for count in (7, 1, 0, 2, N):
        assert torch.equal(augment(images[:count], rng(2)), whole[:count])
    company = images.roll(1, 0)
    company[4] = images[4]
    assert torch.equal(augment(company, rng(2))[4], whole[4])
    draws = draw(rng(2), N, SIZE, strength)
    for i in range(N):
        alone = {name: values[i : i + 1] for name, values in draws.items()}
        assert torch.equal(augment.apply(images[i : i + 1], alone), whole[i : i + 1])


@pytest.mark.parametrize("strength", [0, 1])
def test_a_result_belongs_to_its_caller(images: torch.Tensor, strength: float) -> None:
    """DALI hands its buffers over: later batches, and its own end, leave them alone; so does what callers write."""
    augment = Augment(SIZE, strength, max_batch=N)
    held = [augment(images, rng(seed)) for seed in range(6)]
    assert len({out.data_ptr() for out in held}) == 6
    for seed, out in enumerate(held):
        assert torch.equal(out, augment(images, rng(seed)))
    copies = [out.clone() for out in held]
    held[0].zero_()
    assert torch.equal(augment(images, rng(0)), copies[0])
    del augment
    gc.collect()
    for out, copy in zip(held[1:], copies[1:], strict=True):
        assert torch.equal(out, copy)


def test_the_source_may_be_overwritten_afterwards(images: torch.Tensor, augment: Augment) -> None:
    """DALI reads the batch in place, so it must be done with it on return."""
    source = images.clone()
    out = augment(source, rng(1))
    kept = out.clone()
    source.zero_()
    assert torch.equal(out, kept)
    assert torch.equal(augment(images, rng(1)), kept)


# -- draws -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [0, 0.5, 1, 3, 5])
def test_draws_are_within_bounds_and_reach_them(strength: float) -> None:
    draws = draw(rng(), 5000, SIZE, strength)
    linear = draws["matrix"][:, :2, :2].astype(np.float64)
    determinant = np.linalg.det(linear)
    np.testing.assert_array_equal(determinant < 0, draws["flipped"] == 1)
    turned = linear.copy()
    turned[determinant < 0, :, 0] *= -1
    centre = np.full(2, SIZE / 2)
    coloured = draws["saturation"][draws["saturation"] > 0]
    for values, middle, bound in (
        (np.arctan2(turned[:, 1, 0], turned[:, 0, 0]), 0, np.deg2rad(6) * strength),
        (np.log(np.abs(determinant)) / 2, 0, np.log(1.06) * strength),
        ((linear @ centre + draws["matrix"][:, :2, 2] - centre) / SIZE, 0, 0.03 * strength),
        (draws["brightness"], 1, 0.125 * strength),
        (draws["contrast"], 1, 0.125 * strength),
        (coloured, 1, 0.125 * strength),
        (draws["hue_deg"], 0, 4 * strength),
        (draws["sigma_px"] / SIZE, 0.004 + 0.0025 * strength, 0.0025 * strength),
        (draws["quality"], 90 - 7 * strength, 7 * strength + 0.5),
    ):
        assert np.abs(values - middle).max() <= bound + 1e-5
        assert np.abs(values - middle).max() >= 0.97 * bound - 0.5 * (values.dtype == np.int32)
        assert abs(values.mean() - middle) <= 0.06 * bound + 1e-6
    assert coloured.min() > 0.3  # so that zero is grey and nothing else
    erased = (draws["shape_px"] > 0).all(axis=1)
    np.testing.assert_array_equal(erased, (draws["shape_px"] > 0).any(axis=1))
    for values, share in (
        (draws["flipped"] == 1, 0.5),
        (draws["saturation"] == 0, 0.15 * strength),
        (draws["blurred"], 0.05 * strength),
        (draws["compressed"], 0.1 * strength),
        (erased, 0.05 * strength),
    ):
        assert abs(values.mean() - share) < 4 * np.sqrt(share * (1 - share) / 5000) + 1e-9
    if strength:
        shape_px, anchor_px = draws["shape_px"][erased], draws["anchor_px"][erased]
        assert shape_px.min() == round(0.1 * SIZE)
        assert shape_px.max() == round((0.1 + 0.06 * strength) * SIZE)
        assert anchor_px.min() == 0
        assert (anchor_px + shape_px).max() == SIZE
        assert abs((anchor_px + shape_px / 2).mean() - SIZE / 2) < 1
        assert draws["colour"].min() == 0 and draws["colour"].max() == 255
    for name in ("matrix", "anchor_px", "shape_px", "colour"):
        assert draws[name].dtype == np.float32
    np.testing.assert_array_equal(draws["anchor_px"], np.rint(draws["anchor_px"]))


def test_operations_are_drawn_independently() -> None:
    draws = draw(rng(), 20_000, SIZE, 5)
    columns = np.stack(
        [
            draws["flipped"],
            draws["matrix"][:, 1, 0]
            / np.sqrt(np.abs(np.linalg.det(draws["matrix"])))
            * (1 - 2 * draws["flipped"]),
            np.abs(np.linalg.det(draws["matrix"])),
            draws["brightness"],
            draws["contrast"],
            draws["saturation"] == 0,
            draws["hue_deg"],
            draws["blurred"],
            draws["sigma_px"],
            draws["compressed"],
            draws["quality"],
            draws["shape_px"][:, 0] > 0,
            *draws["colour"].T,
        ]
    )
    correlation = np.corrcoef(columns.astype(np.float64)) - np.eye(len(columns))
    assert np.abs(correlation).max() < 0.04


def test_a_strength_leaves_all_else_as_it_was() -> None:
    """Runs of different strength flip the same images and draw on with the same numbers; shares lie in one another."""
    generators = [rng(4) for _ in range(3)]
    weak, middle, strong = (
        draw(generator, 3000, SIZE, s) for generator, s in zip(generators, (0, 2, 4), strict=True)
    )
    assert len({generator.random() for generator in generators}) == 1
    np.testing.assert_array_equal(weak["flipped"], strong["flipped"])
    np.testing.assert_allclose(2 * middle["hue_deg"], strong["hue_deg"], rtol=1e-5)
    np.testing.assert_allclose(2 * (middle["contrast"] - 1), strong["contrast"] - 1, atol=1e-5)
    for name in ("blurred", "compressed"):
        assert 0 < middle[name].sum() < strong[name].sum()
        assert not (middle[name] & ~strong[name]).any()


def test_what_an_image_gets_does_not_depend_on_the_batch_size() -> None:
    few, many = draw(rng(1), 5, SIZE, 3), draw(rng(1), 50, SIZE, 3)
    for name, values in few.items():
        np.testing.assert_array_equal(values, many[name][:5])


@pytest.mark.parametrize("strength", [-0.1, 5.1, float("nan"), float("inf")])
def test_strengths_that_cannot_be(strength: float) -> None:
    with pytest.raises(UserError, match="choose a strength from 0"):
        Augment(SIZE, strength, max_batch=1)


def test_the_figure_can_be_drawn() -> None:
    """docs/augmentation_figure.py, but for the faces."""
    script = Path(__file__).resolve().parent.parent / "docs" / "augmentation_figure.py"
    names = runpy.run_path(str(script))
    size, people = names["SIZE_PX"], len(names["PEOPLE"])
    crops = rng().integers(0, 256, (people, size, size, 3), dtype=np.uint8)
    picture = np.asarray(names["figure"](names["rows"](crops)))
    left, top = names["MARGIN_PX"] + names["LABEL_PX"], names["MARGIN_PX"]
    step = size + names["GAP_PX"]
    assert picture.shape[0] == 2 * top + (1 + len(names["STRENGTHS"])) * step - names["GAP_PX"]
    for column, crop in enumerate(crops):
        place = np.s_[:, left + column * step : left + column * step + size]
        original, unchanged, changed = (
            picture[top + row * step : top + row * step + size][place] for row in range(3)
        )
        np.testing.assert_array_equal(original, crop)
        assert (unchanged == crop).all() or (unchanged == crop[:, ::-1]).all()
        assert (changed != unchanged).any()


# -- the GPU ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "define, operators",
    [
        (define_flip, "Flip"),
        (define_pipeline, "WarpAffine ColorTwist GaussianBlur Cast JpegCompressionDistortion Erase"),
    ],
)
def test_the_pipelines_of_the_gpu_can_be_defined_without_one(
    define: Callable[..., Any], operators: str
) -> None:
    """DALI checks operators, arguments and devices when it traces them; only building needs the card."""
    text = define("cuda", batch_size=8, num_threads=1, device_id=None).serialize()
    for operator in operators.split():
        assert devices(text, operator) == {b"gpu"}
    assert devices(text, "ExternalSource") == {b"cpu", b"gpu"}  # what is drawn, and the images


@pytest.mark.parametrize("define, strength", [(define_flip, 0), (define_pipeline, 3)])
def test_the_pipelines_of_the_gpu_are_those_of_the_processor(
    images: torch.Tensor, define: Callable[..., Any], strength: float
) -> None:
    """Every operator's arguments fit, which shows on a processor too: where it is told to run there instead."""
    from nvidia.dali.pipeline import Pipeline

    text = define("cuda", batch_size=N, num_threads=1, device_id=None).serialize()
    moved = Pipeline.deserialize(text.replace(b"\x03gpu", b"\x03cpu"), device_id=None, prefetch_queue_depth=1)
    draws = draw(rng(3), N, SIZE, strength)
    for name in ["flipped"] if define is define_flip else set(draws) - {"flipped"}:
        moved.feed_input(name, draws[name])
    moved.feed_input("images", images.numpy())
    (out,) = moved.run()
    expected = Augment(SIZE, strength, max_batch=N).apply(images, draws)
    difference = (torch.from_dlpack(out.as_tensor()).int() - expected).abs()
    difference = difference[
        ~torch.from_numpy(draws["compressed"])
    ]  # JPEG may round a coefficient another way
    assert difference.max() <= (2 if strength else 0)


def devices(serialised: bytes, operator: str) -> set[bytes]:
    """Where the operators of this name run."""
    pattern = rb"(?s)\n." + operator.encode() + rb"[\x12\x1a].*?\x06device\x12\x06string\*\x03(cpu|gpu)"
    return set(re.findall(pattern, serialised))


@needs_gpu
@pytest.mark.parametrize("strength", [0, 1, 3])
def test_the_gpu_does_what_the_processor_does(images: torch.Tensor, strength: float) -> None:
    draws = draw(rng(3), N, SIZE, strength) | {"compressed": np.zeros(N, bool)}
    out = Augment(SIZE, strength, max_batch=N, device=torch.device("cuda")).apply(images.cuda(), draws)
    assert out.is_cuda
    assert out.is_contiguous()
    assert out.dtype == torch.uint8
    expected = Augment(SIZE, strength, max_batch=N).apply(images, draws)
    assert (out.cpu().int() - expected).abs().max() <= (3 if strength else 0)


@needs_gpu
def test_compression_on_the_gpu_is_nearly_that_of_a_file(images: torch.Tensor, augment: Augment) -> None:
    """DALI's kernel imitates the codec."""
    draws = drawn_as(compressed=True, quality=rng().integers(20, 91, N))
    out = Augment(SIZE, 1, max_batch=N, device=torch.device("cuda")).apply(images.cuda(), draws).cpu()
    expected = augment.apply(images, draws).int()
    assert (out.int() - expected).abs().float().mean() < 0.5 * (images - expected).abs().float().mean()


@needs_gpu
@pytest.mark.parametrize("strength", [0, 3])
def test_results_on_the_gpu_belong_to_their_caller_and_stream(images: torch.Tensor, strength: float) -> None:
    augment = Augment(SIZE, strength, max_batch=N, device=torch.device("cuda"))
    expected = []
    for seed in range(8):
        expected.append(augment(images.cuda(), rng(seed)).cpu())
        torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        held = []
        for seed in range(8):
            source = images.pin_memory().cuda(non_blocking=True)
            held.append(augment(source, rng(seed)))
            source.zero_()
    torch.cuda.current_stream().wait_stream(stream)
    for out, wanted in zip(held, expected, strict=True):
        assert torch.equal(out.cpu(), wanted)
    assert augment(images[:0].cuda(), rng()).shape == (0, SIZE, SIZE, 3)
    assert augment(images[:1].cuda(), rng()).is_cuda
