"""SwAV (Caron et al., 2020): each crop predicts the cluster that another crop is assigned to."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from jepa_jax.batch.spec import BatchSpec, Shapes
from jepa_jax.config import Config, SwavConfig
from jepa_jax.errors import UserError
from jepa_jax.models.flops import head_flops
from jepa_jax.models.heads import ProjectionHead, unit_rows
from jepa_jax.models.vision_transformer import encoding, make_encoder
from jepa_jax.objectives.objective import Clock, Objective, train_from
from jepa_jax.objectives.statistics import (
    direction_spread,
    entropy,
    sinkhorn,
    swapped_prediction_loss,
)
from jepa_jax.objectives.views import (
    apply_to_views,
    crop_features,
    crop_flops,
    init_networks,
    large_and_small_crops,
)

NUM_GLOBAL = 2  # large crops; each is assigned to clusters, and predicted from all other crops


class SwavState(NamedTuple):
    """Embeddings of earlier batches, newest first, for codes of batches smaller than K."""

    queue: Array  # float32 [2, L, E], one for each large crop; L = 0: none
    filled: Array  # int32 scalar: how many of the L are there


def make(config: Config, settings: SwavConfig) -> Objective:
    """The objective. Parameters: {"encoder", "projector", "prototypes": {"kernel"}}.

    The prototypes are scaled to unit length wherever they are used.
    """
    if 0 < settings.queue_length < config.batch_size:
        raise UserError(
            f"config.objective.queue_length = {settings.queue_length}: must hold a batch of "
            f"config.batch_size = {config.batch_size} at least, or be 0"
        )
    encoder = make_encoder(config)
    projector = ProjectionHead(
        (settings.hidden_dim, settings.output_dim),
        last_bias=True,
        dtype=jnp.dtype(config.compute.dtype),
    )

    def init(key: Array) -> dict[str, Any]:
        prototypes = (settings.num_prototypes, settings.output_dim)
        return init_networks(config, encoder, projector, key, prototypes=prototypes)

    def loss(
        params: dict[str, Any], state: SwavState, batch: dict[str, Array], key: Array, clock: Clock
    ) -> tuple[Array, dict[str, Any]]:
        features = crop_features(encoder, params["encoder"], batch, key=key)  # [B, V, D]
        z = unit_rows(apply_to_views(projector, params["projector"], features))  # [B, V, E]
        prototypes = unit_rows(params["prototypes"]["kernel"])
        scores = z @ prototypes.T  # [B, V, K]
        codes = jnp.stack(
            [
                _codes(scores[:, crop], state.queue[crop] @ prototypes.T, state.filled)
                for crop in range(NUM_GLOBAL)
            ],
            axis=1,
        )  # [B, 2, K]
        log_p = jax.nn.log_softmax(scores / settings.temperature, axis=-1)
        value = swapped_prediction_loss(codes, log_p)
        mean_code = jnp.mean(codes, axis=(0, 1))  # [K]
        out = {
            "metrics": {
                "prototypes_used": jnp.exp(entropy(mean_code)),
                "embedding_spread": direction_spread(z[:, 0]),
            },
            "embeddings": jax.lax.stop_gradient(jnp.swapaxes(z[:, :NUM_GLOBAL], 0, 1)),
            "fill": clock.step >= settings.queue_start_step,
        }
        return value, out

    def _codes(scores: Array, queued: Array, filled: Array) -> Array:
        """Assignments of a batch, [B, K]; beside those of a full queue."""

        def assign(scores: Array) -> Array:
            iterations = settings.sinkhorn_iterations
            return sinkhorn(scores, epsilon=settings.epsilon, iterations=iterations)

        scores, queued = jax.lax.stop_gradient((scores, queued))
        if not settings.queue_length:
            return assign(scores)
        together = jnp.concatenate([scores, queued])
        return jax.lax.cond(
            filled >= settings.queue_length,
            lambda: assign(together)[: len(scores)],
            lambda: assign(scores),
        )

    def flops(shapes: Shapes) -> dict[str, float]:
        del shapes
        head = (config.model.embed_dim, settings.hidden_dim, settings.output_dim)
        crops = NUM_GLOBAL + settings.num_local
        return {
            "encoder": crop_flops(config, settings, num_global=NUM_GLOBAL),
            "head": crops * head_flops(*head, settings.num_prototypes),
        }

    return Objective(
        needs=BatchSpec(
            views=large_and_small_crops(
                config,
                settings,
                num_global=NUM_GLOBAL,
                global_augmentations=(settings.augmentation,),
                local_augmentation=settings.augmentation,
            )
        ),
        init=init,
        loss=loss,
        state=lambda _: keep_queue(settings),
        encoders={"encoder": ("params", "encoder")},
        encode=encoding(encoder),
        flops=flops,
        trains=lambda params: train_from(params, {"prototypes": settings.freeze_prototypes_steps}),
        mean_over_examples=False,
    )


def keep_queue(settings: SwavConfig) -> optax.GradientTransformationExtraArgs:
    """The queue of embeddings; passes the updates through unchanged."""

    def init(params: Any) -> SwavState:
        del params
        shape = (NUM_GLOBAL, settings.queue_length, settings.output_dim)
        return SwavState(jnp.zeros(shape), jnp.zeros([], jnp.int32))

    def update(
        updates: Any, state: SwavState, params: Any = None, *, out: dict[str, Any], **_: Any
    ) -> tuple[Any, SwavState]:
        del params
        chex.assert_shape(out["embeddings"], (NUM_GLOBAL, None, settings.output_dim))
        new, length = out["embeddings"], settings.queue_length
        queue = jnp.concatenate([new, state.queue], axis=1)[:, :length]
        filled = jnp.minimum(state.filled + new.shape[1], length)
        kept = SwavState(queue, filled.astype(jnp.int32))
        return updates, jax.tree.map(lambda a, b: jnp.where(out["fill"], a, b), kept, state)

    return optax.GradientTransformationExtraArgs(init, update)
