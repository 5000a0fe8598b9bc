"""The drag ops one by one: every backend beside the materialised way, in turns, with the memory each call takes."""

from __future__ import annotations

from collections.abc import Iterator

from ..against import ceilings, compared_row, with_floor
from ..op_cases import IMAGE, PUBLISHED, OpCase, op_cases
from ..op_memory import extra_bytes
from ..options import Options
from ..rows import Row
from ..timing import alternate_within
from ..verify import Verdict, verify_op

POINTS = (1, 16)
VARIANT = "mask_loss, smooth change"  # a second one the materialised way takes a minute and a half


def rows(options: Options) -> Iterator[Row]:
    """Per op, number of points, backend and precision of the feature a row; the backend stands under ``engine``.

    peak_mb: what the call allocates above its inputs.  gbytes, share_of_floor: the traffic no implementation can avoid.
    """
    # Sixteen points the materialised way take 20 s a call on two cores: not in the set that everybody runs.
    points = POINTS if options.every_case else POINTS[:1]
    image = IMAGE // 4 if options.quick else IMAGE
    for precision in options.precisions or ("fp32",):
        for case in op_cases(options.device, precision, points, image):
            if case.name == VARIANT and not options.every_case:
                continue
            options.say(f"ops: {case.name}, {case.detail}, {precision}")
            yield from case_rows(options, case)


def case_rows(options: Options, case: OpCase) -> Iterator[Row]:
    ways = case.ways()
    runners = [case.runner(way) for way in ways]
    times = alternate_within(runners, options.seconds / 2, options.device)
    for way, run, taken in zip(ways, runners, times):
        # The baseline is held to the reference by tests/test_bench.py; it is nobody's fast path.
        verdict = Verdict() if way == PUBLISHED else verify_op(case.op, way, options.device, case.precision)
        found = compared_row(
            "ops",
            case.name,
            taken,
            times[0],
            verdict,
            engine=way,
            resolution=case.image,
            points=case.points or None,
            mask=case.mask,
            precision=case.precision,
            threads=options.threads,
            peak_mb=extra_bytes(run, options.device) / 1e6,
        )
        yield with_floor(found, ceilings(str(options.device), options.threads), gbytes=case.gbytes)
