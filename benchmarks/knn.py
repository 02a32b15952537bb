"""Seconds of the k-nearest-neighbour evaluation, without the encoder: semaim's, and a plain one.

semaim ranks by cosine similarity in float64 and breaks ties by position, block by block. The plain form is what one
writes first: `torch.cdist` in float32 and `topk`, for as many queries at a time as fit into memory.
"""

from __future__ import annotations

import argparse
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.hardware import choose
from benchmarks.timing import alternating, ratio
from semaim.core.distributed import Processes
from semaim.evaluation.knn import nearest_neighbours, vote

KS = (10, 20)
ELEMENTS = 2**28  # of a matrix of distances


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark; by default the sizes of ImageNet with ViT-B on a GPU, a hundredth on a CPU."""
    parser.add_argument("--bank", type=int, help="labelled features; default: 1281167 on a GPU, 12812 on a CPU")
    parser.add_argument("--queries", type=int, help="features to classify; default: 50000 on a GPU, 500 on a CPU")
    parser.add_argument("--width", type=int, default=768, help="of a feature")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)


def small(args: argparse.Namespace) -> None:
    """Sizes that take seconds."""
    args.bank, args.queries, args.width, args.classes, args.repeats = 200, 50, 32, 7, 2


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The results as JSON."""
    device = choose(args.device)
    cuda = device.type == "cuda"
    bank, queries = args.bank or (1_281_167 if cuda else 12_812), args.queries or (50_000 if cuda else 500)
    generator = torch.Generator().manual_seed(0)
    centres_CD = torch.randn(args.classes, args.width, generator=generator)

    def features(count: int) -> tuple[Tensor, Tensor]:
        labels = torch.randint(args.classes, (count,), generator=generator)
        return centres_CD[labels] + 3 * torch.randn(count, args.width, generator=generator), labels

    (bank_MD, labels_M), (query_QD, expected_Q) = features(bank), features(queries)
    processes = Processes(0, 1, device)
    found: dict[str, Tensor] = {}

    def ours() -> None:
        predicted = nearest_neighbours(bank_MD.numpy(), labels_M, query_QD.numpy(), KS, args.classes, processes)
        found["semaim"] = predicted[KS[0]][:, 0]

    def simple() -> None:
        found["plain"] = plain(bank_MD.to(device), labels_M.to(device), query_QD, args.classes)

    seconds = alternating({"semaim": ours, "plain": simple}, device, 1, args.repeats)
    return {
        "bank": bank,
        "queries": queries,
        "width": args.width,
        "seconds": {name: median(each) for name, each in seconds.items()},
        "times_as_fast_as_plain": ratio(seconds["plain"], seconds["semaim"]),
        "accuracy": {name: (each == expected_Q).double().mean().item() for name, each in found.items()},
        "same_class": (found["semaim"] == found["plain"]).double().mean().item(),
    }


def plain(bank_MD: Tensor, labels_M: Tensor, query_QD: Tensor, classes: int) -> Tensor:
    """Classes (Q,) of the queries by k = 10 neighbours, on the CPU."""
    bank_MD = F.normalize(bank_MD, dim=-1)
    chunk, predicted = max(1, ELEMENTS // len(bank_MD)), []
    for first in range(0, len(query_QD), chunk):
        chunk_QD = F.normalize(query_QD[first : first + chunk].to(bank_MD.device), dim=-1)
        distance_QK, index_QK = torch.cdist(chunk_QD, bank_MD).topk(max(KS), largest=False)
        similarity_QK = 1 - distance_QK.double().square() / 2
        predicted.append(vote(similarity_QK, labels_M[index_QK], KS, classes)[KS[0]][:, 0])
    return torch.cat(predicted)
