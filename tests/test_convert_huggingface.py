"""Hugging Face folders to Orbax and back, judged by `transformers`; and timm's names."""

import dataclasses
import json
import sys

import flax
import jax
import numpy as np
import pytest
import safetensors.numpy
from conftest import REPOSITORY

from jepa_jax.config import resolve
from jepa_jax.config.files import load_config
from jepa_jax.convert import hf_to_orbax, orbax_to_hf, orbax_to_official
from jepa_jax.encoder import load_encoder
from jepa_jax.errors import UserError
from jepa_jax.interop import converted, huggingface
from jepa_jax.interop.converted import read_source
from jepa_jax.interop.names import HUGGINGFACE_5, PUBLISHED, encoder_tensors
from jepa_jax.models.positions import sincos_positions
from jepa_jax.objectives.registry import make_objective
from jepa_jax.training import checkpoint

BASE = load_config(str(REPOSITORY / "configs" / "in1k_vith14_ep300.py"), [])


def to_orbax(source, destination, **options):
    defaults = {
        "base": BASE,
        "base_is_given": False,
        "num_heads": None,
        "allow_partial": False,
        "network": None,
    }
    return hf_to_orbax(source, destination, **(defaults | options))


def images_of(size, n=2):
    return np.random.default_rng(0).normal(size=(n, size, size, 3)).astype(np.float32)


def features(path, images, network="encoder"):
    encode, params = load_encoder(path, network=network)
    return np.asarray(jax.jit(encode)(params, images))


def theirs_of(model, images, **options):
    import torch

    with torch.no_grad():
        pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        return model(pixels, **options).last_hidden_state.numpy()


# Head widths 64, 80 and 88 of the published models, and an odd one.
SHAPES = {
    "64": {"width": 128, "heads": 2, "patch": 16, "hidden": 512},
    "80": {"width": 160, "heads": 2, "patch": 14, "hidden": 640},
    "88": {"width": 176, "heads": 2, "patch": 14, "hidden": 768},  # MLP ratio 48 / 11
    "15": {"width": 60, "heads": 4, "patch": 16, "hidden": 240},
}


