"""Drift: each call into trl, transformers, peft, bitsandbytes and their kin, in notebooks, helpers and tools, is held
against the signatures that are installed. None is run, and an argument that has gone is named."""

import ast
import difflib
import functools
import importlib
import inspect
import re
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = "notebooks/*.ipynb", "lecture_utils/*.py", "tools/*.py", "experiments/*.py", "benchmarks/*.py"
PATHS = [path for pattern in FOLDERS for path in sorted(ROOT.glob(pattern))]
PACKAGES = ["trl", "transformers", "peft", "bitsandbytes", "accelerate", "datasets", "sentence_transformers", "faiss"]
TOKENIZER = "transformers.PreTrainedTokenizerBase"  # what is called …tokenizer, unless it is known to be another's

# Methods known by their name, on an object whose class the code doesn't say.
METHODS = {
    "transformers.GenerationMixin": "generate",
    "transformers.PreTrainedModel": "get_input_embeddings get_output_embeddings gradient_checkpointing_disable",
    "peft.PeftModel": "add_adapter disable_adapter load_adapter set_adapter",
    "peft.LoraModel": "add_weighted_adapter merge_and_unload",
}
OWNER = {method: owner for owner, methods in METHODS.items() for method in methods.split()}

# Where the **kwargs of a callable go on to: other callables, lists of names, or single names (without a dot). What its
# own source takes out of kwargs by name is found without this table.
FORWARDS = {
    "_BaseAutoModelClass.from_pretrained": ["transformers.PreTrainedModel.from_pretrained"],
    "PreTrainedModel.from_pretrained": ["transformers.PreTrainedConfig", "num_labels"],  # a property of the config
    "_BaseAutoModelClass.from_config": ["transformers.PreTrainedModel._from_config"],
    "AutoConfig.for_model": ["transformers.LlamaConfig"],
    "AutoConfig.from_pretrained": ["transformers.PreTrainedConfig.from_pretrained", "transformers.PreTrainedConfig"],
    "AutoTokenizer.from_pretrained": [f"{TOKENIZER}.from_pretrained", f"{TOKENIZER}._from_pretrained", TOKENIZER],
    "PreTrainedTokenizerBase.apply_chat_template": ["enable_thinking"],  # variables of the templates used here
    "PreTrainedTokenizerBase": [f"{TOKENIZER}.SPECIAL_TOKENS_ATTRIBUTES"],
    "TokenizersBackend": [TOKENIZER],
    "TextStreamer": [f"{TOKENIZER}.decode"],
    "GenerationMixin.generate": ["transformers.GenerationConfig", "transformers.LlamaForCausalLM.forward"],
    "completion_trainer": ["trl.SFTTrainer"],  # the lecture's own: lecture_utils/finetuning.py
    "training_arguments": ["trl.SFTConfig"],
    "finetune": ["trl.SFTConfig"],
}


def watched(path: str) -> bool:
    root, _, rest = path.partition(".")
    return root in PACKAGES or (root == "lecture_utils" and rest.split(".")[-1] in FORWARDS)


def near(name: str, options) -> str:
    found = difflib.get_close_matches(name, options, n=1)
    return f" (it has {found[0]!r})" if found else ""


@functools.cache
def resolve(path: str):
    """Return what a dotted path names, importing on the way. Raises AttributeError naming the part that has gone."""
    here, *parts = path.split(".")
    found = importlib.import_module(here)
    for part in parts:
        try:
            found = getattr(found, part) if hasattr(found, part) else importlib.import_module(f"{here}.{part}")
        except ImportError:
            raise AttributeError(f"{here} has no {part!r}{near(part, dir(found))}") from None
        here += f".{part}"
    return found


@functools.cache
def accepted(path: str) -> tuple[inspect.Signature, set[str]]:
    """Return the signature of what a path names, without self, and all arguments that may be given by name."""
    called = resolve(path)
    parameters = inspect.signature(getattr(called, "__func__", called)).parameters.values()
    parameters = [p for p in parameters if p.name not in ("self", "cls")]
    names = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    renamed, read = r"deprecate_kwarg\(", r"kwargs\.(?:pop|get)\(|kwargs\["  # a deprecated name is still accepted
    try:
        source = inspect.getsource(called.__init__ if inspect.isclass(called) else called)
    except (OSError, TypeError):  # made by dataclass, or compiled
        source = ""
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters)
    names |= set(re.findall(rf'(?:{f"{renamed}|{read}" if anything else renamed})\s*"(\w+)"', source))
    for further in FORWARDS.get(called.__qualname__, []) if anything else []:
        listed = resolve(further) if "." in further else [further]
        names |= set(listed) if isinstance(listed, list) else accepted(further)[1]
    return inspect.Signature(parameters), names


