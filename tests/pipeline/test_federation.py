"""From a recipe to an artifact: reading, planning, running in this process, continuing, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from lissome.cli.main import main
from lissome.core.errors import BudgetUnmetError, ConfigError, LissomeError, OrderError, UnknownNameError
from lissome.core.manifest import read_manifest
from lissome.engine.federate.bound import Bound
from lissome.engine.federate.codec import Codec
from lissome.engine.federate.secure.program import SecureProgram
from lissome.engine.objective import FASTER
from lissome.models.labels import head_parameters, labels_of
from lissome.models.load import load_model
from lissome.pipeline.federating import federate, plan_federation
from lissome.pipeline.federation import DeviceConfig, FederationJob, FederationRecipe
from lissome.pipeline.outcome import CLASSIFIER
from lissome.testing.tokenizers import TOY_VOCABULARY, toy_tokenizer
from lissome.testing.toys import toy_model
from tests.cli.test_commands import documented
from tests.pipeline.federated import RECIPE, WORDS, make_place

pytest.importorskip("flwr_datasets", reason="needs flwr-datasets: pip install 'lissome[federate]'")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return make_place(tmp_path)


def test_a_recipe_round_trips(place: Path) -> None:
    recipe = FederationRecipe.read(place / "recipe.toml")
    assert FederationRecipe.from_toml(recipe.to_toml()) == recipe
    assert recipe.model == str(place / "model"), "beside the recipe"
    assert recipe.devices[1] == DeviceConfig(name="phone", budget="block_params<=50%")
    assert recipe.step.config.lr == 0.01


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        (RECIPE.replace("seed", "sede"), ConfigError, "did you mean 'seed'"),
        (RECIPE.replace('method = "fedavg"', 'method = "fedavgg"'), UnknownNameError, "did you mean 'fedavg'"),
        (RECIPE.partition("[[step]]")[0] + '[[step]]\nmethod = "multipruner"', OrderError, "across clients"),
        (RECIPE.replace("seed = 3", "seed = -1"), ConfigError, "whole number from 0"),
        (RECIPE.replace("rounds = 2", "rounds = 0"), ConfigError, "at least 1"),
        (RECIPE.replace("epochs", "epoch"), ConfigError, "did you mean 'epochs'"),
        (RECIPE + "[[step]]\nmethod = 'fedavg'", ConfigError, r"one \[\[step\]\]"),
        (RECIPE.replace('model = "model"', ""), ConfigError, "model ="),
        (RECIPE.replace("lr = 0.01", 'up = "delta+int3"'), ConfigError, "int3"),
        (RECIPE.replace("lr = 0.01", 'down = "delta"'), ConfigError, "down"),
        (RECIPE.replace("lr = 0.01", "lr = inf"), ConfigError, "'lr' must be finite"),
        (RECIPE.replace("[partition]", "partition = 3\n[x]"), ConfigError, "."),
    ],
)  # fmt: skip
def test_recipes_that_are_refused(text: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        FederationRecipe.from_toml(text)


@pytest.mark.long
def test_the_plan_is_what_happens(place: Path) -> None:
    plan = plan_federation(place / "recipe.toml")
    kinds = {one.name: one.kind for one in plan.clients}
    assert sorted(kinds.values()) == ["laptop", "laptop", "phone", "phone"]
    whole = next(one for one in plan.clients if one.kind == "laptop")
    small = next(one for one in plan.clients if one.kind == "phone")
    assert small.figures["block_params"] <= 0.5 * whole.figures["block_params"]
    assert small.subnet
    assert not whole.subnet
    assert small.down < whole.down
    assert small.memory < whole.memory
    report = federate(place / "recipe.toml", out=place / "out")
    lines = [line.split(",") for line in (place / "out" / "ledger.csv").read_text().splitlines()[1:]]
    first = [line for line in lines if line[0] == "1" and line[2] == "train"]
    assert sum(int(line[4]) for line in first) == plan.payload, "payload to the byte"
    assert sum(int(line[5]) for line in first) == pytest.approx(plan.message, rel=0.01)
    assert json.loads(json.dumps(plan.to_json()))["payload"] == plan.payload
    assert len(report.subnets) == 2
    assert set(report.subnets.values()) == {4}, "two of four clients in two rounds"


@pytest.mark.long
def test_the_result_is_an_artifact_that_learned_something(place: Path) -> None:
    report = federate(place / "recipe.toml", out=place / "out")
    assert report.rounds[-1]["metrics"]["server/accuracy"] > report.rounds[0]["metrics"]["server/accuracy"] + 0.15
    manifest = read_manifest(place / "out")
    assert manifest.tags == ("dense", "federated")
    assert manifest.lineage[0].method == "fedavg"
    assert manifest.lineage[0].details["rounds"] == 2
    for name in ("ledger.csv", "audit.jsonl", "partition.json", "recipe.toml"):
        assert (place / "out" / name).exists(), name
    assert not (place / "out" / "task.safetensors").exists(), "the head is the model's own"
    model = load_model(place / "out")
    assert labels_of(model) == tuple(sorted(WORDS))
    job = FederationJob(FederationRecipe.read(place / "recipe.toml"))
    lesson = job.silos.server(model)
    count, score = lesson.score(lesson.around(model).eval())
    assert count == 24
    assert score["accuracy"] == pytest.approx(report.rounds[-1]["metrics"]["server/accuracy"])
    again = federate(place / "recipe.toml", out=place / "out")
    assert again.to_json() == report.to_json()
    (place / "recipe.toml").write_text(RECIPE.replace("seed = 3", "seed = 4"))
    with pytest.raises(ConfigError, match="another job"):
        federate(place / "recipe.toml", out=place / "out")


@pytest.mark.parametrize(("change", "faster"), [("", True), ('optimizer = "sgd"', False), ('trains = "head"', False)])
def test_a_new_head_learns_faster_than_what_lies_below_it(place: Path, change: str, faster: bool) -> None:
    one_step = RECIPE.replace("clients = 4", "clients = 1").replace("rounds = 2", "rounds = 1")
    (place / "recipe.toml").write_text(one_step.replace("lr = 0.01", f"lr = 1e-3\nsteps = 1\n{change}"))
    before = FederationJob(FederationRecipe.read(place / "recipe.toml")).model
    federate(place / "recipe.toml", out=place / "out")
    after = dict(load_model(place / "out").module.named_parameters())
    head = {id(value) for value in head_parameters(before)}
    far: dict[bool, float] = {True: 0.0, False: 0.0}
    for name, value in before.module.named_parameters():
        far[id(value) in head] = max(far[id(value) in head], float((after[name] - value).detach().abs().max()) / 1e-3)
    assert far[True] == pytest.approx(FASTER, rel=1e-2) if faster else 0 < far[True] < 1.01
    if not faster:
        return
    assert far[False] == pytest.approx(1.0, rel=1e-2)
    recipe = replace(FederationRecipe.read(place / "recipe.toml"), model=str(place / "out"))
    assert not FederationJob(recipe).new_head, "it was trained before"


@pytest.mark.long
def test_any_size_is_cut_from_what_was_trained_for_all(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "recipe.toml").write_text(RECIPE.replace('"fedavg"', '"raffm"'))
    federate(place / "recipe.toml", out=place / "out")
    command = ["extract", str(place / "out"), "--out", str(place / "small"), "--json", "--budget"]
    assert main([*command, "block_params<=50%"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert set(answer) == documented("extract")
    small, whole = load_model(place / "small"), load_model(place / "out")
    sizes = [
        sum(value.numel() for block in one.anatomy.blocks for value in one.module.get_submodule(block).parameters())
        for one in (small, whole)
    ]
    assert sizes[0] == answer["figures"]["block_params"]
    assert 0.3 < sizes[0] / sizes[1] <= 0.5
    assert labels_of(small) == labels_of(whole)
    manifest = read_manifest(place / "small")
    assert manifest.tags == ("dense", "federated", "pruned")
    assert manifest.subnet
    for budget, code in (("block_params<=1%", 3), ("latency<=50%", 2)):
        assert main([*command[:3], str(place / "other"), "--budget", budget]) == code
        assert "reachable is" in (line := capsys.readouterr().err) or "not counted" in line
    assert main(["extract", str(place / "small"), "--out", str(place / "other"), "--budget", "params<=50%"]) == 2
    assert "not trained for many sizes" in capsys.readouterr().err


@pytest.mark.long
@pytest.mark.parametrize("arm", ["centralised", "local", "zero-shot"])
def test_arms_that_a_federation_is_compared_with(arm: str, place: Path) -> None:
    (place / "recipe.toml").write_text(RECIPE.replace("seed = 3", f'seed = 3\narm = "{arm}"'))
    report = federate(place / "recipe.toml", out=place / "out")
    last = report.rounds[-1]
    assert all(0 <= one["accuracy"] <= 1 for one in last["scores"].values())
    moved = last["metrics"]["server/loss"] != report.rounds[0]["metrics"]["server/loss"]
    if arm == "centralised":
        assert set(last["scores"]) == {"all"}
        assert moved
        assert last["metrics"]["server/accuracy"] > report.rounds[0]["metrics"]["server/accuracy"] + 0.15
    else:
        assert len(last["scores"]) == 4
        assert not moved, "nobody sends the server anything to learn from"
    if arm == "local":
        assert report.bytes["payload_up"] == report.bytes["payload_down"] == 0
        first = report.rounds[1]["metrics"]["evaluate/loss"]
        assert last["metrics"]["evaluate/loss"] < first, "clients go on from what they kept"
    text = RECIPE.replace("seed = 3", 'seed = 3\narm = "alone"')
    with pytest.raises(ConfigError, match="centralised"):
        FederationRecipe.from_toml(text)


def arm_of(name: str, settings: str, place: Path) -> FederationRecipe:
    """Recipe of clients that are alone, each with the whole model."""
    text = RECIPE.replace("seed = 3", 'seed = 3\narm = "local"').replace('budget = "block_params<=50%"', "")
    return FederationRecipe.from_toml(text.replace('method = "fedavg"', f'method = "{name}"\n{settings}'), place)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("fedavg", ""), ("fedavg", 'secure = true\nmerge = "mean"'), ("ffm", 'lora = "stack"'),
        ("fedavg", "noise = 1.0\nbound = 1.0\nnoise_clients = 2"), ("raffm", 'window = "rolling"'), ("rafl", ""),
    ],
)  # fmt: skip
def test_alone_nothing_travels(method: str, settings: str, place: Path) -> None:
    """Whatever a method exchanges otherwise, such as the knowledge network of RaFL."""
    recipe = arm_of(method, settings, place)
    alone, together = (FederationJob(one).server(place) for one in (recipe, replace(recipe, arm="federated")))
    assert together.tensors
    assert not alone.tensors
    assert not isinstance(alone, SecureProgram)


@pytest.mark.parametrize("recipe", ["prompt-search", "retrieve"])
def test_who_only_answers_the_server_does_nothing_alone(recipe: str, place: Path) -> None:
    with pytest.raises(ConfigError, match=f"recipe={recipe} learn nothing by themselves; leave arm=local out"):
        FederationJob(arm_of("ffm", f'recipe = "{recipe}"', place))


@pytest.mark.parametrize(
    "settings", ['secure = true\nmerge = "mean"', "bound = 0.1\nnoise = 1.0\nnoise_clients = 4", "bound = 0.1"]
)
def test_one_client_with_all_data_is_guarded_from_nobody(settings: str, place: Path) -> None:
    """It would be hidden in no sum, move by noise that is meant for many, and wait for others that are not there."""
    recipe = arm_of("fedavg", settings, place)
    waiting = replace(recipe.rounds, clients=4, least=3)
    job = FederationJob(replace(recipe, rounds=waiting, arm="centralised"))
    assert (job.rounds.clients, job.rounds.least) == (1, 1)
    config: Any = job.recipe.step.config
    assert not isinstance(job.server(place), SecureProgram)
    assert (config.bound, config.private_updates) == (None, False)
    assert FederationRecipe.from_toml(job.recipe.to_toml()).acted() == job.recipe, "as `membership` reads it"


@pytest.mark.parametrize(
    ("method", "settings"),
    [("fedavg", 'secure = true\nmerge = "mean"'), ("ffm", 'lora = "product"\nup = "delta+int8"')],
)
def test_late_answers_have_no_place_among_masks_or_new_factors(method: str, settings: str) -> None:
    text = RECIPE.replace("[federation]", '[federation]\nlate = "use"').replace('"fedavg"', f'"{method}"')
    with pytest.raises(ConfigError, match="late=drop"):
        FederationRecipe.from_toml(f"{text}{settings}\n")
    FederationRecipe.from_toml(text)


def test_a_norm_that_lets_nothing_through_is_refused() -> None:
    with pytest.raises(ConfigError, match="bound"):
        FederationRecipe.from_toml(f"{RECIPE}bound = 0\n")


@pytest.mark.long
def test_architectures_per_budget_and_what_clients_keep(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = sorted(word for group in WORDS.values() for word in group)
    public = [{"text": f"{one} and {other}"} for one in words for other in words]
    (place / "public.jsonl").write_text("\n".join(map(json.dumps, public)))
    more = f'public = "{place / "public.jsonl"}"\nfuse = "distil"\ndistil_steps = 5\ntrials = 8\n'
    (place / "recipe.toml").write_text(RECIPE.replace('"fedavg"', '"rafl"') + more)
    report = federate(place / "recipe.toml", out=place / "out")
    first, last = report.rounds[0]["metrics"], report.rounds[-1]["metrics"]
    assert last["server/accuracy"] > first["server/accuracy"]
    assert last["evaluate/accuracy"] > last["evaluate/knowledge/accuracy"] - 0.2
    small = load_model(place / "out")
    assert labels_of(small) == tuple(sorted(WORDS))
    command = ["federate", "export", str(place / "out"), "--client"]
    assert main([*command, "client-0", "--out", str(place / "own"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"path": str(place / "own")}
    own = load_model(place / "own")
    job = FederationJob(FederationRecipe.read(place / "recipe.toml"))
    lesson = job.silos.client("client-0", own)
    score = lesson.score(lesson.around(own).eval())[1]
    assert score["accuracy"] == pytest.approx(report.rounds[-1]["scores"]["client-0"]["accuracy"])
    for words_, line in ((["nobody", "--out", str(place / "x")], "client-0"), (["client-0"], "--out DIR")):
        assert main([*command, *words_]) == 2
        assert line in capsys.readouterr().err


@pytest.mark.long
def test_adapters_under_secure_aggregation(place: Path) -> None:
    pytest.importorskip("cryptography", reason="needs cryptography: pip install 'lissome[federate]'")
    step = RECIPE.partition("[[device]]")[0].replace("rounds = 2", "rounds = 1")
    # One plain step on all examples: what is drawn by the order's number does not matter then.
    step += '[[step]]\nmethod = "ffm"\nmerge = "mean"\nlr = 0.5\nrank = 4\noptimizer = "sgd"\nbatch = 500\n'
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "num_hidden_layers": 2}
    replace(toy_model("bert", vocab_size=TOY_VOCABULARY, **quiet), tokenizer=toy_tokenizer()).save(place / "model")
    found = {}
    for name, more in (("plain", ""), ("secure", "secure = true\n")):
        (place / "recipe.toml").write_text(step + more)
        plan = plan_federation(place / "recipe.toml")
        report = federate(place / "recipe.toml", out=place / name)
        lines = (place / name / "ledger.csv").read_text().splitlines()
        assert sum(int(line.split(",")[4]) for line in lines if ",train," in line) == plan.payload
        assert not report.audit
        found[name] = load_model(place / name)
    other = dict(found["secure"].module.named_parameters())
    plain = found["plain"].module.named_parameters()
    apart = [float((value - other[name]).detach().abs().max()) for name, value in plain]
    assert 0 < max(apart) <= 4 * 2**-20, "within a step for each client"
    start = dict(FederationJob(FederationRecipe.read(place / "recipe.toml")).model.module.named_parameters())
    moved = [float((value - other[name]).detach().abs().max()) for name, value in start.items()]
    assert max(moved) > 1000 * 2**-20
    job = FederationJob(FederationRecipe.from_toml(step.replace('"mean"', '"trimmed"') + "secure = true", place))
    with pytest.raises(ConfigError, match="each client's answer"):
        job.server(place)
    (place / "recipe.toml").write_text(RECIPE + 'merge = "mean"\nsecure = true')
    with pytest.raises(ConfigError, match="sub-network"):
        plan_federation(place / "recipe.toml")


@pytest.mark.long
def test_next_tokens_with_adapters_and_owners(place: Path) -> None:
    model = replace(toy_model("llama", vocab_size=TOY_VOCABULARY, num_hidden_layers=2), tokenizer=toy_tokenizer())
    model.save(place / "model")
    lines = [
        {"text": f"the {animal} of {owner} runs. " * 12, "client": owner}
        for owner in ("ann", "bob", "cy")
        for animal in ("fox", "dog", "hen", "cow")
    ]
    (place / "text.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (place / "text.toml").write_text(
        'model = "model"\n[data]\nsource = "text.jsonl"\nlearn = "tokens"\nlength = 24\n'
        '[partition]\nscheme = "natural"\n'
        '[federation]\nrounds = 2\n[[device]]\nbudget = "uplink<=60%"\n'
        '[[step]]\nmethod = "fedavg"\ntrains = "adapters"\nlr = 0.02\nup = "delta+int8"\nouter = "momentum"\n'
    )
    job = FederationJob(FederationRecipe.read(place / "text.toml"))
    assert job.silos.names == ("ann", "bob", "cy")
    plan = plan_federation(place / "text.toml")
    assert all(".adapter." in name for name in job.server(place).tensors)
    whole = Codec.parse("int8").payload(job.server(place).tensors)
    assert all(one.figures["uplink"] <= 0.6 * whole for one in plan.clients)
    assert all(one.subnet for one in plan.clients), "fewer channels, heads or ranks"
    report = federate(place / "text.toml", out=place / "out")
    assert report.rounds[-1]["metrics"]["server/loss"] < report.rounds[0]["metrics"]["server/loss"]
    assert (place / "out" / "adapter").is_dir()


@pytest.mark.parametrize(
    ("one", "other", "error", "words"),
    [
        ("block_params<=50%", "block_params<=1%", BudgetUnmetError, "reachable is block_params"),
        ("rounds = 2", "rounds = 2\nleast = 5", ConfigError, "5 clients are waited for .* to 4"),
    ],
)
def test_what_nobody_meets(one: str, other: str, error: type[Exception], words: str, place: Path) -> None:
    (place / "recipe.toml").write_text(RECIPE.replace(one, other))
    with pytest.raises(error, match=words):
        plan_federation(place / "recipe.toml")


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ('method = "fedavg"\nmerge = "mean"', "would send slices, but merge=mean"),
        ('method = "fedavg"\nprivate = ["clasifier.*"]', r"did you mean 'classifier\.\*'"),
        ('method = "fedavg"\nfreeze = ["*"]', "would train nothing"),
        ('method = "ffm"\nrecipe = "prompt"\ntokens = 125', "128 positions, too few for .* 125 virtual ones"),
    ],
)
def test_what_cannot_work_is_refused_before_the_first_round(step: str, words: str, place: Path) -> None:
    (place / "recipe.toml").write_text(RECIPE.partition("[[step]]")[0] + "[[step]]\n" + step)
    with pytest.raises(LissomeError, match=words):
        plan_federation(place / "recipe.toml")


@pytest.mark.parametrize("change", [("clients = 4", "clients = 2"), ("rounds = 2", "rounds = 2\nsample = 0.5")])
def test_a_sum_of_two_hides_nobody(change: tuple[str, str], place: Path) -> None:
    recipe = RECIPE.partition("[[device]]")[0].replace(*change)
    (place / "recipe.toml").write_text(recipe + '[[step]]\nmethod = "fedavg"\nmerge = "mean"\nsecure = true\n')
    with pytest.raises(ConfigError, match="at least 3 clients in a round, 2 would"):
        plan_federation(place / "recipe.toml")


def test_the_head_of_a_knowledge_network_is_in_the_artifact(place: Path) -> None:
    whole = toy_model("llama", vocab_size=TOY_VOCABULARY, num_hidden_layers=2)
    replace(whole, tokenizer=toy_tokenizer()).save(place / "model")
    recipe = RECIPE.replace('"fedavg"', '"rafl"').replace("rounds = 2", "rounds = 1\nevaluate_every = 0")
    (place / "recipe.toml").write_text(recipe + 'allocate = "largest"\nknowledge = "block_params<=60%"\n')
    last = federate(place / "recipe.toml", out=place / "out").rounds[-1]["metrics"]
    small = load_model(place / "out")
    lesson = FederationJob(FederationRecipe.read(place / "out" / "recipe.toml")).silos.server(small)
    bound = Bound.of(small, small, lesson.around(small).eval(), None)
    bound.load(load_file(place / "out" / CLASSIFIER))
    assert lesson.score(bound.module)[1]["loss"] == pytest.approx(last["server/loss"], rel=1e-4)


@pytest.mark.long
def test_the_command(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["federate", str(place / "recipe.toml"), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "phone" in shown
    assert "the whole model" in shown
    assert main(["federate", str(place / "recipe.toml")]) == 2
    assert "--out DIR" in capsys.readouterr().err
    assert main(["federate", str(place / "recipe.toml"), "--out", "x", "--backend", "rai"]) == 2
    assert "did you mean 'ray'" in capsys.readouterr().err
    assert main(["federate", str(place / "recipe.toml"), "--out", str(place / "out"), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found["bytes"]["message_up"] > 0
    assert set(found) == documented("federate")
    assert set(found["rounds"][0]) == documented("federate", "key of a round")
    assert main(["federate", str(place / "recipe.toml"), "--dry-run", "--json"]) == 0
    plan: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert set(plan) == documented("federate", "key of a plan")
    assert set(plan["clients"][0]) == documented("federate", "key of a client")
    assert main(["federate", str(place / "recipe.toml"), "--out", str(place / "out")]) == 0
    assert "worst decile" in capsys.readouterr().out
    assert main(["fit", "zoo-none", "--method", "fedavg"]) == 2
