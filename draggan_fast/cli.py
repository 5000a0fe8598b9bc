"""The command line: ``draggan-fast COMMAND``, also ``python -m draggan_fast``.

Every error a user can cause is one line on stderr and exit code 2. ``drag`` exits with 0 when the targets were
reached, 3 when the steps ran out, 130 after Ctrl-C (what was done by then is written); ``replay`` with 1 when the
record is not reproduced, ``doctor`` with 1 when something is broken.
"""

from __future__ import annotations

import argparse
import io
import re
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from .argument_checks import check
from .cli_measure import add_measuring_commands
from .errors import DragError
from .models import DEFAULT_MODEL
from .version import __version__

EXIT_ERROR = 2
MODEL_HELP = "a model's name (see 'draggan-fast models') or a checkpoint file"


class Parser(argparse.ArgumentParser):
    """argparse with errors of one line."""

    def error(self, message: str) -> NoReturn:
        raise DragError(f"{message} (see '{self.prog} --help')")


def point(text: str) -> tuple[float, float]:
    parts = text.split(",")
    try:
        x, y = (float(p) for p in parts)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a point; write X,Y, for example 64,74") from None
    return x, y


def join_negative_points(argv: list[str]) -> list[str]:
    """``--handle -5,3`` → ``--handle=-5,3``: argparse would take the point for an option."""
    joined: list[str] = []
    for text in argv:
        if joined and joined[-1] in ("--handle", "--target") and re.match(r"-[\d.]", text):
            joined[-1] += "=" + text
        else:
            joined.append(text)
    return joined


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", default=DEFAULT_MODEL, metavar="NAME|PATH", help=f"{MODEL_HELP}; default {DEFAULT_MODEL}"
    )
    add_machine(parser)


def add_machine(parser: argparse.ArgumentParser, threads: str = "all") -> None:
    parser.add_argument("--device", default="auto", metavar="auto|cpu|cuda", help="where to compute (default auto)")
    parser.add_argument(
        "--precision",
        default="auto",
        metavar="auto|fp32|bf16|fp16",
        help="arithmetic of the synthesis (default auto: what the device is fast in; fp16 on GPUs only)",
    )
    parser.add_argument("--threads", type=int, metavar="N", help=f"CPU threads (default: {threads})")


