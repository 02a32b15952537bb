"""The k-nearest-neighbour classifier on features.

Shapes: M features of the bank, Q queries, D width, K neighbours, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from semaim.distributed import Processes
from semaim.errors import UserError
from semaim.features import Array

TEMPERATURE = 0.07  # of the vote; DINO (arXiv 2104.14294), section 4.1
BANK_BLOCK, QUERY_CHUNK = 16384, 1024  # rows at a time, which bound memory


def nearest_neighbours(
    bank_MD: Array,
    bank_labels_M: Tensor,
    query_QD: Array,
    ks: Sequence[int],
    classes: int,
    processes: Processes,
) -> dict[int, Tensor]:
    """Classify queries by their nearest neighbours in a bank.

    Cosine similarity; each of the k nearest votes for its class with weight exp(similarity / 0.07). The bank is read
    once, block by block, and processes share the queries. All of it is computed in float64: features of a network are
    often so alike that in float32 many similarities are equal, and chance decides who is near.

    Args:
        bank_MD, bank_labels_M: labelled features, in memory or mapped from a file.
        query_QD: features to classify, likewise.
        ks: numbers of neighbours.
        classes: C.
        processes: which share the work; this one's device computes.

    Returns:
        predicted class of each query (Q,) on the CPU, by k.

    Raises:
        UserError: if the bank has fewer images than the largest k.
    """
    if max(ks) > len(bank_MD):
        raise UserError(f"k={max(ks)} neighbours asked for, but the bank has {len(bank_MD)} images: lower ks")
    device = processes.device
    starts = range(0, len(query_QD), QUERY_CHUNK)
    # Whole chunks fall to a process, so that each is computed as by one process alone.
    mine = [
        (s, _normalised(query_QD[s : s + QUERY_CHUNK], device)) for s in starts[processes.rank :: processes.world_size]
    ]
    nearest: dict[int, tuple[Tensor, Tensor]] = {}
    for start in range(0, len(bank_MD), BANK_BLOCK):
        block_MD = _normalised(bank_MD[start : start + BANK_BLOCK], device)
        labels_M = bank_labels_M[start : start + BANK_BLOCK].to(device)
        for first, chunk_QD in mine:
            similarity_QK, index_QK = (chunk_QD @ block_MD.T).topk(min(max(ks), len(block_MD)), dim=1)
            label_QK = labels_M[index_QK]
            if first in nearest:
                similarity_QK = torch.cat([nearest[first][0], similarity_QK], dim=1)
                label_QK = torch.cat([nearest[first][1], label_QK], dim=1)
                similarity_QK, kept_QK = similarity_QK.topk(min(max(ks), similarity_QK.shape[1]), dim=1)
                label_QK = label_QK.gather(1, kept_QK)
            nearest[first] = similarity_QK, label_QK
    votes = {first: vote(*found, ks, classes) for first, found in nearest.items()}
    everyone = {first: found for part in processes.gather(votes) for first, found in part.items()}
    return {k: torch.cat([everyone[first][k] for first in starts]) for k in ks}


def _normalised(rows: Array, device: torch.device) -> Tensor:
    return F.normalize(torch.as_tensor(rows).to(device, torch.float64), dim=-1)


def vote(similarity_QK: Tensor, label_QK: Tensor, ks: Sequence[int], classes: int) -> dict[int, Tensor]:
    """The class with most weight among the k nearest, by k; neighbours come nearest first."""
    # Subtracting the largest similarity changes no vote and keeps the exponential finite.
    weight_QK = ((similarity_QK - similarity_QK[:, :1]) / TEMPERATURE).exp()
    predicted = {}
    for k in ks:
        votes_QC = torch.zeros(len(label_QK), classes, device=label_QK.device, dtype=weight_QK.dtype)
        votes_QC.scatter_add_(1, label_QK[:, :k], weight_QK[:, :k])
        predicted[k] = votes_QC.argmax(1).cpu()
    return predicted
