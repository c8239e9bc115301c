// A host at the pins of a board top: plays the bytes of a file on the serial line and keeps what comes back.
//
// Each line of +in=FILE is a hexadecimal number: below 100 a byte to send, else wait until (number - 100) bytes
// have come back in all. Bytes that come back go to +out=FILE, one a line. A line is 8 clock cycles a bit.

`timescale 1ns / 1ns

module EHXPLLL (
    input CLKI, CLKFB, RST, STDBY, PHASESEL0, PHASESEL1, PHASEDIR, PHASESTEP, PHASELOADREG, PLLWAKESYNC, ENCLKOP,
    output CLKOP, LOCK
);
  parameter CLKI_DIV = 1, CLKFB_DIV = 1, CLKOP_DIV = 1, CLKOP_CPHASE = 0, CLKOP_FPHASE = 0;
  parameter CLKOP_ENABLE = "", DPHASE_SOURCE = "", FEEDBK_PATH = "", INTFB_WAKE = "", OUTDIVIDER_MUXA = "",
            PLLRST_ENA = "", STDBY_ENABLE = "";
  reg [4:0] count = 0;
  always @(posedge CLKI) if (!LOCK) count <= count + 1;
  assign CLKOP = CLKI;  // the ratio is of no matter here
  assign LOCK  = count[4];
endmodule

module bench;
  localparam BIT = 8;
  reg clk = 0, rx = 1, button = 0;
  wire tx;
  wire [7:0] led;
  always #1 clk = !clk;
  board_top board (.clk25(clk), .button_reset(button), .uart_rx(rx), .uart_tx(tx), .led(led));

  integer in, out, got, i, value, received = 0;
  reg [8*256-1:0] name;
  reg busy = 0;  // lamp 1 has been seen

  task wait_bits(input integer n);
    repeat (n * BIT) @(posedge clk);
  endtask

  always @(posedge clk) if (led[1]) busy <= 1;

  reg [7:0] data;
  initial begin
    if (!$value$plusargs("out=%s", name)) $fatal(1, "no +out");
    out = $fopen(name, "w");
    forever begin
      @(negedge tx);
      repeat (BIT + BIT / 2) @(posedge clk);
      for (int b = 0; b < 8; b++) begin
        data[b] = tx;
        wait_bits(1);
      end
      if (!tx) $fatal(1, "no stop bit");
      $fdisplay(out, "%h", data);
      received = received + 1;
    end
  end

  initial begin
    if (!$value$plusargs("in=%s", name)) $fatal(1, "no +in");
    in = $fopen(name, "r");
    wait_bits(20);
    while ($fscanf(in, "%h", value) == 1) begin
      if (value >= 'h100) begin
        i = 0;
        while (received < value - 'h100) begin
          wait_bits(1);
          i = i + 1;
          if (i > 20000) $fatal(1, "%0d bytes came back, not %0d", received, value - 'h100);
        end
      end else begin
        rx = 0;
        wait_bits(1);
        for (i = 0; i < 8; i = i + 1) begin
          rx = value[i];
          wait_bits(1);
        end
        rx = 1;
        wait_bits(1);
      end
    end
    wait_bits(4);
    if (led[2] || !led[3] || !busy) $fatal(1, "lamps: %b", led);
    $fclose(out);
    $finish;
  end
endmodule
