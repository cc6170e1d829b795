"""The entries of a file of conversations, questions or answers, each with its line: JSONL, JSON or YAML."""

from collections import Counter
from pathlib import Path
from typing import Any

from em_interp.files import NotReadJSON, decode_json, line_of, lone_surrogate, parse_json, read_text

_MOST_VALUES = 1_000_000
_BLANKS = " \t\n"


class Unquoted(str):
    """What YAML would read as a number, a date, or yes or no, as it was written."""


def read_records(path: Path) -> list[tuple[int, Any]]:
    """Each entry of a file with the number of the line where it begins.

    The file is JSONL, one JSON array or object, or YAML (by its suffix). Blank lines are passed over, and lines end
    with LF, CR or CRLF. JSON is read strictly, as `parse_json` does. YAML gives words, lists, mappings and None; what
    it would read as something else is `Unquoted`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: what cannot be read, with file and line.
    """
    # Not splitlines(), which also breaks at the line separators that JSON leaves as they are within its strings.
    text = read_text(path).replace("\r\n", "\n").replace("\r", "\n")
    suffix = path.suffix.lower()
    if suffix in (".yaml", ".yml"):
        return _yaml(text, path.name)
    if suffix in (".csv", ".tsv"):
        raise ValueError(f"{path.name} is a table, and JSONL, JSON or YAML is read here: load_judged reads CSV")
    start = len(text) - len(text.lstrip())
    if text.startswith("[", start):
        return _array(text, start, path.name)
    if suffix == ".json" and text[start:] and not _is_json(text[start:].partition("\n")[0]):
        return [(line_of(text, start), _parsed(text[start:], path.name, line_of(text, start)))]
    lines = enumerate(text.split("\n"), 1)
    return [(number, _parsed(line, path.name, number)) for number, line in lines if line.strip()]


def _parsed(text: str, name: str, line: int) -> Any:
    try:
        return parse_json(text)
    except NotReadJSON as error:
        raise ValueError(f"{name}, line {line - 1 + line_of(text, error.at)}: {error}") from error


def _is_json(text: str) -> bool:
    try:
        parse_json(text)
    except NotReadJSON:
        return False
    return True


def _array(text: str, start: int, name: str) -> list[tuple[int, Any]]:
    """The items of an array, each with its line, which one call of a JSON reader would not tell."""
    rows: list[tuple[int, Any]] = []
    line, at = line_of(text, start), start

    def go_on(stop: int) -> str:
        nonlocal line, at
        while text[stop : stop + 1] and text[stop] in _BLANKS:
            stop += 1
        line, at = line + text.count("\n", at, stop), stop
        return text[at : at + 1]

    try:
        last = go_on(start + 1)
        while last != "]":
            value, end = decode_json(text, at)
            rows.append((line, value))
            last = go_on(end)
            if last not in (",", "]"):
                raise NotReadJSON("not JSON: an item of the array is followed by neither a comma nor ]", at)
            if last == "," and go_on(at + 1) == "]":
                raise NotReadJSON("not JSON: a comma stands before the end", at)
        if go_on(at + 1):
            raise NotReadJSON("not JSON: more text follows the end of the array", at)
    except NotReadJSON as error:
        raise ValueError(f"{name}, line {line_of(text, error.at)}: {error}") from error
    return rows


def _yaml(text: str, name: str) -> list[tuple[int, Any]]:
    import yaml

    try:
        loader = _yaml_loader()(text)
        root = loader.get_single_node()
        if root is None:
            return []
        _count(root, {})
        nodes = root.value if isinstance(root, yaml.SequenceNode) else [root]
        return [(node.start_mark.line + 1, loader.construct_document(node)) for node in nodes]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}" if mark else ""
        raise ValueError(f"{name}{where}: not YAML as it is read here: {error.problem or error.context}") from error
    except yaml.reader.ReaderError as error:
        raise ValueError(f"{name}, line {line_of(text, error.position)}: not YAML: {error.reason}") from error
    except RecursionError as error:
        raise ValueError(f"{name}, line 1: the YAML is nested too deeply") from error


def _yaml_loader() -> Any:
    """PyYAML's safe loader, but for numbers, dates, yes and no, which stay as written, and bytes and sets, refused."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    def unquoted(_: Any, node: Any) -> Unquoted:
        return Unquoted(node.value)

    def words(_: Any, node: Any) -> str:
        # Two escapes that are the halves of one character, as JSON writes it, are that character.
        value = node.value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
        if found := lone_surrogate(value):
            problem = f"a text holds {found}, which no tokenizer takes: repair the text"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        return value

    tag, safe = "tag:yaml.org,2002:", yaml.SafeLoader.yaml_constructors
    Loader.yaml_constructors = {
        **{key: safe[key] for key in (tag + "map", tag + "seq", tag + "null", None)},
        **{tag + kind: unquoted for kind in ("bool", "int", "float", "timestamp")},
        tag + "str": words,
    }
    return Loader


def _count(node: Any, known: dict[int, int]) -> int:
    """How many values a node stands for with its aliases written out; refuses bombs, cycles and double keys."""
    import yaml

    def refuse(problem: str) -> None:
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)

    if id(node) in known:
        if known[id(node)] == 0:
            refuse("an anchor holds itself")
        return known[id(node)]
    known[id(node)] = 0
    inner = node.value if isinstance(node, yaml.SequenceNode) else []
    if isinstance(node, yaml.MappingNode):
        inner = [part for pair in node.value for part in pair]
        keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        if keys.total() < len(node.value):
            refuse("a key is a list or a mapping, and should be a word")
        if len(keys) < len(node.value):
            refuse(f"the key {keys.most_common(1)[0][0]!r} is there twice in one mapping")
    known[id(node)] = 1 + sum(_count(part, known) for part in inner)
    if known[id(node)] > _MOST_VALUES:
        refuse(f"with its aliases written out it has more than {_MOST_VALUES:,} values")
    return known[id(node)]
