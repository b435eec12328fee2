"""The executed path of a kernel, read off its machine code: instructions outside of its loops and
in a turn of each.

Instructions are counted along the shortest way through the code, so that a side path that may not
run (a division's slow case, say) does not count: what is found is a lower bound. A loop is what a
backward branch closes whose goal every way to it passes. One that waits for the copy engine is no
loop: its turns are not the program's.
"""

import re
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass

LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(@!?\w+ )?([A-Z][A-Z0-9_]*)(\.[\w.]*)?([^;]*);")
WAIT = "SYNCS"  # begins a loop that waits for a barrier in shared memory
MATRIX = ("HGMMA", "HMMA", "IMMA", "QGMMA")  # of the tensor cores


@dataclass(frozen=True)
class Instruction:
    """`after`: where it may go on, as places in the list of instructions."""

    name: str
    after: tuple[int, ...]


def read(code: str) -> list[Instruction] | None:
    """The instructions of what `cuobjdump -sass` prints of one kernel; None if one of them jumps to
    a place that is not in the code. A call comes back: what it runs does not count."""
    lines = LINE.findall(code)
    place = {int(address, 16): i for i, (address, *_) in enumerate(lines)}
    instructions = []
    for i, (_, predicate, name, _, operands) in enumerate(lines):
        next_one: tuple[int, ...] = (i + 1,) if i + 1 < len(lines) else ()
        after: tuple[int, ...] = ()
        if name in ("BRA", "UBRA"):
            target = re.search(r"0x([0-9a-f]+)\s*$", operands)
            if target is None or int(target[1], 16) not in place:
                return None
            after = (place[int(target[1], 16)],)
            if predicate or re.search(r"\bU?P\d", operands):
                after += next_one
        elif name in ("EXIT", "RET", "BRX", "JMP", "JMX"):
            if name in ("BRX", "JMP", "JMX"):
                return None
            after = next_one if predicate else ()
        else:
            after = next_one
        instructions.append(Instruction(name, after))
    return instructions


def path(code: str) -> dict | None:
    """Counts of the executed path: `straight`, outside of all loops if each of them runs; `none`,
    of the way that runs no loop; and of each outermost `loops`, in the order of the code, of one
    turn. Each is [instructions, those of the tensor cores]. None if the code has no such path."""
    code_of = read(code)
    if not code_of:
        return None
    reached = set(_ways(code_of, 0, range(len(code_of))))
    spans: list[list[int]] = []
    for first, last in sorted((to, at) for at in reached for to in code_of[at].after if to < at):
        outside = set(range(len(code_of))) - {first}
        if code_of[first].name == WAIT or first and last in _ways(code_of, 0, outside):
            continue
        if spans and first <= spans[-1][1]:
            spans[-1][1] = max(spans[-1][1], last)
        else:
            spans.append([first, last])
    ends = [at for at in reached if code_of[at].name == "EXIT" and not code_of[at].after]
    turns, stops = [], [0]
    for first, last in spans:
        ways = _ways(code_of, first, range(first, last + 1))
        latches = [at for at in ways if first in code_of[at].after]
        if not latches:
            return None
        turns.append(min((_along(ways, at) for at in latches), key=len))
        stops.append(first)
    whole: list[int] = []
    for begin, goal in zip(stops, [*stops[1:], None], strict=True):
        ways = _ways(code_of, begin, range(len(code_of)))
        goals = [at for at in (ends if goal is None else [goal]) if at in ways]
        if not goals:
            return None
        part = min((_along(ways, at) for at in goals), key=len)
        whole += part if goal is None else part[:-1]
    ways = _ways(code_of, 0, range(len(code_of)))
    none = min((_along(ways, at) for at in ends), key=len)

    def count(some: list[int]) -> list[int]:
        return [len(some), sum(code_of[at].name in MATRIX for at in some)]

    loops, (instructions, matrix) = [count(turn) for turn in turns], count(whole)
    straight = [instructions - sum(one for one, _ in loops), matrix - sum(one for _, one in loops)]
    return {"straight": straight, "none": count(none), "loops": loops}


def _ways(code: list[Instruction], begin: int, within: Collection[int]) -> dict[int, int]:
    """For each place that can be reached from `begin` the one before it on a shortest way."""
    before, waiting = {begin: -1}, deque([begin])
    while waiting:
        at = waiting.popleft()
        for to in code[at].after:
            if to in within and to not in before:
                before[to] = at
                waiting.append(to)
    return before


def _along(ways: dict[int, int], at: int) -> list[int]:
    """The places from the begin of `ways` to this one."""
    found = []
    while at >= 0:
        found.append(at)
        at = ways[at]
    return found[::-1]