@pytest.fixture(scope="module", params=SHAPES)
def judge(request, tmp_path_factory):
    """An `IJepaModel` at its random initialisation, its folder, and ours from that."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    shape = SHAPES[request.param]
    torch.manual_seed(0)
    model = transformers.IJepaModel(
        transformers.IJepaConfig(
            hidden_size=shape["width"],
            num_attention_heads=shape["heads"],
            patch_size=shape["patch"],
            intermediate_size=shape["hidden"],
            image_size=4 * shape["patch"],
            num_hidden_layers=2,
        )
    ).eval()
    folder = tmp_path_factory.mktemp("hf")
    model.save_pretrained(folder / "theirs")
    to_orbax(folder / "theirs", folder / "ours")
    return model, folder


def test_features_of_a_converted_model_are_those_of_transformers(judge):
    model, folder = judge
    images = images_of(model.config.image_size)
    deviation = np.abs(features(folder / "ours", images) - theirs_of(model, images)).max()
    print(f"\nlargest deviation {deviation:.1e}", end="")
    assert deviation <= 1e-5


def test_a_folder_is_loaded_directly_as_its_conversion_is(judge):
    model, folder = judge
    images = images_of(model.config.image_size)
    direct = load_encoder(folder / "theirs")
    assert direct[0].network == "encoder"
    np.testing.assert_array_equal(
        np.asarray(jax.jit(direct[0])(direct[1], images)), features(folder / "ours", images)
    )


def test_transformers_loads_ours_without_a_word_and_computes_the_same(judge, tmp_path):
    """And every tensor has the bytes that it had before it came here."""
    model, folder = judge
    orbax_to_hf(folder / "ours", tmp_path / "back", network="encoder")
    back, said = type(model).from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(said.values()), said
    expected = model.state_dict()
    assert back.state_dict().keys() == expected.keys()
    for name, tensor in back.state_dict().items():
        assert tensor.numpy().tobytes() == expected[name].numpy().tobytes(), name
    images = images_of(model.config.image_size)
    np.testing.assert_allclose(
        features(folder / "ours", images), theirs_of(back.eval(), images), atol=1e-5
    )


def test_at_another_resolution_the_positions_differ_by_the_cubic_alone(judge):
    """Ours is Keys' cubic with a = -1/2, PyTorch's has a = -3/4.

    Random positions, neighbours without likeness, are the worst case: up to 0.02 of features of
    size 1. With PyTorch's table put in, nothing differs.
    """
    import torch

    model, folder = judge
    size = model.config.image_size * 3 // 2
    images = images_of(size)
    theirs = theirs_of(model, images, interpolate_pos_encoding=True)
    difference = np.abs(features(folder / "ours", images) - theirs).max()
    print(f"\nlargest difference {difference:.1e}", end="")
    assert 1e-4 < difference < 0.05

    encode, params = load_encoder(folder / "ours", network="encoder")
    num_patches = (size // model.config.patch_size) ** 2
    like = torch.zeros(1, num_patches, model.config.hidden_size)
    with torch.no_grad():
        table = model.embeddings.interpolate_pos_encoding(like, size, size)[0].numpy()
    data = dataclasses.replace(encode.config.data, image_size=(size, size))
    encode = dataclasses.replace(encode, config=dataclasses.replace(encode.config, data=data))
    ours = encode(params | {"pos_embed": jax.numpy.asarray(table)}, images)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def trees_equal(a, b):
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        jax.tree.leaves(jax.tree.map(lambda x, y: x.tobytes() == y.tobytes(), a, b))
    )


@pytest.mark.parametrize("network", ["target_encoder", "encoder"])
def test_ours_there_and_back_is_bit_for_bit_the_tower_that_was_asked_for(small, tmp_path, network):
    """The folder says which it is, and the way back believes it."""
    orbax_to_hf(small.folder, tmp_path / "hf", network=network)
    said = json.loads((tmp_path / "hf" / "config.json").read_text())["jepa_jax"]["network"]
    with safetensors.safe_open(tmp_path / "hf" / "model.safetensors", "np") as opened:
        assert opened.metadata()["network"] == said == network
    assert to_orbax(tmp_path / "hf", tmp_path / "back")["networks"] == [network]
    encode, params = load_encoder(tmp_path / "back", network=network)
    expected = getattr(small, network)
    assert trees_equal(jax.device_get(params), expected)
    assert encode.config.model.positions == "sincos"
    assert read_source(checkpoint.find(tmp_path / "back"))["network"] == network


@pytest.mark.parametrize("size", [(64, 16), (16, 64)])
def test_a_grid_that_is_no_square_comes_back_as_it_was(tiny, tmp_path, size):
    """Its 16 patches would also fill a square."""
    tiny.data.image_size, tiny.model.patch_size = size, 8
    config = resolve(tiny)
    params = jax.device_get(make_objective(config).init(jax.random.key(0)))
    items = [("params", params), ("target_encoder", params["encoder"])]
    converted.write(tmp_path / "ours", items, config=config, source={})
    orbax_to_hf(tmp_path / "ours", tmp_path / "hf", network="target_encoder")
    to_orbax(tmp_path / "hf", tmp_path / "back", num_heads=2)
    images = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
    expected = features(tmp_path / "ours", images, "target_encoder")
    for name in ("back", "hf"):
        encode, params = load_encoder(tmp_path / name)
        assert encode.config.data.image_size == size
        assert encode.config.model.positions == "sincos"
        np.testing.assert_array_equal(jax.jit(encode)(params, images), expected)


def test_shards_are_written_and_read(small, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface, "_SHARD_BYTES", 6000)
    orbax_to_hf(small.folder, tmp_path / "hf", network="target_encoder")
    names = sorted(path.name for path in (tmp_path / "hf").glob("*.safetensors"))
    assert len(names) > 2
    assert names[0] == f"model-00001-of-{len(names):05}.safetensors"
    index = json.loads((tmp_path / "hf" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(names)
    to_orbax(tmp_path / "hf", tmp_path / "back")
    assert trees_equal(jax.device_get(load_encoder(tmp_path / "back")[1]), small.target_encoder)


@pytest.mark.parametrize(
    ("style", "prefix"),
    [(HUGGINGFACE_5, ""), (HUGGINGFACE_5, "ijepa."), (PUBLISHED, ""), (PUBLISHED, "module.")],
)
def test_all_ways_to_name_them_are_read(small, tmp_path, style, prefix):
    """Of transformers 5, of a classification model, of timm, of a model wrapped for many GPUs."""
    arrays = flax.traverse_util.flatten_dict(small.encoder)
    tensors = {
        prefix + t.name: t.fetch(arrays[t.path]) for t in encoder_tensors(small.config, style)
    }
    tensors[prefix + style.pos_embed] = sincos_positions(small.config.grid, 16)[None]
    safetensors.numpy.save_file(tensors, tmp_path / "vit.safetensors")
    result = to_orbax(tmp_path / "vit.safetensors", tmp_path / "ours", num_heads=2)
    assert result["networks"] == ["encoder"]
    _, params = load_encoder(tmp_path / "ours", network="encoder")
    assert trees_equal(jax.device_get(params), small.encoder)


def test_a_timm_model_with_learned_positions_computes_what_a_plain_implementation_does(
    small, tmp_path
):
    """NumPy, float64, from timm's tensors as they are."""
    config, rng = small.config, np.random.default_rng(0)
    tensors = {
        t.name: (0.3 * rng.normal(size=t.shape)).astype(np.float32)
        for t in encoder_tensors(config, PUBLISHED)
    }
    tensors["pos_embed"] = rng.normal(size=(1, 16, 16)).astype(np.float32)
    safetensors.numpy.save_file(tensors, tmp_path / "vit.safetensors")
    to_orbax(tmp_path / "vit.safetensors", tmp_path / "ours", num_heads=2)
    images = images_of(28)
    expected = plain_vit(
        {k: v.astype(np.float64) for k, v in tensors.items()}, images, p=7, heads=2
    )
    np.testing.assert_allclose(features(tmp_path / "ours", images), expected, atol=1e-4)


