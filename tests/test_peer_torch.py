"""The PyTorch peers of the benchmark: they must take the recorded steps too, or win by error."""

import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load_config_file
from reference_trace import Trace, encoder_to_ours, predictor_to_ours

from jepa_jax.config import resolve

torch = pytest.importorskip("torch", reason="needs: pip install -r requirements-interop.txt")
torch_ijepa = pytest.importorskip("benchmarks.torch_ijepa")

BUNDLED = pathlib.Path(__file__).parent / "data" / "reference_tiny"


@pytest.fixture(scope="module")
def trace():
    return Trace(pathlib.Path(os.environ.get("JEPA_TRACE_DIR") or BUNDLED))


@pytest.fixture(scope="module")
def config(trace):
    meta = trace.meta
    config = load_config_file("fashion_mnist")
    config.data.image_size = (meta["image_size"], meta["image_size"])
    for name in ("patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio"):
        config.model[name] = meta[name]
    config.predictor.embed_dim = meta["predictor_embed_dim"]
    config.predictor.depth = meta["predictor_depth"]
    config.predictor.num_heads = meta["num_heads"]
    config.masks.context_tokens = trace.arrays["step0/context_index"].shape[-1]
    config.objective.loss = "smooth_l1"
    return resolve(config)


@pytest.mark.parametrize("best", [False, True])
def test_both_forms_take_the_recorded_steps(trace, config, best):
    """The compiled form eagerly: its compiler alone takes longer than all other tests here."""
    step = torch_ijepa.Step(config, best=best, device="cpu", compiled=False)
    step.load(trace.start)
    for number in range(trace.meta["steps"]):
        names = ("image", "context_index", "target_index")
        batch = {name: trace.arrays[f"step{number}/{name}"] for name in names}
        lr, decay, momentum = (
            float(trace.arrays[f"step{number}/{name}"])
            for name in ("lr", "weight_decay", "momentum")
        )
        loss = float(step.take(torch_ijepa.to_torch(batch, "cpu"), lr, decay, momentum))
        assert loss == pytest.approx(float(trace.arrays[f"step{number}/loss_smooth_l1"]), rel=1e-5)
    for name, recorded in trace.end.items():
        found = getattr(step, name).state_dict()
        assert found.keys() == recorded.keys()
        for key, value in recorded.items():
            np.testing.assert_allclose(found[key].numpy(), value, rtol=0, atol=1e-5)
            if "pos_embed" not in key:
                change = np.abs(value - trace.start[name][key]).max()
                assert np.abs(found[key].numpy() - value).max() <= 2e-3 * change


@pytest.mark.parametrize(
    ("network", "to_ours"), [("encoder", encoder_to_ours), ("predictor", predictor_to_ours)]
)
def test_our_parameters_get_their_published_names(trace, config, network, to_ours):
    recorded = trace.start[network]
    ours = jax.tree.map(jnp.asarray, to_ours(recorded, trace.meta["num_heads"]))
    state = torch_ijepa.to_published(ours, config.model.patch_size)
    assert state.keys() == {key for key in recorded if "pos_embed" not in key}
    for key, value in state.items():
        np.testing.assert_array_equal(value, recorded[key])
