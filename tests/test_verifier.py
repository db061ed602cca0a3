from pathlib import Path

import pytest

pytest.importorskip("sentence_transformers")

from actors.verifier import Verifier

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "is", "it", "safe", "not", "?"]
PAIRS = [("is it safe?", "is it safe ?"), ("is it safe?", "is it not safe?")]


def build(folder: Path, labels: int = 1) -> str:
    """A real cross-encoder of two layers with random weights."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    torch.manual_seed(0)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=64, num_labels=labels,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("labels", [1, 2])
def test_a_pair_agrees_from_the_threshold_on(tmp_path: Path, labels: int) -> None:
    model, warnings = build(tmp_path, labels), []
    assert Verifier(model, warnings.append, threshold=0.0).agree(PAIRS) == [True, True]
    assert Verifier(model, warnings.append, threshold=1.0).agree(PAIRS) == [False, False]
    assert warnings == []


def test_the_order_of_a_pair_plays_no_part(tmp_path: Path) -> None:
    verifier = Verifier(build(tmp_path), print)
    there, back = verifier._scores([PAIRS[1], PAIRS[1][::-1]])
    assert there != back
    between = Verifier(str(tmp_path), print, threshold=(there + back) / 2)
    assert between.agree([PAIRS[1], PAIRS[1][::-1]]) == [False, False]


def test_a_model_that_fails_confirms_nothing_and_warns_once(tmp_path: Path) -> None:
    warnings: list[str] = []
    verifier = Verifier(build(tmp_path), warnings.append, threshold=0.0)
    # Weights that are gone: the model's own forward pass fails.
    verifier._encoder[0].model = None
    assert verifier.agree(PAIRS) == [False, False]
    assert verifier.agree(PAIRS[:1]) == [False]
    assert len(warnings) == 1
    assert "confirms none" in warnings[0]


def test_scores_that_are_no_numbers_confirm_nothing(tmp_path: Path) -> None:
    import torch

    verifier = Verifier(build(tmp_path), print, threshold=0.0)
    with torch.no_grad():
        for weights in verifier._encoder.parameters():
            weights.fill_(float("nan"))
    assert verifier.agree(PAIRS) == [False, False]


def test_no_pairs_are_no_work(tmp_path: Path) -> None:
    assert Verifier(build(tmp_path), print).agree([]) == []
