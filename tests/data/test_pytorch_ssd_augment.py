"""``augment=pytorch_ssd`` against the rules of that project, spelled out again, over 2,000 draws.

Bounds on counts are four standard deviations wide; they were computed by hand.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from functools import cache
from random import Random

import numpy as np
import pytest
from scipy import stats

from attnbench.data.detection import box_augment
from attnbench.data.detection.box_augment import augmentation
from attnbench.data.detection.hsv import recoloured
from attnbench.data.detection.scenes import Objects, boxed

DRAWS = 2000
HALF = (910, 1090)  # 1000 +- 4 sqrt(2000 / 4)


def there_and_back(pixel: list[float], saturation: float, degrees: float) -> list[float]:
    """One pixel by OpenCV's documented formulas: to hue, saturation and value; changed; back."""
    r, g, b = pixel
    v = max(pixel)
    spread = v - min(pixel)
    s = spread / abs(v) if v else 0.0
    if not spread:
        h = 0.0
    elif v == r:
        h = 60 * (g - b) / spread
    elif v == g:
        h = 120 + 60 * (b - r) / spread
    else:
        h = 240 + 60 * (r - g) / spread
    h, s = (h + degrees) % 360, s * saturation
    sector, past = int(h // 60) % 6, h / 60 - h // 60
    p, q, t = v * (1 - s), v * (1 - s * past), v * (1 - s * (1 - past))
    return [[v, t, p], [q, v, p], [p, v, t], [p, q, v], [t, p, v], [v, p, q]][sector]


@pytest.mark.parametrize("degrees", [0.0, 17.5, -17.5, 3.0])
@pytest.mark.parametrize("saturation", [1.0, 0.5, 1.5])
def test_colours_change_by_opencvs_formulas_for_any_floats(saturation: float, degrees: float) -> None:
    pixels = [list(map(float, one)) for one in itertools.product((-40, -7.5, 0, 30, 200.25, 300), repeat=3)]
    changed = recoloured(np.array(pixels, dtype=np.float32).reshape(12, 18, 3), saturation, degrees)
    expected = [there_and_back(pixel, saturation, degrees) for pixel in pixels]
    assert changed.dtype == np.float32
    assert changed.reshape(-1, 3) == pytest.approx(np.array(expected), abs=1e-3)


def test_three_pixels_by_hand() -> None:
    def one(*pixel: float, saturation: float = 1.0, degrees: float = 0.0) -> list[float]:
        changed: list[float] = recoloured(np.array([[pixel]], np.float32), saturation, degrees)[0, 0].tolist()
        return changed

    assert one(200, 100, 50, saturation=1.5) == pytest.approx([200, 50, -25])
    assert one(200, 100, 50, degrees=18) == pytest.approx([200, 145, 50])  # the hue of 20 degrees becomes 38
    assert one(-10, -20, -30) == pytest.approx([-10, 0, 10])


@cache
def distorted() -> np.ndarray:
    """2,000 draws of black, white, a dark grey and a colour of hue 30 degrees; float64 (draws, 4, 3)."""
    image = np.array([[[0, 0, 0], [255, 255, 255], [51, 51, 51], [200, 150, 100]]], dtype=np.uint8)
    drawn = [box_augment.distort_floats(image, boxed([], []), Random(seed))[0] for seed in range(DRAWS)]
    assert all(one.dtype == np.float32 for one in drawn)
    return np.stack(drawn)[:, 0].astype(np.float64)


def test_channels_are_permuted_with_probability_one_half_by_one_of_six() -> None:
    """The channels keep their order if the six permutations' identity is drawn as well: 1/2 + 1/12."""
    orders = Counter(tuple(np.argsort(-colour)) for colour in distorted()[:, 3])
    assert len(orders) == 6
    assert 1078 < orders.pop((0, 1, 2)) < 1255  # 1167
    assert all(117 < count < 216 for count in orders.values())  # 167


def test_brightness_and_contrast_are_those_of_the_greys() -> None:
    black, white = distorted()[:, 0, 0], distorted()[:, 1, 0]
    assert np.ptp(distorted()[:, :3], axis=2).max() < 1e-3  # grey stays grey
    contrast = (white - black) / 255
    brightness = black / contrast
    for values, unchanged, least, most in ((contrast, 1.0, 0.5, 1.5), (brightness, 0.0, -32.0, 32.0)):
        drawn = values[np.abs(values - unchanged) > 1e-5]
        assert HALF[0] < len(drawn) < HALF[1]
        assert least - 1e-4 < drawn.min() and drawn.max() < most + 1e-4
        assert stats.kstest(drawn, stats.uniform(least, most - least).cdf).pvalue > 1e-4
    assert stats.spearmanr(contrast, brightness).pvalue > 1e-4


def test_saturation_and_hue_are_those_of_the_colour() -> None:
    black, white, colour = distorted()[:, 0, 0], distorted()[:, 1, 0], np.sort(distorted()[:, 3], axis=1)
    contrast = (white - black) / 255
    saturation = (colour[:, 2] - colour[:, 0]) / contrast / 100
    hue = 60 * (colour[:, 1] - colour[:, 0]) / (colour[:, 2] - colour[:, 0])
    for values, unchanged, least, most in ((saturation, 1.0, 0.5, 1.5), (hue, 30.0, 12.0, 48.0)):
        drawn = values[np.abs(values - unchanged) > 1e-4]
        assert HALF[0] < len(drawn) < HALF[1]
        assert least - 1e-3 < drawn.min() and drawn.max() < most + 1e-3
        assert stats.kstest(drawn, stats.uniform(least, most - least).cdf).pvalue > 1e-4


def test_pixels_are_neither_clipped_nor_rounded() -> None:
    values = distorted()
    assert -48.01 < values.min() < -35 and 380 < values.max() < 430.6  # (0 - 32) 1.5 and (255 + 32) 1.5
    below = (values.min((1, 2)) < 0).mean()
    assert 0.2 < below < 0.3  # brightness falls in a quarter of all draws, and black is then below 0
    assert (values.max((1, 2)) > 255).mean() > 0.3
    assert (values != values.round()).any(axis=(1, 2)).mean() > 0.8


def placed(width: int = 200, height: int = 100) -> np.ndarray:
    """An image whose pixels say where they are: column, row, and a fraction below 0."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([columns, rows, np.full_like(rows, 0)], 2).astype(np.float32) - np.array([0, 0, 5.5], np.float32)


def test_an_image_is_placed_on_grey_of_one_to_four_times_its_sides() -> None:
    image = placed(80, 40)
    ratios, shares = [], []
    for seed in range(DRAWS):
        canvas, moved = box_augment.expand(image, boxed([(10, 20, 60, 30)], [0]), Random(seed))
        assert canvas.dtype == np.float32
        if canvas is image:
            continue
        left, top = (moved.boxes[0, :2] - (10, 20)).astype(int)
        assert np.array_equal(canvas[top : top + 40, left : left + 80], image)
        assert (canvas == 127).all(2).sum() == canvas.shape[0] * canvas.shape[1] - 80 * 40
        ratios.append((canvas.shape[1] + 0.5) / 80)
        if canvas.shape[0] > 50:  # the room is many pixels, so that rounding does not show
            shares.append(((left + 0.5) / (canvas.shape[1] - 79), (top + 0.5) / (canvas.shape[0] - 39)))
    assert HALF[0] < len(ratios) < HALF[1]
    assert stats.kstest(ratios, stats.uniform(1, 3).cdf).pvalue > 1e-4
    for share in zip(*shares, strict=True):
        assert stats.kstest(share, stats.uniform().cdf).pvalue > 1e-4


@cache
def cropped() -> tuple[list[tuple[int, int, int, int]], int]:
    """Of 8,000 draws around a tiny object in the middle: left, top, right, bottom of each crop; whole images."""
    image, crops = placed(), []
    for seed in range(4 * DRAWS):
        pixels, moved = box_augment.any_crop(image, boxed([(99, 49, 103, 53)], [0]), Random(seed))
        assert len(moved) == 1
        left, top = int(pixels[0, 0, 0]), int(pixels[0, 0, 1])
        assert np.array_equal(pixels, image[top : top + pixels.shape[0], left : left + pixels.shape[1]])
        crops.append((left, top, left + pixels.shape[1], top + pixels.shape[0]))
    whole = (0, 0, 200, 100)
    return [crop for crop in crops if crop != whole], crops.count(whole)


def test_one_crop_in_six_is_the_whole_image_whatever_an_object_overlaps() -> None:
    """The object's overlap with a crop is below 1/100, so by the overlaps 0.1 to 0.9 none would pass: 4000 whole."""
    crops, whole = cropped()
    assert 1200 < whole < 1467  # 1333; 1143 for one in seven
    assert all(0 < 16 / ((r - x) * (b - y)) < 0.01 for x, y, r, b in crops)


def test_crops_are_those_of_the_rule() -> None:
    """The rule with numpy's own ``uniform``: its single argument is the lower end, and the upper end is 1."""
    random = np.random.RandomState(0)
    expected: list[tuple[int, int, int, int]] = []
    while len(expected) < 10_000:
        w, h = random.uniform(0.3 * 200, 200), random.uniform(0.3 * 100, 100)
        if h / w < 0.5 or h / w > 2:
            continue
        left, top = random.uniform(200 - w), random.uniform(100 - h)
        rect = int(left), int(top), int(left + w), int(top + h)
        if rect[0] < 101 < rect[2] and rect[1] < 51 < rect[3]:
            expected.append(rect)
    crops = cropped()[0]
    ours, rule = np.array(crops), np.array(expected)
    for side in range(4):
        assert stats.ks_2samp(ours[:, side], rule[:, side]).pvalue > 1e-4
    for pair in ((0, 2), (1, 3)):  # the sides of the crops
        assert stats.ks_2samp(*(np.diff(one[:, pair])[:, 0] for one in (ours, rule))).pvalue > 1e-4
    assert all(left >= 1 or right - left >= 199 for left, _, right, _ in crops)


def test_an_object_remains_if_its_centre_is_in_the_crop() -> None:
    image = placed()
    objects = boxed([(0, 0, 40, 40), (90, 30, 150, 80), (160, 60, 200, 100)], [0, 1, 2])
    centres = {0: (20, 20), 1: (120, 55), 2: (180, 80)}
    seen = set()
    for seed in range(200):
        pixels, moved = box_augment.any_crop(image, objects, Random(seed))
        left, top = int(pixels[0, 0, 0]), int(pixels[0, 0, 1])
        right, bottom = left + pixels.shape[1], top + pixels.shape[0]
        inside = [n for n, (x, y) in centres.items() if left < x < right and top < y < bottom]
        assert moved.labels.tolist() == inside
        for n, box in zip(inside, moved.boxes, strict=True):
            x, y, r, b = objects.boxes[n]
            assert box.tolist() == [max(x, left) - left, max(y, top) - top, min(r, right) - left, min(b, bottom) - top]
        seen.add(tuple(inside))
    assert {(0, 1, 2), (1,), (0,)} <= seen


def linear(line: np.ndarray, size: int) -> np.ndarray:
    """A line of values resized by the rule: between the two nearest pixels, and no others, at (i + 1/2) scale - 1/2."""
    at = ((np.arange(size) + 0.5) * len(line) / size - 0.5).clip(0, len(line) - 1)
    low = np.floor(at).astype(int)
    high = np.minimum(low + 1, len(line) - 1)
    return np.asarray(line[low] * (1 - (at - low)) + line[high] * (at - low))


@pytest.mark.parametrize("size", [7, 16, 50])
def test_images_are_resized_between_the_nearest_pixels(size: int) -> None:
    image = np.random.default_rng(0).uniform(-50, 400, (48, 32, 3)).astype(np.float32)
    resized, moved = box_augment.resize_floats(image, boxed([(8, 12, 16, 24)], [0]), Random(0), size=size)
    expected = np.apply_along_axis(linear, 1, np.apply_along_axis(linear, 0, image.astype(float), size), size)
    assert resized.shape == (size, size, 3) and resized.dtype == np.float32
    assert np.abs(resized - expected).max() < 5e-3
    assert moved.boxes == pytest.approx(np.array([[8, 12, 16, 24]]) * size / np.array([32, 48, 32, 48]))


def marked() -> tuple[np.ndarray, Objects]:
    """Two greys on a darker one, with their boxes and masks."""
    image = np.full((80, 120, 3), 20, dtype=np.uint8)
    masks = np.zeros((2, 80, 120), dtype=np.uint8)
    boxes = [(8, 12, 48, 52), (60, 20, 116, 76)]
    for mask, (left, top, right, bottom), grey in zip(masks, boxes, (150, 220), strict=True):
        mask[top:bottom, left:right] = 1
        image[top:bottom, left:right] = grey
    return image, boxed(boxes, [0, 1], masks=masks)


def test_masks_move_with_the_pixels_and_boxes_with_the_masks() -> None:
    """After all steps, a mask has the pixels whose centres are in its box, and inside it is its object's grey."""
    image, objects = marked()
    seen = Counter[int]()
    for seed in range(60):
        pixels, moved = augmentation("pytorch_ssd", 64)(image, objects, Random(seed))  # type: ignore[misc]
        assert pixels.dtype == np.float32 and pixels.shape == (64, 64, 3)
        assert moved.masks is not None and len(moved.masks) == len(moved.boxes)
        centres = np.arange(64) + 0.5
        for mask, (left, top, right, bottom) in zip(moved.masks, moved.boxes, strict=True):
            columns, rows = ((low <= centres) & (centres < high) for low, high in ((left, right), (top, bottom)))
            assert np.array_equal(mask, np.outer(rows, columns))
            inner = np.outer(_eroded(rows), _eroded(columns)).astype(bool)
            if inner.any():
                assert np.ptp(pixels[inner], axis=0).max() < 1e-3  # one grey
                seen[len(moved)] += 1
    assert seen[1] > 5 and seen[2] > 20


def _eroded(line: np.ndarray) -> np.ndarray:
    """A row of booleans without the first and the last four of each stretch: pixels that resizing may have mixed."""
    return np.convolve(line, np.ones(9), "same") == 9


def test_an_image_without_objects_stays_whole() -> None:
    for seed in range(20):
        pixels, moved = box_augment.any_crop(placed(), boxed([], []), Random(seed))
        assert pixels.shape == (100, 200, 3) and len(moved) == 0


def test_images_are_mirrored_half_of_the_time() -> None:
    """Of all steps together, seen in the order of two objects that both remain."""
    image, objects = np.zeros((20, 30, 3), dtype=np.uint8), boxed([(2, 3, 12, 13), (15, 5, 29, 19)], [0, 1])
    turned = kept = 0
    step = augmentation("pytorch_ssd", 16)
    assert step is not None
    for seed in range(DRAWS):
        moved = step(image, objects, Random(seed))[1]
        if len(moved) == 2:
            kept += 1
            turned += int(moved.boxes[0, 0] > moved.boxes[1, 0])
    assert kept > 800 and abs(turned / kept - 0.5) < 4 * math.sqrt(0.25 / kept)
