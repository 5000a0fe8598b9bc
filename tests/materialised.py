"""The drag ops written the expensive way, as the published program computes them: U is stored at image size.

An oracle for the kernels that shares no code with them: interpolate, nonzero, grid_sample, autograd.
``loss_and_grad`` also says how much of a gradient hangs on differences too close to zero for float32 to know their
sign; only there may two backends disagree.
"""

import torch
import torch.nn.functional as F

ROUNDING = 1e-12  # the oracle runs in float64
UNSURE = 1e-5  # below this the sign of a difference of float32 features of size about 1 is a matter of rounding


def upsample(feature, image_size):
    return F.interpolate(feature, size=image_size, mode="bilinear", align_corners=False)


def absolute(difference):
    """|·| with gradient 0 at differences that are zero but for rounding (where U is constant)."""
    return torch.where(difference.abs() < ROUNDING, torch.zeros_like(difference), difference).abs()


def unsure(difference):
    """Twice the differences whose sign is unsure: its gradient is what they can change in the gradient of |·|."""
    return torch.where(difference.abs() < UNSURE, 2 * difference, torch.zeros_like(difference))


def loss_and_grad(op, feature, *arguments):
    """(loss [B], grad_feature, slack): slack, like grad_feature, bounds what unsure signs can change in it."""
    loss, grad = op(feature, *arguments)
    _, slack = op(feature, *arguments, size_of=unsure)
    return loss, grad, slack.abs()


def motion_supervision(feature, handles, targets, active, r1, image_size, size_of=absolute):
    """(loss [B], grad_feature); points (x, y)."""
    feature = feature.detach().requires_grad_()
    height, width = image_size
    u = upsample(feature, image_size)
    rows = torch.linspace(0, height, height, dtype=u.dtype)[:, None]
    columns = torch.linspace(0, width, width, dtype=u.dtype)[None, :]
    losses = []
    for b in range(feature.shape[0]):
        loss = (feature[b] * 0).sum()
        for n in range(handles.shape[1]):
            d = (targets[b, n] - handles[b, n]).to(u.dtype)
            if not active[b, n] or d.norm() <= 1:
                continue
            d = d / (d.norm() + 1e-7)
            x, y = handles[b, n].tolist()
            i, j = torch.where(((rows - y) ** 2 + (columns - x) ** 2).sqrt() < r1)
            grid = torch.stack(
                [(j + d[0]) / max(width - 1, 1) * 2 - 1, (i + d[1]) / max(height - 1, 1) * 2 - 1], dim=-1
            )
            shifted = F.grid_sample(u[b : b + 1], grid[None, None], align_corners=True)[0, :, 0]
            if len(i):
                loss = loss + size_of(u[b, :, i, j].detach() - shifted).mean()
        losses.append(loss)
    loss = torch.stack(losses)
    (grad,) = torch.autograd.grad(loss.sum(), feature)
    return loss.detach(), grad


def point_tracking(feature, reference, handles, active, r2, image_size):
    height, width = image_size
    u = upsample(feature, image_size)
    moved, distance = handles.clone(), torch.zeros(handles.shape[:2], dtype=u.dtype)
    for b in range(feature.shape[0]):
        for n in range(handles.shape[1]):
            if not active[b, n]:
                continue
            x, y = (int(v) for v in handles[b, n].tolist())
            top, left = max(y - r2, 0), max(x - r2, 0)
            patch = u[b, :, top : min(y + r2 + 1, height), left : min(x + r2 + 1, width)]
            d = (patch - reference[b, n][:, None, None]).norm(dim=0)
            best = int((d.flatten() <= d.min() + ROUNDING).int().argmax())  # the first of equals
            row, column = divmod(best, d.shape[1])
            moved[b, n] = torch.tensor([left + column, top + row])
            distance[b, n] = d.flatten()[best]
    return moved, distance


def mask_loss(feature, feature0, movable, image_size, size_of=absolute):
    feature = feature.detach().requires_grad_()
    change = upsample(feature, image_size) - upsample(feature0, image_size)
    loss = (size_of(change) * (1 - movable[:, None])).mean(dim=(1, 2, 3))
    (grad,) = torch.autograd.grad(loss.sum(), feature)
    return loss.detach(), grad
