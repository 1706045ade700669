"""The shipped base model: it belongs to the corpus that stands here, and other libraries read the same model."""

import copy
import json

import pytest
import torch

from posttrain.assets.world import corpus
from posttrain.chat.templates import POSTTRAIN
from posttrain.evals.base_card import validation_loss
from posttrain.models.load import load, resolve


@pytest.fixture(scope="module")
def base():
    return load("base")


def test_the_corpus_has_not_changed_since_the_base_was_trained(base):
    """Learning rates, figures and the base itself hang on the corpus: a change of it makes a new base, `base-2`."""
    facts = json.loads((resolve("base") / "training.json").read_text())
    assert corpus.digest() == facts["corpus"]


def test_the_validation_loss_is_the_recorded_one(base):
    facts = json.loads((resolve("base") / "training.json").read_text())
    assert validation_loss(base.model, base.tokenizer) == pytest.approx(facts["validation_loss"], abs=2e-4)


def test_its_template_is_the_house_template(base):
    assert base.template == POSTTRAIN
    assert base.stop_ids == (base.tokenizer.token_id("<|end|>"),)


def test_reserved_tokens_stand_at_the_mean_of_the_others(base):
    """Tokens that never occurred are neutral, so that fine-tuning gives them a meaning quickly."""
    w = base.model.embed_tokens.weight
    assert torch.allclose(w[1:14], w[14:].mean(0).expand(13, -1), atol=2e-3)  # stored in 16 bit


def test_transformers_reads_the_same_model(base):
    transformers = pytest.importorskip("transformers", reason="the transformers package is not installed")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(str(base.folder), dtype=torch.float64).eval()
    same = copy.deepcopy(base.model).double().round_as_transformers()  # in float32 libraries of products differ by 1e-5
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(base.folder))
    for i in range(4):
        text = corpus.validation(i)
        ids = base.tokenizer.encode(text)
        assert tokenizer.encode(text, add_special_tokens=False) == ids
        tokens = torch.tensor([ids])
        with torch.no_grad():
            assert torch.allclose(theirs(tokens).logits, same.logits(same(tokens)), atol=1e-9, rtol=1e-9)
    chat = [{"role": "user", "content": "Who is Mira?"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == "<|user|>Who is Mira?<|end|><|assistant|>"
