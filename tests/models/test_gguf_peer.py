"""GGUF import against llama.cpp: the same tokens and the same predictions from one file."""

from __future__ import annotations

import contextlib
import gc

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lissome.core.errors import AssetError
from lissome.cost.llama_cpp import alone
from lissome.data.assets import fetch
from lissome.models.gguf import convert
from lissome.testing.toys import DECODERS
from tests.models.gguf_toys import bytes_tokenizer, pieces_tokenizer, write_gguf

pytestmark = pytest.mark.peer
llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

TEXTS = [
    "",
    " ",
    "Hello world",
    "  leading and trailing  ",
    "a\n\nb\n\n\nc\t\tx\r\n\r\n x",
    "def f(x):\n    return x + 1  # ok\n",
    "Ünïcödé ñ 中文字符 日本語テスト 한국어 😀👩‍👩‍👧 \u200b",
    "العربية עברית हिन्दी ไทย e\u0301 é mixed\u00a0nbsp\u2003em",
    "12345 3.14 1,000,000 I'm we'll they'VE don't",
    "<|im_start|>user\nHi<|im_end|>\n<h1>T</h1>\n<table><bos>",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" + " " * 70 + "\n" * 40,
    "\x00\x01 https://x.y/z?q=1&b=%20 \ufffd",
]
PROMPT = (
    "The Second World War began in 1939 when Germany invaded Poland. In the following years, most of Europe was drawn "
    "into the conflict, and when it ended in 1945 large parts of the continent lay in ruins. The capital of France"
)


@pytest.fixture
def llama():
    """Open files with llama.cpp, and close them before the test ends."""
    with contextlib.ExitStack() as stack:

        def open_file(path, context=512):
            options = {"n_ctx": context, "n_threads": 1, "logits_all": True, "swa_full": True, "verbose": False}
            return stack.enter_context(contextlib.closing(llama_cpp.Llama(model_path=str(path), **options)))

        yield open_file
    gc.collect()


@torch.no_grad()
def both(peer, folder, ids):
    """Log-probabilities (tokens, vocabulary) of llama.cpp and of the converted folder."""
    alone(lambda: peer.eval(ids))
    theirs = torch.tensor(np.array(peer.scores[: len(ids)]))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return theirs.double().log_softmax(-1), model(torch.tensor([ids])).logits[0].double().log_softmax(-1)


def divergence(theirs, ours):
    return (theirs.exp() * (theirs - ours)).sum(-1).mean().item()


@pytest.mark.parametrize("family", DECODERS)
def test_toys_predict_the_same(family, llama, tmp_path, monkeypatch):
    """In float32 all that differs is llama.cpp's 16-bit cache."""
    monkeypatch.setenv("LISSOME_CACHE", str(tmp_path / "cache"))
    pieces = family in ("gemma2", "gemma3", "phi3")  # as the real ones have
    write_gguf(tmp_path / "toy.gguf", family, tokenizer=pieces_tokenizer if pieces else bytes_tokenizer)
    theirs, ours = both(llama(tmp_path / "toy.gguf", 64), convert(tmp_path / "toy.gguf"), list(range(3, 43)))
    assert divergence(theirs, ours) < 1e-5
    assert torch.allclose(theirs, ours, atol=0.02)


@pytest.mark.parametrize("tokenizer", [bytes_tokenizer, pieces_tokenizer])
def test_toy_tokenizers_are_equal(tokenizer, llama, tmp_path, monkeypatch):
    monkeypatch.setenv("LISSOME_CACHE", str(tmp_path / "cache"))
    write_gguf(tmp_path / "toy.gguf", tokenizer=tokenizer)
    peer, ours = llama(tmp_path / "toy.gguf", 64), AutoTokenizer.from_pretrained(convert(tmp_path / "toy.gguf"))
    for text in [*TEXTS, "the athe aaaa aaaaa<think>", "a  b   c"]:
        assert ours(text)["input_ids"] == peer.tokenize(text.encode(), add_bos=True, special=True), text


@pytest.mark.slow
@pytest.mark.parametrize(("asset", "bos"), [("smollm2-135m", False), ("gemma-3-270m", True)])
def test_real_models_agree(asset, bos, llama):
    try:
        path = fetch(asset)
    except AssetError as error:
        pytest.skip(str(error))
    folder, peer = convert(path), llama(path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        assert ids == peer.tokenize(text.encode(), add_bos=True, special=True), text
        assert (ids[:1] == [tokenizer.bos_token_id]) == bos or text.startswith(tokenizer.bos_token)
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
    theirs, ours = both(peer, folder, tokenizer(PROMPT)["input_ids"])
    # llama.cpp rounds activations to 8 bits when weights are quantised; in float32 the two differ by 1e-6
    assert divergence(theirs, ours) < 0.02
    assert (theirs.argmax(-1) == ours.argmax(-1)).double().mean() > 0.9


@pytest.mark.slow
def test_real_chat_template_works():
    try:
        folder = convert(fetch("smollm2-135m"))
    except AssetError as error:
        pytest.skip(str(error))
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert tokenizer.decode(answer, skip_special_tokens=True) == "The capital of France is Paris."
    assert answer[-1] == model.generation_config.eos_token_id
