"""Feature networks: each through its own library, their files, and the cache of features."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx_files import write_network

from morphogen.core.errors import InputError
from morphogen.metrics import weights
from morphogen.metrics.feature_network import FeatureNetwork, resize
from morphogen.metrics.features import extract
from morphogen.metrics.function_network import FunctionNetwork
from morphogen.metrics.image_sets import ImageSet
from morphogen.metrics.networks import DINOv2, FIDInception, open_network
from morphogen.metrics.onnx import ONNXNetwork


def images(count: int = 5, side: int = 20, seed: int = 0) -> torch.Tensor:
    return torch.randint(
        0, 256, (count, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def as_set(*batches: torch.Tensor) -> ImageSet:
    flat = [image for batch in batches for image in batch]
    return ImageSet("pictures", [f"{i}.png" for i in range(len(flat))], lambda i: flat[i])


# ------------------------------------------------------------------------------------------------ the networks


@pytest.mark.slow
def test_fid_inception_is_torch_fidelitys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With random weights of the same architecture, whose file is read as the real one is."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    with monkeypatch.context() as patch:  # only to have an architecture without a file
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        torch.save({}, tmp_path / "empty.pth")
        bare = FeatureExtractorInceptionV3("x", ["2048"], feature_extractor_weights_path=str(tmp_path / "empty.pth"))
    torch.save(bare.state_dict(), tmp_path / "random.pth")
    network = FIDInception(tmp_path / "random.pth")
    found = network(images(2))
    assert found.shape == (2, 2048)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, bare(images(2))[0].numpy())
    assert (network.frechet_label, network.kernel_label) == ("FID", "KID")


def test_a_module_or_function_of_ones_own(tmp_path: Path) -> None:
    """The same figures as the layers by hand; features of a function, which may change unseen, are not kept."""
    torch.manual_seed(0)
    convolution = torch.nn.Conv2d(3, 4, 3, stride=2)
    network = open_network(convolution)
    with torch.no_grad():
        wanted = convolution(images(3) / 255).mean((2, 3))
    np.testing.assert_allclose(network(images(3)), wanted.numpy(), atol=1e-6)  # sums in another order
    assert network.frechet_label == "FD (Conv2d)" and open_network(network) is network

    def brightness(x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))

    own = open_network(brightness)
    assert own.name == "brightness" and own.identity is None
    found = extract(own, as_set(images(5), images(2, 31)), cache=tmp_path / "cache", quiet=True)
    assert found.shape == (7, 3) and not (tmp_path / "cache").exists()
    standard = FunctionNetwork(brightness, "standard", size=(8, 8), mean=(0.5,) * 3, deviation=(0.25,) * 3)
    np.testing.assert_allclose(standard(images(2)), (own(images(2)) - 0.5) / 0.25, atol=0.05)  # resized, clamped
    with pytest.raises(InputError, match=r"flat gave \(15,\) for 5 images; it should be a tensor"):
        FunctionNetwork(lambda x: x.flatten()[:15], "flat")(images(5))


def test_a_timm_model_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With weights from a file, as timm itself computes them, with the size and colours it was trained with."""
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = timm.create_model("test_resnet", pretrained=False).eval()
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    network = open_network(f"timm:test_resnet:{tmp_path / 'w.safetensors'}")
    config = timm.data.resolve_model_data_config(model)
    x = resize(images(2), config["input_size"][1:])
    mean, deviation = (torch.tensor(config[k]).view(1, 3, 1, 1) for k in ("mean", "std"))
    with torch.no_grad():
        wanted = model.forward_head(model.forward_features((x - mean) / deviation), pre_logits=True)
    np.testing.assert_allclose(network(images(2)), wanted.numpy(), atol=1e-5)  # of sums of a hundred products
    assert network.name == "test_resnet" and network.identity is not None
    for name, says in (
        ("timm:resnet999", r"timm has no model 'resnet999'; did you mean .*resnet"),
        ("timm:test_resnet:nowhere.safetensors", "nowhere.safetensors should be a safetensors file that is there"),
        ("timm:hf-hub:a/b", "timm has no model 'hf-hub'|should be a safetensors file"),
    ):
        with pytest.raises(InputError, match=says):
            open_network(name)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "bad.safetensors").write_bytes(b"no such thing")
    with pytest.raises(InputError, match=r"the weights of timm:test_resnet cannot be had .*; it is damaged"):
        open_network(f"timm:test_resnet:{tmp_path / 'bad.safetensors'}")


def test_a_hub_out_of_reach_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not after the retries of its client, which take 50 seconds."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # where nothing listens
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    started = time.monotonic()
    with pytest.raises(InputError, match=r"the weights of timm:resnet18 cannot be had .*timm:resnet18:FILE"):
        open_network("timm:resnet18")
    assert time.monotonic() - started < 20  # building the network takes a second, a busy machine some more
    assert not constants.HF_HUB_OFFLINE  # in Python the next call may find it again


