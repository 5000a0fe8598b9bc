"""Every drag op in plain PyTorch: the specification that each faster backend is tested against.

Semantics are those of the published DragGAN program (Pan et al. 2023, §3.2–3.3): a feature map F [h, w] is seen
through its bilinear upsampling U [H, W] (align_corners=False). Here the upsampling is *virtual*: U is evaluated
at the few pixels that are needed, straight from F, and never stored.

Shared conventions. feature: [B, C, h, w], any float dtype, any strides; arithmetic is float32 (float64 stays).
Points: [B, N, 2], (x, y) in image pixels, integers are pixel centres. active: [B, N] bool; inactive points
contribute nothing and stay where they are. image_size: (H, W). Radii are in image pixels. Losses: [B] float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROWS_PER_CHUNK = 16  # mask_loss holds this many image rows of U at a time


def compute_dtype(feature: Tensor) -> torch.dtype:
    return torch.float64 if feature.dtype == torch.float64 else torch.float32


def source_cells(
    x: Tensor, y: Tensor, feature: Tensor, image_size: tuple[int, int]
) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], Tensor, Tensor]:
    """Where integer image pixels x, y [B, K] lie in the feature map: ((c00, c10, c01, c11), fx, fy), all [B·K].

    The c are the four cells around, counted row-major over the whole batch (c10 is right of c00, c01 below it),
    fx and fy the fractions between them. The source coordinate of pixel p is (p + 0.5)·w/W − 0.5, clamped at the
    first and last cell.
    """
    batch, _, h, w = feature.shape
    height, width = image_size
    dtype = compute_dtype(feature)
    sx = ((x.to(dtype) + 0.5) * (w / width) - 0.5).clamp(0, w - 1)
    sy = ((y.to(dtype) + 0.5) * (h / height) - 0.5).clamp(0, h - 1)
    x0, y0 = sx.floor().long(), sy.floor().long()
    x1, y1 = (x0 + 1).clamp(max=w - 1), (y0 + 1).clamp(max=h - 1)
    first = torch.arange(batch, device=feature.device)[:, None] * (h * w)
    cells = tuple((first + row * w + column).reshape(-1) for row in (y0, y1) for column in (x0, x1))
    return cells, (sx - x0).reshape(-1), (sy - y0).reshape(-1)  # type: ignore[return-value]


def inside_image(x: Tensor, y: Tensor, image_size: tuple[int, int]) -> Tensor:
    height, width = image_size
    return (x >= 0) & (x < width) & (y >= 0) & (y < height)


def blend(a: Tensor, b: Tensor, fraction: Tensor) -> Tensor:
    """a + fraction·(b − a). subtle: unlike a·(1 − f) + b·f it is exactly a where a = b, so that where U is constant
    (its outermost half cell) differences are exactly zero and ties are exact, not rounding noise."""
    return a + fraction * (b - a)


def upsampled_at(feature: Tensor, x: Tensor, y: Tensor, image_size: tuple[int, int]) -> Tensor:
    """U at integer image pixels: x, y [B, K] (int64) → [B, K, C]. Pixels outside the image give zeros."""
    (c00, c10, c01, c11), fx, fy = source_cells(x, y, feature, image_size)
    cells = feature.permute(0, 2, 3, 1).reshape(-1, feature.shape[1])
    v00, v10, v01, v11 = (cells[index].to(compute_dtype(feature)) for index in (c00, c10, c01, c11))
    fx, fy = fx[:, None], fy[:, None]
    values = blend(blend(v00, v10, fx), blend(v01, v11, fx), fy)
    return values.reshape(*x.shape, feature.shape[1]) * inside_image(x, y, image_size)[..., None]


def upsampled_at_adjoint(grad: Tensor, feature: Tensor, x: Tensor, y: Tensor, image_size: tuple[int, int]) -> Tensor:
    """The transpose of ``upsampled_at``: grad [B, K, C] of the values → gradient of the feature [B, C, h, w]."""
    batch, channels, h, w = feature.shape
    (c00, c10, c01, c11), fx, fy = source_cells(x, y, feature, image_size)
    rows = (grad * inside_image(x, y, image_size)[..., None]).reshape(-1, channels)
    total = torch.zeros(batch * h * w, channels, dtype=grad.dtype, device=grad.device)
    for index, weight in (
        (c00, (1 - fx) * (1 - fy)),
        (c10, fx * (1 - fy)),
        (c01, (1 - fx) * fy),
        (c11, fx * fy),
    ):
        total.index_add_(0, index, rows * weight[:, None])
    return total.reshape(batch, h, w, channels).permute(0, 3, 1, 2)


def window(centre: Tensor, before: int, after: int) -> tuple[Tensor, Tensor]:
    """Integer centres [B, N, 2] → x, y [B, N, S, S] of the square window, row-major, S = before + after + 1."""
    offset = torch.arange(-before, after + 1, device=centre.device)
    x = centre[..., 0, None, None] + offset[None, :]
    y = centre[..., 1, None, None] + offset[:, None]
    return x.expand(-1, -1, len(offset), -1), y.expand(-1, -1, -1, len(offset))


def upsampled_window(
    feature: Tensor, centre: Tensor, before: int, after: int, image_size: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """U in the window of every point: [B, N, S, S, C], and the window's pixel coordinates x, y [B, N, S, S]."""
    x, y = window(centre, before, after)
    batch, n, size, _ = x.shape
    values = upsampled_at(feature, x.reshape(batch, -1), y.reshape(batch, -1), image_size)
    return values.reshape(batch, n, size, size, feature.shape[1]), x, y


