// The iCE40 UltraPlus's own multiplier in the place of the module of that name in generated Verilog
// (hw/micro/lanes.py): operands and products registered, two signed 8 x 8 products.
module expertile_two_products (
    input clk,
    input rst,
    input [7:0] a_low,
    input [7:0] a_high,
    input [7:0] b_low,
    input [7:0] b_high,
    output [15:0] low,
    output [15:0] high
);
  SB_MAC16 #(
      .A_REG(1'b1), .B_REG(1'b1), .TOP_8x8_MULT_REG(1'b1), .BOT_8x8_MULT_REG(1'b1),
      .TOPOUTPUT_SELECT(2'b10), .BOTOUTPUT_SELECT(2'b10), .MODE_8x8(1'b1), .A_SIGNED(1'b1), .B_SIGNED(1'b1)
  ) mac (
      .CLK(clk), .CE(1'b1), .A({a_high, a_low}), .B({b_high, b_low}), .C(16'b0), .D(16'b0), .O({high, low}),
      .AHOLD(1'b0), .BHOLD(1'b0), .CHOLD(1'b0), .DHOLD(1'b0),
      .IRSTTOP(1'b0), .IRSTBOT(1'b0), .ORSTTOP(1'b0), .ORSTBOT(1'b0),
      .OLOADTOP(1'b0), .OLOADBOT(1'b0), .ADDSUBTOP(1'b0), .ADDSUBBOT(1'b0), .OHOLDTOP(1'b0), .OHOLDBOT(1'b0),
      .CI(1'b0), .ACCUMCI(1'b0), .SIGNEXTIN(1'b0)
  );
endmodule
