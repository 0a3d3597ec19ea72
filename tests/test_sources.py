"""What no line of the programs may do: unpickle, run text as code, fetch code, or start a shell."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROGRAMS = sorted(path for folder in ("pipeline", "jobs", "benchmarks") for path in (ROOT / folder).rglob("*.py"))
PICKLES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "ray.cloudpickle"}
RUNS_TEXT = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.hub.load", "yaml.load"}
UNPICKLES = {"torch.load", "pandas.read_pickle", "pd.read_pickle"}


def findings(source: str) -> Iterator[str]:
    """Line and what is wrong with it."""
    for node in ast.walk(ast.parse(source)):
        for name in _imported(node):
            if name in PICKLES or name.split(".")[0] in PICKLES:
                yield f"{node.lineno}: imports {name}"  # type: ignore[attr-defined]
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        given = {option.arg: ast.unparse(option.value) for option in node.keywords}
        if called in RUNS_TEXT or called in UNPICKLES:
            yield f"{node.lineno}: calls {called}"
        if given.get("allow_pickle", "False") != "False":
            yield f"{node.lineno}: allow_pickle"
        if given.get("trust_remote_code", "False") != "False" or "custom_pipeline" in given:
            yield f"{node.lineno}: code from a model's folder"
        if given.get("shell", "False") != "False":
            yield f"{node.lineno}: a shell"
        weights = called.endswith(".from_pretrained") and not any(word in called for word in ("Tokenizer", "Config"))
        if weights and given.get("use_safetensors") != "True":
            yield f"{node.lineno}: from_pretrained without use_safetensors"


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module:
        return [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return []


@pytest.mark.parametrize("path", PROGRAMS, ids=[str(path.relative_to(ROOT)) for path in PROGRAMS])
def test_no_program_unpickles_or_runs_text_as_code(path: Path) -> None:
    assert [f"{path.name}:{found}" for found in findings(path.read_text())] == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from pickle import loads",
        "from ray import cloudpickle",
        "import cloudpickle as cp",
        "torch.load('x')",
        "torch.load('x', weights_only=True)",
        "np.load('x', allow_pickle=True)",
        "eval('1')",
        "os.system('ls')",
        "subprocess.run('ls', shell=True)",
        "AutoModel.from_pretrained('x', use_safetensors=True, trust_remote_code=True)",
        "DiffusionPipeline.from_pretrained('x', use_safetensors=True, custom_pipeline='y')",
        "AutoModel.from_pretrained('x')",
        "yaml.load(text)",
    ],
)
def test_each_way_is_noticed(line: str) -> None:
    assert len(list(findings(line))) >= 1


def test_what_is_safe_is_not_reported() -> None:
    assert list(findings("model.eval()\nnp.load('x')\nload_file('x')\nre.compile('x')\nyaml.safe_load('x')")) == []
