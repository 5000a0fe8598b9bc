# SPDX-License-Identifier: Apache-2.0
"""Toy-animal portraits from Gaussian latents: painting them, and a contact sheet.

``toy_scene`` turns a latent into parameters, ellipsoids and landmarks; here the scene becomes a shaded,
anti-aliased picture and, on request, dense maps.  There is no control flow that depends on data, so
``render`` can be given to ``torch.compile``.
"""

from __future__ import annotations

import argparse
from typing import NamedTuple

import torch
from torch import Tensor
from toy_scene import (
    LANDMARKS,
    LATENT_DIM,
    Ear,
    Surface,
    brow_ends,
    capsule,
    describe,
    front_surface,
    geometry_apart,
    mouth_curves,
    nose_shape,
    to_view,
)

__all__ = ["LANDMARKS", "LATENT_DIM", "MAPS", "Scene", "describe", "render"]

MAPS: tuple[str, ...] = (
    "head", "ears", "eyes", "mouth", "nose", "body", "background", "head_x", "head_y",
)  # fmt: skip
"""Dense maps: visible coverage in [0, 1] of each part, then head-local x and y (head units, 0 off it)."""

_LIGHT = (-0.41, 0.60, 0.69)
_HALFWAY = (-0.22, 0.33, 0.92)


class Scene(NamedTuple):
    """What ``render`` gives back.

    image: [B, 3, size, size] float32 in [-1, 1]; landmarks: [B, 21, 2] float32, (x, y) in pixels of that
    picture, integers are pixel centres, x right, y down; maps: [B, len(MAPS), size, size] float32 or None.
    """

    image: Tensor
    landmarks: Tensor
    maps: Tensor | None


def _cover(distance: Tensor, pixel: Tensor) -> Tensor:
    """Coverage of a shape from its signed distance: a ramp one and a half samples wide."""
    return (0.5 - distance / (1.5 * pixel)).clamp(0.0, 1.0)


