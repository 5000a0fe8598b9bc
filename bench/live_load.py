"""How the live server holds up, by clients on the same machine: ``python -m draggan_fast.bench.live_load [PART…]``.

single, eight: from a moved target to the frame that reflects it, while one and eight people drag. idle: what fifty
pictures cost that nobody touches. memory: what one picture holds after a long drag. soak: random gestures,
reconnects and malformed messages for minutes. The server is a process of its own; its memory and CPU time are the
system's figures (Linux). It decides nothing: no part fails because it is slow.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import http.client
import json
import math
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from websockets.exceptions import ConnectionClosed

from draggan_fast import DragError
from draggan_fast.atomic import write_bytes
from draggan_fast.command_common import check_writable

from .live_client import Viewer
from .machine import machine

PARTS = ("single", "eight", "idle", "memory", "soak")
MOVES_PER_SECOND = 60
EAR = (67.0, 78.0)  # a handle on toy-animals' seed 29, and a circle in reach of it
RADIUS = 12.0
EXPECTED = {"protocol", "order", "value", "limit", "rate"}  # what malformed messages are answered with


class Server:
    """A running ``draggan-fast serve``: its port, and what the system tells about its process."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.port, self._directory = port, Path("/proc") / str(process.pid)

    def memory_mb(self) -> float:
        """Resident memory, 10⁶ bytes."""
        pages = int((self._directory / "statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    def cpu_seconds(self) -> float:
        fields = (self._directory / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def get(self, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()


@contextlib.contextmanager
def serving(model: str, threads: int | None, sessions: int) -> Iterator[Server]:
    command = [sys.executable, "-m", "draggan_fast", "serve", "--port", "0", "--model", model]
    command += ["--max-sessions", str(sessions)] + ([] if threads is None else ["--threads", str(threads)])
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        found = re.search(r":(\d+)/", process.stdout.readline())
        if found is None:
            raise DragError("The server did not start.")
        server = Server(process, int(found[1]))
        while server.get("/healthz")[0] != 200:
            time.sleep(0.05)
        yield server
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()


async def begin(viewer: Viewer, seed: int = 29) -> None:
    """A picture whose handle is held where it is."""
    await viewer.ask("create", seed=seed)
    await viewer.ask("points", handles=[list(EAR)], targets=[list(EAR)])
    await viewer.ask("start", live=True)


async def drag(viewer: Viewer, seconds: float, phase: float = 0.0) -> None:
    """The target goes round in a circle, as a hand would move it."""
    start = time.perf_counter()
    index = 0
    while (now := time.perf_counter() - start) < seconds:
        angle = now * 1.5 + phase
        await viewer.move([[EAR[0] + RADIUS * (math.cos(angle) - 1), EAR[1] + RADIUS * math.sin(angle)]])
        index += 1
        await asyncio.sleep(max(0.0, start + index / MOVES_PER_SECOND - time.perf_counter()))


async def together(server: Server, count: int, seconds: float) -> dict[str, Any]:
    """Latency and rates while ``count`` viewers drag at once."""
    async with contextlib.AsyncExitStack() as stack:
        viewers = [await stack.enter_async_context(Viewer(server.port)) for _ in range(count)]
        for viewer in viewers:
            await begin(viewer)
        phases = [2 * math.pi * index / count for index in range(count)]
        await asyncio.gather(*(drag(v, 2.0, phase) for v, phase in zip(viewers, phases)))
        for viewer in viewers:
            viewer.forget()
        cpu, start = server.cpu_seconds(), time.perf_counter()
        await asyncio.gather(*(drag(v, seconds, phase) for v, phase in zip(viewers, phases)))
        elapsed = time.perf_counter() - start
        cpu = server.cpu_seconds() - cpu
        rates = [len(viewer.arrived) / elapsed for viewer in viewers]
        # The slowest are not to be left out because the clock has stopped.
        await asyncio.gather(*(viewer.settled(20.0) for viewer in viewers))
        latencies = [latency for viewer in viewers for latency in viewer.latencies]
        own = [viewer.stats for viewer in viewers if viewer.stats]
        for viewer in viewers:
            await viewer.ask("close")
    return {
        "viewers": count,
        "seconds": round(elapsed, 1),
        "targets_per_second": MOVES_PER_SECOND,
        "latency_ms": quantiles(latencies),
        "frames_per_second": round(min(rates), 1),
        "steps_per_second": round(sum(stats["steps_per_second"] for stats in own), 1),
        "dropped": sum(stats["dropped"] for stats in own),
        "stages": own[0]["stages"] if own else {},
        "cpu_seconds_per_second": round(cpu / elapsed, 2),
    }


async def idle(server: Server, count: int, seconds: float) -> dict[str, Any]:
    """Pictures that nobody touches: their memory, and the processor time they take."""
    before = server.memory_mb()
    async with contextlib.AsyncExitStack() as stack:
        viewers = [await stack.enter_async_context(Viewer(server.port)) for _ in range(count)]
        for index, viewer in enumerate(viewers):
            await viewer.ask("create", seed=index)
            if not viewer.frames:
                await viewer.next_frame()
        await asyncio.sleep(1)
        memory, cpu, start = server.memory_mb(), server.cpu_seconds(), time.perf_counter()
        await asyncio.sleep(seconds)
        used = (server.cpu_seconds() - cpu) / (time.perf_counter() - start)
        for viewer in viewers:
            await viewer.ask("close")
    return {
        "sessions": count,
        "cpu_share": round(used, 4),
        "memory_mb_each": round((memory - before) / count, 2),
        "memory_mb_before": round(before, 1),
        "memory_mb_with": round(memory, 1),
    }


async def long_drag(server: Server, seconds: float) -> dict[str, Any]:
    """What one picture holds while it is dragged, and after."""
    async with Viewer(server.port) as viewer:  # what the first drag brings about once is no session's
        await begin(viewer)
        await drag(viewer, 1.0)
        await viewer.ask("close")
    before = server.memory_mb()
    most = 0.0
    async with Viewer(server.port) as viewer:
        await begin(viewer)
        deadline = time.perf_counter() + seconds
        while time.perf_counter() < deadline:
            await drag(viewer, min(1.0, seconds))
            most = max(most, server.memory_mb())
        await viewer.ask("pause")
        await asyncio.sleep(0.5)
        after, steps = server.memory_mb(), viewer.last.step if viewer.last is not None else 0
        assert viewer.session is not None
        _, saved = await asyncio.to_thread(server.get, f"/api/sessions/{viewer.session}/session.safetensors")
        await viewer.ask("close")
    return {
        "steps": steps,
        "memory_mb_most": round(most - before, 2),
        "memory_mb_after": round(after - before, 2),
        "saved_bytes": len(saved),
    }


class Soak:
    """Viewers that do what comes to their minds, and what became of it."""

    def __init__(self, server: Server, seed: int) -> None:
        self.server, self.random = server, random.Random(seed)
        self.counts: collections.Counter[str] = collections.Counter()
        self.memory: list[tuple[float, float]] = []
        self.unexpected: list[str] = []

    async def run(self, viewers: int, seconds: float) -> dict[str, Any]:
        start = time.perf_counter()
        watch = asyncio.create_task(self._watch(start))
        await asyncio.gather(*(self._live(start + seconds) for _ in range(viewers)))
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)
        quarter = max(1, len(self.memory) // 4)
        early = [memory for _, memory in self.memory[quarter : 2 * quarter]] or [0.0]
        late = [memory for _, memory in self.memory[-quarter:]] or [0.0]
        return {
            "seconds": round(time.perf_counter() - start, 1),
            "viewers": viewers,
            **self.counts,
            "unexpected": self.unexpected[:20],
            "memory_mb_early": round(sum(early) / len(early), 1),
            "memory_mb_late": round(sum(late) / len(late), 1),
            "memory_mb": [[round(at), round(memory, 1)] for at, memory in self.memory],
        }

    async def _watch(self, start: float) -> None:
        while True:
            self.memory.append((time.perf_counter() - start, self.server.memory_mb()))
            await asyncio.sleep(5)

    async def _live(self, deadline: float) -> None:
        """One person after another at one place."""
        session: str | None = None
        while time.perf_counter() < deadline:
            resume = session if self.random.random() < 0.5 else None
            try:
                async with Viewer(self.server.port, resume) as viewer:
                    self.counts["connections"] += 1
                    self.counts["resumed"] += viewer.resumed
                    if not viewer.resumed:
                        await viewer.ask("create", seed=self.random.randrange(1 << 32))
                    for _ in range(self.random.randint(3, 12)):
                        await self._gesture(viewer)
                        if time.perf_counter() > deadline:
                            break
                    session = viewer.session
                    if self.random.random() < 0.6:  # the others go away without a word
                        await viewer.ask("close")
                        session = None
                self.counts["frames"] += viewer.frames
                self.counts["errors_told"] += len(viewer.errors)
                strange = [code for code in viewer.errors if code not in EXPECTED]
                self.unexpected += strange
            except (ConnectionClosed, ConnectionError, TimeoutError, OSError) as error:
                self.unexpected.append(f"{type(error).__name__}: {error}")
                session = None

    async def _gesture(self, viewer: Viewer) -> None:
        choose = self.random
        kind = choose.choice(
            ("drag", "drag", "drag", "undo", "mask", "scrub", "settings", "nonsense", "export", "seed")
        )
        self.counts[kind] += 1
        if kind == "drag":
            handles = [[choose.uniform(20, 107), choose.uniform(20, 107)] for _ in range(choose.randint(1, 3))]
            await viewer.ask("points", handles=handles, targets=handles)
            await viewer.ask("start", live=True)
            for _ in range(choose.randint(10, 60)):
                handles = [[min(127, max(0, x + choose.gauss(0, 3))), min(127, max(0, y + choose.gauss(0, 3)))]
                           for x, y in handles]  # fmt: skip
                await viewer.move(handles)
                await asyncio.sleep(1 / MOVES_PER_SECOND)
        elif kind == "undo":
            for name in choose.choices(("undo", "redo", "reset"), k=3):
                await viewer.ask(name)
        elif kind == "mask":
            line = [[choose.uniform(0, 127), choose.uniform(0, 127)] for _ in range(5)]
            await viewer.ask("mask", strokes=[{"points": line, "radius": 20, "movable": True}])
        elif kind == "scrub":
            for _ in range(10):
                await viewer.ask("scrub", index=choose.randrange(20))
        elif kind == "settings":
            await viewer.ask("settings", lr=choose.uniform(0.005, 0.05), r2=choose.uniform(4, 20))
            await viewer.ask("view", fps=choose.randint(10, 60), preview=choose.choice(("auto", "always", "never")))
        elif kind == "nonsense":
            for _ in range(5):
                junk = bytes(choose.randrange(256) for _ in range(choose.randrange(60)))
                await viewer.raw(choose.choice((junk, junk.decode("latin-1"), '{"type": "points"}', "[" * 500)))
        elif kind == "export" and viewer.session is not None:
            name = choose.choice(("picture.png", "session.safetensors", "timeline/0.webp", "timeline.webp"))
            status, _ = await asyncio.to_thread(self.server.get, f"/api/sessions/{viewer.session}/{name}")
            if status != 200:
                self.unexpected.append(f"{name}: HTTP {status}")
        elif kind == "seed":
            await viewer.ask("create", seed=choose.randrange(1 << 32))


def quantiles(values: list[float]) -> dict[str, Any]:
    ordered = sorted(values)
    if not ordered:
        return {"count": 0}
    pick = {name: ordered[min(len(ordered) - 1, int(len(ordered) * q))] for name, q in (("p50", 0.5), ("p95", 0.95))}
    return {"count": len(ordered), **{name: round(value, 1) for name, value in pick.items()}}


async def measure(part: str, server: Server, arguments: argparse.Namespace) -> dict[str, Any]:
    if part == "single":
        return await together(server, 1, arguments.seconds)
    if part == "eight":
        return await together(server, 8, arguments.seconds)
    if part == "idle":
        return await idle(server, arguments.idle, arguments.seconds)
    if part == "memory":
        return await long_drag(server, arguments.seconds)
    return await Soak(server, arguments.seed).run(4, 60 * arguments.minutes)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="live_load", description=__doc__.partition("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--model", default="toy-animals", metavar="NAME|PATH")
    parser.add_argument("--threads", type=int, metavar="N", help="the server's CPU threads (default: all)")
    parser.add_argument("--seconds", type=float, default=15, help="of each part but the soak (default 15)")
    parser.add_argument("--minutes", type=float, default=10, help="of the soak (default 10)")
    parser.add_argument("--idle", type=int, default=50, metavar="N", help="idle pictures (default 50)")
    parser.add_argument("--seed", type=int, default=0, help="of the soak's gestures (default 0)")
    parser.add_argument("--json", metavar="FILE.json", help="write the record: machine, and what each part found")
    arguments = parser.parse_args(argv)
    unknown = set(arguments.parts) - set(PARTS)
    if unknown:
        raise DragError(f"There is no part {sorted(unknown)[0]!r}; there is {', '.join(PARTS)}.")
    out = check_writable(arguments.json) if arguments.json else None
    record: dict[str, Any] = {"machine": machine(), "load_average": os.getloadavg(), "parts": {}}
    for part in arguments.parts or PARTS:
        with serving(arguments.model, arguments.threads, arguments.idle + 10) as server:
            found = asyncio.run(measure(part, server, arguments))
        record["parts"][part] = found
        shown = {name: value for name, value in found.items() if name not in ("memory_mb", "stages")}
        print(f"{part}: {json.dumps(shown)}", flush=True)
    record["load_average_after"] = os.getloadavg()
    if out is not None:
        write_bytes(out, json.dumps(record, indent=1).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
