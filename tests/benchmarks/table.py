"""The rows of the table, their budgets, and how a verdict is reached. Pure: measures nothing.

Every figure is higher-is-better and per second. A ratio is taken within each round, since a round
measures its columns one after the other; the median of the rounds is what counts, the least and
the greatest are shown beside it.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

LOCAL: Final = "local"
PLAIN: Final = "plain"
TLS: Final = "tls"
QUORUM: Final = "quorum"
COLUMNS: Final = (LOCAL, PLAIN, TLS, QUORUM)

Samples = Mapping[str, Sequence[float]]
"""Figures of one row: per column, one for each round."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """Two columns to compare, and what is wanted of them."""

    above: str
    below: str
    least: float = 0.0
    kind: Literal["budget", "goal", "printed"] = "printed"


@dataclass(frozen=True, slots=True)
class Row:
    """One workload, as fio and as `qemu-img bench` name it. `start` guesses operations/s."""

    key: str
    title: str
    fio: tuple[str, ...]
    qemu: tuple[str, ...]
    block_bytes: int
    start: int
    ratios: tuple[Ratio, ...]
    in_mib: bool = False
    cold: bool = False
    reads: bool = False


def _ratios(plain: float = 0.0, tls: float = 0.0) -> tuple[Ratio, ...]:
    """Both replicated columns against QEMU's; 0: no budget."""
    return (
        Ratio(PLAIN, QUORUM, plain, "budget" if plain else "printed"),
        Ratio(TLS, QUORUM, tls, "budget" if tls else "printed"),
    )


_RANDOM: Final = ("--rw=randwrite", "--bs=4k", "--direct=1")
_BESIDE_LOCAL: Final = (Ratio(PLAIN, LOCAL), Ratio(TLS, LOCAL))
ROWS: Final = (
    Row(
        "depth1", "4 KiB write, depth 1",
        (*_RANDOM, "--ioengine=psync"), ("-w", "-d", "1", "-s", "4096"), 4096, 7800,
        (
            Ratio(PLAIN, LOCAL, 0.45, "goal"),
            Ratio(TLS, LOCAL, 0.25, "goal"),
            *_ratios(plain=1.0),
        ),
    ),
    Row(
        "depth8", "4 KiB write, depth 8",
        (*_RANDOM, "--ioengine=libaio", "--iodepth=8"), ("-w", "-d", "8", "-s", "4096"), 4096,
        22900, (*_BESIDE_LOCAL, *_ratios(plain=1.3)),
    ),
    Row(
        "stream", "1 MiB sequential write, depth 4",
        ("--rw=write", "--bs=1m", "--direct=1", "--ioengine=libaio", "--iodepth=4"),
        ("-w", "-d", "4", "-s", "1M"), 1 << 20, 630,
        (*_BESIDE_LOCAL, *_ratios(plain=2.0, tls=1.0)), in_mib=True,
    ),
    Row(
        "fsync", "4 KiB write + fdatasync",
        ("--rw=randwrite", "--bs=4k", "--ioengine=psync", "--fdatasync=1"),
        ("-w", "-d", "1", "-s", "4096", "--flush-interval=1"), 4096, 1000,
        (*_BESIDE_LOCAL, *_ratios(plain=1.5)),
    ),
    Row(
        "read", "4 KiB read, depth 1",
        ("--rw=randread", "--bs=4k", "--direct=1", "--ioengine=psync"),
        ("-d", "1", "-s", "4096"), 4096, 9000, (*_BESIDE_LOCAL, *_ratios()),
        reads=True,
    ),
    Row(
        "cold", "4 KiB write over 20 GiB, depth 1",
        (*_RANDOM, "--ioengine=psync", "--norandommap"),
        # Prime in blocks: the whole image is visited before a block is met again.
        ("-w", "-d", "1", "-s", "4096", "-S", str(262147 * 4096)), 4096, 3000,
        (*_BESIDE_LOCAL, *_ratios()), cold=True,
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Verdict:
    """One line under a row. `missed` counts budgets only, never goals."""

    text: str
    missed: bool = False


def spread(values: Sequence[float], form: str = ",.0f") -> str:
    """Median, and the least and greatest where there is more than one."""
    middle = format(statistics.median(values), form)
    if len(values) == 1:
        return middle
    return f"{middle} ({format(min(values), form)}-{format(max(values), form)})"


def ratio_of(samples: Samples, above: str, below: str) -> list[float]:
    """The ratio of two columns in each round; empty when a column was not measured."""
    pairs = zip(samples.get(above, ()), samples.get(below, ()), strict=False)
    return [high / low for high, low in pairs if low > 0]


def judge(ratio: Ratio, samples: Samples) -> Verdict | None:
    """The line of one ratio; None when one of its columns was not measured."""
    found = ratio_of(samples, ratio.above, ratio.below)
    if not found:
        return None
    said = f"{ratio.above} / {ratio.below} = {spread(found, '.2f')}"
    if ratio.kind == "printed":
        return Verdict(f"{said}  printed only")
    word = ">" if ratio.kind == "budget" else "goal"
    return limit(f"{said}  {word} {ratio.least:g}", found, ratio.least, goal=ratio.kind == "goal")


def limit(said: str, found: Sequence[float], least: float, *, goal: bool = False) -> Verdict:
    """Whether the median reaches what is wanted."""
    met = statistics.median(found) >= least
    return Verdict(f"{said}: {'met' if met else 'MISSED'}", missed=not met and not goal)


def within(what: str, figure: float, most: float, unit: str, form: str = ".1f") -> Verdict:
    """A figure that must stay below a limit."""
    met = figure <= most
    shown = f"{format(figure, form)} {unit}, at most {format(most, form)} {unit}"
    return Verdict(f"{what}: {shown}: {'met' if met else 'MISSED'}", missed=not met)
