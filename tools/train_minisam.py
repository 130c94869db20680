"""Train MiniSAM, a promptable segmenter of a million weights. It is no Segment Anything: it knows pasted digits.

No weights of SAM can be had without a network, and its shapes are too large for a small machine. MiniSAM has the shapes
of transformers' `SamModel` in small (64 pixels, patches of 8, width 96, 8 layers, windows except in every other layer),
and is trained here, from scratch, on composites: handwritten digits (scikit-learn) of random size, angle and colour on
crops of scikit-learn's two sample photographs; the prompt is a point on one digit, the answer its mask. Two other
domains are for what comes after: ``noisy`` (grey, blurred, low contrast, noise, as under a microscope) and ``striped``
(stripes in the place of photographs, glyphs barely darker than they are).

    python -m tools.train_minisam                          # into the package; an interrupted run goes on
    python -m tools.train_minisam --scenes noisy --count 400 --out noisy.npz
"""

# H × W pixels

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, interpolate

from lissome.core.files import cache_dir, sha256_file
from lissome.data.masks import read_masks
from lissome.engine.checkpoint import Checkpoint
from lissome.engine.hooks import Batch
from lissome.engine.segments import PromptedExamples, Segments, dice, iou, segment_splits
from lissome.engine.train import train
from lissome.models.load import load_model
from lissome.models.model import Model
from lissome.models.zoo import ZOO, folder_of, zoo
from tools._shipping import ship

NAME = "zoo-minisam"
SIZE = 64
STEPS, RATE, BATCH, POINTS, COUNT = 5000, 1e-3, 16, 4, 3000
"""Steps of its training and their peak rate, scenes of each step and points in each, and scenes that it knows."""
DOMAINS = ("photographs", "noisy", "striped")
_SUMMARY = (
    "MiniSAM: the shapes of SamModel in small (8 layers, width 96, 64 pixels); trained here on digits pasted on "
    "photographs, it is no Segment Anything"
)
_PIXELS = 4.0  # weight of the cross entropy of pixels beside dice
_FLOOR = 0.75  # mean IoU that a MiniSAM must reach on scenes of its own domain

Pixels = NDArray[np.float64]


def scenes(path: Path, *, domain: str = "photographs", count: int = 400, tests: int = 0, seed: int = 0) -> Path:
    """Write scenes as an archive of images with points and masks: one row for each digit of each scene.

    Args:
        path: The ``.npz`` file.
        domain: One of `DOMAINS`.
        count: Number of scenes.
        tests: Further scenes that are kept for tests; 0 leaves it to who reads them.
        seed: Of all draws.
    """
    rng = np.random.default_rng(seed)
    glyphs, photographs = _glyphs(), _photographs()
    rows: dict[str, list[Any]] = {"image": [], "point": [], "mask": [], "group": []}
    for scene in range(count + tests):
        image, masks = _scene(rng, glyphs, photographs, domain)
        for mask in masks:
            y, x = rng.choice(np.argwhere(mask))
            for name, value in zip(rows, (image, (x + 0.5, y + 0.5), mask, scene), strict=True):
                rows[name].append(value)
    arrays = {
        "image": np.array(rows["image"], dtype=np.uint8),
        "point": np.array(rows["point"], dtype=np.float32),
        "mask": np.array(rows["mask"], dtype=np.uint8),
        "group": np.array(rows["group"], dtype=np.int64),
    }
    if tests:
        arrays["is_train"] = arrays["group"] < count
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
    return path


def _scene(
    rng: np.random.Generator, glyphs: Pixels, photographs: list[Pixels], domain: str
) -> tuple[NDArray[np.uint8], list[NDArray[np.bool_]]]:
    image = _striped(rng) if domain == "striped" else _crop(rng, photographs)
    taken, masks = np.zeros((SIZE, SIZE), dtype=bool), list[NDArray[np.bool_]]()
    wanted = int(rng.integers(2, 5))
    for _ in range(20):
        if len(masks) == wanted:
            break
        side = int(rng.integers(16, 33))
        glyph = ndimage.zoom(glyphs[rng.integers(len(glyphs))], side / 8, order=1)
        glyph = ndimage.rotate(glyph, rng.uniform(-60, 60), reshape=False, order=1) > 0.4
        top, left = rng.integers(0, SIZE - glyph.shape[0] + 1, 2)
        mask = np.zeros((SIZE, SIZE), dtype=bool)
        mask[top : top + glyph.shape[0], left : left + glyph.shape[1]] = glyph
        if mask.sum() < 20 or (mask & ndimage.binary_dilation(taken, iterations=2)).any():
            continue
        colour = rng.uniform(0, 1, 3)
        if domain == "striped":
            colour = np.clip(image[mask].mean(0) * rng.uniform(0.3, 0.6), 0, 1)
        image[mask] = 0.85 * colour + 0.15 * image[mask]
        taken |= mask
        masks.append(mask)
    if domain == "noisy":
        image = _noisy(rng, image)
    return (255 * np.clip(image, 0, 1)).astype(np.uint8), masks


