"""Rules for all of the code: no pickle, no code from data, no unchecked address, no dependency with a known hole."""

from __future__ import annotations

import ast
import io
import json
import pkgutil
import re
import shutil
import threading
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement
from packaging.version import Version
from PIL import Image
from safetensors.torch import load_file

from vidembed import VideoEncoder, VideoReranker
from vidembed.registry import model_path

ROOT = Path(__file__).parents[1]
LOOKED_AT = ("src", "integrations", "benchmarks")

# -- what the code must not do -----------------------------------------------------------------------------------------

PICKLES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "jsonpickle", "joblib", "marshal", "shelve"}
PROCESSES = {"multiprocessing", "ray"}  # what they send is pickled
CALLS = {
    "torch.load": "pickle",
    "torch.save": "pickle",
    "pandas.read_pickle": "pickle",
    "pd.read_pickle": "pickle",
    "yaml.load": "yaml",
    "yaml.load_all": "yaml",
    "yaml.unsafe_load": "yaml",
    "yaml.full_load": "yaml",
    "eval": "code",
    "exec": "code",
    "compile": "code",
    "__import__": "code",
    "os.system": "shell",
    "os.popen": "shell",
    "shutil.unpack_archive": "archive",
    "tempfile.mktemp": "race",
    "ssl._create_unverified_context": "tls",
    "urllib.request.urlopen": "fetch",
    "urllib.request.urlretrieve": "fetch",
    "urlopen": "fetch",
}
FETCHERS = {"requests", "httpx", "aiohttp", "urllib3", "ftplib", "telnetlib"}
NUMPY_FILES = {"load", "save", "savez", "savez_compressed"}
KEYWORDS = {
    "shell": ("shell", False),
    "trust_remote_code": ("remote code", False),
    "verify": ("tls", True),
    "check_hostname": ("tls", True),
    "use_safetensors": ("pickle", True),
    "weights_only": ("pickle", True),
    "allow_dangerous_deserialization": ("pickle", False),
}
"""Keyword arguments, the rule that they are of, and the only constant that they may have."""

ALLOWED: dict[tuple[str, str], str] = {
    ("benchmarks/memory.py", "fetch"): "asks the server that it has started itself, on this machine",
    ("benchmarks/ray.py", "processes"): "as src/vidembed/ray, on one machine",
    (
        "src/vidembed/ray/",
        "processes",
    ): "Ray sends its work between the machines of one cluster, which trust each other",
    ("integrations/langchain-vidembed/langchain_vidembed/config.py", "pickle"): "hands the user's setting on",
    ("integrations/langchain-vidembed/langchain_vidembed/stores.py", "pickle"): (
        "LangChain's FAISS store is a pickle; it is read only if the user sets allow_dangerous_deserialization"
    ),
    ("integrations/langchain-vidembed/tests/integration_tests/test_docs.py", "code"): "runs its own README",
    (
        "integrations/langchain-vidembed/tests/integration_tests/test_retriever.py",
        "code",
    ): "looks for an import by name",
    ("integrations/langchain-vidembed/tests/unit_tests/test_captions.py", "pickle"): "objects survive being pickled",
    ("integrations/langchain-vidembed/tests/unit_tests/test_embeddings.py", "pickle"): "objects survive being pickled",
    ("integrations/langchain-vidembed/tests/unit_tests/test_rerank.py", "pickle"): "objects survive being pickled",
    ("integrations/llama-index-embeddings-vidembed/tests/test_captions.py", "pickle"): "objects survive being pickled",
    ("integrations/llama-index-embeddings-vidembed/tests/test_docs.py", "code"): "runs its own README",
    ("integrations/llama-index-embeddings-vidembed/tests/test_embedding.py", "pickle"): "objects survive being pickled",
    ("integrations/llama-index-embeddings-vidembed/tests/test_rerank.py", "pickle"): "objects survive being pickled",
    ("integrations/llama-index-embeddings-vidembed/tests/test_package.py", "archive"): "unpacks the wheel it has built",
    ("integrations/llama-index-embeddings-vidembed/tests/test_package.py", "code"): "imports its own modules by name",
}
"""Files, and a folder, that may break a rule, and why. One that does not break it fails the test too."""


