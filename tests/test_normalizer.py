"""The normalizer brings every entry to a common size, by role, and back."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline

from diffplan.datasets import normalizer as normalizer_module
from diffplan.datasets.normalizer import KINDS, Normalizer
from diffplan.datasets.statistics import Statistics
from diffplan.datasets.store import TrajectoryStore
from diffplan.spec import JointSpec, Role
from diffplan.trajectory import Trajectory

SPEC = JointSpec(
    {"arm_0": "arm", "cart": "cart", "arm_1": "arm"},
    {"arm": Role(3, (-1.0, -1.0), (1.0, 1.0)), "cart": Role(2, (-2.0,), (2.0,))},
    dt=0.1,
)
ARM, CART = 0, 1
CONSTANT = 0.1  # not exactly a binary fraction


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> TrajectoryStore:
    """Three shards; arm_1 is absent from step 20 on, where its numbers are wild; an arm's entry 2 is constant."""
    rng = np.random.default_rng(0)
    made = TrajectoryStore.create(tmp_path_factory.mktemp("normalizer"), SPEC)
    for shard in range(3):
        episodes = []
        for length in (30, 41, 50):
            observations = rng.normal(3.0, 2.0, size=(length + 1, 3, 3)).astype(np.float32)
            observations[:, :, 1] += 1e4  # far from 0: float32 sums would be off
            observations[:, ::2, 2] = CONSTANT
            agent_mask = np.ones((length + 1, 3), bool)
            agent_mask[20:, 2] = False
            observations[20:, 2] = 1e6
            actions = rng.uniform(-1, 1 + shard, size=(length, 3, 2)).astype(np.float32)
            actions[19:, 2] = -1e6
            flags = np.zeros((length, 3), bool)
            episodes.append(Trajectory(SPEC, observations, actions, flags.astype(np.float32), flags, flags, agent_mask))
        made.append(episodes)
    return made


def present(store: TrajectoryStore, episodes: list[int] | None = None) -> list[np.ndarray]:
    """All cells of each role, NaN where an entry does not exist, in float64."""
    cells = [[], []]
    for one in store if episodes is None else (store[i] for i in episodes):
        for agent in range(3):
            width = SPEC.role_of(SPEC.names[agent])
            rows = np.full((len(one) + 1, 5), np.nan)
            rows[:, : width.observation_size] = one.observations[:, agent, : width.observation_size]
            rows[:-1, 3 : 3 + width.action_size] = one.actions[:, agent, : width.action_size]
            rows[:-1, 3:][~one.agent_mask[1:, agent]] = np.nan
            cells[SPEC.role_index[agent]].append(rows[one.agent_mask[:, agent]])
    return [np.concatenate(role) for role in cells]


@pytest.mark.parametrize("episodes", [None, [1, 5, 8]])
def test_statistics_are_those_of_what_exists(store, episodes):
    for role, cells in enumerate(present(store, episodes)):
        varies = ~np.isnan(cells).all(0)
        if role == ARM:
            varies[2] = False
        least, greatest = np.nanmin(cells[:, varies], 0), np.nanmax(cells[:, varies], 0)
        low, high = np.nanquantile(cells[:, varies], (0.01, 0.99), axis=0)
        expected = {
            "limits": ((least + greatest) / 2, (greatest - least) / 2),
            "gaussian": (np.nanmean(cells[:, varies], 0), np.nanstd(cells[:, varies], 0)),
            "quantile": ((low + high) / 2, (high - low) / 2),
        }
        for kind, (center, scale) in expected.items():
            config = Normalizer.fit(store, kind, episodes).config
            np.testing.assert_allclose(np.array(config.center)[role, varies], center, rtol=1e-12)
            np.testing.assert_allclose(np.array(config.scale)[role, varies], scale, rtol=1e-9)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "motion"])  # which needs positions
def test_constant_and_missing_entries_have_scale_one_and_map_to_zero(store, kind):
    normalizer = Normalizer.fit(store, kind)
    center, scale = np.array(normalizer.config.center), np.array(normalizer.config.scale)
    assert scale[ARM, 2] == 1.0 and scale[CART, [2, 4]].tolist() == [1.0, 1.0]
    assert center[CART, [2, 4]].tolist() == [0.0, 0.0]
    cells = np.zeros((3, 1, 5), np.float32)
    cells[::2, :, 2] = CONSTANT
    normal = normalizer.normalize(cells, SPEC.role_index)
    assert normal[0, 0, 2] == normal[2, 0, 2] == 0.0
    assert normalizer.unnormalize(normal, SPEC.role_index)[0, 0, 2] == np.float32(CONSTANT)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "motion"])
def test_a_column_that_varies_by_rounding_alone_is_constant(tmp_path, kind):
    rng, spec = np.random.default_rng(0), JointSpec({"a": "robot"}, {"robot": Role(4, (-1.0,), (1.0,))})
    columns = [0.3 + 1e-7 * rng.normal(size=50), 1e-8 * rng.normal(size=50), 5e5 + rng.normal(size=50), np.zeros(50)]
    flags, observations = np.zeros((49, 1), bool), np.stack(columns, 1)[:, None].astype(np.float32)
    there = np.ones((50, 1), bool)
    steps = (np.zeros((49, 1, 1), np.float32), np.zeros((49, 1), np.float32), flags, flags, there)
    made = TrajectoryStore.write(tmp_path / "store", spec, "", [Trajectory(spec, observations, *steps)])
    scale = np.array(Normalizer.fit(made, kind).config.scale)[0]
    assert (scale[[0, 1, 3]] == 1).all() and 0.5 < scale[2] < 3
    assert Statistics.of(spec, made).report()["constant"][:3] == [f"robot observation[{i}]" for i in (0, 1, 3)]


