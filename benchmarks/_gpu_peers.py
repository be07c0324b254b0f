"""What others do, in plain form: what gpu_kernels.py measures ours beside. Written anew; the sources are named below.

Legend of shapes: N rows of a batch, a anchors of a chunk, P anchor–positive pairs; B rows, C classes, c classes of a
block, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

LossOf = Callable[[Tensor, Tensor], Tensor]  # embeddings [N, D], labels [N] → the loss


# Mining. Distances are squared Euclidean, of embeddings scaled to length 1.


def batch_hard(embeddings_ND: Tensor, labels_N: Tensor, margin: float) -> Tensor:
    """Each anchor's furthest positive and closest negative, of an N × N matrix (Hermans et al., 2017)."""
    unit_ND = F.normalize(embeddings_ND)
    with torch.no_grad():
        cos_NN = unit_ND @ unit_ND.T
        is_alike_NN = labels_N[:, None] == labels_N
        positive_N = cos_NN.masked_fill(~is_alike_NN, torch.inf).argmin(1)
        negative_N = cos_NN.masked_fill(is_alike_NN, -torch.inf).argmax(1)
        anchor_N = torch.arange(len(labels_N), device=labels_N.device)
        counts_N = (positive_N != anchor_N) & (labels_N[negative_N] != labels_N)
    return triplet_loss(unit_ND, anchor_N, positive_N, negative_N, counts_N, margin)