def dotted(node: ast.AST) -> str:
    """The name of what is called, such as ``torch.load``."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def _imports(node: ast.AST) -> Iterator[tuple[str, str]]:
    names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
    if isinstance(node, ast.ImportFrom) and node.level == 0:
        names = [node.module or ""]
        for one in node.names:
            if (full := f"{node.module}.{one.name}") in CALLS:
                yield CALLS[full], f"imports {full}"
    for name in names:
        top = name.split(".")[0]
        kinds = {"pickle": PICKLES, "processes": PROCESSES, "fetch": FETCHERS}
        yield from ((kind, f"imports {name}") for kind, tops in kinds.items() if top in tops)
        if name.startswith(("xml", "lxml")):
            yield "xml", f"imports {name}"


def _calls(node: ast.Call) -> Iterator[tuple[str, str]]:
    name = dotted(node.func)
    given = {keyword.arg: keyword.value for keyword in node.keywords}
    if name in CALLS:
        yield CALLS[name], f"calls {name}"
    if name.split(".")[-1] == "ProcessPoolExecutor":
        yield "processes", f"calls {name}"
    module, _, function = name.rpartition(".")
    if module in {"np", "numpy"} and function in NUMPY_FILES and _constant(given.get("allow_pickle")) is not False:
        yield "pickle", f"calls {name} without allow_pickle=False"
    if function == "extractall" and "filter" not in given:
        yield "archive", f"calls {name} without a filter"
    for keyword, (kind, right) in KEYWORDS.items():
        if keyword in given and _constant(given[keyword]) is not right:
            yield kind, f"{name}({keyword}=...) is not {right}"


def _constant(node: ast.AST | None) -> object:
    return node.value if isinstance(node, ast.Constant) else None


def findings(source: str) -> set[tuple[str, str]]:
    """The rules that some code breaks, and by what."""
    found: set[tuple[str, str]] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            found.update(_imports(node))
        elif isinstance(node, ast.Call):
            found.update(_calls(node))
        elif isinstance(node, ast.Attribute) and node.attr == "CERT_NONE":
            found.add(("tls", "CERT_NONE"))
    return found


def test_the_code_breaks_no_rule() -> None:
    used, broken = set(), []
    files = [file for top in LOOKED_AT for file in sorted((ROOT / top).rglob("*.py"))]
    assert len(files) > 100
    for file in files:
        name = file.relative_to(ROOT).as_posix()
        for kind, what in sorted(findings(file.read_text(encoding="utf-8"))):
            allowed = [key for key in ALLOWED if name.startswith(key[0]) and kind == key[1]]
            if allowed:
                used.update(allowed)
            else:
                broken.append(f"{name}: {kind}: {what}")
    assert broken == []
    assert {key for key in ALLOWED if (ROOT / key[0]).exists()} - used == set()
    assert all(len(reason) > 10 for reason in ALLOWED.values())


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("import pickle", "pickle"),
        ("import dill as json", "pickle"),
        ("from joblib import load", "pickle"),
        ("import marshal, json", "pickle"),
        ("def f():\n    import shelve", "pickle"),
        ("torch.load(path, weights_only=True)", "pickle"),
        ("torch.save(x, path)", "pickle"),
        ("from torch import load", "pickle"),
        ("np.load(path)", "pickle"),
        ("numpy.load(path, allow_pickle=True)", "pickle"),
        ("np.load(path, allow_pickle=flag)", "pickle"),
        ("np.save(path, x)", "pickle"),
        ("AutoModel.from_pretrained(x, use_safetensors=False)", "pickle"),
        ("yaml.load(text)", "yaml"),
        ("eval(text)", "code"),
        ("exec(text)", "code"),
        ("subprocess.run(command, shell=True)", "shell"),
        ("subprocess.run(command, shell=flag)", "shell"),
        ("os.system(command)", "shell"),
        ("from os import system", "shell"),
        ("AutoModel.from_pretrained(x, trust_remote_code=True)", "remote code"),
        ("AutoModel.from_pretrained(x, trust_remote_code=flag)", "remote code"),
        ("tar.extractall(folder)", "archive"),
        ("requests.get(url, verify=False)", "tls"),
        ("context.verify_mode = ssl.CERT_NONE", "tls"),
        ("import requests", "fetch"),
        ("urllib.request.urlopen(url)", "fetch"),
        ("from urllib.request import urlopen", "fetch"),
        ("import multiprocessing.pool", "processes"),
        ("def f():\n    import ray", "processes"),
        ("concurrent.futures.ProcessPoolExecutor()", "processes"),
        ("import xml.etree.ElementTree as ET", "xml"),
    ],
)
def test_every_rule_finds_what_breaks_it(source: str, kind: str) -> None:
    assert kind in {found for found, _ in findings(source)}


@pytest.mark.parametrize(
    "source",
    [
        "import json\nfrom vidembed.video import load_video",
        "np.load(path, mmap_mode='r', allow_pickle=False)",
        "np.savez_compressed(path, allow_pickle=False, **arrays)",
        "yaml.safe_load(text)",
        "re.compile(pattern)",
        "model.eval()",
        "subprocess.run([sys.executable, script], check=False)",
        "AutoModel.from_pretrained(x, use_safetensors=True, trust_remote_code=False)",
        "tar.extractall(folder, filter='data')",
    ],
)
def test_no_rule_finds_what_keeps_it(source: str) -> None:
    assert findings(source) == set()


def test_no_file_of_the_package_is_a_pickle() -> None:
    """Nor anything that could be one: weights are safetensors, the rest is text."""
    known = {
        ".py",
        ".md",
        ".json",
        ".jsonl",
        ".jinja",
        ".safetensors",
        ".html",
        ".js",
        ".css",
        ".typed",
        ".txt",
        ".svg",
        ".toml",
    }
    files = [file for file in (ROOT / "src").rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    assert {file.suffix or file.name for file in files} - known - {"py.typed"} == set()
    for file in files:
        if file.suffix != ".safetensors":
            file.read_text(encoding="utf-8")


# -- checkpoints from strangers ----------------------------------------------------------------------------------------


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("shapes-mllm", VideoReranker),
        ("shapes", VideoEncoder),
        ("shapes-rerank", VideoReranker),
    ],
)
@pytest.mark.parametrize("evil", [True, False])
def test_pickled_weights_are_not_loaded(tmp_path: Path, name: str, kind: Any, evil: bool) -> None:
    folder, mark = tmp_path / "model", tmp_path / "mark"
    shutil.copytree(model_path(name), folder)
    for file in folder.rglob("*.safetensors"):
        weights: dict[str, Any] = load_file(file)
        file.unlink()
        torch.save({**weights, **({"evil": Evil(mark)} if evil else {})}, file.with_name("pytorch_model.bin"))
    with pytest.raises(OSError, match="safetensors"):
        kind(str(folder), device="cpu")
    assert not mark.exists()


def test_code_that_a_checkpoint_names_is_not_run(tmp_path: Path) -> None:
    folder, mark = tmp_path / "model", tmp_path / "mark"
    shutil.copytree(model_path("shapes"), folder)
    (folder / "evil.py").write_text(f"import pathlib\npathlib.Path({str(mark)!r}).touch()\nclass Module: ...\n")
    modules = json.loads((folder / "modules.json").read_text())
    modules[-1]["type"] = "evil.Module"
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ValueError, match="trust_remote_code"):
        VideoEncoder(str(folder), device="cpu")
    assert not mark.exists()


# -- addresses in inputs -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoder() -> VideoEncoder:
    return VideoEncoder("vidembed/shapes", device="cpu")


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    """A server on this machine, and what it was asked for. It answers with a picture."""
    asked: list[str] = []
    picture = io.BytesIO()
    Image.new("RGB", (64, 64)).save(picture, "PNG")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(picture.getvalue())

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            return

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}", asked
    httpd.shutdown()
    httpd.server_close()


def message(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "a square"}]}]


INPUTS: dict[str, Any] = {
    "video": lambda url: f"{url}/x.mp4",
    "image": lambda url: f"{url}/x.png",
    "image of a dictionary": lambda url: {"image": f"{url}/x.png"},
    "image with words": lambda url: {"image": f"{url}/x.png", "text": "a square"},
    "video of a message": lambda url: message({"type": "video", "video": f"{url}/x.mp4"}),
    "image of a message": lambda url: message({"type": "image", "image": f"{url}/x.png"}),
    "image by url": lambda url: message({"type": "image", "url": f"{url}/x.png"}),
    "video by url": lambda url: message({"type": "video", "url": f"{url}/x.mp4"}),
}
WORSE: dict[str, Any] = {
    "images in a list": lambda url: {"image": [f"{url}/x.png"], "text": "a square"},
    "as OpenAI writes it": lambda url: message({"type": "image_url", "image_url": {"url": f"{url}/x.png"}}),
    "as OpenAI wrote it": lambda url: message({"type": "image_url", "image_url": f"{url}/x.png"}),
    "a second image": lambda url: message({"type": "image", "image": Image.new("RGB", (8, 8)), "url": f"{url}/x.png"}),
}


@pytest.mark.parametrize("name", [*INPUTS, *WORSE])
@pytest.mark.parametrize("allowed", [False, True])
def test_no_form_of_an_input_fetches_from_where_it_may_not(
    encoder: VideoEncoder, server: tuple[str, list[str]], name: str, allowed: bool
) -> None:
    """Not asked to fetch at all; or to fetch, which is from public addresses."""
    url, asked = server
    encoder.allow_url = allowed
    try:
        with pytest.raises(Exception, match=r".+"):  # whatever it is called
            encoder.encode([(INPUTS | WORSE)[name](url)])
    finally:
        encoder.allow_url = False
        assert asked == []


# -- dependencies ------------------------------------------------------------------------------------------------------

FLOORS = {
    "torch": ("2.6.0", "CVE-2025-32434: torch.load ran code although weights_only was set"),
    "av": ("17.1", "crashes in native code on damaged files, as tests/video found"),
    "pyarrow": ("14.0.1", "CVE-2023-47248: ran code from data files"),
    "python-multipart": ("0.0.27", "CVE-2026-42561, CVE-2026-40347: parsing of forms without bound"),
    "starlette": (
        "1.3.1",
        "CVE-2026-54283, CVE-2025-62727: limits of forms passed by, Range headers of quadratic time",
    ),
    "h11": ("0.16.0", "CVE-2025-43859: request smuggling behind a proxy"),
    "pillow": ("12.3.0", "CVE-2026-55798, CVE-2026-59197 to 59200, CVE-2024-28219"),
    "tqdm": ("4.66.3", "CVE-2024-34062"),
    "filelock": ("3.20.1", "CVE-2025-68146: a lock file through a link"),
}
"""The lowest versions without a known problem that concerns this package, and what the problem is."""


def declared() -> dict[str, Requirement]:
    """The dependencies of the package and of what users install with it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [one for name, extra in project["optional-dependencies"].items() if name != "dev" for one in extra]
    found = map(Requirement, [*project["dependencies"], *extras])
    return {one.name: one for one in found if one.name != "vidembed"}


