//! The memory functions that compilers call by name. Written in assembly, because a compiler is free to turn any
//! Rust loop that copies bytes back into a call of the function it is meant to implement.

use core::arch::global_asm;

// System V calling convention: RDI destination, RSI source (ESI byte), RDX length; RAX returns RDI. The direction
// flag is clear. From 256 bytes on, `rep movsb` is as fast as any loop where the CPU has ERMS, as those that
// KVM runs on have; below that its start-up cost dominates and 16-byte moves win.
global_asm!(
    r#"
    .section .text.memcpy,"ax",@progbits
    .globl memcpy
memcpy:
    mov rax, rdi
    cmp rdx, 16
    jb 2f
    cmp rdx, 256
    ja 1f
    movups xmm0, [rsi + rdx - 16]
    lea r8, [rdi + rdx - 16]
0:  cmp rdi, r8
    jae 3f
    movups xmm1, [rsi]
    movups [rdi], xmm1
    add rsi, 16
    add rdi, 16
    jmp 0b
3:  movups [r8], xmm0
    ret
1:  mov rcx, rdx
    rep movsb
    ret
2:  test dl, 8
    jz 4f
    mov r8, [rsi]
    mov r9, [rsi + rdx - 8]
    mov [rdi], r8
    mov [rdi + rdx - 8], r9
    ret
4:  test dl, 4
    jz 5f
    mov r8d, [rsi]
    mov r9d, [rsi + rdx - 4]
    mov [rdi], r8d
    mov [rdi + rdx - 4], r9d
    ret
5:  test dl, 2
    jz 6f
    movzx r8d, word ptr [rsi]
    movzx r9d, word ptr [rsi + rdx - 2]
    mov [rdi], r8w
    mov [rdi + rdx - 2], r9w
    ret
6:  test dl, 1
    jz 7f
    mov r8b, [rsi]
    mov [rdi], r8b
7:  ret

    .section .text.memmove,"ax",@progbits
    .globl memmove
memmove:
    mov rax, rdi
    mov rcx, rdi
    sub rcx, rsi
    cmp rcx, rdx
    jae memcpy_forward
    lea rsi, [rsi + rdx]
    lea rdi, [rdi + rdx]
8:  cmp rdx, 16
    jb 9f
    sub rsi, 16
    sub rdi, 16
    sub rdx, 16
    movups xmm0, [rsi]
    movups [rdi], xmm0
    jmp 8b
9:  test rdx, rdx
    jz 7f
    dec rsi
    dec rdi
    dec rdx
    mov r8b, [rsi]
    mov [rdi], r8b
    jmp 9b
7:  ret
memcpy_forward:
    mov rcx, rdx
    rep movsb
    ret

    .section .text.memset,"ax",@progbits
    .globl memset
memset:
    mov r8, rdi
    movzx eax, sil
    mov rcx, rdx
    rep stosb
    mov rax, r8
    ret

    .section .text.memcmp,"ax",@progbits
    .globl memcmp
    .globl bcmp
memcmp:
bcmp:
    xor eax, eax
    test rdx, rdx
    jz 7f
0:  movzx eax, byte ptr [rdi]
    movzx ecx, byte ptr [rsi]
    sub eax, ecx
    jnz 7f
    inc rdi
    inc rsi
    dec rdx
    jnz 0b
7:  ret
    .text
    "#
);
