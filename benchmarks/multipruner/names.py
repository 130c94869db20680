"""What the arms and tasks of the claim are called; the tables need nothing else of it."""

from __future__ import annotations

SPLITS = {"auto": "auto", "blocks": "100:0:0"}
"""The two arms that MultiPruner itself runs; ``100:0:0`` is BlockPruner."""

LABELS = {
    "auto": "**MultiPruner, `split=auto`**",
    "blocks": "BlockPruner (`split=100:0:0`)",
    "shortgpt": "ShortGPT (whole layers by Block Influence)",
    "uniform-activation": "uniform MLP width, weight × activation",
    "uniform-magnitude": "uniform MLP width, magnitude",
    "taylor": "Taylor (torch-pruning), equal share per layer",
    "taylor-global": "Taylor (torch-pruning), across layers",
    "random": "random structures, median",
}
"""How tables call the arms."""

TASKS = ("piqa", "winogrande", "openbookqa", "boolq")
"""Zero-shot choice tasks."""
