"""One run of benchmarks/schools.py: its configuration, the training, the probes."""

import hashlib
import json
import pathlib
from typing import Any

STEPS, BATCH = 468, 64  # three epochs
TUNING_STEPS = 156  # one epoch
TRIED = (1e-3, 3e-3)
# For each objective the best of TRIED, by k-NN between training images after one epoch (`--tune`);
# of DINO, whose features collapse at 3e-3, the other.
LEARNING_RATES = {
    "ijepa": 1e-3,
    "data2vec": 1e-3,
    "mae": 1e-3,
    "simclr": 1e-3,
    "byol": 1e-3,
    "vicreg": 3e-3,
    "lejepa": 3e-3,
    "swav": 1e-3,
    "dino": 1e-3,
    "msn": 3e-3,
    "supervised": 1e-3,
}
CONTROLS = ("random_init", "raw_pixels")
# Of steps, what is told by an epoch of ImageNet in the papers: how long prototypes are frozen, and
# when SwAV's queue begins.
_FROZEN_SHARE, _QUEUE_SHARE = 0.05, 0.15


def school_config(name: str, *, steps: int, seed: int, lr: float) -> Any:
    """The quickstart's images, encoder and schedules, with another objective.

    The objective's settings are those of configs/fashion_mnist_NAME.py, and of its optimizer Adam's
    betas and the clipping.
    """
    from jepa_jax.config import resolve
    from jepa_jax.config.files import load_config

    config = load_config("configs/quickstart.py", [])
    if name != "ijepa":
        own = load_config(f"configs/fashion_mnist_{name}.py", [])
        config["objective"] = own["objective"]
        kept = ("b1", "b2", "clip_norm")
        config["optimizer"] |= {f: own["optimizer"][f] for f in kept if f in own["optimizer"]}
    if "freeze_prototypes_steps" in config["objective"]:
        config["objective"]["freeze_prototypes_steps"] = int(_FROZEN_SHARE * steps)
    if name == "swav":
        config["objective"]["queue_start_step"] = int(_QUEUE_SHARE * steps)
    config |= {"seed": seed, "batch_size": BATCH, "epochs": steps}  # an epoch is a step here
    config["optimizer"] |= {"lr": lr, "warmup_epochs": 0.15 * steps}
    config["logging"] = {"every_steps": 50, "diagnostics_every_steps": 50}
    config["checkpoint"] = {"every_steps": steps, "every_minutes": 2.0, "keep_last": 1}
    return resolve(config)


def flops_per_step(name: str) -> float:
    """Of an objective's step here, forward and backward."""
    from jepa_jax.objectives.registry import make_objective
    from jepa_jax.planning.needs import flops_per_example

    objective = make_objective(school_config(name, steps=STEPS, seed=0, lr=1e-3))
    return BATCH * sum(flops_per_example(objective, BATCH).values())


def config_of(job: dict[str, Any]) -> Any:
    """What a run trains; of a control, the run whose encoder and images it has."""
    name = job["objective"] if job["objective"] not in CONTROLS else "ijepa"
    steps = {"tuning": TUNING_STEPS, "steps": STEPS}.get(job["budget"])
    if steps is None:
        steps = round(STEPS * flops_per_step("ijepa") / flops_per_step(name))
    lr = job.get("lr", LEARNING_RATES[name])
    return school_config(name, steps=steps, seed=job["seed"], lr=lr)


def configs_of(job: dict[str, Any]) -> dict[str, Any]:
    """What a job trains, by objective: one run, or the steps whose speed is measured."""
    if job["budget"] != "speed":
        return {job["objective"]: config_of(job)}
    runs = [{"objective": name, "budget": "steps", "seed": 0} for name in LEARNING_RATES]
    return {run["objective"]: config_of(run) for run in runs}


# Fields that came after rows had been made, at the values that change no run. Another value counts.
LATER_FIELDS = {("optimizer", "first_moment_dtype"): "float32"}


