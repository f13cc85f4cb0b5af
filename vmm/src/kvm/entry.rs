//! The state in which a guest begins: 64-bit mode at CPL3, in a descriptor and page table world that it can
//! neither change nor, but for its own parts, see.
//!
//! Table formats: Intel SDM 3A, 3.4.5 (segments), 4.5 (paging), 6.14.1 (gates), 7.2.3 (TSS).

use std::arch::x86_64::{__cpuid, CpuidResult};

use kvm_bindings::{CpuId, kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};
use toll_vnic::GuestMemory;
use vm_memory::{Bytes, GuestAddress};

use super::{KvmError, fault};
use crate::layout::{
    BOOT_INFO, COMMAND, DOORBELLS, DOORBELLS_LENGTH, FAULT_CODE, FAULT_PORTS, FAULT_STACK, FAULT_STACK_END,
    FAULT_VECTORS, GDT, IDT, INTERRUPT_VECTOR, LARGE_PAGE, MMIO, PAGE, PD_LOW, PD_MMIO, PDPT, PIO,
    PIO_LENGTH, PML4, PT_LOW, STACK, STACK_END, STATUS, TSS, TSS_END,
};

// Selectors as Linux has them; the low two bits are the privilege level.
const DATA_SELECTOR: u16 = 0x2b;
const CODE_SELECTOR: u16 = 0x33;
const TSS_SELECTOR: u16 = 0x40;
// A TSS of 64-bit mode is 0x68 bytes long; the I/O permission bitmap that follows it has a bit for each port and
// ends with a byte of ones (SDM 1, 19.5.2).
const TSS_LENGTH: u64 = 0x68;
const BITMAP_LENGTH: u64 = 0x1_0000 / 8;
const TSS_LIMIT: u32 = (TSS_LENGTH + BITMAP_LENGTH) as u32;
// Where the TSS has the stack pointer of gates with IST 1 (SDM 3A, 7.7).
const TSS_IST1: u64 = 0x24;
// Types of a 64-bit TSS (SDM 3A, table 3-2).
const AVAILABLE_TSS: u8 = 0x9;
const BUSY_TSS: u8 = 0xb;
// A gate's third half word: no other stack, a trap gate (type 15), which leaves IF alone: `iretq` at CPL3 would not bring
// it back. For interrupts alone, so its privilege level is 0.
const INTERRUPT_GATE: u64 = 0x8f00;

// CR0: PE, MP, ET, NE, WP, AM, PG.
const CR0: u64 = 0x8005_0033;
// CR4: PAE, OSFXSR, OSXMMEXCPT.
const CR4: u64 = 0x0620;
const CR4_FSGSBASE: u64 = 1 << 16;
// EFER: SCE, LME, LMA, NXE.
const EFER: u64 = 0xd01;

// RFLAGS: the bit that is always 1, and IF. IOPL stays 0: a page-table based KVM clears it, so the I/O permission
// bitmap is what lets CPL3 code use its ports, on every KVM alike.
const RFLAGS: u64 = 0x2 | 1 << 9;

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const WRITE_THROUGH: u64 = 1 << 3;
const CACHE_DISABLE: u64 = 1 << 4;
// Set in advance: the processor then never writes to the tables.
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;

/// What the guest may do with pages of its program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pages {
    /// First address, a multiple of the page size.
    pub start: u64,
    /// Address after the last.
    pub end: u64,
    /// Whether they can be written; then they can't be executed.
    pub writable: bool,
    /// Whether they can be executed.
    pub executable: bool,
}

/// How a guest begins.
#[derive(Debug, Clone)]
pub struct Entry {
    /// First instruction.
    pub instruction: u64,
    /// What the IDT's gate at [`INTERRUPT_VECTOR`] leads to.
    pub interrupt_gate: u64,
    /// The program's pages, all between `IMAGE` and `IMAGE_END`.
    pub pages: Vec<Pages>,
    /// Bytes of memory, a multiple of [`LARGE_PAGE`].
    pub memory: u64,
}

/// Type of the TSS in TR: busy, without which VMX refuses to enter (SDM 3C, 27.3.1.2). QEMU's emulation of SVM loads TR
/// as it is, and then permits ports by an available TSS alone (its `helper_check_io`): there, on a host whose CPU is
/// QEMU's, it is one.
fn tss_type() -> u8 {
    const HYPERVISOR_PRESENT: u32 = 1 << 31;
    if __cpuid(1).ecx & HYPERVISOR_PRESENT == 0 {
        return BUSY_TSS;
    }
    let CpuidResult { ebx, ecx, edx, .. } = __cpuid(0x4000_0000);
    if [ebx, ecx, edx].map(u32::to_le_bytes).as_flattened() == b"TCGTCGTCGTCG" {
        AVAILABLE_TSS
    } else {
        BUSY_TSS
    }
}

impl Entry {
    /// Registers at the first instruction: the System V calling convention as after a `call`.
    pub(super) fn registers(&self) -> kvm_regs {
        kvm_regs {
            rip: self.instruction,
            rsp: STACK_END - 8,
            rdi: BOOT_INFO,
            rsi: COMMAND,
            rdx: STATUS,
            rflags: RFLAGS,
            ..Default::default()
        }
    }

