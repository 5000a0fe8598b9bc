# SPDX-License-Identifier: Apache-2.0
"""Toy-animal portraits from Gaussian latents: parameters, geometry and landmarks, in plain torch.

A latent vector is turned into named scene parameters (see ``TABLE``) and the parameters into a head made of
closed-form ellipsoids under orthographic projection, with its ears and landmarks.  Every step is a smooth
function of the latent.  ``toy_animals`` paints the result.

Three frames are used.  *Picture*: x right, y up, the square picture spans [-1, 1].  *View*: the picture
frame centred on the head and divided by its scale, z towards the viewer; lengths are "head units" (a skull is
about one unit in radius).  *Local*: the view frame turned back by the head's rotation; the face is painted
there, on the front surface, so turning the head moves the features with true parallax.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

KINDS = ("cat", "bear", "bunny", "fox", "mouse", "pup")

KIND_SHARPNESS = 2.0
"""How strongly the kind latents are contrasted: the mixture is softmax(KIND_SHARPNESS * latent[:, :6])."""


class Parameter(NamedTuple):
    """One named parameter, driven by one latent dimension.

    ``mean`` is a number, or one number per kind (in the order of ``KINDS``, mixed by the kind weights).
    ``squash`` says how ``mean`` and ``spread`` meet the latent z: ``soft`` is mean + 2 spread tanh(z / 2),
    ``linear`` is mean + spread z, ``unit`` is sigmoid(mean + spread z), an amount between 0 and 1.
    """

    name: str
    mean: float | tuple[float, ...]
    spread: float
    squash: str = "soft"


TABLE = (
    # Pose: radians, then picture units.
    Parameter("yaw", 0.0, 0.26),
    Parameter("pitch", 0.02, 0.14),
    Parameter("roll", 0.0, 0.105),
    Parameter("position_x", 0.0, 0.06),
    Parameter("position_y", (-0.10, -0.08, -0.23, -0.13, -0.10, -0.05), 0.035),
    Parameter("scale", 0.655, 0.025),
    # Head shape: head units.  cat, bear, bunny, fox, mouse, pup.
    Parameter("skull_width", (1.04, 1.03, 0.92, 0.98, 0.97, 0.97), 0.035),
    Parameter("skull_height", (0.88, 0.95, 0.94, 0.87, 0.93, 0.94), 0.03),
    Parameter("cheek_size", (0.42, 0.41, 0.43, 0.41, 0.40, 0.37), 0.02),
    Parameter("cheek_spread", (0.54, 0.46, 0.44, 0.57, 0.42, 0.43), 0.025),
    Parameter("jaw_size", (0.44, 0.50, 0.43, 0.38, 0.40, 0.46), 0.025),
    Parameter("muzzle_length", (0.04, 0.10, 0.05, 0.19, 0.14, 0.14), 0.03),
    Parameter("muzzle_width", (0.40, 0.42, 0.37, 0.32, 0.31, 0.42), 0.025),
    Parameter("muzzle_height", (0.27, 0.31, 0.28, 0.27, 0.26, 0.32), 0.015),
    Parameter("nose_size", (0.080, 0.115, 0.080, 0.095, 0.090, 0.125), 0.007),
    Parameter("nose_aspect", (1.25, 1.35, 1.20, 1.20, 1.10, 1.35), 0.06),
    # Ears: where they sit and lean (radians from straight up), head units.
    Parameter("ear_place", (0.60, 0.80, 0.27, 0.58, 0.82, 0.92), 0.04),
    Parameter("ear_lean", (0.38, 0.80, 0.15, 0.34, 0.85, 2.40), 0.10),
    Parameter("ear_length", (0.56, 0.20, 0.80, 0.66, 0.28, 0.52), 0.045),
    Parameter("ear_root", (0.34, 0.28, 0.17, 0.33, 0.34, 0.22), 0.02),
    Parameter("ear_tip", (0.070, 0.28, 0.16, 0.060, 0.40, 0.24), 0.015),
    Parameter("ear_forward", 0.0, 0.08),
    Parameter("ear_skew", 0.0, 0.07),
    # Eyes: head units; tilt in radians; gaze and pupil in eye radii.
    Parameter("eye_size", (0.265, 0.220, 0.250, 0.235, 0.245, 0.240), 0.012),
    Parameter("eye_spacing", (0.42, 0.385, 0.42, 0.40, 0.385, 0.40), 0.018),
    Parameter("eye_height", (0.07, 0.09, 0.09, 0.07, 0.08, 0.10), 0.025),
    Parameter("eye_aspect", (1.02, 1.12, 1.16, 0.96, 1.14, 1.10), 0.04),
    Parameter("eye_tilt", (0.20, 0.0, 0.05, 0.26, 0.0, -0.12), 0.05),
    Parameter("gaze_x", 0.0, 0.15),
    Parameter("gaze_y", 0.0, 0.09),
    Parameter("pupil", (0.40, 0.47, 0.48, 0.40, 0.48, 0.46), 0.03),
    Parameter("lid_upper", -2.0, 0.9, "unit"),
    Parameter("lid_lower", -1.2, 0.9, "unit"),
    Parameter("lid_skew", 0.0, 0.05),
    Parameter("brow_height", 0.0, 0.035),
    Parameter("brow_tilt", -0.14, 0.13),
    Parameter("brow_weight", (0.028, 0.038, 0.030, 0.030, 0.030, 0.038), 0.004),
    Parameter("brow_skew", 0.0, 0.028),
    # Mouth.
    Parameter("mouth_width", (0.29, 0.30, 0.26, 0.28, 0.26, 0.31), 0.02),
    Parameter("mouth_smile", 0.42, 0.12),
    Parameter("mouth_open", -0.9, 1.5, "unit"),
    Parameter("mouth_smirk", 0.0, 0.03),
    # Markings: amounts.
    Parameter("blush", -0.3, 0.9, "unit"),
    Parameter("blaze", (-1.0, -2.5, -1.5, -1.2, -2.2, -0.2), 1.2, "unit"),
    Parameter("eye_patch", (-2.4, -1.4, -2.4, -2.4, -2.2, -0.8), 1.0, "unit"),
    Parameter("muzzle_light", (0.8, 0.6, 0.6, 2.0, 0.6, 0.6), 0.7, "unit"),
    Parameter("forehead_stripes", (0.6, -2.5, -2.5, -2.0, -2.5, -2.0), 1.2, "unit"),
    Parameter("tuft", (-0.4, 0.0, -0.4, -0.2, 0.4, 0.6), 0.9, "unit"),
    Parameter("nose_pink", (1.4, -3.0, 1.8, -3.2, 1.6, -3.0), 0.6, "unit"),
    # Clothes.
    Parameter("shoulders", 0.84, 0.045),
    Parameter("jumper_stripes", -0.5, 1.2, "unit"),
    # Colours: coordinates along the linear axes of COLOURS.
    *(
        Parameter(f"{group}_{axis}", 0.0, 1.0)
        for group in ("fur", "background", "clothes", "iris", "inner_ear")
        for axis in ("light", "warm", "tint")
    ),
)

# Each group: its mean colour, then what one unit of light, warm and tint adds (display RGB).  Backgrounds and
# clothes also take a share of the fur's warmth with the sign turned, which keeps a picture complementary.
COLOURS = {
    "fur": ((0.73, 0.585, 0.465), (0.14, 0.145, 0.145), (0.12, 0.0, -0.14), (0.03, -0.022, 0.012)),
    "background": ((0.875, 0.880, 0.870), (0.06, 0.06, 0.06), (0.055, 0.005, -0.06), (-0.03, 0.025, -0.005)),
    "clothes": ((0.44, 0.50, 0.53), (0.09, 0.09, 0.09), (0.13, -0.015, -0.11), (-0.07, 0.055, -0.015)),
    "iris": ((0.40, 0.44, 0.36), (0.08, 0.08, 0.08), (0.17, -0.01, -0.20), (-0.07, 0.10, -0.01)),
    "inner_ear": ((0.88, 0.62, 0.58), (0.06, 0.06, 0.06), (0.03, 0.0, -0.04), (0.03, -0.04, 0.0)),
}
COMPLEMENT = {"background": (-0.020, 0.004, 0.026), "clothes": (-0.06, 0.012, 0.07)}

LATENT_DIM: int = len(KINDS) + len(TABLE)
"""Length of a latent: six kind logits, then one dimension per row of ``TABLE``."""

LANDMARKS: tuple[str, ...] = (
    "eye_left", "eye_right", "eye_left_outer", "eye_left_inner", "eye_right_inner", "eye_right_outer", "nose",
    "mouth_left", "mouth_right", "lip_upper", "lip_lower", "chin", "ear_left", "ear_right", "brow_left_outer",
    "brow_left_inner", "brow_right_inner", "brow_right_outer", "head_top", "cheek_left", "cheek_right",
)  # fmt: skip
"""Names of the landmarks; "left" is the picture's left."""

