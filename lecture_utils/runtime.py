"""Where am I running, and what does that allow?

One decision is made here and nowhere else: the *scale*. ``laptop`` (two cores, 2 GB,
no GPU) is the default; ``gpu`` needs a CUDA card of 15 GB or more, and a notebook that
asks for it (``setup``). At ``smoke`` every cell runs through the same code, but training
stops after a few steps, generation after a few tokens, and evaluations look at a few rows.
That is the scale of the tests. The environment variable ``LECTURE_SCALE`` overrides the choice.
"""

import ctypes
import functools
import importlib.metadata
import json
import logging
import math
import os
import platform
import random
import re
import sys
import tempfile
import time
import warnings

import lecture_utils

SCALES = ("laptop", "gpu", "smoke")
GPU_BYTES = 14e9  # a "16 GB" T4 reports about 15.6e9 bytes


def scale() -> str:
    """Return ``"gpu"`` where a CUDA card of 15 GB or more is present, else ``"laptop"``.

    ``LECTURE_SCALE`` overrides the choice. Raises ValueError if it names no scale.
    """
    wanted = os.environ.get("LECTURE_SCALE", "")
    if wanted:
        if wanted not in SCALES:
            raise ValueError(f"There is no scale {wanted!r}. Choose one of: {', '.join(SCALES)} (LECTURE_SCALE).")
        return wanted
    import torch

    if torch.cuda.is_available():
        return "gpu" if torch.cuda.get_device_properties(0).total_memory >= GPU_BYTES else "laptop"
    return "laptop"


def smoke() -> bool:
    """Return whether this is the smoke scale. For helpers only: a notebook's cells do not ask for the scale."""
    return os.environ.get("LECTURE_SCALE") == "smoke"


def limited(number: int, most: int) -> int:
    """Return ``number`` of steps, tokens or rows, at smoke scale at most ``most``."""
    return min(number, most) if smoke() else number


def few(rows, most: int = 2):
    """Return ``rows``, at smoke scale the first ``most`` of them."""
    return rows[:most] if smoke() else rows


def spread(results, count: int):
    """Return the results of ``few`` rows as those of ``count`` rows: at smoke scale each stands for several."""
    if len(results) == count:
        return results
    places = [i % len(results) for i in range(count)]
    return [results[i] for i in places] if isinstance(results, list) else results[places]  # else a tensor


def require_positive(config, *names: str) -> None:
    """Refuse a configuration whose sizes or rates are not above 0: it would train nothing, or in the wrong direction."""
    for name in names:
        if not getattr(config, name) > 0:
            raise ValueError(f"{name}={getattr(config, name)}: it must be above 0.")


def sizes(laptop: dict, smoke: dict, gpu: dict | None = None) -> dict:
    """Return a notebook's sizes at this scale; ``smoke`` and ``gpu`` name only those that differ from ``laptop``'s.

    Raises KeyError for a size that ``laptop`` lacks: it would be missing at the usual scale.
    """
    here = {"laptop": {}, "smoke": smoke, "gpu": gpu or {}}
    if unknown := (set(smoke) | set(here["gpu"])) - set(laptop):
        raise KeyError(f"laptop lacks {', '.join(sorted(unknown))}: give each size a value there.")
    return laptop | here[scale()]


def device() -> str:
    """Return ``"cuda"`` at GPU scale (one process's own card when several run), else ``"cpu"``."""
    import torch

    return "cuda" if scale() == "gpu" and torch.cuda.is_available() else "cpu"


def device_map() -> dict[str, str | int]:
    """Return where ``from_pretrained`` shall put the whole model: this process's device."""
    return {"": int(os.environ.get("LOCAL_RANK", 0)) if device() == "cuda" else "cpu"}