def a_negative_for_each_pair(
    images: int, margin: float, *, closest: bool, compile: bool = False, most_elements: int = 1 << 28
) -> LossOf:
    """A violator for each pair, of which nobody has more than ``images`` rows: anchors × (images − 1) × N numbers, for
    so many anchors at once that these stay below ``most_elements``. ``closest``: `violators`."""
    choose, loss = violators, triplet_loss
    if compile:
        choose, loss = torch.compile(choose, dynamic=False), torch.compile(loss, dynamic=False)

    def of_batch(embeddings_ND: Tensor, labels_N: Tensor) -> Tensor:
        unit_ND, rows = F.normalize(embeddings_ND), torch.arange(len(labels_N), device=labels_N.device)
        at_once = max(1, most_elements // (len(rows) * images))
        at_once = 1 << (at_once.bit_length() - 1)  # divides batches of a usual size: compiled once
        found = []
        with torch.no_grad():
            for anchor_a in rows.split(at_once):
                is_positive_aN = labels_N[anchor_a, None] == labels_N
                is_positive_aN.scatter_(1, anchor_a[:, None], False)
                row_P, positive_P = is_positive_aN.nonzero(as_tuple=True)
                chosen = choose(unit_ND, labels_N, anchor_a, row_P, positive_P, margin, closest)
                found.append((anchor_a[row_P], positive_P, *chosen))
        anchor, positive, negative, counts = (torch.cat(parts) for parts in zip(*found, strict=True))
        return loss(unit_ND, anchor, positive, negative, counts, margin)

    return of_batch


def violators(
    unit_ND: Tensor,
    labels_N: Tensor,
    anchor_a: Tensor,
    row_P: Tensor,
    positive_P: Tensor,
    margin: float,
    closest: bool,
) -> tuple[Tensor, Tensor]:
    """For each pair (anchor_a[row_P], positive_P) a negative that violates the margin, [P], and whether there is one.

    Any of them (Amos et al., 2016), or with ``closest`` the closest one that is further than the positive (Schroff et
    al., 2015).
    """
    d2_aN = 2 - 2 * unit_ND[anchor_a] @ unit_ND.T
    d2_PN, to_positive_P1 = d2_aN[row_P], d2_aN[row_P, positive_P][:, None]
    is_one_PN = (d2_PN < to_positive_P1 + margin) & (labels_N[anchor_a][row_P][:, None] != labels_N)
    if closest:
        is_one_PN &= d2_PN > to_positive_P1
        score_PN = -d2_PN
    else:
        score_PN = torch.rand_like(d2_PN)
    best_P, negative_P = score_PN.masked_fill(~is_one_PN, -torch.inf).max(1)
    return negative_P, best_P > -torch.inf


def triplet_loss(
    unit_ND: Tensor,
    anchor_T: Tensor,
    positive_T: Tensor,
    negative_T: Tensor,
    counts_T: Tensor,
    margin: float,
) -> Tensor:
    """Mean over the triplets that count of max(0, d²(a,p) − d²(a,n) + margin)."""
    anchor_TD = unit_ND[anchor_T]
    to_positive_T = (anchor_TD - unit_ND[positive_T]).square().sum(1)
    to_negative_T = (anchor_TD - unit_ND[negative_T]).square().sum(1)
    violation_T = (to_positive_T - to_negative_T + margin).clamp_min(0)
    return torch.where(counts_T, violation_T, 0).sum() / counts_T.sum().clamp_min(1)


# Heads: CosFace, cross-entropy over scale · (cosines, that of the own class less the margin).


class PeerHead(nn.Module):
    """``dtype``: of the matrix products; None for that of the embeddings and weights, which is float32 or float64."""

    weight: Tensor

    def __init__(
        self, num_classes: int, dim: int, scale: float, margin_cos: float, dtype: torch.dtype | None
    ) -> None:
        super().__init__()
        self.scale, self.margin_cos, self.dtype = scale, margin_cos, dtype
        self.weight = nn.Parameter(nn.init.normal_(torch.empty(num_classes, dim), std=0.01))


class CutCrossEntropy(PeerHead):
    """Log-sum-exp and gradient by blocks of classes, the gradient without tiles in which no entry reaches ``filter_eps``
    (Wijmans et al., "Cut Your Losses", 2024, and its code, whose threshold is 2⁻¹² for bfloat16; 0: without the filter).

    As there, embeddings and weights come to it as they are multiplied, here: normalised before, in autograd's hands.
    A tile is 128 rows × 128 classes. Classes are left out of the products where the filter leaves nothing of them, which
    costs a wait for the device at each block. Left out here: the ordering of classes by their mean logit (words of a
    vocabulary have one that lasts; people do not). Sums are kept in float32, as its option has it, not in bfloat16.
    """

    def __init__(self, *sizes: Any, filter_eps: float = 2**-12, classes_at_once: int = 1 << 15) -> None:
        super().__init__(*sizes)
        self.filter_eps, self.classes_at_once = filter_eps, classes_at_once
        self.kept: list[Tensor] = []  # of each block of the last backward pass, the share of its tiles

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        dtype = self.dtype or embeddings.dtype
        self.kept.clear()
        rows, weight = self.scale * F.normalize(embeddings), F.normalize(self.weight)
        loss: Tensor = _CutCrossEntropy.apply(rows.to(dtype), weight.to(dtype), labels, self)
        return loss


TILE = 128


class _CutCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows_BD: Tensor, weight_CD: Tensor, labels_B: Tensor, head: CutCrossEntropy
    ) -> Tensor:
        wide = torch.promote_types(rows_BD.dtype, torch.float32)
        margin = head.scale * head.margin_cos
        own_B = (rows_BD.to(wide) * weight_CD[labels_B].to(wide)).sum(1) - margin
        lse_B = torch.full_like(own_B, -torch.inf)
        for start in range(0, len(weight_CD), head.classes_at_once):
            block_cD = weight_CD[start : start + head.classes_at_once]
            logits_Bc = added_to_own(product(rows_BD, block_cD.T), labels_B - start, -margin)
            lse_B = torch.logaddexp(lse_B, logits_Bc.logsumexp(1))
        ctx.save_for_backward(rows_BD, weight_CD, labels_B, lse_B)
        ctx.head = head
        return (lse_B - own_B).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows_BD, weight_CD, labels_B, lse_B = ctx.saved_tensors
        head, dtype = ctx.head, rows_BD.dtype
        grad_rows, grad_weight = torch.zeros_like(rows_BD, dtype=lse_B.dtype), torch.zeros_like(weight_CD)
        for start in range(0, len(weight_CD), head.classes_at_once):
            block_cD = weight_CD[start : start + head.classes_at_once]
            grad_block_cD = grad_weight[start : start + head.classes_at_once]
            logits_Bc = product(rows_BD, block_cD.T)
            logits_Bc = added_to_own(logits_Bc, labels_B - start, -head.scale * head.margin_cos)
            change_Bc = added_to_own(logits_Bc.sub_(lse_B[:, None]).exp_(), labels_B - start, -1.0)
            columns: Tensor | None = None  # those that something is left of; None: all
            if head.filter_eps:
                is_kept = kept_tiles(change_Bc, head.filter_eps)
                head.kept.append(is_kept.mean(dtype=torch.float32))
                change_Bc.mul_(spread(spread(is_kept, len(change_Bc), 0), change_Bc.shape[1], 1))
                columns = spread(is_kept.any(0), change_Bc.shape[1], 0).nonzero()[:, 0]
                columns = None if len(columns) == len(block_cD) else columns
            change_Bc = change_Bc.mul_(grad / len(rows_BD)).to(dtype)
            if columns is None:
                grad_rows += product(change_Bc, block_cD)
                torch.mm(change_Bc.T, rows_BD, out=grad_block_cD)
            elif len(columns):
                change_Bc = change_Bc[:, columns]
                grad_rows += product(change_Bc, block_cD[columns])
                grad_block_cD[columns] = change_Bc.T @ rows_BD
        return grad_rows.to(dtype), grad_weight, None, None


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b, of narrow numbers in float32, as a Triton kernel has it in its accumulators."""
    if a.dtype in (torch.float32, torch.float64):
        return a @ b
    if a.is_cuda:
        wide: Tensor = torch.mm(a, b, out_dtype=torch.float32)  # type: ignore[call-overload, unused-ignore]
        return wide
    return a.float() @ b.float()


def added_to_own(values_Bc: Tensor, own_B: Tensor, amount: float) -> Tensor:
    """In place, ``amount`` more at each row's own column, where it is one of these."""
    columns = values_Bc.shape[1]
    is_here_B = (own_B >= 0) & (own_B < columns)
    return values_Bc.scatter_add_(
        1, own_B.clamp(0, columns - 1)[:, None], amount * is_here_B.to(values_Bc.dtype)[:, None]
    )