_BLEND = 0.08  # head units of depth over which neighbouring ellipsoids melt into one another
_NOTCH = 0.03  # head units over which their outlines do


class _Ellipsoids(NamedTuple):
    """K ellipsoids as the view sees them: every field is [B, K, 1, 1]."""

    x: Tensor
    y: Tensor
    z: Tensor
    a: tuple[Tensor, ...]  # quadratic forms in the view frame: xx, yy, zz, xy, xz, yz
    m: tuple[Tensor, Tensor, Tensor]  # quadratic forms of the outlines: xx, yy, xy


def kind_weights(latent: Tensor) -> Tensor:
    """Mixture of the six kinds, [B, 6] float32, rows sum to one, for latents [B, LATENT_DIM]."""
    return torch.softmax(KIND_SHARPNESS * latent[:, : len(KINDS)], dim=1)


def parameter_values(latent: Tensor) -> Tensor:
    """Values of the rows of ``TABLE``, [B, len(TABLE)] float32, for latents [B, LATENT_DIM]."""
    means = [row.mean if isinstance(row.mean, tuple) else (row.mean,) * len(KINDS) for row in TABLE]
    mean = kind_weights(latent) @ latent.new_tensor(means).T
    spread = latent.new_tensor([row.spread for row in TABLE])
    z = latent[:, len(KINDS) :]
    soft = mean + 2.0 * spread * torch.tanh(0.5 * z)
    straight = mean + spread * z
    is_soft = latent.new_tensor([row.squash == "soft" for row in TABLE])
    is_unit = latent.new_tensor([row.squash == "unit" for row in TABLE])
    return is_soft * soft + is_unit * torch.sigmoid(straight) + (1 - is_soft - is_unit) * straight


