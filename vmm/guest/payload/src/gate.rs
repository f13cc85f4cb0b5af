//! The interrupt gate: the adapter's interrupt enters here, in CPL3 like the program it interrupts.
//!
//! A gate to a segment of the same privilege switches no stack: the CPU pushes its frame right below the
//! interrupted RSP, which is why the program is built without a red zone. The prebuilt `core` is not, yet no
//! interrupt can hit it: the VMM injects only after a port or register access of the program, and those
//! instructions are compiled here, so the function that runs then has no red zone.

use core::arch::naked_asm;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use toll_guest::driver::InterruptHandler;
use toll_guest_abi::BootInfo;

use crate::console;
use crate::registers::AdapterRegisters;

/// I/O port of the adapter's registers, for the handler.
static PIO_BASE: AtomicU32 = AtomicU32::new(0);
/// What the handler calls: an `InterruptHandler`, or 0.
static HANDLER: AtomicU64 = AtomicU64::new(0);

/// Gives the gate a handler: called with the adapter's registers, its result is ORed into
/// `Status::interrupt_causes`.
pub fn install(boot: &BootInfo, handler: InterruptHandler<AdapterRegisters>) {
    PIO_BASE.store(boot.adapter_base as u32, Ordering::Relaxed);
    HANDLER.store(handler as usize as u64, Ordering::Release);
}

/// Only the IDT refers to the gate, which a linker can't see.
#[used]
static GATE: unsafe extern "C" fn() = interrupt_gate;

/// Entered by the CPU through the IDT: saves every register that a Rust function may change.
///
/// # Safety
/// Reached through the IDT only.
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn interrupt_gate() {
    naked_asm!(
        "push rbp",
        "mov rbp, rsp",
        "push rax",
        "push rcx",
        "push rdx",
        "push rsi",
        "push rdi",
        "push r8",
        "push r9",
        "push r10",
        "push r11",
        "sub rsp, 264",
        "and rsp, -16",
        "movaps [rsp], xmm0",
        "movaps [rsp + 16], xmm1",
        "movaps [rsp + 32], xmm2",
        "movaps [rsp + 48], xmm3",
        "movaps [rsp + 64], xmm4",
        "movaps [rsp + 80], xmm5",
        "movaps [rsp + 96], xmm6",
        "movaps [rsp + 112], xmm7",
        "movaps [rsp + 128], xmm8",
        "movaps [rsp + 144], xmm9",
        "movaps [rsp + 160], xmm10",
        "movaps [rsp + 176], xmm11",
        "movaps [rsp + 192], xmm12",
        "movaps [rsp + 208], xmm13",
        "movaps [rsp + 224], xmm14",
        "movaps [rsp + 240], xmm15",
        "cld",
        "call {handle}",
        "movaps xmm0, [rsp]",
        "movaps xmm1, [rsp + 16]",
        "movaps xmm2, [rsp + 32]",
        "movaps xmm3, [rsp + 48]",
        "movaps xmm4, [rsp + 64]",
        "movaps xmm5, [rsp + 80]",
        "movaps xmm6, [rsp + 96]",
        "movaps xmm7, [rsp + 112]",
        "movaps xmm8, [rsp + 128]",
        "movaps xmm9, [rsp + 144]",
        "movaps xmm10, [rsp + 160]",
        "movaps xmm11, [rsp + 176]",
        "movaps xmm12, [rsp + 192]",
        "movaps xmm13, [rsp + 208]",
        "movaps xmm14, [rsp + 224]",
        "movaps xmm15, [rsp + 240]",
        "lea rsp, [rbp - 72]",
        "pop r11",
        "pop r10",
        "pop r9",
        "pop r8",
        "pop rdi",
        "pop rsi",
        "pop rdx",
        "pop rcx",
        "pop rax",
        "pop rbp",
        "iretq",
        handle = sym handle,
    )
}

extern "C" fn handle() {
    let handler = HANDLER.load(Ordering::Acquire);
    let (Some(status), true) = (console::status(), handler != 0) else { return };
    status.in_service.store(1, Ordering::Release);
    // SAFETY: `install` stored a function of this type.
    let handler =
        unsafe { core::mem::transmute::<usize, InterruptHandler<AdapterRegisters>>(handler as usize) };
    let causes = handler(&mut AdapterRegisters::Pio(PIO_BASE.load(Ordering::Relaxed) as u16));
    status.interrupt_causes.fetch_or(causes, Ordering::AcqRel);
    // No exit lies between here and the return to the interrupted program, so the VMM can't nest handlers.
    status.in_service.store(0, Ordering::Release);
}