def sample_feature(feature: Tensor, points: Tensor, image_size: tuple[int, int]) -> Tensor:
    """U at the points' nearest pixels → [B, N, C] float32: the reference features of new handles (§3.3)."""
    pixel = points.round().long()
    return upsampled_at(feature, pixel[..., 0], pixel[..., 1], image_size)


def patch_mask(
    x: Tensor, y: Tensor, points: Tensor, r1: int, image_size: tuple[int, int], crop_origin: Tensor | None = None
) -> Tensor:
    """Which pixels belong to a handle's patch Ω1, as the published program draws it: [B, N, S, S] bool.

    Its circle lives on a grid stretched by H/(H−1) (a linspace that includes the end point), so it depends on where in
    the whole image a pixel lies: crop_origin [B, 2] is added to both. float64, with the integer product first, so
    that the strict comparison has no rounding at all on the image's borders.
    """
    height, width = image_size
    if crop_origin is not None:
        x, y = x + crop_origin[:, None, None, None, 0], y + crop_origin[:, None, None, None, 1]
        points = points + crop_origin[:, None].to(points.dtype)
    gx = (x * width).double() / max(width - 1, 1)
    gy = (y * height).double() / max(height - 1, 1)
    points = points.double()
    distance2 = (gx - points[..., 0, None, None]).square() + (gy - points[..., 1, None, None]).square()
    return inside_image(x, y, image_size) & (distance2 < r1 * r1)