def _parameters(latent: Tensor) -> dict[str, Tensor]:
    """Parameters by name, each [B, 1, 1, 1] so that it meets pictures [B, 1, H, W]."""
    values = parameter_values(latent)
    return {row.name: values[:, i].reshape(-1, 1, 1, 1) for i, row in enumerate(TABLE)}


def _colour(p: dict[str, Tensor], group: str) -> Tensor:
    """Colour of a group, [B, 3, 1, 1], display RGB softly kept inside (0, 1)."""
    like = p["yaw"]
    mean, *axes = (like.new_tensor(c).reshape(1, 3, 1, 1) for c in COLOURS[group])
    for name, axis in zip(("light", "warm", "tint"), axes, strict=True):
        mean = mean + p[f"{group}_{name}"] * axis
    if group in COMPLEMENT:
        mean = mean + p["fur_warm"] * like.new_tensor(COMPLEMENT[group]).reshape(1, 3, 1, 1)
    return 0.5 + 0.48 * torch.tanh((mean - 0.5) / 0.48)


def _rotation(p: dict[str, Tensor]) -> list[list[Tensor]]:
    """Local-to-view rotation, rows of [B, 1, 1, 1]: roll @ pitch @ yaw (positive yaw faces picture right)."""
    cy, sy = torch.cos(p["yaw"]), torch.sin(p["yaw"])
    cp, sp = torch.cos(p["pitch"]), torch.sin(p["pitch"])
    cr, sr = torch.cos(p["roll"]), torch.sin(p["roll"])
    turned = [[cy, torch.zeros_like(cy), sy], [sp * -sy, cp, sp * cy], [-cp * sy, -sp, cp * cy]]
    return [
        [cr * a - sr * b for a, b in zip(turned[0], turned[1], strict=True)],
        [sr * a + cr * b for a, b in zip(turned[0], turned[1], strict=True)],
        turned[2],
    ]


