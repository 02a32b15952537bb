"""The model card of an exported encoder: architecture, training, how to load it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from semaim.checkpoints.stored_encoder import StoredEncoder
from semaim.core.formatting import plural
from semaim.export.formats import Content, Model
from semaim.runs.folder import RunFolder
from semaim.runs.provenance import Start


def card(model: Model, stored: StoredEncoder, run: Path | None, content: Content, folder: Path) -> str:
    """The model card in Markdown, with the header for model hubs."""
    h, w = model.image_size
    vit, covered = model.vit, model.covered
    kind = f"classifier of {plural(model.num_classes, 'class', 'es')}" if model.num_classes else "encoder"
    parameters = sum(p.numel() for p in vit.parameters())
    patch = vit.patch_embed.patch_size[0]
    mean, std = (", ".join(f"{value:.6g}" for value in values) for values in model.normalisation)
    assumption = "" if stored.normalisation is not None else " (assumed: the checkpoint does not say)"
    pooling = "the mean of the patch tokens, then normed" if model.pool == "mean" else "the class token"
    return f"""---
library_name: {content.tool}
pipeline_tag: image-{"classification" if model.num_classes else "feature-extraction"}
tags: [semaim]
---
# {(run or stored.path.absolute()).name}

A vision transformer ({kind}): {parameters:,} parameters, width {vit.embed_dim}, {len(vit.blocks)} blocks,
{vit.blocks[0].attn.num_heads} heads, images of {h}x{w} pixels in patches of {patch}.
The feature of an image is {pooling}.

Images are resized to the smallest size that covers {covered[0]}x{covered[1]} pixels (bicubic), the centre of {h}x{w} is
cut out, and colours are normalised by mean {mean} and deviation {std}{assumption}.

## Load

```python
{content.snippet(folder)}
```

{history(model, stored, run)}"""


def history(model: Model, stored: StoredEncoder, run: Path | None) -> str:
    """The section on training, with what is known of it."""
    rows: dict[str, Any] = {"checkpoint": stored.path}
    if (origin := stored.origin) is not None:
        rows |= {key.removeprefix("pretrained."): value for key, value in origin.tags.items()}
        rows |= {key.removeprefix("pretrained/"): f"{value:,.6g}" for key, value in origin.metrics.items()}
    if stored.ema:
        rows["weights"] = "moving average"
    command = ""
    if run is not None:
        folder = RunFolder(run)
        start = [*folder.starts(), Start()][0]
        changes = " with changes" if start.get("dirty") else ""
        commit = f"{commit}{changes}" if (commit := start.get("commit")) else "installed"
        rows |= {"started": start.get("time"), "semaim": f"{start.get('semaim')}, commit {commit}"}
        packages = start.get("packages", {})
        rows["packages"] = ", ".join(f"{name} {packages.get(name)}" for name in ("torch", "timm"))
        result = folder.status().get("result", {})
        rows |= {f"result: {name}": f"{value:.6g}" for name, value in result.items()}
        command = f"\nThe command was\n\n    {start.get('command')}\n"
    table = "\n".join(f"| {name.replace('_', ' ')} | {value} |" for name, value in rows.items())
    return f"""## How it was trained

| | |
|---|---|
{table}
{command}
Written by [semaim](https://arxiv.org/abs/2312.10457) {model.about["version"]}.
"""
