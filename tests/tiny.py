"""Tiny randomly initialised models of several families, as ordinary Hugging Face folders."""

import copy
import functools
import hashlib
import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.overrides import TorchFunctionMode
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from fedit_app.models.editable import EditableModel

DEMO = Path(__file__).parents[1] / "fedit_app" / "data" / "demo"
VOCABULARY = 600
LAYERS = 5
D_MODEL = 16
D_FF = 32

_LLAMA = {
    "hidden_size": D_MODEL,
    "intermediate_size": D_FF,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}
_GPT = {"n_embd": D_MODEL, "n_inner": D_FF, "n_layer": LAYERS, "n_head": 2, "rotary_dim": 4}
FAMILIES = {
    "llama": _LLAMA | {"tie_word_embeddings": True},
    "qwen2": _LLAMA | {"tie_word_embeddings": False},
    "qwen3": _LLAMA,
    "mistral": _LLAMA,
    "gemma": _LLAMA,
    "gpt2": _GPT,
    "gptj": _GPT,
    "gpt_neox": _LLAMA | {"use_parallel_residual": True},
    "phi": _LLAMA,
}


def make_model(folder: Path, family: str = "llama", seed: int = 0, bos: bool = False) -> Path:
    """Write a tiny model of a family and a byte-level tokenizer trained on the demo's texts."""
    tokenizer = make_tokenizer(bos)
    random_model(family, tokenizer, seed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@functools.cache
def editable(family: str = "llama", bos: bool = False, double: bool = False) -> EditableModel:
    """A tiny model in memory, made once; with `double` all of it computes in float64.

    Its weights are so large that every token hears of the others, and that values can be found
    which make it say any token.
    """
    tokenizer = make_tokenizer(bos)
    model = random_model(family, tokenizer)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                vocabulary = len(parameter) == len(tokenizer)
                parameter.mul_((0.7 if vocabulary else 0.3) / parameter.std())
    name = f"{family}, bos {bos}, double {double}"
    fingerprint = hashlib.sha256(name.encode()).hexdigest()[:32]
    return EditableModel(in_double(model) if double else model, tokenizer, name, fingerprint)


def random_model(family: str, tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> PreTrainedModel:
    """A tiny model with random weights, large enough for its states to differ between tokens."""
    config = AutoConfig.for_model(
        family,
        vocab_size=len(tokenizer),
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        **FAMILIES[family],
    )
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "embed" not in name and "wte" not in name:
                parameter.mul_(4)
    return model


class _StayDouble(TorchFunctionMode):
    """Leaves float64 tensors as they are where transformers asks for float32."""

    active = False

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if args and isinstance(args[0], torch.Tensor) and args[0].dtype == torch.float64:
            if function is torch.Tensor.float:
                return args[0]
            args = tuple(torch.float64 if arg is torch.float32 else arg for arg in args)
            if kwargs.get("dtype") is torch.float32:
                kwargs["dtype"] = torch.float64
        return function(*args, **kwargs)


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
        if _StayDouble.active:
            return forward(*args, **kwargs)
        _StayDouble.active = True
        try:
            with _StayDouble():
                return forward(*args, **kwargs)
        finally:
            _StayDouble.active = False

    return wrapped


@functools.cache
def make_tokenizer(bos: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer; with `bos` it puts a BOS token before every text."""
    texts = []
    for file in sorted(DEMO.glob("*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            texts += [
                record["prompt"].replace("{}", record["subject"]),
                *record["neighborhood_prompts"],
            ]
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
