"""Hugging Face's ViTMAE to Orbax, judged by `transformers`."""

import dataclasses
import json
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from conftest import REPOSITORY

from jepa_jax.config.files import load_config
from jepa_jax.convert import VIT_MAE_CONFIG, hf_to_orbax, main, orbax_to_hf
from jepa_jax.encoder import load_encoder
from jepa_jax.errors import UserError
from jepa_jax.interop.converted import read_source
from jepa_jax.interop.names import (
    VIT_MAE_DECODERS,
    VIT_MAE_ENCODERS,
    ijepa_settings,
    vit_mae_tensors,
)
from jepa_jax.models.positions import sincos_positions
from jepa_jax.objectives.objective import Clock
from jepa_jax.objectives.registry import make_objective
from jepa_jax.training import checkpoint
from jepa_jax.training.items import read_item

BASE = load_config(str(REPOSITORY / VIT_MAE_CONFIG), ["--config.compute.dtype=float32"])
WEIGHTS = "model.safetensors"
POSITIONS = ("vit.embeddings.position_embeddings", "decoder.decoder_pos_embed")


def to_orbax(source, destination, **options):
    defaults = {
        "base": BASE,
        "base_is_given": False,
        "num_heads": None,
        "allow_partial": False,
        "network": None,
    }
    return hf_to_orbax(source, destination, **(defaults | options))


