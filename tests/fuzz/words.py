"""Strategies for the words of command lines: mostly what a user could type, odd in one or two
places."""

from hypothesis import strategies as st

from harness.common.paths import CONF
from harness.experiment.config import GROUPS, register_schema
from harness.experiment.mistakes import FLAGS, option_names
from harness.experiment.overrides import quote_value
from harness.tasks.registry import TASKS

register_schema()
TASK_NAMES = [f"task.{task}.{name}" for task, family in TASKS.items() for name in family.options.__annotations__]
NAMES = sorted({*option_names(), *TASK_NAMES} - GROUPS)
HYDRA = ["hydra.run.dir", "hydra.sweep.dir", "hydra.mode", "hydra.job.env_set.X", "hydra.launcher", "hydra/launcher"]
ODD_NAMES = [*HYDRA, *GROUPS, *(f"task.{name}" for name in TASKS)]
ODD_NAMES += ["task.x", "x", "masks.x", "model@attn", "", ".", "a/b"]
CHOICES = [f"{group}={file.stem}" for group in sorted(GROUPS) for file in sorted((CONF / group).glob("*.yaml"))]

NUMBERS = [
    "0",
    "-1",
    "1",
    "2",
    "4",
    "7",
    "64",
    "200",
    "0.5",
    "1.5",
    "-0.0",
    "1e6",
    "1e300",
    "1e999",
    "nan",
    "-inf",
    "inf",
    "1_0",
    "0x10",
    "4294967296",
]
NUMBERS += ["9" * 18, "9" * 25, "9" * 400, "9" * 5000]
# Hydra reads these as they are
TEXTS = [
    "null",
    "true",
    "false",
    "None",
    "???",
    "''",
    "{}",
    "[]",
    "{a:1}",
    "[1,x]",
    "[null]",
    "[[1],[2]]",
    "1,2",
    "a,b",
    "nois",
    "text",
    "exact",
    "compute",
    "read",
    "cpu",
]
TEXTS += [
    "cuda",
    "cuda:0",
    "float16",
    "float64",
    "auto",
    "random",
    "count",
    "rb",
    "gamma",
    "fixed",
    "foo/bar",
    "main",
    "offline",
    "bogus",
    "prompts",
]
TEXTS += [
    "[niah_single_1]",
    "[nowhere]",
    "[gsm8k]",
    "[0.0,1.0]",
    "[0,2]",
    "{a:{b:{c:1}}}",
    "[retrieval,retrieval]",
    "{name:tiny}",
]
TEXTS += [
    "choice(1,2)",
    "range(1,3)",
    "glob(*)",
    "sort(3,1)",
    "int(3)",
    "str(1)",
    "interval(0,1)",
    "shuffle(1,2)",
    "{retrieval:{text:x}}",
]
TEXTS += [
    "${oc.env:HOME}",
    "${oc.env:NOT_THERE}",
    "${masks}",
    "${nowhere}",
    "${oc.env}",
    "${.x}",
    "'${x}'",
    "'\x1b[31m'",
    "'\u202e'",
    "'�'",
]
TEXTS += ["x" * 3000, "'a b'", '"a,b=c"', "tag(x,choice(1))", "[" * 90 + "]" * 90, "{a:" * 60 + "1" + "}" * 60]
PLACES = ["nowhere", "made", ".", "..", "/dev/null", "/dev/zero", "/proc/self/mem", "fifo", "~no_such_user/x"] + [
    "x" * 300
]
PLACES += ["made/file", "made/file/x", "made/circle", "made/empty", "made/bytes", "made/checkpoint"]
UNREADABLE = ["", "a b", "\t", "ünï", "a=b", "'", '"', "\\", "'a", "{", "]", "#", "${", "$masks", "!!python/x", "--"]
UNREADABLE += ["\u202e", "\udcff", "\x1b[31m", "~", "%(x)s", "[" * 300, "str(", "int(x)", "sort(1,x)"]

text = st.text(st.characters(exclude_characters="\0", exclude_categories=()), max_size=8)
_pools = [NUMBERS] * 3 + [TEXTS] * 4 + [PLACES] * 2 + [UNREADABLE]
values = st.sampled_from(_pools).flatmap(st.sampled_from) | text.map(quote_value)
choices = st.sampled_from(CHOICES)
options = st.builds("{}={}".format, st.sampled_from(NAMES), values)
odd = st.builds(
    "{}{}{}{}".format,
    st.sampled_from(["", "", "+", "++", "~", "++~"]),
    st.sampled_from(NAMES) | st.sampled_from(ODD_NAMES) | text,
    st.sampled_from(["=", "=", "=", "=", "=", "", "==", "@"]),
    values,
)
_flag = st.sampled_from(FLAGS)
flags = _flag | st.builds("{}={}".format, _flag, values) | text.map("-{}".format)
_kinds = st.sampled_from([options] * 8 + [choices] * 3 + [odd] * 3 + [flags, values]).flatmap(lambda kind: kind)
# of harness.run and harness.data
run_words = st.lists(_kinds, min_size=1, max_size=3)

# of the other commands, by their modules
OPTIONS = {
    "show": ["--results"],
    "report.__main__": ["--out", "--wandb", "--markdown", "--compare"],
    "collect": ["--out"],
    "check": ["--fix"],
    "sync": ["--cell", "--project", "--entity", "--group", "--timeout"],
    "sweep.__main__": ["--results", "-j", "--retry", "--dry-run", "--status", "--missing", "--prepare"],
    "lm_eval": ["--tasks", "--model", "--model_args", "--limit", "--batch_size", "--num_fewshot", "--config"],
}
FILES = [
    "made/store",
    "made/sweep.yaml",
    "made/odd.yaml",
    "made/out.csv",
    "made/out.parquet",
    "/dev/full",
    "failed",
    "-1",
]


def words_of(program: str):
    """Words of a command: places, its own options and others, and texts."""
    if program == "data":
        return run_words
    own, place = st.sampled_from(OPTIONS[program]), st.sampled_from(PLACES + 3 * FILES)
    pieces = [place, own, own, st.builds("{}={}".format, own, place | values), options, values]
    return st.lists(st.one_of(pieces), max_size=4)


other_lines = st.sampled_from(["data", *OPTIONS]).flatmap(lambda name: st.tuples(st.just(name), words_of(name)))
