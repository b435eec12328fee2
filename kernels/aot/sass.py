"""The executed path of a kernel, from its machine code: instructions outside of its loops and per
iteration of each loop.

Instructions are counted along the shortest path through the code, so that a side path that may not
run (the slow case of a division, say) does not count: the result is a lower bound. A backward
branch closes a loop if its target dominates it. A loop that waits for the copy engine does not
count: its iterations are no work of the program.
"""

import re
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass

LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(@!?\w+ )?([A-Z][A-Z0-9_]*)(\.[\w.]*)?([^;]*);")
BARRIER_WAIT = "SYNCS"  # first instruction of a loop that waits for a barrier in shared memory
TENSOR_CORE_OPS = ("HGMMA", "HMMA", "IMMA", "QGMMA")


@dataclass(frozen=True)
class Instruction:
    """`after`: indices of the instructions that may follow."""

    name: str
    after: tuple[int, ...]


def read(code: str) -> list[Instruction] | None:
    """Parses the output of `cuobjdump -sass` for one kernel; None if a jump leaves the code. A call
    returns, and the instructions that it runs do not count."""
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
    """Counts the executed path, each as [instructions, tensor core instructions].

    Returns: `straight`, outside of all loops if each of them runs; `none`, the path that runs no
    loop; and `loops`, one iteration of each outermost loop in the order of the code. None if the
    code has no such path.
    """
    code_of = read(code)
    if not code_of:
        return None
    reached = set(_ways(code_of, 0, range(len(code_of))))
    spans: list[list[int]] = []
    for first, last in sorted((to, at) for at in reached for to in code_of[at].after if to < at):
        outside = set(range(len(code_of))) - {first}
        if code_of[first].name == BARRIER_WAIT or first and last in _ways(code_of, 0, outside):
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
        return [len(some), sum(code_of[at].name in TENSOR_CORE_OPS for at in some)]

    loops, (instructions, matrix) = [count(turn) for turn in turns], count(whole)
    straight = [instructions - sum(one for one, _ in loops), matrix - sum(one for _, one in loops)]
    return {"straight": straight, "none": count(none), "loops": loops}


def _ways(code: list[Instruction], begin: int, within: Collection[int]) -> dict[int, int]:
    """For each index that can be reached from `begin` `within` a set: the index before it on a
    shortest path."""
    before, waiting = {begin: -1}, deque([begin])
    while waiting:
        at = waiting.popleft()
        for to in code[at].after:
            if to in within and to not in before:
                before[to] = at
                waiting.append(to)
    return before


def _along(ways: dict[int, int], at: int) -> list[int]:
    """The indices from the start of `ways` to `at`."""
    reverse = []
    while at >= 0:
        reverse.append(at)
        at = ways[at]
    return reverse[::-1]
