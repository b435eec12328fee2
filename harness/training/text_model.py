"""Train a model that reads texts, in two processes of one thread each, and write its folder."""

import functools
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from harness.common import environment
from harness.common.errors import UserError
from harness.common.files import write_atomic
from harness.training import bits, tokenizer
from harness.training import net as nets
from harness.training.checkpoints import identity, read_checkpoint
from harness.training.text_recipes import Recipe
from harness.training.text_train import LOG_EVERY, PROBE_LENGTH, plan, probe_rows, stream, train
from harness.training.train import RANKS

SEED = 0
MAX_LENGTH = 8192
PROBE_ROWS = 8


def run_rank(rank: int, meeting: str, recipe: Recipe, work: Path) -> None:
    """Train a model as one of the processes.

    Args:
        rank: number of the process.
        meeting: address where the processes meet.
        recipe: the recipe.
        work: the folder of `make`, with tokenizer and streams; for checkpoint.pt.
    """
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=RANKS)
    encoder = PreTrainedTokenizerFast.from_pretrained(work)
    streams = torch.load(work / "streams.pt")
    torch.manual_seed(SEED)
    net = nets.Net(nets.config(len(encoder), **recipe.shape))
    held_out = streams["validation"].long()
    ends = torch.linspace(PROBE_LENGTH, len(held_out) - 1, PROBE_ROWS).long().tolist()
    probe = None
    if len(held_out) > PROBE_LENGTH:
        rows = torch.stack([held_out[end - PROBE_LENGTH : end + 1] for end in ends])
        probe = functools.partial(probe_rows, rows=rows, sizes=bits.byte_counts(encoder))
    log = functools.partial(print, flush=True) if rank == 0 else lambda line: None
    train(net, streams["train"], recipe.phase, SEED, log, work / "checkpoint.pt", probe)
    dist.destroy_process_group()


def make(
    recipe: Recipe,
    texts: dict[str, list[str]],
    folder: Path,
    work: Path,
    log: Callable[[str], None],
    *,
    resume: bool = False,
    facts: dict[str, Any] | None = None,
) -> None:
    """Train a model and save it with its record `training.json`.

    Args:
        recipe: the recipe.
        texts: the texts of "train" and "validation".
        folder: folder of the model.
        work: folder of checkpoints and streams.
        log: prints a line.
        resume: whether to go on from the checkpoint in `work`.
        facts: what else the record holds, about the texts.

    Raises:
        UserError: if `work` has a checkpoint and `resume` is false, or the other way round; if the
            checkpoint is of another run, or the texts are shorter than a row.
    """
    if resume != (checkpoint := work / "checkpoint.pt").exists():
        raise UserError(
            f"{checkpoint} is missing: without --resume a run begins."
            if resume
            else f"{checkpoint} is there: --resume goes on from it, another --work begins anew."
        )
    work.mkdir(parents=True, exist_ok=True)
    streams = read_streams(recipe, texts, work)
    size = sum(len(text.encode()) for text in texts["train"])
    log(f"{recipe.name}: {len(streams['train'])} tokens in {size} bytes of {len(texts['train'])} texts")
    # before the processes start, which would bury the sentence in tracebacks
    steps = plan(len(streams["train"]), recipe.phase, SEED, RANKS)
    if resume:
        read_checkpoint(checkpoint, identity(streams["train"], SEED, RANKS), steps)
    meeting = work / "meeting"
    meeting.unlink(missing_ok=True)
    mp.spawn(run_rank, args=(f"file://{meeting}", recipe, work), nprocs=RANKS)
    finish(recipe, folder, work, {"stream_bytes": size} | (facts or {}))


def read_streams(recipe: Recipe, texts: dict[str, list[str]], work: Path) -> dict[str, Tensor]:
    """Return the streams of the texts, int32 (N,) each, and learn the tokens.

    Both are kept in `work` and used again for the same texts.

    Args:
        recipe: the recipe, for its vocabulary.
        texts: the texts of "train" and "validation".
        work: the folder.
    """
    told = json.dumps([recipe.vocabulary, texts]).encode()
    digest, file = hashlib.sha256(told).hexdigest(), work / "streams.pt"
    if file.exists() and (kept := torch.load(file)).get("texts") == digest:
        return kept
    encoder = tokenizer.learn(texts["train"], recipe.vocabulary, MAX_LENGTH)
    encoder.save_pretrained(work)
    streams = {part: stream(encoder, texts[part]).to(torch.int32) for part in ("train", "validation")}
    torch.save(streams | {"texts": digest}, file)
    return streams


def finish(recipe: Recipe, folder: Path, work: Path, facts: dict[str, Any]) -> None:
    """Write the model of a checkpoint and its record.

    Args:
        recipe: the recipe.
        folder: folder of the model.
        work: folder of the checkpoint.
        facts: what else the record holds, about the texts.
    """
    machine = environment.describe(torch.device("cpu"))  # before the model changes a tracked file
    encoder = PreTrainedTokenizerFast.from_pretrained(work)
    state = torch.load(work / "checkpoint.pt")
    net = nets.Net(nets.config(len(encoder), **recipe.shape))
    net.load_state_dict(state["net"])
    nets.export(net, folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):  # loaded and saved again they would say so
        shutil.copyfile(work / name, folder / name)
    losses, stages = state["progress"]["losses"], recipe.phase.stages
    means = [losses[first : first + LOG_EVERY] for first in range(0, len(losses), LOG_EVERY)]
    record = {
        "commit": machine["commit"],
        "dirty": machine["dirty"],
        "device": machine["device"],
        "packages": {name: machine["packages"][name] for name in ("torch", "transformers", "tokenizers")},
        "seed": SEED,
        "processes": RANKS,
        "shape": recipe.shape,
        "stages": [vars(stage) for stage in stages],
        "decay": recipe.phase.decay,
        "stream_tokens": state["run"]["tokens"],
        "tokens": RANKS * sum(stage.steps * (stage.tokens // stage.length) * stage.length for stage in stages),
        "seconds": state["progress"]["seconds"],
        "loss_nats_per_token": sum(means[-1]) / len(means[-1]),
        "losses": [round(sum(values) / len(values), 4) for values in means],
        "probes": state["progress"]["probes"],
    } | facts
    write_atomic(folder / "training.json", record)


def read_record(folder: Path) -> dict:
    """Return the record that `make` wrote to `folder`; raise UserError if there is none."""
    try:
        return json.loads((folder / "training.json").read_text())
    except FileNotFoundError:
        raise UserError(f"{folder} holds no training.json: train the model first.") from None