def to_view(rotation: list[list[Tensor]], point: tuple) -> tuple[Tensor, Tensor, Tensor]:
    x, y, z = (row[0] * point[0] + row[1] * point[1] + row[2] * point[2] for row in rotation)
    return x, y, z


def _to_local(rotation: list[list[Tensor]], point: tuple) -> tuple[Tensor, Tensor, Tensor]:
    x, y, z = (sum(rotation[i][j] * point[i] for i in range(3)) for j in range(3))
    return x, y, z


def _hit(e: _Ellipsoids, x: Tensor, y: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor], Tensor]:
    """Depths, unit normals and signed outline distances, each [B, K, ...], under view points (x, y).

    Off the outline the depth falls steeply and the normal lies in the picture plane, so both stay continuous.
    """
    dx, dy = x - e.x, y - e.y
    gx, gy = e.m[0] * dx + e.m[2] * dy, e.m[2] * dx + e.m[1] * dy
    inside = gx * dx + gy * dy  # 1 on the outline
    radius = torch.sqrt(inside + 1e-6)
    distance = (radius - 1.0) * radius * torch.rsqrt(gx * gx + gy * gy + 1e-6)
    xx, yy, zz, xy, xz, yz = e.a
    dz = torch.sqrt(((1.0 - inside) / zz).clamp_min(1e-5)) - (xz * dx + yz * dy) / zz
    nx, ny, nz = xx * dx + xy * dy + xz * dz, xy * dx + yy * dy + yz * dz, xz * dx + yz * dy + zz * dz
    # Unit length before any weighting: short normals under small weights would leave white rims.
    scale = torch.rsqrt(nx * nx + ny * ny + nz * nz + 1e-9)
    return e.z + dz - 6.0 * distance.clamp_min(0.0), (nx * scale, ny * scale, nz * scale), distance


class Surface(NamedTuple):
    """The front of the head under view points: all fields shaped like the points."""

    z: Tensor
    normal: tuple[Tensor, Tensor, Tensor]
    distance: Tensor  # to the outline of the whole head, negative inside
    nose: Tensor  # weight of the nose, 0..1
    local: tuple[Tensor, Tensor, Tensor]


def muzzle_shape(p: dict[str, Tensor]) -> tuple[tuple, tuple]:
    return (0.0, -0.34, 0.58 + p["muzzle_length"]), (p["muzzle_width"], p["muzzle_height"], 0.36)


def nose_shape(p: dict[str, Tensor]) -> tuple[tuple, tuple]:
    centre, radii = muzzle_shape(p)
    size = p["nose_size"]
    # Halfway up the muzzle its surface stands at 0.87 of its depth; sink the nose in a little.
    at = (0.0, centre[1] + 0.50 * radii[1], centre[2] + 0.83 * radii[2])
    return at, (size * p["nose_aspect"], size, size)


