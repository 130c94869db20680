"""The server's loop: rounds of phases over a link, with quorum, deadline, over-sampling, and a checkpoint after each.

Everything drawn follows from (seed, round) alone, and answers are merged in the order of the clients' names, so that a
server that is killed and continued gives the same tensors as one that never was, when all clients take part. A round
whose result cannot be used is void: what the last checkpoint holds is taken back, and the loop goes on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Literal

from lissome.core.config import MethodConfig, option
from lissome.core.errors import FederationError, NumericsError
from lissome.core.events import EventStream
from lissome.core.files import write_text
from lissome.core.seeds import derive
from lissome.core.typed import as_json, from_json
from lissome.engine.checkpoint import Checkpoint, Saved
from lissome.engine.federate.audit import Audit
from lissome.engine.federate.exchange import Exchange
from lissome.engine.federate.ledger import Bytes, Ledger
from lissome.engine.federate.link import Link
from lissome.engine.federate.members import Members, sampled
from lissome.engine.federate.metrics import mean_metrics, named_metrics
from lissome.engine.federate.profile import Profile
from lissome.engine.federate.program import Phase, Program
from lissome.models.space import Subnet

_TOLD = frozenset({"refused", "rejected", "failed", "banned", "reverted"})  # what must be known at once


@dataclass(frozen=True, kw_only=True)
class RoundsConfig(MethodConfig):
    """Settings of the loop."""

    rounds: int = option(10, "rounds", low=1)
    clients: int | None = option(
        None, "clients to wait for before the first round; none: all that the data are dealt out to, else one", low=1
    )
    join: float = option(
        300.0, "seconds to wait for them, for one whose order was lost, and in a round for the fewest", low=0.0
    )
    sample: float = option(1.0, "share of the clients that takes part in a round", low=0.0, high=1.0)
    least: int = option(1, "fewest clients of a round; with fewer there, it changes nothing", low=1)
    oversample: float = option(
        1.0, "how many are asked for each that is wanted; 1.3 makes up for one in four", low=1.0, high=100.0
    )
    quorum: float = option(0.5, "share of the wanted answers without which a round changes nothing", low=0.0, high=1.0)
    deadline: float | None = option(None, "seconds after which a phase ends; none: when all have answered", low=0.0)
    resend: float | None = option(
        None, "seconds after which an unanswered order is sent again; a repeated one gives the same answer", low=0.0
    )
    late: Literal["drop", "use"] = option(
        "drop", "use: an answer after its phase joins the next one of that action, weighted by 1/√(1 + rounds late)"
    )
    strikes: int = option(3, "rejected answers after which a client is asked no more", low=1)
    failures: int = option(3, "rounds in a row without a quorum after which the federation ends", low=1)
    train: bool = option(True, "no: nothing is trained, clients evaluate what there is at the start")
    evaluate_every: int = option(
        1, "rounds between evaluations at the clients; the last one always is; 0: never", low=0
    )
    judge_every: int = option(1, "rounds between evaluations by the server's own data; the last one always is", low=1)


@dataclass(frozen=True, kw_only=True)
class Round:
    """What happened in one round.

    Attributes:
        number: From 1; 0 is the start.
        clients: Names of those that took part.
        answered: How many of them were merged, in the last phase that merges tensors, or numbers alone.
        ok: Whether every phase had its quorum, and the result can be used.
        seconds: On the clock of the link.
        metrics: Numbers by name: of each phase ``action/name``, of the server ``server/name``.
        subnets: What each worked on, for those that do not work on the whole model.
        scores: What each client found when it evaluated.
    """

    number: int
    clients: tuple[str, ...] = ()
    answered: int = 0
    ok: bool = True
    seconds: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)
    subnets: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the round as JSON-able fields."""
        fields: dict[str, Any] = as_json(self)
        return fields


