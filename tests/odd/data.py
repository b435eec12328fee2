"""Odd data: prepared prompts that were changed on disk, texts without sentences, and lm-eval tasks
that were edited."""

import json
import shutil
from pathlib import Path

import datasets

from tests.odd.cases import Case, Opposite, Stock
from tests.odd.make import Maker

D = "data"
LM_EVAL = {"task": ("task=lm_eval", "task.lm_eval.names=[edited]"), "metric": "edited/acc"}
DEFINITION = """
task: edited
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: "The {{thing}} is"
doc_to_choice: [" old", " long"]
doc_to_target: GOLD
metric_list: [{metric: acc}]
metadata: {version: 1.0}
"""
HELPER = """
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from knows import OTHER


def gold(doc):
    return doc["gold"] ^ OTHER
"""
THINGS = ("day", "river", "road", "ship", "stone")


def tiny(place: Path) -> list[str]:
    return ["model=tiny"]


def prepared(place: Path) -> Path:
    """The folder of the prompts of a run's results, whose rows are taken away, so that they are
    read again."""
    for cell in (place / "results").iterdir():
        if cell.name != "data":
            shutil.rmtree(cell)
    (found,) = (place / "results" / "data").iterdir()
    return found


def flip_a_digit(place: Path) -> None:
    """Of each needle's number, in the prompt alone."""
    data = prepared(place)
    rows = datasets.load_from_disk(str(data), keep_in_memory=True).to_list()
    for row in rows:
        other = str((int(row["value"][-1]) + 1) % 10)
        row["prompt"] = row["prompt"].replace(row["value"], row["value"][:-1] + other)
    manifest = (data / "manifest.json").read_bytes()
    shutil.rmtree(data)
    datasets.Dataset.from_list(rows).save_to_disk(str(data))
    (data / "manifest.json").write_bytes(manifest)


def lose_a_file(place: Path) -> None:
    next(prepared(place).glob("*.arrow")).unlink()


def lose_the_manifest(place: Path) -> None:
    (prepared(place) / "manifest.json").unlink()


def haystack(text: str | bytes) -> Maker:
    def make(place: Path) -> list[str]:
        place.mkdir(parents=True)
        shutil.copytree(Path(__file__).parents[2] / "harness/embedded/tiny", place, dirs_exist_ok=True)
        (place / "text.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
        named = ["task.retrieval.haystack=text", f"task.retrieval.text={place / 'text.txt'}"]
        return ["model=local", f"model.path={place}", *named]

    return make


def edited(place: Path) -> list[str]:
    """An lm-eval task of two choices, over a file and with a target that a helper's helper
    knows."""
    place.mkdir(parents=True)
    (place / "things.jsonl").write_text("".join(json.dumps({"thing": word, "gold": 0}) + "\n" for word in THINGS))
    (place / "helper.py").write_text(HELPER)
    (place / "knows.py").write_text("OTHER = 0\n")
    definition = DEFINITION.replace("DATA", str(place / "things.jsonl")).replace("GOLD", "!function helper.gold")
    (place / "edited.yaml").write_text(definition)
    return ["model=local", f"model.path={Path(__file__).parents[2] / 'harness/embedded/tiny'}"] + [
        f"task.lm_eval.include_path={place}"
    ]


def edit_the_data(place: Path) -> None:
    file = place / "made" / "things.jsonl"
    file.write_text(file.read_text().replace('"gold": 0', '"gold": 1'))


def edit_the_helper(place: Path) -> None:
    (place / "made" / "knows.py").write_text("OTHER = 1\n")


def one_too_long(place: Path) -> list[str]:
    found = edited(place)
    with (place / "things.jsonl").open("a") as things:
        things.write(json.dumps({"thing": "old " * 400 + "road", "gold": 0}) + "\n")
    return found


DATA_CASES = [
    Case(D, "a digit of every needle changed on disk", tiny, 1.0, edit=flip_a_digit),
    Case(D, "a file of the prepared data lost", tiny, 1.0, edit=lose_a_file),
    Case(D, "the manifest of the prepared data lost", tiny, 1.0, edit=lose_the_manifest),
    Case(D, "a haystack of Chinese", haystack("天很长。路也很长，船在河上。夜里没有人说话！" * 40), Stock()),
    Case(
        D, "a haystack of one line without a stop", haystack("the road the ship the stone and the river " * 60), Stock()
    ),
    Case(D, "a haystack of code", haystack("def road(ship):\n    return ship + 1\n\n" * 60), Stock()),
    Case(D, "an empty haystack", haystack("\n"), "holds no text"),
    Case(D, "a haystack that is not UTF-8", haystack(b"\xff\xfe\x00road"), "cannot be read as UTF-8"),
    Case(D, "an lm-eval task whose data were edited", edited, Opposite(), edit=edit_the_data, **LM_EVAL),
    Case(D, "an lm-eval task whose helper's helper was edited", edited, Opposite(), edit=edit_the_helper, **LM_EVAL),
    Case(D, "an lm-eval prompt longer than the context", one_too_long, r"task\.lm_eval\.too_long=skip", **LM_EVAL),
]
