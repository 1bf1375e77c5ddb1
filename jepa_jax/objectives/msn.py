"""MSN (Assran et al., 2022): masked and small views share prototypes with the whole image."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jepa_jax.batch.masks import RandomPatches
from jepa_jax.batch.spec import BatchSpec, Shapes, image_view
from jepa_jax.config import Config, MsnConfig
from jepa_jax.models.flops import head_flops
from jepa_jax.models.heads import ProjectionHead, prototype_scores
from jepa_jax.models.vision_transformer import encoding, make_encoder
from jepa_jax.objectives.ema import average_outlook, averaging, momentum_at
from jepa_jax.objectives.objective import Clock, Objective
from jepa_jax.objectives.statistics import direction_spread, entropy, sinkhorn
from jepa_jax.objectives.views import (
    apply_to_views,
    image_features,
    init_networks,
    small_crops,
    view_features,
    view_flops,
)


def make(config: Config, settings: MsnConfig) -> Objective:
    """The objective. Parameters: {"encoder", "projector", "prototypes": {"kernel"}}.

    State: `EmaState` of encoder and projector, which see the target view; the prototypes are the
    anchors' own. The averaged encoder is probed.
    """
    encoder = make_encoder(config)
    widths = (settings.hidden_dim, settings.hidden_dim, settings.output_dim)
    projector = ProjectionHead(
        widths, last_bias=True, activation="gelu", dtype=jnp.dtype(config.compute.dtype)
    )
    num_patches = config.grid[0] * config.grid[1]
    num_visible = int(num_patches * (1 - settings.mask_ratio))
    masks = RandomPatches(num_patches, num_visible) if settings.mask_ratio else None
    num_anchors = 1 + settings.num_local

    def init(key: Array) -> dict[str, Any]:
        prototypes = (settings.num_prototypes, settings.output_dim)
        return init_networks(config, encoder, projector, key, prototypes=prototypes)

    def loss(
        params: dict[str, Any], state: Any, batch: dict[str, Array], key: Array, clock: Clock
    ) -> tuple[Array, dict[str, Any]]:
        def logits(weights: Any, features: Array) -> tuple[Array, Array]:
            """Embeddings [B, V, E], and logits [B, V, K], of features [B, V, D]."""
            z = apply_to_views(projector, weights["projector"], features)
            return z, prototype_scores(z, params["prototypes"]) / settings.temperature

        seen = image_features(encoder, state.target["encoder"], batch["target"])  # [B, D]
        embeddings, of_target = logits(state.target, seen[:, None])
        targets = assignments(of_target[:, 0], settings)  # [B, K]
        features = image_features(
            encoder,
            params["encoder"],
            batch["anchor"],
            key=jax.random.fold_in(key, 0),
            index=batch["visible_index"] if masks else None,
        )[:, None]  # [B, 1, D]
        if settings.num_local:
            local_key = jax.random.fold_in(key, 1)
            small = view_features(encoder, params["encoder"], batch["local"], key=local_key)
            features = jnp.concatenate([features, small], axis=1)  # [B, V, D]
        log_p = jax.nn.log_softmax(logits(params, features)[1], axis=-1)  # [B, V, K]
        cross_entropy = -jnp.mean(jnp.einsum("bk,bvk->bv", targets, log_p))
        mean_p = jnp.mean(jnp.exp(log_p), axis=(0, 1))  # [K]
        shortfall = math.log(settings.num_prototypes) - entropy(mean_p)
        metrics = {
            "momentum": momentum_at(settings.ema, clock.step, clock.horizon),
            "cross_entropy": cross_entropy,
            "entropy_shortfall": shortfall,
            "prototypes_used": jnp.exp(entropy(mean_p)),
            "embedding_spread": direction_spread(embeddings[:, 0]),
        }
        return cross_entropy + settings.entropy_weight * shortfall, {"metrics": metrics}

    def flops(shapes: Shapes) -> dict[str, float]:
        del shapes
        head = head_flops(config.model.embed_dim, *widths, settings.num_prototypes)
        size = config.data.image_size
        small = settings.num_local * view_flops(config, settings.local_size)
        return {
            "encoder": view_flops(config, size, tokens=num_visible) + small,
            "target": view_flops(config, size, backward=False) + head / 3,
            "head": num_anchors * head,
        }

    augmentations = (settings.augmentation,)
    return Objective(
        needs=BatchSpec(
            views=(
                image_view("anchor", config.data, augmentations=augmentations),
                image_view("target", config.data, augmentations=augmentations),
                *small_crops(config, settings, settings.augmentation),
            ),
            masks=masks,
        ),
        init=init,
        loss=loss,
        state=averaging(
            settings.ema, lambda params: {name: params[name] for name in ("encoder", "projector")}
        ),
        encoders={
            "target_encoder": ("objective_state", "target", "encoder"),
            "encoder": ("params", "encoder"),
        },
        encode=encoding(encoder),
        flops=flops,
        mean_over_examples=False,
        outlook=functools.partial(average_outlook, settings.ema),
    )


def assignments(logits: Array, settings: MsnConfig) -> Array:
    """Sharpened predictions of the target view, p^(1/T) normalised; then Sinkhorn. [B, K]."""
    sharpened = jax.nn.log_softmax(jax.lax.stop_gradient(logits) / settings.sharpening, axis=-1)
    if not settings.sinkhorn_iterations:
        return jnp.exp(sharpened)
    return sinkhorn(sharpened, epsilon=1.0, iterations=settings.sinkhorn_iterations)