@pytest.mark.slow
def test_dinov2_through_timm(tmp_path: Path) -> None:
    """With random weights of the published architecture and size, 518x518, resized to 224x224 by timm."""
    import timm

    torch.manual_seed(0)
    published = timm.create_model("vit_small_patch14_dinov2.lvd142m", pretrained=False, num_classes=0)
    assert published.pos_embed.shape[1] == 37 * 37 + 1
    torch.save(published.state_dict(), tmp_path / "random.pth")
    network = DINOv2("dinov2-small", tmp_path / "random.pth")
    found = network(images(2, 224))
    assert found.shape == (2, 384)
    assert network.frechet_label == "FD (dinov2-small)"
    same = network(images(2, 224))
    np.testing.assert_array_equal(found, same)
    weight = dict(published.named_parameters())["blocks.3.mlp.fc1.weight"]
    assert torch.equal(dict(network._net.named_parameters())["blocks.3.mlp.fc1.weight"], weight)


def test_an_onnx_network_averages_over_space_and_follows_its_sidecar(tmp_path: Path) -> None:
    plain = ONNXNetwork(write_network(tmp_path / "plain.onnx", side=16))
    assert plain.size == (16, 16)
    found = plain(images(5, 30))
    assert found.shape == (5, 8)
    assert plain.frechet_label == "FD (plain)"
    one_by_one = ONNXNetwork(write_network(tmp_path / "single.onnx", side=16, batch=2))
    np.testing.assert_allclose(one_by_one(images(5, 30)), found, rtol=1e-5, atol=1e-6)  # float32, another batch size

    write_network(tmp_path / "signed.onnx")
    (tmp_path / "signed.json").write_text(json.dumps({"size": [16, 16], "range": "-1..1"}))
    signed = ONNXNetwork(tmp_path / "signed.onnx")
    (tmp_path / "shifted.json").write_text(json.dumps({"mean": [0.5] * 3, "deviation": [0.5] * 3, "size": [16, 16]}))
    shifted = ONNXNetwork(write_network(tmp_path / "shifted.onnx"))
    np.testing.assert_allclose(signed(images()), shifted(images()), rtol=1e-4, atol=1e-5)  # the same in other words
    assert len({plain.identity, signed.identity, shifted.identity}) == 3


@pytest.mark.parametrize(
    ("sidecar", "message"),
    [
        ({"sizes": [16, 16]}, "did you mean 'size'"),
        ({"range": "0..2"}, "range: input should be '0..1'"),
        ({"output": "z"}, "output is 'z', but"),
        ([1], "should be a table of settings"),
    ],
)
def test_a_wrong_sidecar_is_refused(tmp_path: Path, sidecar: object, message: str) -> None:
    write_network(tmp_path / "a.onnx")
    (tmp_path / "a.json").write_text(json.dumps(sidecar))
    with pytest.raises(InputError, match=message):
        ONNXNetwork(tmp_path / "a.onnx")


def test_wrong_network_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such file"):
        open_network(f"onnx:{tmp_path / 'none.onnx'}")
    (tmp_path / "broken.onnx").write_bytes(b"not a network")
    with pytest.raises(InputError, match=r"broken\.onnx cannot be opened"):
        open_network(f"onnx:{tmp_path / 'broken.onnx'}")
    with pytest.raises(InputError, match="choose one of fid-inception, dinov2, dinov2-small, timm:NAME, onnx:FILE"):
        open_network("inception")


