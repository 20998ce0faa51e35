"""The toy model with a pseudo-head: its data, losses and their gradients, for many instances.

Elhage et al. (2022), "Toy Models of Superposition", with the pseudo-head of "Singular Vectors of
Attention Heads Align with Features" (arXiv 2602.13524). Of each instance, with x a row of the batch
(a column here) and h = W x:

- x_i = 0 with probability 1 − p, else uniform on [0, 1];
- x' = ReLU(Wᵀ h + b), L₁ = mean over rows and features of I_i (x_i − x'_i)²;
- for a query h and a key g, the logit ℓ = hᵀ Aᵀ B g and the target s, which is Σ_t weight_t x_i y_j
  ("product", "softmax") or Σ_t weight_t 1[x_i > 0] 1[y_j > 0] ("indicator"), with (i, j) target t;
- "product" and "indicator": L₂ = mean over pairs of (s − ℓ)²;
- "softmax": each query is held against ``n_keys`` keys, and L₂ = mean over queries of the cross
  entropy −Σ_k softmax(s)_k log softmax(ℓ)_k of the head's attention with that of the targets, as
  arXiv 2602.13524 has it (template logits, cross entropy of the two attentions; the paper's size of
  a context is not known here). It is smallest where ℓ is s up to a number for each query, and then
  the entropy of softmax(s), not 0. ``n_keys`` consecutive queries share their keys, as the tokens
  of one context do.

In memory the queries (even rows) of a batch come before its keys (odd rows). Gradients are written
out, since building a graph takes longer than these small products.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qk_taxonomy.studies.superposition.config import Phase, SuperpositionConfig, Target


@dataclass(frozen=True, eq=False)
class Parameters:
    """Views of the parameters of I instances, or of their gradients.

    ``representation`` and ``head`` are flat and hold w (I, m, n) and bias (I, n); a and b
    (I, r, m).
    """

    representation: Tensor
    head: Tensor
    w: Tensor
    bias: Tensor
    a: Tensor
    b: Tensor

    @classmethod
    def zeros(cls, config: SuperpositionConfig, n_instances: int) -> Parameters:
        n, m, r = config.n_features, config.d_hidden, config.d_head
        representation = torch.zeros(n_instances * (m * n + n))
        head = torch.zeros(2 * n_instances * r * m)
        w, bias = representation.split([n_instances * m * n, n_instances * n])
        a, b = head.chunk(2)
        return cls(
            representation,
            head,
            w.view(n_instances, m, n),
            bias.view(n_instances, n),
            a.view(n_instances, r, m),
            b.view(n_instances, r, m),
        )


def initialise(parameters: Parameters, head_scale: float, seed: int) -> None:
    """Fill parameters in place as training starts, alike for all instances.

    W is normal with variance 2 / (rows + columns) (Glorot & Bengio 2010, for each instance's own
    matrix), A and B likewise and then times ``head_scale``, b is 0. W is that of the seed whatever
    the size of the head.
    """
    generator = torch.Generator().manual_seed(2 * seed)
    scales = (1.0, head_scale, head_scale)
    for matrix, scale in zip((parameters.w, parameters.a, parameters.b), scales, strict=True):
        rows, columns = matrix.shape[1:]
        drawn = torch.randn(rows, columns, generator=generator)
        matrix.copy_(drawn * (scale * (2 / (rows + columns)) ** 0.5))
    parameters.bias.zero_()


class Batches:
    """The batches of one seed, for several probabilities: the same draws u, of uniform numbers.

    x = ReLU(1 − u / p) is 0 with probability 1 − p and else uniform, so that a feature which is
    there at one p is there at every higher one: instances of a seed differ by p alone.
    """

    def __init__(self, config: SuperpositionConfig, probabilities: list[float], seed: int) -> None:
        self.generator = torch.Generator().manual_seed(2 * seed + 1)
        self._p = torch.tensor(probabilities)[:, None, None]
        self._slope = -1 / self._p
        self._groups = config.groups
        self._u = torch.empty(config.n_features, config.batch_size)
        self._x = torch.empty(len(probabilities), config.n_features, config.batch_size)

    def draw(self) -> Tensor:
        """The next batch, (probabilities, n, batch), queries before keys; until the next draw."""
        u = torch.rand(self._u.shape, generator=self.generator, out=self._u)
        x = torch.mul(u, self._slope, out=self._x).add_(1).relu_()
        for first, *others in self._groups:
            # Whether they occur is the first one's draw; how strong they are is their own.
            x[:, others] = torch.where(u[first] < self._p, u[others], 0.0)
        return x


@dataclass(frozen=True, eq=False)
class TargetPairs:
    """The targets of I instances: i, j and weight (I, t); weight 0 where one has fewer."""

    i: Tensor
    j: Tensor
    weight: Tensor

    @classmethod
    def of(cls, targets: tuple[tuple[Target, ...], ...]) -> TargetPairs:
        most = max(1, *(len(each) for each in targets))
        padded = [each + (Target(0, 0, 0.0),) * (most - len(each)) for each in targets]
        i, j, weight = (
            [[getattr(target, part) for target in each] for each in padded]
            for part in ("i", "j", "weight")
        )
        return cls(torch.tensor(i), torch.tensor(j), torch.tensor(weight))

    def features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features i of the queries and j of the keys, (I, t, pairs) each."""
        instances = torch.arange(len(x))[:, None]
        n_pairs = x.shape[-1] // 2
        return x[instances, self.i, :n_pairs], x[instances, self.j, n_pairs:]


