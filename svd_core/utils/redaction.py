"""Remove secrets and absolute paths from graphs and messages before they are saved to files that users share.

A secret becomes an empty string, an absolute path its last part. The graph still loads and names the file.

Not detected: a secret under an ordinary name that looks like ordinary text (a password in "text"), a secret inside an
image, and a path within a prompt. ComfyUI's own save nodes embed graphs without redaction.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_SECRET_WORDS = {
    "apikey", "secret", "secrets", "password", "passwords", "passwd", "passphrase", "credential", "credentials",
    "authorization",
}  # fmt: skip
_KEYS = {"api", "access", "private", "secret", "auth", "account"}
"""Words before "key" that make it a secret."""
_TEXT_TOKENS = {
    "activation", "bos", "class", "cls", "concept", "end", "eos", "image", "init", "initial", "initializer", "instance",
    "learned", "mask", "max", "min", "new", "num", "object", "pad", "placeholder", "prompt", "sep", "special", "start",
    "stop", "style", "subject", "text", "trigger", "unique", "unk", "vocab", "word",
}  # fmt: skip
"""Words before "token" that make it a piece of text or a count."""

_TOKENS = re.compile(
    r"\b(?:sk-[\w-]{16,}|hf_\w{16,}|gh[pousr]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|xox[abprs]-[\w-]{10,}"
    r"|AKIA[0-9A-Z]{16}|AIza[\w-]{30,}|r8_\w{20,}|eyJ[\w-]{10,400}\.[\w-]{10,4000}\.[\w-]*)",
    re.ASCII,
)
"""Keys of well-known services, and JSON web tokens (RFC 7519)."""
_IN_ADDRESS = re.compile(r"(?<=://)[^\s/@\"'<>]+@")
_IN_QUERY = re.compile(r"(?<=[?&_-])((?:token|key|apikey|secret|password|signature|sig)=)[^&\s\"'<>]+", re.IGNORECASE)
_ASSIGNMENT = re.compile(
    r"((?<![A-Za-z])(?:api[ _-]?key|token|secret|password|passwd|credentials?|authorization)\b[\"']?\s*[:=]\s*)"
    r"(?:(?:bearer|basic)\s+)?(?:\"[^\"\n]*\"|'[^'\n]*'|[^\s,;&\"']+)",
    re.IGNORECASE,
)
"""A secret in prose: "token: abc"."""
_BEARER = re.compile(r"(\bbearer\s+)[\w.~+/=-]{8,}", re.IGNORECASE)

_PATH = re.compile(
    r"^[ \t]*(?:file://)?(?:~[\w.-]*[/\\]|//?[\w.@+-]+/(?![^\n]*(?:/ |, ))|[A-Za-z]:[/\\]|\\\\[^\\/\s]+[\\/])"
    r"[^\n]*$",
    re.MULTILINE,
)
"""A line that is an absolute path of POSIX, Windows, a home folder or a share. "/style/ this, that" does not match."""
_PATH_IN_PROSE = re.compile(
    r"(?<![\w/\\.:~<-])(?:file://)?"
    r"(?:~[\w.-]*/|//?(?=[\w.@+-]+/)|[A-Za-z]:[/\\]|\\\\(?=[^\\/\s]+[\\/]))[^\s\"'<>|,;)\]}]*",
)
"""An absolute path in the middle of a text, up to the next space."""

NOTE_TYPES = ("Note", "MarkdownNote")
PROSE_KEYS = ("title", "description", "_meta", "properties", "extra", "groups")
"""Keys of a saved graph whose texts are for the reader and have no effect."""
MAX_SECRETS = 64
"""Secrets that are searched for inside other texts: the longest ones."""


def redacted(value: Any) -> Any:
    """Return a copy of a graph in either format, or of lists and dicts of graphs, without secrets and absolute paths.

    - A text is a secret if its key names one (api_key, hf_token, password, ...; not tokenizer or stop_token), if its
      node is linked to such an input, if it looks like a key of a well-known service, or if it is in an address.
    - A secret that is unlikely to be an ordinary word is also removed from all other texts.
    - In titles, notes and other prose, "token: ..." and paths between words are removed. In the values of inputs only
      lines that are a path from end to end.
    - Numbers, links, node names and relative names are kept.
    """
    return _redact(value, value)


def redacted_text(message: Any, graphs: Any = ()) -> Any:
    """Return a message, or an object of messages, without keys, absolute paths and the secrets of `graphs`."""
    return _redact(message, [message, graphs], prose=True)


def _redact(value: Any, secret_sources: Any, prose: bool = False) -> Any:
    """Copy `value` without the secrets that `secret_sources` contains."""
    linked = frozenset(node_id for obj in _objects(secret_sources) for node_id in _linked_to_secrets(obj))
    finder = _Redactor(linked, lambda text, _: text)
    finder.copy(secret_sources)
    secrets = sorted(filter(_is_unlikely, finder.secrets), key=lambda text: (-len(text), text))[:MAX_SECRETS]

    def clean(text: str, prose: bool) -> str:
        for secret in secrets:
            text = text.replace(secret, "")
        return _clean_prose(text) if prose else _clean_value(text)

    return _Redactor(linked, clean).copy(value, prose)


@dataclass(frozen=True)
class _Redactor:
    """Copies graphs and blanks their secrets.

    Attributes:
        linked: Ids of nodes that an input with a secret's name is linked to.
        clean: Called with each other text, and True if it is prose. Returns the text to keep.
        secrets: The texts that were blanked.
    """

    linked: frozenset[str]
    clean: Callable[[str, bool], str]
    secrets: set[str] = field(default_factory=set)

    def copy(self, value: Any, prose: bool = False, secret: bool = False) -> Any:
        """Copy any JSON value.

        Args:
            value: The value.
            prose: Its texts are for the reader.
            secret: Its texts are secrets.
        """
        if isinstance(value, str):
            if not secret:
                return self.clean(value, prose)
            self.secrets.add(value)
            return ""
        if isinstance(value, Mapping):
            return self._copy_object(value, prose, secret)
        if isinstance(value, (list, tuple)):
            return list(value) if _is_link(value) else [self.copy(each, prose, secret) for each in value]
        return value

    def _copy_object(self, value: Mapping[Any, Any], prose: bool, secret: bool) -> dict[Any, Any]:
        """Copy a node, its inputs, a graph, or any other object."""
        copy = {}
        is_node = "class_type" in value or "type" in value
        for name, each in value.items():
            prose = prose and name != "groupNodes"  # which run, although they are below "extra"
            hidden = secret or (isinstance(name, str) and is_secret_name(name))
            if isinstance(each, Mapping) and name in self.linked and "class_type" in each:
                copy[name] = {**self.copy(each, prose, secret), "inputs": self.copy(each.get("inputs"), prose, True)}
            elif name == "inputs" and is_node and isinstance(each, Mapping):
                copy[name] = {
                    key: self.copy(item, prose, hidden or is_secret_name(str(key))) for key, item in each.items()
                }
            elif name == "widgets_values" and isinstance(each, list):
                widgets = range(len(each)) if str(value.get("id")) in self.linked else _secret_widgets(value)
                is_prose = prose or value.get("type") in NOTE_TYPES
                copy[name] = [self.copy(item, is_prose, hidden or at in widgets) for at, item in enumerate(each)]
            else:
                key = self.clean(name, True) if prose and isinstance(name, str) else name
                copy[key] = self.copy(each, prose or name in PROSE_KEYS, hidden)
        return copy


def _is_unlikely(text: str) -> bool:
    """Return True if a text is not an ordinary name or choice: long, with characters of several kinds."""
    kinds = (str.islower, str.isupper, str.isdigit, lambda char: not char.isalnum())
    count = sum(any(map(kind, text)) for kind in kinds)
    return len(text) >= 8 and (count > 2 or (count > 1 and len(text) >= 16 and any(map(str.isdigit, text))))


def is_secret_name(name: str) -> bool:
    """Return True if the words of a name say that its value is a secret."""
    words = [word.lower() for word in _WORDS.findall(name)]
    return any(
        word in _SECRET_WORDS
        or (word == "key" and before in _KEYS)
        or (word == "token" and before not in _TEXT_TOKENS and _is_noun(words, position))
        for position, (before, word) in enumerate(zip(["", *words], words, strict=False))
    )


def _is_noun(words: list[str], position: int) -> bool:
    """Return True for the "token" of hf_token and auth_token_comfy_org, False for that of token_normalization."""
    return position == len(words) - 1 or (position > 0 and words[position - 1] in {"auth", "api", "access", "bearer"})


def _linked_to_secrets(obj: Mapping[Any, Any]) -> Iterator[str]:
    """Yield the ids of nodes linked to inputs with a secret's name, of an API node or a UI graph."""
    inputs = obj.get("inputs")
    if isinstance(inputs, Mapping):
        for name, value in inputs.items():
            if isinstance(name, str) and is_secret_name(name) and _is_link(value):
                yield value[0]
    nodes, links = obj.get("nodes"), obj.get("links")
    if isinstance(nodes, list) and isinstance(links, list):
        slots = (slot for node in nodes if isinstance(node, Mapping) for slot in _slots(node))
        link_ids = {str(slot.get("link")) for slot in slots if is_secret_name(str(slot.get("name")))}
        for link in links:
            if isinstance(link, list) and len(link) > 1 and str(link[0]) in link_ids:
                yield str(link[1])
            elif isinstance(link, Mapping) and str(link.get("id")) in link_ids:
                yield str(link.get("origin_id"))


