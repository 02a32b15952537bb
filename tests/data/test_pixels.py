"""Images are the pixels that Pillow reads, until they are normalised on the device."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from semaim.core.seeding import derive_seed, seeded
from semaim.data import reading
from semaim.data.image_data import ImageData
from semaim.data.image_sets import ArrayImages, FileImages, Splits, read_image
from semaim.data.loading import EvaluationImages, Item, StepPlan, TrainingImages, evaluation_batches, training_batches
from semaim.data.pixels import Normalise, NormaliseAndErase, to_pil
from semaim.data.reading import Unreadable, by_pillow, jpeg_pixels, read_rgb
from semaim.data.samples import read_images
from semaim.data.transforms import evaluation, finetuning, linear_probe, pretraining
from support.loaders import loading

CPU = torch.device("cpu")


def picture(width=61, height=47, seed=0):
    small = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def jpeg(mode="RGB", **how):
    file = io.BytesIO()
    picture().convert(mode).save(file, "JPEG", **how)
    return file.getvalue()


def by_both(data, exif=False):
    """Pixels by torchvision, and as Pillow reads them, (height, width, 3)."""
    pixels = jpeg_pixels(data, exif)
    return pixels.permute(1, 2, 0).tolist(), np.asarray(by_pillow(io.BytesIO(data), exif)).tolist()


# JPEG files


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize(
    "how", [{}, {"quality": 95, "subsampling": 0}, {"progressive": True}, {"restart_marker_blocks": 2}], ids=str
)
def test_jpegs_have_the_pixels_that_pillow_reads(mode, how):
    found, expected = by_both(jpeg(mode, **how))
    assert found == expected


@pytest.mark.parametrize("orientation", range(10))
def test_jpegs_are_turned_as_pillow_turns_them(orientation):
    exif = Image.Exif()
    exif[0x112] = orientation
    for option in (False, True):
        found, expected = by_both(jpeg(exif=exif), option)
        assert found == expected
        assert len(found) == (61 if option and orientation in (5, 6, 7, 8) else 47)


@pytest.mark.parametrize("data", [jpeg("CMYK"), b"\xff\xd8", b""])
def test_pillow_reads_the_others(data):
    assert jpeg_pixels(data, exif=True) is None


def test_damaged_exif_is_read_as_by_pillow():
    found, expected = by_both(jpeg(exif=b"Exif\0\0nonsense here"), exif=True)
    assert found == expected


def test_cmyk_is_read_by_pillow(tmp_path):
    (tmp_path / "a.jpg").write_bytes(jpeg("CMYK"))
    read = read_rgb(tmp_path / "a.jpg", exif=False)
    with Image.open(tmp_path / "a.jpg") as expected:
        assert np.array_equal(np.asarray(read), np.asarray(expected.convert("RGB")))


def outcome(read):
    try:
        return np.asarray(to_pil(read())).tolist()
    except Exception as error:  # Pillow raises many types
        return f"{type(error).__name__}: {error}"


@pytest.mark.parametrize("how", [{}, {"progressive": True}], ids=str)
def test_damaged_jpegs_are_read_or_refused_as_by_pillow(tmp_path, how):
    whole, random = jpeg(**how), np.random.default_rng(0)
    cases = [whole[:length] for length in range(0, len(whole), 41)] + [whole[:-1], whole[:-2], whole + b"more"]
    cases += [whole[:length] + b"\xff\xd9" for length in range(0, len(whole), 97)]
    for _ in range(60):
        damaged = bytearray(whole)
        damaged[random.integers(2, len(whole))] = random.integers(0, 256)
        cases.append(bytes(damaged))
    file, seen = tmp_path / "a.jpg", set()
    for data in cases:
        file.write_bytes(data)
        found, expected = (outcome(lambda read=read: read(file, False)) for read in (read_rgb, by_pillow))
        assert found == expected
        seen.add(found.split(":")[0] if isinstance(found, str) else "read")
    assert {"read", "OSError", "UnidentifiedImageError"} <= seen


def test_the_message_of_a_truncated_jpeg_is_pillows(tmp_path):
    (tmp_path / "a.jpg").write_bytes(jpeg()[:900])
    with pytest.raises(Unreadable, match=r"OSError: image file is truncated \(\d+ bytes? not processed\)"):
        read_image(FileImages(tmp_path, ["a.jpg"], None), 0)


def test_without_torchvisions_decoder_pillow_reads(tmp_path, monkeypatch):
    (tmp_path / "a.jpg").write_bytes(jpeg())
    before = read_rgb(tmp_path / "a.jpg", exif=True)
    monkeypatch.setattr(reading, "decode_jpeg", None)
    now = read_rgb(tmp_path / "a.jpg", exif=True)
    assert np.array_equal(np.asarray(now), before.permute(1, 2, 0).numpy())


# Crops and flips


def test_pretraining_has_the_crops_and_flips_of_torchvisions_transforms_on_pil_images():
    """As before version 0.2.0, up to rounding: results of a seed stay what they were."""
    size = (16, 24)
    crop = v2.RandomResizedCrop(size, scale=(0.2, 1.0), interpolation=InterpolationMode.BICUBIC)
    before, now = v2.Compose([crop, v2.RandomHorizontalFlip(0.5)]), pretraining(size)
    differences = []
    for seed in range(60):
        image = picture(70, 50, seed)
        with seeded(seed):
            expected = np.asarray(before(image)).astype(int)
        with seeded(seed):
            found = now.pixels(image).permute(1, 2, 0).numpy()
        differences.append(np.abs(found - expected))
    assert np.max(differences) <= 2
    assert np.mean(np.array(differences) > 0) < 0.02


# On the device


def photographs(tmp_path, count=8):
    names = [f"{index}.{('jpg', 'png')[index % 2]}" for index in range(count)]
    for index, name in enumerate(names):
        picture(seed=index).save(tmp_path / name)
    return FileImages(tmp_path, names, None)


def test_a_batch_is_of_pixels_and_becomes_normalised_on_the_device(tmp_path):
    images, transform = photographs(tmp_path), evaluation((16, 24), mean=(0.5, 0.25, 0.125), std=(0.5, 1.0, 2.0))
    (batch,) = evaluation_batches(EvaluationImages(images, transform, range(8)), 8, *loading(0))
    assert (batch.images_BCHW.dtype, tuple(batch.images_BCHW.shape)) == (torch.uint8, (8, 3, 16, 24))
    pixels_BCHW = batch.images_BCHW.clone()
    found = batch.to(CPU).to(CPU).images_BCHW  # once, however often it is copied
    by_hand = v2.functional.normalize(pixels_BCHW / 255, [0.5, 0.25, 0.125], [0.5, 1.0, 2.0])
    assert torch.equal(found, by_hand)
    assert found.is_contiguous()
    assert torch.equal(found, torch.stack([transform(images.read(index)) for index in range(8)]))
    assert torch.equal(found, read_images(images, range(8), transform)[1])


def test_a_transform_of_ones_own_gets_pil_images_and_is_not_normalised_again(tmp_path):
    seen = []

    def own(image):
        seen.append((type(image), image.mode, image.size))
        return v2.functional.to_dtype(v2.functional.pil_to_tensor(image.resize((5, 4))), torch.float32, scale=True)

    images = photographs(tmp_path)
    (batch,) = evaluation_batches(EvaluationImages(images, own, range(8)), 8, *loading(0))
    assert {(mode, size) for _, mode, size in seen} == {("RGB", (61, 47))}
    assert all(issubclass(kind, Image.Image) for kind, *_ in seen)
    before = batch.images_BCHW.clone()
    assert torch.equal(batch.to(CPU).images_BCHW, before)
    assert torch.equal(read_images(images, range(8), own)[1], before)


def test_shared_memory_is_that_of_pixels_unless_a_transform_normalises():
    noise = ArrayImages(np.zeros((4, 8, 8, 3)), [0] * 4, "noise")
    source = lambda: Splits(noise, noise, None, ["a"])  # noqa: E731

    def data(train, evaluated):
        return ImageData(source, None, (8, 16), 4, train, evaluated, 0, 60.0, 0, None, 0)

    ours, own = evaluation((8, 16)), torch.nn.Identity()
    assert data(ours, ours).loading.image_bytes == 3 * 8 * 16
    assert data(own, ours).loading.image_bytes == data(ours, own).loading.image_bytes == 4 * 3 * 8 * 16
    later = data(ours, ours)
    later.training(transform=finetuning((8, 16)))
    assert later.loading.image_bytes == 3 * 8 * 16
    assert later.training(transform=own).loading.image_bytes == 4 * 3 * 8 * 16


@pytest.mark.parametrize("make", [finetuning, linear_probe, pretraining])
def test_what_the_network_sees_depends_on_seed_epoch_and_index_alone(tmp_path, make):
    """Also the noise of erased rectangles, which is drawn on the device."""
    how = {"erase": 0.5} if make is finetuning else {}
    dataset = TrainingImages(photographs(tmp_path), make(16, **how), seed=3)

    def seen(batch_size, workers):
        plan = StepPlan(dataset_size=8, batch_size=batch_size, seed=3)
        batches = training_batches(dataset, plan, range(16 // batch_size), *loading(workers))
        found = [batch.to(CPU) for batch in batches]
        return torch.cat([batch.images_BCHW for batch in found])  # of a batch's size, two epochs in the same order

    expected = seen(8, 0)
    torch.manual_seed(5)
    assert torch.equal(seen(2, 0), expected)
    assert torch.equal(seen(4, 2), expected)


def test_erasing_is_independent_of_the_flip():
    """Both are decided by one seed."""
    seeds = [derive_seed(0, "augmentation", 0, index) for index in range(2000)]
    erased, flipped = [seed < 0.25 * 2**63 for seed in seeds], []
    for seed in seeds:
        with seeded(seed, restore=False):
            flipped.append(torch.rand(1).item() < 0.5)
    both = np.mean([a and b for a, b in zip(erased, flipped, strict=True)])
    assert abs(np.mean(erased) - 0.25) < 0.05
    assert abs(both - 0.125) < 0.04


def test_erasing_leaves_the_other_pixels_and_the_input_as_they_are():
    pixels_BCHW = torch.randint(0, 256, (40, 3, 16, 16), dtype=torch.uint8)
    before, how = pixels_BCHW.clone(), ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    seeds = [derive_seed(0, "test", index) for index in range(40)]
    plain, some = Normalise(*how)(pixels_BCHW), NormaliseAndErase(*how, 0.25)(pixels_BCHW, seeds)
    assert torch.equal(pixels_BCHW, before)
    changed_B = (plain != some).flatten(1).any(1)
    assert changed_B.tolist() == [seed < 0.25 * 2**63 for seed in seeds]
    assert 0 < changed_B.sum() < 40
    assert ((plain != some).float().mean((1, 2, 3))[changed_B] < 0.37).all()  # at most a third, in whole pixels


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_device_normalises_and_erases_as_the_cpu():
    pixels_BCHW = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8)
    seeds = [derive_seed(0, "test", index) for index in range(64)]
    how = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    here, there = Normalise(*how)(pixels_BCHW), Normalise(*how)(pixels_BCHW.cuda())
    assert there.is_cuda
    assert torch.allclose(here, there.cpu(), atol=1e-6)
    erase = NormaliseAndErase(*how, 0.5)
    erased = [erase(pixels_BCHW.to(device), seeds).cpu() - here for device in ("cpu", "cuda", "cuda")]
    on_cpu, on_gpu, again = ((each.abs() > 1e-5).any(1) for each in erased)
    assert torch.equal(on_cpu, on_gpu)  # the same rectangles
    assert torch.equal(erased[1], erased[2])
    assert torch.equal(on_gpu, again)


def test_items_of_one_image_carry_the_seed_of_its_augmentation(tmp_path):
    dataset = TrainingImages(photographs(tmp_path), pretraining(8), seed=3)
    assert dataset[Item(index=5, epoch=2, row=9)].seed == derive_seed(3, "augmentation", 2, 5)
