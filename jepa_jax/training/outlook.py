"""What a person should know of a run before its first step."""

from collections.abc import Collection, Mapping

from jepa_jax.config import Config
from jepa_jax.objectives.objective import Objective, Outlook

# Below these a run is warned of: docs/results.md has what 600 and 3,000 images gave.
FEW_STEPS, FEW_IMAGES = 1000, 1500


def outlook(
    config: Config,
    objective: Objective,
    *,
    num_images: int,
    class_sizes: Collection[int],
    left_out: Mapping[str, int],
    steps_per_epoch: int,
    from_scratch: bool,
) -> Outlook:
    """Facts and warnings about a run, its data and its schedules, each in one line.

    Args:
      class_sizes: images of each class; empty without classes.
      left_out: files that are not trained on: why -> how many.
      from_scratch: no weights are given to start from.
    """
    steps = config.epochs * steps_per_epoch
    unused = num_images - steps_per_epoch * config.batch_size
    facts = [_images(num_images, class_sizes)]
    facts += [
        f"left out: {count:,} {'file' if count == 1 else 'files'}, {why}"
        for why, count in left_out.items()
    ]
    facts.append(
        f"{steps_per_epoch:,} steps of {config.batch_size} images an epoch"
        + (f" ({unused} images sit out, other ones each time)" if unused else "")
        + f"; {config.epochs:,} epochs, {steps:,} steps in all"
    )
    warnings = []
    if from_scratch and steps < FEW_STEPS:
        warnings.append(
            f"config.epochs = {config.epochs}: {steps} steps are too few to learn much; from "
            f"{FEW_STEPS:,} on it pays: raise epochs, or lower batch_size = {config.batch_size}"
        )
    if from_scratch and num_images < FEW_IMAGES:
        warnings.append(
            f"config.data.path = {config.data.path!r}: {num_images} images are few to train "
            "from scratch; start from weights that exist: --init PATH, or a Hugging Face hub id"
        )
    if objective.outlook is not None:
        horizon = config.optimizer.ipe_scale * steps
        of_objective = objective.outlook(steps, horizon, from_scratch)
        facts += of_objective.facts
        warnings += of_objective.warnings
    return Outlook(tuple(facts), tuple(warnings))


def _images(num_images: int, class_sizes: Collection[int]) -> str:
    if not class_sizes:
        return f"{num_images:,} training images, without classes"
    return (
        f"{num_images:,} training images of {len(class_sizes)} classes, "
        f"{min(class_sizes):,} to {max(class_sizes):,} of each"
    )
