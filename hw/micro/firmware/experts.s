; The experts: gate and up rows to h, slot by slot; then the down rows, output by output.

.array contexts 2*(MAX_EXPERTS+1)
.array slot_word SLOTS          ; where the down projection's next row is, in memory rows and scale entries
.array slot_scale SLOTS
.array slot_shape SLOTS         ; of it, for SHAPE
.array slot_act SLOTS           ; its first block of h
.array results RESULT_WORDS     ; y, two elements a word
.var slots s_at s_context s_word s_width s_row s_h h_top h_blocks
.var c_reads c_sums
.scratch phase c_word c_shift c_weight c_limb c_low c_high c_row c_exp c_sign c_length c_bits c_base_from c_base_after c_base_reads c_base_sums

experts:
        ld 0
        st s_at
        st s_h
        st h_top
        ld base8
        st row_base
.slot:  call note_work
        ldx s_at
        ld slot_expert,x
        shl 1
        st s_context
        ld s_h
        shr 5
        add H
        st slot_act,x
        ld INTERMEDIATE
        st s_width
        ld slot_expert,x
        sub MAX_EXPERTS
        jnz .routed
        ld SHARED_INTERMEDIATE
        st s_width
.routed:
        ldx s_context
        ld contexts,x
        call place
        or q_blocks
        st SHAPE
        ld s_word
        st WORD
        ldx s_context
        ld contexts,x
        shr 32
        st SCALE
        ld s_width
        st s_row
.row:   ld 0
        st GO
        call row
        st a_gate
        ld 0
        st GO
        call row
        st a_up
        call activate
        ldx s_h
        st elements,x
        shr 24
        and 2*TOP_BIAS-1
        st s_word
        ld h_top
        sub s_word
        jp .less
        ld s_word
        st h_top
.less:  ld ACTIVATIONS
        add 1
        st ACTIVATIONS
        ld s_h
        add 1
        st s_h
        ld s_row
        sub 1
        st s_row
        jnz .row
.pad:   ld s_h
        and 31
        jz .padded
        ldx s_h
        ld 0
        st elements,x
        ld s_h
        add 1
        st s_h
        jmp .pad
.padded:
        ld s_context
        add 1
        st s_context
        ldx s_context
        ld contexts,x
        call place
        st s_row
        ld s_width
        add 31
        shr 5
        or s_row
        st s_row
        ld contexts,x
        shr 32
        st s_width
        ldx s_at
        ld s_row
        st slot_shape,x
        ld s_word
        st slot_word,x
        ld s_width
        st slot_scale,x
        ld slot_expert,x
        sub MAX_EXPERTS
        jz .base
        call routed_work
        ld EXPERTS_USED
        add 1
        st EXPERTS_USED
.base:  ld s_at
        add 1
        st s_at
        sub slots
        jnz .slot
        ld s_h
        shr 5
        st h_blocks
        call quantise_h
        jmp note_work

; Of the half of a context in A: its memory row in s_word, and in A the words of a block less one, for SHAPE.
place:  st s_word
        shr 24
        and 15
        shl 8
        st c_word
        ld s_word
        and (1<<24)-1
        shl 1
        st s_word
        ld c_word
        ret

; Adds to the counters what the engine has done since the last time.
note_work:
        ld READS
        sub c_reads
        and (1<<24)-1
        st c_word
        add WORD_READS
        st WORD_READS
        ld c_word
        shl 1
        add ACTIVE_CYCLES
        st ACTIVE_CYCLES
        ld SUMS
        sub c_sums
        and (1<<24)-1
        st c_limb
        add BLOCK_SUMS
        st BLOCK_SUMS
        ld READS
        st c_reads
        ld SUMS
        st c_sums
        ret

; The same, for a routed expert.
routed_work:
        call note_work
add_routed:
        ld c_word
        add ROUTED_READS
        st ROUTED_READS
        ld c_word
        shl 1
        add ROUTED_CYCLES
        st ROUTED_CYCLES
        ld c_limb
        add ROUTED_SUMS
        st ROUTED_SUMS
        ret

; y: exact sums of the weighted down rows in two limbs of 24 bits and more, rounded once.
combine:
        ld h_top                ; exponent of the sums' LSB
        add DOWN_BASE
        sub TOP_BIAS+ACTIVATION_SPREAD+6+ROW_EXP_BIAS+16
        st c_exp
        ld 0
        st c_row
        st c_base_reads
        st c_base_sums
