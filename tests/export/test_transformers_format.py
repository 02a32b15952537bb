"""Encoders exported for transformers give the same outputs there, and are identical after import."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers

from semaim.checkpoints.encoder_source import fingerprint
from semaim.checkpoints.pretrained import read_checkpoint
from semaim.checkpoints.stored_encoder import StoredEncoder
from semaim.cli import main
from semaim.data.transforms import evaluation
from support import foreign_files
from support.encoders import source
from support.exporting import exported, images, photograph, stored


@torch.no_grad()
def test_transformers_computes_the_same_tokens(pretrained: Path, tmp_path: Path) -> None:
    folder = exported(tmp_path, pretrained, "--format", "huggingface")
    pictures = images(2, 32, 24)
    expected_BND = stored(pretrained).forward_features(pictures)
    for load in (transformers.ViTModel, transformers.AutoModel):
        model, said = load.from_pretrained(folder, add_pooling_layer=False, output_loading_info=True)
        assert type(model) is transformers.ViTModel
        assert not any(said[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        assert all(module.eps == 1e-6 for module in model.modules() if isinstance(module, torch.nn.LayerNorm))
        found_BND = model.eval()(pictures).last_hidden_state
        assert (found_BND - expected_BND).abs().max() <= 1e-5 * expected_BND.abs().max()


@torch.no_grad()
def test_transformers_classifies_the_same(tuned: dict[str, Path], tmp_path: Path) -> None:
    folder = exported(tmp_path, tuned["cls"], "--format", "huggingface")
    model = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    expected_BC = stored(tuned["cls"])(images())
    assert (model(images()).logits - expected_BC).abs().max() <= 1e-5 * expected_BC.abs().max()
    assert torch.equal(source(folder).trained_classifier(10)(images()), expected_BC)


def test_transformers_prepares_images(square: Path, tmp_path: Path) -> None:
    """Exact without resizing; with resizing, rounding differs slightly."""
    processor = transformers.AutoImageProcessor.from_pretrained(exported(tmp_path, square, "--format", "huggingface"))
    ours = evaluation(32, crop_ratio=1.0, mean=[0.3] * 3, std=[0.36] * 3)
    for picture, tolerance in ((photograph(40, 32), 1e-6), (photograph(90, 64), 3 / 255 / 0.36)):
        theirs = processor(picture, return_tensors="pt")["pixel_values"][0]
        assert theirs.shape == (3, 32, 32)
        assert torch.allclose(theirs, ours(picture), rtol=0, atol=tolerance)


def test_export_and_import_by_transformers(square: Path, tmp_path: Path) -> None:
    folder = exported(tmp_path, square, "--format", "huggingface")
    assert fingerprint(source(folder).encoder()) == fingerprint(source(square).encoder())
    assert source(folder).origin(0, {}).tags == source(square).origin(0, {}).tags
    assert StoredEncoder(folder, read_checkpoint(folder), False, None, None).normalisation == ((0.3,) * 3, (0.36,) * 3)


def test_encoders_unsupported_by_transformers_are_refused(tuned: dict[str, Path], tmp_path: Path, capsys) -> None:
    torch.save(foreign_files.dinov2().content, tmp_path / "dinov2.pth")
    for given, message in (
        (
            tuned["mean"],
            "this encoder norms the mean of the patches: export it with --format timm",
        ),
        (
            tmp_path / "dinov2.pth",
            "--format huggingface has no vit_base_patch14_dinov2, only the plain",
        ),
    ):
        output = tmp_path / "out"
        assert main(["export", str(given), "--format", "huggingface", "--output", str(output)]) == 2
        assert message in capsys.readouterr().err
        assert not output.exists()