def made_by(path: str, what: str):
    """Return the instance that a call makes, where the code says of what class."""
    if what != "object" or not watched(path):  # another's class is known, so that it is left alone
        return (path, "instance") if what == "object" and re.search(r"\.[A-Z]", path) else None
    try:
        found = resolve(path)
    except AttributeError:
        return None
    if inspect.ismethod(found) and not found.__self__.__name__.startswith("Auto"):  # Dataset.from_list(…)
        return path.rpartition(".")[0], "instance"
    return (path, "instance") if inspect.isclass(found) else None


def may_have(path: str) -> bool:
    """Return whether an instance may have an attribute that its class lacks: set in a method, or found otherwise."""
    owner, _, name = path.rpartition(".")
    ours = [c for c in resolve(owner).__mro__ if c.__module__.split(".")[0] in PACKAGES]
    return any("__getattr__" in vars(c) or f"self.{name} =" in inspect.getsource(c) for c in ours)


class Checker(ast.NodeVisitor):
    """Reads a notebook or a module from top to bottom; ``names`` holds what is known of a name.

    A dict is the set of its keys. All else is a pair, a dotted path and what stands there: an "object", an "instance"
    of a class, a "method" of one; or keys and "maker", a function that returns a dict.
    """

    def __init__(self, name: str, module: str = "here"):
        self.name, self.module, self.names, self.calls, self.faults = name, module, {}, 0, []

    def read(self, source: str, cell: str = ""):
        self.cell = cell
        self.visit(ast.parse(re.sub(r"(?m)^(\s*)[%!].*$", r"\1pass", source)))
        return self

    def fault(self, node, what):
        self.faults.append(f"{self.name}, {self.cell or f'line {node.lineno}'}: {what}")

    def kind(self, node):
        """Return what is known of an expression; None if nothing is."""
        match node:
            case ast.Name(name) if self.names.get(name):
                return self.names[name]
            case ast.Attribute(value, name) if base := self.kind(value):
                path, what = base if isinstance(base, tuple) else (None, None)
                if name in OWNER and what == "instance" and watched(path):
                    return f"{OWNER[name]}.{name}", "method"  # a PeftModel hands most names on
                leads_to = {"object": "object", "instance": "method"}.get(what)
                return leads_to and (f"{path}.{name}", leads_to)
            case ast.Attribute(_, name) if name in OWNER:
                return f"{OWNER[name]}.{name}", "method"
            case ast.Name(name) | ast.Attribute(_, name) if name.endswith("tokenizer"):
                return TOKENIZER, "instance"
            case ast.Dict(keys, values):
                inner = [self.keys(v) for k, v in zip(keys, values, strict=True) if k is None]
                return {k.value for k in keys if isinstance(k, ast.Constant)}.union(*inner)
            case ast.BinOp(left, ast.BitOr(), right):
                return self.keys(left) | self.keys(right)
            case ast.Call(ast.Name("dict"), given):
                return self.keywords(node).union(*map(self.keys, given))
            case ast.Call(called) if isinstance(found := self.kind(called), tuple):
                return found[0] | self.keywords(node) if found[1] == "maker" else made_by(*found)

    def keys(self, node) -> set[str]:
        return found if isinstance(found := self.kind(node), set) else set()

    def keywords(self, call) -> set[str]:
        """Return the names of a call's arguments, those in its ``**settings`` included where they can be seen."""
        return {k.arg for k in call.keywords if k.arg}.union(*(self.keys(k.value) for k in call.keywords if not k.arg))

    def visit_Import(self, node):
        for alias in node.names:
            path = f"{node.module}.{alias.name}" if isinstance(node, ast.ImportFrom) else alias.name
            short = isinstance(node, ast.Import) and not alias.asname  # import a.b binds a
            path, name = (path.split(".")[0],) * 2 if short else (path, alias.asname or alias.name)
            self.names[name] = (path, "object")
            try:
                resolve(path if watched(path) else "ast")
            except AttributeError as gone:
                self.fault(node, gone)

    visit_ImportFrom = visit_Import

    def visit_Name(self, node):
        if isinstance(node.ctx, ast.Store):
            self.names[node.id] = None

    def visit_Assign(self, node):
        self.generic_visit(node)
        for target in node.targets:
            both = isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple)
            for to, value in zip(target.elts, node.value.elts, strict=False) if both else [(target, node.value)]:
                match to:
                    case ast.Name(name):
                        self.names[name] = self.kind(value)
                    case ast.Subscript(ast.Name(name) as known, ast.Constant(key)) if self.keys(known):
                        self.names[name] = self.keys(known) | {key}

    def visit_ClassDef(self, node):
        self.generic_visit(node)
        self.names[node.name] = (f"{self.module}.{node.name}", "object")

    def visit_FunctionDef(self, node):
        given = [a.arg for a in ast.walk(node.args) if isinstance(a, ast.arg)]
        outer, self.names = self.names, self.names | dict.fromkeys(given)
        self.generic_visit(node)
        made = [self.keys(part.value) for part in ast.walk(node) if isinstance(part, ast.Return)]
        self.names = outer
        maker = len(made) == len(given) == 1 and node.args.kwarg and made[0]  # def settings(**more): return … | more
        self.names[node.name] = (maker, "maker") if maker else (f"{self.module}.{node.name}", "object")

    def visit_Call(self, node):
        self.generic_visit(node)
        path, what = found if isinstance(found := self.kind(node.func), tuple) else ("", "")
        if what == "maker" or not watched(path):
            return
        try:
            if what == "instance":
                path += ".forward" if hasattr(resolve(path), "forward") else ".__call__"
            resolve(path)
        except AttributeError as gone:
            if what == "object" or not may_have(path):
                self.fault(node, gone)
            return
        try:
            signature, names = accepted(path)
        except ValueError:
            return  # compiled, without a signature
        self.calls += 1
        given = self.keywords(node)
        for name in sorted(given - names):
            self.fault(node, f"{path} has no argument {name!r}{near(name, names)}")
        positional, named = [a for a in node.args if not isinstance(a, ast.Starred)], given & set(signature.parameters)
        whole = positional == node.args and all(k.arg for k in node.keywords) and given == named
        bind = signature.bind if whole else signature.bind_partial  # is what must be given there, as far as it's seen?
        try:
            bind(*positional, **dict.fromkeys(named))
        except TypeError as error:
            self.fault(node, f"{path}: {error}")