.output:
        ld 0
        st c_low
        st c_high
        st s_at
.slot:  ldx s_at
        ld slot_expert,x
        sub MAX_EXPERTS
        jnz .begin
        ld READS                ; of the base expert, to tell its work from the routed ones'
        st c_base_from
        ld SUMS
        st c_base_after
.begin: ld slot_word,x
        st WORD
        ld slot_scale,x
        st SCALE
        ld slot_shape,x
        st SHAPE
        ld slot_act,x
        st GO
        ld slot_weight,x
        st c_weight
        ld WORD
        st slot_word,x
        ld SCALE
        st slot_scale,x
        ld ROW_EXP
        sub DOWN_BASE
        st c_shift
        ld c_weight
        shl c_shift
        st c_weight
        ld SUM
        st c_word
        jn .negative
        and MAG
        st c_limb
        ldq c_limb
        mul c_weight
        add c_low
        st c_low
        ld c_word
        shr 24
        st c_limb
        ldq c_limb
        mul c_weight
        add c_high
        st c_high
        jmp .added
.negative:
        ld 0
        sub c_word
        st c_word
        and MAG
        st c_limb
        ldq c_limb
        mul c_weight
        st c_limb
        ld c_low
        sub c_limb
        st c_low
        ld c_word
        shr 24
        st c_limb
        ldq c_limb
        mul c_weight
        st c_limb
        ld c_high
        sub c_limb
        st c_high
.added: ld slot_expert,x
        sub MAX_EXPERTS
        jnz .next
        ld READS
        sub c_base_from
        and (1<<24)-1
        add c_base_reads
        st c_base_reads
        ld SUMS
        sub c_base_after
        and (1<<24)-1
        add c_base_sums
        st c_base_sums
.next:  ld s_at
        add 1
        st s_at
        sub slots
        jnz .slot
        ld COMBINE_ROWS
        add slots
        st COMBINE_ROWS

        ld 0                    ; the sign, then the magnitude
        st c_sign
        call carry
        ld c_high
        jp .positive
        ld 1<<31
        st c_sign
        ld 0
        sub c_low
        st c_low
        ld 0
        sub c_high
        st c_high
        call carry
.positive:
        ld c_high
        shr 40
        jnz .large
        ld c_high
        shl 24
        or c_low
        jz .zero
        st c_bits
        ld 0
        jmp .round
.large: ld c_low                ; far below what is rounded: whether it is 0
        jz .exact
        ld 1
.exact: or c_high
        st c_bits
        ld 24
.round: add c_exp
        st c_length
        ld c_bits
        nrm
        st c_bits
        ld c_length
        add 63
        sub COUNT
        st c_length             ; exponent of its highest bit
        add 126
        jn .subnormal
        ld c_bits
        shr 40
        rnd
        st c_bits
        ld c_length             ; the leading one adds 1 to the exponent
        add 126
        shl 23
        add c_bits
        st c_bits
        sub 255<<23
        jn .fits
        ld 255<<23
        st c_bits
.fits:  ld c_bits
        jmp .sign
.subnormal:
        ld 0
        sub c_length
        sub 86
        st c_length
        ld c_bits
        shr c_length
        rnd
.sign:  or c_sign
.zero:  st c_bits
        ld c_row                ; two elements a word
        and 1
        jnz .odd
        ld c_row
        shr 1
        st c_word
        ldx c_word
        ld c_bits
        st results,x
        jmp .put
.odd:   ld c_row
        shr 1
        st c_word
        ldx c_word
        ld c_bits
        shl 32
        or results,x
        st results,x
.put:   ld c_row
        add 1
        st c_row
        sub HIDDEN
        jnz .output
        call note_work
        ld c_word
        sub c_base_reads
        st c_word
        ld c_limb
        sub c_base_sums
        st c_limb
        jmp add_routed

; c_low to 24 bits, the rest to c_high.
carry:  ld c_low
        add 1<<62               ; so that it is not negative
        shr 24
        sub 1<<38
        add c_high
        st c_high
        ld c_low
        and MAG
        st c_low
        ret