def kept_tiles(change_Bc: Tensor, filter_eps: float) -> Tensor:
    """Bool [⌈B / TILE⌉, ⌈c / TILE⌉]: the tiles with an entry that reaches the threshold."""
    rows, columns = change_Bc.shape
    padded = F.pad(change_Bc.abs(), (0, -columns % TILE, 0, -rows % TILE))
    return padded.view(-(-rows // TILE), TILE, -1, TILE).amax((1, 3)) >= filter_eps


def spread(of_tiles: Tensor, size: int, dim: int) -> Tensor:
    """What holds for tiles as it holds for each of the ``size`` rows or columns in them."""
    return of_tiles.repeat_interleave(TILE, dim).narrow(dim, 0, size)


class PartialFC(PeerHead):
    """All logits of all classes, or of those of the batch and random others (An et al., "Partial FC", 2021; "Killing Two
    Birds with One Stone", 2022): insightface's second version on one GPU, whose gradient is that of all weights.

    Cosines under autocast, here of bfloat16, which needs no scaling of the loss, for float16.
    """

    def __init__(self, *sizes: Any, rate: float = 1.0) -> None:
        super().__init__(*sizes)
        self.rate = rate

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        weight = self.weight
        if self.rate < 1:
            classes_S, labels = self.sampled(labels)
            weight = self.taken(classes_S)
        with torch.autocast(embeddings.device.type, self.dtype, enabled=self.dtype is not None):
            cos_BS = F.linear(F.normalize(embeddings), F.normalize(weight))
        if self.dtype is not None:
            cos_BS = cos_BS.float()
        cos_BS = cos_BS.clamp(-1, 1)
        logits_BS = added_to_own(cos_BS, labels, -self.margin_cos).mul_(self.scale)
        loss: Tensor = _SoftmaxCrossEntropy.apply(logits_BS, labels)
        return loss

    @torch.no_grad()
    def sampled(self, labels_B: Tensor) -> tuple[Tensor, Tensor]:
        """The classes of this step, ascending, and where among them the rows' own are."""
        own, count = labels_B.unique(), int(self.rate * len(self.weight))
        if count >= len(own):
            chance_C = torch.rand(len(self.weight), device=labels_B.device)
            chance_C[own] = 2.0
            own = chance_C.topk(count).indices.sort().values
        return own, torch.searchsorted(own, labels_B)

    def taken(self, classes_S: Tensor) -> Tensor:
        return self.weight[classes_S]


class CopyingPartialFC(PartialFC):
    """Its first version, with an optimiser of its own: SGD on a copy of the sampled rows and of their momentum, both
    copied back."""

    def __init__(self, *sizes: Any, **how: Any) -> None:
        super().__init__(*sizes, **how)
        weight = self.weight.detach()
        del self.weight
        self.register_buffer("weight", weight)  # no parameter: its rows are
        self.register_buffer("momentum", torch.zeros_like(weight))
        self.momentum: Tensor
        self.classes_S, self.part = torch.empty(0), nn.Parameter(torch.empty(0))

    def taken(self, classes_S: Tensor) -> Tensor:
        self.classes_S, self.part = classes_S, nn.Parameter(self.weight[classes_S])
        return self.part

    @torch.no_grad()
    def step(self) -> None:
        part = self.part
        sgd = torch.optim.SGD([part], lr=0.1, momentum=0.9, weight_decay=5e-4, fused=True)
        sgd.state[part]["momentum_buffer"] = self.momentum[self.classes_S]
        sgd.step()
        self.weight[self.classes_S] = part
        self.momentum[self.classes_S] = sgd.state[part]["momentum_buffer"]


class _SoftmaxCrossEntropy(torch.autograd.Function):
    """In place of its logits, which nothing else needs any more."""

    @staticmethod
    def forward(ctx: Any, logits_BS: Tensor, labels_B: Tensor) -> Tensor:
        logits_BS.sub_(logits_BS.amax(1, keepdim=True)).exp_()
        shares_BS = logits_BS.div_(logits_BS.sum(1, keepdim=True))
        ctx.save_for_backward(shares_BS, labels_B)
        return -shares_BS.gather(1, labels_B[:, None]).clamp_min(1e-30).log().mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        shares_BS, labels_B = ctx.saved_tensors
        return added_to_own(shares_BS, labels_B, -1.0).mul_(grad / len(labels_B)), None
