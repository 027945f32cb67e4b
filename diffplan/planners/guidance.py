"""Guidance: moves the denoised estimate towards what guides prefer, as far as the noise level leaves it open.

At noise level s (``sample = (1 - s) clean + s noise``) the clean cells, given the sample, have about the covariance

    C = s^2 / (1 - s) J^T,    J = d estimate / d sample    (Tweedie's second-order formula, arXiv 2301.11558, eq. 9),

which knows what belongs together: pulling at positions moves the actions that lead there. The guided estimate is the
mean of the Gaussian (estimate, C) times the weight exp(g):

    estimate + C u,    u = (1 + H C)^-1 gradient g.

``C g`` alone (arXiv 2209.14687, 2204.03458) overshoots where the weight is curved. How H bends the gradient along C g
is measured for every guide and cell by one more gradient a little further on: exact for Gaussians where cells do not
depend on each other, an approximation otherwise. Of a ``steady`` guide it is measured once, at the first level at which
it moves plans (nearly pure noise aside); C is taken to shrink from there as it does where the clean cells are N(0, 1).
No guide moves a cell farther than a few standard deviations of what is open. Guides that are not steady move plans one
after the other, and none to where these together like it less: a trained network's J is not exact, and guides may tie
neighbouring steps together.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffplan.datasets.normalizer import Normalizer
from diffplan.planners.guides import Estimate, Guide
from diffplan.spec import JointSpec

TRUST = 2.0  # standard deviations that one level may move a cell's entries, on average
FEW = 8  # candidates that tell a steady guide's curvature
PROBE = 0.1  # of a standard deviation: how far on the curvature is measured
HALVINGS = 5  # of a shift that would be for the worse, before none is made
WORST = -1e30  # what a log-weight that is not a number counts as
LEAST_SIGNAL = 0.05  # of 1 - s: close to pure noise J is nearly 0, and the formula nearly 0 / 0
PURE_NOISE = 0.999  # at this level and above samples tell nothing: J is 0, and no guide moves anything


class Guidance:
    """The sum of guides, as a function of a batch of normalised grids.

    Args:
        guides: what to add up.
        spec: the agents.
        normalizer: from the grids' units to physical ones.
        agent_mask: who is present, for each of B questions.
        history: cells before the present, which guides do not see.
        openness: share of their weight with which learned guides move plans, see ``action_spread.py``.
    """

    def __init__(
        self,
        guides: Sequence[Guide],
        spec: JointSpec,
        normalizer: Normalizer,
        agent_mask: Bool[Tensor, "B N"],
        history: int,
        openness: float = 1.0,
    ):
        self.guides, self.spec, self.normalizer, self.openness = guides, spec, normalizer, openness
        self.agent_mask, self.history = agent_mask, history
        self._bends: dict[int, Tensor] = {}  # of steady guides, once they moved plans: H C at a spread of 1

    def check(self, horizon: int, tried: Sequence[Guide] = ()) -> None:
        """Raises ``ValueError`` for guides whose arguments do not fit these agents, or that fail a trial.

        The trial is spared those of ``tried``, whose function and ``levels`` are taken to be as they were.
        """
        for guide in self.guides:
            guide.check(self.spec, self.normalizer, horizon)
            if not any(guide is one for one in tried):
                self._try(guide, horizon)

    def _try(self, guide: Guide, horizon: int) -> None:
        """Raises ``ValueError`` where a guide gives no proper log-weights of two made-up plans, or no gradient."""
        trial = Guidance((guide,), self.spec, self.normalizer, self.agent_mask[:1], 0)
        shape, generator = (2, self.spec.num_agents, horizon, self.spec.size), torch.Generator().manual_seed(0)
        with torch.enable_grad():
            plans = torch.randn(shape, generator=generator).to(self.agent_mask.device).requires_grad_()
            values = guide.log_weight(trial._estimate(plans, 0))
        got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        if got != (1, 2):
            raise ValueError(f"guide {guide.name!r} returns {got}, expected a tensor [B, S] = (1, 2).")
        ranks = guide.levels is None  # and may rule candidates out
        if not (torch.isfinite(values) | (ranks & (values == -torch.inf))).all():
            raise ValueError(f"guide {guide.name!r} returns numbers that are not finite for an ordinary plan.")
        if not ranks and not _depends(values, plans):
            raise ValueError(
                f"guide {guide.name!r} has no gradient; compute it from the estimate's tensors, or set levels=None."
            )

    def terms(self, clean: Float[Tensor, "BS N W D"]) -> dict[str, Float[Tensor, "B S"]]:
        """Every guide's weighted log-weight of every candidate; guides of one name add."""
        found: dict[str, Tensor] = {}
        if not self.guides:
            return found
        estimate = self._estimate(clean, self.history)
        for guide in self.guides:
            value = guide.log_weight(estimate).detach().nan_to_num(nan=WORST, neginf=WORST)
            value = (guide.weight * value).clamp(min=WORST)
            found[guide.name] = found[guide.name] + value if guide.name in found else value
        return found

    def particle_weight(self, clean: Float[Tensor, "BS N W D"], level: float) -> Float[Tensor, "B S"]:
        """Log-weight of particles at a noise level: of the guides that move plans, from where they begin to do so."""
        begun = [guide for guide in self.guides if guide.levels is not None and level <= guide.levels[1]]
        return self._sum(begun, clean).nan_to_num(nan=WORST)

    def _sum(self, guides: Sequence[Guide], clean: Float[Tensor, "BS N W D"]) -> Float[Tensor, "B S"]:
        estimate = self._estimate(clean, self.history)
        total = clean.new_zeros(estimate.normalized.shape[:2])
        for guide in guides:
            total = total + guide.weight * (self.openness if guide.learned else 1) * guide.log_weight(estimate)
        return total

    def guided(
        self,
        estimate: Callable[[Tensor, float], Tensor],
        sample: Float[Tensor, "BS N W D"],
        level: float,
        known: Bool[Tensor, "_ N W D"],
        free: Bool[Tensor, "_ N W D"],
    ) -> tuple[Float[Tensor, "BS N W D"], Float[Tensor, "BS N W D"]]:
        """The estimate of the clean cells, and the guided one (the module's equation); only ``free`` entries move."""
        moving = [index for index, guide in enumerate(self.guides) if _moves(guide, level)]
        if not moving:
            with torch.no_grad():  # inference mode would bar what the first estimate settles from later gradients
                clean = torch.where(known, sample, estimate(sample, level))
            return clean, clean
        with torch.enable_grad():
            variable = sample.clone().requires_grad_()
            traced = torch.where(known, sample, estimate(variable, level))
        clean = traced.detach()
        pulls = self._gradients(moving, clean) * free
        if not pulls.any():
            return clean, clean
        covariance = _Covariance(variable, traced, level, free)
        pushes = pulls / (1 + self._bends_of(moving, clean, pulls, covariance))
        return clean, self._pushed(moving, clean, pushes, covariance)

    def _bends_of(
        self,
        moving: Sequence[int],
        clean: Float[Tensor, "BS N W D"],
        pulls: Float[Tensor, "guides BS N W D"],
        covariance: "_Covariance",
    ) -> Float[Tensor, "guides BS N W 1"]:
        """H C of each guide: measured a little way along all pulls, of steady guides once."""
        bends = dict(self._bends)
        if fresh := [index for index in moving if index not in bends]:
            probe = covariance.times(pulls.sum(0))
            lengths = (_length(probe) / covariance.limit.clamp(min=1e-9)).flatten(1).amax(1)
            share = (PROBE / lengths.clamp(min=PROBE))[:, None, None, None]
            for index in fresh:
                bend = self._curvature(index, clean, pulls[moving.index(index)], share, probe)
                bends[index] = bend / covariance.spread**2
                if self.guides[index].steady and covariance.settled:
                    self._bends[index] = bends[index]
        return covariance.spread**2 * torch.stack([bends[index] for index in moving])

    def _pushed(
        self,
        moving: Sequence[int],
        clean: Float[Tensor, "BS N W D"],
        pushes: Float[Tensor, "guides BS N W D"],
        covariance: "_Covariance",
    ) -> Float[Tensor, "BS N W D"]:
        """Plans moved by all steady guides at once, then by each of the others in turn: were these added up, too, a
        strong one that ties neighbouring steps together would take the others' shifts with it."""
        steady, moved = [self.guides[index].steady for index in moving], clean
        if any(steady):
            moved = moved + covariance.shift(pushes[steady].sum(0))
        judges = [self.guides[index] for index in moving if not self.guides[index].steady]
        for push, one in zip(pushes, steady, strict=True):
            if not one:
                moved = moved + self._shortened(judges, moved, covariance.shift(push))
        return moved

    def _shortened(
        self, judges: Sequence[Guide], plan: Float[Tensor, "BS N W D"], shift: Float[Tensor, "BS N W D"]
    ) -> Float[Tensor, "BS N W D"]:
        """A shift of a plan, halved, at last to 0, for candidates that these guides would like less after it."""
        before = self._sum(judges, plan)
        for _ in range(HALVINGS):
            worse = (self._sum(judges, plan + shift) < before).reshape(-1, 1, 1, 1)
            if not worse.any():
                return shift
            shift = torch.where(worse, shift / 2, shift)
        return torch.where(worse, 0, shift)

    def _curvature(
        self,
        index: int,
        clean: Float[Tensor, "BS N W D"],
        pull: Float[Tensor, "BS N W D"],
        share: Float[Tensor, "BS 1 1 1"],
        probe: Float[Tensor, "BS N W D"],
    ) -> Float[Tensor, "BS N W 1"]:
        """H C of a guide along its pull, in every cell; a steady one's is that of a few candidates together."""
        B, steady = len(self.agent_mask), self.guides[index].steady
        S = len(clean) // B
        few = min(S, FEW) if steady else S
        clean, pull, share, probe = (
            part.reshape(B, S, *part.shape[1:])[:, :few].flatten(0, 1) for part in (clean, pull, share, probe)
        )
        (there,) = self._gradients([index], clean + share * probe)
        fall, size = ((pull - there) * pull).sum(-1, keepdim=True), share * pull.square().sum(-1, keepdim=True)
        if steady:
            fall, size = (part.reshape(B, few, *part.shape[1:]).sum(1).repeat_interleave(S, 0) for part in (fall, size))
        return (fall / size.clamp(min=1e-30)).clamp(min=0)

    def _gradients(self, guides: Sequence[int], clean: Float[Tensor, "BS N W D"]) -> Float[Tensor, "guides BS N W D"]:
        """Of each of these guides."""
        gradients: list[Tensor] = []
        for index in guides:
            with torch.enable_grad():
                variable = clean.clone().requires_grad_()
                total = self._sum([self.guides[index]], variable).sum()
                gradients += torch.autograd.grad(total, variable)
        return torch.stack(gradients).nan_to_num()

    def _estimate(self, clean: Float[Tensor, "BS N W D"], history: int) -> Estimate:
        future = clean[:, :, history:]
        O, shape = self.spec.observation_size, (len(self.agent_mask), -1, *future.shape[1:])
        physical = self.normalizer.unnormalize(future, self.spec.role_index).reshape(shape)
        features = torch.from_numpy(self.spec.feature_mask).to(future.device)
        physical = physical * (self.agent_mask[..., None] & features)[:, None, :, None]
        return Estimate(self.spec, physical[..., :O], physical[..., O:], future.reshape(shape), self.agent_mask)


