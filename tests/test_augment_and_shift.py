"""Training images vary as torchvision varies them, and shifted test sets are what their names say."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from scipy.ndimage import gaussian_filter
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tvf

from harness import strategies
from harness.core.spec import SHIFTS
from harness.data import Examples, load_target, read_examples, shifted, split_indices
from harness.inputs import Pixels
from harness.inputs.augment import image_augmentation
from harness.training.device import Cpu
from harness.training.loop import Training
from tests.trials import MakeSpec

SIZE, CLASSES = 32, 5
POLICIES = Pixels.augmentations
DIGITS = load_target("digits")
"""Corruptions of pixels do not read it again."""
MIXING = ("mixup", "cutmix")


def random_images(count: int, size: int = SIZE) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, 3, size, size), generator=generator, dtype=torch.uint8)


def vary(
    name: str, images: torch.Tensor, seed: int = 0, labels: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    if labels is None:
        labels = torch.arange(len(images)) % CLASSES
    policy = image_augmentation(name, CLASSES)
    return policy(images, labels, torch.Generator().manual_seed(seed))


# --- augmentation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", POLICIES)
def test_varied_images_keep_shape_range_and_kind(name: str) -> None:
    images, labels = vary(name, random_images(6))
    assert images.shape == (6, 3, SIZE, SIZE)
    assert images.dtype == (torch.float32 if name in MIXING else torch.uint8)
    assert 0 <= images.min() <= images.max() <= 255
    assert labels.shape == ((6, CLASSES) if name in MIXING else (6,))


@pytest.mark.parametrize("name", POLICIES)
def test_variation_follows_its_generator_and_not_the_global_one(name: str) -> None:
    original = random_images(16)
    torch.manual_seed(1)
    first = vary(name, original, seed=3)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    again = vary(name, original, seed=3)
    assert torch.equal(torch.get_rng_state(), state), "the global generator is left alone"
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert torch.equal(original, random_images(16)), "the caller's images are left alone"
    other = vary(name, original, seed=4)[0]
    assert torch.equal(first[0], other) == (name == "none")


@pytest.mark.parametrize("name", [p for p in POLICIES if p != "none" and p not in MIXING])
def test_every_image_and_every_batch_gets_a_variation_of_its_own(name: str) -> None:
    same = random_images(1).expand(16, -1, -1, -1)
    generator = torch.Generator().manual_seed(0)
    policy = image_augmentation(name, CLASSES)
    first, second = (policy(same, torch.zeros(16).long(), generator)[0] for _ in range(2))
    assert len({image.numpy().tobytes() for image in first}) >= 8
    assert not torch.equal(first, second)


def test_none_is_the_identity() -> None:
    images, labels = random_images(4), torch.arange(4)
    got = vary("none", images, labels=labels)
    assert got[0] is images
    assert got[1] is labels


def test_flip_crop_gives_windows_of_the_padded_image_or_of_its_mirror_image() -> None:
    image = random_images(1)[0]
    padded = np.pad(image.numpy(), ((0, 0), (4, 4), (4, 4)), mode="reflect")
    mirrored = np.pad(image.numpy()[:, :, ::-1], ((0, 0), (4, 4), (4, 4)), mode="reflect")
    windows = {
        source[:, r : r + SIZE, c : c + SIZE].tobytes(): (kind, r, c)
        for kind, source in enumerate((padded, mirrored))
        for r in range(9)
        for c in range(9)
    }
    varied, _ = vary("flip_crop", image.expand(64, -1, -1, -1))
    found = [windows[v.numpy().tobytes()] for v in varied]  # a KeyError is a failure
    assert {kind for kind, _, _ in found} == {0, 1}
    assert len({(r, c) for _, r, c in found}) > 20


def test_rotation_keeps_the_centre_and_moves_the_rim() -> None:
    image = torch.zeros(3, 33, 33, dtype=torch.uint8)
    image[:, 16] = 255  # a horizontal line through the centre turns about it
    varied, _ = vary("rotation", image.expand(32, -1, -1, -1))
    for turned in varied:
        assert turned[0, 16, 16] > 200
        ends = turned[0, :, 30].float()  # 14 pixels right of the centre
        drop = abs(float((ends * torch.arange(33)).sum() / ends.sum()) - 16)
        assert drop <= 14 * math.tan(math.radians(15)) + 0.5


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("trivial", v2.TrivialAugmentWide(interpolation=v2.InterpolationMode.BILINEAR)),
        ("rand", v2.RandAugment(interpolation=v2.InterpolationMode.BILINEAR)),
    ],
)
def test_automatic_policies_are_torchvisions_image_by_image(
    name: str, theirs: v2.Transform
) -> None:
    images = random_images(8)
    got, labels = vary(name, images, seed=7)
    assert torch.equal(labels, torch.arange(8) % CLASSES)
    torch.manual_seed(int(torch.randint(2**31, (), generator=torch.Generator().manual_seed(7))))
    assert torch.equal(got, torch.stack([theirs(image) for image in images]))


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("mixup", v2.MixUp(alpha=0.2, num_classes=CLASSES)),
        ("cutmix", v2.CutMix(alpha=1.0, num_classes=CLASSES)),
    ],
)
@pytest.mark.parametrize("seed", range(5))
def test_mixing_is_torchvisions_with_the_same_seed(
    name: str, theirs: v2.Transform, seed: int
) -> None:
    images, labels = random_images(6), torch.tensor([0, 1, 2, 3, 4, 0])
    got = vary(name, images, seed, labels)
    torch.manual_seed(int(torch.randint(2**31, (), generator=torch.Generator().manual_seed(seed))))
    wanted = theirs(images.float(), labels)
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


@pytest.mark.parametrize("name", ["none", "flip_crop", "mixup"])
def test_training_with_a_policy_is_repeatable_and_differs_from_training_without(
    name: str, make_spec: MakeSpec
) -> None:
    first, second, plain = (
        [e.train_loss for e in Training(make_spec(augment=a, epochs=1, shots=3), Cpu())]
        for a in (name, name, "none")
    )
    assert first == second
    assert (first == plain) == (name == "none")


# --- shifts ----------------------------------------------------------------------------------------


def examples(per_class: int = 20, size: int = SIZE) -> Examples:
    count = per_class * CLASSES
    labels = torch.arange(count) % CLASSES
    return Examples(random_images(count, size), labels, np.arange(100, 100 + count), Pixels(size))


@pytest.mark.parametrize("name", SHIFTS)
def test_shift_is_the_same_in_every_trial(name: str) -> None:
    original = examples()
    torch.manual_seed(1)
    first = shifted(original, name, DIGITS)
    torch.manual_seed(2)
    again = shifted(original, name, DIGITS)
    assert torch.equal(first.tensor, again.tensor)
    assert torch.equal(first.labels, again.labels)
    np.testing.assert_array_equal(first.index, again.index)
    assert torch.equal(original.tensor, examples().tensor), "the caller's images are left alone"


@pytest.mark.parametrize("name", [s for s in SHIFTS if s != "label_shift"])
def test_shift_of_pixels_keeps_labels_and_examples(name: str) -> None:
    original, moved = examples(), shifted(examples(), name, DIGITS)
    assert torch.equal(moved.labels, original.labels)
    np.testing.assert_array_equal(moved.index, original.index)
    assert moved.tensor.shape == original.tensor.shape
    assert moved.tensor.dtype == torch.uint8
    assert all((a != b).any() for a, b in zip(moved.tensor, original.tensor, strict=True))


def test_noise_has_the_stated_spread_around_no_bias() -> None:
    grey = torch.full((8, 3, SIZE, SIZE), 128, dtype=torch.uint8)
    moved = shifted(
        Examples(grey, torch.zeros(8).long(), np.arange(8), Pixels(SIZE)), "noise", DIGITS
    )
    noise = moved.tensor.double() - 128
    # Rounding adds 1/12 to the variance and clipping at 3.3 sd takes 0.3 % of the sd. The standard
    # error of the sd of 24,576 values is 0.45 %, of their mean 0.24; four of each.
    assert float(noise.std()) == pytest.approx(0.15 * 255, rel=0.02)
    assert float(noise.mean()) == pytest.approx(0, abs=1.0)
    assert len({image.numpy().tobytes() for image in moved.tensor}) == 8


def test_blur_is_the_gaussian_filter_of_scipy() -> None:
    original = examples(1)
    moved = shifted(original, "blur", DIGITS).tensor.double().numpy()
    sigma = 0.04 * SIZE
    wanted = gaussian_filter(
        original.tensor.double().numpy(), (0, 0, sigma, sigma), mode="mirror", radius=(0, 0, 3, 3)
    )
    # The same kernel of 7 x 7; one side rounds to whole numbers.
    assert np.abs(moved - wanted).max() <= 0.51


def test_contrast_is_that_of_pillow_and_of_torchvision() -> None:
    original = examples(1)
    moved = shifted(original, "contrast", DIGITS).tensor
    assert torch.equal(moved, tvf.adjust_contrast(original.tensor, 0.3))
    for before, after in zip(original.tensor, moved, strict=True):
        picture = Image.fromarray(before.permute(1, 2, 0).numpy())
        faded = np.asarray(ImageEnhance.Contrast(picture).enhance(0.3)).astype(int)
        # Pillow rounds the mean grey to a whole number, then each pixel.
        assert np.abs(after.permute(1, 2, 0).numpy().astype(int) - faded).max() <= 1


def tiles(image: torch.Tensor) -> list[bytes]:
    side = image.shape[-1] // 4
    return [
        image[:, r * side : (r + 1) * side, c * side : (c + 1) * side]
        .contiguous()
        .numpy()
        .tobytes()
        for r in range(4)
        for c in range(4)
    ]


@pytest.mark.parametrize("size", [32, 35])
def test_patch_shuffle_permutes_sixteen_tiles_of_each_image_in_its_own_way(size: int) -> None:
    original = examples(2, size)
    moved = shifted(original, "patch_shuffle", DIGITS).tensor
    orders = []
    for before, after in zip(original.tensor, moved, strict=True):
        old, new = tiles(before), tiles(after)
        assert sorted(old) == sorted(new)
        orders.append(tuple(old.index(tile) for tile in new))
        rim = size // 4 * 4  # what is left over at the edges stays
        assert torch.equal(after[:, rim:], before[:, rim:])
        assert torch.equal(after[:, :, rim:], before[:, :, rim:])
    assert len(set(orders)) == len(orders)


def test_label_shift_is_a_subset_with_geometric_class_frequencies() -> None:
    original = examples(100)
    moved = shifted(original, "label_shift", DIGITS)
    # 100 of the first class, 10 of the last, a factor 10^(1/4) from class to class.
    assert torch.bincount(moved.labels).tolist() == [100, 56, 32, 18, 10]
    assert len(set(moved.index.tolist())) == len(moved.index)
    rows = moved.index - 100
    assert torch.equal(moved.tensor, original.tensor[rows])
    assert torch.equal(moved.labels, original.labels[rows])


def test_label_shift_keeps_one_image_of_the_rarest_class() -> None:
    assert torch.bincount(shifted(examples(2), "label_shift", DIGITS).labels).min() == 1


def test_label_shift_has_all_other_classes_where_one_has_no_test_images() -> None:
    every = examples(100)
    without = every.part((every.labels != 2).nonzero()[:, 0])
    moved = shifted(without, "label_shift", DIGITS)
    assert torch.bincount(moved.labels).tolist() == [100, 56, 0, 18, 10]


def test_scores_under_shift_are_those_of_the_shifted_images(make_spec: MakeSpec) -> None:
    names = ("noise", "blur", "label_shift")
    spec = make_spec(shifts="+".join(names), shots=20, epochs=3, lr=1e-2, test_shots=20)
    fit = Training(spec, Cpu())
    list(fit)
    metrics = fit.finish(test=True).metrics
    assert {k for k in metrics if k.startswith("test_accuracy.")} == {
        f"test_accuracy.{name}" for name in names
    }
    network = fit._backbone
    test = split_indices(load_target("digits"), spec).test
    clean = read_examples("digits", tuple(test.tolist()), network.input)
    assert isinstance(network.input, Pixels)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (network.input.mean, network.input.std))
    network.model.eval()
    for name in names:
        moved = shifted(clean, name, DIGITS)
        with torch.no_grad():
            logits = network.model((moved.tensor / 255 - mean) / std)
        by_hand = (logits.argmax(1) == moved.labels).double().mean()
        # A tie of two classes may fall otherwise by rounding: one image of about 80 to 200.
        assert metrics[f"test_accuracy.{name}"] == pytest.approx(float(by_hand), abs=0.013)
    assert metrics["test_accuracy.noise"] != metrics["test_accuracy"]


def test_shifted_scores_of_a_readout_on_features_are_reported_too(make_spec: MakeSpec) -> None:
    from harness.training.loop import start

    fit = start(make_spec(strategy=strategies.FeatureTransfer(), shifts="contrast"), Cpu())
    list(fit)
    assert 0 <= fit.finish(test=True).metrics["test_accuracy.contrast"] <= 1
