"""The dimensions of Llama-like decoders, from which we count parameters and build models without weights."""

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
    tied: bool = True  # whether the output head shares the matrix of the embedding


@dataclass(frozen=True)
class Shape(Dimensions):
    """A published architecture, whose parameters can be counted and whose model can be built without weights."""

    family: str = "llama"  # transformers' model_type
    qk_norm: bool = False

    MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")  # of each block

    def linear_layers(self) -> dict[str, tuple[int, int]]:
        """Return the linear layers of one block as a dict from their names to (inputs, outputs)."""
        d, f, q, kv = self.width, self.feed_forward, self.heads * self.head_width, self.kv_heads * self.head_width
        sizes = ((d, q), (d, kv), (d, kv), (q, d), (d, f), (d, f), (f, d))
        return dict(zip(self.MATRICES, sizes, strict=True))

    def parameters(self) -> int:
        """Return the exact number of parameters. A test compares it with that of the model from ``build_empty``."""
        norms = 2 * self.width + (2 * self.head_width if self.qk_norm else 0)
        block = sum(i * o for i, o in self.linear_layers().values()) + norms
        return (1 if self.tied else 2) * self.vocabulary * self.width + self.layers * block + self.width

    def config(self):
        """Return the configuration of this architecture for transformers."""
        from transformers import AutoConfig

        return AutoConfig.for_model(
            self.family, vocab_size=self.vocabulary, hidden_size=self.width, intermediate_size=self.feed_forward,
            num_hidden_layers=self.layers, num_attention_heads=self.heads, num_key_value_heads=self.kv_heads,
            head_dim=self.head_width, tie_word_embeddings=self.tied,
        )  # fmt: skip

    def build_empty(self):
        """Return the model on the meta device, where its tensors have shapes but take no memory."""
        import torch
        from transformers import AutoModelForCausalLM

        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(self.config())
