"""What mkdocs.yml cannot say: pages from the repository's root, and a page of the API for each room of the package."""

from __future__ import annotations

import ast
import json
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

sys.path.append(str(Path(__file__).parent))
from architecture import ORDER, modules, room

import morphogen

ROOT = Path(__file__).parents[1]
# Files outside docs/ that are pages too.
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/NOTES.md": "notes.md",
    "examples/first-hour.ipynb": "first-hour.md",
}
PUBLIC_NAMES: dict[str, str] = morphogen._WHERE  # what `import morphogen` gives, and the module of each
OPTIONS = "{show_root_heading: false, show_root_toc_entry: false}"  # of a module: its own heading is ours
PUBLIC = """\
# The public interface

The other pages are the inside, room by room, for those who build on it. An arrow points to what a room imports:

![The rooms of the package](../images/architecture.svg)

What `import morphogen` gives:

"""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the pages of the API into the navigation."""
    assert config.nav is not None
    (reference,) = (entry["Reference"] for entry in config.nav if "Reference" in entry)
    reference.append({"Python": ["api/index.md", *({name: f"api/{name}.md"} for name in ORDER)]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that do not lie in docs/."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        text = from_notebook(text) if source.endswith(".ipynb") else text
        files.append(File.generated(config, page, content=relinked(text, Path(source).parent)))
    files.append(File.generated(config, "CITATION.cff", abs_src_path=str(ROOT / "CITATION.cff")))
    public = [f"- [`morphogen.{name}`][{where}.{name}]: {summary(where, name)}" for name, where in PUBLIC_NAMES.items()]
    files.append(File.generated(config, "api/index.md", content="\n".join([PUBLIC, *public, ""])))
    for name, what in ORDER.items():
        inside = [module for module in modules() if room(module) == name]
        text = [f"# {name}\n"]
        if len(inside) > 1:  # the package itself, which has nothing but its docstring
            text.append(f"{what[0].upper()}{what[1:]}.\n")
            inside.remove(f"morphogen.{name}")
        text += [
            f"## {module.removeprefix('morphogen.')}\n\n::: {module}\n    options: {OPTIONS}\n" for module in inside
        ]
        files.append(File.generated(config, f"api/{name}.md", content="\n".join(text)))
    return files


def summary(module: str, name: str) -> str:
    """The first line of what a class or a function says of itself."""
    for node in ast.parse(modules()[module].read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return (ast.get_docstring(node) or "").partition("\n")[0]
    raise ValueError(f"{module} has no {name}")


def from_notebook(text: str) -> str:
    """A notebook as Markdown."""
    cells = json.loads(text)["cells"]
    sources = [(cell["cell_type"], "".join(cell["source"])) for cell in cells]
    return "\n\n".join(f"```python\n{source}\n```" if kind == "code" else source for kind, source in sources) + "\n"


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point links out of docs/ to the pages that are made of those files."""
    return relinked(markdown, Path("docs")) if page.file.generated_by is None else markdown


def relinked(markdown: str, folder: Path) -> str:
    """Links of a file in a folder of the repository, as links between the pages of the site."""

    def target(match: re.Match[str]) -> str:
        path, anchor = match[1], match[2] or ""
        if ":" in path or not path:
            return match[0]
        parts: list[str] = []
        for part in (folder / path).parts:
            if part == "..":
                parts.pop()
            else:
                parts.append(part)
        whole = "/".join(parts)
        return f"]({PAGES.get(whole, whole.removeprefix('docs/'))}{anchor})"

    return re.sub(r"\]\(([^)#\s]*)(#[^)\s]*)?\)", target, markdown)