def _step(low: float, high: float, x: Tensor) -> Tensor:
    t = ((x - low) / (high - low)).clamp(0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def _over(under: Tensor, colour: Tensor, alpha: Tensor) -> Tensor:
    return under + (colour - under) * alpha


def _shade(colour: Tensor, normal: tuple, sky: Tensor, gloss: float = 0.10, power: int = 16) -> Tensor:
    """Soft toy shading: half-Lambert, warm shadows, a rim in the colour of the backdrop, a gentle sheen."""
    nx, ny, nz = normal
    lit = 0.5 + 0.5 * (nx * _LIGHT[0] + ny * _LIGHT[1] + nz * _LIGHT[2])
    lit = lit * (0.35 + 0.65 * lit)
    warm = colour.new_tensor((0.50, 0.46, 0.47)).reshape(1, 3, 1, 1)
    edge = 1.0 - nz.clamp(0.0, 1.0)
    rim = edge * edge * edge * (0.55 + 0.45 * ny) * 0.26
    sheen = (nx * _HALFWAY[0] + ny * _HALFWAY[1] + nz * _HALFWAY[2]).clamp_min(0.0)
    for _ in range(power.bit_length() - 1):
        sheen = sheen * sheen
    body = colour * (warm + (1.13 - warm) * lit)
    return body + (0.5 * sky + 0.5 * colour) * rim + gloss * sheen


def _paint_eyes(
    p: dict, face: Tensor, x: Tensor, y: Tensor, fur: Tensor, iris: Tensor, pixel: Tensor
) -> tuple[Tensor, Tensor]:
    """Paint both eyes at once in mirrored coordinates; gives back the face and the eyes' coverage."""
    side = torch.where(x < 0, -1.0, 1.0)
    u, v = x.abs() - p["eye_spacing"], y - p["eye_height"]
    c, s = torch.cos(p["eye_tilt"]), torch.sin(p["eye_tilt"])
    size = p["eye_size"]
    u, v = (c * u + s * v) / size, (c * v - s * u) / (size * p["eye_aspect"])
    pixel = pixel / size
    radius = torch.sqrt(u * u + v * v + 1e-6)
    lid = (p["lid_upper"] + side * p["lid_skew"]).clamp_min(0.0)
    top = 1.08 - 1.45 * lid - (0.16 + 0.12 * lid) * u * u
    bottom = -1.12 + 0.75 * p["lid_lower"] + 0.22 * u * u
    opening = torch.maximum(torch.maximum(radius - 1.0, v - top), bottom - v)
    # Socket shadow and lid: skin a little darker around and over the ball.
    face = face * (1.0 - 0.16 * torch.exp(-13.0 * (radius - 1.0).clamp_min(0.0) ** 2))
    face = _over(face, fur * 0.80, 0.55 * _cover(radius - 1.06, pixel))
    line = 0.075 + 0.085 * _step(-0.2, 0.9, v) + 0.05 * _step(0.3, 1.0, u) * _step(-0.3, 0.5, v)
    lash = _cover(opening - line, pixel)
    face = _over(face, fur * 0.12 + 0.04, lash)
    white = 0.97 - 0.28 * _step(0.1, 1.1, v + 0.10 * radius) - 0.10 * _step(0.6, 1.0, radius)
    eye = white * face.new_tensor((1.0, 0.985, 0.97)).reshape(1, 3, 1, 1)
    # The eyes look together, so mirrored x has to be turned back for the gaze.
    gu, gv = u - side * p["gaze_x"], (v - p["gaze_y"]) * p["eye_aspect"]
    ring = torch.sqrt(gu * gu + gv * gv + 1e-6)
    glow = (0.80 - 0.50 * gv) + 0.25 * _step(0.40, 0.65, ring)
    eye = _over(eye, iris * 0.28, _cover(ring - 0.76, pixel))
    eye = _over(eye, iris * glow, _cover(ring - 0.67, pixel * 2.0))
    eye = _over(eye, 0.05 * torch.ones_like(iris), _cover(ring - p["pupil"], pixel * 1.5))
    hu, hv = gu * side + 0.24, gv - 0.27
    eye = _over(eye, torch.ones_like(iris), _cover(torch.sqrt(hu * hu + hv * hv + 1e-6) - 0.21, pixel))
    hu, hv = gu * side - 0.24, gv + 0.28
    eye = _over(eye, torch.ones_like(iris), 0.75 * _cover(torch.sqrt(hu * hu + hv * hv + 1e-6) - 0.10, pixel))
    return _over(face, eye, _cover(opening, pixel)), lash


def _paint_mouth(p: dict, face: Tensor, x: Tensor, y: Tensor, fur: Tensor, pixel: Tensor) -> tuple[Tensor, Tensor]:
    """Paint philtrum, mouth, tongue and teeth; gives back the face and the mouth's coverage."""
    half = p["mouth_width"]
    t = x / half
    upper, lower = mouth_curves(p, t.clamp(-1.0, 1.0))
    ink = fur * 0.16 + face.new_tensor((0.10, 0.05, 0.05)).reshape(1, 3, 1, 1)
    centre, _ = nose_shape(p)
    lip = mouth_curves(p, torch.zeros_like(half))[0]
    stem = torch.maximum(x.abs() - 0.017, torch.maximum(y - centre[1], lip - y))
    face = _over(face, ink, 0.85 * _cover(stem, pixel))
    beyond = (x.abs() - half).clamp_min(0.0)
    gap = torch.maximum(torch.maximum(y - upper, lower - y), x.abs() - half)
    line = torch.sqrt((torch.maximum(y - upper, lower - y)).clamp_min(0.0) ** 2 + beyond * beyond + 1e-8)
    edge = _cover(line - 0.022, pixel)
    # A soft shade under the lower lip seats the mouth in the muzzle.
    below = (lower - y).clamp_min(0.0)
    face = face * (1.0 - 0.20 * torch.exp(-below / 0.05) * (y < lower) * _step(1.0, 0.6, t.abs()))
    face = _over(face, ink, edge)
    depth = ((upper - y) / (upper - lower + 0.02)).clamp(0.0, 1.0)
    inside = face.new_tensor((0.40, 0.09, 0.11)).reshape(1, 3, 1, 1) * (0.45 + 0.75 * depth)
    tx, ty = t / 0.62, (y - (lower - 0.005)) / (0.12 * p["mouth_open"] + 0.03)
    tongue = _cover((torch.sqrt(tx * tx + ty * ty + 1e-6) - 1.0) * 0.08, pixel)
    inside = _over(inside, face.new_tensor((0.90, 0.46, 0.46)).reshape(1, 3, 1, 1), tongue)
    teeth = torch.maximum((upper - 0.052) - y, x.abs() - 0.55 * half)
    inside = _over(
        inside,
        face.new_tensor((0.98, 0.96, 0.92)).reshape(1, 3, 1, 1),
        _cover(teeth, pixel) * _step(0.18, 0.40, p["mouth_open"]),
    )
    return _over(face, inside, _cover(gap + 0.008, pixel)), torch.maximum(edge, _cover(gap, pixel))


def _paint_face(
    p: dict, surface: Surface, fur: Tensor, iris: Tensor, sky: Tensor, pixel: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Colour of the head, and the coverage of eyes and mouth on it."""
    x, y, z = surface.local
    front = _step(-0.05, 0.25, z)
    a = x.abs()
    pale = fur * 0.30 + 0.70 * fur.new_tensor((0.985, 0.95, 0.90)).reshape(1, 3, 1, 1)
    coat = fur * (1.0 + 0.06 * y)
    # Markings, all soft: eye patches, forehead stripes, blaze, pale muzzle, blush.
    patch = ((a - 1.05 * p["eye_spacing"]) / 0.36) ** 2 + ((y - p["eye_height"]) / 0.40) ** 2
    patch = torch.exp(-1.6 * patch * patch)
    coat = _over(coat, fur * 0.48, 0.85 * p["eye_patch"] * patch * front)
    lean = a - 0.10 * (y - 0.5)
    stripes = torch.exp(-((a / 0.050) ** 2)) + torch.exp(-(((lean - 0.20) / 0.048) ** 2))
    stripes = stripes * _step(0.44, 0.62, y + 0.25 * a) * front
    coat = _over(coat, fur * 0.50, 0.75 * p["forehead_stripes"] * (1.0 - p["blaze"]) * stripes)
    blaze = torch.exp(-((a / (0.13 + 0.10 * _step(0.2, 0.8, y))) ** 2)) * _step(0.92, 0.55, y) * front
    coat = _over(coat, pale, p["blaze"] * blaze)
    width = p["muzzle_width"] * 1.18 + 0.55 * (p["cheek_spread"] - 0.45)
    area = (x / width) ** 2 + ((y + 0.46) / 0.37) ** 2
    coat = _over(coat, pale, p["muzzle_light"] * _step(1.35, 0.75, area) * front)
    blush = torch.exp(-(((a - 0.60) / 0.19) ** 2 + ((y + 0.22) / 0.15) ** 2))
    rosy = 0.45 * fur + 0.55 * fur.new_tensor((0.98, 0.50, 0.46)).reshape(1, 3, 1, 1)
    coat = _over(coat, rosy, 0.75 * p["blush"] * blush * front)

    face = _shade(coat, surface.normal, sky)
    # Occlusion: under the muzzle and in the crease below the nose.
    centre, radii = nose_shape(p)
    face = face * (1.0 - 0.14 * torch.exp(-((x / 0.30) ** 2 + ((y + 0.72) / 0.10) ** 2)))
    crease = (x / (radii[0] * 1.3)) ** 2 + ((y - centre[1] + radii[1]) / 0.06) ** 2
    face = face * (1.0 - 0.22 * torch.exp(-crease))

    side = torch.where(x < 0, -1.0, 1.0)
    inner, outer = brow_ends(p, side)
    weight = p["brow_weight"]
    bend = 0.06 * (1.0 - ((a - p["eye_spacing"]) / 0.17) ** 2)
    brow, _, _, _ = capsule(inner, outer, (weight * 1.15, weight * 0.55), a, y - bend)
    face = _over(face, fur * 0.30 + 0.015, 0.92 * _cover(brow, pixel) * front)
    face, eyes = _paint_eyes(p, face, x, y, fur, iris, pixel)
    face, mouth = _paint_mouth(p, face, x, y, fur, pixel)
    dark = fur.new_tensor((0.17, 0.12, 0.125)).reshape(1, 3, 1, 1)
    pink = fur.new_tensor((0.86, 0.50, 0.50)).reshape(1, 3, 1, 1)
    nose = _shade(dark + (pink - dark) * p["nose_pink"], surface.normal, sky, gloss=0.55, power=32)
    face = _over(face, nose, surface.nose)
    return face, eyes * (1.0 - surface.nose), mouth * (1.0 - surface.nose)


def _paint_ear(
    p: dict, ear: Ear, fur: Tensor, inner: Tensor, sky: Tensor, x: Tensor, y: Tensor, pixel: Tensor
) -> tuple[Tensor, Tensor]:
    """Colour and coverage of one ear."""
    distance, ox, oy, _ = capsule(ear.root, ear.tip, ear.radii, x, y, bulge=0.03)
    flat = (1.0 - 0.75 * (ox * ox + oy * oy)).clamp_min(0.02)
    colour = _shade(fur * 0.97, (0.86 * ox, 0.86 * oy, torch.sqrt(flat)), sky, gloss=0.05)
    # The inner ear is a smaller capsule with a hollow's shading; hanging ears turn it away.
    b = tuple(r + (q - r) * 0.80 for r, q in zip(ear.root, ear.tip, strict=True))
    inset, ix, iy, s = capsule(ear.root, b, (ear.radii[0] * 0.60, ear.radii[1] * 0.58), x, y, bulge=0.02)
    shown = torch.sigmoid((1.75 - p["ear_lean"]) * 5.0)
    hollow = inner * 0.75 + 0.25 * fur
    hollow = _shade(hollow * (0.80 + 0.20 * s), (-0.45 * ix, -0.45 * iy, 0.85 + 0.0 * ix), sky, gloss=0.0)
    colour = _over(colour, hollow, shown * _cover(inset, pixel * 3.0))
    return colour, _cover(distance, pixel)


def _paint_body(
    p: dict, back: Tensor, fur: Tensor, cloth: Tensor, sky: Tensor, x: Tensor, y: Tensor, pixel: float
) -> tuple[Tensor, Tensor]:
    """Paint jumper, collar and neck in the picture frame; gives back the picture and the body's coverage."""
    nx = 0.45 * p["position_x"]

    def ellipse(cx: Tensor, cy: float, rx: Tensor | float, ry: float) -> tuple[Tensor, Tensor, Tensor]:
        u, v = (x - cx) / rx, (y - cy) / ry
        gradient = torch.sqrt((u / rx) ** 2 + (v / ry) ** 2 + 1e-6)
        length = torch.sqrt(u * u + v * v + 1e-6)
        return (length - 1.0) * length / gradient, u, v

    distance, u, v = ellipse(nx, -1.22, p["shoulders"], 0.66)
    band = torch.sin((v + 0.12 * u * u) * 17.0) * 0.5 + 0.5
    knit = _over(
        cloth,
        0.45 * cloth + 0.55 * fur.new_tensor((0.93, 0.91, 0.87)).reshape(1, 3, 1, 1),
        0.8 * p["jumper_stripes"] * _step(0.25, 0.75, band),
    )
    dome = torch.sqrt((1.0 - 0.8 * (u * u + v * v)).clamp_min(0.03))
    body = _cover(distance, pixel)
    back = _over(back, _shade(knit, (0.89 * u, 0.89 * v, dome), sky, gloss=0.03), body)
    collar, cu, cv = ellipse(nx, -0.665, 0.43, 0.165)
    tone = _shade(cloth * 0.85 + 0.10, (0.5 * cu, 0.5 * cv - 0.3, 0.75 + 0.0 * cu), sky, gloss=0.03)
    ring = _cover(collar, pixel)
    back = _over(back, tone * (1.0 - 0.25 * torch.exp(-(((collar + 0.02) / 0.04) ** 2))), ring)
    neck, ku, _kv = ellipse(nx, -0.59, 0.35, 0.16)
    inside = _cover(neck, pixel)
    return _over(back, fur * (0.62 + 0.10 * ku), inside), torch.maximum(torch.maximum(body, ring), inside)


def _backdrop(p: dict, sky: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """A softly lit wall: brighter behind the head, a gradient down, a gentle vignette."""
    glow = torch.exp(-((x + 0.15) ** 2 + (y - 0.15) ** 2) / 0.9)
    return sky * (0.96 + 0.05 * y + 0.11 * glow - 0.05 * (x * x + y * y))


def render(latent: Tensor, size: int = 128, supersample: int = 2, maps: bool = False) -> Scene:
    """Render portraits.

    Args:
        latent: [B, LATENT_DIM] float32, standard normal, on any device.
        size: side of the picture in pixels.
        supersample: samples along each side of a pixel (box filtered), on top of analytic edges.
        maps: also give the dense maps named in ``MAPS``.

    Returns:
        A ``Scene``; its tensors are on the latent's device.
    """
    p, colours, rotation, head, ears, landmarks = geometry_apart(latent)
    side = size * supersample
    ticks = (torch.arange(side, device=latent.device, dtype=latent.dtype) + 0.5) * (2.0 / side) - 1.0
    x, y = ticks.reshape(1, 1, 1, side), -ticks.reshape(1, 1, side, 1)
    step = 2.0 / side
    fur, sky = colours["fur"], colours["background"]

    vx, vy = (x - p["position_x"]) / p["scale"], (y - p["position_y"]) / p["scale"]
    pixel = step / p["scale"]
    surface = front_surface(head, rotation, vx, vy)
    outside = surface.distance.clamp_min(0.0)
    image = _backdrop(p, sky, x, y) * (1.0 - 0.10 * torch.exp(-outside / 0.22))
    image, body = _paint_body(p, image, fur, colours["clothes"], sky, x, y, step)
    image = image * (1.0 - 0.36 * body * torch.exp(-outside / 0.20))

    # Tuft: three locks rooted inside the skull, hidden by it from below.
    tuft = torch.zeros_like(body)
    for dx, tall in ((-0.17, 0.62), (0.18, 0.55), (0.0, 1.0)):
        root = to_view(rotation, (0.55 * dx, 0.86 * p["skull_height"], 0.12))
        reach = p["skull_height"] + 0.04 + 0.26 * tall * p["tuft"]
        tip = to_view(rotation, (1.7 * dx + 0.06, reach, 0.16))
        distance, ox, oy, _ = capsule(root, tip, (0.14, 0.03), vx, vy, bulge=0.015)
        lock = _cover(distance, pixel)
        image = _over(image, _shade(fur * 0.95, (0.8 * ox, 0.8 * oy, 0.6 + 0.0 * ox), sky, gloss=0.0), lock)
        tuft = torch.maximum(tuft, lock)

    painted = [_paint_ear(p, ear, fur, colours["inner_ear"], sky, vx, vy, pixel) for ear in ears]
    contact = 1.0 - 0.34 * torch.exp(-outside / 0.10)
    ear_cover = torch.zeros_like(body)
    for colour, alpha in painted:
        image = _over(image, colour * contact, alpha)
        ear_cover = torch.maximum(ear_cover, alpha)
    face, eyes, mouth = _paint_face(p, surface, fur, colours["iris"], sky, pixel)
    cover = _cover(surface.distance, pixel)
    image = _over(image, face, cover)

    image = torch.nn.functional.avg_pool2d(image.clamp(0.0, 1.0) * 2.0 - 1.0, supersample)
    pixels = torch.stack([landmarks[..., 0] + 1.0, 1.0 - landmarks[..., 1]], dim=2) * (0.5 * size) - 0.5
    if not maps:
        return Scene(image, pixels, None)
    anything = torch.maximum(torch.maximum(torch.maximum(cover, tuft), ear_cover), body)
    local_x, local_y, _ = surface.local
    layers = [cover, ear_cover * (1.0 - cover), eyes * cover, mouth * cover, surface.nose * cover]
    layers += [
        body * (1.0 - torch.maximum(cover, ear_cover)),
        1.0 - anything,
        local_x * cover,
        local_y * cover,
    ]
    return Scene(image, pixels, torch.nn.functional.avg_pool2d(torch.cat(layers, dim=1), supersample))


def main() -> None:
    """Write a contact sheet."""
    parser = argparse.ArgumentParser(description="Render a contact sheet of toy animals.")
    parser.add_argument("--out", required=True, help="picture to write")
    parser.add_argument("--rows", type=int, default=5)
    parser.add_argument("--columns", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=192, help="side of one portrait in pixels")
    parser.add_argument("--landmarks", action="store_true", help="draw the landmarks")
    arguments = parser.parse_args()

    from PIL import Image, ImageDraw

    rows, columns, size = arguments.rows, arguments.columns, arguments.size
    generator = torch.Generator().manual_seed(arguments.seed)
    latent = torch.randn(rows * columns, LATENT_DIM, generator=generator)
    sheet = Image.new("RGB", (columns * size, rows * size))
    draw = ImageDraw.Draw(sheet)
    for row in range(rows):  # a row at a time bounds the memory
        with torch.no_grad():
            scene = render(latent[row * columns : (row + 1) * columns], size)
        bytes_ = ((scene.image + 1.0) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        for column in range(columns):
            sheet.paste(Image.fromarray(bytes_[column]), (column * size, row * size))
            for x, y in scene.landmarks[column].tolist() if arguments.landmarks else ():
                cx, cy = column * size + x, row * size + y
                draw.ellipse((cx - 2, cy - 2, cx + 2, cy + 2), fill=(0, 255, 0), outline=(0, 0, 0))
    sheet.save(arguments.out)


if __name__ == "__main__":
    main()
