"""Draws the source domain of the shipped detector: pieces of many kinds on grounds of many kinds, all by a program.

    python tools/source_domain.py samples.png        # a sheet of 20 images to look at

A class is an outline (disc, gear, leaf, letter ...), for some outlines with a marking or a range of colours. None of
the demo's six classes (`cst_search/data/demo.py`) is among them. Everything else varies and means nothing: size from
4 % to 80 % of the image, 1 to 25 pieces, aspect, rotation, bending, texture, shading, shadow, translucency; grounds
with the spectrum of photographs (1/f noise, dead leaves: Ruderman 1997; Baradad et al. 2021, "Learning to see by
looking at noise"), stripes, tiles, blobs, paper; uneven light, blur, low contrast, grey images, sensor noise, JPEG.
"""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib import get_data_path
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from train_demo_backbone import SHAPES

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cst_search.data import demo

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]
Rng = np.random.Generator
SIZE_PX = 224

# --- outlines: local coordinates u, v; the piece fills [-1, 1] -------------------------------------------------------


def _hexagon(u: Array, v: Array) -> Mask:
    return np.maximum(abs(v), abs(u) * 0.866 + abs(v) * 0.5) < 0.86


def _heart(u: Array, v: Array) -> Mask:
    x, y = 1.2 * u, 0.25 - 1.15 * v
    return (x**2 + y**2 - 0.9) ** 3 < 1.6 * x**2 * y**3


def _arrow(u: Array, v: Array) -> Mask:
    return ((abs(u) < 0.3) & (v > -0.2) & (v < 0.95)) | ((v < 0) & (v > -0.95) & (abs(u) < 0.85 * (v + 0.95)))


def _gear(u: Array, v: Array) -> Mask:
    r = np.hypot(u, v)
    return (r < np.where(np.sin(9 * np.arctan2(v, u)) > 0, 0.98, 0.75)) & (r > 0.28)


def _leaf(u: Array, v: Array) -> Mask:
    blade = abs(u) < 0.55 * np.cos(0.5 * math.pi * v.clip(-1, 1)).clip(0) ** 0.7
    return (blade & (abs(v) < 0.9)) | ((abs(u) < 0.06) & (abs(v) < 1))


def _bug(u: Array, v: Array) -> Mask:
    body = (u / 0.38) ** 2 + ((v - 0.2) / 0.62) ** 2 < 1
    head = u**2 + (v + 0.58) ** 2 < 0.07
    legs = (abs(u) < 0.9) & (np.abs((v - 0.12 + 0.35 * abs(u) * np.sign(v)) % 0.4 - 0.2) < 0.05) & (abs(v) < 0.65)
    feelers = (abs(abs(u) - 0.35 * (-0.55 - v) - 0.08) < 0.05) & (v < -0.6) & (v > -0.98)
    return body | head | legs | feelers


def _vase(u: Array, v: Array) -> Mask:
    width = 0.32 + 0.2 * np.cos(4.4 * v + 0.9) + 0.14 * v
    return (abs(v) < 0.96) & (abs(u) < np.where(v > 0.82, 0.58, np.where(v < -0.84, 0.4, width)))


def _blob(u: Array, v: Array) -> Mask:
    t = np.arctan2(v, u)
    return np.hypot(u, v) < 0.78 + 0.1 * np.sin(2 * t + 0.6) + 0.07 * np.sin(3 * t) + 0.05 * np.sin(5 * t + 1)


def _badge(u: Array, v: Array) -> Mask:
    r = np.hypot(u, v)
    return (r < 1) & ~((r < 0.82) & (r > 0.66)) & ~((abs(u) < 0.14) & (abs(v) < 0.45))


