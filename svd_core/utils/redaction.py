"""What is taken out of a graph before it goes into a file that is handed on: secrets, and where things lie on a disk.

A secret becomes an empty text, an absolute path its last part; the graph still loads, and says which file was meant.

What it cannot know: a secret under an innocent name that looks like none (a password called "text"), one inside a
picture, or a path in the middle of a prompt, which stays because it is part of what was asked for. ComfyUI's own savers
put graphs into their files by themselves, unredacted.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_SECRET_WORDS = {
    "apikey", "secret", "secrets", "password", "passwords", "passwd", "passphrase", "credential", "credentials",
    "authorization",
}  # fmt: skip
_KEYS = {"api", "access", "private", "secret", "auth", "account"}
"""Words that make a secret of a "key" behind them."""
_NO_SECRET_TOKENS = {
    "activation", "bos", "class", "cls", "concept", "end", "eos", "image", "init", "initial", "initializer", "instance",
    "learned", "mask", "max", "min", "new", "num", "object", "pad", "placeholder", "prompt", "sep", "special", "start",
    "stop", "style", "subject", "text", "trigger", "unique", "unk", "vocab", "word",
}  # fmt: skip
"""Words that make a piece of text, or a number of them, of a "token" behind them."""

_TOKENS = re.compile(
    r"\b(?:sk-[\w-]{16,}|hf_\w{16,}|gh[pousr]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|xox[abprs]-[\w-]{10,}"
    r"|AKIA[0-9A-Z]{16}|AIza[\w-]{30,}|r8_\w{20,}|eyJ[\w-]{10,400}\.[\w-]{10,4000}\.[\w-]*)",
    re.ASCII,
)
"""What the keys of well-known services look like, and signed tokens (RFC 7519)."""
_IN_ADDRESS = re.compile(r"(?<=://)[^\s/@\"'<>]+@")
_IN_QUERY = re.compile(r"(?<=[?&_-])((?:token|key|apikey|secret|password|signature|sig)=)[^&\s\"'<>]+", re.IGNORECASE)
_SAID = re.compile(
    r"((?<![A-Za-z])(?:api[ _-]?key|token|secret|password|passwd|credentials?|authorization)\b[\"']?\s*[:=]\s*)"
    r"(?:(?:bearer|basic)\s+)?(?:\"[^\"\n]*\"|'[^'\n]*'|[^\s,;&\"']+)",
    re.IGNORECASE,
)
"""In a note: "token: abc"."""
_BEARER = re.compile(r"(\bbearer\s+)[\w.~+/=-]{8,}", re.IGNORECASE)

_PATH = re.compile(
    r"^[ \t]*(?:file://)?(?:~[\w.-]*[/\\]|//?[\w.@+-]+/(?![^\n]*(?:/ |, ))|[A-Za-z]:[/\\]|\\\\[^\\/\s]+[\\/])"
    r"[^\n]*$",
    re.MULTILINE,
)
"""A line that is an absolute path, of POSIX, of a home, of Windows or of a share; "/style/ this, that" is none."""
_PATH_INSIDE = re.compile(
    r"(?<![\w/\\.:~<-])(?:file://)?"
    r"(?:~[\w.-]*/|//?(?=[\w.@+-]+/)|[A-Za-z]:[/\\]|\\\\(?=[^\\/\s]+[\\/]))[^\s\"'<>|,;)\]}]*",
)
"""The same in the middle of a text, up to the next space."""

NOTES = ("Note", "MarkdownNote")
FOR_PEOPLE = ("title", "description", "_meta", "properties", "extra", "groups")
"""Keys of a saved graph below which texts are read and do nothing."""
MAX_SOUGHT = 64
"""Secrets that are looked for inside other texts; the longest, if a graph has more."""


def redacted(value: Any) -> Any:
    """A copy of a graph, of either format, or of a list or dict with graphs in it, without secrets and absolute paths.

    A text is a secret under a key that says so (api_key, hf_token, password, ...; not tokenizer, not stop_token), in
    the node that such an input is linked to, where it looks like a key of a well-known service, and in an address. One
    that nobody would write by chance is taken out wherever else it stands, too. In titles, notes and what else is there
    for people, "token: ..." and paths among the words are found; of the values of inputs only those lines that are a
    path from end to end. Numbers, links, names of nodes and relative names are never touched.
    """
    return _Cleaner.of(value).copied(value)


def redacted_text(said: Any, graphs: Any = ()) -> Any:
    """A message, or an object of them, without keys and absolute paths, and without what is secret in `graphs`."""
    return _Cleaner.of([said, graphs]).copied(said, words=True)


@dataclass(frozen=True)
class _Cleaner:
    """What is known of the graphs before they are copied.

    behind  ids of nodes that an input with a secret's name reads from
    sought  secrets that are taken out wherever they stand, the longest first
    """

    behind: frozenset[str]
    sought: tuple[str, ...]

    @classmethod
    def of(cls, value: Any) -> _Cleaner:
        holders = list(_dicts(value))
        behind = frozenset(source for holder in holders for source in _sources_of_secrets(holder))
        found = {text for holder in holders for text in _secrets_in(holder, behind) if _is_unlikely(text)}
        return cls(behind, tuple(sorted(found, key=lambda text: (-len(text), text))[:MAX_SOUGHT]))

    def copied(self, value: Any, words: bool = False, secret: bool = False) -> Any:
        """words: texts are for people. secret: they are secrets."""
        if isinstance(value, str):
            text = self.without_sought(value)
            return "" if secret else _in_words(text) if words else _in_values(text)
        if isinstance(value, Mapping):
            return self.copied_object(value, words, secret)
        if isinstance(value, (list, tuple)):
            return list(value) if _is_link(value) else [self.copied(each, words, secret) for each in value]
        return value

    def copied_object(self, value: Mapping[Any, Any], words: bool, secret: bool) -> dict[Any, Any]:
        """The same for an object: a node, its inputs, a graph, or what else there is."""
        copy = {}
        is_node = "class_type" in value or "type" in value
        for name, each in value.items():
            words = words and name != "groupNodes"  # which run, though they lie below "extra"
            hides = secret or (isinstance(name, str) and is_secret_name(name))
            if isinstance(each, Mapping) and name in self.behind and "class_type" in each:
                copy[name] = {
                    **self.copied(each, words, secret),
                    "inputs": self.copied(each.get("inputs"), words, True),
                }
            elif name == "inputs" and is_node and isinstance(each, Mapping):
                copy[name] = {
                    key: self.copied(one, words, hides or is_secret_name(str(key))) for key, one in each.items()
                }
            elif name == "widgets_values" and isinstance(each, list):
                hidden = _hidden_widgets(value) if str(value.get("id")) not in self.behind else range(len(each))
                for_people = words or value.get("type") in NOTES
                copy[name] = [self.copied(one, for_people, hides or at in hidden) for at, one in enumerate(each)]
            else:
                key = _in_words(self.without_sought(name)) if words and isinstance(name, str) else name
                copy[key] = self.copied(each, words or name in FOR_PEOPLE, hides)
        return copy

    def without_sought(self, text: str) -> str:
        for secret in self.sought:
            text = text.replace(secret, "")
        return text


def _is_unlikely(text: str) -> bool:
    """Whether nobody would write this by chance, as a name or a choice: long, and with signs of several kinds."""
    kinds = (str.islower, str.isupper, str.isdigit, lambda sign: not sign.isalnum())
    count = sum(any(map(kind, text)) for kind in kinds)
    return len(text) >= 8 and (count > 2 or (count > 1 and len(text) >= 16 and any(map(str.isdigit, text))))


def is_secret_name(name: str) -> bool:
    """Whether a value called so is a secret, by the words in the name."""
    words = [word.lower() for word in _WORDS.findall(name)]
    pairs = zip(["", *words], words, strict=False)
    return any(
        word in _SECRET_WORDS
        or (word == "key" and before in _KEYS)
        or (word == "token" and before not in _NO_SECRET_TOKENS and _ends_there(words, place))
        for place, (before, word) in enumerate(pairs)
    )


def _ends_there(words: list[str], place: int) -> bool:
    """A token is one when it is the noun: hf_token, auth_token_comfy_org, but not token_normalization."""
    return place == len(words) - 1 or (place > 0 and words[place - 1] in {"auth", "api", "access", "bearer"})


def _sources_of_secrets(holder: Mapping[Any, Any]) -> Iterator[str]:
    """The ids of nodes that inputs with a secret's name read from, in a node of API format or a graph of UI format."""
    inputs = holder.get("inputs")
    if isinstance(inputs, Mapping):
        named = ((name, each) for name, each in inputs.items() if isinstance(name, str) and is_secret_name(name))
        yield from (each[0] for _, each in named if _is_link(each))
    nodes, links = holder.get("nodes"), holder.get("links")
    if isinstance(nodes, list) and isinstance(links, list):
        slots = (slot for node in nodes if isinstance(node, Mapping) for slot in _slots(node))
        wanted = {str(slot.get("link")) for slot in slots if is_secret_name(str(slot.get("name")))}
        for link in links:
            if isinstance(link, list) and len(link) > 1 and str(link[0]) in wanted:
                yield str(link[1])
            elif isinstance(link, Mapping) and str(link.get("id")) in wanted:
                yield str(link.get("origin_id"))


