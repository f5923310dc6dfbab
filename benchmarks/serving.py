"""How long until a tile of an endless slide is there? `python benchmarks/serving.py [--run tissue] [--threads 2]`.

Starts `morphogen serve` and asks it for tiles at full resolution, 12 steps of dpm++: the first, its neighbours one by
one, six more at once, as a browser asks, and one of half the resolution; then a neighbour from a server without a
cache. Seconds by the clock, and of processor time, which other work on the machine lengthens less. The least of the
rounds; `--first` measures the first tile alone, and beside it that of 20 steps of ddim, taking turns; `--places N` the
first tile at N places far from each other, at every zoom: what one sees of a place where nobody has been.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import psutil

RESULTS = Path(__file__).parent / "results"
MIDDLE = 2**23


class Server:
    """`morphogen serve` as a process."""

    def __init__(self, run: str, threads: int, *options: str) -> None:
        command = [sys.executable, "-m", "morphogen", "serve", run, "--port", "0", "--deadline", "3600", *options]
        env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().split(" is at ")[1].split()[0]

    def get(self, *tiles: tuple[int, int, int]) -> tuple[float, float]:
        """Seconds by the clock and of processor time until tiles (level, column, row), asked for at once, are there."""
        paths = [
            f"{self.address}tiles/{level}/{MIDDLE // 2**level + c}/{MIDDLE // 2**level + r}.png"
            for level, c, r in tiles
        ]
        asking = [threading.Thread(target=lambda p: urllib.request.urlopen(p).read(), args=(path,)) for path in paths]
        clock, cpu = time.perf_counter(), sum(psutil.Process(self.process.pid).cpu_times()[:2])
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join()
        return time.perf_counter() - clock, sum(psutil.Process(self.process.pid).cpu_times()[:2]) - cpu

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


def measure_first(run: str, threads: int, rounds: int) -> None:
    """The first tile of the default sampler and of ddim; writes results/serving-first.json."""
    samplers = {"dpm++ 12": (), "ddim 20": ("--sampler", "ddim")}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in samplers}
    for _ in range(rounds):
        for name, options in samplers.items():
            server = Server(run, threads, *options)
            found[name].append(server.get((0, 0, 0)))
            server.stop()
            print(f"{name}: {found[name][-1][0]:.2f} s, {found[name][-1][1]:.2f} s of processor time", flush=True)
    clock, cpu = (min(t[i] for t in found["dpm++ 12"]) / min(t[i] for t in found["ddim 20"]) for i in (0, 1))
    print(f"dpm++ / ddim: {clock:.2f} by the clock, {cpu:.2f} of the processor time")
    facts = {"run": Path(run).name, "threads": threads, "found": found, "ratio": {"clock": clock, "cpu": cpu}}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "serving-first.json").write_text(json.dumps(facts, indent=2) + "\n")


def measure_places(run: str, threads: int, places: int) -> None:
    """The first tile at places where nothing is known yet, at every zoom; writes results/serving-places-RUN.json."""
    server = Server(run, threads)
    view = json.loads(urllib.request.urlopen(f"{server.address}view.json").read())
    scales = [round(1 / scale) for scale in view["scales"][: view["computed"]]]
    server.stop()
    rows = []
    for level, scale in enumerate(scales):
        server, found = Server(run, threads), []
        middle = MIDDLE // scale  # tiles of this zoom from the corner to the middle
        for place in range(places):
            path = f"{server.address}tiles/{level}/{middle + 1000 * place // scale * 7}/{middle + 997 * place}.png"
            clock, cpu = time.perf_counter(), sum(psutil.Process(server.process.pid).cpu_times()[:2])
            urllib.request.urlopen(path).read()
            spent = sum(psutil.Process(server.process.pid).cpu_times()[:2]) - cpu
            found.append((time.perf_counter() - clock, spent))
        server.stop()
        clocks, cpus = (sorted(column) for column in zip(*found, strict=True))
        rows.append({"scale": scale, "clock_p50": clocks[places // 2], "cpu_p50": cpus[places // 2]})
        print(
            f"1/{scale:<4} p50 {rows[-1]['clock_p50']:.2f} s by the clock, {rows[-1]['cpu_p50']:.2f} of processor time"
        )
    print(f"load {os.getloadavg()}")
    RESULTS.mkdir(exist_ok=True)
    name = Path(run).name
    facts = {"run": name, "threads": threads, "places": places, "tile": view["tile"], "zooms": rows}
    (RESULTS / f"serving-places-{name}.json").write_text(json.dumps(facts, indent=2) + "\n")


def main() -> None:
    """Print one table, and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", default="tissue-texture")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--first", action="store_true")
    parser.add_argument("--places", type=int, default=0)
    chosen = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {}
    asked: dict[str, list[tuple[int, int, int]]] = {
        "the first tile": [(0, 0, 0)],
        "the one to its right": [(0, 1, 0)],
        "the one below": [(0, 0, 1)],
        "the one between these": [(0, 1, 1)],
        "six around, at once": [(0, c, r) for c, r in ((-1, -1), (0, -1), (1, -1), (-1, 0), (-1, 1), (2, 0))],
        "the first again": [(0, 0, 0)],
        "one of half the resolution": [(1, 2, 2)],
    }
    if chosen.places:
        measure_places(chosen.run, chosen.threads, chosen.places)
        return
    if chosen.first:
        measure_first(chosen.run, chosen.threads, chosen.rounds)
        return
    for _ in range(chosen.rounds):
        server = Server(chosen.run, chosen.threads)
        for what, tiles in asked.items():
            found.setdefault(what, []).append(server.get(*tiles))
        server.stop()
        server = Server(chosen.run, chosen.threads, "--cache-mb", "0")
        found.setdefault("the one to its right, without a cache", []).append(server.get((0, 1, 0)))
        server.stop()
    least = {what: [min(times) for times in zip(*rounds, strict=True)] for what, rounds in found.items()}
    first = least["the first tile"]
    print(f"{chosen.run}, 12 steps of dpm++, {chosen.threads} threads; load before and now {os.getloadavg()}")
    print(f"{'':40}{'clock s':>9}{'cpu s':>9}{'of the first (cpu)':>20}")
    for what, (clock, cpu) in least.items():
        print(f"{what:40}{clock:9.2f}{cpu:9.2f}{cpu / first[1]:20.2f}")
    RESULTS.mkdir(exist_ok=True)
    facts = {"run": Path(chosen.run).name, "threads": chosen.threads, "rounds": chosen.rounds, "least": least}
    (RESULTS / "serving.json").write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
