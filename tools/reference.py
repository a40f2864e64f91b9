"""Generate the documentation's reference pages from the code: commands, recipes, spaces, methods. A hook of MkDocs.

    mkdocs build            (mkdocs.yml names this file; the generated pages are not stored)

The bounds of a field are taken from its error message: each field is given an invalid value, and the message is shown.
So the pages cannot differ from what is checked.
"""

from __future__ import annotations

import ast
import inspect
import io
import re
import tokenize
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, fields
from functools import partial
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

import typer
import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from typer.models import ArgumentInfo, OptionInfo

import cst_search
from cst_search.cli import app
from cst_search.config import catalog
from cst_search.config.loading import recipe_json_schema
from cst_search.config.recipe import Recipe
from cst_search.config.search_space import Space
from cst_search.errors import ConfigError
from cst_search.petl import METHODS

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "examples/first-search.ipynb"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages to the files of MkDocs (hook)."""
    for uri, content in pages().items():
        files.append(File.generated(config, uri, content=content))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Return the text of a page for MkDocs (hook), with links to files outside docs/ rewritten."""
    return markdown.replace("](../deploy/README.md", "](deploy.md").replace("](../examples/", "](")


def pages() -> dict[str, str]:
    """Return the Markdown of every generated page by its path within docs/."""
    return {
        "index.md": at_home((ROOT / "README.md").read_text(encoding="utf-8"), ""),
        "changelog.md": (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"),
        "deploy.md": at_home((ROOT / "deploy/README.md").read_text(encoding="utf-8"), "../"),
        "reference/commands.md": commands_page(),
        "reference/recipe.md": recipe_page(),
        "reference/space.md": space_page(),
        "reference/methods.md": methods_page(),
        "reference/python.md": python_page(),
        NOTEBOOK.name: NOTEBOOK.read_text(encoding="utf-8"),
    }


def at_home(text: str, up: str) -> str:
    """Rewrite the links of a text from elsewhere in the checkout for its place within docs/."""
    text = re.sub(r"^```(\w+) \w+$", r"```\1", text, flags=re.M)  # names of blocks, which a test of deploy/ reads
    return text.replace(f"]({up}docs/", "](").replace("](examples/", "](").replace("](deploy/README.md", "](deploy.md")


# --- tables -----------------------------------------------------------------------------------------------------------


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def shown(value: Any) -> str:
    """Format a default as in YAML."""
    plain = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(plain, default_flow_style=True).strip().removesuffix("...").strip()
    return f"`{text}`"


# --- commands ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parameter:
    """An argument or option of a command, as declared by its function."""

    name: str
    kind: type[Any]
    info: ArgumentInfo | OptionInfo
    default: Any  # inspect.Parameter.empty: must be given

    @property
    def is_option(self) -> bool:
        return isinstance(self.info, OptionInfo)

    @property
    def flags(self) -> list[str]:
        """Return the flags, e.g. ``["--output", "-o"]`` or ``["--stop-early", "--no-stop-early"]``."""
        declared = [self.info.default, *(self.info.param_decls or ())]  # typer stores the first one as the default
        return [flag for declaration in declared for flag in str(declaration).split("/") if flag.startswith("-")]

    @property
    def metavar(self) -> str:
        word = self.info.metavar or self.name.rstrip("_").upper()
        return f"{word}..." if get_origin(self.kind) is list and "..." not in word else word

    @property
    def usage(self) -> str:
        return self.metavar if self.default is inspect.Parameter.empty else f"[{self.metavar}]"

    def value(self) -> str:
        words = {bool: "", int: "whole number", float: "number", str: "text", Path: "path"}
        word = words[(get_args(self.kind) or (self.kind,))[0]]
        if self.info.max is not None:
            return f"{word} from {self.info.min} to {self.info.max}"
        word += "" if self.info.min is None else f" from {self.info.min} on"
        return word + (", repeatable" if get_origin(self.kind) is list else "")

    def default_in_words(self) -> str:
        """Return the default as the help text states it, else its value."""
        said = self._said()
        if said is not None:
            return said[1]
        if self.default is inspect.Parameter.empty:
            return "required"
        if self.default is None or (self.kind is bool and len(self.flags) == 1):
            return ""
        return f"`{self.flags[0 if self.default else 1] if self.kind is bool else self.default}`"

    def meaning(self) -> str:
        said, text = self._said(), self.info.help or ""
        return text if said is None else re.sub(r" +\.?$", "", text.replace(said[0], "")).rstrip(".") + "."

    def _said(self) -> re.Match[str] | None:
        return re.search(r"\(default: ([^)]*)\)", self.info.help or "")


def commands() -> Iterator[tuple[str, Callable[..., Any], list[Parameter]]]:
    """Yield (name, function, parameters) of every command, e.g. "job stop", in the order of `--help`."""

    def walk(group: typer.Typer, before: str) -> Iterator[tuple[str, Callable[..., Any], list[Parameter]]]:
        for command in group.registered_commands:
            function = command.callback
            if function is None or command.hidden:
                continue
            hints = get_type_hints(function, include_extras=True)
            parameters = []
            for name, parameter in inspect.signature(function).parameters.items():
                kind, info = get_args(hints[name])
                kind = next((k for k in get_args(kind) if k is not NoneType), kind) if _optional(kind) else kind
                parameters.append(Parameter(name, kind, info, parameter.default))
            yield before + (command.name or function.__name__.replace("_", "-")), function, parameters
        for inner in group.registered_groups:
            if inner.typer_instance is not None:
                yield from walk(inner.typer_instance, f"{before}{inner.name} ")

    return walk(app, "")


def _optional(kind: Any) -> bool:
    return NoneType in get_args(kind)


def commands_page() -> str:
    parts = ["# Every command\n\nMade from the program itself; `cst-search COMMAND --help` shows the same.\n"]
    for name, function, parameters in commands():
        arguments = [p for p in parameters if not p.is_option]
        options = [p for p in parameters if p.is_option]
        words = ["cst-search", name, *("[OPTIONS]" for _ in options[:1]), *(p.usage for p in arguments)]
        parts.append(f"## {name}\n\n{inspect.cleandoc(function.__doc__ or '')}\n\n    {' '.join(words)}\n")
        if arguments:
            rows = [(f"`{p.metavar}`", p.default_in_words(), p.meaning()) for p in arguments]
            parts.append(table(("argument", "default", "meaning"), rows))
        if options:
            rows = [
                (", ".join(f"`{flag}`" for flag in p.flags), p.value(), p.default_in_words(), p.meaning())
                for p in options
            ]
            parts.append(table(("option", "value", "default", "meaning"), rows))
    return "\n".join(parts)


# --- recipes, spaces, methods -----------------------------------------------------------------------------------------


def rule_of(make: Callable[..., Any], name: str, default: Any) -> str:
    """Return the rule for a field, from the error message for an invalid value."""
    if isinstance(default, bool):
        return ""
    wrong: Any = "" if isinstance(default, str) else () if isinstance(default, tuple) else -(10**9) - 1
    try:
        make(**{name: wrong})
    except ConfigError as error:
        return "; ".join(re.findall(rf"\b{name} must be (.*?); got ", str(error)))
    return ""


def field_comments(owner: type[Any]) -> dict[str, str]:
    """Return the comment of each field of a dataclass: at the end of its line, or on the lines before it."""
    source = inspect.getsource(owner)
    comments = {
        token.start[0]: (token.start[1], token.string.lstrip("# "))
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    found = {}
    for node in ast.parse(source).body[0].body:  # type: ignore[attr-defined]
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        if node.end_lineno in comments:
            found[node.target.id] = comments[node.end_lineno][1]
            continue
        line, above = node.lineno - 1, []
        while line in comments and comments[line][0] == node.col_offset:
            above.insert(0, comments[line][1])
            line -= 1
        found[node.target.id] = " ".join(above)
    return found


def attribute_docs(owner: type[Any]) -> dict[str, str]:
    """Return the `Attributes:` of a docstring by name."""
    text = inspect.cleandoc(owner.__doc__ or "").partition("Attributes:")[2]
    text = inspect.cleandoc(text.lstrip("\n"))
    entries = re.split(r"^(\w+(?:, \w+)*): ", text, flags=re.M)[1:]
    return {
        name: " ".join(words.replace("``", "`").split())
        for names, words in zip(entries[::2], entries[1::2], strict=True)
        for name in names.split(", ")
    }


def _type_in_words(schema: dict[str, Any]) -> str:
    words = {"string": "text", "number": "number", "integer": "whole number", "boolean": "true or false",
             "object": "mapping", "null": "none", "array": "list"}  # fmt: skip
    kinds = [schema] if "type" in schema else schema.get("anyOf", [])
    return " or ".join(words[kind["type"]] for kind in kinds)


def default_of(field: Any) -> Any:
    return field.default_factory() if field.default is MISSING else field.default


def recipe_page() -> str:
    schema, comments = recipe_json_schema()["properties"], field_comments(Recipe)
    rows = [
        (
            f"`{f.name}`",
            _type_in_words(schema[f.name]),
            shown(default_of(f)),
            rule_of(partial(Recipe, detector="fcos") if f.name != "detector" else Recipe, f.name, default_of(f)),
            comments[f.name],
        )
        for f in fields(Recipe)
    ]
    parts = [
        "# Every field of a recipe\n",
        "A recipe holds fixed what a search must not change. `cst-search cp NAME` copies a shipped one to change it, "
        "`--set name=value` changes a field on the command line. Made from the code.\n",
        table(("field", "type", "default", "must be", "meaning"), rows),
        "`options` are those of the method: [every method](methods.md).\n",
        "## Shipped recipes\n",
    ]
    return "\n".join(parts) + _shipped("trials")


def _shipped(kind: catalog.Kind) -> str:
    parts = []
    for name in catalog.names(kind):
        text = catalog.shipped(kind, name).read_text(encoding="utf-8")
        parts.append(f"\n### {name}\n\n```yaml\n{text}```\n")
    return "".join(parts)


def may_vary(name: str) -> bool:
    """Return True if a field of the recipe may be a dimension of a search space."""
    try:
        Space.from_dict({"methods": ["head"], "shared": {name: {"choice": [1, 2]}}})
    except ConfigError:
        return False
    return True


def space_page() -> str:
    varying = ", ".join(f"`{f.name}`" for f in fields(Recipe) if may_vary(f.name))
    rows = [
        ("`methods`", "list of names", "required", "one is drawn first"),
        ("`shared`", "dimensions", "none", "of every method: fields of the recipe"),
        (
            "a method's name",
            "dimensions",
            "none",
            "exist only when it is drawn; they replace shared ones",
        ),
    ]
    kinds = [
        ("`{choice: [a, b, ...]}`", "one of the values, all different; a value may be a list"),
        ("`{float: [low, high]}`", "a number from low to high"),
        ("`{int: [low, high]}`", "a whole number from low to high"),
        ("`{float: [low, high], log: true}`", "likewise, evenly over the logarithm; low above 0; also for `int`"),
    ]
    parts = [
        "# Every field of a search space\n",
        "A space says what may vary. `cst-search cp NAME` copies a shipped one to change it. Made from the code.\n",
        table(("key", "holds", "default", "meaning"), rows),
        "## A dimension\n",
        table(("written", "means"), kinds),
        f"Fields of [the recipe](recipe.md) that may vary: {varying}. Besides them a method's section may have the "
        "options of [that method](methods.md).\n",
        "## Shipped spaces\n",
    ]
    return "\n".join(parts) + _shipped("search_spaces")


def methods_page() -> str:
    parts = [
        "# Every method and its options\n",
        "In a recipe under `method` and `options`, on the command line `--set method=NAME --set NAME.option=value`, in "
        "a space a section of its name. What they are, and how they compare: [methods](../methods.md). Made from the "
        "code.\n",
    ]
    for name, method in METHODS.items():
        docs = attribute_docs(method.options)
        parts.append(
            f"## {name}\n\nLearning rate, where the recipe has none: {method.lr:g}. Source: {method.source}.\n"
        )
        rows = [
            (f"`{f.name}`", shown(default_of(f)), rule_of(method.options, f.name, default_of(f)), docs[f.name])
            for f in fields(method.options)
        ]
        parts.append(table(("option", "default", "must be", "meaning"), rows) if rows else "No options.\n")
    return "\n".join(parts)


# --- Python -----------------------------------------------------------------------------------------------------------


def python_page() -> str:
    parts = [
        "# Every function of the Python API\n\nHow to use them: [from Python](../python.md). Made from the code.\n"
    ]
    for name in cst_search.__all__:
        if inspect.isclass(value := getattr(cst_search, name)):
            parts.append(f"## {name}\n\n{docstring(value)}")
            members = [(n, m) for n, m in vars(value).items() if not n.startswith("_")]
            for inner, member in members:
                what = inspect.unwrap(member.fget) if isinstance(member, property) else member
                sign = "" if isinstance(member, property) else signature(what)
                parts.append(f"### {name}.{inner}\n\n```python\n{name}.{inner}{sign}\n```\n\n{docstring(what)}")
        elif callable(value):
            parts.append(f"## {name}\n\n```python\ncst_search.{name}{signature(value)}\n```\n\n{docstring(value)}")
    return "\n".join(parts)


def signature(function: Callable[..., Any]) -> str:
    """Format a signature: ``(budget_mem: str | None = None, *, ...)``, with a line per argument if there are many."""
    whole = inspect.signature(function)
    words, starred = [], False
    for parameter in whole.parameters.values():
        if parameter.name == "self":
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            words.append("*")
            starred = True
        default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
        words.append(f"{parameter.name}: {parameter.annotation}{default}")
    inside = ", ".join(words) if len(words) < 4 else "\n" + "".join(f"    {word},\n" for word in words)
    return f"({inside}) -> {whole.return_annotation}"


def docstring(of: Any) -> str:
    """Convert a docstring to Markdown: sections become lists, examples become code blocks."""
    lines, inside, example = [], False, False
    for line in inspect.cleandoc(of.__doc__ or "").replace("``", "`").splitlines():
        if example or line.startswith(">>>"):
            lines += [line] if example else ["```pycon", line]
            example = True
        elif line in ("Args:", "Attributes:", "Raises:", "Returns:"):
            inside = True
            lines += ["", f"**{line.removesuffix(':')}**", ""]
        elif inside and re.match(r" {4}\w+(, \w+)*: ", line):
            name, _, rest = line.strip().partition(": ")
            lines.append(f"* `{name}`: {rest}")
        else:
            inside = inside and bool(line)
            lines.append(line.strip() if inside else line)
    return "\n".join([*lines, "```"] if example else lines) + "\n"
