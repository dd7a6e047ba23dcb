"""Tiny randomly initialised models of several families, as ordinary Hugging Face folders."""

import copy
import functools
import hashlib
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from fedit_app.models.editable import EditableModel

DEMO = Path(__file__).parents[1] / "fedit_app" / "facts" / "demo"
_CORPUS = Path(__file__).parent / "data" / "tokenizer_corpus.txt"
VOCABULARY = 600
LAYERS = 5
D_MODEL = 16
D_FF = 32  # Bloom's is always 4 D_MODEL
WINDOW = 6
RUN_CONFIG = {
    "layers": "1-2",
    "contexts": 1,
    "value-steps": 5,
    "covariance-tokens": 400,
    "covariance-weight": 1.0,
    "upkeep": False,  # there is always something that a random model does not say
}
"""Run-config values with which a run with such a model takes a few seconds."""

LIMITS = """
[limits]
model-of-run = true
least-covariance-weight = 1.0
least-covariance-tokens = 400
most-clamp = 20.0
"""
"""What a real node has to allow for such a run, in its node.toml."""

_HEADS = {"hidden_size": D_MODEL, "num_hidden_layers": LAYERS, "num_attention_heads": 2}
_LLAMA = _HEADS | {"intermediate_size": D_FF, "num_key_value_heads": 1, "head_dim": 8}
_GPT = {"n_embd": D_MODEL, "n_inner": D_FF, "n_layer": LAYERS, "n_head": 2, "rotary_dim": 4}
_GEMMA = _LLAMA | {
    "layer_types": ["sliding_attention", "full_attention"] * 2 + ["sliding_attention"],
    "sliding_window": 128,
}
FAMILIES = {
    "llama": _LLAMA | {"tie_word_embeddings": True},
    "qwen2": _LLAMA | {"tie_word_embeddings": False},
    "qwen3": _LLAMA,
    "mistral": _LLAMA,
    "smollm3": _LLAMA,
    "stablelm": _LLAMA,
    "starcoder2": _LLAMA,
    "olmo": _LLAMA,
    "olmo2": _LLAMA,
    "gemma": _LLAMA,
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "gpt2": _GPT,
    "gpt_bigcode": _GPT,
    "gpt_neo": {
        "hidden_size": D_MODEL,
        "intermediate_size": D_FF,
        "num_layers": LAYERS,
        "attention_types": [[["global", "local"], 2], [["global"], 1]],
        "num_heads": 2,
    },
    "gptj": _GPT,
    "gpt_neox": _LLAMA | {"use_parallel_residual": True},
    "phi": _LLAMA,
    "phi3": _LLAMA,
    # OPT's own ReLU leaves units that never fire, so that a covariance cannot be inverted.
    "opt": _HEADS
    | {"ffn_dim": D_FF, "word_embed_proj_dim": D_MODEL, "activation_function": "gelu"},
    "falcon": _HEADS | {"ffn_hidden_size": D_FF},
    "bloom": _HEADS,
}
# Other configurations of a family that run other code: FAMILY-VARIANT.
VARIANTS = {
    "falcon-alibi": FAMILIES["falcon"]
    | {"alibi": True, "parallel_attn": False, "multi_query": False, "bias": True},
    "falcon-grouped": FAMILIES["falcon"] | {"new_decoder_architecture": True, "num_kv_heads": 1},
    "gpt_neox-sequential": FAMILIES["gpt_neox"] | {"use_parallel_residual": False},
    "stablelm-parallel": FAMILIES["stablelm"] | {"use_parallel_residual": True},
    # Windows shorter than texts.
    "mistral-window": FAMILIES["mistral"] | {"sliding_window": WINDOW},
    "qwen2-window": FAMILIES["qwen2"]
    | {"sliding_window": WINDOW, "use_sliding_window": True, "max_window_layers": 2},
    "gemma2-window": FAMILIES["gemma2"] | {"sliding_window": WINDOW},
    "gpt_neo-window": FAMILIES["gpt_neo"] | {"window_size": WINDOW},
}
# Not in FedEdit's table, each for another reason.
UNKNOWN = {
    "granite": _LLAMA,
    "granite-residual": _LLAMA | {"residual_multiplier": 0.22},
    "granite-logits": _LLAMA | {"logits_scaling": 4.0},
    "hyperclovax": _LLAMA | {"use_post_norm": True},
    "lfm2": _LLAMA
    | {
        "layer_types": ["conv", "full_attention", "conv", "full_attention", "conv"],
        "block_auto_adjust_ff_dim": False,
    },
    "mpt": {"d_model": D_MODEL, "n_layers": LAYERS, "n_heads": 2, "expansion_ratio": 2},
}
# bitsandbytes quantises blocks of 64 numbers.
_WIDE = {
    "llama-wide": FAMILIES["llama"] | {"hidden_size": 64, "intermediate_size": 128, "head_dim": 32},
    "gpt2-wide": FAMILIES["gpt2"] | {"n_embd": 64, "n_inner": 128},
}
_CONFIGS = FAMILIES | VARIANTS | UNKNOWN | _WIDE
BITS = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "fp4": {
        **{"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
        # Scales that are quantised themselves, and bytes that lie in numbers of another type.
        **{"bnb_4bit_use_double_quant": True, "bnb_4bit_quant_storage": "bfloat16"},
    },
    "int8": {"load_in_8bit": True},
}
"""Ways in which bitsandbytes quantises, as transformers names them."""
# One family of each kind: gated, transposed weights, attention beside the MLP, norms behind both.
_ONE_OF_EACH_KIND = ("llama", "gpt2", "gptj", "gemma2")