@cache
def _glyph_pictures(character: str) -> tuple[Mask, ...]:
    """The character in fonts that matplotlib ships, each (64, 64), stretched to fill the picture."""
    pictures = []
    for name in _FONTS:
        font = ImageFont.truetype(str(Path(get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"), 80)
        picture = Image.new("L", (160, 160))
        ImageDraw.Draw(picture).text((40, 30), character, fill=255, font=font)
        pictures.append(np.asarray(picture.crop(picture.getbbox()).resize((64, 64))) > 127)
    return tuple(pictures)


_FONTS = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSerif", "DejaVuSerif-BoldItalic", "DejaVuSansMono"),
    *("STIXGeneral", "STIXGeneralItalic", "cmr10", "cmss10", "cmtt10"),
)


def _glyph(character: str, rng: Rng) -> demo.Outline:
    pictures = _glyph_pictures(character)
    picture = pictures[int(rng.integers(len(pictures)))]

    def outline(u: Array, v: Array) -> Mask:
        column, row = ((1.5 * u + 1) * 32).astype(int), ((v + 1) * 32).astype(int)
        inside = (column >= 0) & (column < 64) & (row >= 0) & (row < 64)
        return inside & picture[row.clip(0, 63), column.clip(0, 63)]

    return outline


class Kind(NamedTuple):
    """What a class looks like.

    Attributes:
        draw_outline: the outline of one piece; the same for each piece unless there are several, as fonts.
        tilt: bound of the rotation, radians; small where a turned piece would be another class.
        marking: ``plain``, ``stripes`` or ``dots``; None: any, it tells nothing.
        hues: the range of the colour in turns; None: any, grey too.
    """

    draw_outline: Callable[[Rng], demo.Outline]
    tilt: float = math.pi
    marking: str | None = None
    hues: tuple[float, float] | None = None


def _fixed(outline: demo.Outline) -> Callable[[Rng], demo.Outline]:
    return lambda rng: outline


def _kinds() -> dict[str, Kind]:
    upright = {"box": 0.25, "diamond": 0.25, "vase": 0.5}
    outlines = SHAPES | {"arrow": _arrow, "leaf": _leaf, "bug": _bug, "blob": _blob, "badge": _badge, "vase": _vase}
    kinds = {name: Kind(_fixed(outline), upright.get(name, math.pi)) for name, outline in outlines.items()}
    # one outline, several classes: the deep features must hold markings and colours too
    for adjective, marking in (("plain", "plain"), ("striped", "stripes"), ("dotted", "dots")):
        kinds[f"{adjective} hexagon"] = Kind(_fixed(_hexagon), marking=marking)
    for adjective, marking in (("plain", "plain"), ("striped", "stripes")):
        kinds[f"{adjective} gear"] = Kind(_fixed(_gear), marking=marking)
    kinds |= {
        "warm heart": Kind(_fixed(_heart), hues=(-0.1, 0.14)),
        "cold heart": Kind(_fixed(_heart), hues=(0.4, 0.74)),
    }
    return kinds | {f"letter {character}": Kind(partial(_glyph, character), 0.35) for character in "AEK258"}


KINDS = _kinds()
CLASS_NAMES = tuple(KINDS)


def _bent(outline: demo.Outline, rng: Rng) -> demo.Outline:
    """The outline, narrower by up to 1.8 for half of the pieces, and bent for three in five."""
    narrow = float(np.exp(rng.uniform(0, 0.6))) if rng.random() < 0.5 else 1.0
    bend = rng.uniform(0, 0.13, 2) if rng.random() < 0.6 else np.zeros(2)
    phase, pitch = rng.uniform(0, 2 * math.pi, 2), rng.uniform(1, 3, 2)

    def bent(u: demo.Array, v: demo.Array) -> Mask:
        x = u + bend[0] * np.sin(pitch[0] * v + phase[0])
        return outline(narrow * x, v + bend[1] * np.sin(pitch[1] * u + phase[1]))

    return bent


# --- paint -----------------------------------------------------------------------------------------------------------


def _tone(rng: Rng, hues: tuple[float, float] | None, grey: bool) -> Array:
    if hues is not None:
        return demo.hsv(rng.uniform(*hues), rng.uniform(0.35, 0.95), rng.uniform(0.25, 1.0))
    return demo.hsv(rng.random(), 0.0 if grey else rng.uniform(0, 0.9), rng.uniform(0.08, 1.0))


def _marking(kind: str, rng: Rng) -> Callable[[demo.Array, demo.Array], Mask]:
    pitch, angle, phase = rng.uniform(5, 13), rng.uniform(0, math.pi), rng.uniform(0, 2 * math.pi)

    def marked(u: demo.Array, v: demo.Array) -> Mask:
        a = np.sin(pitch * (u * math.cos(angle) + v * math.sin(angle)) + phase)
        b = np.sin(pitch * (v * math.cos(angle) - u * math.sin(angle)))
        kinds = {"stripes": a > 0.1, "dots": a * b > 0.3, "grid": np.maximum(a, b) > 0.85}
        return kinds.get(kind, np.zeros_like(a, bool))

    return marked


def _paint(kind: Kind, rng: Rng, near: Array | None) -> demo.Paint:
    """Two tones, a marking, texture, shading as of a flat or a round body, and a highlight.

    Args:
        near: a tone of the ground; the piece stands out little from it. None: any tone.
    """
    grey = rng.random() < 0.25
    tone, other = _tone(rng, kind.hues, grey), _tone(rng, kind.hues, grey)
    if near is not None and kind.hues is None:
        tone = np.clip(near + rng.choice([-1, 1]) * rng.uniform(0.12, 0.3) + rng.normal(0, 0.05, 3), 0, 1)
    marking = kind.marking or str(rng.choice(["plain", "plain", "stripes", "dots", "grid"]))
    if marking != "plain" and abs(tone - other).max() < 0.25:
        other = 1 - tone if kind.hues is None else tone * 0.4
    marked, light, bulge = _marking(marking, rng), rng.uniform(-0.3, 0.3, 2), rng.uniform(0, 0.5) * (rng.random() < 0.5)
    gloss, spot = rng.uniform(0, 0.7) * (rng.random() < 0.3), rng.uniform(-0.5, 0.5, 2)
    grain = rng.uniform(0, 0.16) * (rng.random() < 0.6) * fractal_noise(rng, 64, rng.uniform(0.6, 1.6))

    def paint(u: demo.Array, v: demo.Array) -> demo.Array:
        color = np.where(marked(u, v)[..., None], other, tone)
        color = color + grain[((v + 2) * 16).astype(int) % 64, ((u + 2) * 16).astype(int) % 64]
        shade = 1 + light[0] * u + light[1] * v - bulge * (u**2 + v**2 - 0.3)
        return color * shade[..., None] + (gloss * np.exp(-6 * ((u - spot[0]) ** 2 + (v - spot[1]) ** 2)))[..., None]

    return paint


# --- grounds: (S, S, 3) float RGB in about 0..1 ----------------------------------------------------------------------


def fractal_noise(rng: Rng, size_px: int, exponent: float, channels: int = 1) -> Array:
    """(S, S, channels), mean 0 and standard deviation 1, with the amplitude spectrum 1 / f^exponent."""
    frequency = np.hypot(np.fft.fftfreq(size_px)[:, None], np.fft.rfftfreq(size_px)[None])
    frequency[0, 0] = 1
    spectrum = np.fft.rfft2(rng.standard_normal((channels, size_px, size_px), dtype=np.float32)) / frequency**exponent
    spectrum[:, 0, 0] = 0
    noise = np.fft.irfft2(spectrum, s=(size_px, size_px))
    return (noise / (noise.std(axis=(1, 2), keepdims=True) + 1e-6)).transpose(1, 2, 0).astype(np.float32)


def _palette(rng: Rng) -> Array:
    """(6, 3) tones around one hue, as things in one picture have."""
    hue, saturation, value = rng.random(), rng.uniform(0, 0.6), rng.uniform(0.15, 0.95)
    spread = rng.uniform(0.03, 0.35)
    shift = rng.normal(size=(6, 3)) * spread * (0.5, 1, 1)
    tones = np.clip(np.array([hue, saturation, value]) + shift, (-np.inf, 0, 0.1), (np.inf, 1, 1))
    return np.stack([demo.hsv(*tone) for tone in tones.tolist()])


def _dead_leaves(rng: Rng, size_px: int, palette: Array) -> Array:
    """Discs and rectangles on one another, radii with density r^-3: the occlusion statistics of photographs."""
    picture = Image.new("RGB", (size_px, size_px), tuple(_bytes(palette[0])))
    draw = ImageDraw.Draw(picture)
    least, most = rng.uniform(2, 6), rng.uniform(20, 110)
    for share in rng.random(int(rng.integers(60, 400))):
        r = (share / most**2 + (1 - share) / least**2) ** -0.5
        x, y = rng.uniform(0, size_px, 2)
        fill = tuple(_bytes(palette[int(rng.integers(6))] + rng.normal(0, 0.04)))
        if rng.random() < 0.5:
            draw.ellipse((x - r, y - r * rng.uniform(0.4, 1), x + r, y + r), fill=fill)
        else:
            corners = rng.uniform(0, 2 * math.pi) + np.sort(rng.uniform(0, 2 * math.pi, int(rng.integers(3, 6))))
            draw.polygon([(x + r * math.cos(c), y + r * math.sin(c)) for c in corners], fill=fill)
    return np.asarray(picture, np.float32) / 255


def _bytes(tone: Array) -> list[int]:
    return [int(value) for value in np.clip(tone, 0, 1) * 255]


def _waves(rng: Rng, size_px: int) -> Array:
    x, y = np.meshgrid(np.arange(size_px, dtype=np.float32), np.arange(size_px, dtype=np.float32))
    angle, pitch = rng.uniform(0, math.pi), np.exp(rng.uniform(-2.6, 0.2))
    wave = np.sin((x * math.cos(angle) + y * math.sin(angle)) * pitch + rng.uniform(0, 6))
    return (np.sign(wave) if rng.random() < 0.4 else wave)[..., None]


def _tiles(rng: Rng, size_px: int) -> Array:
    """Chequered tiles, or joints between them."""
    pitch, at = int(rng.integers(10, 60)), np.arange(size_px) + int(rng.integers(60))
    if rng.random() < 0.5:
        return (((at // pitch)[:, None] + (at // pitch)[None]) % 2 - 0.5)[..., None]
    return -1.5 * ((at % pitch < 2)[:, None] | (at % pitch < 2)[None])[..., None]


def ground(rng: Rng, size_px: int) -> tuple[Array, Array]:
    """Return a ground and its palette."""
    palette = _palette(rng)
    kind, strength = int(rng.integers(8)), rng.uniform(0.02, 0.2)
    if kind == 0:
        return _dead_leaves(rng, size_px, palette) + 0.03 * fractal_noise(rng, size_px, 1.0), palette
    if kind == 1:  # paper, sky, slide: next to nothing
        return palette[0] + 0.02 * fractal_noise(rng, size_px, 1.5), palette
    if kind in (2, 3):  # 1/f noise between two tones
        share = np.clip(0.5 + 0.35 * fractal_noise(rng, size_px, rng.uniform(0.8, 1.8)), 0, 1)
        pixels = palette[0] * share + palette[1] * (1 - share) + 0.3 * strength * fractal_noise(rng, size_px, 1.2, 3)
        return pixels, palette
    pixels = palette[0] + 0.1 * demo.smooth_noise(rng, size_px, (4, 4), 3)
    if kind == 4:
        pixels = pixels + strength * _waves(rng, size_px)
    elif kind == 5:
        pixels = pixels + strength * _tiles(rng, size_px)
    elif kind == 6:  # blobs
        level = fractal_noise(rng, size_px, rng.uniform(1.6, 2.4)) > rng.uniform(-0.5, 1)
        pixels = np.where(level, palette[2], pixels)
    else:  # grain of wood, or of cloth
        cells = (80, 3) if rng.random() < 0.5 else (3, 80)
        pixels = pixels + strength * demo.smooth_noise(rng, size_px, cells)
    return pixels + rng.uniform(0, 0.06) * fractal_noise(rng, size_px, rng.uniform(0.3, 1.5)), palette


# --- the picture -----------------------------------------------------------------------------------------------------


class Canvas:
    """A picture to which pieces are added, each in front of those before.

    Attributes:
        pixels: (S, S, 3) float RGB.
    """

    def __init__(self, rng: Rng, pixels: Array) -> None:
        self.rng, self.size_px, self.pixels = rng, len(pixels), pixels
        self._seen: list[tuple[Mask, int]] = []  # of each piece that counts: what is visible of it, its whole area

    def add(
        self, outline: demo.Outline, paint: demo.Paint, size_px: float, tilt: float, counts: bool = True
    ) -> tuple[float, float, float, float] | None:
        """Draw a piece where it hides at most 0.4 of an earlier one; None when no such place was found.

        Returns:
            Tight box xyxy in pixels of the whole piece, clipped to the picture; hidden parts count.
        """
        rng, s = self.rng, self.size_px
        angle, reach = rng.uniform(-tilt, tilt), 0.72 * size_px
        for _ in range(6):
            center = rng.uniform(0.25 * size_px, s - 0.25 * size_px, 2)  # up to a quarter may lie outside
            x0, y0 = np.maximum(np.floor(center - reach), 0).astype(int)
            x1, y1 = np.minimum(np.ceil(center + reach), s).astype(int)
            x = np.arange(2 * x0, 2 * x1, dtype=np.float32)[None] / 2 + 0.25 - center[0]
            y = np.arange(2 * y0, 2 * y1, dtype=np.float32)[:, None] / 2 + 0.25 - center[1]
            u = 2 / size_px * (x * math.cos(angle) + y * math.sin(angle))
            v = 2 / size_px * (y * math.cos(angle) - x * math.sin(angle))
            inside = outline(u, v).astype(np.float32)
            cover = inside.reshape(y1 - y0, 2, x1 - x0, 2).mean(axis=(1, 3))  # four samples per pixel
            mask = cover > 0.4
            if mask.sum() < 16 or not self._covered(mask, y0, x0):
                continue
            self._blend(cover, paint(u[::2, ::2], v[::2, ::2]), y0, x0)
            if counts:
                whole = np.zeros((s, s), bool)
                whole[y0:y1, x0:x1] = mask
                self._seen.append((whole, int(mask.sum())))
            columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
            return float(x0 + columns[0]), float(y0 + rows[0]), float(x0 + columns[-1] + 1), float(y0 + rows[-1] + 1)
        return None

    def _covered(self, mask: Mask, y0: int, x0: int) -> bool:
        """Note what a mask at (y0, x0) hides of earlier pieces; False, and nothing noted, if it is too much of one."""
        window = (slice(y0, y0 + mask.shape[0]), slice(x0, x0 + mask.shape[1]))
        if any(seen.sum() - (seen[window] & mask).sum() < 0.6 * area for seen, area in self._seen):
            return False
        for seen, _ in self._seen:
            seen[window] &= ~mask
        return True

    def _blend(self, cover: Array, color: demo.Array, y0: int, x0: int) -> None:
        """Mix a piece into the pixels: a third with a shadow, a fifth translucent, some with a dark rim."""
        rng, (h, w) = self.rng, cover.shape
        patch = self.pixels[y0 : y0 + h, x0 : x0 + w]
        if rng.random() < 0.35:
            shift = (rng.uniform(-0.08, 0.08, 2) * (h + w) / 2).astype(int)
            soft = _blurred(np.roll(cover, shift, (0, 1)), 0.03 * (h + w) / 2 + 0.5)
            patch = patch * (1 - rng.uniform(0.2, 0.6) * soft[..., None])
        if rng.random() < 0.2 and min(h, w) > 24:
            rim = np.clip(cover - _blurred(cover, 1.5), 0, 1)
            color = color * (1 - rng.uniform(0.5, 1.5) * rim[..., None])
        opacity = rng.uniform(0.45, 0.9) if rng.random() < 0.2 else 1.0
        self.pixels[y0 : y0 + h, x0 : x0 + w] = patch + opacity * cover[..., None] * (color - patch)


def _blurred(plane: Array, radius_px: float) -> Array:
    """(h, w) in 0..1, blurred with a Gaussian."""
    picture = Image.fromarray((plane * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(radius_px))
    return np.asarray(picture, np.float32) / 255


# pieces, least and largest size as shares of the picture
_CROWDS = ((1, 0.3, 0.8), (4, 0.12, 0.5), (8, 0.08, 0.3), (16, 0.045, 0.16), (6, 0.045, 0.7))


def _plan(rng: Rng) -> list[tuple[int, float]]:
    """Classes and sizes (share of the picture) of the pieces of a picture, largest first.

    Half of the pictures show few classes many times, as real sets do, and all in about one size.
    """
    n, least, most = _CROWDS[int(rng.integers(len(_CROWDS)))]
    n = int(rng.integers(max(1, n // 2), round(1.6 * n) + 1))
    if rng.random() < 0.5:
        middle = rng.uniform(least, most)
        least, most = 0.8 * middle, min(1.25 * middle, 0.8)
    classes = rng.permutation(len(KINDS))[: int(rng.integers(1, 5))] if rng.random() < 0.5 else np.arange(len(KINDS))
    sizes = np.exp(rng.uniform(math.log(max(least, 0.04)), math.log(most), n))
    return [(int(rng.choice(classes)), float(size)) for size in sorted(sizes, reverse=True)]


def _clutter(rng: Rng, canvas: Canvas, palette: Array) -> None:
    """Sticks, crumbs, patches of the palette: they belong to no class."""
    for _ in range(int(rng.integers(0, 9))):
        thin = rng.random() < 0.6
        width = rng.uniform(0.03, 0.1)
        outline = (lambda u, v, w=width: (abs(u) < w) & (abs(v) < 1)) if thin else (lambda u, v: u**2 + v**2 < 1)
        tone = palette[int(rng.integers(6))] if rng.random() < 0.5 else _tone(rng, None, False)
        length = rng.uniform(30, 200) if thin else rng.uniform(3, 7)
        canvas.add(outline, lambda u, v, tone=tone: np.broadcast_to(tone, (*u.shape, 3)), length, math.pi, counts=False)


def _finish(rng: Rng, pixels: Array) -> NDArray[np.uint8]:
    """Light and camera: uneven light, a shadow, contrast, grey, blur, noise, JPEG."""
    size_px = len(pixels)
    light = rng.uniform(0.75, 1.15) + rng.uniform(0, 0.3) * demo.smooth_noise(rng, size_px, (2, 2))
    image = np.clip(pixels, 0, 1) * light
    if rng.random() < 0.2:
        shadow = np.clip(3 * demo.smooth_noise(rng, size_px, (3, 3)), 0, 1)
        image = image * (1 - rng.uniform(0.2, 0.5) * shadow)
    if rng.random() < 0.3:  # low contrast, bright or dark
        image = rng.uniform(0, 0.9) * (1 - (k := rng.uniform(0.3, 0.8))) + k * image
    image = image * rng.uniform(0.92, 1.08, 3).astype(np.float32)
    if rng.random() < 0.15:
        image = np.repeat(image.mean(-1, keepdims=True), 3, -1)
    picture = Image.fromarray((np.clip(image, 0, 1) * 255).astype(np.uint8))
    if rng.random() < 0.4:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.6)))
    noise = rng.uniform(0.002, 0.05) * rng.standard_normal((size_px, size_px, 3), dtype=np.float32)
    picture = Image.fromarray(np.clip(np.asarray(picture) + 255 * noise, 0, 255).astype(np.uint8))
    if rng.random() < 0.4:
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=int(rng.integers(30, 95)))
        picture = Image.open(stream)
    return np.asarray(picture)


def draw_image(seed: int) -> tuple[NDArray[np.uint8], Array, NDArray[np.int64]]:
    """One image: pixels (224, 224, 3), boxes (n, 4) xyxy in pixels, labels (n,) from 1 in the order of CLASS_NAMES."""
    rng = np.random.default_rng([11, seed])
    pixels, palette = ground(rng, SIZE_PX)
    canvas = Canvas(rng, pixels.astype(np.float32))
    _clutter(rng, canvas, palette)
    hard = rng.random() < 0.4  # pieces that stand out little from the ground
    boxes, labels = [], []
    for index, share in _plan(rng):
        kind = list(KINDS.values())[index]
        near = palette[int(rng.integers(2))] if hard and rng.random() < 0.7 else None
        paint = _paint(kind, rng, near)
        box = canvas.add(_bent(kind.draw_outline(rng), rng), paint, share * SIZE_PX, kind.tilt)
        if box:
            boxes.append(box)
            labels.append(index + 1)
    return _finish(rng, canvas.pixels), np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int64)


def main() -> None:
    sheet = Image.new("RGB", (5 * SIZE_PX, 4 * SIZE_PX))
    for seed in range(20):
        pixels, boxes, labels = draw_image(seed)
        picture = Image.fromarray(pixels)
        draw = ImageDraw.Draw(picture)
        for box, label in zip(boxes.tolist(), labels.tolist(), strict=True):
            draw.rectangle(box, outline=(255, 0, 0))
            draw.text(box[:2], CLASS_NAMES[label - 1], fill=(255, 255, 0))
        sheet.paste(picture, (seed % 5 * SIZE_PX, seed // 5 * SIZE_PX))
    sheet.save(sys.argv[1])


if __name__ == "__main__":
    main()
