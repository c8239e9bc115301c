"""The whole router: rows of one token after the other under changing rules and gates, as the model routes."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from amaranth_bench import clock, simulate
from random_layers import random_gate, random_layer, random_side
from test_hw_numerics import as_items
from test_hw_router import config, random_rule, rows_of

from hw.router.router import Router
from sw_model import golden
from sw_model.formats import Scaled
from sw_model.gate import MAX_TAU, SideBand, admit, entropy_scale, saturate
from sw_model.moe import MoELayer, RouterRule


class Bench:
    """A router with a layer's rule and gate in its registers and tables."""

    def __init__(self, ctx: Any, dut: Router, layer: MoELayer, rng: np.random.Generator) -> None:
        self.ctx, self.dut, self.layer, self.rng = ctx, dut, layer, rng

    async def load(self, table: str, entries: list[int]) -> None:
        for address, value in enumerate(entries):
            self.ctx.set(self.dut.load_addr, address)
            self.ctx.set(self.dut.load_data, value & 0xFFFFFFFF)
            self.ctx.set(getattr(self.dut, f"load_{table}_en"), 1)
            await clock(self.ctx)
        self.ctx.set(getattr(self.dut, f"load_{table}_en"), 0)

    async def configure(self, gate: Any, resident: np.ndarray, row: int) -> None:
        layer, ctx, dut, rule = self.layer, self.ctx, self.dut, self.layer.rule
        bias = np.zeros(layer.n_experts) if layer.selection_bias is None else layer.selection_bias
        await self.load("biases", golden.fixed_bias(bias).tolist())
        ctx.set(
            dut.rule,
            {
                "experts": layer.n_experts,
                "top_k": rule.top_k,
                "groups": rule.groups,
                "top_groups": rule.top_groups,
                "scale": golden.fixed_scale(rule.scale),
                "renormalise": rule.renormalise,
                "sigmoid": rule.scoring == "sigmoid",
                "top2": rule.group_score == "top2",
                "shared_gated": layer.shared_gate is not None,
                "density_row": gate is not None and gate.density_row is not None,
            },
        )
        if gate is None:  # what registers of the last gate are left must not matter
            noise = {"enable": 0, "cap": 0, "phi": 32767, "psi": 32767, "tau": [32767] * MAX_TAU}
            ctx.set(dut.gate, noise)
            return
        names = ("info", "entropy", "density", "lam", "phi", "psi", "cap")
        ctx.set(
            dut.gate,
            {
                "enable": 1,
                "entropy_scale": entropy_scale(layer.n_experts),
                "tau": [*gate.tau, *[32767] * (MAX_TAU - len(gate.tau))],
                **{name: getattr(gate, name) for name in names},
            },
        )
        cost, miss = gate.cost.tolist(), gate.miss.tolist()
        await self.load("costs", [(b << 16) | (a & 0xFFFF) for a, b in zip(cost, miss, strict=True)])
        await self.load("resident", resident.astype(int).tolist())
        table = np.zeros((len(gate.domain_bias), row), np.int64)
        table[:, : layer.n_experts] = gate.domain_bias
        await self.load("domains", (table.ravel() & 0xFFFF).tolist())

    async def token(self, rows: Scaled, info: int, tag: int) -> tuple[list, list, int, list]:
        """Experts, weights, the base expert's weight, and how many each level removed (empty without)."""
        ctx, dut, rng = self.ctx, self.dut, self.rng
        ctx.set(dut.side, {"info": info, "tag": max(tag, 0), "tagged": tag >= 0})
        for r, number in enumerate(as_items(rows)):
            while rng.random() < 0.2:
                ctx.set(dut.i.valid, 0)
                await clock(ctx)
            ctx.set(dut.i.payload, {"number": number, "last": r == len(rows.mag) - 1})
            ctx.set(dut.i.valid, 1)
            await clock(ctx)
        ctx.set(dut.i.valid, 0)
        removed: list[int] = []
        for _ in range(400):
            done, valid, counts = await clock(ctx, dut.done, dut.removed_valid, dut.removed)
            if valid:
                assert not removed
                removed = [counts[level] for level in range(4)]
            if done:
                break
        assert done
        for _ in range(int(rng.integers(4))):
            assert await clock(ctx, dut.done, dut.removed_valid) == (1, 0)
        route = ctx.get(dut.route)
        count = route.chosen.count
        ctx.set(dut.ack, 1)
        await clock(ctx)
        ctx.set(dut.ack, 0)
        assert await clock(ctx, dut.done) == (0,)
        experts, weights = (
            [field[j] for j in range(count)] for field in (route.chosen.expert, route.chosen.weight)
        )
        return experts, weights, route.shared, removed


