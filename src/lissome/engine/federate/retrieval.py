"""Search over texts or images that stay with their clients: a query's embedding goes out, scores and places come back.

Every client ranks its own documents by cosine; the server merges the lists. All embed with the same model, so scores
are of one scale, and the merged list is the one of a central index when all answer. Texts and images never move.
"""

# Q queries, K results of each, N documents, H residual width

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from lissome.core.errors import ConfigError, FederationError
from lissome.engine.classify import Encoded
from lissome.engine.federate.client import Answer, Work
from lissome.engine.federate.layout import Layout
from lissome.engine.federate.lessons import Classes, Pictures
from lissome.engine.federate.merge import Piece, Tensors
from lissome.engine.federate.orders import OrderHead
from lissome.engine.federate.profile import Profile
from lissome.engine.federate.program import EVALUATE, Phase, Program, Report
from lissome.engine.federate.training import Lesson
from lissome.engine.images import ImageExamples, features
from lissome.models.model import Model
from lissome.models.space import Subnet

SEARCH = "search"
QUERIES, SCORES, PLACES, CLASSES, OWNERS = "queries", "scores", "places", "classes", "owners"
ANSWER = (SCORES, PLACES, CLASSES)
"""What a client answers: cosines float32[Q, K], places in its own documents and their classes int64[Q, K]."""

_HIGHEST = 1.001  # of cosines, rounding included
_NONE = -2.0  # a cosine that nothing has: fills the list of a client with fewer than K documents


@torch.no_grad()
def embed(model: Model, given: Encoded | ImageExamples) -> Tensor:
    """Return the mean hidden state of texts, or the features of images, of length 1, float32[N, H]."""
    if isinstance(given, ImageExamples):
        return normalize(features(model, given), dim=-1)
    base: Any = model.module.base_model
    found = [torch.zeros(0, model.anatomy.hidden)]
    for batch in given.batches():
        states, weights = base(**batch).last_hidden_state.float(), batch["attention_mask"].unsqueeze(-1).float()
        found.append(normalize((states * weights).sum(1) / weights.sum(1), dim=-1))
    return torch.cat(found)


def ranked(queries: Tensor, index: Tensor, labels: Tensor, count: int) -> dict[str, Tensor]:
    """Return the best documents for queries, those that stand first among equals.

    Args:
        queries: float32[Q, H], of length 1.
        index: Documents, float32[N, H], of length 1.
        labels: Classes of the documents, int64[N].
        count: K.
    """
    cosines = queries @ index.T
    order = cosines.argsort(dim=1, descending=True, stable=True)[:, :count]
    lacking = count - order.shape[1]
    found = {SCORES: cosines.gather(1, order), PLACES: order, CLASSES: labels[order]}
    return {
        name: torch.nn.functional.pad(value, (0, lacking), value=_NONE if name == SCORES else -1)
        for name, value in found.items()
    }


class Best:
    """Merges clients' lists into the best K of all.

    Args:
        base: Old values; `SCORES` says Q and K.
        names: Filled with the names of the clients; `OWNERS` are positions in it.
    """

    keeps: bool = False
    limits: bool = True  # a list is no update, and a score is a cosine

    def __init__(self, base: Tensors, names: list[str]) -> None:
        self._names = names
        names.clear()
        rows, self._count = base[SCORES].shape
        empty = torch.zeros(rows, 0)
        self._best = {SCORES: empty, **{name: empty.long() for name in (PLACES, CLASSES, OWNERS)}}

    def add(self, piece: Piece) -> None:
        """Take a list in.

        Raises:
            FederationError: When a score is no cosine: it would be above all others; or when the client gave a list
                already: its documents would stand there twice.
        """
        if piece.client in self._names:
            raise FederationError("its documents are in the lists already")
        if bool((piece.tensors[SCORES] > _HIGHEST).any()):
            raise FederationError("a score of the list is no cosine")
        owner = torch.full_like(piece.tensors[PLACES], len(self._names))
        self._names.append(piece.client)
        came = {**{name: piece.tensors[name] for name in ANSWER}, OWNERS: owner}
        both = {name: torch.cat([value, came[name]], 1) for name, value in self._best.items()}
        order = both[SCORES].argsort(dim=1, descending=True, stable=True)[:, : self._count]
        self._best = {name: value.gather(1, order) for name, value in both.items()}

    def result(self) -> dict[str, Tensor]:
        """Return the merged lists; empty when nobody answered."""
        return dict(self._best) if self._names else {}


