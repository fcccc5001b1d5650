"""Compute device of the model, selected once, with the reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from longvit.errors import InputError

if TYPE_CHECKING:
    import torch

DeviceName = Literal["auto", "cpu", "cuda", "mps"]


@dataclass(frozen=True)
class Device:
    """A device and the reason for its selection."""

    device: torch.device
    name: str
    """Display name: the name of the card, or `2 CPU threads`."""
    reason: str


def pick_device(name: str = "auto") -> Device:
    """Selects a device: `auto` takes CUDA, else Apple's MPS, else the CPU; a named device is required.

    Raises `InputError` in one line where the named device is not available.
    """
    import torch

    kind, _, index = name.partition(":")
    if kind not in ("auto", "cpu", "cuda", "mps") or (index and not index.isdigit()):
        raise InputError(f"--device {name}: choose auto, cpu, cuda (or cuda:1) or mps")
    has_cuda, has_mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if kind == "auto":
        kind = "cuda" if has_cuda else "mps" if has_mps else "cpu"
        reason = "first available of cuda, mps, cpu"
    else:
        reason = "requested"
    if kind == "cuda":
        if not has_cuda:
            cause = "this build of torch has no CUDA" if torch.version.cuda is None else "torch sees no CUDA card"
            raise InputError(f"--device {name}: {cause}; use --device cpu, or install a CUDA build of torch")
        if index and int(index) >= torch.cuda.device_count():
            raise InputError(f"--device {name}: there are {torch.cuda.device_count()} cards, numbered from 0")
        device = torch.device(name if index else "cuda")
        return Device(device, torch.cuda.get_device_name(device), reason)
    if kind == "mps":
        if not has_mps:
            raise InputError(f"--device {name}: torch sees no Apple GPU; use --device cpu")
        return Device(torch.device("mps"), "Apple GPU (MPS)", reason)
    threads = torch.get_num_threads()
    return Device(torch.device("cpu"), f"CPU, {threads} thread{'s' * (threads != 1)}", reason)


def set_threads(threads: int | None) -> None:
    """Sets the number of CPU threads of the model; None keeps torch's default (one per core)."""
    if threads is None:
        return
    if threads < 1:
        raise InputError(f"--threads {threads}: at least 1")
    import torch

    torch.set_num_threads(threads)
