"""The options of the commands that measure: bench, profile, plan, eval. Only argparse: torch comes when one runs."""

from __future__ import annotations

import argparse
import re
from typing import Any

Commands = Any  # argparse's sub-parser action, which has no public name


def numbers(text: str) -> tuple[int, ...]:
    """A list of whole numbers like 256,512."""
    try:
        values = tuple(int(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not values or min(values) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of positive whole numbers; write for example 1,5,16")
    return values


def names(text: str) -> tuple[str, ...]:
    """A list of names like none,half."""
    values = tuple(part.strip() for part in text.split(",") if part.strip())
    if not values:
        raise argparse.ArgumentTypeError(f"{text!r} names nothing; write for example none,half")
    return values


def memory(text: str) -> int:
    """Bytes of a size like 4GB, 800MB or 1.5GiB."""
    units = {"mb": 10**6, "gb": 10**9, "mib": 1 << 20, "gib": 1 << 30}
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(mb|gb|mib|gib)", text.strip().lower())
    if match is None or not float(match[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write for example 4GB or 800MB")
    return int(float(match[1]) * units[match[2]])


def add_bench(commands: Commands) -> None:
    bench = commands.add_parser(
        "bench",
        help="speed and memory beside the published program's, in one run",
        description="Measures every engine in turns with the published program's step, and prints tables. Without a "
        "SUITE all of them, in at most a quarter of an hour on two slow cores. It decides nothing: the exit code is 0.",
    )
    bench.add_argument(
        "suites",
        nargs="*",
        metavar="SUITE",
        help="floor (the machine's ceilings), ops, step, frame, memory, scaling, startup",
    )
    bench.add_argument("--quick", action="store_true", help="a first look in two minutes: 256², one point")
    bench.add_argument(
        "--resolution",
        type=numbers,
        metavar="256,512,1024",
        help="random networks of the published width of these sizes",
    )
    bench.add_argument("--points", type=numbers, metavar="1,5,16", help="numbers of points in the suite step")
    bench.add_argument("--mask", type=names, metavar="none,half", help="which part of the picture must stay")
    bench.add_argument(
        "--engine", type=names, metavar="NAME,…", help="engines beside 'published' (default all that there are)"
    )
    bench.add_argument(
        "--precision", type=names, metavar="fp32,…", help="arithmetic (default fp32 and what the device is fast in)"
    )
    bench.add_argument(
        "--model", metavar="NAME|PATH", help="only this model (default: the random networks and toy-animals)"
    )
    bench.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all)")
    bench.add_argument("--device", default="auto", metavar="auto|cpu|cuda", help="where to compute (default auto)")
    bench.add_argument("--json", metavar="FILE.json", help="write the record: the machine, and a row per measurement")
    bench.add_argument("--compare", metavar="OLD.json", help="then print what is slower than in that record")
    bench.set_defaults(module="draggan_fast.bench.bench_command")


def add_subject(parser: argparse.ArgumentParser) -> None:
    """What is looked at: a model, or random weights of a resolution."""
    parser.add_argument("--model", metavar="NAME|PATH", help="a model's name or file (default toy-animals)")
    parser.add_argument(
        "--resolution", type=int, metavar="R", help="instead of a model: random weights of config-f width, R×R pixels"
    )
    parser.add_argument("--device", default="auto", metavar="auto|cpu|cuda", help="where to compute (default auto)")


def add_profile(commands: Commands) -> None:
    profile = commands.add_parser(
        "profile",
        help="where the time of a drag step goes on this machine",
        description="Times every part of a drag step in place, and says which share of the machine's measured ceilings "
        "each one reaches.",
    )
    add_subject(profile)
    profile.add_argument("--points", type=int, default=1, metavar="N", help="number of points (default 1)")
    profile.add_argument("--mask", choices=("none", "half"), default="none", help="which part of the picture must stay")
    profile.add_argument("--steps", type=int, default=10, metavar="N", help="steps to take the medians of (default 10)")
    profile.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all)")
    profile.add_argument("--engine", default="reference", metavar="NAME", help="whose step (default reference)")
    profile.add_argument("--json", metavar="FILE.json", help="write the record: machine, ceilings, a row per part")
    profile.add_argument("--trace", metavar="FILE.json", help="write a trace for Perfetto or chrome://tracing")
    profile.add_argument("--html", metavar="FILE.html", help="write a page with the step, the roofline and the table")
    profile.set_defaults(module="draggan_fast.bench.profile_command")


def add_plan(commands: Commands) -> None:
    plan = commands.add_parser(
        "plan",
        help="the peak memory a drag will need, before anything is allocated",
        description="Predicts the peak memory of every mode without making a tensor. Exit code 0 if some mode fits "
        "into --memory, 1 if none does.",
    )
    add_subject(plan)
    plan.add_argument("--memory", type=memory, metavar="SIZE", help="what may be used, for example 4GB or 800MB")
    plan.add_argument("--points", type=int, default=1, metavar="N", help="number of points (default 1)")
    plan.add_argument("--mask", choices=("none", "half"), help="only modes with this mask (default both)")
    plan.add_argument("--engine", metavar="NAME", help="only modes of this engine (default all)")
    plan.add_argument("--json", metavar="FILE.json", help="write the prediction of every mode")
    plan.add_argument("--check", action="store_true", help="then measure every mode, each in a fresh process")
    plan.set_defaults(module="draggan_fast.bench.plan_command")


def add_eval(commands: Commands) -> None:
    evaluate = commands.add_parser("eval", help="does the point arrive, and does the rest of the picture stay?")
    evaluate.set_defaults(module="draggan_fast.bench.eval_command")
    studies = evaluate.add_subparsers(dest="study", metavar="STUDY", required=True)

    landmarks = studies.add_parser("landmarks", help="landmarks of one picture dragged to those of another (Table 1)")
    add_eval_options(landmarks, "pairs", 50, quick=3)
    landmarks.add_argument("--points", type=names, default=("1", "5", "all"), help="of 1,5,all (default: all three)")
    landmarks.add_argument("--settings", type=names, help="of published,paper,fast (default: all; --quick: fast)")
    landmarks.add_argument("--ablations", action="store_true", help="also feature block, r1, w and w+, optical flow")

    drags = studies.add_parser("drags", help="short drags of single landmarks: how far they really went")
    add_eval_options(drags, "drags", 105, quick=5)
    drags.add_argument("--points", type=names, default=("1", "5"), help="of 1,5 (default: both)")
    drags.add_argument("--set", metavar="JSON", help='drag settings that differ from the model\'s, like {"lr": 0.02}')
    pairs = studies.add_parser("pairs", help="a second picture reconstructed from sparse correspondences (Table 2)")
    add_eval_options(pairs, "pairs", 50, quick=3)
    mask = studies.add_parser("mask", help="how much fixed pixels change, with and without a movable mask")
    add_eval_options(mask, "drags", 50, quick=5)


def add_eval_options(study: argparse.ArgumentParser, counted: str, count: int, quick: int) -> None:
    """What all evaluations have; ``counted`` is what --pairs or --drags counts."""
    study.set_defaults(count_name=counted, quick_count=quick)
    study.add_argument(f"--{counted}", dest="count", type=int, default=count, metavar="N", help=f"default {count}")
    study.add_argument("--engine", type=names, metavar="LIST", help="engines, or 'all' (default: all but published)")
    study.add_argument(
        "--precision",
        type=names,
        default=("auto",),
        metavar="LIST",
        help="precisions, or 'all' (default: the engine's)",
    )
    study.add_argument("--max-steps", type=int, default=300, metavar="N", help="a drag gives up then (default 300)")
    study.add_argument("--quick", action="store_true", help=f"{quick} {counted}, 100 steps at most: within a minute")
    study.add_argument("--seed", type=int, default=0, help="of the choice of pictures and points (default 0)")
    study.add_argument("--jobs", type=int, default=1, metavar="N", help="processes, with one thread each if several")
    study.add_argument("--json", metavar="FILE.json", help="write rows and every single drag; also after Ctrl-C")
    study.add_argument("--resume", action="store_true", help="make only the drags that the file of --json lacks")
    study.add_argument("--sheet", metavar="FILE.png|webp", help="write pictures of the first drags, to look at")
    study.add_argument("--model", default="toy-animals", metavar="NAME|PATH", help="a toy-animals model")
    study.add_argument("--device", default="auto", metavar="auto|cpu|cuda", help="where to compute (default auto)")
    study.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all)")


def add_measuring_commands(commands: Commands) -> None:
    for add in (add_bench, add_profile, add_plan, add_eval):
        add(commands)
