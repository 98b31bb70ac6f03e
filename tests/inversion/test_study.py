"""The tables of what shipped decoders reach and find, against what they are made of."""

from dataclasses import replace

import pytest

from tl_backward import inversion
from tl_backward.inversion.shipped import RECIPES
from tl_backward.studies import inversion as study
from tl_backward.zoo import counting


@pytest.fixture(scope="module")
def decoder():
    return inversion.load("counting")


def test_search_refines_what_the_decoder_draws(decoder, monkeypatch):
    monkeypatch.setattr(study, "N_REFINED", 60)
    monkeypatch.setattr(study, "WALKS", replace(study.WALKS, chains=15, n_proposals=60))
    frame = study.refinement_table(decoder, RECIPES["counting"], n_queries=1)
    assert len(frame) == len(decoder.sites) * 2
    assert frame["search"].mean() > 0.8 > frame["decoder"].mean() > 0.1
    query = next(iter(counting.prompts(1, split="held_out")))
    site, position = frame.loc[0, "site"], int(frame.loc[0, "position"])
    own = decoder.preimage(query, site=site, position=position, n=study.N_REFINED, seed=0, show_progress=False)
    assert frame.loc[0, "decoder"] == own.diagnostics.share_inside


def test_the_count_is_kept_and_the_letter(decoder):
    frame = study.findings_table(decoder, n_queries=1, steps=40)
    assert len(frame) == 2
    assert float(frame.loc[0, "count"].split()[0]) > 0.9 and float(frame.loc[1, "query letter"].split()[0]) > 0.9


def test_digits_are_counted_over_the_whole_domain():
    """Of the 400 sums of 100 to 119, by hand."""
    from tl_backward import zoo

    frame = study.digits_table(RECIPES["addition"], query="105+117=", most=120)
    model = zoo.load("addition")
    domain = [f"{left}+{right}=" for left in range(100, 120) for right in range(100, 120)]
    one = inversion.enumerate_preimage(
        model, "105+117=", ("result", 0, 3), -1, domain, epsilon=inversion.Closeness(match="same"), show_progress=False
    )
    inside = [text for text, kept in zip(one.texts, one.inside.tolist(), strict=True) if kept]
    row = frame[frame["site"] == "blocks.0.attn.hook_result[3]"].iloc[0]
    assert row["n_inside"] == len(inside) > 0
    assert row["left tens"] == pytest.approx(sum(text[1] == "0" for text in inside) / len(inside))
    assert row["right units"] == pytest.approx(sum(text[6] == "7" for text in inside) / len(inside))


def test_the_command_prints_every_table(capsys, monkeypatch):
    few = replace(study.WALKS, chains=5, steps=5, n_proposals=20)
    for name, value in {"N_REFINED": 20, "WALKS": few, "N_SAMPLES": 40, "LEAST": 150}.items():
        monkeypatch.setattr(study, name, value)
    assert study.main(["addition", "--queries", "2", "--refined", "1", "--most", "240"]) == 0
    said = capsys.readouterr().out
    assert "decoder: shares of" in said and "times the cost" in said and "right tens" in said
    with pytest.raises(SystemExit):
        study.main(["addition", "--most", "200"])
    assert "--most is from 235" in capsys.readouterr().err
