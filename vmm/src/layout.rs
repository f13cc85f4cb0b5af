//! The guest's physical address space, which is also its virtual one.
//!
//! ```text
//! 0x0000_0000  nothing, so that a null pointer faults
//! 0x0000_1000  GDT, IDT (read-only), page tables (not mapped)
//! 0x0000_9000  TSS with its I/O permission bitmap (read-only)
//! 0x0000_c000  what a fault executes (read-only), and its stack
//! 0x0001_0000  BootInfo, Command (read-only), Status (writable)
//! 0x0002_0000  stack, with an unmapped page below
//! 0x0010_0000  the payload program: code, constants, variables, each with its own rights
//! 0x0020_0000  arena: heap, rings and buffers, to the end of memory, in pages of 2 MiB
//! 0xd000_0000  memory-mapped registers
//! ```

/// Page size in bytes.
pub const PAGE: u64 = 0x1000;
/// Size of the pages that map the arena, in bytes.
pub const LARGE_PAGE: u64 = 0x20_0000;

/// Global descriptor table.
pub const GDT: u64 = 0x1000;
/// Interrupt descriptor table: 256 gates of 16 bytes.
pub const IDT: u64 = 0x2000;
/// Page map level 4; CR3.
pub const PML4: u64 = 0x4000;
/// Page directory pointer table.
pub const PDPT: u64 = 0x5000;
/// Page directory of the first GiB.
pub const PD_LOW: u64 = 0x6000;
/// Page table of the first 2 MiB.
pub const PT_LOW: u64 = 0x7000;
/// Page directory of the GiB that holds [`MMIO`].
pub const PD_MMIO: u64 = 0x8000;

/// Task state segment, its I/O permission bitmap included.
pub const TSS: u64 = 0x9000;
/// First address above it.
pub const TSS_END: u64 = 0xc000;

/// What the gates of faults lead to: see `kvm/fault.rs`.
pub const FAULT_CODE: u64 = 0xc000;
/// Stack of faults.
pub const FAULT_STACK: u64 = 0xd000;
/// First address above it.
pub const FAULT_STACK_END: u64 = 0xe000;
/// Vectors of faults: those that the architecture keeps for itself (Intel SDM 3A, 6.3.1).
pub const FAULT_VECTORS: u8 = 32;
/// First of the I/O ports that tell of a fault, one for each vector. A PC has nothing there.
pub const FAULT_PORTS: u16 = 0xe0;

/// [`toll_guest_abi::BootInfo`].
pub const BOOT_INFO: u64 = 0x1_0000;
/// [`toll_guest_abi::Command`].
pub const COMMAND: u64 = 0x1_1000;
/// [`toll_guest_abi::Status`].
pub const STATUS: u64 = 0x1_2000;

/// Lowest address of the stack.
pub const STACK: u64 = 0x2_0000;
/// First address above the stack.
pub const STACK_END: u64 = 0x6_0000;

/// Where the payload program is linked.
pub const IMAGE: u64 = 0x10_0000;
/// Where it must have ended.
pub const IMAGE_END: u64 = 0x20_0000;
/// Memory of the program's own.
pub const ARENA: u64 = 0x20_0000;

/// Guest memory in bytes, at least.
pub const MEMORY_MIN: u64 = 4 << 20;
/// Guest memory in bytes, at most: what one page directory maps.
pub const MEMORY_MAX: u64 = 1 << 30;

/// Memory-mapped registers of the adapter.
pub const MMIO: u64 = 0xd000_0000;
/// First I/O port of the adapter.
pub const PIO: u16 = 0xc000;
/// How many I/O ports it has at most.
pub const PIO_LENGTH: u16 = 0x20;
/// First I/O port of the doorbells.
pub const DOORBELLS: u16 = toll_guest_abi::doorbell::WAIT;
/// How many I/O ports they take.
pub const DOORBELLS_LENGTH: u16 = toll_guest_abi::doorbell::END + 4 - DOORBELLS;

/// Vector of the adapter's interrupt: the first that the architecture leaves free (Intel SDM 3A, 6.3.1).
pub const INTERRUPT_VECTOR: u8 = FAULT_VECTORS;
