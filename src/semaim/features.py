"""Features of images by a frozen encoder, and the k-nearest-neighbour classifier on them.

Shapes: B images of a batch, M features, D width, K neighbours, C classes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from semaim.data import ImageData
from semaim.data.loading import UnreadableImages, evaluation_batches
from semaim.data.sources import ImageSet
from semaim.errors import Interrupted, UserError
from semaim.models.aim import AIM
from semaim.progress import Line, duration
from semaim.run_context import Run

TEMPERATURE = 0.07  # of the vote; DINO (arXiv 2104.14294), section 4.1


@torch.no_grad()
def extract(
    model: AIM, data: ImageData, images: ImageSet, indices: Sequence[int], batch_size: int, run: Run, title: str
) -> tuple[dict[str, Tensor], Tensor]:
    """Features of some images of a set, in float32 on the CPU; processes share the work.

    Args:
        model: its encoder is used, in the precision it has.
        data: how images are prepared and loaded.
        images: the set.
        indices: which of its images.
        batch_size: images at a time on each process.
        run: surroundings.
        title: what the status line calls this.

    Returns:
        "cls" and "mean" (patch tokens averaged) features, each (M, D), and labels (M,), in the order of the indices
        except that unreadable images are missing.

    Raises:
        Interrupted: on a signal, when there is one process (several finish the pass first).
        UserError: if too many images cannot be read.
    """
    processes = run.processes
    mine = list(indices[processes.rank :: processes.world_size])
    batches = evaluation_batches(
        data.evaluation(images, mine), batch_size, data.num_workers, processes.device.type == "cuda"
    )
    unreadable = UnreadableImages(data.max_unreadable)
    parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    line, started, seen = Line(processes.is_main, every=max(1, len(mine) // batch_size // 4)), time.monotonic(), 0
    for batch in batches:
        unreadable.note(batch)
        seen += len(batch.index_B) + len(batch.unreadable)
        if len(batch.index_B):
            batch = batch.to(processes.device)
            tokens_BND = model.encode(batch.images_BCHW).float()
            cls_BD, mean_BD = tokens_BND[:, 0].cpu(), tokens_BND[:, 1:].mean(1).cpu()
            parts.append((cls_BD, mean_BD, batch.labels_B.cpu(), batch.index_B))
        left = (time.monotonic() - started) / max(seen, 1) * (len(mine) - seen)
        if left > 2 or line.terminal:
            line.update(f"{title}: {seen}/{len(mine)} images, {duration(left)} left", last=False)
        if run.stop.requested and processes.world_size == 1:
            raise Interrupted(f"stopped by {run.stop.name} during an evaluation")
    gathered = [part for process in processes.gather(parts) for part in process]
    if not gathered:
        raise UserError(f"no image of the {len(indices)} of this evaluation can be read")
    cls_MD, mean_MD, labels_M, index_M = (torch.cat(column) for column in zip(*gathered, strict=True))
    place = {index: row for row, index in enumerate(indices)}
    order = torch.tensor([place[int(index)] for index in index_M]).argsort()
    return {"cls": cls_MD[order], "mean": mean_MD[order]}, labels_M[order]


def nearest_neighbours(
    bank_MD: Tensor, bank_labels_M: Tensor, query_MD: Tensor, ks: Sequence[int], classes: int, chunk: int = 1024
) -> Mapping[int, Tensor]:
    """Classify queries by their nearest neighbours in a bank.

    Cosine similarity; each of the k nearest votes for its class with weight exp(similarity / 0.07).

    Args:
        bank_MD, bank_labels_M: labelled features, on the device to compute on.
        query_MD: features to classify.
        ks: numbers of neighbours.
        classes: C.
        chunk: queries at a time, which bounds memory.

    Returns:
        predicted class of each query, by k.

    Raises:
        UserError: if the bank has fewer images than the largest k.
    """
    if max(ks) > len(bank_MD):
        raise UserError(f"k={max(ks)} neighbours asked for, but the bank has {len(bank_MD)} images")
    bank_MD = F.normalize(bank_MD, dim=-1)
    predicted: dict[int, list[Tensor]] = {k: [] for k in ks}
    for part_BD in F.normalize(query_MD, dim=-1).split(chunk):
        similarity_BK, index_BK = (part_BD @ bank_MD.T).topk(max(ks), dim=1)
        # Subtracting the largest similarity changes no vote and keeps the exponential finite.
        weight_BK = ((similarity_BK - similarity_BK[:, :1]) / TEMPERATURE).exp()
        label_BK = bank_labels_M[index_BK]
        for k in ks:
            votes_BC = torch.zeros(len(part_BD), classes, device=part_BD.device)
            votes_BC.scatter_add_(1, label_BK[:, :k], weight_BK[:, :k])
            predicted[k].append(votes_BC.argmax(1))
    return {k: torch.cat(parts) for k, parts in predicted.items()}
