// TokenInput passes a stream on by the AXI4-Stream rules, and lets no token of another length through.
module rules (
    input clk, rst, i__valid, o__ready,
    input [32:0] i__payload,
    input [15:0] hidden
);
  wire i__ready, o__valid, discard, length_error, dropping;
  wire [32:0] o__payload;
  wire [15:0] count;
  token_input dut (
      .clk(clk), .rst(rst), .i__valid(i__valid), .i__payload(i__payload), .i__ready(i__ready), .o__valid(o__valid),
      .o__payload(o__payload), .o__ready(o__ready), .hidden(hidden), .discard(discard),
      .length_error(length_error), .count(count), .fsm_state(dropping));

  reg was_reset = 1, i_held = 0, o_held = 0, discard_before = 0, drop = 0;
  reg [32:0] i_before = 0, o_before = 0;
  reg [15:0] hidden_before = 0, n = 0;  // n: elements of this token that were passed on
  wire last = i__payload[32], moved = o__valid & o__ready;
  always @(posedge clk) begin
    was_reset <= rst;
    i_held <= ~rst & i__valid & ~i__ready;
    i_before <= i__payload;
    o_held <= ~rst & o__valid & ~o__ready;
    o_before <= o__payload;
    discard_before <= discard;
    hidden_before <= hidden;
    n <= rst | moved & (last | discard) ? 0 : n + moved;
    drop <= ~rst & (drop ? ~(i__valid & last) : moved & discard & ~last);
  end
  always @* begin
    assume (!i_held || i__valid && i__payload == i_before);
    assume (hidden != 0 && (was_reset || hidden == hidden_before));

    assert (!o_held || o__valid && o__payload == o_before && discard == discard_before);
    assert (count == n && n < hidden && dropping == drop);
    assert (!moved || discard || last == (n == hidden - 1));  // what is not taken back has HIDDEN elements
    assert (!moved || !discard || last != (n == hidden - 1));  // and only what has not is
    assert (length_error == (moved & discard));
    assert (drop ? i__ready && !o__valid : o__valid == i__valid && i__ready == o__ready);  // nothing is lost
    assert (!o__valid || o__payload == i__payload);
  end
endmodule
