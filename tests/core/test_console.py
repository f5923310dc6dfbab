"""What is printed: stranger's text made harmless, whatever the console can hold."""

from __future__ import annotations

import io
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from morphogen.core.console import printable, say, say_json


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a plain name.png", "a plain name.png"),
        ("Größe 猫 👩‍🔬", "Größe 猫 👩‍🔬"),
        ("red\x1b[31m", "red\\x1b[31m"),
        ("two\nlines\r\n", "two\\nlines\\r\\n"),
        ("bell\a tab\t nul\0", "bell\\x07 tab\\t nul\\x00"),
        ("c1 \x9b31m del \x7f", "c1 \\x9b31m del \\x7f"),
        ("gnp\u202egpj", "gnp\\u202egpj"),
        ("line\u2028separator", "line\\u2028separator"),
        ("gr\udcfcn.png", "gr\\xfcn.png"),
        ("half \ud83d", "half \\ud83d"),
    ],
)
def test_only_harmful_characters_are_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text())
def test_what_is_printed_is_one_line_that_any_terminal_bears(text: str) -> None:
    shown = printable(text)
    assert len(shown.splitlines()) <= 1
    assert not any(ord(c) < 32 or 0x7F <= ord(c) < 0xA0 for c in shown)
    shown.encode("utf-8", "strict")  # has no half characters


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_what_the_console_cannot_hold_is_escaped(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding, errors="strict"))
    say("猫.png")
    say_json({"name": "猫\x1b"})
    sys.stdout.flush()
    first, *rest = raw.getvalue().decode(encoding).splitlines()
    assert first == ("猫.png" if encoding == "utf-8" else "\\u732b.png")
    assert rest == ["{", '  "name": "\\u732b\\u001b"', "}"]


def test_a_closed_stream_takes_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    say("nobody hears this")
