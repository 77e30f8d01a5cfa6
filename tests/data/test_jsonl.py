"""JSON Lines: what becomes of a line depends on that line alone, and each line that is lost is named by its number."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

GOOD = {
    b'{"text":"plain"}': ("plain", "und"),
    b'{"text":"tagged","lang":"en"}': ("tagged", "en"),
    b'{"text":"no tag","lang":null}': ("no tag", "und"),
    b'{"text":"number as tag","lang":5}': ("number as tag", "und"),
    b'{"text":"object as tag","lang":{"is":"en"}}': ("object as tag", "und"),
    b'{"text":"tag in Latin-1","lang":"fran\xe7ais"}': ("tag in Latin-1", "und"),
    b'{"text":"half a pair in the tag","lang":"\\ud800"}': ("half a pair in the tag", "und"),
    b'{"text":"Latin-1 elsewhere","url":"caf\xe9"}': ("Latin-1 elsewhere", "und"),
    b'{"text":"half a pair elsewhere","url":"\\ud800"}': ("half a pair elsewhere", "und"),
    b'{"text":"many digits","n":' + b"9" * 5000 + b"}": ("many digits", "und"),
    b'{"text":"huge exponent","n":1e999999}': ("huge exponent", "und"),
    b'{"text":"no number","n":NaN,"m":-Infinity,"k":Inf}': ("no number", "und"),
    b'{"text":"deep","x":' + b"[" * 50_000 + b"]" * 50_000 + b"}": ("deep", "und"),
    b'{"lang":' + b"[" * 50_000 + b"]" * 50_000 + b',"text":"deep tag"}': ("deep tag", "und"),
    b'{"text":"first","text":"last"}': ("last", "und"),
    b'{"te\\u0078t":"key with an escape"}': ("key with an escape", "und"),
    b'\xef\xbb\xbf{"text":"byte order mark"}': ("byte order mark", "und"),
    b'{"text":"ended by CR LF"}\r': ("ended by CR LF", "und"),
    b' \t{"text":"space around"} ': ("space around", "und"),
    b'{"text":"a\\ud83d\\ude00b\\u0000c"}': ("a\U0001f600b\0c", "und"),
    '{"text":"a\u2028b\x85c"}'.encode(): ("a\u2028b\x85c", "und"),
    b'{"meta":{"text":"inner"},"text":"outer"}': ("outer", "und"),
}
BAD = {
    b"{bad": "unreadable JSON line",
    b'{"text":"cut in ha': "unreadable JSON line",
    b'{"text":"one"}{"text":"two"}': "something follows",
    b'{"text":"one"}\r{"text":"two"}': "ended by CR alone",
    b'{"text":"comma"},': "part of a JSON array",
    b'{"text":"comma",}': "unreadable JSON line",
    b'[{"text":"in an array"}]': "a JSON array, not lines",
    b"{": "not a whole one",
    b"null": "unreadable JSON line",
    b'"text"': "unreadable JSON line",
    b"\0" * 100: "unreadable JSON line",
    b'{"text":"one"} // comment': "something follows",
    b'{"text":"one"}\0}': "something follows",
    b'{"text":"raw\0zero"}': "control character",
    b'{"text":"raw\tbell\x07"}': "control character",
    b"{'text':'quotes'}": "unreadable JSON line",
    b'{"text":"caf\xe9"}': "invalid UTF-8 at byte 3",
    b'{"text":"a\xed\xa0\x80"}': "invalid UTF-8 at byte 1",
    b'{"text":"a\\ud800b"}': "half a surrogate pair",
    b'{"text":"a\\udcc3\\udca9b"}': "half a surrogate pair",
    b'{"text":["list"]}': "no text in field 'text' but a list",
    b'{"text":{"an":"object"}}': "no text in field 'text' but an object",
    b'{"text":5}': "no text in field 'text' but a number",
    b'{"text":true}': "no text in field 'text' but true or false",
    b'{"text":null}': "no text in field 'text'",
    b'{"other":"x"}': "no text in field 'text'",
    b"{}": "no text in field 'text'",
    b'{"text":""}': "empty document",
    b'{"text":' + b"[" * 50_000 + b"]" * 50_000 + b"}": "nested too deeply",
}
BLANK = [b"", b"\r", b"  ", b"\t \r"]
Reader = Callable[..., Any]


def judged(read: Reader, lines: list[bytes]) -> list[Any]:
    """What becomes of each line of a file: (text, tag), a cause, or nothing."""
    found, lost = read("a.jsonl", b"\n".join(lines))
    causes = {row: entry.cause for entry in lost for row in range(entry.row, entry.row + entry.rows)}
    assert set(found).isdisjoint(causes)
    assert {*found, *causes} <= set(range(len(lines)))
    return [found.get(row, causes.get(row)) for row in range(len(lines))]


@pytest.mark.parametrize("line", GOOD, ids=lambda line: repr(line[:40]))
def test_what_is_kept(read: Reader, line: bytes) -> None:
    assert judged(read, [line]) == [GOOD[line]]
    assert judged(read, [b"{bad", line, b'{"text":"ok"}'])[1:] == [GOOD[line], ("ok", "und")]


@pytest.mark.parametrize("line", BAD, ids=lambda line: repr(line[:40]))
def test_what_is_lost_costs_itself_alone(read: Reader, line: bytes) -> None:
    (alone,) = judged(read, [line])
    assert BAD[line] in alone
    beside = [b'{"text":"ok","lang":"en"}', line, b'{"text":"ok"}', b""]
    assert judged(read, beside) == [("ok", "en"), alone, ("ok", "und"), None]


def damaged(line: bytes, place: int, value: int) -> bytes:
    place %= len(line)
    return line[:place] + bytes([value]) + line[place + 1 :]


_SHORT = [line for line in (*GOOD, *BAD) if len(line) < 200]
_LINES = st.one_of(
    st.sampled_from(list(GOOD)),
    st.sampled_from([*BAD, *BLANK]),
    st.builds(
        damaged, st.sampled_from(_SHORT), st.integers(0, 200), st.integers(0, 255).filter(lambda value: value != 10)
    ),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(lines=st.lists(_LINES, min_size=1, max_size=6), small=st.sampled_from([20, 10_000]))
def test_a_line_beside_others_is_judged_as_it_is_alone(read: Reader, lines: list[bytes], small: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shoal_data.sources.jsonl._SMALL", small)
        alone = [judged(read, [b'{"text":"first"}', line])[1] for line in lines]
        assert judged(read, [b'{"text":"first"}', *lines])[1:] == alone


def test_rows_are_lines_of_the_file_and_blank_ones_are_no_loss(read: Reader) -> None:
    lines = [b'{"text":"one"}', b"", b"\r", b'{"text":"four"}', b" ", b"{bad", b"", b'{"text":"eight"}', b"", b""]
    assert judged(read, lines) == [("one", "und"), None, None, ("four", "und"), None, *judged(read, lines)[5:]]
    found, lost = read("a.jsonl", b"\n".join(lines))
    assert ([*found], [(entry.row, entry.rows) for entry in lost]) == ([0, 3, 7], [(5, 1)])
    for blank in (b"", b"\n", b"\n\n\r\n", b"\xef\xbb\xbf", b"\xef\xbb\xbf\n"):
        assert read("blank.jsonl", blank) == ({}, [])


def test_a_bad_line_among_many_is_found_however_they_are_cut(read: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in (("_STRETCH", 5000), ("_AT_ONCE", 1000), ("_SMALL", 300)):
        monkeypatch.setattr(f"shoal_data.sources.jsonl.{name}", size)
    lines = [json.dumps({"text": f"{row} " + "x" * (row % 150)}).encode() for row in range(1000)]
    lines[7], lines[500], lines[999] = b"{bad", b"\xff" * 2000, b""
    expected: list[Any] = [
        (json.loads(line)["text"], "und") if line[:1] == b"{" and line != b"{bad" else None for line in lines
    ]
    found = judged(read, lines)
    assert [found[row] for row in range(1000) if row not in (7, 500)] == [
        expected[row] for row in range(1000) if row not in (7, 500)
    ]
    assert "unreadable JSON line" in found[7]
    assert "unreadable JSON line" in found[500]


def test_many_lines_of_one_cause_make_one_entry(read: Reader) -> None:
    found, lost = read("a.jsonl", b'{"text":"one"}\n' + b"no JSON\n" * 5000 + b'{"text":"last"}\n' + b"no JSON\n" * 3)
    assert [*found] == [0, 5001]
    assert [(entry.row, entry.rows) for entry in lost] == [(1, 5000), (5002, 1), (5003, 1), (5004, 1)]
    pretty = json.dumps([{"text": "a", "more": [1, 2]}] * 100, indent=2).encode()
    assert sum(entry.rows for entry in read("pretty.jsonl", pretty)[1]) == pretty.count(b"\n") + 1


def test_a_line_too_long_to_be_held_costs_itself_alone(read: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in (("jsonl._LONGEST", 1000), ("jsonl._STRETCH", 500), ("unpack._BLOCK", 100)):
        monkeypatch.setattr(f"shoal_data.sources.{name}", size)
    lines = [b'{"text":"one"}', b'{"text":"' + b"x" * 5000 + b'"}', b'{"text":"two"}']
    found = judged(read, lines)
    assert found[::2] == [("one", "und"), ("two", "und")]
    assert "a line of more than" in found[1]


def test_any_field_may_be_the_text(read: Reader) -> None:
    content = b'{"lang":"the text","text":5}\n{"lang":5}\n'
    found, lost = read("a.jsonl", content, "lang")
    assert (found, [entry.row for entry in lost]) == ({0: ("the text", "und")}, [1])


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_names_the_encoding(read: Reader, encoding: str) -> None:
    content = '{"text":"schön 😀 一"}\n{"text":"два"}\n'
    found = {0: ("schön 😀 一", "und"), 1: ("два", "und")}
    assert read("a.jsonl", content.encode(encoding)) == (found, [])
    found, lost = read("b.jsonl", (content[:-1].encode(encoding) + b"\0")[:-3])
    assert [*found] == [0]
    assert [entry.row for entry in lost] == [1]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_wide_characters_without_a_mark_are_named(read: Reader, encoding: str) -> None:
    for text in ('{"text":"hello 一"}\n', '{"text":"привет, мир"}\n' * 20):
        found, (entry,) = read("a.jsonl", text.encode(encoding))
        assert found == {}
        assert "without a byte order mark" in entry.cause
        assert encoding.upper().replace("-LE", "LE").replace("-BE", "BE") in entry.cause


def test_a_line_of_wide_characters_costs_no_others(read: Reader) -> None:
    wide = ('{"text":"' + "x" * 4000 + '"}').encode("utf-16-le")
    found = judged(read, [wide, *[b'{"text":"ok"}'] * 500])
    assert found[1:] == [("ok", "und")] * 500
    assert "unreadable JSON line" in found[0]
