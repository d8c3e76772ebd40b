"""Arguments of the commands that load models for inference: TRL's ModelConfig, as far as nothing is trained."""

import importlib.util
from dataclasses import dataclass, field
from typing import Any

from trl import ModelConfig, get_quantization_config

from trl_rlp.storage.precision import dtype_option, require_inference_dtype
from trl_rlp.storage.processes import process_state


@dataclass
class InferenceArguments:
    """
    Arguments that define how a command loads its models. The names are those of TRL's ModelConfig.

    Args:
        inference_dtype (`str`, *optional*, defaults to `"auto"`):
            Dtype of the models: `auto`, `float32` or `bfloat16`. `auto` is bf16 on an accelerator that computes in it,
            and the dtype of the checkpoint on a CPU. Score heads and probabilities are in fp32.
        attn_implementation (`str`, *optional*):
            Attention implementation, such as `flash_attention_2`.
        model_revision (`str`, *optional*, defaults to `"main"`):
            Version of the models on the Hub: a branch, a tag or a commit.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to run code from the models' repositories.
        load_in_8bit (`bool`, *optional*, defaults to `False`):
            Whether to quantize language models to 8 bits. Reward models may not be quantized.
        load_in_4bit (`bool`, *optional*, defaults to `False`):
            Whether to quantize language models to 4 bits. Reward models may not be quantized.
        bnb_4bit_quant_type (`str`, *optional*, defaults to `"nf4"`):
            Type of the 4 bits: `nf4` or `fp4`.
        use_bnb_nested_quant (`bool`, *optional*, defaults to `False`):
            Whether to quantize the constants of the 4 bits too.
        bnb_4bit_quant_storage (`str`, *optional*):
            Dtype that stores the 4 bits.
    """

    inference_dtype: str = field(
        default="auto",
        metadata={
            "help": (
                "Dtype of the models: `auto`, `float32` or `bfloat16`. `auto` is bf16 on an accelerator that computes "
                "in it, and the dtype of the checkpoint on a CPU. Score heads and probabilities are in fp32."
            )
        },
    )
    attn_implementation: str | None = field(
        default=None, metadata={"help": "Attention implementation, such as `flash_attention_2`."}
    )
    model_revision: str = field(
        default="main", metadata={"help": "Version of the models on the Hub: a branch, a tag or a commit."}
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Whether to run code from the models' repositories."}
    )
    load_in_8bit: bool = field(
        default=False,
        metadata={"help": "Whether to quantize language models to 8 bits. Reward models may not be quantized."},
    )
    load_in_4bit: bool = field(
        default=False,
        metadata={"help": "Whether to quantize language models to 4 bits. Reward models may not be quantized."},
    )
    bnb_4bit_quant_type: str = field(
        default="nf4", metadata={"help": "Type of the 4 bits: `nf4` or `fp4`.", "choices": ["nf4", "fp4"]}
    )
    use_bnb_nested_quant: bool = field(
        default=False, metadata={"help": "Whether to quantize the constants of the 4 bits too."}
    )
    bnb_4bit_quant_storage: str | None = field(default=None, metadata={"help": "Dtype that stores the 4 bits."})

    def __post_init__(self):
        require_inference_dtype("inference_dtype", self.inference_dtype)
        if self.load_in_8bit and self.load_in_4bit:
            raise ValueError("`load_in_8bit` and `load_in_4bit` are both set. Set one of them.")
        require_bitsandbytes(self)

    def deciding(self) -> dict[str, Any]:
        """
        Returns the arguments that decide the results.

        Returns:
            `dict`: Values by name. Another attention implementation changes results by rounding only.
        """
        skipped = ("attn_implementation", "trust_remote_code")
        return {name: value for name, value in vars(self).items() if name not in skipped}

    @property
    def quantizes(self) -> bool:
        """Whether language models are quantized."""
        return self.load_in_8bit or self.load_in_4bit

    def policy_options(self) -> dict[str, Any]:
        """
        Collects the options for a language model.

        Returns:
            `dict`: Arguments of [`load_policy`].
        """
        if not self.quantizes:
            return self._plain_options()
        names = (
            "load_in_8bit",
            "load_in_4bit",
            "bnb_4bit_quant_type",
            "use_bnb_nested_quant",
            "bnb_4bit_quant_storage",
        )
        values = {name: vars(self)[name] for name in names}
        # ModelConfig's dtype is that in which quantized layers compute.
        dtype = "float32" if self.inference_dtype == "float32" or process_state().device.type == "cpu" else "bfloat16"
        return {
            **self._plain_options(),
            "quantization_config": get_quantization_config(ModelConfig(dtype=dtype, **values)),
        }

    def reward_options(self, name: str) -> dict[str, Any]:
        """
        Collects the options for a reward model.

        Args:
            name (`str`):
                Option that names the reward model, for the error message.

        Returns:
            `dict`: Arguments of [`load_reward_model`].

        Raises:
            ValueError: If models are quantized.
        """
        self.require_exact(name)
        return self._plain_options()

    def require_exact(self, name: str) -> None:
        """
        Checks that models are not quantized, for a model whose numbers are compared.

        Args:
            name (`str`):
                Option that names the model.

        Raises:
            ValueError: If they are quantized.
        """
        if self.quantizes:
            flag = "load_in_8bit" if self.load_in_8bit else "load_in_4bit"
            raise ValueError(
                f"`{flag}` would quantize `{name}`, whose numbers are compared and must be exact. Remove it, or set "
                "`inference_dtype` to bfloat16 to save memory."
            )

    def _plain_options(self) -> dict[str, Any]:
        options: dict[str, Any] = dtype_option(self.inference_dtype)
        if self.attn_implementation is not None:
            options["attn_implementation"] = self.attn_implementation
        if self.model_revision != "main":
            options["revision"] = self.model_revision
        if self.trust_remote_code:
            options["trust_remote_code"] = True
        return options


def require_bitsandbytes(arguments: InferenceArguments | ModelConfig) -> None:
    """
    Checks that bitsandbytes is installed if models are quantized. transformers would only name a missing package.

    Args:
        arguments ([`InferenceArguments`] or [`~trl.ModelConfig`]):
            Arguments with `load_in_8bit` and `load_in_4bit`.

    Raises:
        ValueError: If it is not installed.
    """
    flags = [name for name in ("load_in_8bit", "load_in_4bit") if vars(arguments)[name]]
    if flags and importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError(f"`{flags[0]}` needs bitsandbytes, which is not installed. Run `pip install bitsandbytes`.")
