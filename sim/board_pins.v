// The board top for a host at its serial line or SPI, and models of the PLLs: every output runs at the speed of the
// input, since only the core's clock matters to the line. LAMPS: how many, INVERTED: those that are active low;
// RELEASED: the level of the button at rest. Both are defined for boards that have them.

`ifdef LAMPS
`define LED_PORT , .led(pins)
`define LIT pins ^ `INVERTED
`else
`define LED_PORT
`define LAMPS 1
`define LIT 0
`endif
`ifdef RELEASED
`define BUTTON_PORT , .button_reset(`RELEASED)
`else
`define BUTTON_PORT
`endif

`ifdef SPI
module spi_top (
    input clk,
    input sck,
    input cs_n,
    input copi,
    output cipo,
    output [`LAMPS - 1:0] led
);
  wire [`LAMPS - 1:0] pins;
  board_top board (
      .clk(clk), .spi_sck(sck), .spi_cs_n(cs_n), .spi_copi(copi), .spi_cipo(cipo) `BUTTON_PORT `LED_PORT
  );
  assign led = `LIT;
endmodule
`else
module serial_top (
    input clk,
    input uart_rx,
    output uart_tx,
    output [`LAMPS - 1:0] led
);
  wire [`LAMPS - 1:0] pins;
  board_top board (.clk(clk), .uart_rx(uart_rx), .uart_tx(uart_tx) `BUTTON_PORT `LED_PORT);
  assign led = `LIT;
endmodule
`endif

module EHXPLLL (
    input CLKI, CLKFB, RST, STDBY, PHASESEL0, PHASESEL1, PHASEDIR, PHASESTEP, PHASELOADREG, PLLWAKESYNC, ENCLKOP,
    output CLKOP, CLKOS, LOCK
);
  parameter CLKI_DIV = 1, CLKFB_DIV = 1, CLKOP_DIV = 1, CLKOP_CPHASE = 0, CLKOP_FPHASE = 0;
  parameter CLKOS_DIV = 1, CLKOS_CPHASE = 0, CLKOS_FPHASE = 0;
  parameter CLKOP_ENABLE = "", CLKOS_ENABLE = "", DPHASE_SOURCE = "", FEEDBK_PATH = "", INTFB_WAKE = "",
            OUTDIVIDER_MUXA = "", OUTDIVIDER_MUXB = "", PLLRST_ENA = "", STDBY_ENABLE = "";
  reg [4:0] count = 0;
  always @(posedge CLKI) if (!LOCK) count <= count + 1;
  assign CLKOP = CLKI;
  assign CLKOS = CLKI;
  assign LOCK  = count[4];
endmodule

module SB_PLL40_PAD (
    input PACKAGEPIN, RESETB, BYPASS,
    output PLLOUTGLOBAL, LOCK
);
  parameter FEEDBACK_PATH = "", PLLOUT_SELECT = "";
  parameter [3:0] DIVR = 0;
  parameter [6:0] DIVF = 0;
  parameter [2:0] DIVQ = 0, FILTER_RANGE = 0;
  reg [4:0] count = 0;
  always @(posedge PACKAGEPIN) if (!LOCK) count <= count + 1;
  assign PLLOUTGLOBAL = PACKAGEPIN;
  assign LOCK = count[4];
endmodule

module rPLL (
    input CLKIN, CLKFB, RESET, RESET_P,
    input [5:0] FBDSEL, IDSEL, ODSEL,
    input [3:0] PSDA, DUTYDA, FDLY,
    output CLKOUT, LOCK
);
  parameter FCLKIN = "", IDIV_SEL = 0, FBDIV_SEL = 0, ODIV_SEL = 0;
  reg [4:0] count = 0;
  always @(posedge CLKIN) if (!LOCK) count <= count + 1;
  assign CLKOUT = CLKIN;
  assign LOCK = count[4];
endmodule