@pytest.fixture(scope="module")
def model():
    """A small `ViTMAEForPreTraining` on a 5 x 5 grid; no parameter is zero but the class's row."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    config = transformers.ViTMAEConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=96,
        image_size=35,
        patch_size=7,
        decoder_hidden_size=16,
        decoder_num_hidden_layers=2,
        decoder_num_attention_heads=4,
        decoder_intermediate_size=64,
        mask_ratio=0.6,
    )
    model = transformers.ViTMAEForPreTraining(config).eval()
    # A new model's tables are zeros: transformers overwrites them. These calls fill them again.
    embeddings = model.vit.embeddings
    embeddings.patch_embeddings.projection._is_hf_initialized = False
    for parameter in model.parameters():
        parameter._is_hf_initialized = False
    embeddings.initialize_weights()
    model.decoder.initialize_weights(25)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def theirs(model, tmp_path_factory):
    """Its folder."""
    folder = tmp_path_factory.mktemp("vit_mae") / "theirs"
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def ours(theirs):
    """The workdir from that."""
    result = to_orbax(theirs, theirs.parent / "ours")
    assert result["networks"] == ["encoder", "decoder"]
    return theirs.parent / "ours"


def images_of(size, n=3):
    return np.random.default_rng(0).normal(size=(n, size, size, 3)).astype(np.float32)


def pixels_of(images):
    import torch

    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


def read_params(workdir):
    """Objective and parameters of a workdir."""
    folder = checkpoint.find(workdir)
    objective = make_objective(checkpoint.read_config(folder))
    like = jax.eval_shape(objective.init, jax.random.key(0))
    return objective, jax.device_get(read_item(folder / "params", like))


@pytest.mark.parametrize("normalize", [False, True])
def test_the_loss_is_that_of_transformers_for_the_same_images_and_masks(
    model, theirs, tmp_path, normalize
):
    import torch

    shutil.copytree(theirs, tmp_path / "theirs")
    change_settings(tmp_path / "theirs", norm_pix_loss=normalize)
    to_orbax(tmp_path / "theirs", tmp_path / "ours")
    objective, params = read_params(tmp_path / "ours")
    images = images_of(35)
    noise = np.random.default_rng(1).random((3, 25)).astype(np.float32)
    order = noise.argsort(axis=1).astype(np.int32)
    batch = {
        "image": images,
        "visible_index": np.sort(order[:, :10], axis=1),
        "masked_index": np.sort(order[:, 10:], axis=1),
    }

    @jax.jit
    def loss(params, batch):
        return objective.loss(params, (), batch, jax.random.key(0), Clock(0, 100.0))[0]

    model.config.norm_pix_loss = normalize
    with torch.no_grad():
        expected = model(pixels_of(images), noise=torch.from_numpy(noise)).loss.item()
    deviation = abs(float(loss(params, batch)) / expected - 1)
    print(f"\nloss {expected:.4f}, relative deviation {deviation:.1e}", end="")
    assert deviation <= 1e-5


def test_features_of_all_patches_are_those_of_transformers_without_masks(model, ours, monkeypatch):
    import torch

    images = images_of(35)
    monkeypatch.setattr(model.config, "mask_ratio", 0.0)
    in_order = torch.arange(25.0).expand(3, 25)  # its shuffle sorts this
    with torch.no_grad():
        expected = model.vit(pixels_of(images), noise=in_order).last_hidden_state.numpy()
    encode, params = load_encoder(ours)
    assert encode.network == "encoder"
    deviation = np.abs(jax.jit(encode)(params, images) - expected[:, 1:]).max()
    print(f"\nlargest deviation {deviation:.1e}", end="")
    assert deviation <= 1e-5


def test_the_configuration_is_that_of_the_folder_and_the_rest_that_of_the_published_run(ours):
    config = checkpoint.read_config(checkpoint.find(ours))
    model, objective = config.model, config.objective
    assert (config.data.image_size, model.patch_size, config.grid) == ((35, 35), 7, (5, 5))
    assert (model.embed_dim, model.depth, model.num_heads, model.mlp_ratio) == (32, 2, 2, 3.0)
    assert (model.class_token, model.positions, model.layer_norm_eps) == (True, "sincos", 1e-12)
    assert (objective.name, objective.mask_ratio, objective.normalize_pixels) == ("mae", 0.6, False)
    assert dataclasses.astuple(objective.decoder) == (16, 2, 4)
    assert (config.epochs, config.batch_size, config.optimizer.b2) == (1600, 4096, 0.95)
    assert read_source(checkpoint.find(ours))["format"] == "vit_mae"


def test_each_value_of_each_tensor_is_read_once(theirs, tmp_path):
    """Each is a number of its own, but for the positions."""
    tensors, count = safetensors.numpy.load_file(theirs / WEIGHTS), 0
    for name, tensor in tensors.items():
        if name not in POSITIONS:
            tensors[name] = np.arange(count, count + tensor.size, dtype=np.float32).reshape(
                tensor.shape
            )
            count += tensor.size
    assert count < 2**24  # whole numbers up to there are exact
    shutil.copytree(theirs, tmp_path / "theirs")
    safetensors.numpy.save_file(tensors, tmp_path / "theirs" / WEIGHTS)
    to_orbax(tmp_path / "theirs", tmp_path / "ours")
    _, params = read_params(tmp_path / "ours")
    values = np.concatenate([x.ravel() for x in jax.tree.leaves(params)])
    np.testing.assert_array_equal(np.sort(values), np.arange(count, dtype=np.float32))


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("decoder", VIT_MAE_DECODERS)
@pytest.mark.parametrize("encoder", VIT_MAE_ENCODERS)
def test_the_names_of_both_versions_of_transformers_are_read(
    theirs, ours, tmp_path, encoder, decoder, prefix
):
    _, params = read_params(ours)
    config = checkpoint.read_config(checkpoint.find(ours))
    tensors = {
        prefix + encoder.pos_embed: np.pad(sincos_positions((5, 5), 32), [(1, 0), (0, 0)])[None],
        prefix + decoder.pos_embed: np.pad(sincos_positions((5, 5), 16), [(1, 0), (0, 0)])[None],
    }
    for network, parts in vit_mae_tensors(config, config.objective, encoder, decoder).items():
        for tensor in parts:
            array = params[network]
            for name in tensor.path:
                array = array[name]
            tensors[prefix + tensor.name] = tensor.fetch(array)
    shutil.copytree(theirs, tmp_path / "theirs")
    safetensors.numpy.save_file(tensors, tmp_path / "theirs" / WEIGHTS)
    to_orbax(tmp_path / "theirs", tmp_path / "ours")
    jax.tree.map(np.testing.assert_array_equal, read_params(tmp_path / "ours")[1], params)


def test_the_names_of_the_modules_themselves_are_read(model, theirs, ours, tmp_path):
    shutil.copytree(theirs, tmp_path / "theirs")
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    safetensors.numpy.save_file(tensors, tmp_path / "theirs" / WEIGHTS)
    to_orbax(tmp_path / "theirs", tmp_path / "ours")
    expected = read_params(ours)[1]
    jax.tree.map(np.testing.assert_array_equal, read_params(tmp_path / "ours")[1], expected)


def test_shards_are_read(model, ours, tmp_path):
    model.save_pretrained(tmp_path / "theirs", max_shard_size="40KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1
    to_orbax(tmp_path / "theirs", tmp_path / "ours")
    expected = read_params(ours)[1]
    jax.tree.map(np.testing.assert_array_equal, read_params(tmp_path / "ours")[1], expected)


def change_settings(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def widen_decoder_mlp(tensors):
    for name, tensor in tensors.items():
        if name.startswith("decoder.decoder_") and tensor.shape[:1] == (64,):
            tensors[name] = np.concatenate([tensor, tensor])
        elif name.startswith("decoder.decoder_") and tensor.shape == (16, 64):
            tensors[name] = np.concatenate([tensor, tensor], axis=1)


def add_to(tensors, name, index, value):
    tensors[name][index] += value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            widen_decoder_mlp,
            r"decoder_intermediate_size = 128: must be 4 x decoder_hidden_size = 64",
        ),
        (
            lambda t: add_to(t, POSITIONS[0], (0, 7, 3), 0.1),
            r"position_embeddings differs from the sine-cosine table of a 5 x 5 grid, .* to 0\.1;",
        ),
        (
            lambda t: add_to(t, POSITIONS[0], (0, 0, 3), 0.1),  # the class token's
            r"position_embeddings differs from the sine-cosine table",
        ),
        (
            lambda t: add_to(t, POSITIONS[0], (0, 7, 3), np.nan),
            r"position_embeddings differs from the sine-cosine table",
        ),
        (
            lambda t: t.update({POSITIONS[1]: np.zeros_like(t[POSITIONS[1]])}),  # never filled
            r"decoder_pos_embed differs from the sine-cosine table of a 5 x 5 grid",
        ),
        (lambda t: t.pop("vit.layernorm.bias"), r"missing: vit\.layernorm\.bias"),
        (lambda t: t.pop("vit.embeddings.cls_token"), r"missing: vit\.embeddings\.cls_token"),
        (lambda t: t.pop("decoder.mask_token"), r"missing: decoder\.mask_token"),
        (lambda t: t.pop(POSITIONS[1]), r"missing: decoder\.decoder_pos_embed"),
        (
            lambda t: [t.pop(name) for name in list(t) if name.startswith("decoder.")],
            r"no tensor decoder\.decoder_layers\.0\.intermediate\.dense\.weight",
        ),
        (
            lambda t: t.update({"vit.pooler.bias": np.zeros(3, np.float32)}),
            r"unexpected: vit\.pooler\.bias",
        ),
        (
            lambda t: add_to(t, "decoder.mask_token", (0, 0, 0), np.inf),
            r"decoder\.mask_token has numbers that are not finite",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named_and_refused(theirs, tmp_path, change, message):
    tensors = safetensors.numpy.load_file(theirs / WEIGHTS)
    change(tensors)
    shutil.copytree(theirs, tmp_path / "theirs")
    safetensors.numpy.save_file(tensors, tmp_path / "theirs" / WEIGHTS)
    assert_refused(tmp_path, message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "relu"}, r"hidden_act = 'relu': must be 'gelu'"),
        ({"qkv_bias": False}, r"qkv_bias = False: must be True"),
        ({"num_channels": 1}, r"num_channels = 1: must be 3"),
        ({"num_attention_heads": 3}, r"model\.num_heads = 3: must divide"),
        ({"decoder_num_attention_heads": 3}, r"decoder\.num_heads = 3: must divide"),
        ({"layer_norm_eps": 0.0}, r"layer_norm_eps = 0.0: must lie between"),
        ({"mask_ratio": 1.0}, r"mask_ratio = 1\.0: must lie in 0\.\.1, below 1"),
        ({"norm_pix_loss": "yes"}, r"normalize_pixels = 'yes': must be of type bool"),
        ({"image_size": [28, None]}, r"image_size\[1\] = None: must be of type int"),
        ({"image_size": 28}, r"misshapen: .*position_embeddings \(1, 26, 32\), which must be"),
        ({"image_size": 36}, r"image_size = \(36, 36\): the height must be a positive multiple"),
    ],
)
def test_settings_that_do_not_fit_are_named_and_refused(theirs, tmp_path, changes, message):
    shutil.copytree(theirs, tmp_path / "theirs")
    change_settings(tmp_path / "theirs", **changes)
    assert_refused(tmp_path, message)


def assert_refused(folder, message, **options):
    with pytest.raises(UserError, match=message) as error:
        to_orbax(folder / "theirs", folder / "ours", **options)
    assert "\n" not in str(error.value)
    assert not (folder / "ours").exists()


def test_the_target_encoder_and_a_base_of_another_objective_are_refused(theirs, tmp_path):
    shutil.copytree(theirs, tmp_path / "theirs")
    message = r"--network target_encoder: a masked autoencoder has only the encoder"
    assert_refused(tmp_path, message, network="target_encoder")
    base = load_config(str(REPOSITORY / "configs" / "in1k_vith14_ep300.py"), [])
    assert_refused(tmp_path, r"config\.objective\.name = ijepa: must be mae", base=base)


def test_what_is_missing_stays_at_its_initialisation_if_that_was_asked_for(theirs, ours, tmp_path):
    tensors = safetensors.numpy.load_file(theirs / WEIGHTS)
    del tensors["decoder.mask_token"]
    shutil.copytree(theirs, tmp_path / "theirs")
    safetensors.numpy.save_file(tensors, tmp_path / "theirs" / WEIGHTS)
    to_orbax(tmp_path / "theirs", tmp_path / "ours", allow_partial=True)
    (_, params), (_, whole) = read_params(tmp_path / "ours"), read_params(ours)
    assert 0 < np.abs(params["decoder"].pop("mask_token")).max() < 0.2
    del whole["decoder"]["mask_token"]
    jax.tree.map(np.testing.assert_array_equal, params, whole)


def run_convert(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["convert", *map(str, arguments)])
    main()


def test_the_command_takes_the_published_recipe_and_says_what_it_found(
    theirs, tmp_path, monkeypatch, capsys
):
    run_convert(monkeypatch, "hf-to-orbax", theirs, tmp_path / "ours")
    result = json.loads(capsys.readouterr().out)
    assert (result["networks"], result["num_heads"]) == (["encoder", "decoder"], 2)
    config = checkpoint.read_config(checkpoint.find(tmp_path / "ours"))
    assert (config.batch_size, config.compute.dtype) == (4096, "bfloat16")


@pytest.mark.parametrize("verb", ["orbax-to-hf", "orbax-to-official"])
def test_no_other_format_takes_a_masked_autoencoder(ours, tmp_path, monkeypatch, capsys, verb):
    with pytest.raises(SystemExit) as stopped:
        run_convert(monkeypatch, verb, ours, tmp_path / "back")
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: config.objective.name = mae: the formats of other libraries")
    assert not (tmp_path / "back").exists()


def test_the_formats_of_ijepa_take_no_class_token_and_no_base_of_another_objective(small, tmp_path):
    model = dataclasses.replace(small.config.model, class_token=True)
    with pytest.raises(UserError, match=r"config\.model\.class_token = True: the formats"):
        ijepa_settings(dataclasses.replace(small.config, model=model))
    orbax_to_hf(small.folder, tmp_path / "theirs", network="encoder")
    assert_refused(tmp_path, r"config\.objective\.name = mae: the formats of other libraries")


@pytest.mark.parametrize(("difference", "accepted"), [(1e-5, True), (1e-3, False)])
def test_positions_may_differ_by_rounding_alone(theirs, tmp_path, difference, accepted):
    tensors = safetensors.numpy.load_file(theirs / WEIGHTS)
    add_to(tensors, POSITIONS[1], (0, 7, 3), difference)
    shutil.copytree(theirs, tmp_path / "theirs")
    safetensors.numpy.save_file(tensors, tmp_path / "theirs" / WEIGHTS)
    if accepted:
        to_orbax(tmp_path / "theirs", tmp_path / "ours")
        return
    with pytest.raises(UserError, match="decoder_pos_embed differs from the sine-cosine table"):
        to_orbax(tmp_path / "theirs", tmp_path / "ours")


def test_the_class_token_is_left_out_of_the_features(ours):
    encode, params = load_encoder(ours, network="encoder")
    assert encode(params, jnp.asarray(images_of(35, n=2))).shape == (2, 25, 32)
