"""Count the words that are no identifiers in this project: `python -m tests.vocabulary`."""

import ast
import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parent.parent
NEVER = {"told", "said", "asked", "one", "here", "there", "gone", "look", "hold"}  # as whole names
NEVER_A_PART = {"told", "said", "asked"}  # of a name in snake_case or CamelCase
_PART = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


def names_in(source: str) -> Counter[str]:
    """Count every identifier that a module defines or uses."""
    names = Counter[str]()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name):
                names[name] += 1
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                names[name] += 1
            case ast.ClassDef(name=name) | ast.keyword(arg=str(name)):
                names[name] += 1
            case ast.alias(name=name, asname=alias):
                names[alias or name.rpartition(".")[2]] += 1
            case ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                names[name] += 1
    return names


def banned_in(source: str) -> Counter[str]:
    """Count the banned words among the identifiers of a module."""
    found = Counter[str]()
    for name, times in names_in(source).items():
        parts = {part.lower() for part in _PART.findall(name)}
        for word in sorted(NEVER):
            if name.strip("_").lower() == word or (word in NEVER_A_PART and word in parts):
                found[word] += times
    return found


def count(folder: str) -> Counter[str]:
    """Count the banned words in all modules of a folder of the project."""
    files = sorted((ROOT / folder).rglob("*.py"))
    return sum((banned_in(file.read_text()) for file in files), Counter[str]())


if __name__ == "__main__":
    source, tests = count("serve_app"), count("tests")
    print(f"{'word':<8}{'serve_app':>10}{'tests':>8}")
    for banned in sorted(NEVER):
        print(f"{banned:<8}{source[banned]:>10}{tests[banned]:>8}")
    print(f"{'total':<8}{source.total():>10}{tests.total():>8}")
