"""The corpus builder and the baselines without torch; the network and its optimiser where torch is there."""

import itertools
import zipfile
from pathlib import Path

import numpy as np
import pytest

from sw_model.errors import ExpertileError
from sw_model.training import corpus, reasoning, text, wheels
from sw_model.training.baselines import NGram, xz_bits_per_byte
from sw_model.training.duplicates import clusters
from sw_model.training.sources import DOMAINS, SOURCES, WHEELS

HELD_OUT = Path(__file__).parent.parent / "models" / "base" / "heldout"


def prose(seed: int, words: int = 120) -> str:
    """Words that no other seed shares, in paragraphs."""
    rng = np.random.default_rng(seed)
    made = ["".join(chr(97 + c) for c in rng.integers(0, 26, rng.integers(3, 9))) for _ in range(words)]
    return "\n\n".join(" ".join(made[i : i + 30]) for i in range(0, words, 30)) + "\n"


def document(name: str, body: str, *, domain: str = "general", free: bool = True) -> corpus.Document:
    return corpus.Document(domain=domain, source="src", name=name, text=body, free=free)


def many_domains(seed: int) -> list[corpus.Document]:
    return [
        document(f"{d}{i}", prose(seed + 100 * n + i), domain=d)
        for n, d in enumerate(DOMAINS)
        for i in range(60)
    ]


def test_fold_gives_plain_ascii() -> None:
    assert text.fold("\u201ca\u201d\u2014b\u00e9\tc\r\n\n\n\n  d\u4e2d \n") == '"a"--be c\n\nd\n'
    assert text.fold("if x:\n    y\n", keep_indent=True) == "if x:\n    y\n"


def test_cut_loses_nothing() -> None:
    body = prose(1)
    pieces = text.cut(body, 400)
    assert len(pieces) > 1
    assert "\n\n".join(p.strip("\n") for p in pieces) + "\n" == body


def test_is_prose_refuses_tables_and_repetition() -> None:
    assert text.is_prose(prose(2), letters=0.7)
    assert not text.is_prose("12 34 56 78 | " * 50, letters=0.7)
    assert not text.is_prose("the same three words again " * 50, letters=0.7)


def test_near_duplicates_meet_and_strangers_do_not() -> None:
    one, other = prose(3), prose(4)
    groups = clusters([one, other, one.replace(one.split()[5], "changed")])
    assert groups[0] == groups[2] != groups[1]


def test_split_is_by_document_deterministic_and_without_copies() -> None:
    documents = [document(str(i), prose(100 + i)) for i in range(300)]
    documents.append(document("copy", documents[0].text))
    options = {"shares": {"src": 1.0}, "domain_bytes": 10**9}
    splits = corpus.build(documents, **options)
    assert splits == corpus.build(documents[::-1], **options)
    names = [d.name for part in splits.values() for d in part]
    assert len(names) == len(set(names)) == 300
    assert len(splits["test"]) > 5
    assert len(splits["valid"]) > 3


def test_train_text_shares_no_long_run_of_words_with_held_out_text() -> None:
    documents = [document(str(i), prose(500 + i)) for i in range(200)]
    test = corpus.build(documents, shares={"src": 1.0}, domain_bytes=10**9)["test"]
    stolen = test[0].text.split("\n\n")[0]
    leaky = [document(f"leak{i}", f"{prose(900 + i)}\n{stolen}\n") for i in range(20)]
    splits = corpus.build(documents + leaky, shares={"src": 1.0}, domain_bytes=10**9)
    held_out = {d.name for d in splits["test"]}
    assert test[0].name in held_out
    assert not any(stolen in d.text for d in splits["train"])


def test_share_bounds_a_source() -> None:
    documents = [document(str(i), prose(2000 + i)) for i in range(100)]
    train = corpus.build(documents, shares={"src": 0.5}, domain_bytes=20_000)["train"]
    assert 10_000 <= sum(len(d.text) for d in train) < 12_000


def test_written_corpus_reads_back(tmp_path: Path) -> None:
    documents = many_domains(3000)
    splits = corpus.build(documents, shares={"src": 1.0}, domain_bytes=10**9)
    manifest = corpus.write(splits, tmp_path)
    for domain in DOMAINS:
        read = corpus.load(tmp_path, "train", domain)
        assert read == [d.text.encode() for d in splits["train"] if d.domain == domain]
        assert manifest["documents"][f"train/{domain}"] == len(read)
    with pytest.raises(ExpertileError, match=r"sw_model\.training\.corpus"):
        corpus.load(tmp_path / "nowhere", "train", "code")


