"""Conversations to packed samples: which tokens are answers, what is refused, what shares a sample."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal_core.errors import UserError
from shoal_data.chat.packing import pack
from shoal_data.chat.prepare import ChatOptions, prepare
from shoal_data.chat.samples import IGNORED, PackedSamples
from tests.support.conversations import CHATML, FORGETFUL, MARKED, conversations, write_jsonl, write_tokenizer


@pytest.fixture(scope="module")
def chatml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("chatml"))


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("marked"), MARKED)


def documents(folder: Path) -> list[tuple[list[int], list[int]]]:
    """(tokens, labels) of each conversation of each sample."""
    found = []
    samples = PackedSamples(folder)
    for sample in map(samples.__getitem__, range(len(samples))):
        for number in range(sample.document_ids[-1] + 1):
            of = sample.document_ids == number
            assert sample.position_ids[of].tolist() == list(range(of.sum()))
            found.append((sample.input_ids[of].tolist(), sample.labels[of].tolist()))
    return found


def prepared(folder: Path, rows: list[Any], tokenizer: Path, seq_len: int = 256, **options: Any) -> Path:
    source = write_jsonl(folder / "in.jsonl", rows)
    prepare([str(source)], str(tokenizer), str(folder / "out"), ChatOptions(seq_len, **options))
    return folder / "out"


def quarantine(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "quarantine.jsonl").read_text().splitlines()]


def test_answers_are_those_that_transformers_marks(marked: Path, tmp_path: Path) -> None:
    """Every token and every label, against `apply_chat_template(return_assistant_tokens_mask=True)`."""
    from transformers import AutoTokenizer

    rows = conversations(50)
    of: Any = AutoTokenizer.from_pretrained(str(marked))
    expected = []
    for row in rows:
        whole = of.apply_chat_template(row["messages"], return_dict=True, return_assistant_tokens_mask=True)
        labels = np.where(whole["assistant_masks"], whole["input_ids"], IGNORED).tolist()
        expected.append((whole["input_ids"], labels))
    assert sorted(documents(prepared(tmp_path, rows, marked))) == sorted(expected)


HEADERS = (
    "{% for message in messages %}{% generation %}{{ '<|im_start|>' + message['role'] }}{% endgeneration %}"
    "{{ message['content'] + '<|im_end|>' }}{% endfor %}"
)


@pytest.mark.parametrize(
    ("template", "why"),
    [
        (MARKED.replace("== 'assistant'", "== 'user'"), "marks what is no answer (message 1, of role user)"),
        (MARKED.replace("== 'assistant'", "!= 'nobody'"), "marks what is no answer (message 0, of role system)"),
        (HEADERS, "marks places where no answer is"),
    ],
    ids=["questions", "all", "headers"],
)
def test_marks_around_what_is_no_answer_are_refused(tmp_path: Path, template: str, why: str) -> None:
    tokenizer = write_tokenizer(tmp_path / "tokenizer", template)
    said = [{"role": role, "content": "red fish"} for role in ("system", "user", "assistant")]
    with pytest.raises(UserError, match=re.escape(why)) as refused:
        prepared(tmp_path, [{"messages": said}], tokenizer)
    assert "--template" in refused.value.remedy
    with pytest.raises(UserError, match=r"no chat\.json"):
        PackedSamples(tmp_path / "out")


def test_answers_of_a_template_without_marks(chatml: Path, tmp_path: Path) -> None:
    """Against the words themselves: an answer is what stands after `assistant` and a line break, to the end of turn."""
    from transformers import AutoTokenizer

    rows = conversations(50)
    of = AutoTokenizer.from_pretrained(str(chatml))
    expected = []
    for row in rows:
        ids: list[int] = []
        labels: list[int] = []
        for message in row["messages"]:
            head = of.encode(f"<|im_start|>{message['role']}\n", add_special_tokens=False)
            body = of.encode(f"{message['content']}<|im_end|>\n", add_special_tokens=False)
            ids += head + body
            labels += [IGNORED] * len(head) + (body if message["role"] == "assistant" else [IGNORED] * len(body))
        expected.append((ids, labels))
    assert sorted(documents(prepared(tmp_path, rows, chatml))) == sorted(expected)


def test_only_the_last_answer_or_only_the_completion(marked: Path, chatml: Path, tmp_path: Path) -> None:
    turns = conversations(1, seed=3)[0]["messages"][-2:] * 2
    for tokenizer in (marked, chatml):
        cases: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
            ("last", {"messages": turns}, {"answers": "last"}),
            ("completion", {"prompt": turns[:3], "completion": turns[3:]}, {}),
        ]
        for name, row, options in cases:
            (tmp_path / tokenizer.name / name).mkdir(parents=True)
            every = documents(prepared(tmp_path / tokenizer.name / name, [row], tokenizer, **options))
            ids, labels = every[0]
            half = len(ids) // 2
            assert set(labels[:half]) == {IGNORED}
            assert (
                [one for one in labels[half:] if one != IGNORED]
                == [one for one, label in zip(ids[half:], labels[half:], strict=True) if label != IGNORED]
                != []
            )


def test_prompt_and_completion_as_text(chatml: Path, tmp_path: Path) -> None:
    """Through the template two turns; plain, both as they stand and the end of text."""
    from transformers import AutoTokenizer

    of = AutoTokenizer.from_pretrained(str(chatml))
    row = {"prompt": "the red fish", "completion": " swims"}
    for name in ("turns", "plain"):
        (tmp_path / name).mkdir()
    ((ids, _),) = documents(prepared(tmp_path / "turns", [row], chatml))
    assert of.decode(ids) == ("<|im_start|>user\nthe red fish<|im_end|>\n<|im_start|>assistant\n swims<|im_end|>\n")
    ((ids, labels),) = documents(prepared(tmp_path / "plain", [row], chatml, plain=True))
    before, after = of.encode("the red fish"), [*of.encode(" swims"), of.eos_token_id]
    assert (ids, labels) == (before + after, [IGNORED] * len(before) + after)


def test_a_template_whose_beginnings_change_is_told(tmp_path: Path) -> None:
    tokenizer = write_tokenizer(tmp_path / "tokenizer", FORGETFUL)
    asked, thought = {"role": "user", "content": "a"}, {"role": "assistant", "content": "so</think>b"}
    rows = [{"messages": [asked, thought, asked, thought]}]
    with pytest.raises(UserError, match="message 1: the chat template renders what comes before the answer otherwise"):
        prepared(tmp_path, rows, tokenizer)
    (tmp_path / "last").mkdir()
    ((ids, labels),) = documents(prepared(tmp_path / "last", rows, tokenizer, answers="last"))
    assert len(ids) > len([one for one in labels if one != IGNORED]) > 0


def test_bad_rows_are_told_by_file_row_and_cause(chatml: Path, tmp_path: Path) -> None:
    user, answer = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    bad = {
        "no turn of role assistant": {"messages": [user]},
        "`messages` is empty": {"messages": []},
        "`messages` is text, not a list": {"messages": "hello"},
        "messages[1]: `content` is a number, not text": {"messages": [user, {"role": "assistant", "content": 3}]},
        "messages[1]: the answer is empty": {"messages": [user, {"role": "assistant", "content": " "}]},
        "messages[0]: unknown role 'human'": {"messages": [{"role": "human", "content": "a"}, answer]},
        "messages[0] is text, not an object": {"messages": ["a", answer]},
        "message 0 spells the control token <|im_end|>": {"messages": [{**user, "content": "x<|im_end|>"}, answer]},
        "neither `messages` nor `prompt` and `completion` (it has `prompt` alone)": {"prompt": "a"},
        "neither `messages` nor `prompt` and `completion` (it has text)": {"text": "a"},
        "both `messages` and `prompt`": {"messages": [user, answer], "prompt": "a"},
        "`prompt` and `completion` are text and a list": {"prompt": "a", "completion": [answer]},
        "half a surrogate pair": '{"prompt": "\\ud800", "completion": "b"}',
        "unreadable JSON line: Expecting": '{"messages": ',
        "unreadable JSON line: a JSON array": "[1]",
    }
    rows = [{"messages": [user, answer]}, "", *bad.values()]
    out = prepared(tmp_path, rows, chatml)
    found = quarantine(out)
    assert [(entry["row"], entry["rows"]) for entry in found] == [(at, 1) for at in range(2, len(rows))]
    assert {entry["file"] for entry in found} == {str(tmp_path / "in.jsonl")}
    for entry, cause in zip(found, bad, strict=True):
        assert cause in entry["cause"]
    assert len(documents(out)) == 1
    (tmp_path / "strict").mkdir()
    with pytest.raises(UserError, match=r"in.jsonl, row 2 \(from 0\): no turn of role assistant"):
        prepared(tmp_path / "strict", rows, chatml, strict=True)
    assert not (tmp_path / "strict" / "out" / "chat.json").exists()


def test_a_line_that_is_too_long_is_told_as_such(chatml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in (("jsonl._LONGEST", 1000), ("jsonl._STRETCH", 500), ("unpack._BLOCK", 100)):
        monkeypatch.setattr(f"shoal_data.sources.{name}", size)
    out = prepared(tmp_path, [{"prompt": "a" * 9000, "completion": "b"}, {"prompt": "a", "completion": "b"}], chatml)
    assert [(entry["row"], entry["cause"]) for entry in quarantine(out)] == [(0, "a line of more than 0 MiB")]
    assert len(documents(out)) == 1


def test_tables_of_structs(chatml: Path, tmp_path: Path) -> None:
    """Rows of which some have keys that others lack, in several row groups, files or lines: the same samples."""
    from datasets import Dataset

    rows = conversations(20)
    for row in rows[::2]:
        row["messages"][0]["name"] = "somebody"
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet", row_group_size=7)
    write_jsonl(tmp_path / "in.jsonl", rows)
    Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"), num_shards=2)
    every = {}
    for source in ("in.parquet", "in.jsonl", "saved"):
        prepare([str(tmp_path / source)], str(chatml), str(tmp_path / f"of-{source}"), ChatOptions(128))
        every[source] = documents(tmp_path / f"of-{source}")
    assert every["in.parquet"] == every["in.jsonl"] == every["saved"]
    assert len(every["saved"]) == 20
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "text.parquet")
    with pytest.raises(UserError, match=r"no column `messages`, nor `prompt` and `completion` \(it has text\)"):
        prepare([str(tmp_path / "text.parquet")], str(chatml), str(tmp_path / "none"), ChatOptions(128))


def test_what_is_too_long_is_dropped_or_cut_and_counted(chatml: Path, tmp_path: Path) -> None:
    rows = conversations(40)
    lengths = [len(ids) for ids, _ in documents(prepared(tmp_path, rows, chatml, 1 << 12))]
    room = sorted(lengths)[30]
    for how in ("drop", "truncate"):
        (tmp_path / how).mkdir()
        out = prepared(tmp_path / how, rows, chatml, room, too_long=how)
        totals = PackedSamples(out).manifest.totals
        kept = [len(ids) for ids, _ in documents(out)]
        longer = [length for length in lengths if length > room]
        assert max(kept) <= room
        if how == "drop":
            assert (totals["dropped"], totals["dropped_tokens"]) == (len(longer), sum(longer))
            assert Counter(kept) == Counter(length for length in lengths if length <= room)
        else:
            assert (totals["truncated"], totals["truncated_tokens"]) == (len(longer), sum(longer) - room * len(longer))
            assert len(kept) == 40


def test_a_folder_is_whole_or_not_there_and_made_once(
    chatml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = conversations(20)
    out = prepared(tmp_path, rows, chatml)
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.iterdir() if path.is_file()}
    source = str(tmp_path / "in.jsonl")
    prepare([source], str(chatml), str(out), ChatOptions(256))
    after = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.iterdir() if path.is_file()}
    assert after == before
    with pytest.raises(UserError, match="--seq-len was 256, is 128"):
        prepare([source], str(chatml), str(out), ChatOptions(128))
    with pytest.raises(UserError, match=r"--template was \w+, is \w+"):
        prepare([source], str(write_tokenizer(tmp_path / "other", MARKED)), str(out), ChatOptions(256))
    with pytest.raises(UserError, match="its tokenizer had the SHA-256"):
        prepare([source], str(write_tokenizer(tmp_path / "small", vocab_size=280)), str(out), ChatOptions(256))
    damaged = bytearray(before["samples.arrow"][1])
    damaged[len(damaged) // 2] ^= 1
    (out / "samples.arrow").write_bytes(damaged)
    with pytest.raises(UserError, match=r"samples.arrow: not what chat.json says"):
        PackedSamples(out)
    prepare([source], str(chatml), str(out), ChatOptions(256))
    assert (out / "samples.arrow").read_bytes() == before["samples.arrow"][1]

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("shoal_data.chat.prepare.write_json", killed)
    (out / "samples.arrow").unlink()
    with pytest.raises(KeyboardInterrupt):
        prepare([source], str(chatml), str(out), ChatOptions(256))
    with pytest.raises(UserError, match=r"no chat\.json"):
        PackedSamples(out)


def test_what_cannot_be_used_is_refused_with_a_remedy(chatml: Path, tmp_path: Path) -> None:
    source = str(write_jsonl(tmp_path / "in.jsonl", conversations(2)))
    bare = write_tokenizer(tmp_path / "bare", None)
    (tmp_path / "in.txt").write_text("text")
    (tmp_path / "broken").write_text("{% for message in messages %}\n{% endif %}")
    for inputs, tokenizer, options, problem in (
        (source, bare, {}, "chat_template is not set"),
        (source, tmp_path, {}, "no folder with tokenizer_config.json"),
        (source, chatml, {"seq_len": 1}, "--seq-len 1"),
        (source, chatml, {"template": str(tmp_path / "none")}, "--template .*No such file"),
        (source, chatml, {"template": str(tmp_path / "broken")}, "--template .*broken: line 2 .* is no Jinja"),
        (str(tmp_path / "in.txt"), chatml, {}, "conversations are read from JSON lines, Parquet and Arrow"),
    ):
        with pytest.raises(UserError, match=problem) as told:
            prepare([inputs], str(tokenizer), str(tmp_path / "out"), ChatOptions(**{"seq_len": 64, **options}))  # type: ignore[arg-type]
        assert told.value.remedy
    (tmp_path / "template").write_text(CHATML)
    prepare([source], str(bare), str(tmp_path / "out"), ChatOptions(64, template=str(tmp_path / "template")))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 50), max_size=60), st.integers(50, 80))
def test_packing_loses_nothing_and_wastes_little(lengths: list[int], room: int) -> None:
    found = pack(np.array(lengths, np.int64), room)
    assert sorted(number for sample in found for number in sample) == list(range(len(lengths)))
    sums = [sum(lengths[number] for number in sample) for sample in found]
    assert all(total <= room for total in sums)
    assert all(a + b > room for at, a in enumerate(sums) for b in sums[:at])  # no two samples would fit in one
    assert pack(np.array(lengths, np.int64), room) == found