def _slots(node: Mapping[Any, Any]) -> list[Mapping[Any, Any]]:
    slots = node.get("inputs")
    return [slot for slot in slots if isinstance(slot, Mapping)] if isinstance(slots, list) else []


def _secret_widgets(node: Mapping[Any, Any]) -> list[int]:
    """Return the positions of the widgets of a UI node whose input has a secret's name."""
    names = [slot.get("name") for slot in _slots(node) if "widget" in slot]
    if len(names) != len(node["widgets_values"]):  # some widgets have no input and so no name
        return []
    return [position for position, name in enumerate(names) if is_secret_name(str(name))]


def _clean_value(text: str) -> str:
    """Remove full-line paths and well-known keys. A prompt may contain "a token: gold"."""
    return _PATH.sub(lambda match: _last_part(match[0]), _without_keys(text))


def _clean_prose(text: str) -> str:
    text = _ASSIGNMENT.sub(r"\1", _BEARER.sub(r"\1", _without_keys(text)))
    return _PATH_IN_PROSE.sub(lambda match: _last_part(match[0]), text)


def _without_keys(text: str) -> str:
    text = _TOKENS.sub("", text)
    if "://" in text:
        text = _IN_QUERY.sub(r"\1", _IN_ADDRESS.sub("", text))
    return text


def _last_part(path: str) -> str:
    return re.split(r"[/\\]", path.rstrip().rstrip("/\\"))[-1]


def _objects(value: Any) -> Iterator[Mapping[str, Any]]:
    """Yield all dicts in a JSON value."""
    pending = [value]
    while pending:
        part = pending.pop()
        if isinstance(part, Mapping):
            yield part
            pending.extend(part.values())
        elif isinstance(part, (list, tuple)):
            pending.extend(part)


def _is_link(value: Any) -> bool:
    """Return True for the output of another node: [its id, slot]. A path is not an id."""
    is_pair = isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int)
    return is_pair and not {"/", "\\"} & set(value[0])