def plain_vit(w, images, *, p, heads):
    from scipy.special import erf

    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        return (
            x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * w[f"{name}.weight"]
            + w[f"{name}.bias"]
        )

    def dense(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    B, H, W, _ = images.shape
    cut = images.reshape(B, H // p, p, W // p, p, 3)
    x = np.einsum("bhiwjc,dcij->bhwd", cut, w["patch_embed.proj.weight"]).reshape(B, -1, 16)
    x = x + w["patch_embed.proj.bias"] + w["pos_embed"]
    for i in range(2):
        qkv = dense(norm(x, f"blocks.{i}.norm1"), f"blocks.{i}.attn.qkv")
        q, k, v = qkv.reshape(B, -1, 3, heads, 16 // heads).transpose(2, 0, 3, 1, 4)
        scores = q @ k.transpose(0, 1, 3, 2) / np.sqrt(16 // heads)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        y = (scores / scores.sum(-1, keepdims=True) @ v).transpose(0, 2, 1, 3).reshape(x.shape)
        x = x + dense(y, f"blocks.{i}.attn.proj")
        y = dense(norm(x, f"blocks.{i}.norm2"), f"blocks.{i}.mlp.fc1")
        x = x + dense(y * (1 + erf(y / np.sqrt(2))) / 2, f"blocks.{i}.mlp.fc2")
    return norm(x, "norm")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, c: t.pop("layernorm.bias"), r"missing: layernorm\.bias"),
        (
            lambda t, c: t.update({"pooler.dense.bias": np.zeros(3, np.float32)}),
            r"unexpected: pooler\.dense\.bias",
        ),
        (
            lambda t, c: t.update({"layernorm.bias": np.zeros(3, np.float32)}),
            r"misshapen: layernorm\.bias \(3,\)",
        ),
        (
            lambda t, c: t.update({"embeddings.cls_token": np.zeros(3, np.float32)}),
            r"has a class token",
        ),
        (
            lambda t, c: t.update({"layernorm.bias": np.zeros(16, np.float16)}),
            r"layernorm\.bias is F16: must be float32",
        ),
        (lambda t, c: c.update(hidden_act="relu"), r"hidden_act = 'relu': must be 'gelu'"),
        (lambda t, c: c.update(qkv_bias=False), r"qkv_bias = False: must be True"),
        (lambda t, c: c.update(num_attention_heads=3), r"num_heads = 3: must divide"),
        (lambda t, c: c.update(layer_norm_eps=0.0), r"layer_norm_eps = 0.0: must lie between"),
        (lambda t, c: c.update(image_size="28"), r"image_size = '28': must be one or two whole"),
        (lambda t, c: c.update(image_size=[28, 0]), r"image_size = \[28, 0\]: must be one or two"),
        (lambda t, c: c.update(image_size=[28, 14]), r"16 positions: must be those of .* 28 x 14"),
    ],
)
def test_what_does_not_fit_is_named_and_refused(small, tmp_path, change, message):
    orbax_to_hf(small.folder, tmp_path / "hf", network="encoder")
    tensors = safetensors.numpy.load_file(tmp_path / "hf" / "model.safetensors")
    settings = json.loads((tmp_path / "hf" / "config.json").read_text())
    change(tensors, settings)
    safetensors.numpy.save_file(tensors, tmp_path / "hf" / "model.safetensors")
    (tmp_path / "hf" / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=message):
        to_orbax(tmp_path / "hf", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_the_preprocessing_is_written_for_their_image_processor(small, tmp_path):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    orbax_to_hf(small.folder, tmp_path / "hf", network="encoder")
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "hf")
    data = small.config.data
    assert (processor.size["height"], processor.size["width"]) == data.image_size
    assert tuple(processor.image_mean) == data.mean
    assert tuple(processor.image_std) == data.std


def test_pytorch_is_needed_for_its_own_files_alone(small, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed
    orbax_to_hf(small.folder, tmp_path / "hf", network="encoder")
    to_orbax(tmp_path / "hf", tmp_path / "ours")
    with pytest.raises(UserError, match=r"not installed: pip install -r requirements-interop\.txt"):
        orbax_to_official(small.folder, tmp_path / "a.pth.tar", epoch=None)
    assert not (tmp_path / "a.pth.tar").exists()