def test_wheels_are_taken_by_hash_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mini_text-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("mini/a.txt", prose(5))
    sha = wheels.hashlib.sha256(path.read_bytes()).hexdigest()
    good = wheels.Wheel(name="mini-text", version="1.0", sha256=sha)
    assert wheels.fetch([good], tmp_path)["mini-text"].read("mini/a.txt").decode() == prose(5)

    def no_pip(*_: object, **__: object) -> wheels.subprocess.CompletedProcess:
        return wheels.subprocess.CompletedProcess([], 1, "", "ERROR: nothing here\n")

    monkeypatch.setattr(wheels.subprocess, "run", no_pip)
    with pytest.raises(ExpertileError, match="nothing here"):
        wheels.fetch([wheels.Wheel(name="mini-text", version="1.0", sha256="0" * 64)], tmp_path)


def test_sources_name_known_wheels_and_fill_their_domains() -> None:
    assert {s.wheel for s in SOURCES if s.wheel} == {w.name for w in WHEELS}
    for domain in DOMAINS:
        assert sum(s.share for s in SOURCES if s.domain == domain) == pytest.approx(1.0)


def test_worked_problems_are_right() -> None:
    made = list(reasoning.documents(8, seed=3))
    assert made == list(reasoning.documents(8, seed=3))
    questions = [line for body in made for line in body.splitlines() if line.startswith("Q: ")]
    assert len(questions) == len(set(questions)) == 8 * 24
    for body in made:
        for problem in body.strip().split("\n\n"):
            question, _, answer = (line.partition(": ")[2] for line in problem.splitlines())
            if question.startswith(("What is", "Compute")):
                expression = question.removeprefix("What is ").removeprefix("Compute ").rstrip("?.")
                assert eval(expression.replace("mod", "%")) == int(answer)


def test_ngram_sums_to_one_and_follows_witten_bell() -> None:
    model = NGram(b"abracadabra abracadabra", order=3)
    for context in (b"", b"a", b"abr", b"zzz", b"qab"):
        total = sum(model.probabilities(context + bytes([x]))[-1] for x in range(256))
        assert total == pytest.approx(1.0)
    # Order 0 by hand: "aab" has n = 3 bytes of t = 2 kinds.
    assert NGram(b"aab", order=0).probabilities(b"a")[0] == pytest.approx((2 + 2 / 256) / 5)
    with pytest.raises(ValueError, match="order"):
        NGram(b"a", order=7)


def test_baselines_find_repetition_cheap() -> None:
    noise = bytes(np.random.default_rng(0).integers(0, 256, 4000, dtype=np.uint8))
    assert NGram(noise).bits_per_byte([noise]) < 2
    assert NGram(noise[:2000]).bits_per_byte([noise[2000:]]) > 7.5
    assert xz_bits_per_byte(noise, noise) < 1
    assert xz_bits_per_byte(noise[:2000], noise[2000:]) > 7


def test_shipped_excerpts_are_plain_and_of_the_right_size() -> None:
    for domain in DOMAINS:
        body = (HELD_OUT / f"{domain}.txt").read_bytes()
        assert 8000 <= len(body) <= 16_000
        assert all(byte == 10 or 32 <= byte <= 126 for byte in body)


@pytest.fixture
def small():
    pytest.importorskip("torch")
    from sw_model.training.model import ModelConfig

    return ModelConfig(
        layers=2, hidden=32, heads=2, experts=4, top_k=2, intermediate=32, shared_intermediate=64, context=32
    )


def test_checkpoint_round_trip_keeps_family_names(small, tmp_path: Path) -> None:
    import torch
    from safetensors import safe_open

    from sw_model.training import model as network

    torch.manual_seed(1)
    made = network.Model(small).eval()
    network.save_checkpoint(made.state_dict(), small, tmp_path)
    again = network.load_checkpoint(tmp_path).eval()
    tokens = torch.randint(0, 256, (2, 20))
    torch.testing.assert_close(made(tokens)[0], again(tokens)[0], atol=2e-3, rtol=0.05)
    with safe_open(tmp_path / "model.safetensors", "np") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    assert shapes["model.layers.1.mlp.experts.3.down_proj.weight"] == (32, 32)
    assert shapes["model.layers.0.mlp.shared_expert.gate_proj.weight"] == (64, 32)
    assert shapes["model.layers.0.mlp.shared_expert_gate.weight"] == (1, 32)
    assert shapes["model.layers.0.mlp.gate.weight"] == (4, 32)


def test_moe_equals_the_sum_over_chosen_experts(small) -> None:
    import torch
    from torch.nn import functional as F

    from sw_model.training.model import MoE

    torch.manual_seed(2)
    block = MoE(small)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(5, 32)
    expected = torch.sigmoid(block.shared_weight(x)) * block.shared_down(
        F.silu(block.shared_gate(x)) * block.shared_up(x)
    )
    weights, chosen = F.softmax(block.router(x), -1).topk(2)
    for t, k in itertools.product(range(5), range(2)):
        e = chosen[t, k]
        inside = F.silu(block.gate[e] @ x[t]) * (block.up[e] @ x[t])
        expected[t] += weights[t, k] / weights[t].sum() * (inside @ block.down[e])
    torch.testing.assert_close(block(x)[0], expected)