def add_start(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--psi", type=float, help="truncation psi, 1 = none (default 0.7)")
    parser.add_argument("--label", type=int, metavar="CLASS", help="class index, for models with classes")


def build_parser() -> Parser:
    parser = Parser(
        prog="draggan-fast",
        description="Drag Your GAN, fast: pull points of a generated picture to where you want them.",
    )
    parser.add_argument("--version", action="version", version=f"draggan_fast {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)

    drag = commands.add_parser("drag", help="drag points of a picture and write pictures, animation and report")
    add_model(drag)
    start = drag.add_mutually_exclusive_group()
    start.add_argument("--seed", type=int, help="seed of the start picture (default 0)")
    start.add_argument(
        "--latent",
        metavar="FILE",
        help="start latent: .npy, or .npz/.safetensors with w or w_plus; of a saved session, where it ended",
    )
    add_start(drag)
    drag.add_argument(
        "--handle",
        type=point,
        action="append",
        default=[],
        metavar="X,Y",
        help="a handle point in pixels; repeat for more",
    )
    drag.add_argument(
        "--target",
        type=point,
        action="append",
        default=[],
        metavar="X,Y",
        help="where that handle shall go; one per handle",
    )
    drag.add_argument(
        "--movable",
        metavar="MASK.png",
        help="PNG of the picture's size: light (128…255) where it may change, dark where it must stay",
    )
    drag.add_argument(
        "--preset",
        choices=("model", "published", "paper"),
        default="model",
        help="settings to start from: the model's own (default), the published program's, the paper's",
    )
    drag.add_argument("--engine", choices=("auto", "reference", "fast"), help="who computes the steps (default auto)")
    drag.add_argument("--space", choices=("w+", "w"), help="latent space (default w+)")
    drag.add_argument("--steps", type=int, metavar="N", help="give up after N steps (default 300)")
    drag.add_argument("--lr", type=float, help="step size of Adam")
    drag.add_argument("--r1", type=float, help="motion-supervision radius, pixels at 512")
    drag.add_argument("--r2", type=float, help="tracking radius, pixels at 512")
    drag.add_argument("--lambda-mask", type=float, metavar="L", help="weight of the mask loss (default 20)")
    drag.add_argument("--feature-block", type=int, metavar="B", help="block whose feature is dragged, 0 = 4×4")
    drag.add_argument(
        "--stop-distance", type=float, metavar="PX", help="done when no handle is farther from its target"
    )
    drag.add_argument(
        "--out",
        required=True,
        metavar="DIR",
        help="folder for before.png, after.png, comparison.png, drag.*, session.safetensors, report.json",
    )
    drag.add_argument("--animation", choices=("webp", "gif", "mp4", "none"), default="webp")
    drag.add_argument("--fps", type=float, default=12, help="frames per second of the animation (default 12)")
    drag.add_argument(
        "--overlay",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="draw points and arrows into the animation and the comparison",
    )
    drag.add_argument("--watermark", action="store_true", help="mark every picture visibly as AI-generated")

    generate = commands.add_parser("generate", help="a sheet of pictures from seeds")
    add_model(generate)
    add_start(generate)
    generate.add_argument(
        "--seeds", default="0-15", metavar="LIST", help="for example 0-15 or 3,7,20-29 (default 0-15)"
    )
    generate.add_argument("--columns", type=int, help="pictures per row")
    generate.add_argument("--out", required=True, metavar="SHEET.png")
    generate.add_argument("--watermark", action="store_true", help="mark the sheet visibly as AI-generated")

    models = commands.add_parser("models", help="list known models, or download one: models pull NAME")
    models.add_argument("action", nargs="?", choices=("list", "pull"), default="list")
    models.add_argument("name", nargs="?", help="the model to pull")

    convert = commands.add_parser("convert", help="any supported checkpoint → .safetensors")
    convert.add_argument("source", metavar="IN")
    convert.add_argument("destination", metavar="OUT.safetensors")
    convert.add_argument("--half", action="store_true", help="store float16: half the size, slightly rounded weights")

    replay = commands.add_parser("replay", help="do a saved session again and compare")
    replay.add_argument("session", metavar="SESSION.safetensors")
    replay.add_argument("--model", metavar="NAME|PATH", help="the model, if not the one the session names")
    replay.add_argument("--device", default="auto", metavar="auto|cpu|cuda")
    replay.add_argument("--out", metavar="PICTURE.png", help="write the resulting picture")

    serve = commands.add_parser("serve", help="a page where the picture follows the finger, and its server")
    serve.add_argument(
        "--host", default="127.0.0.1", help="address to listen at (default 127.0.0.1: this machine only)"
    )
    serve.add_argument("--port", type=int, default=8765, help="port to listen at, 0 = any free one (default 8765)")
    serve.add_argument(
        "--model", action="append", metavar="NAME|PATH", help=f"{MODEL_HELP}; repeat for more; default {DEFAULT_MODEL}"
    )
    add_machine(serve, threads="all but one")
    serve.add_argument(
        "--token",
        metavar="SECRET",
        help="what clients must know; needed for any address but loopback. Other users of this machine can read it in "
        "the list of processes: rather give it in the environment (DRAGGAN_FAST_TOKEN) or in a file",
    )
    serve.add_argument("--token-file", metavar="FILE", help="a file that holds the token and nothing else")
    serve.add_argument("--max-sessions", type=int, default=16, metavar="N", help="pictures at a time (default 16)")
    serve.add_argument(
        "--allow-origin",
        action="append",
        default=[],
        metavar="https://…",
        help="a page of another origin that may use the server; repeat for more",
    )
    serve.add_argument("--open", action="store_true", help="open the page in a browser")

    doctor = commands.add_parser("doctor", help="versions, devices, and which kernel serves each op")
    doctor.add_argument("--json", action="store_true", help="as JSON")
    add_measuring_commands(commands)
    return parser


def run(arguments: argparse.Namespace) -> int:
    # Imported here: torch takes seconds to import, and --help and argument errors need none of it.
    check(arguments)
    if arguments.command == "serve":
        from .serve_command import serve

        return serve(arguments)
    if "module" in arguments:  # one of those that measure
        return int(import_module(arguments.module).run(arguments))
    from .commands import COMMANDS

    return COMMANDS[arguments.command](arguments)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    argv = join_negative_points(list(sys.argv[1:] if argv is None else argv))
    for stream in (sys.stdout, sys.stderr):  # a terminal that lacks a character gets "?", not a crash
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    debug = "--debug" in argv
    try:
        return run(build_parser().parse_args([a for a in argv if a != "--debug"]))
    except DragError as error:
        if debug:
            raise
        message = str(error)
    except KeyboardInterrupt:
        message = "interrupted"
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output is gone; nothing is left to say
        return EXIT_ERROR
    except Exception as error:
        if debug:
            raise
        message = f"unexpected {type(error).__name__}: {error} (run with --debug for the traceback)"
    print("draggan-fast: error:", " ".join(message.split()), file=sys.stderr)
    return 130 if message == "interrupted" else EXIT_ERROR


if __name__ == "__main__":
    sys.exit(main())
