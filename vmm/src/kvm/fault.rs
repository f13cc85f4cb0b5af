//! How a guest's fault reaches the VMM: as an exit of its own, with the guest's registers as they were.
//!
//! A guest without handlers would shut down. On AMD-V KVM then resets its vCPU, and what is left are the reset's
//! registers. So each of the architecture's 32 vectors has a gate to two instructions, which change no register:
//!
//! ```text
//! out PORTS + vector, al
//! jmp back to it
//! ```
//! The gate switches to a stack of its own (IST 1, Intel SDM 3A, 6.14.5), since the fault may be that of the stack.

use std::fmt;

use kvm_bindings::{kvm_regs, kvm_sregs};
use toll_vnic::GuestMemory;
use vm_memory::{Bytes, GuestAddress};

use super::KvmError;
use crate::layout::{FAULT_CODE, FAULT_PORTS, FAULT_STACK_END, FAULT_VECTORS, IDT, PAGE};

/// Bytes of a vector's two instructions.
const CODE_LENGTH: u64 = 4;
/// A gate's third half word: IST 1, an interrupt gate (type 14), present, for exceptions alone.
const GATE: u64 = 0x8e01;
/// The same for the one vector that an instruction of the program may ask for: `int3`.
const BREAKPOINT_GATE: u64 = 0xee01;
const BREAKPOINT: u8 = 3;
const PAGE_FAULT: u8 = 14;
/// Words that the CPU pushes: RIP, CS, RFLAGS, RSP, SS, and below them an error code of vectors that have one.
const FRAME_LENGTH: u64 = 5 * 8;

/// What the architecture calls its vectors (Intel SDM 3A, table 6-1; AMD APM 2, 8.2).
const NAMES: [&str; FAULT_VECTORS as usize] = [
    "divide error",
    "debug exception",
    "non-maskable interrupt",
    "breakpoint",
    "overflow",
    "bound range exceeded",
    "invalid opcode",
    "device not available",
    "double fault",
    "coprocessor segment overrun",
    "invalid TSS",
    "segment not present",
    "stack fault",
    "general protection",
    "page fault",
    "reserved vector",
    "x87 floating-point error",
    "alignment check",
    "machine check",
    "SIMD floating-point error",
    "virtualization exception",
    "control protection",
    "reserved vector",
    "reserved vector",
    "reserved vector",
    "reserved vector",
    "reserved vector",
    "reserved vector",
    "hypervisor injection",
    "VMM communication",
    "security exception",
    "reserved vector",
];

/// A fault of the guest. The program can write to the stack that this is read from: it is for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// Which exception.
    pub vector: u8,
    /// What the CPU says of it, for vectors that have an error code.
    pub error: Option<u64>,
    /// The address that was accessed, of a page fault.
    pub address: Option<u64>,
    /// Instruction pointer of the program.
    pub rip: u64,
    /// Flags of the program.
    pub rflags: u64,
    /// Stack pointer of the program.
    pub rsp: u64,
}

impl Fault {
    /// The fault that a vCPU with these registers is telling of, if it is.
    pub(super) fn under_way(regs: &kvm_regs, sregs: &kvm_sregs, memory: &GuestMemory) -> Option<Self> {
        let offset = regs.rip.checked_sub(FAULT_CODE)?;
        // KVM may leave the vCPU at its `out` or behind it.
        let vector = u8::try_from(offset / CODE_LENGTH).ok().filter(|vector| *vector < FAULT_VECTORS)?;
        let has_error = match FAULT_STACK_END.checked_sub(regs.rsp)? {
            FRAME_LENGTH => false,
            length if length == FRAME_LENGTH + 8 => true,
            _ => return None,
        };
        let frame = FAULT_STACK_END - FRAME_LENGTH;
        let word = |address: u64| memory.read_obj::<u64>(GuestAddress(address)).ok();
        Some(Self {
            vector,
            error: if has_error { Some(word(frame - 8)?) } else { None },
            // CR2 keeps the address of an earlier one.
            address: (vector == PAGE_FAULT).then_some(sregs.cr2),
            rip: word(frame)?,
            rflags: word(frame + 16)?,
            rsp: word(frame + 24)?,
        })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(NAMES.get(usize::from(self.vector)).unwrap_or(&"fault"))?;
        if let Some(address) = self.address {
            write!(f, " at {address:#x}")?;
        }
        write!(f, " (vector {}", self.vector)?;
        if let Some(error) = self.error {
            write!(f, ", error code {error:#x}")?;
        }
        f.write_str(")")
    }
}

