// What AXI4-Stream asks of a transmitter, at the registers that y leaves through: items are numbered as they go in.
module rules (
    input clk, rst, i__valid, o__ready,
    input [32:0] i__payload
);
  wire i__ready, o__valid;
  wire [32:0] o__payload, behind;
  skid dut (
      .clk(clk), .rst(rst), .i__valid(i__valid), .i__payload(i__payload), .i__ready(i__ready), .o__valid(o__valid),
      .o__payload(o__payload), .o__ready(o__ready), .behind(behind));

  reg was_reset = 1, held = 0;
  reg [32:0] before = 0, in = 0, out = 0;  // items that went in, that came out
  always @(posedge clk) begin
    was_reset <= rst;
    held <= ~rst & o__valid & ~o__ready;
    before <= o__payload;
    in <= rst ? 0 : in + (i__valid & i__ready);
    out <= rst ? 0 : out + (o__valid & o__ready);
  end
  always @* begin
    assume (!i__valid || i__payload == in);

    assert (!was_reset || !o__valid);
    assert (!held || o__valid && o__payload == before);  // offered until it is taken, unchanged
    assert (!o__valid || o__payload == out);  // every item, in order, once
    assert (in - out == o__valid + 33'd1 - i__ready && (i__ready || o__valid && behind == out + 33'd1));
  end
endmodule