class Federation:
    """One federation, from its first round or the last checkpoint to the end.

    Args:
        program: The server's side of a method; its tensors change in place.
        link: How clients are reached.
        config: Settings of the loop.
        folder: For checkpoints, the audit log and what waits to be merged; of this federation alone.
        identity: What makes the federation itself: a checkpoint of another one is refused. Its ``federation`` is the
            name that clients are told, its ``base`` the fingerprint of the model that they must start from.
        seed: Of all that is drawn.
        events: Where progress is reported.
    """

    def __init__(
        self,
        program: Program,
        link: Link,
        config: RoundsConfig,
        *,
        folder: Path,
        identity: Mapping[str, Any],
        seed: int = 0,
        events: EventStream | None = None,
    ) -> None:
        self.program, self.config, self.seed = program, config, seed
        self.ledger, self.audit = Ledger(), Audit(folder / "audit.jsonl", most=config.strikes)
        self.members = Members(self.audit, config.strikes, str(identity.get("base", "")), program.check)
        self.rounds: list[Round] = []
        self._link, self._folder, self._events = link, folder, events or EventStream()
        self._checkpoint = Checkpoint(folder / "checkpoint", {**identity, "seed": seed, "loop": config.to_mapping()})
        self._failures, self._told = 0, set[tuple[str, ...]]()
        self._void, self._blamed = "", False  # of the last round: why it cannot be used, whether somebody was found
        self.audit.heard = self._say_what_went_wrong
        self._exchange = Exchange(
            program, link, self.members, self.ledger, self.audit, folder=folder / "waiting", seed=seed, config=config,
            name=str(identity.get("federation", "")),
        )  # fmt: skip

    def run(self) -> list[Round]:
        """Run all rounds that are left.

        Raises:
            FederationError: When too few clients join, or several rounds in a row change nothing.
            NumericsError: When the model cannot be judged as it was given.
            ArtifactError: When a checkpoint belongs to another federation, or cannot be written.
        """
        if not self.continued():
            self._record(Round(number=0, metrics=named_metrics("server", self.program.evaluate(0))))
        done = self.rounds[-1].number
        if done:
            self._events.message(f"continues after round {done} of {self.config.rounds}")
        if done < self.config.rounds:
            if math.isfinite(self._link.patience):  # clients of this process are there already
                who = f"{self._wanted} client{'s' if self._wanted > 1 else ''}"
                self._events.message(f"waiting for {who}, {self.config.join:g} s at most")
            self._exchange.roll_call(done, wait=self.config.join, wanted=self._wanted)
            self._require_members()
        with self._events.stage("federate", self.config.rounds, done=done) as stage:
            for number in range(done + 1, self.config.rounds + 1):
                record = self._round(number)
                self._record(record)
                stage.advance(message=self._line(record), **dict[str, Any](record.metrics))
                self._give_up_when_hopeless()
        return self.rounds

    def continued(self) -> bool:
        """Take up the last checkpoint; whether there was one.

        Raises:
            ArtifactError: When it belongs to another federation.
        """
        saved = self._checkpoint.load(self._events)
        if saved is not None:
            self._restore(saved)
        return saved is not None

    @property
    def done(self) -> bool:
        """Whether all rounds are behind it."""
        return bool(self.rounds) and self.rounds[-1].number >= self.config.rounds

    def bytes(self, **equal: Any) -> Bytes:
        """Sum of what was sent; see `Ledger.total`."""
        return self.ledger.total(**equal)

    def _round(self, number: int) -> Round:
        cast, start = self._cast(number), self._link.now()
        metrics, scores = dict[str, float](), dict[str, Mapping[str, float]]()
        self._void, self._blamed = "", False
        try:
            answered, ok = self._phases(cast, metrics)
            seconds = self._link.now() - start
            asks = ok and self.config.evaluate_every and self._due(number, self.config.evaluate_every)
            judges = self._due(number, self.config.judge_every)
            rng = Random(derive(self.seed, "assign", number, "evaluate"))
            held = self.program.judged(number, cast.present, cast.subnets, rng) if asks or judges else {}
            if ok and self.config.train and (asks or judges):
                self._measure(cast, held)
            # The server judges first: clients are not asked to judge what cannot be used; to measure it fails at them.
            if judges:
                metrics |= named_metrics("server", self.program.evaluate(number))
            if asks:
                scores = self._evaluate(cast, held, metrics)
        except NumericsError as error:
            answered, ok, seconds, scores = 0, False, self._link.now() - start, {}
            metrics = self._taken_back(number, error)
        return Round(
            number=number, clients=tuple(one.name for one in cast.chosen), answered=answered, ok=ok, seconds=seconds,
            metrics=metrics, scores=scores,
            subnets={name: subnet.to_json() for name, subnet in cast.subnets.items() if subnet is not None},
        )  # fmt: skip

    def _cast(self, number: int) -> _Cast:
        """Draw who takes part in a round, and what each works on."""
        present, rng = self._present(number), Random(derive(self.seed, "sample", number))
        wanted = min(len(present), max(self.config.least, round(self.config.sample * len(present))))
        asked = min(len(present), math.ceil(wanted * self.config.oversample))
        chosen = sampled(present, asked, rng)
        subnets = dict(self.program.assign(number, chosen, Random(derive(self.seed, "assign", number))))
        phases = tuple(self.program.phases(number)) if self.config.train else ()
        return _Cast(number, present, wanted, chosen, subnets, phases)

    def _phases(self, cast: _Cast, metrics: dict[str, float]) -> tuple[int, bool]:
        """Run the phases of a round; return how many answers were merged, and whether every phase had its quorum."""
        answered, ok = 0, bool(cast.chosen)
        numbers = all(phase.merger is None for phase in cast.phases)  # are all that the method merges
        for index, phase in enumerate(cast.phases):
            asked_for = cast.chosen if phase.who == "sampled" else cast.present
            clients = [one for one in asked_for if self.program.takes_part(phase, one)]
            if not clients and asked_for:
                answered = 0 if phase.merger is not None or numbers else answered
                continue  # nobody has a reason to take part, which is no failure
            enough = min(len(clients), cast.wanted if phase.who == "sampled" else len(cast.present))
            merged, reports = self._exchange.phase(phase, cast.number, index, clients, cast.subnets, enough=enough)
            ok = bool(reports) and len(reports) >= math.ceil(self.config.quorum * enough)
            answered = len(reports) if phase.merger is not None or numbers else answered
            if not ok:
                break
            metrics |= named_metrics(phase.action, mean_metrics(reports))
            metrics |= named_metrics(phase.action, self.program.conclude(phase, cast.number, merged, reports))
            for about, line in self.program.remarks(phase, reports).items():
                self._say_once(("remark", about), line)
        return answered, ok

    def _taken_back(self, number: int, error: NumericsError) -> dict[str, float]:
        """Undo a round, write down who took part, and return what the server finds about the tensors before it.

        Raises:
            NumericsError: When what was before cannot be judged either, or the checkpoint of it is damaged.
        """
        saved = self._checkpoint.load()
        if saved is None or saved.step != number - 1:
            raise error
        self._take(saved)
        self._void = str(error)
        self._events.message(f"round {number} is void, nothing of it is kept: {error}")
        self._blamed = self._exchange.blame(number, self._void)
        return (
            named_metrics("server", self.program.evaluate(number)) if self._due(number, self.config.judge_every) else {}
        )

    def _due(self, number: int, every: int) -> bool:
        return number % every == 0 or number == self.config.rounds

    def _present(self, number: int) -> list[Profile]:
        """Return who is there for a round; with too few, others are waited for, and without them nobody takes part."""
        self._exchange.roll_call(number)
        if len(self.members.present()) < self.config.least:
            self._exchange.roll_call(number, wait=self.config.join, wanted=self.config.least)
        present = self.members.present()
        return present if len(present) >= self.config.least else []

    def _measure(self, cast: _Cast, held: Mapping[str, Subnet | None]) -> None:
        """Let all clients that have examples measure what the merged tensors give, where the program wants it."""
        phase, clients = self.program.measurement(), [one for one in cast.present if one.examples > 0]
        if phase is not None:
            index = len(cast.phases) + 1
            merged, reports = self._exchange.phase(phase, cast.number, index, clients, held, enough=len(clients))
            self.program.conclude(phase, cast.number, merged, reports)

    def _evaluate(
        self, cast: _Cast, held: Mapping[str, Subnet | None], metrics: dict[str, float]
    ) -> dict[str, Mapping[str, float]]:
        """Let all clients evaluate what the program says."""
        number, present, phase = cast.number, cast.present, self.program.evaluation()
        _, reports = self._exchange.phase(phase, number, len(cast.phases), present, held, enough=len(present))
        metrics |= named_metrics(phase.action, mean_metrics(reports))
        return {one.client: one.metrics for one in reports}

    @property
    def _wanted(self) -> int:
        """Clients without which there is no first round."""
        return max(self.config.clients or 1, self.config.least)

    def _require_members(self) -> None:
        there = len(self.members.present())
        if there < self._wanted:
            refused = self.audit.count("refused")
            step = (
                f"mend why others were refused (see {self._folder / 'audit.jsonl'})" if refused else "start the others"
            )
            raise FederationError(
                f"{there} of {self._wanted} clients joined within {self.config.join:g} s; {step}, or lower `clients` "
                "and `least`."
            )

    def _give_up_when_hopeless(self) -> None:
        """End what goes on failing; a round whose spoilers were found and struck is no failure, they are soon gone."""
        self._failures = 0 if self.rounds[-1].ok else self._failures + (not self._blamed)
        if self._failures >= self.config.failures:
            raise FederationError(f"{self._failures} rounds in a row {self._what_failed()}")

    def require_a_change(self) -> None:
        """Refuse to take the model of a federation of which nothing can be used: it is the given one.

        Raises:
            FederationError: When it should train, and every round changed nothing.
        """
        tried = self.rounds[1:]
        if self.config.train and not any(one.ok for one in tried):
            which = "the only round" if len(tried) == 1 else f"all {len(tried)} rounds"
            raise FederationError(f"{which} {self._what_failed()} Then name another --out.")

    def _what_failed(self) -> str:
        """Say what rounds lacked that changed nothing, where more about it stands, and what to do."""
        what = f"had no quorum ({self.config.quorum:.0%} of the answers wanted)"
        step = "lower the quorum, lengthen the deadline, or mend the clients."
        if self._void:
            what = f"gave nothing that can be used (the last one: {self._void})"
            step = "lower the learning rate, set bound, or leave out who took part."
        return f"{what}; see {self._folder / 'audit.jsonl'}, then {step}"

    def _line(self, record: Round) -> str:
        sent = self.bytes(round=record.number).message
        return f"{record.answered} of {len(record.clients)} clients, {sent / 1e6:.2f} MB{'' if record.ok else ', void'}"

    def _say_what_went_wrong(self, line: Mapping[str, object]) -> None:
        """Say at once what is written down of a client, each thing once; who was late or silent is in the log alone."""
        fact = (str(line["event"]), str(line["client"]), str(line["reason"]))
        if fact[0] in _TOLD:
            who = f"node {fact[1]}" if fact[1].isdigit() else fact[1]  # who has not said a name is known by a number
            self._say_once(fact, f"{who} {fact[0]} in round {line['round']}: {fact[2]}")

    def _say_once(self, fact: tuple[str, ...], line: str) -> None:
        if fact not in self._told:
            self._told.add(fact)
            self._events.message(line)

    def _record(self, record: Round) -> None:
        """Make a round durable: all that the next one starts from."""
        self.rounds.append(record)
        rows, names = self.ledger.state()
        extra, value = self.program.state()
        tensors = {f"ledger/{name}": tensor for name, tensor in rows.items()}
        tensors |= {f"global/{name}": tensor for name, tensor in self.program.tensors.items()}
        tensors |= {f"outer/{name}": tensor for name, tensor in self.program.outer.state().items()}
        tensors |= {f"program/{name}": tensor for name, tensor in extra.items()}
        state = {
            "rounds": [one.to_json() for one in self.rounds], "ledger": names, "program": value,
            "strikes": dict(self.audit.strikes), "failures": self._failures, "lengths": self._exchange.lengths.state(),
        }  # fmt: skip
        self._checkpoint.save(record.number, tensors, state)
        write_text(self._folder / "ledger.csv", self.ledger.csv())

    def _restore(self, saved: Saved) -> None:
        rows = self._take(saved)
        self.ledger.restore(rows, saved.state["ledger"])
        self.audit.strikes.update(saved.state["strikes"])
        self.rounds = [from_json(Round, one, "round") for one in saved.state["rounds"]]
        self._failures = saved.state["failures"]
        self._exchange.lengths.restore(saved.state.get("lengths", {}))

    def _take(self, saved: Saved) -> dict[str, Any]:
        """Give the program back what a checkpoint holds of it; return the rows of the ledger."""
        parts: dict[str, dict[str, Any]] = {"ledger": {}, "global": {}, "outer": {}, "program": {}}
        for name, tensor in saved.tensors.items():
            kind, _, rest = name.partition("/")
            parts[kind][rest] = tensor
        self.program.tensors.update(parts["global"])
        self.program.outer.restore(parts["outer"])
        self.program.restore(parts["program"], saved.state["program"])
        return parts["ledger"]


@dataclass(frozen=True, eq=False)
class _Cast:
    """A round before it begins: who is there, how many are wanted, who is asked, on what they work, and the phases."""

    number: int
    present: Sequence[Profile]
    wanted: int
    chosen: Sequence[Profile]
    subnets: Mapping[str, Subnet | None]
    phases: Sequence[Phase]
