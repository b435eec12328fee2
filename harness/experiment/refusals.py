"""Refuse combinations of kernel, model, task and ranks before anything is loaded."""

import re

import torch

from harness.attentions.base import Attention
from harness.cell import Cell
from harness.common.errors import UserError
from harness.common.ranks import ranks
from harness.common.secrets import without_secrets
from harness.models.spec import ModelSpec
from harness.tasks.base import Task


def refuse_kernel(kernel: str, attention: Attention, model: ModelSpec, device: torch.device) -> None:
    """Check that a kernel can compute an attention on a device.

    Args:
        kernel: name of the kernel.
        attention: the attention method.
        model: the model, for its data type and head dimension.
        device: the device.

    Raises:
        UserError: if it cannot.
    """
    reason = None
    if attention.by_score and kernel in ("flex", "triton"):
        reason = (
            f"attn={attention.name} chooses keys by their scores, which kernel={kernel} does not compute "
            "beforehand: use kernel=sdpa."
        )
    elif kernel == "triton":
        try:
            from kernels.impl.triton.attend import unsupported_reason
        except ImportError:
            raise UserError(
                "kernel=triton needs the package triton, which is not installed: use kernel=sdpa."
            ) from None
        head_dim = model.architecture.head_dim
        reason = unsupported_reason(device, model.torch_dtype, head_dim, attention.masks_counted)
    elif kernel == "flex":
        from kernels.impl import flex  # its import takes seconds

        reason = flex.unsupported_reason(device, model.torch_dtype)
    if reason:
        # the syntax of the command line
        raise UserError(re.sub(r"kernel='(\w+)'", r"kernel=\1", reason))


def refuse_model(task: Task, model: ModelSpec) -> None:
    """Raise UserError if the task is meaningless for this model."""
    if model.sigma is not None and task.runs_weights:
        raise UserError(
            f"task={task.name} is refused: the model was not trained with model.sigma={model.sigma:g}, so that its "
            "output under these slopes means nothing. Leave model.sigma out, or use task=theory or task=horizon."
        )
    if model.random and task.needs_trained_weights:
        raise UserError(
            f"task={task.name} is refused: the model has random weights, whose accuracy means nothing. Use "
            "model.weights=checkpoint, or task=throughput."
        )
    if model.reads == "prompts" and task.natural_text:
        raise UserError(
            f"task={task.name} is refused: it reads natural text, and model={model.name} knows no words "
            "but those of its own prompts. Use model=tiny-books or tiny-code, or another language model."
        )


def refuse_draws(task: Task, samples: int, draws: int) -> None:
    """Raise UserError if there are fewer samples than draws of the masks.

    Args:
        task: whose rows may be samples.
        samples, draws: as requested.
    """
    if task.rows_are == "samples" and draws > samples:
        raise UserError(f"samples={samples} cannot be spread over draws={draws}: ask for more samples or fewer draws.")


def refuse_ranks(task: Task, model: ModelSpec) -> None:
    """Raise UserError if several processes cannot share this task of this model."""
    if ranks() == 1:
        return
    if model.device_map is not None:
        raise UserError(
            f"model.device_map={model.device_map} spreads one model over all devices, and each of {ranks()} ranks "
            "would load it: leave it out, or start without torchrun and accelerate launch."
        )
    if task.rows_are == "repeats":
        raise UserError(
            f"task={task.name} is refused with {ranks()} ranks, which would disturb one another's times: start it "
            "without torchrun and accelerate launch."
        )


def refuse_length(cell: Cell, task: Task) -> None:
    """Raise UserError if prompt and answer exceed the limit of the checkpoint's own attention."""
    limit = cell.model.architecture.positions
    if cell.attention.native and limit and cell.context + task.generates > limit:
        raise UserError(
            f"attn={cell.attention.name} fails beyond this checkpoint's max_seq_len of {limit} tokens: "
            f"task={task.name} needs {cell.context + task.generates} (context={cell.context}, and those it generates). "
            "Use attn=alibi, which has no such bound, or a smaller context."
        )


def refuse_secrets(identity: object) -> None:
    """Raise UserError if what describes a computation holds a secret, which no filter of records
    could take out of it."""
    text = repr(identity)
    if (clean := without_secrets(text)) != text:
        place = next(i for i, (a, b) in enumerate(zip(clean, text, strict=False)) if a != b)
        around = clean[max(0, place - 30) : place + 20]
        raise UserError(f"A secret would become a part of what is computed and recorded: {around}.")
