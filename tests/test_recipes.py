"""Recipes of training: what the shipped files say, and changes of them."""

import pytest

pytest.importorskip("torch")

from sw_model.errors import ExpertileError
from sw_model.training.model import shape
from sw_model.training.recipe import change, load_recipe, names
from sw_model.training.sources import DOMAINS


@pytest.mark.parametrize("name", names())
def test_every_recipe_reads_and_runs_three_stages_in_the_articles_proportions(name):
    recipe = load_recipe(name)
    assert [stage.share for stage in recipe.stages] == [1000, 300, 70]
    for stage in recipe.stages:
        assert sum(stage.weights) == pytest.approx(1)
    at = [recipe.stage(step / recipe.steps) for step in range(recipe.steps)]
    share = [at.count(number) / recipe.steps for number in range(3)]
    assert share == pytest.approx([1000 / 1370, 300 / 1370, 70 / 1370], abs=2 / recipe.steps)


def test_rate_warms_up_stays_and_cools_down():
    recipe = load_recipe("base")
    rates = [recipe.rate(step, step / recipe.steps) for step in range(recipe.steps)]
    assert rates[0] < 0.01
    flat = rates[recipe.warmup : int((1 - recipe.cooldown) * recipe.steps)]
    assert set(flat) == {1.0}
    assert rates[-1] < 0.001
    assert rates[len(rates) - 1 - round(recipe.cooldown * recipe.steps / 2)] == pytest.approx(0.5, abs=0.01)


def test_the_gate_is_on_in_the_cooldown_of_the_shipped_models_only():
    for name in ("base", "tiny"):
        recipe = load_recipe(name)
        assert [stage.gate for stage in recipe.stages] == [None, 1.2, 1.2]
        start = recipe.stages[0].share / sum(stage.share for stage in recipe.stages)
        assert 1 - recipe.cooldown == pytest.approx(start, abs=0.01)


def test_shapes_are_as_the_documents_say():
    base, tiny, teacher = (shape(load_recipe(n).model) for n in ("base", "tiny", "teacher"))
    assert base["layers"] * base["moe_layer"] == 2_764_800
    assert tiny["layers"] * tiny["moe_layer"] <= 700_000
    assert 10_000_000 < teacher["parameters"] < 25_000_000
    assert teacher["parameters"] == pytest.approx(10 * tiny["parameters"], rel=0.02)


def test_changes():
    recipe = load_recipe("base")
    assert change(recipe, "steps=7").steps == 7
    assert change(recipe, "formats=int8,int4").formats == ("int8", "int4")
    assert change(recipe, "formats=").formats == ()
    assert {stage.gate for stage in change(recipe, "gate=none").stages} == {None}
    assert {stage.adversary for stage in change(recipe, "adversary=0").stages} == {0.0}
    weights = [stage.adversary for stage in change(load_recipe("tiny"), "adversary=0.1").stages]
    assert weights == [0.0, 0.1, 0.1]
    one = change(recipe, "stages=one").stages
    assert len(one) == 1
    want = [sum(s.share * s.weights[n] for s in recipe.stages) / 1370 for n in range(len(DOMAINS))]
    assert one[0].weights == pytest.approx(want)


@pytest.mark.parametrize(
    ("text", "says"),
    [("speed=3", "no number called 'speed'"), ("model=3", "no number"), ("steps=many", "'many'")],
)
def test_wrong_changes_say_what_is_wrong(text, says):
    with pytest.raises(ExpertileError, match=says):
        change(load_recipe("base"), text)


def test_wrong_recipes_say_what_is_wrong(tmp_path):
    with pytest.raises(ExpertileError, match=r"choose base, "):
        load_recipe("nothing")
    model = "layers=1\nhidden=32\nheads=1\nexperts=2\ntop_k=1\nintermediate=32\n"
    model += "shared_intermediate=32\ncontext=8\n"
    bad = {
        "stage.toml": "steps=1\nbatch=1\n[model]\n" + model + '[[stage]]\nname="a"\nshare=1\nmix={latin=2}\n',
        "key.toml": "steps=1\nbatch=1\nsped=3\n[model]\n" + model + '[[stage]]\nname="a"\nshare=1\n',
        "toml.toml": "steps = [",
    }
    for (name, text), says in zip(bad.items(), ("latin", "sped", "toml.toml"), strict=True):
        (tmp_path / name).write_text(text)
        with pytest.raises(ExpertileError, match=says):
            load_recipe(str(tmp_path / name))