def _head(p: dict[str, Tensor], rotation: list[list[Tensor]]) -> _Ellipsoids:
    """Skull, two cheeks, jaw, muzzle and, last, the nose, turned into the view frame."""
    width, height, cheek, jaw, spread = (
        p[name] for name in ("skull_width", "skull_height", "cheek_size", "jaw_size", "cheek_spread")
    )
    shapes = (
        ((0.0, 0.0, 0.0), (width, height, 0.44 * (width + height))),
        ((-spread, -0.36, 0.26), (cheek * 1.05, cheek * 0.92, cheek)),
        ((spread, -0.36, 0.26), (cheek * 1.05, cheek * 0.92, cheek)),
        ((0.0, -0.52, 0.30), (jaw, jaw * 0.78, 0.46)),
        muzzle_shape(p),
        nose_shape(p),
    )

    def gather(part: int, axis: int) -> Tensor:
        return torch.cat([torch.zeros_like(width) + shape[part][axis] for shape in shapes], dim=1)

    inverse = [gather(1, axis) ** -2 for axis in range(3)]

    def form(i: int, j: int) -> Tensor:
        return sum(rotation[i][k] * rotation[j][k] * inverse[k] for k in range(3))

    xx, yy, zz, xy, xz, yz = form(0, 0), form(1, 1), form(2, 2), form(0, 1), form(0, 2), form(1, 2)
    x, y, z = to_view(rotation, tuple(gather(0, axis) for axis in range(3)))
    outline = (xx - xz * xz / zz, yy - yz * yz / zz, xy - xz * yz / zz)
    return _Ellipsoids(x, y, z, (xx, yy, zz, xy, xz, yz), outline)


def front_surface(head: _Ellipsoids, rotation: list[list[Tensor]], x: Tensor, y: Tensor) -> Surface:
    """Blend the ellipsoids: a smooth maximum over depth, normals weighted alike, nose set on top crisply."""
    depths, normals, distances = _hit(head, x, y)
    weights = torch.softmax(depths[:, :-1] / _BLEND, dim=1)
    z = (weights * depths[:, :-1]).sum(dim=1, keepdim=True)
    nose = torch.sigmoid((depths[:, -1:] - z) / 0.012)
    z = z + (depths[:, -1:] - z) * nose
    normal = []
    for n in normals:
        skin = (weights * n[:, :-1]).sum(dim=1, keepdim=True)
        normal.append(skin + (n[:, -1:] - skin) * nose)
    scale = torch.rsqrt(sum(n * n for n in normal) + 1e-6)
    # A smooth minimum rounds the notches that skull and cheeks leave in the outline.
    distance = -_NOTCH * torch.logsumexp(distances / -_NOTCH, dim=1, keepdim=True)
    return Surface(
        z,
        (normal[0] * scale, normal[1] * scale, normal[2] * scale),
        distance,
        nose,
        _to_local(rotation, (x, y, z)),
    )


class Ear(NamedTuple):
    """A tapered capsule in the view frame: root and tip (x, y, z) and their radii, [B, 1, 1, 1] each."""

    root: tuple[Tensor, Tensor, Tensor]
    tip: tuple[Tensor, Tensor, Tensor]
    radii: tuple[Tensor, Tensor]


def _ears(p: dict[str, Tensor], rotation: list[list[Tensor]]) -> list[Ear]:
    ears = []
    for side in (-1.0, 1.0):
        place, lean = p["ear_place"], p["ear_lean"] + side * p["ear_skew"]
        root_x, root_y = p["skull_width"] * torch.sin(place), p["skull_height"] * torch.cos(place)
        root = (side * 0.84 * root_x, 0.84 * root_y, 0.0)
        reach = p["ear_length"]
        tip = (root[0] + side * reach * torch.sin(lean), root[1] + reach * torch.cos(lean), p["ear_forward"])
        ears.append(Ear(to_view(rotation, root), to_view(rotation, tip), (p["ear_root"], p["ear_tip"])))
    return ears


