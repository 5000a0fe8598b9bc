"""The renderer of toy animals, which the embedded model was distilled from, and the training script's state."""

import sys
from pathlib import Path

import pytest
import torch

TOOLS = Path(__file__).resolve().parent.parent / "tools"


@pytest.fixture(scope="module")
def toy_animals():
    sys.path.insert(0, str(TOOLS))
    try:
        import toy_animals
    finally:
        sys.path.remove(str(TOOLS))
    return toy_animals


@pytest.fixture(scope="module")
def scene(toy_animals):
    torch.manual_seed(0)
    latent = torch.randn(4, toy_animals.LATENT_DIM)
    with torch.no_grad():
        return latent, toy_animals.render(latent, 64, supersample=1, maps=True)


def test_shapes_and_ranges(toy_animals, scene):
    _, (image, landmarks, maps) = scene
    assert image.shape == (4, 3, 64, 64)
    assert image.abs().max() <= 1
    assert landmarks.shape == (4, 21, 2) == (4, len(toy_animals.LANDMARKS), 2)
    assert maps.shape == (4, len(toy_animals.MAPS), 64, 64)
    assert all(t.isfinite().all() for t in (image, landmarks, maps))


def test_a_picture_depends_on_its_own_latent_only(toy_animals, scene):
    latent, (image, landmarks, _) = scene
    with torch.no_grad():
        alone = toy_animals.render(latent[2:3], 64, supersample=1)
    assert torch.allclose(alone.image, image[2:3], atol=1e-4)
    assert torch.allclose(alone.landmarks, landmarks[2:3], atol=1e-3)


def test_every_latent_dimension_does_something_and_does_it_smoothly(toy_animals):
    """A hundredth of a standard deviation changes the description of the scene, and the picture a little at most."""
    torch.manual_seed(1)
    dims = toy_animals.LATENT_DIM
    centre = torch.randn(1, dims)
    moved = centre + 0.01 * torch.eye(dims)
    told = toy_animals.describe(torch.cat([centre, moved]))
    assert (told[1:] - told[:1]).abs().amax(dim=1).gt(1e-4).all()
    with torch.no_grad():
        images = toy_animals.render(torch.cat([centre, moved[::8]]), 32, supersample=1).image
    assert (images[1:] - images[:1]).abs().mean(dim=(1, 2, 3)).max() < 0.01


def test_landmarks_lie_on_what_they_name(toy_animals, scene):
    """The part maps at a landmark's pixel: a nose on the nose, eyes on eyes, the left one left of the right."""
    _, (_, landmarks, maps) = scene
    names, parts = toy_animals.LANDMARKS, toy_animals.MAPS
    pixels = landmarks.round().long().clamp(0, 63)

    def at(landmark, part):
        x, y = pixels[:, names.index(landmark)].T
        return maps[torch.arange(4), parts.index(part), y, x]

    assert at("nose", "nose").gt(0.5).all()
    assert at("eye_left", "eyes").gt(0.5).all()
    assert at("eye_right", "eyes").gt(0.5).all()
    assert (landmarks[:, names.index("eye_left"), 0] < landmarks[:, names.index("eye_right"), 0]).all()
    assert (landmarks[:, names.index("chin"), 1] > landmarks[:, names.index("nose"), 1]).all()


def test_landmarks_scale_with_the_picture(toy_animals, scene):
    """Integers are pixel centres: a point p of 64 pixels is 2p + ½ of 128."""
    latent, (_, landmarks, _) = scene
    with torch.no_grad():
        large = toy_animals.render(latent[:1], 128, supersample=1).landmarks
    assert torch.allclose(large, 2 * landmarks[:1] + 0.5, atol=1e-3)
