"""From one data set to what each client of a federation learns, and what the server is judged by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any, Literal

from lissome.core.config import MethodConfig, option
from lissome.core.errors import ConfigError, DataError
from lissome.core.seeds import derive
from lissome.data.images import Images, read_images
from lissome.data.labelled import Labelled, read_labelled
from lissome.data.labelled import dealt as dealt_by_class
from lissome.data.partition import Partition, PartitionConfig, partition
from lissome.data.parts import Rows, check_part, is_part, read_part
from lissome.data.sources import Corpus, read_corpus
from lissome.data.text import Encoder, all_windows
from lissome.engine.classify import Encoded, encode
from lissome.engine.federate.hidden import Hidden, HiddenTokens
from lissome.engine.federate.lessons import Classes, Pictures, Tokens
from lissome.engine.federate.training import Lesson
from lissome.engine.images import examples
from lissome.models.adapters.prompts import prompt_of
from lissome.models.model import Model
from lissome.models.positions import most_positions


@dataclass(frozen=True, kw_only=True)
class DataConfig(MethodConfig):
    """What is learned from, and what is held out."""

    source: str = option(
        "", "JSON lines with text and label, or text; a folder or .npz of images; what `data` of the recipe says"
    )
    learn: Literal["classes", "tokens"] = option(
        "classes", "the class of each text or image, or tokens: the next one of a text, of an encoder hidden ones"
    )
    most: int = option(0, "examples to draw from all that there are; 0: all", low=0)
    test: float = option(0.2, "share that the server keeps, for judging the global model", low=0.01, high=0.9)
    held_out: float = option(0.2, "share of each client's examples that it is judged by", low=0.0, high=0.9)
    length: int = option(64, "most tokens of an example", low=2)


@dataclass(frozen=True, eq=False)
class Silos:
    """The data of a federation.

    Attributes:
        config: What is learned, and what is held out.
        partition: Which client has which examples of the part that is dealt out.
        classes: Names of the classes; empty for text.
        pool: What is dealt out, and what the server keeps: labelled texts, images or documents.
        seed: Of all that was drawn.
    """

    config: DataConfig
    partition: Partition
    classes: tuple[str, ...]
    pool: tuple[Rows, Rows]
    seed: int

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the clients."""
        return tuple(sorted(self.partition.parts))

    def together(self) -> Silos:
        """Return the same data with one client, ``all``, that has everything that was dealt out."""
        places = tuple(sorted(place for part in self.partition.parts.values() for place in part))
        return replace(self, partition=replace(self.partition, parts={"all": places}))

    def server(self, model: Model) -> Lesson:
        """What the server is judged by; it has nothing to learn from."""
        return lesson(self.pool[1], model, self.config, self.classes, train=False, seed=self.seed)

    def client(self, name: str, model: Model) -> Lesson:
        """What one client learns from and is judged by."""
        places, dealt = self.partition.parts[name], self.pool[0]
        return lesson(dealt.some(places), model, self.config, self.classes, seed=derive(self.seed, "held out", name))