def capsule(a: tuple, b: tuple, radii: tuple, x: Tensor, y: Tensor, bulge: float = 0.0) -> tuple:
    """Tapered capsule from a to b: signed distance, offset from its axis in radii (x, y), place along it."""
    bx, by, dx, dy = b[0] - a[0], b[1] - a[1], x - a[0], y - a[1]
    square = bx * bx + by * by + 1e-4
    t = ((dx * bx + dy * by) / square).clamp(0.0, 1.0)
    ox, oy = dx - t * bx, dy - t * by
    radius = radii[0] + (radii[1] - radii[0]) * t + bulge * 4.0 * t * (1.0 - t)
    slope = torch.rsqrt(1.0 + (radii[1] - radii[0]) ** 2 / square)
    return (torch.sqrt(ox * ox + oy * oy + 1e-8) - radius) * slope, ox / radius, oy / radius, t


def mouth_curves(p: dict[str, Tensor], t: Tensor) -> tuple[Tensor, Tensor]:
    """Local y of the upper and lower lip at t = x / half-width, |t| <= 1 (they meet at the corners)."""
    half = p["mouth_width"]
    a = t.abs()
    # The small cusp in the middle is the animal "w"; it fades as the mouth opens.
    cusp = (0.10 - 0.05 * p["mouth_open"]) * torch.sin(torch.pi * a.clamp(0.0, 1.0)) * (1.0 - 0.5 * a)
    upper = -0.425 + half * (p["mouth_smile"] * t * t - cusp) + p["mouth_smirk"] * t
    fall = (1.0 - t * t).clamp_min(0.0)
    return upper, upper - 0.26 * p["mouth_open"] * fall * (0.65 + 0.35 * fall)


def brow_ends(p: dict[str, Tensor], side: Tensor | float) -> tuple[tuple, tuple]:
    """Inner and outer end of a brow in mirrored local coordinates (x counted outwards)."""
    x = p["eye_spacing"]
    y = p["eye_height"] + p["eye_size"] * p["eye_aspect"] + 0.115 + p["brow_height"] + side * p["brow_skew"]
    return (x - 0.15, y - 0.15 * p["brow_tilt"]), (x + 0.17, y + 0.17 * p["brow_tilt"] - 0.035)


def _on_front(head: _Ellipsoids, rotation: list[list[Tensor]], lx: Tensor, ly: Tensor) -> tuple[Tensor, Tensor]:
    """The view points whose front surface carries local (lx, ly): project, look up the depth, repeat."""
    vx, vy, _ = to_view(rotation, (lx, ly, 0.75 * torch.ones_like(lx)))
    for _ in range(6):
        found = front_surface(head, rotation, vx, vy)
        vx, vy, _ = to_view(rotation, (lx, ly, found.local[2]))
    return vx, vy


def _in_picture(p: dict[str, Tensor], view: Tensor) -> Tensor:
    """View points [B, K, 2] in the picture frame."""
    offset = torch.cat([p["position_x"], p["position_y"]], dim=1).reshape(-1, 1, 2)
    return view * p["scale"].reshape(-1, 1, 1) + offset