def cpu_has_bf16() -> bool:
    """Does this CPU multiply bf16 matrices faster than fp32 ones? Tried once, not looked up.

    Products of 512 x 1024 by 1024 x 1024, the best of eight, in a tenth of a second.
    ``LECTURE_BF16=0`` (or ``1``) answers for it.
    """
    forced = os.environ.get("LECTURE_BF16", "")
    return forced == "1" if forced in ("0", "1") else _bf16_is_faster()


@functools.cache  # a busy machine must not answer differently in the next cell
def _bf16_is_faster() -> bool:
    # A CPU without bf16 takes a hundred times as long for it, which a small product shows as well.
    return _bf16_ratio(256, tries=3) < 5 and _bf16_ratio(1024, tries=8) < 0.8


def _bf16_ratio(size: int, tries: int) -> float:
    """Return seconds in bf16 over seconds in fp32, the best of some tries, for the product of two matrices
    (size / 2, size) and (size, size)."""
    import torch

    best = {}
    for _ in range(tries):  # in turns, so that other work on the machine hits both
        for dtype in (torch.bfloat16, torch.float32):
            a, b = torch.ones(size // 2, size, dtype=dtype), torch.ones(size, size, dtype=dtype)
            start = time.perf_counter()
            a @ b
            best[dtype] = min(best.get(dtype, math.inf), time.perf_counter() - start)
    return best[torch.bfloat16] / best[torch.float32]


def compute_dtype():
    """Return the torch dtype to compute in: bf16 where the hardware has it, fp16 on an
    older GPU such as the T4 (which only emulates bf16), fp32 on an older CPU."""
    import torch

    if device() == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    return torch.bfloat16 if cpu_has_bf16() else torch.float32


def seed_everything(seed: int = 0) -> None:
    """Seed Python, NumPy and torch (all devices)."""
    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def use_less_memory() -> None:
    """Keep a small process small, at hardly a cost in time. Call before the first matrix product.

    oneDNN, torch's library for matrix products on CPUs, caches a compiled routine for each
    new shape, up to 1,024; rows of ever new lengths fill that. 32 do: training in notebook 08
    peaked at 1.39 GB instead of 1.62. And glibc keeps large freed blocks for reuse, in pieces:
    ask for them back, at 4 MB and above (Linux only; 32 MB would spare a small model a tenth of
    each step, at 0.15 GB in notebook 03). Of arenas four: with two, a script's threads waited
    for each other at every block, and a step of 60 ms took 100.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")
    if platform.system() == "Linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL("libc.so.6")
        mmap_threshold, arena_max = -3, -8
        libc.mallopt(mmap_threshold, 4 << 20)
        libc.mallopt(arena_max, 4)


def keep_memory() -> None:
    """Let the C library keep large freed blocks for the next step (Linux with glibc; elsewhere nothing).

    By default glibc maps a large tensor anew each time and the system fills it with zeros. A
    training step with a vocabulary of 4,096 (2 million parameters, 2,048 tokens, bf16, one
    thread) became 22 % faster, 7,420 to 9,080 tokens a second, at the same peak of memory; at
    1,024 nothing changes. The opposite of ``use_less_memory``: for long runs on a machine with
    memory to spare.
    """
    if platform.system() == "Linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL("libc.so.6")
        trim_threshold, mmap_threshold = -1, -3
        libc.mallopt(mmap_threshold, 1 << 30)
        libc.mallopt(trim_threshold, 2**31 - 1)


def trim_memory() -> None:
    """Collect garbage and hand freed memory back to the system (glibc) and the GPU. Worth
    calling after dropping a model on a 2 GB machine or a 16 GB card."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if platform.system() == "Linux" and platform.libc_ver()[0] == "glibc":
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def use_eager_attention_on_cpu(model) -> None:
    """On a CPU, use plain attention: for rows of some 50 tokens it is quicker than the fused
    kernel (measured in training, batch 4: 21 s against 24 s for 40 steps)."""
    if device() == "cpu":
        model.set_attn_implementation("eager")


def peak_memory_gb() -> float:
    """Return the peak resident memory of this process in GB (10^9 bytes), 0.0 on Windows."""
    try:
        import resource
    except ImportError:
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9


def quiet() -> None:
    """Keep other libraries' advice and inner progress bars out of the notebook.

    Errors still show. Set before transformers is imported.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # else each trainer of trl tells the hub model and card
    if scale() != "gpu":  # a GPU run downloads gigabytes: there the bar is wanted
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # cpp_extension: torch with CUDA on a machine without a card, as Colab is by default, says so when it compiles
    for name in ("bitsandbytes", "torchao", "accelerate", "transformers", "trl", "torch.utils.cpp_extension"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    warnings.filterwarnings("ignore", message="IProgress not found")  # text bars do as well


def compile_nothing() -> None:
    """Keep bitsandbytes from compiling its operations at their first use, which takes 20 seconds on a CPU. Nothing here
    is called often enough to make up for that."""
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")


def redact_secrets(text: str) -> str:
    """Return a text of another program, fit for a message or a bug report: without the user and password of an
    address, and without what an environment variable holds whose name says that it is secret."""
    text = re.sub(r"(?<=://)[^/\s@]+@", "***@", text)
    for name, value in os.environ.items():
        if len(value) >= 8 and re.search(r"TOKEN|SECRET|PASSW|CREDENTIAL|KEY", name.upper()):
            text = text.replace(value, "***")
    return text


def versions(*packages: str) -> str:
    """Return one line a package: its name and installed version."""
    width = max(map(len, packages), default=0)
    lines = []
    for name in packages:
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found = "not installed"
        lines.append(f"{name:<{width}}  {found}")
    return "\n".join(lines)


def installed_from() -> tuple[str, str]:
    """Return (branch or tag, commit) from which pip took this package, ("", "") if not from git."""
    try:
        said = importlib.metadata.distribution("lecture-utils").read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        said = None
    source = json.loads(said or "{}").get("vcs_info", {})
    return source.get("requested_revision", ""), source.get("commit_id", "")


def check_lecture(wanted: str) -> None:
    """Raise RuntimeError unless a notebook and this package belong together.

    wanted: ``"version@branch"``, what the notebook was written with. The branch is compared where pip
    took the package from git, as on Colab; in a checkout both are from the same one.
    """
    version, _, branch = wanted.partition("@")
    ref, _ = installed_from()
    if (version, branch) != (lecture_utils.__version__, ref or branch):
        raise RuntimeError(
            f"This notebook belongs to lecture {wanted}, but lecture-utils {lecture_utils.__version__}"
            f"{'@' + ref if ref else ''} is installed. Open the notebook anew from its badge, restart the runtime "
            "and run this cell first; in a checkout, `git pull` and `make setup`."
        )


def setup(*packages: str, seed: int = 0, lecture: str = "", gpu: bool = False) -> str:
    """Make a notebook ready: quiet libraries, fixed seed, versions printed, a folder that can be written.
    Returns the scale.

    lecture: the version and branch that the notebook belongs to (``check_lecture``).
    gpu: is it written for a GPU, too? The others stay at laptop scale, unless LECTURE_SCALE says otherwise.
    """
    if lecture:
        check_lecture(lecture)
    if not gpu:
        os.environ.setdefault("LECTURE_SCALE", "laptop")
    # Progress bars move once a second. A bar of widgets sends two or three messages each time, nbval
    # reads none before a cell has ended, and after a thousand the kernel drops the rest, the end included.
    os.environ.setdefault("TQDM_MININTERVAL", "1")
    quiet()
    seed_everything(seed)
    here = scale()
    if here != "gpu":
        use_less_memory()
        compile_nothing()
    print(versions("lecture-utils", *packages))
    print(f"scale: {here}, device: {device()}, Python {platform.python_version()}")
    if not os.access(".", os.W_OK):
        os.chdir(tempfile.mkdtemp(prefix="lecture-"))
        print(f"This notebook's folder cannot be written to: what it saves goes to {os.getcwd()}")
    return here
