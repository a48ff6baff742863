"""A stranger's tokenizer, tried in a process of its own: it may panic, loop, or eat memory there.

The tokenizers library is Rust, whose panics are no `Exception`; a template, a normaliser or a regular expression in
tokenizer.json can make a letter a million tokens, or take hours.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from string import printable
from typing import Any

from defensekit.models.untrusted import COMPANION, CONFIG, read_json
from defensekit.utils.bounded import refusal, serve
from defensekit.utils.errors import UsageError, one_line, printable_name
from defensekit.utils.files import data_digest, file_digest

SECONDS, GIB = 20, 4  # of processor time and memory, for loading and reading a few texts
# Added tokens; parts of a template or a sequence of normalisers; characters of a token; tokens of one letter.
ADDED, PARTS, LONGEST, TOKENS = 20_000, 2_000, 10_000, 1_000
LARGEST = 10_000_000  # number of a token
# What a token may say of itself. The library prints other keys, as they are, on standard output.
_OF_A_TOKEN = {"content", "single_word", "lstrip", "rstrip", "normalized", "special", "id", "__type"}
_CONFIG, _SPECIAL_TOKENS = "tokenizer_config.json", "special_tokens_map.json"
_SETTINGS = {_CONFIG: COMPANION, _SPECIAL_TOKENS: CONFIG, "added_tokens.json": CONFIG}
# Keys that make transformers read another file, which nobody tried, or build a vocabulary of what they hold.
_ELSEWHERE = {"fast_tokenizer_files", "gguf_file", "vocab", "merges"}
_OTHER = ("*.json", "*.txt", "*.model")  # what a tokenizer without a tokenizer.json is made of
_TEXTS = ("a", "The film, is witty. " * 50, "a" * 2_000, " " * 2_000, "é漢🙂\u202e" * 50)


def check_tokenizer(folder: Path) -> None:
    """Try the folder's tokenizer in another process, once for the same contents: tokenizer.json, or what stands for it.

    Raises:
        UsageError: it fails, takes too long or too much memory, or makes far more of a text than there is; a token has
            keys that none has.
    """
    for name, limit in _SETTINGS.items():
        if not (file := folder / name).is_file():
            continue
        settings = read_json(file, limit)
        if name == _CONFIG and (elsewhere := sorted(_ELSEWHERE & settings.keys())):
            raise UsageError(f"{file}: `{elsewhere[0]}` stands in for the folder's own files; remove it")
        for token in _tokens(settings, name == _SPECIAL_TOKENS):
            if unknown := _unknown(token):
                raise UsageError(f"{file}: {unknown}")
    path = folder / "tokenizer.json"
    # Of a vocabulary in another form transformers makes one, in hours where it is made for that.
    files = [path] if path.is_file() else sorted(file for kind in _OTHER for file in folder.glob(kind))
    digest = data_digest([(file.name, file_digest(file)) for file in files])
    if reason := _reason(digest, path if path.is_file() else folder):
        raise UsageError(f"{folder}: its tokenizer is refused: {reason}")


_REASONS: dict[str, str | None] = {}


def _tokens(plain: dict[str, Any], of_tokens: bool) -> Iterator[dict[str, Any]]:
    """What a file of settings says of single tokens; ``of_tokens``: its values are tokens themselves."""
    extra = plain.get("extra_special_tokens")
    places = [plain.get("added_tokens_decoder"), extra, [value for value in plain.values() if value is not extra]]
    for place in places if of_tokens else places[:2]:
        values = place.values() if isinstance(place, dict) else place if isinstance(place, list) else ()
        yield from (value for value in values if isinstance(value, dict))
    within: list[Any] = [plain]
    while within:  # no recursion: the depth is untrusted
        node = within.pop()
        if isinstance(node, dict) and "__type" in node:
            yield node
        within.extend(node.values() if isinstance(node, dict) else node if isinstance(node, list) else ())


def _unknown(token: dict[str, Any]) -> str | None:
    """What a token says of itself that none has, in words."""
    unknown = token.keys() - _OF_A_TOKEN
    return f"a token has the unknown key {printable_name(repr(min(unknown)))}" if unknown else None


def _reason(digest: str, path: Path) -> str | None:
    """Why a tokenizer is refused; None where it is not."""
    if digest not in _REASONS:  # wherever it lies: a run's models have copies of one tokenizer
        _REASONS[digest] = refusal("defensekit.models.tokenizer_trial", path, SECONDS, GIB, "read a few texts")
    return _REASONS[digest]


def _tried(path: str) -> None:
    """Read a few texts with a tokenizer.

    Raises:
        UsageError: what is wrong with it, in words.
    """
    from tokenizers import Tokenizer

    written = Path(path).read_text() if Path(path).is_file() else _made(path)
    plain = json.loads(written)
    if (added := len(plain.get("added_tokens") or ())) > ADDED:
        raise UsageError(f"it has {added:,} added tokens; at most {ADDED:,}")
    if unknown := next(filter(None, map(_unknown, plain.get("added_tokens") or ())), None):
        raise UsageError(unknown)
    for name, part in plain.items():
        if name not in ("model", "added_tokens") and (most := _largest(part)) > PARTS:
            raise UsageError(f"its {name} has {most:,} parts; at most {PARTS:,}")
    tokenizer = Tokenizer.from_str(written)
    if (longest := max(map(len, tokenizer.get_vocab()), default=0)) > LONGEST:
        raise UsageError(f"a token has {longest:,} characters; at most {LONGEST:,}")
    if (largest := max(tokenizer.get_vocab().values(), default=0)) > LARGEST:  # libraries make a list of as many
        raise UsageError(f"a token has the number {largest:,}; at most {LARGEST:,}")
    rules = [part for name, part in plain.items() if name not in ("model", "added_tokens")]
    texts = [*texts_in(rules, but="precompiled_charsmap")]  # SentencePiece's map, which is long and no text
    if (longest := max(map(len, texts), default=0)) > LONGEST:  # put in front of every text, say
        raise UsageError(f"a rule has a text of {longest:,} characters; at most {LONGEST:,}")
    for text in (*_TEXTS, printable * 20, *texts):  # what a rule looks for may become much more
        for pair in (None, "b"):
            if (tokens := len(tokenizer.encode(text, pair))) > TOKENS + 8 * len(text):
                raise UsageError(f"it makes {tokens:,} tokens of {len(text):,} characters")


def _made(folder: str) -> str:
    """The tokenizer.json that transformers makes of a folder's other files."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        made: str = tokenizer.backend_tokenizer.to_str()
    except MemoryError:
        raise
    except Exception as error:
        does = f"there is no tokenizer.json, and transformers makes none of the other files ({one_line(error)})"
        raise UsageError(does) from error
    if not tokenizer.get_vocab().keys() - {*tokenizer.all_special_tokens}:  # made of nothing
        raise UsageError("there is no tokenizer.json, and the other files hold no vocabulary")
    return made


def texts_in(data: Any, but: str = "") -> Iterator[str]:
    """Every text within plain data, except under one key."""
    within = [data]
    while within:  # no recursion: the depth is untrusted
        node = within.pop()
        if isinstance(node, str):
            yield node
        if isinstance(node, dict):
            node = [value for key, value in node.items() if key != but]
        within.extend(node if isinstance(node, list) else ())


def _largest(data: object) -> int:
    """The number of values in the largest list or mapping of plain data."""
    values = list(data.values()) if isinstance(data, dict) else data if isinstance(data, list) else []
    return max([len(values), *map(_largest, values)])


if __name__ == "__main__":
    serve(_tried)
