"""The joint denoiser: a transformer over the grid agent x time that estimates the clean grid from a noisy one.

Every cell has its own noise level, 0 where it is known (diffusion forcing, arXiv 2407.01392; masks of known cells as in
MADiff, arXiv 2305.17330). One token is one agent's patch of cells; attention runs over the tokens of all agents, with a
learned bias for "same agent or another, how much earlier or later"; weights are shared by all agents, so relabelling
agents relabels the plan. What is known of an agent's present goes straight to its tokens, and by a linear map to its
estimate, where centimetres count. The noise levels modulate each token by adaptive layer norm (DiT, arXiv 2212.09748),
computed once for all blocks plus an offset of each (PixArt-alpha, arXiv 2310.00426, section 2.3); the feed-forward
layers use squared ReLU (arXiv 2109.08668), which costs a twentieth of a GELU on a CPU.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from diffusers.configuration_utils import register_to_config
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from diffplan.models.frames import Frames, PairFeatures
from diffplan.models.saved import SavedNetwork, check_heads


class JointDenoiser(SavedNetwork):
    """Estimates the clean joint trajectory from a noisy, partly known one.

    Args:
        size: D, the width of one cell (normalised observation and action).
        window: W, the number of cells of one agent (history and horizon).
        num_roles: how many kinds of agents there are.
        patch_size: cells a token; a divisor of ``window``.
        width: channels of a token.
        depth: number of blocks.
        num_heads: attention heads; a divisor of ``width``.
        agent_attention: False cuts attention to other agents (the ablation: every agent plans alone).
        prediction: ``"sample"``: the network's output is the clean sample; ``"velocity"``: it is (noise - sample).
        return_conditioning: also takes the return that a trajectory shall have (arXiv 2211.15657).
        latent_size: Z, width of what else is known of each agent (see ``PartnerEncoder``); 0: nothing.
        position: the two entries of an agent's position, if the network shall see it in the agent's own frame
            (``frames.py``); both in the same scale. Empty: as it is.
        velocity: the two entries of its velocity, likewise.
        goal: the two entries of the place where it wants to be, likewise; in the position's units.
        pace: measure every agent's own frame by how far it went a step lately: a fast one's future is a slow one's,
            larger. Only where cells hold nothing but these entries.
        neighbours: how many others an agent attends to, the nearest ones at the present; 0: all. Needs ``position``.
        history: the present's step in the window, where frames lie.
        from_present: what is known of an agent at the present goes straight to its tokens, and by a linear map to its
            estimate.
        changes: entries that are estimated as changes from the present, where that is known: positions, say. Needs
            ``from_present`` and ``prediction="sample"``.

    Raises:
        ValueError: sizes that are not positive or do not divide each other, or entries that are no pair, or none.
    """

    @register_to_config
    def __init__(
        self,
        size: int,
        window: int,
        num_roles: int = 1,
        patch_size: int = 4,
        width: int = 96,
        depth: int = 3,
        num_heads: int = 4,
        agent_attention: bool = True,
        prediction: str = "sample",
        return_conditioning: bool = False,
        latent_size: int = 0,
        position: Sequence[int] = (),
        velocity: Sequence[int] = (),
        goal: Sequence[int] = (),
        pace: bool = False,
        neighbours: int = 0,
        history: int = 0,
        from_present: bool = False,
        changes: Sequence[int] = (),
    ):
        super().__init__()
        sizes = {"size": size, "window": window, "num_roles": num_roles, "patch_size": patch_size}
        sizes |= {"width": width, "depth": depth, "num_heads": num_heads}
        if min(sizes.values()) < 1:
            raise ValueError(f"{sizes}: every one must be at least 1.")
        if window % patch_size:
            near = window // patch_size * patch_size
            raise ValueError(
                f"history + horizon = {window} is not a multiple of patch_size={patch_size}; "
                f"use {near or patch_size} or {near + patch_size}."
            )
        check_heads(width, num_heads)
        if prediction not in ("sample", "velocity"):
            raise ValueError(f"prediction={prediction!r}; choose 'sample' or 'velocity'.")
        _check_entries(size, window, neighbours, history, position=position, velocity=velocity, goal=goal)
        if pace and size != len({*position, *velocity, *goal}):
            raise ValueError(
                "pace needs frames (for_dataset(frames=True), --frames), and cells that hold nothing but position, "
                "velocity and goal; leave it out."
            )
        _check_changes(size, changes, from_present and prediction == "sample")
        self.num_tokens = window // patch_size
        self.embed_sample = nn.Linear(patch_size * size, width)
        self.embed_known = nn.Linear(patch_size * size, width, bias=False)
        self.embed_role = nn.Embedding(num_roles, width)
        self.embed_return = nn.Linear(2, width, bias=False) if return_conditioning else None
        self.embed_latent = nn.Linear(latent_size + 1, width, bias=False) if latent_size else None
        self.embed_present = nn.Linear(2 * size, width, bias=False) if from_present else None
        self.carry_present = nn.Linear(2 * size, window * size, bias=False) if from_present else None
        self.embed_time = nn.Parameter(torch.randn(self.num_tokens, width) * 0.02)
        self.level_embedding = LevelEmbedding(patch_size, width // 2)
        self.relation_bias = nn.Parameter(torch.zeros(depth, num_heads, 2, 2 * self.num_tokens - 1))
        pairs = bool(len(position)) and agent_attention
        self.pair_features = PairFeatures(patch_size, width, depth * num_heads) if pairs else None
        self.blocks = nn.ModuleList(Block(width, num_heads) for _ in range(depth))
        self.modulation = nn.Linear(width // 2, 8 * width)
        self.block_modulation = nn.Parameter(torch.zeros(depth, 6, width))
        self.project = nn.Linear(width, patch_size * size)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)
        if self.carry_present is not None:
            nn.init.zeros_(self.carry_present.weight)

    @property
    def device(self) -> torch.device:
        """Where the network is; diffusers' own property asks every module, which costs a tenth of a plan."""
        return self.embed_time.device

    def forward(
        self,
        sample: Float[Tensor, "B N W D"],
        noise_level: Float[Tensor, "_ N W"],
        known: Bool[Tensor, "_ N W D"],
        roles: Int[Tensor, "N"],
        mask: Bool[Tensor, "_ N W"] | None = None,
        target_return: Float[Tensor, "B"] | None = None,
        latents: Float[Tensor, "_ N Z"] | None = None,
        settled: "Settled | None" = None,
    ) -> Float[Tensor, "B N W D"]:
        """Estimates the clean sample.

        What is the same for the whole batch (first axis of length 1) is computed once.

        Args:
            sample: (1 - level) * clean + level * noise where unknown, clean where known, 0 where nothing exists.
            noise_level: 0 (clean) to 1 (noise), a cell; a cell that is known whole has level 0.
            known: which entries are given.
            roles: each agent's role.
            mask: which cells exist; None where all do.
            target_return: rank of the return among the data's, 0 (worst) to 1 (best); NaN or None: unconditional. Only
                with ``return_conditioning``.
            latents: what is known of each agent, NaN where nothing is; only with ``latent_size``.
            settled: what ``settle`` made of a sample of the same question, if it was asked before.
        """
        B, N, W, D = sample.shape
        T, p = self.num_tokens, self.config.patch_size
        if settled is None:
            settled = self.settle(sample, known, roles, mask, latents)
        on_map, level_on_map, frames = sample, noise_level, settled.frames
        if frames is not None:
            sample, noise_level = self._into(frames, sample, noise_level, known)
        condition = self.level_embedding(noise_level.reshape(-1, N * T, p))
        tokens = self.embed_sample(sample.reshape(B, N * T, p * D)) + settled.context
        if self.embed_return is not None and target_return is not None:
            asked = ~target_return.isnan()
            features = torch.stack((torch.where(asked, 2 * target_return - 1, 0), asked.to(sample.dtype)), dim=-1)
            tokens = tokens + self.embed_return(features)[:, None]
        shared, last = self.modulation(condition).unflatten(-1, (8, -1)).split((6, 2), dim=-2)
        modulations = shared + self.block_modulation[:, None, None]
        bias = settled.bias
        if frames is not None and self.pair_features is not None and settled.nearest is not None:
            others, seen = settled.nearest
            positions = on_map[..., self.config.position]
            of_pairs, heard = self.pair_features(frames, positions, level_on_map, others, seen)
            tokens = tokens + heard.reshape(B, N * T, -1)
            bias = bias + self._pair_bias(of_pairs, others, seen)
        for block, *settings in zip(self.blocks, bias.unbind(), modulations.unbind(), strict=True):
            tokens = block(tokens, *settings)  # unbound at once: the gradient of an index is as large as the whole
        output = self.project(modulated(tokens, *last.unbind(-2))).reshape(B, N, W, D).to(sample.dtype)
        if settled.carried is not None:
            output = output + settled.carried
        if self.config.prediction == "velocity":
            output = sample - noise_level[..., None] * output
        if frames is None:
            return output
        return self._out_of(frames, output * frames.pace[..., None, None] if self.config.pace else output)

    def settle(
        self,
        sample: Float[Tensor, "B N W D"],
        known: Bool[Tensor, "_ N W D"],
        roles: Int[Tensor, "N"],
        mask: Bool[Tensor, "_ N W"] | None = None,
        latents: Float[Tensor, "_ N Z"] | None = None,
    ) -> "Settled":
        """What all samples of a question share, at any noise level; arguments as in ``forward``.

        Of ``sample`` only known entries count: one sample is enough where these are the same in all.
        """
        B, N, W, D = sample.shape
        T = self.num_tokens
        context = self.embed_known(known.reshape(-1, N, T, W // T * D).to(sample.dtype)) + self.embed_time
        context = context + self.embed_role(roles)[:, None]
        if self.embed_latent is not None and latents is not None:
            told = ~latents.isnan().any(-1, keepdim=True)
            features = torch.cat((latents.where(told, 0), told.to(latents.dtype)), dim=-1)
            context = context + self.embed_latent(features.to(sample.dtype))[:, :, None]
        frames, nearest, carried = None, None, None
        if len(self.config.position):
            frames = self._frames(sample, known, mask)
            if self.pair_features is not None:
                nearest = frames.nearest(self.config.neighbours or N, frames.seen if mask is None else mask.any(-1))
            sample, _ = self._into(frames, sample * known, sample.new_zeros(1, N, W), known)
        if self.embed_present is not None and self.carry_present is not None:
            present = self._present(sample, known, mask)
            context = context + self.embed_present(present)[:, :, None]
            carried = self.carry_present(present).reshape(B, N, W, D).to(sample.dtype)
            carried[..., self.config.changes] += present[:, :, None, self.config.changes]
        return Settled(context.flatten(1, 2), self._attention_bias(N, mask), carried, frames, nearest)

    def _present(self, sample: Tensor, known: Tensor, mask: Tensor | None) -> Float[Tensor, "B N P"]:
        """What is known of the present, 0 elsewhere, and which of it is known."""
        now = self.config.history
        there = known[:, :, now] if mask is None else known[:, :, now] & mask[:, :, now, None]
        return torch.cat((sample[:, :, now] * there, there.to(sample.dtype).expand(len(sample), -1, -1)), dim=-1)

    def _frames(self, sample: Tensor, known: Tensor, mask: Tensor | None) -> Frames:
        place = self.config.position
        located = known[..., place].all(-1)
        return Frames.of(sample[..., place], located if mask is None else located & mask, self.config.history)

    def _into(self, frames: Frames, sample: Tensor, noise_level: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """The sample in the agents' own frames, and the noise levels that it has there."""
        sample, goal = sample.clone(), self.config.goal
        sample[..., self.config.position] = frames.enter(sample[..., self.config.position], noise_level)
        if len(goal):
            share = 1 - (noise_level * ~known[..., goal].all(-1))[..., None]
            sample[..., goal] = frames.turn(sample[..., goal] - share * frames.origin[:, :, None])
        if len(self.config.velocity):
            sample[..., self.config.velocity] = frames.turn(sample[..., self.config.velocity])
        return frames.at_own_pace(sample, noise_level) if self.config.pace else (sample, noise_level)

    def _out_of(self, frames: Frames, estimate: Tensor) -> Tensor:
        """The estimate on the map again."""
        estimate, goal = estimate.clone(), self.config.goal
        estimate[..., self.config.position] = frames.leave(estimate[..., self.config.position])
        if len(goal):
            estimate[..., goal] = frames.turn_back(estimate[..., goal]) + frames.origin[:, :, None]
        if len(self.config.velocity):
            estimate[..., self.config.velocity] = frames.turn_back(estimate[..., self.config.velocity])
        return estimate

    def _pair_bias(self, of_pairs: Tensor, others: Int[Tensor, "_ N M"], seen: Bool[Tensor, "_ N M"]) -> Tensor:
        """The pairs' biases per block and head for keys and queries: 0 for itself, -inf for whom it does not see."""
        B, N, M, T, K = of_pairs.shape
        bias = of_pairs.masked_fill(~seen[..., None, None], -torch.inf).permute(4, 0, 2, 1, 3)
        whole = bias.new_full((K, B, N, N, T), -torch.inf)
        whole = whole.scatter(2, others.mT[..., None].expand(K, B, M, N, T), bias)
        whole.diagonal(dim1=2, dim2=3).fill_(0)  # last: where few are seen, it is itself among the nearest that are not
        whole = whole.reshape(self.config.depth, -1, B, N, N * T).swapaxes(1, 2)
        return whole.repeat_interleave(T, dim=-2)

    def _attention_bias(self, N: int, mask: Bool[Tensor, "_ N W"] | None) -> Tensor:
        """What keys get to every query's score of them, per block and head: learned by relation, -inf where cut."""
        T, p = self.num_tokens, self.config.patch_size
        relation, other = _relations(N, T, self.relation_bias.device)
        bias = self.relation_bias.flatten(2)[..., relation][:, None]
        if not self.config.agent_attention:
            bias = bias.masked_fill(other, -torch.inf)
        if mask is not None:
            exists = mask.reshape(-1, 1, N * T, 1, p).any(-1)
            itself = torch.eye(N * T, dtype=torch.bool, device=bias.device)
            bias = bias.masked_fill(~(exists | itself), -torch.inf)
        return bias


class Settled(NamedTuple):
    """What all samples of a question share.

    Args:
        context: what is added to every token.
        bias: what every key gets to every query's score of it, per block and head.
        carried: what the present adds to the estimate, if it does.
        frames: of the agents, if they have any.
        nearest: whom each agent looks at (``Frames.nearest``), where frames look at each other.
    """

    context: Float[Tensor, "_ M C"]
    bias: Float[Tensor, "depth _ heads M M"]
    carried: Float[Tensor, "_ N W D"] | None
    frames: Frames | None
    nearest: tuple[Int[Tensor, "_ N M"], Bool[Tensor, "_ N M"]] | None


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # an inference tensor kept here could not be used in training
def _relations(N: int, T: int, device: torch.device) -> tuple[Int[Tensor, "M M"], Bool[Tensor, "M M"]]:
    """How keys relate to queries, as an index into (another agent, how much earlier), and which are of others."""
    agent, step = torch.arange(N * T, device=device) // T, torch.arange(N * T, device=device) % T
    other = agent[:, None] != agent
    return other * (2 * T - 1) + step - step[:, None] + T - 1, other


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def _octaves(number: int, device: torch.device, dtype: torch.dtype) -> Float[Tensor, "F"]:
    return torch.pi / 2 * 2.0 ** torch.arange(number, device=device, dtype=dtype)


class Block(nn.Module):
    """Joint attention over all agents and steps, then a feed-forward layer, each modulated by the noise level."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.query_key_value = nn.Linear(width, 3 * width)
        self.mix = nn.Linear(width, width)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)

    def forward(
        self,
        tokens: Float[Tensor, "B M C"],
        bias: Float[Tensor, "_ heads keys queries"],
        modulations: Float[Tensor, "b M 6 C"],
    ) -> Float[Tensor, "B M C"]:
        B, M, C = tokens.shape
        shift, scale, gate, shift_feed, scale_feed, gate_feed = modulations.unbind(-2)
        joined = self.query_key_value(modulated(tokens, shift, scale)).reshape(B, M, 3, self.num_heads, -1)
        query, key, value = joined.permute(2, 0, 3, 1, 4)
        scores = key @ (query * query.shape[-1] ** -0.5).mT + bias  # keys first: torch's softmax is faster so
        mixed = scores.softmax(dim=-2).mT @ value  # torch's own attention takes up to ten times as long
        tokens = torch.addcmul(tokens, gate, self.mix(mixed.transpose(1, 2).reshape(B, M, C)))
        hidden = F.relu(self.expand(modulated(tokens, shift_feed, scale_feed))).square()
        return torch.addcmul(tokens, gate_feed, self.contract(hidden))


class LevelEmbedding(nn.Module):
    """Embeds the noise levels of a token's cells: Fourier features of each, and whether it is exactly 0 (known)."""

    def __init__(self, patch_size: int, width: int, frequencies: int = 4):
        super().__init__()
        self.frequencies = frequencies
        self.enter = nn.Linear(patch_size * (2 * frequencies + 1), width)
        self.leave = nn.Linear(width, width)

    def forward(self, levels: Float[Tensor, "b M p"]) -> Float[Tensor, "b M C"]:
        phase = levels[..., None] * _octaves(self.frequencies, levels.device, levels.dtype)
        features = torch.cat((phase.sin(), phase.cos(), (levels == 0).to(levels.dtype)[..., None]), dim=-1)
        return F.silu(self.leave(F.silu(self.enter(features.flatten(2)))))


def modulated(tokens: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm with a shift and a scale of its own for every token."""
    return torch.addcmul(shift, F.layer_norm(tokens, tokens.shape[-1:]), 1 + scale)


def _check_changes(size: int, changes: Sequence[int], possible: bool) -> None:
    if len(changes) and not (possible and all(0 <= entry < size for entry in changes)):
        raise ValueError(f"changes={list(changes)}; give entries of the {size}, with from_present, of a 'sample'.")


def _check_entries(size: int, window: int, neighbours: int, history: int, **entries: Sequence[int]) -> None:
    for name, pair in entries.items():
        if len(pair) and (len(set(pair)) != 2 or not all(0 <= entry < size for entry in pair)):
            raise ValueError(f"{name}={list(pair)}; give two of the {size} entries, or none.")
    if (neighbours or len(entries["velocity"]) or len(entries["goal"])) and not len(entries["position"]):
        raise ValueError(
            "neighbours, velocity and goal need position: without it agents have no frames; for_dataset(frames=True) "
            "(--frames) gives it."
        )
    if neighbours < 0 or not 0 <= history < window:
        raise ValueError(f"neighbours={neighbours}, history={history}; expected 0 or more, and below window={window}.")