def read_silos(config: DataConfig, dealing: PartitionConfig, *, seed: int) -> Silos:
    """Read a data set and deal it out.

    Raises:
        ConfigError: When none is named.
        DataError: When it cannot be read, or is too small.
        MissingExtraError: When flwr-datasets is not installed.
    """
    own = dealing.scheme == "own"
    if config.learn == "classes":
        if not config.source:
            raise ConfigError('classes are learned from data; write data = "FILE", or source = "FILE" in [data].')
        data = read_classes(config.source)
        if config.most and config.most < len(data):
            why = f"most = {config.most} draws none of them; set most = {len(data.classes)} or more in [data]"
            data = _parts(data, {"drawn": config.most / len(data)}, {"drawn": why}, derive(seed, "drawn"))["drawn"]
        if own:
            dealt = partition([], [], dealing, data=data.sha256, seed=seed)
            return Silos(config, dealt, data.classes, (data.some([]), data), seed)
        shares = {"clients": 1 - config.test, "server": config.test}
        parts = _parts(data, shares, _nothing_left(data, config.test), derive(seed, "test"))
        rows = parts["clients"]
        dealt = partition(rows.labels, rows.owners, dealing, data=rows.sha256, seed=derive(seed, "deal") % 2**32)
        return Silos(config, dealt, data.classes, (parts["clients"], parts["server"]), seed)
    corpus = read_corpus(config.source or None)
    if own:
        empty = Corpus(corpus.name, ())
        return Silos(config, partition([], [], dealing, data=corpus.sha256, seed=seed), (), (empty, corpus), seed)
    documents = list(corpus.documents)
    Random(derive(seed, "test")).shuffle(documents)
    documents = documents[: config.most or None]
    kept = max(1, round(config.test * len(documents)))
    if kept == len(documents):
        most = f", of which most = {config.most} draws {kept}" if kept < len(corpus.documents) else ""
        raise DataError(
            f"{corpus.name} has {len(corpus.documents)} documents{most}: test = {config.test:g} keeps all for the "
            "server, and leaves none for the clients; give more, or set a smaller test in [data]."
        )
    rest = Corpus(corpus.name, tuple(documents[kept:]))
    owners = [document.owner for document in rest.documents]
    dealt = partition(
        [], owners if any(owners) else [""] * len(owners), dealing, data=rest.sha256, seed=derive(seed, "deal") % 2**32
    )
    return Silos(config, dealt, (), (rest, Corpus(corpus.name, tuple(documents[:kept]))), seed)


def _parts(
    data: Labelled | Images, shares: Mapping[str, float], why: Mapping[str, str], seed: int
) -> Mapping[str, Labelled | Images]:
    """Deal rows into parts, each class by itself; where one gets none, say why: it is a setting that makes it so."""
    for part, places in dealt_by_class(data.labels, shares, seed=seed).items():
        if not places:
            raise DataError(f"of the {len(data)} rows of {data.name}, each class dealt out by itself, {why[part]}.")
    return data.parts(shares, seed=seed)


def _nothing_left(data: Labelled | Images, test: float) -> dict[str, str]:
    """Why the server, or the clients, would get no row, and what to do about it."""
    most = max(Counter(data.labels).values())
    shares = {"server": 1 / most, "clients": 1 - 1 / most}
    return {
        who: f"test = {test:g} leaves none for the {who}; give more rows"
        + (f", or set test = {share:.2g} in [data]" if most > 1 else "")
        for who, share in shares.items()
    }


def read_classes(source: str, classes: tuple[str, ...] = ()) -> Labelled | Images:
    """Read labelled images where a folder or an archive of them is named, else labelled texts; of known classes."""
    path = Path(source)
    return read_images(path, classes=classes) if _holds_images(path) else read_labelled(path, classes=classes)


def _holds_images(path: Path) -> bool:
    return path.is_dir() or path.suffix == ".npz"


def check_rows(place: Path, name: str = "") -> None:
    """Refuse what cannot be a client's rows before a server hears of it; what is to be learned is not known yet.

    Args:
        place: A folder that was dealt out, or a file or folder of the client's own.
        name: What the client calls itself; a folder that was dealt out says it.

    Raises:
        ConfigError: When such a folder is another's.
        DataError: When the rows are not those that were dealt out, or cannot be read.
    """
    if is_part(place):
        _owner(place, read_part(place)[1], name)
    elif _holds_images(place):
        read_images(place, least=1)
    else:
        read_corpus(place)


def _owner(place: Path, facts: Mapping[str, Any], name: str) -> str:
    """Return whose the rows of a folder are that was dealt out; they are nobody else's."""
    owner = str(facts["client"])
    if name and name != owner:
        raise ConfigError(
            f"{place} holds what was dealt out to {owner}, not to {name}; leave name out, or give its part."
        )
    return owner


