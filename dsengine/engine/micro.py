"""One step in several passes: gradients, scalars and running statistics of the whole batch, in the memory of a part of it.

    z_i = embed(part i)              without a graph; embeddings are small
    L = score(z_1, ..., z_k)         the loss of the whole batch, and its gradient dL/dz_i for every part
    z_i = embed(part i)              again, with a graph, into which dL/dz_i is pushed

Source: Gao et al., "Scaling deep contrastive learning batch size under memory limited setup" (GradCache), RepL4NLP 2021. The second
`embed` gives the numbers of the first because all that is drawn is keyed by seed, step and sample, and BatchNorm groups lie within a part.
A loss that is a mean over samples needs one round: the parts' gradients add up, and the scalars are of what was embedded on the way.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from dsengine.data.sample import Batch
from dsengine.dist import World, mean_over_ranks_
from dsengine.engine.precision import computing, ready
from dsengine.errors import UsageError
from dsengine.methods import Method
from dsengine.nn.norm import running_statistics

Scalars = dict[str, Tensor]
Backward = Callable[[Tensor], None]  # of a loss


class InPasses:
    """Callable: adds the gradients of the global batch's loss, averaged over ranks, to the parameters; gives the method's scalars."""

    def __init__(self, method: nn.Module, *, size: int, precision: str, world: World) -> None:
        """size: this rank's samples in a pass. UsageError for a method that is not made for several."""
        self.splits = type(method).forward is Method.forward
        if not self.splits and not getattr(method, "mean_over_samples", False):
            raise UsageError(f"train.micro_batch={size}: {type(method).__name__} defines forward alone; legal: leave it out, define embed and score "
                             "instead, or mean_over_samples = True where the loss is a mean over samples of what each has by itself")
        self.method, self.size, self.precision, self.world = method, size, precision, world
        self.statistics = _Statistics(method)

    def __call__(self, batch: Batch, *, backward: Backward) -> Scalars:
        """backward: fills gradients, with NaN where the loss is not finite."""
        parts = split(batch, self.size)
        if not self.splits:
            scores = self._whole_method(parts, backward)
        elif self.method.mean_over_samples:
            scores = self._one_round(batch, parts, backward)
        else:
            scores = self._two_rounds(batch, parts, backward)
        mean_over_ranks_([p.grad for p in self.method.parameters() if p.grad is not None], self.world)
        return scores

    def _whole_method(self, parts: list[Batch], backward: Backward) -> Scalars:
        """Of a method that has `forward` alone: scalars are means over parts, pictures those of the first."""
        found = []
        for part in self.statistics.over(parts):
            scores = self._run(self.method, part)
            backward(scores["loss"] / len(parts))
            found.append({name: value.detach() for name, value in scores.items()})
        return {name: torch.stack([scores[name] for scores in found]).mean(0) if value.numel() == 1 else value for name, value in found[0].items()}

    def _one_round(self, batch: Batch, parts: list[Batch], backward: Backward) -> Scalars:
        found = []
        for part in self.statistics.over(parts):
            embedded = self._run(self.method.embed, part)
            backward(self._score(embedded, part)["loss"] / len(parts))
            found.append({name: value.detach() for name, value in embedded.items()})
        with torch.no_grad():
            return self._score(_joined(found), batch)

    def _two_rounds(self, batch: Batch, parts: list[Batch], backward: Backward) -> Scalars:
        with torch.no_grad():
            found = _joined([self._run(self.method.embed, part) for part in self.statistics.over(parts)])
        leaves = {name: value.requires_grad_() for name, value in found.items() if value.is_floating_point()}
        scores = self._score(found, batch)
        backward(scores["loss"])
        for k, part in enumerate(self.statistics.over(parts, update=False)):
            embedded = self._run(self.method.embed, part)
            wanted = [name for name, leaf in leaves.items() if embedded[name].requires_grad and leaf.grad is not None]
            rows = slice(k * self.size, (k + 1) * self.size)
            torch.autograd.backward([embedded[name] for name in wanted], [leaves[name].grad[:, rows] for name in wanted])
        return scores

    def _run(self, function: Callable[[Batch], dict[str, Tensor]], part: Batch) -> dict[str, Tensor]:
        with computing(part, self.precision):
            return function(ready(self.method, part, self.precision))

    def _score(self, embedded: dict[str, Tensor], batch: Batch) -> Scalars:
        return self._run(lambda ready_batch: self.method.score(embedded, ready_batch), batch)


class _Statistics:
    """Running statistics take one update a step. What a pass makes of them is linear in its own, so the mean over passes is the whole batch's."""

    def __init__(self, method: nn.Module) -> None:
        self.running = running_statistics(method)
        self.counts = [buffer for name, buffer in method.named_buffers() if name.endswith("num_batches_tracked")]

    @torch.no_grad()  # between yields, not around the passes
    def over(self, parts: list[Batch], *, update: bool = True) -> Iterator[Batch]:
        """The parts; every pass over one begins with the statistics as they are now. After the last they are updated once, or left."""
        start, sums, counts = _clones(self.running), [torch.zeros_like(b) for b in self.running], _clones(self.counts)
        for part in parts:
            yield part
            for total, running, before in zip(sums, self.running, start, strict=True):
                total.add_(running, alpha=1 / len(parts))
                running.copy_(before)
            after = _clones(self.counts)  # as many views in every pass
            _copy_(self.counts, counts)
        if update:
            _copy_(self.running, sums)
            _copy_(self.counts, after)


def split(batch: Batch, size: int) -> list[Batch]:
    """`batch` in parts of `size` of its samples."""
    parts = [slice(start, start + size) for start in range(0, len(batch.sample_id), size)]
    return [batch._replace(views=tuple(view[part] for view in batch.views), sample_id=batch.sample_id[part],
                           label=None if batch.label is None else batch.label[part]) for part in parts]


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Embeddings (V, B / k, ...) of all parts as (V, B, ...)."""
    return {name: torch.cat([part[name] for part in parts], dim=1) for name in parts[0]}


def _clones(tensors: list[Tensor]) -> list[Tensor]:
    return [t.clone() for t in tensors]


def _copy_(targets: list[Tensor], sources: list[Tensor]) -> None:
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)
