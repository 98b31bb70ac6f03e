"""Files of texts and cases with a byte-order mark, and with every end of line, read as those without."""

import csv
import io
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tl_backward.text.cases import EditCase, load_cases
from tl_backward.text.files import read_data

BOM = b"\xef\xbb\xbf"
TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12).filter(str.strip)
SAME = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def written(path, text, bom, end="\n"):
    path.write_bytes(BOM * bom + text.replace("\n", end).encode())
    return path


ENDS = st.sampled_from(["\n", "\r\n", "\r"])


@SAME
@given(texts=st.lists(TEXT, min_size=1, max_size=4), bom=st.booleans(), end=ENDS)
def test_texts(tmp_path, texts, bom, end):
    """U+2028 and its like end no line within JSON's texts."""
    texts = [text.removeprefix("\ufeff") or "x" for text in texts]
    rows = "\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in texts)
    assert read_data(written(tmp_path / "a.jsonl", rows, bom, end), "text") == texts
    assert read_data(written(tmp_path / "a.json", json.dumps(texts, ensure_ascii=False), bom), "text") == texts
    assert read_data(written(tmp_path / "a.txt", "\n".join(texts), bom, end), "text") == texts


@SAME
@given(prompts=st.lists(TEXT, min_size=1, max_size=3), bom=st.booleans(), end=ENDS)
def test_cases(tmp_path, prompts, bom, end):
    cases = [EditCase(prompt, " x") for prompt in prompts]
    records = [{"prompt": prompt, "target": " x"} for prompt in prompts]
    rows = "\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    assert load_cases(written(tmp_path / "a.jsonl", rows, bom, end)) == cases
    assert load_cases(written(tmp_path / "a.json", json.dumps(records, ensure_ascii=False), bom)) == cases
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, ["prompt", "target"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    assert load_cases(written(tmp_path / "a.csv", table.getvalue(), bom, end)) == cases


def test_an_empty_file_with_a_mark_is_empty(tmp_path):
    for name in ("a.json", "a.jsonl", "a.csv"):
        with pytest.raises(ValueError, match="Expected at least one edit case"):
            load_cases(written(tmp_path / name, "", True))


def test_other_encodings_are_refused_in_a_sentence(tmp_path):
    for name in ("a.json", "a.jsonl", "a.csv"):
        (tmp_path / name).write_bytes('[{"prompt": "é", "target": " x"}]'.encode("utf-16"))
        with pytest.raises(ValueError, match="Expected UTF-8 text"):
            load_cases(tmp_path / name)
    (tmp_path / "a.txt").write_bytes("é".encode("latin-1"))
    with pytest.raises(ValueError, match="Expected UTF-8 text in 'a.txt'"):
        read_data(tmp_path / "a.txt", "text")
