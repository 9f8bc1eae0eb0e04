"""The import direction, sizes and habits of DESIGN hold for every file, by reading the syntax."""

import ast
import functools
import keyword
import pathlib
import re
import sys

import pytest

from tests import paths

BASE = {"errors", "config", "types"}
# unit -> the other units it may import; a unit is a folder or a file directly under sgqlm/
MAY_IMPORT = {
    "errors": set(),
    "types": {"errors"},
    "config": {"errors"},
    "text": BASE,
    "data": BASE | {"text", "scenes"},
    "scenes": BASE | {"text", "data"},
    "entities": BASE | {"data"},
    "viz": BASE | {"text", "data", "scenes"},
    "parallel": BASE,
    "models": BASE | {"parallel"},
    "train": BASE | {"text", "data", "scenes", "viz", "parallel", "models", "decode", "convert"},
    "decode": BASE | {"text", "data", "parallel", "models"},
    "convert": BASE | {"text", "parallel", "models"},
    "model": BASE
    | {"text", "data", "viz", "parallel", "models", "train", "decode", "convert", "entities"},
}
BELOW_CLI = set(MAY_IMPORT)
MAY_IMPORT["evals"] = BELOW_CLI
MAY_IMPORT["serve"] = BELOW_CLI
MAY_IMPORT["cli"] = BELOW_CLI | {"evals", "serve"}
MAY_IMPORT["__init__"] = {"model"}
MAY_IMPORT["__main__"] = {"cli"}

WITHOUT_JAX = {"errors", "config", "types", "text", "data", "scenes", "entities", "viz"}
JAX = {"jax", "jaxlib", "flax", "optax", "orbax", "jraph"}
TORCH = {"torch", "transformers", "peft", "ray"}
FLAGS = {"absl", "ml_collections"}
NEVER = {"tensorflow", "torchvision", "clu"}
# grain asks whether absl flags are parsed before it starts worker processes
FLAGS_EXCEPTIONS = {"data/pipeline.py"}
# packages that one path of a module needs and that cost time or are optional
LAZY = JAX | TORCH | FLAGS | {
    "array_record",
    "grain",
    "h5py",
    "matplotlib",
    "openpyxl",
    "pyarrow",
    "pycocotools",
    "rich",
    "safetensors",
    "skimage",
    "tensorboardX",
    "tensorflow_datasets",
}  # fmt: skip
# scenes builds on data, so data opens scenes only when asked to
LAZY_EXCEPTIONS = {"data/sources.py": {"sgqlm"}}
MAX_FILE, MAX_FUNCTION = 500, 60
FILES = sorted((paths.ROOT / "sgqlm").rglob("*.py"))
CONFIGS = sorted((paths.ROOT / "configs").rglob("*.py"))
ALL_FILES = [*FILES, *CONFIGS]


def _name(path: pathlib.Path) -> str:
    return path.relative_to(paths.ROOT / "sgqlm").as_posix()


def _unit(path: pathlib.Path) -> str:
    return _name(path).split("/")[0].removesuffix(".py")


