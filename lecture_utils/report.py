"""Describe this machine for a bug report: ``python -m lecture_utils.report``."""

import os
import platform

import lecture_utils
from lecture_utils import runtime

REPORTED = (
    "torch", "transformers", "peft", "trl", "bitsandbytes", "accelerate", "datasets", "numpy", "safetensors", "gguf",
    "matplotlib", "IPython", "ipykernel", "jupyterlab", "nbconvert", "nbval",
)  # fmt: skip


def report() -> str:
    """Return what a bug report needs to say about this machine and its packages, without anything private."""
    import torch

    ref, commit = runtime.installed_from()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    lines = {
        "lecture": f"{lecture_utils.__version__} {ref} {commit[:12]}".strip(),
        "Python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "Colab": "yes" if "COLAB_RELEASE_TAG" in os.environ else "no",
        "Binder": "yes" if "BINDER_REPO_URL" in os.environ else "no",
        "cores": f"{cores}, torch uses {torch.get_num_threads()}",
        "bf16 on the CPU": "yes" if runtime.cpu_has_bf16() else "no",
        "GPU": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none",
        "scale": runtime.scale(),
        "compute type": str(runtime.compute_dtype()).removeprefix("torch."),
    }
    width = max(map(len, lines))
    machine = "\n".join(f"{name:<{width}}  {value}" for name, value in lines.items())
    return f"{machine}\n\n{runtime.versions(*REPORTED)}"


if __name__ == "__main__":
    runtime.quiet()
    print(report())
