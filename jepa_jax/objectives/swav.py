"""SwAV (Caron et al., 2020): each crop predicts the cluster that another crop is assigned to."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jepa_jax.batch.spec import BatchSpec, Shapes, View, image_view
from jepa_jax.config import Config, SwavConfig
from jepa_jax.errors import UserError
from jepa_jax.models.flops import encoder_flops
from jepa_jax.models.heads import ProjectionHead
from jepa_jax.models.vision_transformer import make_encoder
from jepa_jax.objectives.objective import Clock, Objective
from jepa_jax.objectives.statistics import sinkhorn

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
        encoder_key, projector_key, prototype_key = jax.random.split(key, 3)
        image = jnp.zeros((1, *config.data.image_size, config.data.channels))
        pooled = jnp.zeros((1, config.model.embed_dim))
        shape = (settings.num_prototypes, settings.output_dim)
        return {
            "encoder": encoder.init(encoder_key, image)["params"],
            "projector": projector.init(projector_key, pooled)["params"],
            "prototypes": {"kernel": unit_rows(jax.random.normal(prototype_key, shape))},
        }

    def loss(
        params: dict[str, Any], state: SwavState, batch: dict[str, Array], key: Array, clock: Clock
    ) -> tuple[Array, dict[str, Any]]:
        def pooled(name: str, number: int) -> Array:  # [B, V, H, W, C] -> [V * B, D]
            images = jnp.swapaxes(batch[name], 0, 1)
            images = images.reshape(-1, *images.shape[2:])
            tokens: Any = encoder.apply(
                {"params": params["encoder"]},
                images,
                deterministic=False,
                rngs={"drop_path": jax.random.fold_in(key, number)},
            )
            return jnp.mean(tokens, axis=1)

        features = [pooled("global", 0)]
        if settings.num_local:
            features.append(pooled("local", 1))
        projected: Any = projector.apply({"params": params["projector"]}, jnp.concatenate(features))
        z = unit_rows(projected).reshape(-1, batch["global"].shape[0], settings.output_dim)
        prototypes = unit_rows(params["prototypes"]["kernel"])
        scores = z @ prototypes.T  # [V, B, K]
        codes = [
            _codes(scores[crop], state.queue[crop] @ prototypes.T, state.filled)
            for crop in range(NUM_GLOBAL)
        ]
        log_p = jax.nn.log_softmax(scores / settings.temperature, axis=-1)
        value = swapped_prediction_loss(jnp.stack(codes), log_p)
        mean_code = jnp.mean(jnp.stack(codes), axis=(0, 1))  # [K]
        entropy = -jnp.sum(jax.scipy.special.xlogy(mean_code, mean_code))
        out = {
            "metrics": {"prototypes_used": jnp.exp(entropy)},
            "embeddings": jax.lax.stop_gradient(z[:NUM_GLOBAL]),
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

    def encode(weights: Any, images: Array, layers: tuple[int, ...] | None = None) -> Any:
        return encoder.apply({"params": weights}, images, layers=layers)

    def flops(shapes: Shapes) -> dict[str, float]:
        del shapes
        return _flops(config, settings)

    return Objective(
        needs=BatchSpec(views=_views(config, settings)),
        init=init,
        loss=loss,
        state=lambda _: keep_queue(settings),
        encoders={"encoder": ("params", "encoder")},
        encode=encode,
        flops=flops,
        trains=lambda params: {
            name: jax.tree.map(
                lambda _, first=settings.freeze_prototypes_steps * (name == "prototypes"): first,
                tree,
            )
            for name, tree in params.items()
        },
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


def unit_rows(x: Float[Array, "*n E"]) -> Float[Array, "*n E"]:
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def swapped_prediction_loss(
    codes: Float[Array, "G B K"], log_p: Float[Array, "V B K"]
) -> Float[Array, ""]:
    """Mean over examples, codes and the other crops of -sum_k q_k log p_k (equations 1 and 2).

    Args:
      codes: of the large crops, which are the first of the V.
      log_p: of all crops.
    """
    pairs = -jnp.einsum("gbk,vbk->gv", codes, log_p) / codes.shape[1]  # [G, V]
    other = ~jnp.eye(pairs.shape[0], pairs.shape[1], dtype=bool)
    return jnp.sum(jnp.where(other, pairs, 0.0)) / (len(codes) * (len(log_p) - 1))


def _views(config: Config, settings: SwavConfig) -> tuple[View, ...]:
    augmentations = (settings.augmentation,)
    large = image_view("global", config.data, number=NUM_GLOBAL, augmentations=augmentations)
    if not settings.num_local:
        return (large,)
    small = View(
        "local",
        settings.local_size,
        number=settings.num_local,
        crop_scale=settings.local_crop_scale,
        crop_aspect_ratio=config.data.crop_aspect_ratio,
        augmentations=augmentations,
        channels=config.data.channels,
    )
    return (large, small)


def _flops(config: Config, settings: SwavConfig) -> dict[str, float]:
    def of(size: tuple[int, int]) -> float:
        patches = (size[0] // config.model.patch_size) * (size[1] // config.model.patch_size)
        return encoder_flops(config.model, patches, backward=True, channels=config.data.channels)

    crops = NUM_GLOBAL + settings.num_local
    width, hidden = config.model.embed_dim, settings.hidden_dim
    head = width * hidden + hidden * settings.output_dim
    head += settings.output_dim * settings.num_prototypes
    return {
        "encoder": NUM_GLOBAL * of(config.data.image_size)
        + settings.num_local * of(settings.local_size),
        "head": 6.0 * crops * head,
    }
