"""Export of a Llama-like model with a byte-level tokenizer, such as SmolLM2, to the GGUF format of llama.cpp and Ollama."""

import json
from pathlib import Path

from lecture_utils.registry import ModelError

TYPES = ("F16", "Q8_0")  # 16 bits, or 8 bits with a scale for every 32 weights


def interleave(weight, heads: int):
    """Return a query or key matrix (outputs, inputs) with the rows in llama.cpp's order.

    transformers rotates the dimensions i and i + D/2 of a head together, and llama.cpp the dimensions 2i and 2i + 1.
    """
    outputs, inputs = weight.shape
    return weight.reshape(heads, 2, outputs // heads // 2, inputs).transpose(1, 2).reshape(outputs, inputs)


def write_gguf(model, tokenizer, path: Path | str, kind: str = "F16") -> None:
    """Write a transformers model and its tokenizer, with the chat template, as one GGUF file.

    kind: one of ``TYPES``, for the matrices. Norms stay in 32 bits.
    """
    import gguf
    import torch

    config = model.config
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    if config.model_type != "llama" or "ByteLevel" not in json.dumps(spec["pre_tokenizer"]):
        raise ValueError(
            "Only Llama-like models with a byte-level tokenizer can be exported here. Save the merged model and use "
            "llama.cpp's own convert_hf_to_gguf.py for other ones."
        )
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(getattr(config, "name_or_path", "") or "finetuned")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    quantized = gguf.GGMLQuantizationType[kind]
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16 if kind == "F16" else gguf.LlamaFileType.MOSTLY_Q8_0)
    _add_tokenizer(writer, tokenizer, spec, config.vocab_size)

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue  # llama.cpp then uses the embedding
        part = name.split(".")[-2]
        weight = interleave(weight, heads[part]) if part in heads else weight
        array = weight.to(torch.float32).numpy()
        wanted = quantized if weight.ndim == 2 else gguf.GGMLQuantizationType.F32
        array = gguf.quants.quantize(array, wanted)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), array, raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer, tokenizer, spec: dict, size: int) -> None:
    """Add vocabulary, merges, special tokens and chat template."""
    import gguf

    special = set(tokenizer.all_special_tokens) | {t["content"] for t in spec["added_tokens"] if t["special"]}
    tokens, types = [f"[PAD{i}]" for i in range(size)], [gguf.TokenType.UNUSED] * size
    for token, i in tokenizer.get_vocab().items():
        tokens[i], types[i] = token, gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in spec["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(False)  # the chat template writes all special tokens
    writer.add_chat_template(tokenizer.chat_template)


def serve_gguf(path: Path | str, port: int = 0):
    """Return a running llama.cpp server for a GGUF file (port 0: any free one). It stops when it is deleted."""
    try:
        import xllamacpp
    except ImportError:
        raise ModelError("llama.cpp is missing. Install it with `pip install 'lecture-utils[serve]'`.") from None
    settings = xllamacpp.CommonParams()
    settings.model.path, settings.hostnames, settings.port = str(path), ["127.0.0.1"], port
    settings.n_ctx, settings.n_parallel, settings.verbosity = 2048, 1, -1
    return xllamacpp.Server(settings)


def ask_server(server, questions: list[str], max_tokens: int = 64) -> list[str]:
    """Return the greedy answers of a llama.cpp server to questions, each in a conversation of its own."""
    answers = []
    for question in questions:
        body = {"messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": max_tokens}
        reply = server.handle_chat_completions(body)
        answers.append(reply["choices"][0]["message"]["content"].strip())
    return answers