@functools.cache
def _tree(path: pathlib.Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


@functools.cache
def _module(dotted: str) -> str | None:
    """Return the dotted name of the sgqlm module that an import names, if it is one."""
    stem = paths.ROOT / dotted.replace(".", "/")
    is_module = stem.with_suffix(".py").exists() or (stem / "__init__.py").exists()
    return dotted if is_module else None


def _imports(node: ast.AST) -> list[str]:
    """Return what an import statement names: dotted modules, or `module.name` where undecided."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        if node.level:
            return []  # only shipped files may, which a test of its own tells
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


@functools.cache
def _all_imports(path):
    return [name for node in ast.walk(_tree(path)) for name in _imports(node)]


def _packages(path):
    return {name.split(".")[0] for name in _all_imports(path)}


@functools.cache
def _functions(path):
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    return [node for node in ast.walk(_tree(path)) if isinstance(node, kinds)]


def _sgqlm_units(names):
    return {name.split(".")[1] for name in names if name.startswith("sgqlm.")}


def imports_from_a_higher_layer(path):
    unit = _unit(path)
    assert unit in MAY_IMPORT, f"{unit}: give the new unit a row in MAY_IMPORT"
    return _sgqlm_units(_all_imports(path)) - {unit, "__version__"} - MAY_IMPORT[unit]


def packages_out_of_their_place(path):
    unit, name = _unit(path), _name(path)
    refused = set(NEVER)
    if unit in WITHOUT_JAX:
        refused |= JAX
    if unit != "entities" and not name.startswith("convert/hf_code/"):
        refused |= TORCH
    if unit != "cli" and name not in FLAGS_EXCEPTIONS:
        refused |= FLAGS
    return _packages(path) & refused


def relative_imports_outside_shipped_files(path):
    levels = {n.level for n in ast.walk(_tree(path)) if isinstance(n, ast.ImportFrom) and n.level}
    # transformers loads these from any folder; they lie side by side there
    return levels - {1} if _name(path).startswith("convert/hf_code/") else levels


def imports_that_are_no_modules(path):
    names = [name for name in _all_imports(path) if name.startswith("sgqlm.")]
    return [name for name in names if not _module(name)]


def imports_inside_functions_that_are_not_lazy_ones(path):
    if _unit(path) in ("cli", "__init__"):
        return set()  # a verb loads what it runs
    inside = [
        name.split(".")[0]
        for function in _functions(path)
        for node in ast.walk(function)
        for name in _imports(node)
    ]
    return set(inside) - LAZY - LAZY_EXCEPTIONS.get(_name(path), set())


def sizes_above_the_limits(path):
    sizes = {f.name: f.end_lineno - f.lineno + 1 for f in _functions(path)}
    long = {name: lines for name, lines in sizes.items() if lines > MAX_FUNCTION}
    lines = len(path.read_text().splitlines())
    return long | ({"lines": lines} if lines > MAX_FILE else {})


def private_jax_globals_open_keywords(path):
    found = ["jax._src"] * ("jax._src" in path.read_text())
    found += [f"global {n.names}" for n in ast.walk(_tree(path)) if isinstance(n, ast.Global)]
    # the shipped Hugging Face files follow the signatures of transformers
    if not _name(path).startswith("convert/hf_code/"):
        found += [f.name for f in _functions(path) if f.args.kwarg]
    return found


RULES = (
    imports_from_a_higher_layer,
    packages_out_of_their_place,
    relative_imports_outside_shipped_files,
    imports_that_are_no_modules,
    imports_inside_functions_that_are_not_lazy_ones,
    sizes_above_the_limits,
    private_jax_globals_open_keywords,
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_no_file_has(rule):
    assert len(FILES) > 100
    assert not {_name(path): found for path in FILES if (found := rule(path))}


def test_models_use_only_the_sharding_rules_from_outside():
    for path in (paths.ROOT / "sgqlm" / "models").glob("*.py"):
        outside = {n for n in _all_imports(path) if n.startswith("sgqlm.parallel")}
        assert outside <= {"sgqlm.parallel.rules"}, path.name


def test_functional_is_below_the_other_models():
    names = _all_imports(paths.ROOT / "sgqlm" / "models" / "functional.py")
    assert not [name for name in names if name.startswith("sgqlm.models")]


def test_no_import_cycle():
    graph = {}
    for path in FILES:
        dotted = ".".join(path.relative_to(paths.ROOT).with_suffix("").parts)
        top = [name for node in _tree(path).body for name in _imports(node)]
        graph[dotted.removesuffix(".__init__")] = {m for name in top if (m := _module(name))}
    done, active = set(), []

    def visit(module):
        assert module not in active, " -> ".join([*active[active.index(module) :], module])
        if module in done:
            return
        active.append(module)
        for following in sorted(graph.get(module, ())):
            visit(following)
        done.add(active.pop())

    for module in graph:
        visit(module)


def test_third_party_packages_are_declared():
    setup = ast.walk(_tree(paths.ROOT / "setup.py"))
    words = [node.value for node in setup if isinstance(node, ast.Constant)]
    names = [re.match(r"[\w.-]+", word) for word in words if isinstance(word, str)]
    declared = {re.sub(r"[-.]", "_", name[0]).lower() for name in names if name}
    other_names = {
        "absl": "absl_py",
        "PIL": "pillow",
        "skimage": "scikit_image",
        "orbax": "orbax_checkpoint",
    }
    used = {package for path in ALL_FILES for package in _packages(path)}
    # a configuration may import its neighbours, such as `configs.data`, the mixtures
    used -= set(sys.stdlib_module_names) | {"sgqlm", "configs"}
    assert not {other_names.get(name, name).lower() for name in used} - declared


def test_every_folder_is_a_package():
    assert not [p for p in FILES if not (p.parent / "__init__.py").exists()]


def _verbs(path):
    """Return the modules of the verbs that a test runs by name, as a user does."""
    calls = [node for node in ast.walk(_tree(path)) if isinstance(node, ast.Call) and node.args]
    firsts = [call.args[0] for call in calls if ast.unparse(call.func) in ("run", "main.main")]
    words = [arg.elts[0] if isinstance(arg, ast.List) and arg.elts else arg for arg in firsts]
    names = [word.value for word in words if isinstance(word, ast.Constant)]
    return {f"sgqlm.cli.{name}{'_' * keyword.iskeyword(name)}" for name in names}


def test_every_module_has_a_test():
    used = set()
    for path in (paths.ROOT / "tests").rglob("*.py"):
        imports = set(_all_imports(path))
        used |= imports
        if "sgqlm.cli.main" in imports:
            used |= _verbs(path)
    modules = {".".join(p.relative_to(paths.ROOT).with_suffix("").parts) for p in FILES}
    untested = {m for m in modules - used if m.rsplit(".", 1)[1] not in ("__init__", "__main__")}
    assert not {m for m in untested if not m.startswith("sgqlm.convert.hf_code.")}