def test_orthogonalise_brings_singular_values_near_one() -> None:
    torch = pytest.importorskip("torch")
    from sw_model.training.optim import orthogonalise

    torch.manual_seed(3)
    values = torch.linalg.svdvals(orthogonalise(torch.randn(3, 16, 48)))
    assert 0.6 < values.min() < values.max() < 1.3


def test_resumed_run_equals_unbroken_run(small, tmp_path: Path) -> None:
    import torch
    from rich.console import Console

    from sw_model.training import model as network
    from sw_model.training.recipe import Recipe, Stage
    from sw_model.training.train import Trainer

    documents = many_domains(6000)
    splits = corpus.build(documents, shares={"src": 1.0}, domain_bytes=10**9)
    corpus.write(splits, tmp_path / "corpus")
    stages = (
        Stage(name="first", share=1, mix={"code": 2}),
        Stage(name="second", share=1, mix={}, gate=1.2, adversary=0.1),
    )
    recipe = Recipe(
        model=small,
        stages=stages,
        steps=8,
        batch=5,
        warmup=2,
        dropout=0.1,
        distil=0.5,
        formats=("fp8", "int4"),
        patience=1,
        tolerance=100.0,
        probe_every=2,
        settle_rows=5,
        settle_every=2,
        validate_every=4,
        validation_bytes=500,
    )
    torch.manual_seed(9)
    network.save_checkpoint(network.Model(small).state_dict(), small, tmp_path / "teacher")
    quiet = Console(quiet=True)

    def trainer(name: str) -> Trainer:
        (tmp_path / name).mkdir(exist_ok=True)
        options = {"device": torch.device("cpu"), "teacher": tmp_path / "teacher"}
        return Trainer(recipe, tmp_path / "corpus", tmp_path / name, **options)

    whole = trainer("whole")
    assert whole.run(stop_after=1e9, console=quiet)
    assert sum(s["seconds"] for s in whole.stages) == pytest.approx(whole.seconds)
    first = trainer("first")
    for _ in range(6):
        first._update()
        first.step += 1
    first.save()
    second = trainer("second")
    second.resume(tmp_path / "first" / "state")
    assert second.run(stop_after=1e9, console=quiet)
    for a, b in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    assert whole.log[-1]["valid"] == pytest.approx(second.log[-1]["valid"], abs=1e-3)
    assert whole.precision.log == second.precision.log
    assert whole.precision.format == "int4"
    assert [row["stage"] for row in whole.log] == ["first", "second"]
    assert {"valid", "valid_gated", "valid_rounded"} <= set(whole.log[-1])
    for name in ("model.safetensors", "gate_rows.safetensors", "training_log.csv", "precision_log.csv"):
        assert (tmp_path / "second" / name).is_file()
    stages = whole.summary()["stages"]
    assert [stage["steps"] for stage in stages] == [4, 4]
    assert all(stage["watt_hours"] is None for stage in stages)


def test_a_recipe_that_distils_asks_for_its_teacher(small, tmp_path: Path) -> None:
    import torch

    from sw_model.training.recipe import Recipe, Stage
    from sw_model.training.train import Trainer

    stages = (Stage(name="only", share=1, mix={}),)
    recipe = Recipe(model=small, stages=stages, steps=1, batch=1, distil=0.5)
    with pytest.raises(ExpertileError, match="--teacher"):
        Trainer(recipe, tmp_path, tmp_path, device=torch.device("cpu"))


def test_questions_are_cut_out_with_their_answers() -> None:
    pytest.importorskip("torch")
    from sw_model.training import exact_match

    body = next(reasoning.documents(1, seed=5))
    asked = exact_match.prompts([body.encode()], 99)
    assert 5 < len(asked) < 24  # the first ones lack problems before them
    for prompt, kind, truth in asked:
        assert len(prompt) == exact_match.PROMPT
        question = prompt.decode().rsplit("Q: ", 1)[1]
        assert f"Q: {question}" in body
        assert exact_match.answer(body.split(f"Q: {question}", 1)[1]) == truth
        assert kind != "other"
    assert exact_match.answer("1+1=2.\nA: 2\n") == "2"
    assert exact_match.answer("1+1=2.\nA: 2") is None  # the line is not over
    assert exact_match.answer("no steps\nQ: another\nA: 3\n") is None


def test_kept_keys_and_values_change_nothing(small) -> None:
    import torch

    from sw_model.training.model import Model
    from sw_model.training.sample import continuations

    torch.manual_seed(4)
    model = Model(small)
    prompts = torch.randint(0, 256, (3, 7))
    written = continuations(model, prompts, 9)
    whole = torch.cat([prompts, written], dim=1)
    with torch.no_grad():
        again = model.eval()(whole[:, :-1])[0].argmax(dim=-1)
    assert torch.equal(again[:, 6:], written)
