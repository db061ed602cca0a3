"""The demo models: their shapes, and how each is trained."""

from dataclasses import dataclass

from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from demo.tokenizer import CONTEXT


@dataclass(frozen=True)
class Recipe:
    """Shape and schedule of one model, and the difficulties it aims at.

    Widths are multiples of 64, the group size of 4-bit quantization. With a teacher, one of the
    demo models, the model is distilled from it.
    """

    hidden: int
    intermediate: int
    layers: int
    heads: int
    steps: int
    batch: int
    learning_rate: float
    aim: tuple[str, ...]
    teacher: str | None = None


RECIPES = {
    "large": Recipe(
        hidden=256,
        intermediate=704,
        layers=6,
        heads=4,
        steps=2800,
        batch=128,
        learning_rate=3e-3,
        aim=("easy", "hard"),
    ),
    "small": Recipe(
        hidden=128,
        intermediate=512,
        layers=4,
        heads=4,
        steps=800,
        batch=128,
        learning_rate=3e-3,
        aim=("easy",),
    ),
    "draft": Recipe(
        hidden=128,
        intermediate=320,
        layers=2,
        heads=4,
        steps=3000,
        batch=128,
        learning_rate=3e-3,
        aim=("easy", "hard"),
        teacher="large",
    ),
}


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A freshly initialised Llama with tied embeddings.

    Plain attention trains a quarter faster here than the fused kernel: sequences are short.
    """
    tokens = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    tokens["pad_token_id"] = tokenizer.pad_token_id
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        intermediate_size=recipe.intermediate,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        head_dim=recipe.hidden // recipe.heads,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        **tokens,
    )
    model = LlamaForCausalLM(config)
    model.set_attn_implementation("eager")
    model.generation_config = GenerationConfig(do_sample=False, **tokens)
    return model