@functools.cache
def checked(path: Path) -> Checker:
    checker = Checker(path.name, f"{path.parent.name}.{path.stem}")
    if path.suffix == ".py":
        return checker.read(path.read_text(encoding="utf-8"))
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code" and not cell.source.startswith("%%"):
            checker.read(cell.source, f"cell {cell.id}")
    return checker


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_every_call_fits_the_installed_signatures(path):
    faults = checked(path).faults
    assert not faults, "\n".join(faults)


def test_no_notebook_is_passed_over():
    """A checker that sees no calls finds no fault: each file that imports one of the libraries has some, all many."""
    for path in PATHS:
        if re.search(r"\b(from|import) (trl|peft|bitsandbytes)\b", path.read_text(encoding="utf-8")):
            assert checked(path).calls, path.name
    assert sum(checked(path).calls for path in PATHS) >= 250  # 318 when this was written


GONE = {
    "from trl import SFTConfig\nSFTConfig(max_seq_length=9)": "made up.py, line 2: trl.SFTConfig has no argument "
    "'max_seq_length' (it has 'max_length')",
    "from trl import SFTConfigs": "line 1: trl has no 'SFTConfigs' (it has 'SFTConfig')",
    "import bitsandbytes as bnb\nbnb.nn.Linear4bits(8)": "bitsandbytes.nn has no 'Linear4bits' (it has 'Linear4bit')",
    "import peft\npeft.get_peft_model(1, 2, 3, 4, 5, 6, 7, 8, 9)": "peft.get_peft_model: too many positional arguments",
    "import peft\npeft.get_peft_model(net)": "peft.get_peft_model: missing a required argument: 'peft_config'",
    "from peft import LoraConfig\nhow = dict(r=8) | {'alpha': 16}\nLoraConfig(**how)": "line 3: peft.LoraConfig has "
    "no argument 'alpha' (it has 'lora_alpha')",
    "from peft import LoraConfig\ndef how(**new):\n    return dict(r=8) | new\nLoraConfig(**how(alpha=16))": "'alpha'",
    "from trl import SFTTrainer\ntrainer = SFTTrainer('x')\ntrainer.trains()": "trl.SFTTrainer has no 'trains'",
    "model.generate(ids, max_new_token=8)": "has no argument 'max_new_token' (it has 'max_new_tokens')",
    "self.tokenizer('text', truncate=True)": "PreTrainedTokenizerBase.__call__ has no argument 'truncate'",
    "from transformers import AutoModel\nAutoModel.from_pretrained(x, load_in_4bit=True)": "no argument 'load_in_4bit'",
    "from lecture_utils import finetuning\nfinetuning.completion_trainer(tokenizers=1)": "no argument 'tokenizers'",
}


@pytest.mark.parametrize("source", GONE)
def test_what_has_gone_is_named(source):
    (fault,) = Checker("made up.py").read(source).faults
    assert GONE[source] in fault


@pytest.mark.parametrize(
    "source",
    [
        "from trl import SFTConfig\nfrom elsewhere import SFTConfig\nSFTConfig(mine=1)",
        "from trl import SFTConfig\ndef f(SFTConfig):\n    SFTConfig(mine=1)",
        "from trl import SFTConfig\nclass SFTConfig: ...\nSFTConfig(mine=1)",
        "from elsewhere import Decoder\nnet = Decoder(1)\nnet.generate(mine=1)",
        "from peft import LoraConfig\nLoraConfig(**unknown)\nif colab:\n    %pip install -q peft",
        "from transformers import AutoModel\nAutoModel.from_pretrained(x, device_map='auto', dtype=t, num_labels=1)",
    ],
)
def test_what_is_another_s_or_right_is_left_alone(source):
    assert Checker("made up.py").read(source).faults == []