def _slots(node: Mapping[Any, Any]) -> list[Mapping[Any, Any]]:
    slots = node.get("inputs")
    return [slot for slot in slots if isinstance(slot, Mapping)] if isinstance(slots, list) else []


def _hidden_widgets(node: Mapping[Any, Any]) -> list[int]:
    """Of a box in UI format, the positions of widgets whose socket has a secret's name."""
    named = [slot.get("name") for slot in _slots(node) if "widget" in slot]
    values = node.get("widgets_values")
    if not isinstance(values, list) or len(named) != len(values):  # else there are some that nobody names
        return []
    return [place for place, name in enumerate(named) if is_secret_name(str(name))]


def _secrets_in(holder: Mapping[Any, Any], behind: Collection[str]) -> Iterator[str]:
    """The texts of an object that are secrets by their names."""
    for name, each in holder.items():
        if isinstance(name, str) and is_secret_name(name):
            yield from _texts(each)
        if name in behind and isinstance(each, Mapping) and "class_type" in each:
            yield from _texts(each.get("inputs"))
    values = holder.get("widgets_values")
    if isinstance(values, list):
        hidden = range(len(values)) if str(holder.get("id")) in behind else _hidden_widgets(holder)
        yield from (text for place in hidden for text in _texts(values[place]))


def _in_values(text: str) -> str:
    """Whole paths, and what is a secret by its looks: a prompt may say "a token: gold"."""
    return _PATH.sub(lambda found: _last_part(found[0]), _without_keys(text))


def _in_words(text: str) -> str:
    text = _SAID.sub(r"\1", _BEARER.sub(r"\1", _without_keys(text)))
    return _PATH_INSIDE.sub(lambda found: _last_part(found[0]), text)


def _without_keys(text: str) -> str:
    text = _TOKENS.sub("", text)
    if "://" in text:
        text = _IN_QUERY.sub(r"\1", _IN_ADDRESS.sub("", text))
    return text


def _last_part(path: str) -> str:
    return re.split(r"[/\\]", path.rstrip().rstrip("/\\"))[-1]


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, (list, tuple)) and not _is_link(value):
        for each in value:
            yield from _texts(each)


def _dicts(value: Any) -> Iterator[Mapping[str, Any]]:
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, Mapping):
            yield part
            waiting.extend(part.values())
        elif isinstance(part, (list, tuple)):
            waiting.extend(part)


def _is_link(value: Any) -> bool:
    """Whether a value comes from another node: [its id, slot]."""
    shaped = isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int)
    return shaped and not {"/", "\\"} & set(value[0])
