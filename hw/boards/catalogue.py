"""The boards that there are; their pins are those of amaranth-boards."""

from __future__ import annotations

from amaranth.build import Attrs, Pins, Resource
from amaranth_boards.colorlight_5a75b_r7_0 import Colorlight_5A75B_R70Platform
from amaranth_boards.ecpix5 import ECPIX545Platform, ECPIX585Platform
from amaranth_boards.icebreaker import ICEBreakerPlatform
from amaranth_boards.icepi_zero import IcepiZero1_3Platform
from amaranth_boards.orangecrab_r0_2 import OrangeCrabR0_2_25FPlatform, OrangeCrabR0_2_85FPlatform
from amaranth_boards.tang_nano_9k import TangNano9kPlatform
from amaranth_boards.tang_primer_20k import TangPrimer20kDockPlatform
from amaranth_boards.ulx3s import (
    ULX3S_12F_Platform,
    ULX3S_25F_Platform,
    ULX3S_45F_Platform,
    ULX3S_85F_Platform,
)

from hw.boards.board import Board, pins
from hw.boards.ecp5 import ECP5
from hw.boards.family import Family
from hw.boards.gowin import GW1N, GW2A
from hw.boards.ice40 import ICE40

__all__ = ["BOARDS"]

BAUD = 1_500_000


def _ulx3s(platform: type, preset: str) -> Board:
    return _board(
        f"ulx3s_{platform.device[-3:].lower()}",
        f"ULX3S {platform.device[-3:]}",
        ECP5,
        platform,
        preset,
        clock_mhz=37.5,
        wanted={
            "clk": ("clk25", 0, None),
            "button_reset": ("button_fire", 0, None),
            "uart_rx": ("uart", 0, "rx"),
            "uart_tx": ("uart", 0, "tx"),
            **{f"led[{i}]": ("led", i, None) for i in range(8)},
        },
    )


def _ecpix5(platform: type, preset: str) -> Board:
    return _board(
        f"ecpix5_{platform.device[-3:].lower()}",
        f"ECPIX-5 {platform.device[-3:-1]}",
        ECP5,
        platform,
        preset,
        clock_mhz=50.0,
        wanted={
            "clk": ("clk100", 0, None),
            "button_reset": ("rst", 0, None),
            "uart_rx": ("uart", 0, "rx"),
            "uart_tx": ("uart", 0, "tx"),
            **{f"led[{i}]": ("rgb_led", i, colour) for i, colour in enumerate("gbrg")},
        },
    )


def _orangecrab(platform: type, preset: str, *, spi: bool = False) -> Board:
    """The host is at the Feather header: pins 0 (from it) and 1 (to it), or SPI and pin 10."""
    level = Attrs(IO_TYPE="LVCMOS33", PULLMODE="UP")

    def header(pin: str, dir: str) -> Resource:
        return Resource(pin, 0, Pins(pin, dir=dir, conn=("io", 0)), level)

    line = {"uart_rx": header("0", "i"), "uart_tx": header("1", "o")}
    if spi:
        line = {
            "spi_sck": header("sck", "i"),
            "spi_cs_n": header("10", "i"),
            "spi_copi": header("copi", "i"),
            "spi_cipo": header("cipo", "o"),
        }
    return _board(
        f"orangecrab_{platform.device[-3:].lower()}{'_spi' if spi else ''}",
        f"OrangeCrab r0.2 {platform.device[-3:]}{', SPI' if spi else ''}",
        ECP5,
        platform,
        preset,
        clock_mhz=48.0,
        wanted={
            "clk": ("clk", 0, None),
            "button_reset": ("button", 0, None),
            **line,
            **{f"led[{i}]": ("rgb_led", 0, colour) for i, colour in enumerate("gbr")},
        },
    )


