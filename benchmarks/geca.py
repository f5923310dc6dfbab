"""How fast is a step of GeCA-S? `python benchmarks/geca.py [--sides 32 64] [--threads N] [--device cuda]`.

In one run, on the same numbers and with the same threads: the attention to neighbours as a literal gather (nine copies
of keys and values, taken by `unfold`, which is faster than the released code's convolution with nine impulses) against
ours, with the memory that each allocates; and the whole step in its released form in eager float32 (all cells computed,
then masked) against ours, plain, and fast in float32 and bfloat16. Times are medians over interleaved rounds.

On a CUDA device the attention is measured as ours, plain, by the Triton kernels, and by PyTorch's flex_attention with a
mask of the neighbourhood (which leaves out what is off the grid); forward, and with gradients where there are any.
Writes results/geca.json, or results/geca-<device>.json.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from denoiser import interleaved, processor, relative
from device_memory import peak_bytes
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from morphogen import create_model
from morphogen.automata.fused.compiler import Unavailable
from morphogen.automata.geca import GeCA
from morphogen.automata.geca_block import encode_places
from morphogen.automata.neighbours import CellGrid, Kernel, attend
from morphogen.core.evaluation import Evaluation
from morphogen.core.keys import Key

RESULTS = Path(__file__).parent / "results"
CHANNELS, LABELS = 4, 11
CPU = torch.device("cpu")


def gather(rows: Tensor, grid: CellGrid, heads: int) -> Tensor:
    """Every cell's nine neighbours side by side: (B, heads, cells, 9, D / heads) of rows (B, cells, D)."""
    batch, cells, wide = rows.shape
    maps = rows.transpose(1, 2).reshape(batch * heads, wide // heads, grid.height, grid.width)
    around = F.unfold(maps, 3, padding=1).view(batch, heads, wide // heads, 9, cells)
    return around.permute(0, 1, 4, 3, 2).contiguous()


def attend_literally(queries: Tensor, keys: Tensor, values: Tensor, grid: CellGrid, heads: int) -> Tensor:
    """The attention as published: (B, cells, D)."""
    batch, cells, wide = queries.shape
    q = queries.view(batch, cells, heads, 1, -1).transpose(1, 2)
    logits = q @ gather(keys, grid, heads).transpose(-1, -2) * (wide // heads) ** -0.5
    attended = logits.softmax(dim=-1) @ gather(values, grid, heads)
    return attended.squeeze(3).transpose(1, 2).reshape(batch, cells, wide)


def released(model: GeCA, x: Tensor, t: Tensor, labels: Tensor, key: Key, steps: int) -> Tensor:
    """An evaluation as the released code computes it: everything for every cell, in every step. The last state."""
    grid = CellGrid(len(x), x.shape[-2], x.shape[-1])
    own = model.start(key, grid, None)
    c = model.conditioning(t, labels)
    for mask in key.fire_masks(steps, model.architecture.fire_rate, (grid.height, grid.width), x.device):
        rows = model.embed(torch.cat([x, own], dim=1).flatten(2).transpose(1, 2))
        rows = rows + encode_places(grid, rows.shape[-1], "raster", x.device)
        shift1, scale1, gate1, shift2, scale2, gate2 = model.modulation(F.silu(c))[:, None].chunk(6, dim=-1)
        seen = model.attention_norm(rows) * (1 + scale1) + shift1
        attended = attend_literally(*model.qkv(seen).chunk(3, dim=-1), grid, model.architecture.heads)
        rows = gate1 * model.attention_out(attended) + rows
        rows = gate2 * model.mlp(model.mlp_norm(rows) * (1 + scale2) + shift2) + rows
        shift3, scale3 = model.last_modulation(F.silu(c))[:, None].chunk(2, dim=-1)
        change = model.last(F.layer_norm(rows, rows.shape[-1:], eps=1e-6) * (1 + scale3) + shift3)
        own = own + mask * change.transpose(1, 2).view_as(own)
    return own


def allocated(task: Callable[[], object], device: torch.device) -> int:
    """The most bytes that a task has allocated at a time."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        return peak_bytes(task, device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        task()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def finished(task: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """A task that is over only when the device is."""

    def run() -> None:
        task()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return run


def triton_kernel(device: torch.device, width: int, heads: int) -> Kernel | None:
    """The Triton kernels where they run and are right; says why they don't."""
    if device.type != "cuda":
        return None
    try:
        from morphogen.automata.fused.triton_attention import TritonAttention

        kernel = TritonAttention()
        kernel.check(device, torch.float32, width, heads, masked=False, gradients=True)
    except (ImportError, Unavailable) as reason:
        print(f"Triton kernels not measured: {reason}")
        return None
    return kernel


def flexible(grid: CellGrid, heads: int, device: torch.device) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """PyTorch's flex_attention to the neighbours on the grid, of (1, cells, D); compiled."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    wide = grid.width

    def near(batch: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return ((i // wide - j // wide).abs() <= 1) & ((i % wide - j % wide).abs() <= 1)

    mask = create_block_mask(near, None, None, grid.cells, grid.cells, device=str(device))
    compiled = torch.compile(flex_attention) if device.type == "cuda" else flex_attention

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (q, k, v))
        return compiled(*parts, block_mask=mask).transpose(1, 2).flatten(2)

    return run


def measure_attention(side: int, rounds: int, device: torch.device = CPU) -> dict[str, object]:
    """The attention of every cell of one image, 768 numbers and 12 heads."""
    grid, heads, wide = CellGrid(1, side, side), 12, 768
    q, k, v = (torch.randn(1, grid.cells, wide, device=device) for _ in range(3))
    every = torch.arange(grid.cells, device=device)

    def ours(q: Tensor, k: Tensor, v: Tensor, kernel: Kernel | None = None, masked: bool = False) -> Tensor:
        return attend(q[0], k[0], v[0], every, grid, heads, masked, kernel)[None]

    exact = attend_literally(q, k, v, grid, heads)
    forms: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
        "literal gather": lambda q, k, v: attend_literally(q, k, v, grid, heads),
        "ours": ours,
    }
    kernel = triton_kernel(device, wide, heads)
    if kernel is not None:
        forms["ours, plain"] = ours
        forms["ours"] = lambda q, k, v: ours(q, k, v, kernel)
    errors = {name: relative(form(q, k, v), exact) for name, form in forms.items()}
    if device.type == "cuda":
        try:
            forms["flex_attention, masked"] = flexible(grid, heads, device)
            flexed = forms["flex_attention, masked"](q, k, v)
            errors["flex_attention, masked"] = relative(flexed, ours(q, k, v, masked=True))
        except Exception as reason:  # whatever its compiler says; it is here for comparison only
            forms.pop("flex_attention, masked", None)
            print(f"flex_attention not measured: {str(reason).splitlines()[0]}")
    tasks = {name: finished(lambda form=form: form(q, k, v), device) for name, form in forms.items()}  # type: ignore[misc]
    if device.type == "cuda":
        leaves = [t.clone().requires_grad_() for t in (q, k, v)]

        def learn(form: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
            with torch.enable_grad():
                torch.autograd.grad(form(*leaves).sum(), leaves)

        for name, form in forms.items():
            tasks[f"{name}, with gradients"] = finished(lambda form=form: learn(form), device)  # type: ignore[misc]
    times = interleaved(tasks, rounds)
    memory = {name: allocated(task, device) for name, task in tasks.items()}
    faster = times["literal gather"] / times["ours"]
    share = memory["ours"] / memory["literal gather"]
    print(f"\nattention to 3x3 neighbours, {side}x{side}, {wide} numbers, {heads} heads, float32")
    for name, seconds in times.items():
        print(f"  {name:<40} {seconds * 1e3:9.2f} ms {memory[name] / 2**20:9.1f} MiB")
    print(f"  {faster:.1f} times faster, {share:.3f} of the memory; error {errors['ours']:.1e}")
    found = {"side": side, "seconds": times, "bytes": memory, "times_faster": faster, "memory": share}
    return {**found, "error": errors["ours"], "errors": errors}


def measure_step(side: int, rounds: int, steps: int, device: torch.device = CPU) -> dict[str, object]:
    """One NCA step of GeCA-S on one image."""
    torch.manual_seed(0)
    model = create_model("geca-s", size=side, image_channels=CHANNELS, labels=[f"label {i}" for i in range(LABELS)])
    assert isinstance(model, GeCA)
    model.eval()
    for weight in model.parameters():
        weight.data = 0.02 * torch.randn_like(weight)
    model.to(device)
    x, t = torch.randn(1, CHANNELS, side, side).to(device), torch.tensor([500.0], device=device)
    labels, key = torch.zeros(1, LABELS, device=device), Key.of([0])

    def ours(precision: str | None) -> Tensor:
        model.compute_in(precision)  # type: ignore[arg-type]
        return model(x, t, Evaluation(key, labels=labels, nca_steps=steps)).memory

    fast = {precision: create_fast(model, precision) for precision in ("float32", "bfloat16")}

    def ours_fast(precision: str) -> Tensor:
        model.acceleration, model.attention, model.autocast = fast[precision]
        return model(x, t, Evaluation(key, labels=labels, nca_steps=steps)).memory

    exact, start = released(model, x, t, labels, key, steps), model.start(key, CellGrid(1, side, side), None)
    errors = {str(p): relative(ours(p) - start, exact - start) for p in (None, "float32", "bfloat16")}
    tasks: dict[str, Callable[[], object]] = {
        "released, eager float32": lambda: released(model, x, t, labels, key, steps),
        "ours, plain float32": lambda: ours(None),
        "ours, fast float32": lambda: ours_fast("float32"),
        "ours, fast bfloat16": lambda: ours_fast("bfloat16"),
    }
    times = interleaved({name: finished(task, device) for name, task in tasks.items()}, rounds)
    times = {name: seconds / steps for name, seconds in times.items()}
    faster = {name: times["released, eager float32"] / seconds for name, seconds in times.items()}
    print(f"\na step of geca-s, {side}x{side}, one image, {LABELS} labels (of an evaluation of {steps} steps)")
    for name, seconds in times.items():
        print(f"  {name:<28} {seconds * 1e3:9.2f} ms {faster[name]:7.1f} times faster")
    print(f"  errors {', '.join(f'{name} {error:.1e}' for name, error in errors.items())}")
    return {"side": side, "steps": steps, "seconds": times, "times_faster": faster, "errors": errors}


def create_fast(model: GeCA, precision: str) -> tuple[Any, Any, bool]:
    """What `compute_in` gives the model. Says why there is nothing fast."""
    reason = model.compute_in(precision)  # type: ignore[arg-type]
    if reason is not None:
        print(f"no fast form in {precision}: {reason}")
    return model.acceleration, model.attention, model.autocast


def measure(sides: list[int], rounds: int, steps: int, device: torch.device = CPU) -> dict[str, object]:
    """Everything."""
    with torch.no_grad():
        return {
            "attention": [measure_attention(side, rounds, device) for side in sides],
            "step": [measure_step(side, rounds, steps, device) for side in sides],
        }


def main() -> None:
    """Measure everything, print it, write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4, help="NCA steps of an evaluation")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    chosen = parser.parse_args()
    if chosen.device == "cuda" and not torch.cuda.is_available():
        print("--device cuda: this machine or this PyTorch has no CUDA device.", file=sys.stderr)
        raise SystemExit(2)
    torch.set_num_threads(chosen.threads)
    device, name = torch.device(chosen.device), "geca"
    result: dict[str, object] = {"processor": processor(), "threads": chosen.threads}
    if device.type == "cuda":
        result = {"device": torch.cuda.get_device_name(device), "torch": torch.__version__}
        name += "-" + re.sub(r"[^a-z0-9]+", "-", str(result["device"]).lower()).strip("-")
    result |= measure(chosen.sides, chosen.rounds, chosen.steps, device)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
