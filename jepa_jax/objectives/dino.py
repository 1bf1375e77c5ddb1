"""DINO (Caron et al., 2021): match the sharpened, centred outputs of a moving average."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jepa_jax.batch.spec import BatchSpec, Shapes
from jepa_jax.config import Config, DinoConfig
from jepa_jax.models.flops import head_flops
from jepa_jax.models.heads import ProjectionHead, prototype_scores
from jepa_jax.models.vision_transformer import encoding, make_encoder
from jepa_jax.objectives.ema import EmaState, average_outlook, averaging, momentum_at
from jepa_jax.objectives.objective import Clock, Objective, train_from
from jepa_jax.objectives.statistics import assignment_spread, entropy, swapped_prediction_loss
from jepa_jax.objectives.views import (
    apply_to_views,
    crop_features,
    crop_flops,
    init_networks,
    large_and_small_crops,
    view_features,
    view_flops,
)

NUM_GLOBAL = 2  # large crops, which the teacher sees


class DinoState(NamedTuple):
    average: EmaState  # of all parameters: the teacher
    center: Array  # float32 [K]: moving average of the teacher's outputs


def make(config: Config, settings: DinoConfig) -> Objective:
    """The objective. Parameters: {"encoder", "projector", "prototypes": {"kernel"}}.

    The prototypes are the rows of the last layer, whose weights are normalised with a scale that is
    fixed at 1. The teacher, which is probed, is the student's
    average.
    """
    encoder = make_encoder(config)
    widths = (settings.hidden_dim, settings.hidden_dim, settings.output_dim)
    projector = ProjectionHead(
        widths,
        last_bias=True,
        batch_norm=settings.batch_norm,
        activation="gelu",
        dtype=jnp.dtype(config.compute.dtype),
    )

    def init(key: Array) -> dict[str, Any]:
        prototypes = (settings.num_prototypes, settings.output_dim)
        return init_networks(config, encoder, projector, key, prototypes=prototypes)

    def outputs(weights: Any, features: Array) -> Array:  # [B, V, D] -> [B, V, K]
        z = apply_to_views(projector, weights["projector"], features)
        return prototype_scores(z, weights["prototypes"])

    def loss(
        params: dict[str, Any], state: DinoState, batch: dict[str, Array], key: Array, clock: Clock
    ) -> tuple[Array, dict[str, Any]]:
        teacher = state.average.target
        seen = view_features(encoder, teacher["encoder"], batch["global"])  # [B, 2, D]
        taught = jax.lax.stop_gradient(outputs(teacher, seen))
        temperature = teacher_temperature(settings, clock)
        targets = jax.nn.softmax((taught - state.center[None, None]) / temperature, axis=-1)
        features = crop_features(encoder, params["encoder"], batch, key=key)
        log_p = jax.nn.log_softmax(outputs(params, features) / settings.temperature, axis=-1)
        mean_target = jnp.mean(targets, axis=(0, 1))  # [K]
        metrics = {
            "momentum": momentum_at(settings.ema, clock.step, clock.horizon),
            "teacher_temperature": temperature,
            "prototypes_used": jnp.exp(entropy(mean_target)),
            "embedding_spread": assignment_spread(targets[:, 0]),
        }
        value = swapped_prediction_loss(targets, log_p)
        return value, {"metrics": metrics, "taught": jnp.mean(taught, axis=(0, 1))}

    def flops(shapes: Shapes) -> dict[str, float]:
        del shapes
        head = head_flops(config.model.embed_dim, *widths, settings.num_prototypes)
        crops, size = NUM_GLOBAL + settings.num_local, config.data.image_size
        of_teacher = view_flops(config, size, backward=False) + head / 3
        return {
            "encoder": crop_flops(config, settings, num_global=NUM_GLOBAL),
            "target": NUM_GLOBAL * of_teacher,
            "head": crops * head,
        }

    return Objective(
        needs=BatchSpec(
            views=large_and_small_crops(
                config,
                settings,
                num_global=NUM_GLOBAL,
                global_augmentations=(settings.augmentation, settings.second_augmentation),
                local_augmentation=settings.local_augmentation,
            )
        ),
        init=init,
        loss=loss,
        state=lambda horizon: follow_and_center(settings, horizon),
        encoders={
            "target_encoder": ("objective_state", "average", "target", "encoder"),
            "encoder": ("params", "encoder"),
        },
        encode=encoding(encoder),
        flops=flops,
        mean_over_examples=not settings.batch_norm,
        trains=lambda params: train_from(params, {"prototypes": settings.freeze_prototypes_steps}),
        outlook=functools.partial(average_outlook, settings.ema),
    )


def teacher_temperature(settings: DinoConfig, clock: Clock) -> Float[Array, ""]:
    """Along a straight line, then constant."""
    start, end = settings.start_teacher_temperature, settings.teacher_temperature
    if not settings.teacher_warmup_share:
        return jnp.float32(end)
    ramp = settings.teacher_warmup_share * clock.horizon
    return jnp.float32(start + (end - start) * jnp.minimum(clock.step / ramp, 1.0))


def follow_and_center(
    settings: DinoConfig, horizon: float
) -> optax.GradientTransformationExtraArgs:
    """The teacher, and c <- m c + (1 - m) mean of its outputs (Caron et al., 2021, equation 4)."""
    average = averaging(settings.ema, lambda params: params)(horizon)

    def init(params: Any) -> DinoState:
        return DinoState(average.init(params), jnp.zeros(settings.num_prototypes))

    def update(
        updates: Any, state: DinoState, params: Any = None, *, out: dict[str, Any], **_: Any
    ) -> tuple[Any, DinoState]:
        updates, followed = average.update(updates, state.average, params)
        m = settings.center_momentum
        center = m * state.center + (1.0 - m) * out["taught"]
        return updates, DinoState(followed, center)

    return optax.GradientTransformationExtraArgs(init, update)
