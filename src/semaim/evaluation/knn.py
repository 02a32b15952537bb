"""The k-nearest-neighbour classifier on features.

Shapes: M features of the bank, Q queries, D width, K neighbours, C classes, R = min(5, C).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from semaim.core.distributed import Processes
from semaim.core.formatting import plural
from semaim.errors import UserError
from semaim.evaluation.accuracy import Predictions, likeliest
from semaim.evaluation.features import Array, Features

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

    Uses cosine similarity; each of the k nearest votes for its class with weight exp(similarity / 0.07). The bank is
    read once, block by block, and processes share the queries. Everything is computed in float64: features of a network
    are often so similar that in float32 many similarities are equal, and rounding decides which are nearest. Ties are
    broken by position in the bank, the first wins.

    Args:
        bank_MD, bank_labels_M: labelled features, in memory or mapped from a file.
        query_QD: features to classify, likewise.
        ks: numbers of neighbours.
        classes: C.
        processes: the processes that share the work; each computes on its own device.

    Returns:
        classes with the largest votes (Q, R) on the CPU, by k: see `vote`.

    Raises:
        UserError: if the bank has fewer images than the largest k.
    """
    if max(ks) > len(bank_MD):
        raise UserError(
            f"k={max(ks)} neighbours asked for, but there are {plural(len(bank_MD), 'labelled image')}: lower ks"
        )
    device = processes.device
    starts = range(0, len(query_QD), QUERY_CHUNK)
    # A process gets whole chunks, so that each chunk is computed as by a single process.
    chunks = [
        (first, _normalise(query_QD[first : first + QUERY_CHUNK], device))
        for first in starts[processes.rank :: processes.world_size]
    ]
    index_bits = len(bank_MD).bit_length()
    nearest: dict[int, Tensor] = {}
    for start in range(0, len(bank_MD), BANK_BLOCK):
        block_MD = _normalise(bank_MD[start : start + BANK_BLOCK], device)
        reversed_M = len(bank_MD) - torch.arange(start, start + len(block_MD), device=device)
        for first, chunk_QD in chunks:
            # Similarity and reversed position in the bank, packed in one integer: the first of equals ranks higher.
            key_QM = ((chunk_QD @ block_MD.T) * 2.0 ** (61 - index_bits)).round().long() * 2**index_bits + reversed_M
            if first in nearest:
                key_QM = torch.cat([nearest[first], key_QM], dim=1)
            nearest[first] = key_QM.topk(min(max(ks), key_QM.shape[1]), dim=1).values
    votes = {
        first: vote(*_unpack(key_QK, bank_labels_M.to(device), index_bits), ks, classes)
        for first, key_QK in nearest.items()
    }
    merged = {first: predicted for part in processes.gather(votes) for first, predicted in part.items()}
    return {k: torch.cat([merged[first][k] for first in starts]) for k in ks}


def _unpack(key_QK: Tensor, labels_M: Tensor, index_bits: int) -> tuple[Tensor, Tensor]:
    """Unpack similarities and labels from keys."""
    reversed_QK = key_QK & (2**index_bits - 1)
    similarity_QK = (key_QK - reversed_QK).double() / 2.0**61
    return similarity_QK, labels_M[len(labels_M) - reversed_QK]


def _normalise(rows: Array, device: torch.device) -> Tensor:
    return F.normalize(torch.as_tensor(rows).to(device, torch.float64), dim=-1)


def vote(similarity_QK: Tensor, label_QK: Tensor, ks: Sequence[int], classes: int) -> dict[int, Tensor]:
    """The classes (Q, R) with the largest weights among the k nearest, by k; -1 in place of a class without a vote.

    Neighbours are sorted, nearest first.
    """
    # Subtracting the largest similarity changes no vote and keeps the exponential finite.
    weight_QK = ((similarity_QK - similarity_QK[:, :1]) / TEMPERATURE).exp()
    predicted = {}
    for k in ks:
        votes_QC = torch.zeros(len(label_QK), classes, device=label_QK.device, dtype=weight_QK.dtype)
        votes_QC.scatter_add_(1, label_QK[:, :k], weight_QK[:, :k])
        ranked_QR = likeliest(votes_QC)
        predicted[k] = ranked_QR.where(votes_QC.gather(1, ranked_QR) > 0, -1).cpu()
    return predicted


def check_ks(ks: Sequence[int]) -> list[int]:
    """The numbers of neighbours as a list; raises UserError if one is not positive."""
    if not ks or min(ks) < 1:
        raise UserError(f"ks={list(ks)} must be positive numbers of neighbours")
    return list(ks)


def classify(
    bank: Features, queries: Features, ks: Sequence[int], classes: Sequence[str], processes: Processes
) -> dict[str, Predictions]:
    """k-NN predictions for each kind of feature: keys `knn_<k>_<kind>`."""
    predictions: dict[str, Predictions] = {}
    for kind in bank.by_kind:
        predicted = nearest_neighbours(
            bank.by_kind[kind], bank.labels_M, queries.by_kind[kind], ks, len(classes), processes
        )
        predictions |= {f"knn_{k}_{kind}": Predictions.ranked(predicted[k], queries.labels_M, classes) for k in ks}
    return predictions