def _icepi_zero(platform: type, preset: str) -> Board:
    return _board(
        "icepi_zero",
        "Icepi Zero v1.3",
        ECP5,
        platform,
        preset,
        clock_mhz=37.5,
        wanted={
            "clk": ("clk50", 0, None),
            "button_reset": ("button", 0, None),
            "uart_rx": ("uart", 0, "rx"),
            "uart_tx": ("uart", 0, "tx"),
            **{f"led[{i}]": ("led", i, None) for i in range(5)},
        },
    )


def _colorlight_5a75b(platform: type, preset: str) -> Board:
    """Of its pins only two are not behind buffers that drive outwards, those of button and lamp: its UART."""
    return _board(
        "colorlight_5a75b",
        "Colorlight 5A-75B v7.0",
        ECP5,
        platform,
        preset,
        clock_mhz=37.5,
        wanted={
            "clk": ("clk25", 0, None),
            "uart_rx": ("uart", 0, "rx"),
            "uart_tx": ("uart", 0, "tx"),
        },
    )


def _icebreaker(platform: type, preset: str) -> Board:
    return _board(
        "icebreaker",
        "iCEBreaker",
        ICE40,
        platform,
        preset,
        clock_mhz=21.0,
        wanted={
            "clk": ("clk12", 0, None),
            "button_reset": ("button", 0, None),
            "uart_rx": ("uart", 0, "rx"),
            "uart_tx": ("uart", 0, "tx"),
            "led[0]": ("led_g", 0, None),
            "led[1]": ("led_r", 0, None),
        },
    )


def _tang(name: str, title: str, family: Family, platform: type, preset: str) -> Board:
    return _board(
        name,
        title,
        family,
        platform,
        preset,
        clock_mhz=27.0,
        wanted={
            "clk": ("clk27", 0, None),
            "button_reset": ("button", 0, None),
            "uart_rx": ("uart", 0, "rx"),
            "uart_tx": ("uart", 0, "tx"),
            **{f"led[{i}]": ("led", i, None) for i in range(6)},
        },
    )


def _board(
    name: str,
    title: str,
    family: Family,
    platform: type,
    preset: str,
    *,
    clock_mhz: float,
    wanted: dict,
) -> Board:
    part, package, speed = family.part(platform)
    oscillator = next(r for r in platform.resources if r.name == platform.default_clk)
    return Board(
        name=name,
        title=title,
        family=family,
        part=part,
        package=package,
        speed=speed,
        preset=preset,
        oscillator_mhz=oscillator.clock.frequency / 1e6,
        clock_mhz=clock_mhz,
        baud=BAUD,
        pins=pins(platform, wanted),
    )


BOARDS: dict[str, Board] = {
    board.name: board
    for board in (
        _ulx3s(ULX3S_12F_Platform, "ecp5_25f"),
        _ulx3s(ULX3S_25F_Platform, "ecp5_25f"),
        _ulx3s(ULX3S_45F_Platform, "ecp5_45f"),
        _ulx3s(ULX3S_85F_Platform, "ulx3s_85f"),
        _orangecrab(OrangeCrabR0_2_25FPlatform, "ecp5_25f"),
        _orangecrab(OrangeCrabR0_2_85FPlatform, "ulx3s_85f"),
        _orangecrab(OrangeCrabR0_2_85FPlatform, "ulx3s_85f", spi=True),
        _ecpix5(ECPIX545Platform, "ecp5_45f"),
        _ecpix5(ECPIX585Platform, "ulx3s_85f"),
        _icepi_zero(IcepiZero1_3Platform, "ecp5_25f"),
        _colorlight_5a75b(Colorlight_5A75B_R70Platform, "ecp5_25f"),
        _icebreaker(ICEBreakerPlatform, "icebreaker"),
        _tang("tang_nano_9k", "Tang Nano 9K", GW1N, TangNano9kPlatform, "gw1n_9"),
        _tang("tang_primer_20k", "Tang Primer 20K, dock", GW2A, TangPrimer20kDockPlatform, "gw2a_18"),
    )
}