/// Writes the gates and what they lead to. `gate` makes a gate from a vector, its third half word and an address.
pub(super) fn write(
    memory: &GuestMemory,
    gate: impl Fn(u8, u64, u64) -> Result<(), KvmError>,
) -> Result<(), KvmError> {
    for vector in 0..FAULT_VECTORS {
        let address = FAULT_CODE + u64::from(vector) * CODE_LENGTH;
        let port = FAULT_PORTS.to_le_bytes()[0] + vector;
        memory
            .write_slice(&[0xe6, port, 0xeb, 0xfc], GuestAddress(address))
            .map_err(|_| KvmError::Memory { what: "the code of faults lies outside of it" })?;
        gate(vector, if vector == BREAKPOINT { BREAKPOINT_GATE } else { GATE }, address)?;
    }
    Ok(())
}

const _: () = {
    // Ports of an `out` that names its port itself are a byte.
    assert!(FAULT_PORTS + FAULT_VECTORS as u16 <= 0x100);
    assert!(FAULT_VECTORS as u64 * CODE_LENGTH <= PAGE);
    // The CPU aligns a stack that it switches to.
    assert!(FAULT_STACK_END.is_multiple_of(16));
    assert!(IDT.is_multiple_of(PAGE));
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::allocate;

    /// A guest whose CPU has pushed `frame`, lowest word first, and stands at the `out` of `vector`.
    fn fault(vector: u8, frame: &[u64]) -> Option<Fault> {
        let memory = allocate(4 << 20).expect("memory");
        let rsp = FAULT_STACK_END - 8 * frame.len() as u64;
        for (address, word) in (rsp..).step_by(8).zip(frame) {
            memory.write_obj(*word, GuestAddress(address)).expect("within memory");
        }
        let regs = kvm_regs { rip: FAULT_CODE + CODE_LENGTH * u64::from(vector), rsp, ..Default::default() };
        let sregs = kvm_sregs { cr2: 0x18, ..Default::default() };
        Fault::under_way(&regs, &sregs, &memory)
    }

    #[test]
    fn a_page_fault_has_its_address_and_error_code() {
        let fault = fault(14, &[6, 0x10_0042, 0x33, 0x202, 0x5_fff8, 0x2b]).expect("a fault");
        let expected = Fault {
            vector: 14,
            error: Some(6),
            address: Some(0x18),
            rip: 0x10_0042,
            rflags: 0x202,
            rsp: 0x5_fff8,
        };
        assert_eq!(fault, expected);
        assert_eq!(fault.to_string(), "page fault at 0x18 (vector 14, error code 0x6)");
    }

    #[test]
    fn another_fault_has_no_address_and_not_every_one_an_error_code() {
        let fault = fault(6, &[0x10_0042, 0x33, 0x202, 0x5_fff8, 0x2b]).expect("a fault");
        assert_eq!((fault.error, fault.address, fault.rip), (None, None, 0x10_0042));
        assert_eq!(fault.to_string(), "invalid opcode (vector 6)");
    }

    #[test]
    fn a_program_elsewhere_or_on_another_stack_tells_of_no_fault() {
        assert_eq!(fault(FAULT_VECTORS, &[0; 5]), None);
        assert_eq!(fault(14, &[0; 4]), None);
        assert_eq!(fault(14, &[0; 7]), None);
        let memory = allocate(4 << 20).expect("memory");
        let regs = kvm_regs { rip: 0x10_0000, rsp: FAULT_STACK_END - FRAME_LENGTH, ..Default::default() };
        assert_eq!(Fault::under_way(&regs, &kvm_sregs::default(), &memory), None);
    }
}
