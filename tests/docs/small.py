"""`longvit` as the pages' blocks call it: the command of the page, with a small model and few steps.

The pages have the settings of a study, a million patches for ten epochs. Here the same command line runs with a model
of four patches for one epoch: options are replaced or added, none is taken away but those that a small model lacks.
`longvit view` is opened, asked for its page, and interrupted.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import urllib.request

TRAIN = {
    **{"--recipe": "tiny", "--side-px": "64", "--epochs": "1", "--bootstrap": "20", "--deletion-slides": "0"},
    **{"--num-workers": "0", "--device": "cpu", "--threads": "1", "--folds": "2", "--fold": "1"},
}
DINO = {
    **{"--recipe": "dino-tiny", "--global-px": "64", "--local-px": "32", "--local-crops": "2", "--epochs": "1"},
    **{"--per-slide": "1", "--batch-size": "8", "--prototypes": "64", "--head-hidden": "32", "--head-bottleneck": "16"},
    **{"--probe-regions": "16", "--num-workers": "0", "--device": "cpu", "--threads": "1", "--warmup-epochs": "0"},
}
TEXTURE = {
    **{"--per-slide": "1", "--epochs": "1", "--batch-size": "8", "--forward-batch": "8", "--warmup-epochs": "0"},
    **{"--probe-regions": "16", "--num-workers": "0", "--device": "cpu", "--threads": "1"},
}
SMALL = {
    "train": TRAIN,
    "pretrain": DINO,
    "benchmark": {"--epochs": "1", "--bootstrap": "20", "--device": "cpu", "--threads": "1", "--folds": "2"},
    "predict": {"--device": "cpu", "--threads": "1"},
    "embed": {"--device": "cpu", "--threads": "1"},
    "features": {"--threads": "1"},
    "canvas": {"--side-px": "128"},
}
ONLY_IF_GIVEN = {"--folds", "--fold"}
KEPT = {
    "--recipe": {"texture-tiny", "runs/first/settings.yaml", "longvit.yaml", "proposed.yaml"},
    "--folds": {"column", "folds", "runs/cv/folds"},
}
"""Values that a page may choose."""


def smaller(words: list[str]) -> list[str]:
    """The arguments of a page's command, with small settings."""
    if not words or words[0] not in SMALL:
        return words
    words = list(words)
    small = TEXTURE if "texture-tiny" in words else SMALL[words[0]]
    for option, value in small.items():
        if option not in words:
            words += [] if option in ONLY_IF_GIVEN else [option, value]
        elif words[words.index(option) + 1] not in KEPT.get(option, ()):
            words[words.index(option) + 1] = value
    if words[0] == "predict" and words[2].endswith(".csv") and not words[1].endswith("model"):
        words += ["--bootstrap", "20"]  # an external validation
    if words[0] == "benchmark" and "--systems" not in words:
        words += ["--systems", "mean_pooling", "attention_mil"]
    return words


def view(words: list[str]) -> int:
    """Runs the viewer until its page has come."""
    command = [sys.executable, "-m", "longvit", *words, *([] if "--no-browser" in words else ["--no-browser"])]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    address = next(found[0] for line in process.stdout if (found := re.search(r"http://\S+", line)))
    with urllib.request.urlopen(address, timeout=60) as page:
        assert b"<html" in page.read(10_000)
    process.send_signal(signal.SIGINT)
    return 0 if process.wait(60) in (0, 130) else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["view"]:
        sys.exit(view(sys.argv[1:]))
    from longvit.cli import main

    sys.exit(main(smaller(sys.argv[1:])))