class Retrieval(Program):
    """The server's side: its own texts are the queries.

    Args:
        model: Embeds them.
        lesson: What is held out there is asked.
        count: K.

    Raises:
        ConfigError: When the data have no classes to judge by.
        UnsupportedModelError: When a network of images has no features.
    """

    def __init__(self, model: Model, lesson: Lesson, count: int) -> None:
        asked = _labelled(lesson).held_out
        self._labels, self.owners, self._came = labels_in(asked), list[str](), list[str]()
        shape = (len(asked), count)
        tensors = {QUERIES: embed(model, asked), SCORES: torch.full(shape, _NONE)}
        tensors |= {name: torch.full(shape, -1) for name in (PLACES, CLASSES, OWNERS)}
        found = Phase(action=SEARCH, kind="query", merger=lambda base: Best(base, self._came))
        super().__init__(tensors, phases=(found,))

    def evaluation(self) -> Phase:
        """Clients say how well their own documents alone answer their own held-out texts."""
        return Phase(action=EVALUATE.action, kind=EVALUATE.kind, merger=None, sends=False)

    def settings(self, phase: Phase, round: int, client: Profile) -> dict[str, Any]:
        """Say how many queries come."""
        return {"queries": len(self._labels)}

    def layout(self, phase: Phase, round: int, client: Profile, subnet: Subnet | None) -> Layout:
        """The queries."""
        return Layout.whole([QUERIES])

    def returns(self, phase: Phase, round: int, client: Profile, subnet: Subnet | None) -> Layout:
        """The lists."""
        return Layout.whole(ANSWER)

    def conclude(
        self, phase: Phase, round: int, merged: Mapping[str, Tensor], reports: Sequence[Report]
    ) -> dict[str, float]:
        """Take the merged lists, whole, in place of those of the round before."""
        self.tensors |= merged
        self.owners[:] = self._came
        return {}

    def evaluate(self, round: int) -> dict[str, float]:
        """Return how many queries have a document of their class in their list, and how many documents have it.

        Before anybody has searched there is nothing to say.
        """
        return judged(self.tensors[CLASSES], self._labels) if bool((self.tensors[PLACES] >= 0).any()) else {}

    def state(self) -> tuple[dict[str, Tensor], Any]:
        """Whose documents are in the lists."""
        return {}, list(self.owners)

    def restore(self, tensors: Mapping[str, Tensor], value: Any) -> None:
        """Take them back."""
        self.owners[:] = value


@dataclass(kw_only=True, eq=False)
class Librarian:
    """A client that searches its own documents.

    Attributes:
        facts: Who it is.
        base: Embeds.
        lesson: What it learns from are its documents.
        count: K.
    """

    facts: Profile
    base: Model
    lesson: Lesson
    count: int

    def __post_init__(self) -> None:
        self._own = _labelled(self.lesson)
        self._index: Tensor | None = None

    @property
    def index(self) -> Tensor:
        """Embeddings of its documents, made when they are first asked for."""
        if self._index is None:
            self._index = embed(self.base, self._own.data)
        return self._index

    def profile(self) -> Profile:
        """Say who this client is."""
        return replace(self.facts, examples=len(self.lesson))

    def templates(self, head: OrderHead) -> dict[str, Tensor]:
        """Queries, as many as come."""
        return {QUERIES: torch.empty(int(head.settings["queries"]), self.index.shape[1], device="meta")}

    def act(self, work: Work) -> Answer:
        """Search, or say how well its own documents answer what it holds out."""
        if work.head.action == SEARCH:
            found = ranked(work.tensors[QUERIES], self.index, labels_in(self._own.data), self.count)
            return Answer(weight=len(self.lesson), tensors=found)
        asked = self._own.held_out
        if not len(asked):
            return Answer(weight=0)
        found = ranked(embed(self.base, asked), self.index, labels_in(self._own.data), self.count)
        return Answer(weight=len(asked), metrics=judged(found[CLASSES], labels_in(asked)))


def judged(classes: Tensor, labels: Tensor) -> dict[str, float]:
    """Judge lists: ``recall``, share of queries with one of their class; ``precision``, of documents that have it."""
    right = classes == labels[:, None]
    return {"recall": float(right.any(1).float().mean()), "precision": float(right.float().mean())}


def labels_in(given: Encoded | ImageExamples) -> Tensor:
    """Return the classes of texts or images, int64[N]."""
    return torch.tensor(given.images.labels) if isinstance(given, ImageExamples) else given.labels


def _labelled(lesson: Lesson) -> Classes | Pictures:
    if not isinstance(lesson, Classes | Pictures):
        raise ConfigError("a search is judged by classes; give labelled texts or images, or learn = classes.")
    return lesson