    /// Changes the registers of a new vCPU to those of 64-bit mode at CPL3.
    pub(super) fn system_registers(&self, cpuid: &CpuId, sregs: &mut kvm_sregs) {
        let code = kvm_segment {
            limit: u32::MAX,
            selector: CODE_SELECTOR,
            type_: 0xb,
            present: 1,
            dpl: 3,
            s: 1,
            l: 1,
            g: 1,
            ..Default::default()
        };
        let data = kvm_segment { selector: DATA_SELECTOR, type_: 0x3, db: 1, l: 0, ..code };
        (sregs.cs, sregs.ss) = (code, data);
        (sregs.ds, sregs.es, sregs.fs, sregs.gs) = (data, data, data, data);
        sregs.tr = kvm_segment {
            base: TSS,
            limit: TSS_LIMIT,
            selector: TSS_SELECTOR,
            type_: tss_type(),
            present: 1,
            ..Default::default()
        };
        sregs.ldt = kvm_segment { unusable: 1, ..Default::default() };
        sregs.gdt = kvm_dtable { base: GDT, limit: 0x4f, ..Default::default() };
        sregs.idt = kvm_dtable { base: IDT, limit: 0xfff, ..Default::default() };
        (sregs.cr0, sregs.cr3, sregs.efer) = (CR0, PML4, EFER);
        // CPUID.7.0:EBX[0]: processors before 2012 have no FSGSBASE and refuse the bit.
        let leaf = cpuid.as_slice().iter().find(|leaf| leaf.function == 7 && leaf.index == 0);
        sregs.cr4 = CR4 | if leaf.is_some_and(|leaf| leaf.ebx & 1 != 0) { CR4_FSGSBASE } else { 0 };
    }

    /// Writes descriptor tables and page tables into guest memory.
    pub(super) fn write_tables(&self, memory: &GuestMemory) -> Result<(), KvmError> {
        let write = |address: u64, value: u64| {
            memory
                .write_obj(value, GuestAddress(address))
                .map_err(|_| KvmError::Memory { what: "tables lie outside of it" })
        };
        // User data, user 64-bit code, accessed both; the TSS descriptor is two words long.
        write(GDT + u64::from(DATA_SELECTOR & !7), 0x00cf_f300_0000_ffff)?;
        write(GDT + u64::from(CODE_SELECTOR & !7), 0x00af_fb00_0000_ffff)?;
        let tss = u64::from(TSS_LIMIT) | (TSS & 0xff_ffff) << 16 | 0x8b << 40 | (TSS >> 24 & 0xff) << 56;
        write(GDT + u64::from(TSS_SELECTOR), tss)?;
        write(TSS + TSS_IST1, FAULT_STACK_END)?;
        // The last half word of the TSS is the offset of the I/O permission bitmap. A clear bit permits the port.
        write(TSS + 0x60, TSS_LENGTH << 48)?;
        let mut bitmap = [0xff; BITMAP_LENGTH as usize + 1];
        let doorbells = DOORBELLS..DOORBELLS + DOORBELLS_LENGTH;
        let faults = FAULT_PORTS..FAULT_PORTS + u16::from(FAULT_VECTORS);
        for port in doorbells.chain(faults).chain(PIO..PIO + PIO_LENGTH) {
            bitmap[usize::from(port / 8)] &= !(1 << (port % 8));
        }
        memory
            .write_slice(&bitmap, GuestAddress(TSS + TSS_LENGTH))
            .map_err(|_| KvmError::Memory { what: "the TSS lies outside of it" })?;
        let gate = |vector: u8, kind: u64, to: u64| {
            let low = (to & 0xffff) | u64::from(CODE_SELECTOR) << 16 | kind << 32 | (to >> 16 & 0xffff) << 48;
            write(IDT + 16 * u64::from(vector), low)?;
            write(IDT + 16 * u64::from(vector) + 8, to >> 32)
        };
        gate(INTERRUPT_VECTOR, INTERRUPT_GATE, self.interrupt_gate)?;
        fault::write(memory, gate)?;

        let table = PRESENT | WRITABLE | USER | ACCESSED;
        write(PML4, PDPT | table)?;
        write(PDPT, PD_LOW | table)?;
        write(PDPT + 8 * (MMIO >> 30), PD_MMIO | table)?;
        write(PD_LOW, PT_LOW | table)?;
        let data = PRESENT | WRITABLE | USER | ACCESSED | DIRTY | NO_EXECUTE;
        for page in 1..self.memory / LARGE_PAGE {
            write(PD_LOW + 8 * page, (page * LARGE_PAGE) | data | LARGE)?;
        }
        let registers = data | LARGE | WRITE_THROUGH | CACHE_DISABLE;
        write(PD_MMIO + 8 * (MMIO >> 21 & 0x1ff), MMIO | registers)?;

        let small = |start: u64, end: u64, flags: u64| {
            (start..end)
                .step_by(PAGE as usize)
                .try_for_each(|page| write(PT_LOW + 8 * (page / PAGE), page | flags))
        };
        let read_only = PRESENT | USER | ACCESSED | DIRTY | NO_EXECUTE;
        small(GDT, IDT + PAGE, read_only)?;
        small(TSS, TSS_END, read_only)?;
        small(FAULT_CODE, FAULT_CODE + PAGE, read_only & !NO_EXECUTE)?;
        small(FAULT_STACK, FAULT_STACK_END, data)?;
        small(BOOT_INFO, STATUS, read_only)?;
        small(STATUS, STATUS + PAGE, data)?;
        small(STACK, STACK_END, data)?;
        for pages in &self.pages {
            let flags = match (pages.writable, pages.executable) {
                (true, _) => data,
                (false, true) => read_only & !NO_EXECUTE,
                (false, false) => read_only,
            };
            small(pages.start, pages.end, flags)?;
        }
        Ok(())
    }
}