def test_a_small_chunk_gives_the_same_statistics(store, monkeypatch):
    whole = Normalizer.fit(store, "gaussian").config
    monkeypatch.setattr(normalizer_module, "_CHUNK_BYTES", 4 * 3 * 5 * 7)
    pieces = Normalizer.fit(store, "gaussian").config
    np.testing.assert_allclose(pieces.center, whole.center, rtol=1e-12)
    np.testing.assert_allclose(pieces.scale, whole.scale, rtol=1e-9)


def test_quantiles_of_a_large_store_are_of_a_sample(store, monkeypatch):
    whole = Normalizer.fit(store, "quantile").config
    monkeypatch.setattr(normalizer_module, "_SAMPLE_ROWS", 300)
    sample = Normalizer.fit(store, "quantile").config
    assert sample.scale != whole.scale
    np.testing.assert_allclose(sample.scale, whole.scale, rtol=0.2)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "motion"])  # which needs positions
@pytest.mark.parametrize("batch", [(), (7,), (2, 7)])
def test_numpy_and_torch_agree_and_return(store, kind, batch):
    normalizer = Normalizer.fit(store, kind)
    cells = np.random.default_rng(0).normal(3.0, 2.0, size=(*batch, 3, 4, 5)).astype(np.float32)
    normal = normalizer.normalize(cells, SPEC.role_index)
    tensor = normalizer.normalize(torch.from_numpy(cells), torch.from_numpy(SPEC.role_index))
    assert normal.dtype == np.float32 and tensor.dtype == torch.float32
    np.testing.assert_allclose(tensor.numpy(), normal, rtol=1e-6)
    for back in (
        normalizer.unnormalize(normal, SPEC.role_index),
        normalizer.unnormalize(tensor, SPEC.role_index).numpy(),
    ):
        error = np.abs(back - cells)
        assert error[..., [0, 2, 3, 4]].max() < 1e-5  # entry 1 lies around 1e4, where float32 ends at 1e-3
        assert error[..., 1].max() < 2e-3


def test_limits_span_minus_one_to_one(store):
    normalizer = Normalizer.fit(store, "limits")
    for role, cells in enumerate(present(store)):
        stacked = np.nan_to_num(cells).astype(np.float32)[None].repeat(3, 0)
        normal = normalizer.normalize(stacked, SPEC.role_index)[list(SPEC.role_index).index(role)]
        normal = normal[:, [0, 3]][~np.isnan(cells[:, [0, 3]])]
        assert np.abs(normal).max() == pytest.approx(1.0, abs=1e-6)


def test_gradients_flow_through(store):
    normalizer = Normalizer.fit(store, "limits")
    cells = torch.zeros(3, 1, 5, requires_grad=True)
    normalizer.unnormalize(cells, SPEC.role_index).sum().backward()
    scale = np.array(normalizer.config.scale)[SPEC.role_index][:, None]
    np.testing.assert_allclose(cells.grad.numpy(), scale, rtol=1e-6)


class Pipeline(DiffusionPipeline):
    def __init__(self, scheduler, normalizer):
        super().__init__()
        self.register_modules(scheduler=scheduler, normalizer=normalizer)


def test_a_pipeline_saves_it_bit_for_bit_and_bfloat16_does_not_touch_it(store, tmp_path):
    normalizer = Normalizer.fit(store, "gaussian")
    Pipeline(DDIMScheduler(), normalizer).save_pretrained(tmp_path)
    loaded = Pipeline.from_pretrained(tmp_path).to(torch.bfloat16).normalizer
    assert isinstance(loaded, Normalizer)
    assert loaded.config.center == normalizer.config.center and loaded.config.scale == normalizer.config.scale
    cells = torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(0))
    before, after = (one.normalize(cells, SPEC.role_index) for one in (normalizer, loaded))
    assert torch.equal(before, after) and after.dtype == torch.float32
    assert (tmp_path / "normalizer" / "normalizer_config.json").exists()


@pytest.mark.parametrize(
    ("kind", "center", "scale", "message"),
    [
        ("minmax", [[0.0]], [[1.0]], "kind='minmax'; choose one of"),
        ("limits", [[0.0, 1.0]], [[1.0]], r"center has shape \(1, 2\), scale \(1, 1\)"),
        ("limits", [[0.0]], [[0.0]], "scale finite and positive"),
        ("limits", [[0.0]], [[float("inf")]], "scale finite and positive"),
        ("limits", [[float("nan")]], [[1.0]], "center must be finite"),
    ],
)
def test_statistics_that_cannot_be_are_refused(kind, center, scale, message):
    with pytest.raises(ValueError, match=message):
        Normalizer(kind, center, scale)


def test_what_does_not_fit_is_refused(store):
    normalizer = Normalizer.fit(store)
    with pytest.raises(ValueError, match="cells have 4 entries, the normalizer 5"):
        normalizer.normalize(np.zeros((3, 2, 4), np.float32), SPEC.role_index)
    with pytest.raises(ValueError, match="kind='minmax'; choose one of"):
        Normalizer.fit(store, "minmax")
    with pytest.raises(ValueError, match=r"episodes 9\.\.9 chosen, but .* has 0\.\.8"):
        Normalizer.fit(store, episodes=[9])
