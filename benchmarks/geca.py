"""How fast is a step of GeCA-S? `python benchmarks/geca.py [--sides 32 64] [--threads N]`.

In one run, on the same numbers and with the same threads: the attention to neighbours as a literal gather (nine copies
of keys and values, taken by `unfold`, which is faster than the released code's convolution with nine impulses) against
ours, with the memory that each allocates; and the whole step in its released form in eager float32 (all cells computed,
then masked) against ours, plain, and fast in float32 and bfloat16. Times are medians over interleaved rounds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from denoiser import interleaved, processor, relative
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from morphogen import create_model
from morphogen.automata.geca import GeCA, encode_places
from morphogen.automata.neighbours import Grid, attend
from morphogen.core.keys import Key

RESULTS = Path(__file__).parent / "results"
CHANNELS, LABELS = 4, 11


def gather(rows: Tensor, grid: Grid, heads: int) -> Tensor:
    """Every cell's nine neighbours side by side: (B, heads, cells, 9, D / heads) of rows (B, cells, D)."""
    batch, cells, wide = rows.shape
    maps = rows.transpose(1, 2).reshape(batch * heads, wide // heads, grid.height, grid.width)
    around = F.unfold(maps, 3, padding=1).view(batch, heads, wide // heads, 9, cells)
    return around.permute(0, 1, 4, 3, 2).contiguous()


def attend_literally(queries: Tensor, keys: Tensor, values: Tensor, grid: Grid, heads: int) -> Tensor:
    """The attention as published: (B, cells, D)."""
    batch, cells, wide = queries.shape
    q = queries.view(batch, cells, heads, 1, -1).transpose(1, 2)
    logits = q @ gather(keys, grid, heads).transpose(-1, -2) * (wide // heads) ** -0.5
    told = logits.softmax(dim=-1) @ gather(values, grid, heads)
    return told.squeeze(3).transpose(1, 2).reshape(batch, cells, wide)


def released(model: GeCA, x: Tensor, t: Tensor, labels: Tensor, key: Key, steps: int) -> Tensor:
    """An evaluation as the released code computes it: everything for every cell, in every step. The last state."""
    grid = Grid(len(x), x.shape[-2], x.shape[-1])
    own = model.start(key, grid, None)
    c = model.conditioning(t, labels)
    for mask in key.fire_masks(steps, model.architecture.fire_rate, (grid.height, grid.width), x.device):
        rows = model.embed(torch.cat([x, own], dim=1).flatten(2).transpose(1, 2))
        rows = rows + encode_places(grid, rows.shape[-1], "raster", x.device)
        shift1, scale1, gate1, shift2, scale2, gate2 = model.modulation(F.silu(c))[:, None].chunk(6, dim=-1)
        seen = model.attention_norm(rows) * (1 + scale1) + shift1
        told = attend_literally(*model.qkv(seen).chunk(3, dim=-1), grid, model.architecture.heads)
        rows = gate1 * model.attention_out(told) + rows
        rows = gate2 * model.mlp(model.mlp_norm(rows) * (1 + scale2) + shift2) + rows
        shift3, scale3 = model.last_modulation(F.silu(c))[:, None].chunk(2, dim=-1)
        change = model.last(F.layer_norm(rows, rows.shape[-1:], eps=1e-6) * (1 + scale3) + shift3)
        own = own + mask * change.transpose(1, 2).view_as(own)
    return own


def allocated(task: Callable[[], object]) -> int:
    """The most bytes that a task has allocated at a time."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        task()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def measure_attention(side: int, rounds: int) -> dict[str, object]:
    """The attention of every cell of one image, 768 numbers and 12 heads."""
    grid, heads, wide = Grid(1, side, side), 12, 768
    q, k, v = (torch.randn(1, grid.cells, wide) for _ in range(3))
    every = torch.arange(grid.cells)
    literal = lambda: attend_literally(q, k, v, grid, heads)  # noqa: E731
    ours = lambda: attend(q[0], k[0], v[0], every, grid, heads)  # noqa: E731
    error = relative(ours(), literal()[0])
    times = interleaved({"literal gather": literal, "ours": ours}, rounds)
    memory = {"literal gather": allocated(literal), "ours": allocated(ours)}
    faster = times["literal gather"] / times["ours"]
    share = memory["ours"] / memory["literal gather"]
    print(f"\nattention to 3x3 neighbours, {side}x{side}, {wide} numbers, {heads} heads, float32")
    for name, seconds in times.items():
        print(f"  {name:<28} {seconds * 1e3:9.2f} ms {memory[name] / 2**20:9.1f} MiB")
    print(f"  {faster:.1f} times faster, {share:.3f} of the memory; error {error:.1e}")
    return {"side": side, "seconds": times, "bytes": memory, "times_faster": faster, "memory": share, "error": error}


def measure_step(side: int, rounds: int, steps: int) -> dict[str, object]:
    """One NCA step of GeCA-S on one image."""
    torch.manual_seed(0)
    model = create_model("geca-s", size=side, image_channels=CHANNELS, labels=[f"label {i}" for i in range(LABELS)])
    assert isinstance(model, GeCA)
    model.eval()
    for weight in model.parameters():
        weight.data = 0.02 * torch.randn_like(weight)
    x, t = torch.randn(1, CHANNELS, side, side), torch.tensor([500.0])
    labels, key = torch.zeros(1, LABELS), Key.of([0])

    def ours(precision: str | None) -> Tensor:
        model.accelerate(precision)  # type: ignore[arg-type]
        return model(x, t, labels=labels, key=key, nca_steps=steps).memory

    fast = {precision: create_fast(model, precision) for precision in ("float32", "bfloat16")}

    def ours_fast(precision: str) -> Tensor:
        model.acceleration = fast[precision]
        return model(x, t, labels=labels, key=key, nca_steps=steps).memory

    exact, start = released(model, x, t, labels, key, steps), model.start(key, Grid(1, side, side), None)
    errors = {str(p): relative(ours(p) - start, exact - start) for p in (None, "float32", "bfloat16")}
    times = interleaved(
        {
            "released, eager float32": lambda: released(model, x, t, labels, key, steps),
            "ours, plain float32": lambda: ours(None),
            "ours, fast float32": lambda: ours_fast("float32"),
            "ours, fast bfloat16": lambda: ours_fast("bfloat16"),
        },
        rounds,
    )
    times = {name: seconds / steps for name, seconds in times.items()}
    faster = {name: times["released, eager float32"] / seconds for name, seconds in times.items()}
    print(f"\na step of geca-s, {side}x{side}, one image, {LABELS} labels (of an evaluation of {steps} steps)")
    for name, seconds in times.items():
        print(f"  {name:<28} {seconds * 1e3:9.2f} ms {faster[name]:7.1f} times faster")
    print(f"  errors {', '.join(f'{name} {error:.1e}' for name, error in errors.items())}")
    return {"side": side, "steps": steps, "seconds": times, "times_faster": faster, "errors": errors}


def create_fast(model: GeCA, precision: str) -> object:
    model.accelerate(precision)  # type: ignore[arg-type]
    return model.acceleration


@torch.no_grad()
def main() -> None:
    """Measure everything, print it, write results/geca.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sides", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4, help="NCA steps of an evaluation")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    result = {
        "processor": processor(),
        "threads": chosen.threads,
        "attention": [measure_attention(side, chosen.rounds) for side in chosen.sides],
        "step": [measure_step(side, chosen.rounds, chosen.steps) for side in chosen.sides],
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "geca.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
