"""Each objective has its configs: for the bundled images, CIFAR-10, and a recipe for ImageNet."""

import jax
import pytest
from conftest import REPOSITORY

from jepa_jax.config import resolve
from jepa_jax.config.files import load_config
from jepa_jax.objectives.registry import OBJECTIVES, make_objective
from jepa_jax.training.schedules import make_schedules

FILES = {path.stem for path in (REPOSITORY / "configs").glob("*.py")}
IMAGENET = 1_281_167

# shared/METHODS.md and the papers: encoder, parameters of the encoder and of all heads in millions,
# epochs, batch, warm-up epochs, highest learning rate, weight decay from and to.
RECIPES = {
    "in1k_mae_vitb16_ep1600": (768, 12, 16, 86, 26, 1600, 4096, 40, 2.4e-3, 0.05, 0.05),
    "in1k_supervised_vitb16_ep300": (768, 12, 16, 86, 1, 300, 4096, 20, 1.6e-3, 0.3, 0.3),
    "in1k_simclr_vitb16_ep300": (768, 12, 16, 86, 2, 300, 4096, 40, 2.4e-3, 0.1, 0.1),
    "in1k_byol_vitb16_ep300": (768, 12, 16, 86, 6, 300, 4096, 40, 2.4e-3, 0.1, 0.1),
    "in1k_vicreg_vitb16_ep300": (768, 12, 16, 86, 141, 300, 2048, 40, 1.2e-3, 0.1, 0.1),
    "in1k_lejepa_vitl14_ep100": (1024, 24, 14, 303, 6, 100, 512, 10, 5e-4, 0.05, 0.05),
    "in1k_swav_vits16_ep300": (384, 12, 16, 22, 1, 300, 4096, 40, 2.4e-3, 0.1, 0.1),
    "in1k_dino_vits16_ep100": (384, 12, 16, 22, 22, 100, 512, 10, 1e-3, 0.04, 0.4),
    "in1k_msn_vits16_ep800": (384, 12, 16, 22, 6, 800, 1024, 15, 1e-3, 0.04, 0.4),
    "in1k_data2vec_vitb16_ep800": (768, 12, 16, 86, 1, 800, 2048, 10, 2e-3, 0.05, 0.05),
}


def read(name):
    return resolve(load_config(str(REPOSITORY / "configs" / f"{name}.py"), []))


@pytest.mark.parametrize("objective", [name for name in OBJECTIVES if name != "ijepa"])
def test_each_objective_has_its_configs(objective):
    for images in ("fashion_mnist", "cifar10"):
        config = read(f"{images}_{objective}")
        assert config.objective.name == objective
        own = read(images)
        assert config.model.embed_dim == own.model.embed_dim
        assert config.model.depth == own.model.depth
        assert config.data.source == own.data.source
        ((shapes, _),) = make_objective(config).needs.variants(config.batch_size)
        assert all(shape.shape[0] == config.batch_size for shape in shapes.values())
    assert any(name.startswith(f"in1k_{objective}_") for name in FILES)


def test_every_recipe_is_known_here():
    others = {name for name in FILES if name.startswith("in1k_")} - {
        name for name in FILES if name.startswith("in1k_vit")
    }
    assert others == RECIPES.keys()


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipe_is_the_published_one(name):
    width, depth, patch, encoder, heads, epochs, batch, warmup, lr, decay, final_decay = RECIPES[
        name
    ]
    config = read(name)
    assert (config.model.embed_dim, config.model.depth, config.model.patch_size) == (
        width,
        depth,
        patch,
    )
    assert (config.epochs, config.batch_size) == (epochs, batch)
    assert config.compute.dtype == "bfloat16"
    params = jax.eval_shape(make_objective(config).init, jax.random.key(0))
    sizes = {part: sum(x.size for x in jax.tree.leaves(tree)) for part, tree in params.items()}
    assert sizes.pop("encoder") / 1e6 == pytest.approx(encoder, abs=0.6)
    assert sum(sizes.values()) / 1e6 == pytest.approx(heads, abs=0.6)
    epoch = IMAGENET // batch
    schedules = make_schedules(config, epoch)
    assert float(schedules.learning_rate(warmup * epoch)) == pytest.approx(lr, rel=1e-3)
    assert float(schedules.learning_rate(warmup * epoch // 2)) < lr
    assert float(schedules.weight_decay(0)) == pytest.approx(decay, rel=1e-3)
    end = int(schedules.horizon)
    assert float(schedules.weight_decay(end)) == pytest.approx(final_decay, rel=1e-3)
    frozen = getattr(config.objective, "freeze_prototypes_steps", epoch)
    assert abs(frozen - epoch) <= 1  # an epoch


def test_the_baseline_with_labels_has_the_published_regularisation():
    config = read("in1k_supervised_vitb16_ep300")
    labels, images = config.objective, config.objective.augmentation
    assert (labels.mixup, labels.cutmix, labels.label_smoothing, labels.ema) == (
        0.8,
        1.0,
        0.1,
        0.9999,
    )
    assert (images.flip, images.rand_augment.magnitude, images.rand_augment.magnitude_std) == (
        0.5,
        9.0,
        0.5,
    )
    assert (config.model.drop_path_rate, config.optimizer.b2) == (0.1, 0.95)


def test_the_constants_of_the_losses_are_the_published_ones():
    dino = read("in1k_dino_vits16_ep100").objective
    assert (dino.num_prototypes, dino.hidden_dim, dino.output_dim) == (65536, 2048, 256)
    assert (dino.temperature, dino.teacher_temperature, dino.center_momentum) == (0.1, 0.04, 0.9)
    assert (dino.num_local, dino.local_size, dino.local_crop_scale) == (8, (96, 96), (0.05, 0.4))
    msn = read("in1k_msn_vits16_ep800").objective
    assert (msn.num_prototypes, msn.temperature, msn.sharpening) == (1024, 0.1, 0.25)
    assert (msn.sinkhorn_iterations, msn.entropy_weight, msn.mask_ratio) == (3, 1.0, 0.15)
    assert (msn.num_local, msn.local_size, msn.local_crop_scale) == (10, (96, 96), (0.05, 0.3))
    lejepa = read("in1k_lejepa_vitl14_ep100").objective
    assert (lejepa.regularization, lejepa.num_directions, lejepa.output_dim) == (0.05, 1024, 16)
    assert (lejepa.num_global, lejepa.num_local, lejepa.local_size) == (2, 6, (98, 98))
    byol = read("in1k_byol_vitb16_ep300").objective
    assert (byol.hidden_dim, byol.output_dim, byol.ema.schedule) == (4096, 256, "cosine")
    data2vec = read("in1k_data2vec_vitb16_ep800").objective
    assert int(196 * data2vec.mask_ratio) == 120
    assert (data2vec.beta, data2vec.top_blocks, data2vec.min_block_patches) == (2.0, 6, 16)
    simclr = read("in1k_simclr_vitb16_ep300").objective
    assert (simclr.temperature, simclr.hidden_dim, simclr.output_dim) == (0.1, 2048, 256)