def floor(requirement: Requirement) -> Version | None:
    found = [Version(one.version) for one in requirement.specifier if one.operator in {">=", "==", "~="}]
    return max(found, default=None)


def test_every_dependency_has_a_lowest_version() -> None:
    found = declared()
    assert len(found) > 10
    assert [name for name, requirement in found.items() if floor(requirement) is None] == []


@pytest.mark.parametrize("name", FLOORS)
def test_no_version_with_a_known_problem_can_be_installed(name: str) -> None:
    lowest, _why = FLOORS[name]
    requirement = declared().get(name)
    assert requirement is not None
    assert (found := floor(requirement)) is not None
    assert found >= Version(lowest)


# -- SECURITY.md -------------------------------------------------------------------------------------------------------

UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def test_limits_in_the_docs_are_those_of_the_code() -> None:
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| [^|]+ \| ([\d,]+)( \w+)? \| `([\w.]+)` \|$", text, re.MULTILINE)
    rows += [(number, "", name) for number, name in re.findall(r"(\d+) redirections \(`([\w.]+)`\)", text)]
    assert len(rows) >= 14
    for number, unit, name in rows:
        stated = int(number.replace(",", "")) * UNITS.get(unit.strip(), 1)
        assert stated == pkgutil.resolve_name(name), name


def test_the_files_that_are_named_are_there() -> None:
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:tests|docs|src)/[\w/.]+)`|\]\(([\w/.]+)", text)
    assert len(named) > 8
    for one, other in named:
        assert (ROOT / (one or other)).exists(), one or other
