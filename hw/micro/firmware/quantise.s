; The activation quantisers: a token's elements, binary32, to INT8 and to two bytes of INT16; its h to INT8.

.array elements ELEMENTS        ; of the token; then its h, as scaled numbers
.array block_tops MAX_BLOCKS
.scratch phase q_at q_end q_b q_top q_token_top q_bits q_mag q_n q_code q_t8 q_t16 q_s8 q_s16 q_lane
.var q_blocks base8 base16

quantise_token:
        ld HIDDEN
        st q_at
        add 31
        shr 5
        st q_blocks
        shl 5
        st q_end
.pad:   ld q_at
        sub q_end
        jz .padded
        ldx q_at
        ld 0
        st elements,x
        ld q_at
        add 1
        st q_at
        jmp .pad
.padded:
        ld 1                    ; the exponent of 0, as binary32 stores that of the smallest numbers
        st q_token_top
        ld 0
        st q_b
        st q_at
.tops:  ld 1
        st q_top
        ld 32
        st q_lane
.top:   ldx q_at
        ld elements,x
        shr 23
        and 255
        st q_n
        ld q_top
        sub q_n
        jp .less
        ld q_n
        st q_top
.less:  ld q_at
        add 1
        st q_at
        ld q_lane
        sub 1
        st q_lane
        jnz .top
        ldx q_b
        ld q_top
        st block_tops,x
        ld q_token_top
        sub q_top
        jp .lower
        ld q_top
        st q_token_top
.lower: ld q_b
        add 1
        st q_b
        sub q_blocks
        jnz .tops

        ld q_token_top
        sub ACTIVATION_SPREAD
        st q_t8                 ; what a block's exponent is at least
        sub 127+6+ROW_EXP_BIAS
        st base8
        ld q_token_top
        sub ROUTER_SPREAD
        st q_t16
        sub 127+13+ROW_EXP_BIAS
        st base16

        ld 0
        st q_b
        st q_at
.block: ldx q_b
        ld block_tops,x
        st q_top
        ld q_at
        st ACT_AT
        ld q_top
        sub q_t8
        jp .wide8
        ld 0
.wide8: st ACT_SHIFT
        add q_t8
        add 17
        st q_s8
        ld q_at
        add HIGH*32
        st ACT_AT
        ld q_top
        sub q_t16
        jp .wide16
        ld 0
.wide16:
        st q_n
        add q_t16
        add 10
        st q_s16
        ld q_n
        add 8
        st ACT_SHIFT
        ld q_at
        add LOW*32
        st ACT_AT
        ld q_n
        st ACT_SHIFT
        ld 32
        st q_lane

.element:
        ldx q_at
        ld elements,x
        st q_bits
        shr 23
        and 255
        jz .small
        st q_top
        ld q_bits
        and (1<<23)-1
        or 1<<23
        jmp .mag
.small: ld 1
        st q_top
        ld q_bits
        and (1<<23)-1
.mag:   st q_mag
        ld q_bits
        and 1<<31
        st q_bits               ; its sign
        ld q_s8
        sub q_top
        st q_n
        call code8
        ld q_at
        st ACT_AT
        ld q_code
        st ACT
        ld q_s16
        sub q_top
        st q_n
        ld q_mag
        shr q_n
        rnd
        call signed
        ld q_at
        add HIGH*32
        st ACT_AT
        ld q_code
        add (1<<16)+128         ; the low byte counts from -128 to 127
        shr 8
        st ACT
        ld q_at
        add LOW*32
        st ACT_AT
        ld q_code
        st ACT
        ld q_at
        add 1
        st q_at
        ld q_lane
        sub 1
        st q_lane
        jnz .element
        ld ACT_WRITES
        add 3
        st ACT_WRITES
        ld q_b
        add 1
        st q_b
        sub q_blocks
        jnz .block
        ret

; q_mag / 2**q_n to nearest even, at most 127, with the sign of q_bits, to q_code.
code8:  ld q_mag
        shr q_n
        rnd
        sub 127
        jn .fits
        ld 0
.fits:  add 127
signed: st q_code
        ld q_bits
        jz .positive
        ld 0
        sub q_code
        st q_code
.positive:
        ret

; All h of the token, on one LSB; h_blocks of them, h_top the largest of their exponents.
quantise_h:
        ld h_top
        sub ACTIVATION_SPREAD
        st q_t8
        ld 0
        st q_b
        st q_at
.block: ld 0                    ; the exponent of 0, TOP_MIN
        st q_top
        ld 32
        st q_lane
.top:   ldx q_at
        ld elements,x
        shr 24
        and 2*TOP_BIAS-1
        st q_n
        ld q_top
        sub q_n
        jp .less
        ld q_n
        st q_top
.less:  ld q_at
        add 1
        st q_at
        ld q_lane
        sub 1
        st q_lane
        jnz .top
        ld q_at
        sub 32
        st q_at
        add H*32
        st ACT_AT
        ld q_top
        sub q_t8
        jp .wide
        ld 0
.wide:  st ACT_SHIFT
        add q_t8
        add 17
        st q_s8
        ld 32
        st q_lane
.element:
        ldx q_at
        ld elements,x
        st q_bits
        and MAG
        st q_mag
        ld q_bits
        shr 24
        and 2*TOP_BIAS-1
        st q_top
        ld q_bits
        and 1<<63
        st q_bits
        ld q_s8
        sub q_top
        st q_n
        call code8
        ld q_code
        st ACT
        ld q_at
        add 1
        st q_at
        ld q_lane
        sub 1
        st q_lane
        jnz .element
        ld ACT_WRITES
        add 1
        st ACT_WRITES
        ld q_b
        add 1
        st q_b
        sub h_blocks
        jnz .block
        ret