class Objective:
    """The losses of I instances on a batch, and the gradients of L₁ + pair_weight · L₂.

    In the phase "representations" the gradients are those of L₁ by W and b, in "heads" those of
    pair_weight · L₂ by A and B.
    """

    def __init__(self, config: SuperpositionConfig, n_instances: int) -> None:
        self._form = config.target_form
        self._n_keys = config.n_keys
        self._pair_weight = config.pair_weight
        importance = config.importance_decay ** torch.arange(config.n_features)
        n_entries = config.n_features * config.batch_size
        self._scale = (2 * importance / n_entries).view(-1, 1)
        # Kept from batch to batch: threads that allocate this much anew wait for the system.
        self._h, self._dh = torch.empty(2, n_instances, config.d_hidden, config.batch_size)
        self._found, self._error, self._slope = torch.empty(
            3, n_instances, config.n_features, config.batch_size
        )

    def __call__(
        self,
        parameters: Parameters,
        gradients: Parameters,
        x: Tensor,
        targets: TargetPairs | None,
        phase: Phase,
    ) -> Tensor:
        """Losses L₁ and L₂ (2, I) at ``parameters``; writes to ``gradients`` what is trained.

        x: (I, n, batch). L₂ is nan without targets, as it is in the phase "representations" only.
        """
        h = torch.bmm(parameters.w, x, out=self._h)
        bias = parameters.bias[..., None]
        found = torch.baddbmm(bias, parameters.w.mT, h, out=self._found).relu_()
        error = torch.sub(found, x, out=self._error)
        slope = torch.mul(error, self._scale, out=self._slope)
        # The sum of products of each instance, as products of a row with a column: the fastest.
        squares = torch.bmm(error.flatten(1)[:, None], slope.flatten(1)[..., None])
        reconstruction = squares.flatten() / 2
        pairs = torch.full_like(reconstruction, torch.nan)
        if targets is not None:
            queries, keys = h.tensor_split(2, dim=-1)
            a, b = torch.bmm(parameters.a, queries), torch.bmm(parameters.b, keys)
            pairs, da, db = self._pairs(a, b, x, targets)
        if phase != "representations":
            torch.bmm(da, queries.mT, out=gradients.a)
            torch.bmm(db, keys.mT, out=gradients.b)
        if phase != "heads":
            slope *= found.sign_()
            torch.sum(slope, dim=-1, out=gradients.bias)
            dh = torch.bmm(parameters.w, slope, out=self._dh)
            if phase == "joint":
                of_queries, of_keys = dh.tensor_split(2, dim=-1)
                of_queries.baddbmm_(parameters.a.mT, da)
                of_keys.baddbmm_(parameters.b.mT, db)
            torch.bmm(h, slope.mT, out=gradients.w)
            gradients.w.baddbmm_(dh, x.mT)
        return torch.stack([reconstruction, pairs])

    def _pairs(
        self, a: Tensor, b: Tensor, x: Tensor, targets: TargetPairs
    ) -> tuple[Tensor, Tensor, Tensor]:
        """L₂ (I,), and the gradients of pair_weight · L₂ by a = A h and b = B g, (I, r, pairs)."""
        of_queries, of_keys = targets.features(x)
        if self._form == "indicator":
            of_queries, of_keys = of_queries.sign(), of_keys.sign()
        of_queries = of_queries * targets.weight[..., None]
        n_pairs = a.shape[-1]
        if self._form == "softmax":
            n_sets = n_pairs // self._n_keys
            a_sets, b_sets, s, y = (
                part.unflatten(-1, (n_sets, self._n_keys)).movedim(-2, 1)
                for part in (a, b, of_queries, of_keys)
            )
            attention = (a_sets.mT @ b_sets).log_softmax(-1)
            wanted = (s.mT @ y).softmax(-1)
            loss = -(wanted * attention).sum((1, 2, 3)) / n_pairs
            slope = (attention.exp() - wanted) * (self._pair_weight / n_pairs)
            da = (b_sets @ slope.mT).movedim(1, -2).flatten(-2)
            db = (a_sets @ slope).movedim(1, -2).flatten(-2)
            return loss, da, db
        error = (a * b).sum(1) - (of_queries * of_keys).sum(1)
        slope = (error * (2 * self._pair_weight / n_pairs))[:, None]
        return error.square().mean(-1), b * slope, a * slope