def digest_of(job: dict[str, Any]) -> str:
    """Of all settings of a job.

    A row holds it: one that was made with other settings is not the run that is asked for.
    """
    from jepa_jax.config import to_dict

    settings = [to_dict(config) for config in configs_of(job).values()]
    for (section, field), as_before in LATER_FIELDS.items():
        for config in settings:
            if config[section][field] == as_before:
                del config[section][field]
    text = json.dumps(settings, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def measure(job: dict[str, Any], workdir: pathlib.Path) -> dict[str, Any]:
    """Trains and probes once, in this process."""
    from jepa_jax.config import resolve_probe
    from jepa_jax.config.files import load_config
    from jepa_jax.data.sources import open_source
    from jepa_jax.data.stream import make_stream
    from jepa_jax.errors import StoppedRunError
    from jepa_jax.evaluation.comparison import features_of, probe_each
    from jepa_jax.objectives.objective import initial_encoder
    from jepa_jax.objectives.registry import make_objective
    from jepa_jax.training import checkpoint
    from jepa_jax.training.loop import train

    name, budget, seed = job["objective"], job["budget"], job["seed"]
    config = config_of(job)
    objective, source = make_objective(config), open_source(config.data, "train")
    row = dict(job)
    if name in CONTROLS:
        encoders = {"random_init": initial_encoder(objective, seed)}
    else:
        stream = make_stream(objective.needs, config.data, source, seed=seed, batch_size=BATCH)
        stream = stream._replace(steps_per_epoch=1)
        try:
            train(config, workdir, objective=objective, stream=stream)
        except StoppedRunError as error:  # at its end, saved: collapsed
            row["end"] = str(error)
        row |= {
            "lr": config.optimizer.lr,
            "optimizer_steps": config.epochs,  # an epoch is a step here
            "flops": config.epochs * flops_per_step(name),
        }
        folder = checkpoint.find(workdir, checkpoint.network_items)
        network = next(iter(objective.encoders))
        encoders = {name: checkpoint.restore_encoder(folder, network, objective)}
    if budget == "tuning":
        return row | {"knn": between_training_images(objective, encoders[name], config, source)}
    found = features_of(
        config.data, objective, encoders, batch_size=250, pixels=name == "raw_pixels"
    )
    for protocol in ("knn", "knn_cosine", "linear"):
        settings = resolve_probe(load_config(f"configs/probe/{protocol}.py", []))
        result = probe_each(settings, {name: found[name]})[name]
        row |= {protocol: result["accuracy"], f"{protocol}_interval": result["interval"]}
    if name != "raw_pixels":
        row |= diagnostics_of(objective, encoders[name], config)
    return row


def between_training_images(objective: Any, weights: Any, config: Any, source: Any) -> float:
    """20-NN accuracy of a fifth of the training images, told by the others."""
    import numpy as np

    from jepa_jax.data.pipeline import eval_batches
    from jepa_jax.evaluation.features import make_pool, pooled_features
    from jepa_jax.evaluation.probes import LabelledFeatures, knn_accuracy

    index = np.random.default_rng(0).permutation(source.num_examples)
    batches = eval_batches(config.data, source, index=index, batch_size=250)
    features = pooled_features(make_pool(objective), weights, batches)
    labels, asked = source.classes[index], len(index) // 5
    known = LabelledFeatures(features[asked:], labels[asked:])
    return knn_accuracy(known, LabelledFeatures(features[:asked], labels[:asked]), neighbors=20)


def diagnostics_of(objective: Any, weights: Any, config: Any) -> dict[str, float]:
    """Effective rank of 2,000 test images' features, and the share of position in the tokens."""
    import jax
    import numpy as np

    from jepa_jax.data.pipeline import eval_batches
    from jepa_jax.data.sources import open_source
    from jepa_jax.training.diagnostics import effective_rank, mean_cosine, position_share

    source, encode = open_source(config.data, "test"), jax.jit(objective.encode)
    index = np.arange(source.num_examples)
    tokens = np.concatenate(
        [
            np.asarray(encode(weights, images))
            for images in eval_batches(config.data, source, index=index, batch_size=250)
        ]
    )  # [n, N, D]
    features = tokens.mean(axis=1)
    return {
        "effective_rank": float(effective_rank(features)),
        "feature_cosine": float(mean_cosine(features)),
        "position_share": float(position_share(tokens)),
    }
