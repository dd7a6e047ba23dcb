"""Settings of the model: which one is edited, where it computes, and the names of its modules."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from fedit_app.config.settings import Settings, key


@dataclass(frozen=True)
class ModuleNames:
    """Module paths that the run config gives, for a model family that FedEdit does not know.

    Field `a_b` is the run-config key `module-a-b`; None is not given.
    """

    layers: str | None = None
    mlp_output: str | None = None
    final_norm: str | None = None
    attention_output: str | None = None
    post_norm: str | None = None

    def given(self) -> dict[str, str]:
        """Field -> path of what is given."""
        return {field: path for field, path in dataclasses.asdict(self).items() if path}


# A node's own file has these keys as well.
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
DEVICE = key("auto", "device of the computations: auto (CUDA if there is one), cpu, cuda or cuda:N")
DTYPE = key("auto", "weights in memory; auto: float32 on a CPU, else as in the checkpoint")
DEVICE_MAP = key(
    None,
    "spreads a model over several GPUs: auto, balanced, sequential, or a JSON file from module "
    "paths to devices",
    absent="all of it on device",
)


class ModelSettings(Settings):
    """The model, the machine that it is on, and its modules."""

    model: str = key(
        "smollm2-135m",
        "smollm2-135m (embedded), a Hugging Face folder, or a hub id",
        path="existing",
    )
    device: str = DEVICE
    dtype: Dtype = DTYPE
    device_map: str | None = DEVICE_MAP
    module_layers: str | None = key(
        None,
        "path of the list of decoder layers, such as model.layers; the module-... keys are for "
        "model families that FedEdit does not know, and win over what it knows",
        absent="the family's own",
    )
    module_mlp_output: str | None = key(
        None,
        "path of the MLP's output projection in a layer, such as mlp.down_proj",
        absent="the family's own",
    )
    module_final_norm: str | None = key(
        None,
        "path of the norm before the output head, such as model.norm",
        absent="the family's own",
    )
    module_attention_output: str | None = key(
        None,
        "path of the attention's output projection in a layer, such as self_attn.o_proj; only the "
        "editor pmet needs it",
        absent="the family's own",
    )
    module_post_norm: str | None = key(
        None,
        "path of the RMS norm behind the MLP's output projection in a layer, in the families that "
        "have one, such as post_feedforward_layernorm",
        absent="the family's own",
    )

    @property
    def module_names(self) -> ModuleNames:
        """The module names that are given."""
        fields = [field.name for field in dataclasses.fields(ModuleNames)]
        return ModuleNames(**{field: getattr(self, f"module_{field}") for field in fields})
