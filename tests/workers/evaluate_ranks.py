"""One rank of test_evaluate_metrics.py: counts and scores of this rank's samples, merged over ranks, to a file.

Arguments: output folder, samples of each rank (comma-separated). Rank and world size come from the environment.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor

from dsengine import dist
from dsengine.evaluate.metrics import Confusion, ScoreList

CLASSES = 5


def samples(rank: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Truth and prediction (count, 3, 3), -1 where there is no truth, and a score a sample with ties."""
    g = torch.Generator().manual_seed(rank)
    truth = torch.randint(-1, CLASSES, (count, 3, 3), generator=g)
    predicted = torch.randint(0, CLASSES, (count, 3, 3), generator=g)
    return truth, predicted, torch.randint(0, 7, (count,), generator=g) / 7


def main(out: str, sizes_text: str) -> None:
    torch.set_num_threads(1)
    sizes = [int(n) for n in sizes_text.split(",")]
    world = dist.join(torch.device("cpu"))
    truth, predicted, score = samples(world.rank, sizes[world.rank])
    counts, scores = Confusion(CLASSES), ScoreList()
    for lo in range(0, len(truth), 2):
        counts.add(predicted[lo:lo + 2], truth[lo:lo + 2])
        scores.add(truth[lo:lo + 2, 0, 0] > 1, score[lo:lo + 2])
    counts.merge(world)
    scores.merge(world)
    torch.save({"counts": counts.counts, "auc": scores.roc_auc(), "scores": {k: float(v) for k, v in counts.scores().items()},
                "kept": [torch.from_numpy(part) for part in scores.arrays()]}, Path(out) / str(world.rank))
    dist.leave(world)


if __name__ == "__main__":
    main(*sys.argv[1:])