def _noisy(rng: np.random.Generator, image: Pixels) -> Pixels:
    grey = ndimage.gaussian_filter(image.mean(2), rng.uniform(0.6, 1.2))
    low, high = grey.min(), grey.max()
    flat = 0.35 + 0.3 * (grey - low) / max(1e-6, high - low) + 0.06 * rng.standard_normal(grey.shape)
    return np.repeat(flat[:, :, None], 3, axis=2)


def _striped(rng: np.random.Generator) -> Pixels:
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    angle, period = rng.uniform(0, np.pi), rng.uniform(4, 12)
    wave = 0.5 + 0.5 * np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / period)
    first, second = rng.uniform(0.3, 1, (2, 3))
    made: Pixels = wave[:, :, None] * first + (1 - wave[:, :, None]) * second
    return made


def _crop(rng: np.random.Generator, photographs: list[Pixels]) -> Pixels:
    whole = photographs[rng.integers(len(photographs))]
    side = int(rng.integers(SIZE, 3 * SIZE))
    top, left = (int(rng.integers(0, most - side)) for most in whole.shape[:2])
    step = side / SIZE
    places = (np.arange(SIZE) * step).astype(int)
    return whole[top : top + side, left : left + side][np.ix_(places, places)].copy()


def _glyphs() -> Pixels:
    from sklearn.datasets import load_digits

    found: Pixels = load_digits().images / 16
    return found


def _photographs() -> list[Pixels]:
    from sklearn.datasets import load_sample_images

    return [image / 255 for image in load_sample_images().images]


def configuration(**vision: Any) -> Any:
    """Return MiniSAM's configuration; fields of the image encoder may be changed."""
    from transformers import SamConfig, SamMaskDecoderConfig, SamPromptEncoderConfig, SamVisionConfig

    fields = {
        "hidden_size": 96, "num_hidden_layers": 8, "num_attention_heads": 4, "mlp_ratio": 4.0, "image_size": SIZE,
        "patch_size": 8, "window_size": 4, "global_attn_indexes": [1, 3, 5, 7], "output_channels": 64,
        "num_pos_feats": 32,
    }  # fmt: skip
    return SamConfig(
        vision_config=SamVisionConfig(**{**fields, **vision}),
        prompt_encoder_config=SamPromptEncoderConfig(
            hidden_size=64, image_size=SIZE, patch_size=8, mask_input_channels=8
        ),
        mask_decoder_config=SamMaskDecoderConfig(
            hidden_size=64, mlp_dim=128, num_hidden_layers=2, num_attention_heads=4, iou_head_hidden_dim=64
        ),
    )


def minisam(*, seed: int = 0, **vision: Any) -> torch.nn.Module:
    """Build MiniSAM with weights as they are drawn.

    They are drawn as torch draws them, and as Segment Anything began. Transformers' own start is meant for weights
    that are loaded: a deviation of 0.02 makes what a decoder of width 64 says vanish, and the frequencies of places,
    half the encoder's width, make any two points look unlike, however close.
    """
    from transformers import SamModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module: torch.nn.Module = SamModel(configuration(**vision))
        for part in module.modules():
            if isinstance(part, nn.Linear | nn.Conv2d | nn.ConvTranspose2d | nn.Embedding):
                part.reset_parameters()
        module.shared_image_embedding.positional_embedding.data.normal_()
    return module.eval()


