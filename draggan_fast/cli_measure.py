"""The options of the commands that measure: bench, profile, plan, eval. Only argparse: torch comes when one runs."""

from __future__ import annotations

import argparse
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
    return tuple(part.strip() for part in text.split(",") if part.strip())


def add_bench(commands: Commands) -> None:
    bench = commands.add_parser("bench", help="speed and memory beside the published program's, in one run")
    bench.set_defaults(module="draggan_fast.bench.bench_command")


def add_profile(commands: Commands) -> None:
    profile = commands.add_parser("profile", help="where the time of a drag step goes on this machine")
    profile.set_defaults(module="draggan_fast.bench.profile_command")


def add_plan(commands: Commands) -> None:
    plan = commands.add_parser("plan", help="the peak memory a drag will need, before anything is allocated")
    plan.set_defaults(module="draggan_fast.bench.plan_command")


def add_eval(commands: Commands) -> None:
    evaluate = commands.add_parser("eval", help="does the point arrive, and does the rest of the picture stay?")
    evaluate.set_defaults(module="draggan_fast.bench.eval_command")


def add_measuring_commands(commands: Commands) -> None:
    for add in (add_bench, add_profile, add_plan, add_eval):
        add(commands)
