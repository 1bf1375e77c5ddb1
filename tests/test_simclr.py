"""SimCLR against float64 NumPy."""

import numpy as np
from numpy_model import numpy_head, unit
from views import B, Evaluated, random_views, small_config


def test_the_loss_tells_each_view_s_other_view_from_all_others_of_the_batch():
    config = small_config("simclr", temperature=0.3)
    run = Evaluated(config, random_views(views=(2, 28, 28)))
    encoder = run.params["encoder"]
    features = [run.features(encoder, run.batch["views"][:, view]) for view in range(2)]

    def by_hand(params):
        z = unit(numpy_head(params["projector"], np.concatenate(features)))  # [2 B, E]
        total = 0.0
        for i in range(2 * B):
            positive = z[i] @ z[(i + B) % (2 * B)] / 0.3
            others = sum(np.exp(z[i] @ z[k] / 0.3) for k in range(2 * B) if k != i)
            total -= positive - np.log(others)
        return total / (2 * B)

    run.check(by_hand, path=("projector", "fc2", "kernel"))


def test_embeddings_that_are_all_alike_cost_the_log_of_the_others():
    """Nothing can be told: each of the 2 B - 1 others is as likely."""
    config = small_config("simclr")
    views = random_views(views=(2, 28, 28))
    alike = {"views": np.broadcast_to(views["views"][:1, :1], views["views"].shape)}
    np.testing.assert_allclose(Evaluated(config, alike).value, np.log(2 * B - 1), rtol=1e-5)