class Scenes:
    """Scenes turned and mirrored at random, with points on their objects: the image is read once for all of them.

    An example is pixels [C, S, S], P points [P, 1, 2] and the masks that they lie on [P, S, S]. Draws come from torch's
    global generator, which the training loop seeds for every step.
    """

    def __init__(self, examples: PromptedExamples) -> None:
        self._examples = examples
        by_scene: dict[int, list[int]] = {}
        for at, place in enumerate(examples.places):
            by_scene.setdefault(int(examples.data.groups[place]), []).append(at)
        self._objects = list(by_scene.values())

    def __len__(self) -> int:
        """Return the number of scenes."""
        return len(self._objects)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Return one example."""
        objects = [self._examples[at] for at in self._objects[index]]
        turns, mirrored = (int(torch.randint(high, ())) for high in (4, 2))

        def moved(image: torch.Tensor) -> torch.Tensor:
            return torch.rot90(image.flip(-1) if mirrored else image, turns, (-2, -1))

        masks = moved(torch.stack([each["mask"] for each in objects]))[torch.randint(len(objects), (POINTS,))]
        found = torch.stack([_point_on(mask) for mask in masks])
        return {"pixel_values": moved(objects[0]["pixel_values"]), "points": found[:, None], "masks": masks}


def _point_on(mask: torch.Tensor) -> torch.Tensor:
    """Draw a point of a mask [H, W]: x and y in pixels."""
    places = mask.nonzero()
    return places[torch.randint(len(places), ())].flip(0) + 0.5


def points_loss(module: Any, batch: Batch) -> torch.Tensor:
    """Dice and cross entropy of the pixels, and the squared error of expected IoUs: mean of points and masks, [B].

    Segment Anything was trained by dice and a loss of pixels (focal there) together, of the best of three masks, since
    a point on a shirt may mean the person. Here a point means one digit: each mask learns from every example.
    """
    given, truth = batch.examples, batch.examples["masks"].flatten(0, 1)
    result = module(pixel_values=given["pixel_values"], input_points=given["points"])
    masks = interpolate(result.pred_masks.flatten(0, 1).float(), truth.shape[-2:], mode="bilinear")
    pixels = binary_cross_entropy_with_logits(masks, truth.unsqueeze(1).expand_as(masks), reduction="none")
    surprise = (result.iou_scores.flatten(0, 1).float() - iou(masks, truth)).square()
    error: torch.Tensor = dice(masks, truth) + _PIXELS * pixels.mean((2, 3)) + surprise
    return error.view(len(batch.indices), -1).mean(1)


def train_minisam(work: Path, *, scenes_file: Path, steps: int, seed: int = 0) -> tuple[Model, float]:
    """Train MiniSAM by `points_loss`; continues after a kill.

    Args:
        work: Folder of unfinished work.
        scenes_file: Scenes to train on.
        steps: Optimizer steps.
        seed: Of weights and draws.

    Returns:
        The model, and the seconds that it took.
    """
    model = load_model(minisam(seed=seed), name=NAME)
    objective = Segments(segment_splits(model, read_masks(scenes_file)))
    task = replace(objective.task(model), loss=points_loss, data=Scenes(objective.data.recovery))
    settings = replace(objective.training(steps=steps, lr=RATE, batch=None, max_seconds=None), batch=BATCH)
    key = {"seed": seed, "steps": steps, "scenes": sha256_file(scenes_file)}
    return model, train(task, settings, seed=seed, checkpoint=Checkpoint(work / "state", key)).seconds


def given(folder: Path, *, part: float = 1.0) -> Path:
    """Return the folder of the MiniSAM that ships; of a part of its steps, or where it does not, one trained now."""
    if part == 1 and NAME in zoo():
        return folder_of(NAME)
    if not folder.exists():
        file = folder.parent / f"{folder.name}-scenes.npz"
        if not file.exists():
            scenes(file, count=max(24, round(COUNT * part)))
        model, _ = train_minisam(folder.parent, scenes_file=file, steps=max(4, round(STEPS * part)))
        model.save(folder)
    return folder


def main() -> None:
    """Write scenes, or train on them and store the result in the package."""
    parser = argparse.ArgumentParser(description="Train MiniSAM, or write scenes for it.")
    parser.add_argument("--out", type=Path, default=ZOO, help="the scenes' file, or where the model goes")
    parser.add_argument("--work", type=Path, default=cache_dir() / "zoo" / NAME, help="where unfinished work lies")
    parser.add_argument("--scenes", choices=DOMAINS, help="write scenes of this domain")
    parser.add_argument("--count", type=int, default=COUNT, help="number of scenes")
    parser.add_argument("--steps", type=int, default=STEPS, help="optimizer steps")
    asked = parser.parse_args()
    if asked.scenes:
        scenes(asked.out, domain=asked.scenes, count=asked.count)
        return
    file = asked.work / "scenes.npz"
    if not file.exists():
        asked.work.mkdir(parents=True, exist_ok=True)
        scenes(file, count=asked.count)
    model, seconds = train_minisam(asked.work, scenes_file=file, steps=asked.steps)

    def judge(it: Model) -> dict[str, float]:
        figures = Segments(segment_splits(it, read_masks(file))).figures(it, "test")
        return {name: value for name, value in figures.items() if name != "loss"}

    told = {
        "steps": asked.steps, "rate": RATE, "batch": BATCH, "points": POINTS, "scenes": asked.count,
        "seconds": seconds, "seed": 0,
    }  # fmt: skip
    figures = ship(NAME, model, asked.out, summary=_SUMMARY, judge=judge, training=told)
    print(", ".join(f"{name} {value:.4f}" for name, value in figures.items()))
    if figures["miou"] < _FLOOR:
        raise SystemExit(f"the mean IoU is below {_FLOOR}; train longer.")


if __name__ == "__main__":
    main()