@pytest.mark.parametrize("gated", [False, True], ids=["free", "gate"])
@pytest.mark.parametrize("max_k", [1, 2, 4])
def test_router(max_k: int, gated: bool) -> None:
    """Tokens one after the other under changing layers and gates, as the model routes them."""
    rng = np.random.default_rng(max_k)
    dut = Router(config(max_top_k=max_k))
    kept_all = kept_none = 0

    async def bench(ctx: Any) -> None:
        nonlocal kept_all, kept_none
        for trial in range(25):
            experts, rule = random_rule(rng, 12, max_k)
            options = {name: getattr(rule, name) for name in RouterRule.__dataclass_fields__}
            layer = random_layer(
                rng,
                hidden=32,
                width=1,
                experts=experts,
                shared=1,
                gated=bool(rng.integers(2)),
                selection_bias=rule.scoring == "sigmoid" and bool(rng.integers(2)),
                **options,
            )
            domains = int(rng.integers(1, 9))
            gate = None
            if gated and trial % 4:  # off now and then, between tokens with other gates
                rows, density = (bool(flag) for flag in rng.integers(2, size=2))
                gate = random_gate(rng, layer, domains=domains, rows=rows, density=density)
                gate = replace(gate, cap=int(rng.choice([0, 1, 4])) if trial % 7 == 0 else 255)
            resident = rng.random(experts) < 0.5
            here = Bench(ctx, dut, layer, rng)
            await here.configure(gate, resident, row=16)
            more = [layer.shared_gate is not None, False, 0]
            if gate is not None:
                more[1:] = gate.density_row is not None, domains if gate.domain_rows is not None else 0
            for n in range(4):
                rows = rows_of(rng, experts + sum(more), trial + n)
                side = random_side(rng, 1, domains)
                got = await here.token(rows, int(side.info[0]), int(side.tag[0]))
                want = expected(layer, gate, rows, side, resident, more)
                assert got == want, (trial, n)
                kept_all += len(want[0]) == rule.top_k
                kept_none += not want[0]

    simulate(dut, bench)
    assert kept_all > 10 and (kept_none > 5 or not gated)


def expected(
    layer: MoELayer, gate: Any, rows: Scaled, side: SideBand, resident: np.ndarray, more: list
) -> tuple[list, list, int, list]:
    """What :meth:`Bench.token` should give, from the golden model."""

    def part(a: int, b: int | None = None) -> Scaled:
        return Scaled(sign=rows.sign[None, a:b], top=rows.top[None, a:b], mag=rows.mag[None, a:b])

    at = layer.n_experts
    routing = golden.route(part(0, at), layer.rule, layer.selection_bias)
    shared = golden.ONE
    if more[0]:
        shared = int(golden.to_prob(golden.sigmoid(part(at, at + 1)))[0, 0])
        at += 1
    experts, weights = routing.experts[0].tolist(), routing.weights[0].tolist()
    if gate is None:
        return experts, weights, shared, []
    density = np.zeros(1, np.int64)
    if more[1]:
        density = saturate(golden.to_fixed(part(at, at + 1), 8))[0]
        at += 1
    domain = golden.to_fixed(part(at), golden.LOGIT_FRACTION).argmax(axis=1) if more[2] else density * 0
    decisions = admit(
        gate, experts=routing.experts, weights=routing.weights, density_row=density, domain=domain,
        h=routing.entropy, side=side, resident=resident,
    )  # fmt: skip
    kept = decisions.kept[0]
    removed = [int((decisions.removed == level).sum()) for level in range(1, 5)]
    return (
        [e for e, k in zip(experts, kept, strict=True) if k],
        [w for w, k in zip(weights, kept, strict=True) if k],
        shared,
        removed,
    )
