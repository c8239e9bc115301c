; Numbers. A scaled number (-1)**sign * mag * 2**(top - 23) is one word: sign [63], top + TOP_BIAS [34:24],
; mag [23:0]; zero is the word 0.

.var exp n_value n_sign n_mag n_top a_gate a_up a_p a_m a_s row_base
.scratch leaf f_in f_top f_mag f_shift
.scratch leaf g_in g_top g_mag g_shift g_arg g_base g_slope g_u g_s
.scratch leaf e_d e_whole e_frac e_base e_s e_u

; A, signed, times 2**exp, to a scaled number: 24 bits, to nearest even.
normalise:
        jz .zero
        st n_value
        jn .negative
        ld 0
        st n_sign
        ld n_value
        jmp normalise_magnitude
.negative:
        ld 1<<63
        st n_sign
        ld 0
        sub n_value
        jmp normalise_magnitude
.zero:  ret

; The same of A, above 0, with the sign in n_sign.
normalise_magnitude:
        nrm
        shr 40
        rnd
        st n_mag
        ld exp
        sub COUNT
        add 63+TOP_BIAS
        st n_top
        ld n_mag
        and 1<<24
        jz .done
        ld n_top                ; it was rounded up to a power of two
        add 1
        st n_top
        ld 1<<23
        st n_mag
.done:  ld n_top
        shl 24
        or n_mag
        or n_sign
        ret

; The engine's row, in units of 2**row_base, to a scaled number.
row:
        ld ROW_EXP
        add row_base
        st exp
        ld SUM
        jmp normalise

; A, a scaled number, to signed fixed point with 16 bits of fraction and 31 in all, nearest even, saturated.
to_fixed:
        st f_in
        shr 24
        and 2*TOP_BIAS-1
        st f_top
        sub TOP_BIAS+15
        jp .most
        ld TOP_BIAS+14
        sub f_top
        st f_shift
        ld f_in
        and MAG
        shl 7
        shr f_shift
        rnd
        st f_mag
        sub FIXED_MAX
        jn .sign
.most:  ld FIXED_MAX
        st f_mag
.sign:  ld f_in
        jn .negative
        ld f_mag
        ret
.negative:
        ld 0
        sub f_mag
        ret

; sigmoid of A, a scaled number, in Q1.24: |x| truncated to Q4.16, its segment's knots, what lies between them.
sigmoid:
        st g_in
        and MAG
        shl 16
        st g_mag
        ld g_in
        shr 24
        and 2*TOP_BIAS-1
        st g_top
        sub TOP_BIAS+4
        jp .most
        ld TOP_BIAS+23
        sub g_top
        st g_shift
        ld g_mag
        shr g_shift
        jmp .look
.most:  ld (1<<20)-1
.look:  st g_arg
        shr 12
        add SIGMOID
        st TABLE_AT
        ld TABLE
        st g_base
        ld TABLE
        sub g_base
        st g_slope
        ldq g_slope
        ld g_arg
        and 4095
        st g_u
        mul g_u
        add 2048
        shr 12
        add g_base
        st g_s
        ld g_in
        jn .negative
        ld g_s
        ret
.negative:
        ld 1<<24
        sub g_s
        ret

; 2**-A of A >= 0 in Q16.16, in Q1.24. Knots fall, so what lies between them is taken away.
exp2:
        st e_d
        shr 16
        st e_whole
        sub 32
        jp .zero
        ld e_d
        and 65535
        st e_frac
        shr 10
        add EXP2
        st TABLE_AT
        ld TABLE
        st e_base
        sub TABLE
        st e_s
        ldq e_s
        ld e_frac
        and 1023
        st e_u
        mul e_u
        add 511
        shr 10
        st e_s
        ld e_base
        sub e_s
        shr e_whole
        rnd
        ret
.zero:  ld 0
        ret

; h of the scaled numbers a_gate and a_up: (gate * up) * sigmoid(gate), each product to 24 bits.
activate:
        ld a_gate
        xor a_up
        and 1<<63
        st n_sign
        ld a_gate
        and MAG
        st a_m
        ldq a_m
        ld a_up
        and MAG
        st a_m
        mul a_m
        jz .zero
        st a_p
        ld a_gate
        shr 24
        and 2*TOP_BIAS-1
        st exp
        ld a_up
        shr 24
        and 2*TOP_BIAS-1
        add exp
        sub 2*TOP_BIAS+46
        st exp
        ld a_p
        call normalise_magnitude
        st a_p
        ld a_gate
        call sigmoid
        shr 8
        rnd
        st a_s
        ld a_p
        and MAG
        st a_m
        ldq a_m
        mul a_s
        jz .zero
        st a_m
        ld a_p
        shr 24
        and 2*TOP_BIAS-1
        sub TOP_BIAS+39
        st exp
        ld a_m
        jmp normalise_magnitude
.zero:  ld 0
        ret