def _landmarks(p: dict[str, Tensor], head: _Ellipsoids, rotation: list[list[Tensor]], ears: list[Ear]) -> Tensor:
    """Landmarks in the picture frame, [B, 21, 2], x right and y up."""
    zero = torch.zeros_like(p["yaw"])
    ex, ey, er = p["eye_spacing"], p["eye_height"], p["eye_size"]
    cx, cy = er * torch.cos(p["eye_tilt"]), er * torch.sin(p["eye_tilt"])
    half = p["mouth_width"]
    corner_l, corner_r = (mouth_curves(p, zero + s)[0] for s in (-1.0, 1.0))
    lip_upper, lip_lower = mouth_curves(p, zero)
    (lix, liy), (lox, loy) = brow_ends(p, -1.0)
    (rix, riy), (rox, roy) = brow_ends(p, 1.0)
    cheek_x, cheek_y = p["cheek_spread"] + 0.12, zero - 0.30
    on_face = [  # painted points: (x, y) in the local frame, lifted to the front surface below
        (-ex, ey), (ex, ey), (-ex - cx, ey + cy), (-ex + cx, ey - cy), (ex - cx, ey - cy), (ex + cx, ey + cy),
        (-half, corner_l), (half, corner_r), (zero, lip_upper), (zero, lip_lower),
        (zero, -0.52 - 0.90 * 0.78 * p["jaw_size"]), (-lox, loy), (-lix, liy), (rix, riy), (rox, roy),
        (-cheek_x, cheek_y), (cheek_x, cheek_y),
    ]  # fmt: skip
    lx = torch.cat([a for a, _ in on_face], dim=3)
    ly = torch.cat([b for _, b in on_face], dim=3)
    vx, vy = _on_front(head, rotation, lx, ly)
    at = list(torch.unbind(torch.cat([vx, vy], dim=1).reshape(-1, 2, len(on_face)), dim=2))
    centre, radii = nose_shape(p)
    nose = to_view(rotation, (zero, zero + centre[1], centre[2] + radii[2]))
    top = to_view(rotation, (zero, p["skull_height"], zero))
    tips = []
    for ear in ears:
        dx, dy = ear.tip[0] - ear.root[0], ear.tip[1] - ear.root[1]
        reach = ear.radii[1] * torch.rsqrt(dx * dx + dy * dy + 1e-4)
        tips.append((ear.tip[0] + dx * reach, ear.tip[1] + dy * reach))
    extra = [torch.cat([q[0], q[1]], dim=1).reshape(-1, 2) for q in (nose, *tips, top)]
    order = [*at[:6], extra[0], *at[6:11], extra[1], extra[2], *at[11:15], extra[3], *at[15:]]
    return _in_picture(p, torch.stack(order, dim=1))


class Geometry(NamedTuple):
    """Everything about a scene that does not depend on the pixel."""

    p: dict[str, Tensor]  # parameters, [B, 1, 1, 1] each
    colours: dict[str, Tensor]  # [B, 3, 1, 1] each
    rotation: list[list[Tensor]]
    head: _Ellipsoids
    ears: list[Ear]
    landmarks: Tensor  # [B, 21, 2], picture frame


def places_shown(g: Geometry, local: Tensor) -> Tensor:
    """Where places on the front of the heads are seen: local x and y [B, K, 2] → picture frame [B, K, 2]."""
    lx, ly = (local[:, None, None, :, axis] for axis in (0, 1))
    return _in_picture(g.p, torch.cat(_on_front(g.head, g.rotation, lx, ly), dim=1).squeeze(2).transpose(1, 2))


def geometry(latent: Tensor) -> Geometry:
    p = _parameters(latent)
    rotation = _rotation(p)
    head, ears = _head(p, rotation), _ears(p, rotation)
    colours = {group: _colour(p, group) for group in COLOURS}
    return Geometry(p, colours, rotation, head, ears, _landmarks(p, head, rotation, ears))


# Kept out of compiled graphs: inlined into the pixel loops, these scalars would be worked out at every pixel.
geometry_apart = torch.compiler.disable(geometry)


def _raw_description(latent: Tensor) -> Tensor:
    landmarks = geometry(latent).landmarks
    return torch.cat([kind_weights(latent), parameter_values(latent), landmarks.flatten(1)], dim=1)


@functools.lru_cache(maxsize=1)
def _description_statistics() -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of every entry of the description over a fixed sample."""
    sample = torch.randn(8192, LATENT_DIM, generator=torch.Generator().manual_seed(1))
    deviation, mean = torch.std_mean(_raw_description(sample), dim=0)
    return tuple(mean.tolist()), tuple(deviation.clamp_min(1e-4).tolist())


def describe(latent: Tensor) -> Tensor:
    """Scene description, [B, P] float32, each entry with about zero mean and unit variance.

    In order: the six kind weights, the rows of ``TABLE``, the picture coordinates (x, y) of the landmarks.

    Args:
        latent: [B, LATENT_DIM] float32, standard normal.
    """
    mean, deviation = _description_statistics()
    return (_raw_description(latent) - latent.new_tensor(mean)) / latent.new_tensor(deviation)