def motion_supervision(
    feature: Tensor,
    handle_points: Tensor,
    target_points: Tensor,
    active: Tensor,
    r1: int,
    image_size: tuple[int, int],
    crop_origin: Tensor | None = None,
    whole_size: tuple[int, int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Shifted-patch L1 loss of the handles and its gradient: (loss [B] float32, grad_feature like feature).

    d = target − handle; points with |d| ≤ 1, or not finite, take no part; d is normalised by |d| + 1e-7. A handle's
    loss is the mean over channels and patch pixels p of |U(p) − U(p + d)|, where U(p) is a constant and U(p + d) is
    sampled bilinearly between pixels, zeros outside the image; the handles' losses are summed (§3.2, eq. 1).

    If the features are crops of a larger map, image_size and the points are those of the crops, crop_origin [B, 2]
    int64 says which pixel of the whole image (whole_size) their first is. A border of a crop must be one of the
    image, or out of reach.
    """
    dtype = compute_dtype(feature)
    handles, targets = handle_points.to(dtype), target_points.to(dtype)
    d = targets - handles
    length = d.norm(dim=-1, keepdim=True)
    active = active & (length.squeeze(-1) > 1) & length.squeeze(-1).isfinite()
    # Whatever stands in for a point that takes no part, NaN perhaps, must not reach the arithmetic: 0 · NaN is NaN.
    handles, d = (torch.where(active[..., None], t, 0) for t in (handles, d / (length + 1e-7)))
    whole = d.floor()
    fraction = (d - whole)[..., None, None, None, :]  # [B, N, 1, 1, 1, 2]
    fx, fy = fraction[..., 0], fraction[..., 1]

    pixel = handles.round().long()
    reach = r1 + 1  # the stretched grid can reach one pixel beyond the radius
    fixed, x, y = upsampled_window(feature, pixel, reach, reach, image_size)
    member = patch_mask(x, y, handles, r1, whole_size or image_size, crop_origin) & active[..., None, None]
    # All shifts of one handle share their fraction: one window of whole pixels, blended with its neighbours.
    moving, x, y = upsampled_window(feature, pixel + whole.long(), reach, reach + 1, image_size)
    upper = blend(moving[:, :, :-1, :-1], moving[:, :, :-1, 1:], fx)
    lower = blend(moving[:, :, 1:, :-1], moving[:, :, 1:, 1:], fx)
    difference = blend(upper, lower, fy) - fixed
    terms = (member.sum(dim=(-1, -2)).clamp(min=1) * feature.shape[1]).to(dtype)
    weight = (member / terms[..., None, None]).unsqueeze(-1)
    loss = (difference.abs() * weight).sum(dim=(1, 2, 3, 4))

    # Backward of the same chain: |·|, the blend, the virtual upsampling. U(p) is a constant.
    grad = difference.sign() * weight
    grad_moving = torch.zeros_like(moving)
    grad_moving[:, :, :-1, :-1] += grad * (1 - fx) * (1 - fy)
    grad_moving[:, :, :-1, 1:] += grad * fx * (1 - fy)
    grad_moving[:, :, 1:, :-1] += grad * (1 - fx) * fy
    grad_moving[:, :, 1:, 1:] += grad * fx * fy
    batch = feature.shape[0]
    grad_feature = upsampled_at_adjoint(
        grad_moving.reshape(batch, -1, feature.shape[1]),
        feature,
        x.reshape(batch, -1),
        y.reshape(batch, -1),
        image_size,
    )
    return loss.float(), grad_feature.to(feature.dtype)


def point_tracking(
    feature: Tensor,
    reference_feature: Tensor,
    handle_points: Tensor,
    active: Tensor,
    r2: int,
    image_size: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """Nearest-neighbour search (§3.3): (handle_points [B, N, 2] float32, distance [B, N] float32).

    Each handle moves to the pixel of its square window (radius r2, clipped to the image) whose U is nearest, L2
    over channels, to its reference feature [B, N, C]; the first minimum in row-major order wins. An inactive
    point stays, at distance 0; one whose window lies outside the image (or that is not finite) stays too, at
    distance infinity.
    """
    dtype = compute_dtype(feature)
    values, x, y = upsampled_window(feature, handle_points.round().long(), r2, r2, image_size)
    inside = inside_image(x, y, image_size)
    distance = (values - reference_feature.to(dtype)[:, :, None, None, :]).norm(dim=-1)
    distance = distance.masked_fill(~inside, torch.inf).flatten(2)
    nearest = distance.argmin(dim=2, keepdim=True)
    found = torch.stack([t.flatten(2).gather(2, nearest).squeeze(2) for t in (x, y)], dim=-1)
    shortest = distance.gather(2, nearest).squeeze(2)
    moves = active & inside.flatten(2).any(dim=2) & (shortest != torch.inf)  # an overflow everywhere finds nothing
    moved = torch.where(moves[..., None], found.float(), handle_points.float())
    return moved, torch.where(active, shortest, 0).float()


def interpolation_matrix(source: int, size: int, like: Tensor) -> Tensor:
    """The 1-D bilinear upsampling as a matrix [size, source]; U = rows · F · columnsᵀ."""
    dtype = compute_dtype(like)
    position = (torch.arange(size, device=like.device, dtype=dtype) + 0.5) * (source / size) - 0.5
    position = position.clamp(0, source - 1)
    lower = position.floor().unsqueeze(1)
    fraction = position.unsqueeze(1) - lower
    upper = (lower + 1).clamp(max=source - 1)
    cells = torch.arange(source, device=like.device)  # compared with: one_hot looks at its argument's values first
    return (lower == cells) * (1 - fraction) + (upper == cells) * fraction


def mask_loss(
    feature: Tensor, feature0: Tensor, movable_mask: Tensor, image_size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Change of the fixed region: (loss [B] float32, grad_feature like feature).

    loss = mean over channels and image pixels of |U − U0| · (1 − movable_mask), movable_mask [B, H, W] (§3.2).
    A few image rows at a time: the gradient of an absolute value is a sign, which flows back through the same
    two interpolation matrices.
    """
    height, width = image_size
    dtype = compute_dtype(feature)
    difference = feature.to(dtype) - feature0.to(dtype)
    fixed = 1 - movable_mask.to(dtype)
    rows = interpolation_matrix(feature.shape[2], height, feature)
    columns = interpolation_matrix(feature.shape[3], width, feature)
    loss = torch.zeros(feature.shape[0], dtype=dtype, device=feature.device)
    grad = torch.zeros_like(difference)
    for start in range(0, height, ROWS_PER_CHUNK):
        part = slice(start, start + ROWS_PER_CHUNK)
        weight = fixed[:, None, part, :]
        change = torch.matmul(torch.matmul(rows[part], difference), columns.T)  # U − U0, [B, C, rows, W]
        loss += (change.abs() * weight).sum(dim=(1, 2, 3))
        grad += torch.matmul(rows[part].T, torch.matmul(change.sign() * weight, columns))
    terms = feature.shape[1] * height * width
    return (loss / terms).float(), (grad / terms).to(feature.dtype)