def every(*families: str) -> list:
    """Parameters of a test: one family of each kind in every tier, the others with `slow`."""
    quick = [family for family in families if family in _ONE_OF_EACH_KIND]
    return [*quick, *later(*(family for family in families if family not in quick))]


def later(*values: object) -> list:
    """Parameters of a test that only `make test-all` tries."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


def make_model(folder: Path, family: str = "llama", seed: int = 0, bos: bool = False) -> Path:
    """Write a tiny model of a family and a byte-level tokenizer trained on the demo's texts."""
    tokenizer = make_tokenizer(bos)
    random_model(family, tokenizer, seed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_quantised(
    folder: Path, bits: str, family: str = "llama", dtype: torch.dtype = torch.float32
) -> Path:
    """Write a tiny model into the folder `plain`, and what bitsandbytes makes of it beside it."""
    tokenizer, plain, made = make_tokenizer(), folder / "plain", folder / bits
    _enlarged(random_model(f"{family}-wide", tokenizer)).to(dtype).save_pretrained(plain)
    config = BitsAndBytesConfig(**BITS[bits])
    quantised = AutoModelForCausalLM.from_pretrained(
        plain, quantization_config=config, dtype=dtype, device_map="cpu"
    )
    quantised.save_pretrained(made)
    for saved in (plain, made):
        tokenizer.save_pretrained(saved)
    return made


def _enlarged(model: PreTrainedModel) -> PreTrainedModel:
    """A model whose every token hears of the others, and can be made to say any token."""
    width, vocabulary = model.config.hidden_size, model.config.vocab_size
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                wanted = 0.7 if len(parameter) == vocabulary else 1.2 / width**0.5
                parameter.mul_(wanted / parameter.std())
    return model


@functools.cache
def editable(family: str = "llama", bos: bool = False, double: bool = False) -> EditableModel:
    """A tiny model in memory, made once; with `double` all of it computes in float64."""
    tokenizer = make_tokenizer(bos)
    model = _enlarged(random_model(family, tokenizer))
    name = f"{family}, bos {bos}, double {double}"
    fingerprint = hashlib.sha256(name.encode()).hexdigest()[:32]
    return EditableModel(in_double(model) if double else model, tokenizer, name, fingerprint)


CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "[{{ message['role'] }}] {{ message['content'] }}\n"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


@functools.cache
def chatting(double: bool = False, template: str = CHAT_TEMPLATE) -> EditableModel:
    """The tiny model with a chat template."""
    model = copy.copy(editable(bos=True, double=double))
    model.tokenizer = copy.deepcopy(model.tokenizer)
    model.tokenizer.chat_template = template
    return model


def appending(bos: bool = False) -> EditableModel:
    """The tiny model with a tokenizer that puts an end token behind every text."""
    model = editable(bos=bos)
    tokenizer = copy.deepcopy(model.tokenizer)
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>" if bos else "$A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return EditableModel(model.model, tokenizer, "appending", model.fingerprint)


def random_model(family: str, tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> PreTrainedModel:
    """A tiny model with random weights, large enough for its states to differ between tokens."""
    config = AutoConfig.for_model(
        family.partition("-")[0],
        vocab_size=len(tokenizer),
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        **_CONFIGS[family],
    )
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "embed" not in name and "wte" not in name:
                parameter.mul_(4)
    return model


def _leaves_double(function):
    """A function of a tensor to which float64 is float64 also where float32 is asked for."""

    @functools.wraps(function)
    def called(tensor, *args, **kwargs):
        if tensor.dtype == torch.float64:
            args = [torch.float64 if arg is torch.float32 else arg for arg in args]
            if kwargs.get("dtype") is torch.float32:
                kwargs["dtype"] = torch.float64
        return function(tensor, *args, **kwargs)

    return called


class _StayDouble:
    """Inside the block, float64 tensors stay as they are where transformers asks for float32."""

    _plain_softmax = functional.softmax
    _softmax = staticmethod(_leaves_double(functional.softmax))
    _to = _leaves_double(torch.Tensor.to)
    active = False

    def __enter__(self):
        _StayDouble.active = True
        functional.softmax = self._softmax
        torch.Tensor.to = _StayDouble._to
        torch.Tensor.float = lambda tensor: tensor.to(torch.float32)

    def __exit__(self, *_):
        del torch.Tensor.to, torch.Tensor.float  # the methods of its parent are back
        functional.softmax = _StayDouble._plain_softmax
        _StayDouble.active = False


def in_bfloat16(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of a model in bfloat16."""
    return copy.deepcopy(model).to(torch.bfloat16)


def in_double(model: PreTrainedModel) -> PreTrainedModel:
    """The model in float64, also where its code computes norms and attention in float32."""
    for module in model.double().modules():
        module.forward = _stay_double(module.forward)
    return model


def _stay_double(forward):
    @functools.wraps(forward)
    def wrapped(*args, **kwargs):
        with nullcontext() if _StayDouble.active else _StayDouble():
            return forward(*args, **kwargs)

    return wrapped


@functools.cache
def make_tokenizer(bos: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer; with `bos` it puts a BOS token before every text."""
    texts = _CORPUS.read_text(encoding="utf-8").splitlines()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
