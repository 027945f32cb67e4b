"""A few futures that stand for many: clusters of a plan's samples."""

import dataclasses
import warnings

import numpy as np
from scipy.cluster.vq import kmeans2

from diffplan.trajectory import Plan

COMPONENTS = 8  # principal components of the samples in which futures differ


def representatives(plan: Plan, count: int, *, per_agent: bool = False, seed: int = 0) -> Plan:
    """``count`` futures that stand for all samples of a plan, the one that stands for most first.

    Samples are clustered by where the agents are planned to be (k-means, by which Y-net chooses goals, arXiv
    2012.01526); each future is the mean of a cluster, so best-of-``count`` errors are far below those of as many
    samples. Both are done in the samples' first principal components: what a few samples say beyond these is mostly
    chance.

    Args:
        plan: of many samples, of agents that have a position.
        count: how many futures, at most as many as samples.
        per_agent: cluster each agent's futures by themselves. Then futures of one index are no joint future: what
            agents do together is lost, and only errors of single agents fall further.
        seed: of the clusters' beginnings.

    Raises:
        ValueError: fewer samples than futures, or an agent without a position.
    """
    if not 1 <= count <= plan.num_samples:
        raise ValueError(f"count={count} futures of a plan of {plan.num_samples} samples; plan with more num_samples.")
    present = np.flatnonzero(plan.agent_mask).tolist()
    paths = {agent: plan.positions(plan.spec.names[agent]).reshape(plan.num_samples, -1) for agent in present}
    groups = [[agent] for agent in present] if per_agent else [present]
    observations, actions = (np.repeat(part[:1], count, 0) for part in (plan.observations, plan.actions))
    for group in groups:
        features = np.concatenate([paths[agent] for agent in group], axis=1).astype(np.float64)
        components, spread, _ = np.linalg.svd(features - features.mean(0), full_matrices=False)
        kept = (spread > 1e-6 * spread[0]) & (np.arange(len(spread)) < COMPONENTS)
        label, sizes = _clusters(components[:, kept] * spread[kept], count, seed)
        share = (label == np.arange(count)[:, None]) / sizes[:, None]
        share = 1 / plan.num_samples + share @ components[:, kept] @ components[:, kept].T
        for out, part in ((observations, plan.observations), (actions, plan.actions)):
            out[:, group] = np.tensordot(share, part[:, group], 1)
    futures = dataclasses.replace(plan, observations=observations, actions=actions, values=None, terms={}, chain=None)
    return futures if per_agent else futures.with_term("share", np.log(sizes / plan.num_samples).astype(np.float32))


def _clusters(points: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Which cluster each point belongs to, the largest first, and how many each has; none is empty."""
    distinct, label = np.unique(points, axis=0, return_inverse=True)
    if len(distinct) > count:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # an empty cluster; it is filled below
            _, label = kmeans2(points, count, minit="++", rng=seed)
    sizes = np.bincount(label, minlength=count)
    for empty in np.flatnonzero(sizes == 0):  # takes one of the most
        taken = np.flatnonzero(label == sizes.argmax())[-1]
        sizes[label[taken]] -= 1
        label[taken], sizes[empty] = empty, 1
    order = np.argsort(-sizes, kind="stable")
    return np.argsort(order)[label], sizes[order]