# ------------------------------------------------------------------------------------------------ files


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bytes], weights.WeightFile]]:
    """served(content): a real server that sends this, and a network file `toy` of the content b"weights" there."""
    answer = {"content": b""}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if answer["content"] == b"no HTTP":
                self.wfile.write(b"no HTTP")
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer["content"])))
            self.end_headers()
            self.wfile.write(answer["content"])

        def log_message(self, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv(weights.VARIABLE, str(tmp_path / "weights"))

    def serve(content: bytes) -> weights.WeightFile:
        answer["content"] = content
        digest = hashlib.sha256(b"weights").hexdigest()
        url = f"http://127.0.0.1:{server.server_port}/toy.pth"
        file = weights.WeightFile("toy", "toy.pth", url, digest, 7, "none")
        monkeypatch.setitem(weights.FILES, "toy", file)
        return file

    yield serve
    server.shutdown()
    thread.join()
    server.server_close()


def test_fetching_checks_and_keeps(served: Callable[[bytes], weights.WeightFile], tmp_path: Path) -> None:
    served(b"weights")
    told: list[int] = []
    assert weights.find_corruption("toy") == "missing"
    path = weights.fetch("toy", told.append)
    assert path == tmp_path / "weights" / "toy.pth" == weights.require("toy")
    assert (path.read_bytes(), told) == (b"weights", [7])
    assert [p.name for p in path.parent.iterdir()] == ["toy.pth"]


def test_a_server_that_speaks_no_http(served: Callable[[bytes], weights.WeightFile], tmp_path: Path) -> None:
    file = served(b"no HTTP")
    with pytest.raises(InputError, match=f"could not be fetched .*{file.sha256}"):
        weights.require("toy")
    assert list((tmp_path / "weights").iterdir()) == []


def test_wrong_content_is_not_kept(served: Callable[[bytes], weights.WeightFile], tmp_path: Path) -> None:
    served(b"something else")
    with pytest.raises(InputError, match="nothing was kept"):
        weights.require("toy")
    assert list((tmp_path / "weights").iterdir()) == []


def test_offline_says_address_hash_and_destination(
    served: Callable[[bytes], weights.WeightFile], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = replace(served(b""), url="http://127.0.0.1:9/toy.pth")  # nothing listens there
    monkeypatch.setitem(weights.FILES, "toy", file)
    with pytest.raises(InputError) as caught:
        weights.require("toy")
    for part in (file.url, file.sha256, str(tmp_path / "weights" / "toy.pth"), weights.VARIABLE):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_damaged_file_is_never_used(served: Callable[[bytes], weights.WeightFile], tmp_path: Path) -> None:
    served(b"weights")
    path = weights.fetch("toy")
    path.write_bytes(b"weight!")
    with pytest.raises(InputError, match="damaged"):
        weights.require("toy")
    assert path.read_bytes() == b"weight!"


def test_the_registered_files_are_whole_facts() -> None:
    for name, file in weights.FILES.items():
        assert file.network == name
        assert len(file.sha256) == 64
        assert file.url.startswith("https://") and file.url.endswith(file.name)
    for file in (weights.FILES["fid-inception"], weights.FILES["lpips-vgg"]):
        assert file.name.endswith(f"-{file.sha256[:8]}.pth")  # as their publishers name them


# ------------------------------------------------------------------------------------------------ the cache


class Counting(FeatureNetwork):
    """Means of the channels; counts the images that it is shown."""

    name = "counting"

    def __init__(self, identity: str = "one") -> None:
        self.identity, self.seen = identity, 0

    def __call__(self, batch: torch.Tensor) -> np.ndarray:
        self.seen += len(batch)
        return batch.float().mean(dim=(2, 3)).numpy()


def test_features_are_kept_by_content(tmp_path: Path) -> None:
    first = Counting()
    found = extract(first, as_set(images(70)), cache=tmp_path, quiet=True)
    assert first.seen == 70
    again = Counting()
    renamed = ImageSet("other", [f"x{i}" for i in range(70)], lambda i: images(70)[i])
    np.testing.assert_array_equal(extract(again, renamed, cache=tmp_path, quiet=True), found)
    assert again.seen == 0
    for other in (as_set(images(70, seed=1)), as_set(images(70, 22))):
        network = Counting()
        extract(network, other, cache=tmp_path, quiet=True)
        assert network.seen == 70
    changed = Counting("two")
    extract(changed, as_set(images(70)), cache=tmp_path, quiet=True)
    assert changed.seen == 70


def test_a_damaged_cache_is_computed_again_and_an_interrupted_one_goes_on(tmp_path: Path) -> None:
    found = extract(Counting(), as_set(images(130)), cache=tmp_path, quiet=True)
    files = sorted(tmp_path.iterdir())
    assert len(files) == 3
    files[0].write_bytes(files[0].read_bytes()[:100])
    files[1].unlink()
    network = Counting()
    np.testing.assert_array_equal(extract(network, as_set(images(130)), cache=tmp_path, quiet=True), found)
    assert network.seen < 130

    class Stopping(Counting):
        def __call__(self, batch: torch.Tensor) -> np.ndarray:
            if self.seen >= 64:
                raise KeyboardInterrupt
            return super().__call__(batch)

    with pytest.raises(KeyboardInterrupt):
        extract(Stopping("three"), as_set(images(130)), cache=tmp_path, quiet=True)
    rest = Counting("three")
    extract(rest, as_set(images(130)), cache=tmp_path, quiet=True)
    assert rest.seen == 66


def test_mixed_sizes_keep_their_order() -> None:
    mixed = as_set(images(3, 20), images(2, 33), images(3, 20, 5))
    found = extract(Counting(), mixed, quiet=True)
    wanted = [image.float().mean(dim=(1, 2)).numpy() for image in mixed]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)  # float32 means in another order of summation


def test_gray_images_are_shown_in_three_channels() -> None:
    gray = ImageSet("gray", ["a"], lambda i: images(1)[0, :1])
    assert extract(Counting(), gray, quiet=True).shape == (1, 3)


def test_features_that_are_not_finite_are_refused_and_not_kept(tmp_path: Path) -> None:
    class Broken(Counting):
        def __call__(self, batch: torch.Tensor) -> np.ndarray:
            return np.full((len(batch), 4), np.nan, np.float32)

    with pytest.raises(InputError, match=r"pictures, images 0 to 4.* are not finite"):
        extract(Broken(), as_set(images()), cache=tmp_path, quiet=True)
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="holds no images"):
        extract(Counting(), as_set(), quiet=True)
