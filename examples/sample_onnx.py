"""Paint with numpy and onnxruntime alone: `morphogen export tissue-texture --to onnx tissue.onnx`, then
`python sample_onnx.py tissue.onnx 4 64 out.png`. DDIM without noise (Song et al., 2021, equation 12).
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image


def sample(session, noise, steps=25, seed=0):
    """Images float (N, C, H, W) of [-1, 1] from noise of this shape."""
    facts = json.loads(session.get_modelmeta().custom_metadata_map["morphogen"])
    signal, draw = np.array(facts["alpha_bar"]), np.random.default_rng(seed)
    times = [round((len(signal) - 1) * (steps - k) / steps) for k in range(steps)]
    x = noise.astype(np.float32)
    for now, after in zip(times, [*times[1:], None], strict=True):
        inputs = {"x": x, "t": np.full(len(x), now, np.float32)}
        if "fire" in facts["inputs"]:  # which cells update in each NCA step
            rows, columns = (side // facts["patch"] for side in x.shape[2:])
            inputs["fire"] = (draw.random((len(x), facts["nca_steps"], rows, columns)) < facts["fire_rate"]).astype(
                np.float32
            )
        (predicted,) = session.run(None, inputs)
        clean = ((x - np.sqrt(1 - signal[now]) * predicted) / np.sqrt(signal[now])).clip(-1, 1)
        predicted = (x - np.sqrt(signal[now]) * clean) / np.sqrt(1 - signal[now])
        x = clean if after is None else np.sqrt(signal[after]) * clean + np.sqrt(1 - signal[after]) * predicted
        x = x.astype(np.float32)
    return x


if __name__ == "__main__":
    file, count, side, out = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    images = sample(
        onnxruntime.InferenceSession(file), np.random.default_rng(0).standard_normal((count, 3, side, side))
    )
    pixels = ((images.transpose(0, 2, 3, 1) + 1) * 127.5).round().astype(np.uint8)
    Image.fromarray(np.concatenate(list(pixels), axis=1)).save(out)
