// What AXI4-Lite asks of a subordinate, as assertions on the register file's ports; no input is assumed.
module rules (
    input clk, rst,
    input [11:0] awaddr, araddr, input [31:0] wdata, input [3:0] wstrb,
    input awvalid, wvalid, bready, arvalid, rready, input [47:0] counter
);
  wire awready, wready, bvalid, arready, rvalid;
  wire [1:0] bresp, rresp;
  wire [31:0] rdata;
  wire pending;  // a counter comes in this cycle
  register_file dut (
      .clk(clk), .rst(rst), .awaddr(awaddr), .awprot(3'd0), .awvalid(awvalid), .awready(awready), .wdata(wdata),
      .wstrb(wstrb), .wvalid(wvalid), .wready(wready), .bresp(bresp), .bvalid(bvalid), .bready(bready),
      .araddr(araddr), .arprot(3'd0), .arvalid(arvalid), .arready(arready), .rdata(rdata), .rresp(rresp),
      .rvalid(rvalid), .rready(rready), .counter(counter), .pending(pending));

  reg [1:0] writes = 0, reads = 0;  // requests taken and not yet answered
  reg was_reset = 1, b_held = 0, r_held = 0;
  reg [1:0] b_before = 0, r_before = 0;
  reg [31:0] data_before = 0;
  always @(posedge clk) begin
    writes <= rst ? 0 : writes + (awvalid & awready) - (bvalid & bready);
    reads <= rst ? 0 : reads + (arvalid & arready) - (rvalid & rready);
    was_reset <= rst;
    b_held <= ~rst & bvalid & ~bready;
    r_held <= ~rst & rvalid & ~rready;
    b_before <= bresp;
    r_before <= rresp;
    data_before <= rdata;
  end
  always @* begin
    assert (!was_reset || !bvalid && !rvalid);  // nothing is answered out of reset
    assert (bvalid == (writes == 1) && writes < 2);  // one response a request, and none without
    assert ((rvalid || pending) == (reads == 1) && reads < 2 && !(rvalid && pending));
    assert (!was_reset || !pending);
    assert (!b_held || bvalid && bresp == b_before);  // offered until it is taken, unchanged
    assert (!r_held || rvalid && rresp == r_before && rdata == data_before);
    assert ((awvalid & awready) == (wvalid & wready));  // address and data are taken together
    assert (!bvalid || !bresp[0]);  // OKAY or SLVERR
    assert (!rvalid || !rresp[0]);
  end
endmodule