class _Covariance:
    """C at a noise level, as a function of what it is multiplied by.

    The attribute ``spread`` is the standard deviation of what is open where clean cells are N(0, 1), ``limit`` how far
    that lets a cell move. It is ``settled`` where samples tell enough that what is measured holds at lower levels, too.
    """

    def __init__(
        self,
        sample: Float[Tensor, "BS N W D"],
        estimate: Float[Tensor, "BS N W D"],
        level: float,
        free: Bool[Tensor, "_ N W D"],
    ):
        self.sample, self.estimate, self.free = sample, estimate, free
        self.settled = 1 - level >= LEAST_SIGNAL
        self.gain = level**2 / max(1 - level, LEAST_SIGNAL)
        self.spread = level / ((1 - level) ** 2 + level**2) ** 0.5
        self.limit = self.spread * free.sum(-1, keepdim=True).sqrt()

    def times(self, pull: Float[Tensor, "BS N W D"]) -> Float[Tensor, "BS N W D"]:
        """C pull, by one more gradient through the network."""
        (moved,) = torch.autograd.grad(self.estimate, self.sample, pull, retain_graph=True)
        return (self.gain * moved * self.free).nan_to_num()

    def shift(self, push: Float[Tensor, "BS N W D"]) -> Float[Tensor, "BS N W D"]:
        """C push, no cell farther than ``TRUST`` allows."""
        way = self.times(push)
        return way * (TRUST * self.limit / _length(way).clamp(min=1e-9)).clamp(max=1)


def _length(cells: Tensor) -> Tensor:
    return cells.square().sum(-1, keepdim=True).sqrt()


def _depends(values: Tensor, plans: Tensor) -> bool:
    """Whether values have a gradient in plans."""
    with torch.enable_grad():
        return values.requires_grad and torch.autograd.grad(values.sum(), plans, allow_unused=True)[0] is not None


def check_levels(guides: Sequence[Guide], levels: Sequence[float]) -> None:
    """Raises ``ValueError`` when a guide that should move plans does so at none of the noise levels visited."""
    for guide in guides:
        if guide.levels is not None and guide.weight > 0 and not any(_moves(guide, level) for level in levels):
            visited = [round(level, 2) for level in levels if level < PURE_NOISE]
            raise ValueError(
                f"guide {guide.name!r} moves plans at noise levels {guide.levels}; {visited} are visited, beside pure "
                "noise, of which nothing can be known: take more denoising steps, widen its levels, or set levels=None "
                "to rank."
            )


def _moves(guide: Guide, level: float) -> bool:
    """Whether a guide moves plans at this level."""
    if guide.levels is None or not guide.weight > 0:
        return False
    return guide.levels[0] <= level <= guide.levels[1] and level < PURE_NOISE
