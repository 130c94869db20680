"""Small data that can be learnt in seconds: striped images, texts whose class is a word, text that repeats itself."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import numpy as np

CLASSES = ("fox", "dog", "cat")


def striped_images(path: Path, *, count: int = 240, size: int = 16, classes: int = 4, colour: bool = True) -> Path:
    """Write an archive of noisy images with one bright stripe, whose place is the class.

    Args:
        path: The ``.npz`` file.
        count: Number of images.
        size: Their height and width.
        classes: Number of classes.
        colour: Three channels instead of one.
    """
    rng = np.random.default_rng(0)
    labels = np.arange(count) % classes
    shape = (count, size, size, 3) if colour else (count, size, size)
    images = (rng.random(shape) * 80).astype(np.uint8)
    width = size // classes
    for image, label in zip(images, labels, strict=True):
        image[label * width : (label + 1) * width] += 120
    np.savez(path, image=images, label=labels)
    return path


def worded_texts(path: Path, *, count: int = 120) -> Path:
    """Write JSON lines of texts of a toy tokenizer's words, each with one of `CLASSES`, its label."""
    words, rng = ["the", "quick", "brown", "jumps", "over", "lazy", "five", "wizards", "box"], Random(0)
    lines = []
    for index in range(count):
        label = CLASSES[index % len(CLASSES)]
        text = [*rng.choices(words, k=6), label, str(index)]
        rng.shuffle(text)
        lines.append(json.dumps({"text": " ".join(text), "label": label}))
    path.write_text("\n".join(lines) + "\n")
    return path


def repeated_text(path: Path) -> Path:
    """Write enough text for every split of a toy job: documents that repeat a few words in orders of their own."""
    words = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while", "wizards", "box", "quietly"]
    documents = (" ".join(words[(i * k) % len(words)] for k in range(1, 80)) for i in range(1, 120))
    path.write_text("\n\n".join(documents))
    return path


def asked_texts(path: Path, *, articles: int = 4, paragraphs: int = 15) -> Path:
    """Write questions as SQuAD writes them: the answer is the one of `CLASSES` that stands in a text of toy words."""
    words, rng, made = ["the", "quick", "brown", "jumps", "over", "lazy", "five", "wizards", "box"], Random(0), []
    for article in range(articles):
        rows = []
        for index in range(paragraphs):
            answer = CLASSES[index % len(CLASSES)]
            text = [*rng.choices(words, k=8), answer]
            rng.shuffle(text)
            context = f"{article * paragraphs + index} {' '.join(text)}"
            start = context.index(answer)
            asked = {"question": "the quick", "id": context, "answers": [{"text": answer, "answer_start": start}]}
            rows.append({"context": context, "qas": [asked]})
        made.append({"title": f"article {article}", "paragraphs": rows})
    path.write_text(json.dumps({"version": "1.1", "data": made}))
    return path