def own_lesson(
    place: Path, name: str, model: Model, config: DataConfig, *, classes: tuple[str, ...], seed: int, dealt: str = ""
) -> tuple[str, Lesson, str]:
    """Read a client's own data: its name, what it learns, and the fingerprint of its rows.

    Args:
        place: A folder that was dealt out, which says whose it is, or rows of the client's own: a file, or a folder or
            archive of images.
        name: Of the client; needed for rows of its own.
        model: Its tokenizer reads the texts.
        config: What is learned, and what is held out.
        classes: Names of all classes; none for text.
        seed: Of the federation.
        dealt: Fingerprint of the partition that the federation dealt out; empty: clients bring what they have.

    Raises:
        DataError: When the rows are not those that were dealt out, or cannot be read.
        ConfigError: When rows of the client's own are given without a name, or dealt ones with that of another.
    """
    if is_part(place):
        own, facts = read_part(place)
        check_part(place, facts, classes=classes, partition=dealt)
        name, digest = _owner(place, facts, name), str(facts["sha256"])
    elif not name:
        raise ConfigError(f"{place} does not say whose data it holds; give the client a name.")
    else:
        own = read_classes(str(place), classes) if config.learn == "classes" else read_corpus(place)
        digest = own.sha256
    return name, lesson(own, model, config, classes, seed=derive(seed, "held out", name)), digest


def lesson(
    rows: Rows,
    model: Model,
    config: DataConfig,
    classes: tuple[str, ...],
    *,
    seed: int,
    train: bool = True,
) -> Lesson:
    """Make a lesson of rows.

    Args:
        rows: Labelled texts or images, or documents.
        model: Its tokenizer reads texts; its configuration says what images it reads.
        config: What is learned, and what is held out.
        classes: Names of all classes.
        seed: Of the choice of what is held out.
        train: Whether there is something to learn from; otherwise all of it is held out.

    Raises:
        DataError: When there are too few rows, they are longer than what the model has positions for, or an encoder
            that is to guess tokens has no mask token.
    """
    share = config.held_out if train else 1.0
    if isinstance(rows, Labelled | Images):
        held, learned = split(len(rows), share, seed) if train else (list(range(len(rows))), [])
        if isinstance(rows, Images):
            model.anatomy.require("image", "learning the classes of images")
            pictures = examples(model, rows)
            return Pictures(pictures.some(learned), pictures.some(held), len(classes))
        parts = [
            encode(model, rows.some(places), length=config.length) if places else _nothing()
            for places in (learned, held)
        ]
        _require_positions(model, max(part.ids.shape[1] for part in parts))
        return Classes(parts[0], parts[1], len(classes))
    windows = all_windows(rows, Encoder(model.tokenizer, model.anatomy.vocabulary), length=config.length)
    _require_positions(model, windows.shape[1])
    count = min(len(windows) - 1, round(share * len(windows))) if train else len(windows)
    if model.anatomy.task == "encoder":
        hidden = HiddenTokens.of(windows, model)
        return Hidden(hidden.some(range(count, len(windows))), hidden.some(range(count)), hidden.vocabulary)
    return Tokens(windows[count:], windows[:count])


def split(count: int, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Return the positions of the examples that a client is judged by, and of those that it learns from, ascending.

    Args:
        count: Examples of the client.
        share: Of them, to judge it by; at least one is left to learn from.
        seed: Of the choice.
    """
    order = list(range(count))
    Random(seed).shuffle(order)
    held = min(count - 1, round(share * count))
    return sorted(order[:held]), sorted(order[held:])


def _require_positions(model: Model, tokens: int) -> None:
    """Refuse examples of more tokens than the model has positions for, its virtual ones among them."""
    most, prompt = most_positions(model), prompt_of(model)
    virtual = len(prompt) if prompt is not None else 0
    if most is not None and tokens + virtual > most:
        beside = f" beside {virtual} virtual ones" if virtual else ""
        step = f"set length = {most - virtual} in [data]" if virtual < most - 1 else "have fewer virtual ones"
        raise DataError(f"{model.name} has {most} positions, too few for {tokens} tokens{beside}; {step}.")


def _nothing() -> Encoded:
    import torch

    return Encoded(*(torch.zeros(0, 1, dtype=torch.long),) * 2, torch.zeros(0, dtype=torch.long))
