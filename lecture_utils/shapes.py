"""The dimensions of Llama-like decoders: enough to count their parameters and to build them empty."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Dimensions:
    """The dimensions of a Llama-like decoder."""

    vocabulary: int
    width: int
    feed_forward: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    tied: bool = True  # is the output head the embedding?


@dataclass(frozen=True)
class Shape(Dimensions):
    """A published architecture: enough to count it and to build it empty."""

    family: str = "llama"  # transformers' model_type
    qk_norm: bool = False

    MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")  # of a block

    def linear_layers(self) -> dict[str, tuple[int, int]]:
        """Return the matrices of one block: name -> (inputs, outputs)."""
        d, f, q, kv = self.width, self.feed_forward, self.heads * self.head_width, self.kv_heads * self.head_width
        sizes = ((d, q), (d, kv), (d, kv), (q, d), (d, f), (d, f), (f, d))
        return dict(zip(self.MATRICES, sizes, strict=True))

    def parameters(self) -> int:
        """Return the exact number of parameters (the test holds it to a model built empty)."""
        norms = 2 * self.width + (2 * self.head_width if self.qk_norm else 0)
        block = sum(i * o for i, o in self.linear_layers().values()) + norms
        return (1 if self.tied else 2) * self.vocabulary * self.width + self.layers * block + self.width

    def config(self):
        """Return the transformers config of this architecture."""
        from transformers import AutoConfig

        return AutoConfig.for_model(
            self.family,
            vocab_size=self.vocabulary,
            hidden_size=self.width,
            intermediate_size=self.feed_forward,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.head_width,
            tie_word_embeddings=self.tied,
        )

    def build_empty(self):
        """Return the model on the meta device: every shape, no memory."""
        import torch
        from transformers import AutoModelForCausalLM

        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(self.config())
