//! What the VMM's tests run in place of the traffic program: one case a boot, chosen by
//! `BootInfo::random_seed`.
#![no_std]
#![no_main]

use core::arch::asm;
use core::sync::atomic::Ordering;

use toll_guest::driver::Driver as _;
use toll_guest::driver::{self, pcnet::PcnetDriver};
use toll_guest::platform::{Platform, Registers};
use toll_guest_abi::{BootInfo, Command, Status, adapter, phase};
use toll_payload::platform::GuestPlatform;
use toll_payload::registers::AdapterRegisters;
use toll_payload::{doorbell, gate};

toll_payload::entry!(main);

/// The cases; the VMM's tests name them by the same numbers.
mod case {
    pub const DOORBELLS: u64 = 1;
    pub const INTERRUPTS: u64 = 2;
    pub const SPIN: u64 = 3;
    pub const NULL_WRITE: u64 = 4;
    pub const EXECUTE_DATA: u64 = 5;
    pub const WRITE_CODE: u64 = 6;
    pub const PANIC: u64 = 7;
    pub const HOSTILE_STATUS: u64 = 8;
    pub const UNKNOWN_PORT: u64 = 9;
    pub const WAIT_FOR_START: u64 = 10;
    pub const ACCESSES: u64 = 11;
    pub const HOSTILE_PHASE: u64 = 12;
    pub const HOSTILE_MESSAGE: u64 = 13;
    pub const STACK_OVERFLOW: u64 = 14;
    pub const FRAMES: u64 = 15;
    pub const INVALID_OPCODE: u64 = 16;
    pub const DIVIDE_BY_ZERO: u64 = 17;
    pub const BREAKPOINT: u64 = 18;
    pub const NON_CANONICAL: u64 = 19;
    pub const PRIVILEGED: u64 = 20;
    pub const FORGED_FAULT: u64 = 21;
    pub const FAULT_WHEN_STARTED: u64 = 22;
}

/// What RAX holds when a case faults: no address (the upper half is not the sign of the lower), and no RAX by chance.
const MARK: u64 = 0x5eed_0123_4567_89ab;

/// Announces READY (or another phase), stores the address of `$instruction` where the VMM's test looks for it, and executes it with [`MARK`] in
/// RAX and 0 in RCX: it faults.
macro_rules! faulting {
    ($status:expr, $instruction:literal) => {
        faulting!($status, $instruction, phase::READY)
    };
    ($status:expr, $instruction:literal, $phase:expr) => {{
        doorbell::phase($phase);
        // SAFETY: the store is into `status.now.received`. The instruction faults, and the VMM ends the program then.
        unsafe {
            asm!(
                "lea {at}, [rip + 2f]",
                "mov qword ptr [{bytes}], {at}",
                "2:",
                $instruction,
                at = out(reg) _,
                bytes = in(reg) $status.now.received.as_ptr(),
                inout("rax") MARK => _,
                in("rcx") 0_u64,
            );
        }
    }};
}

fn main(
    boot: &'static BootInfo,
    command: &'static Command,
    status: &'static Status,
) -> Result<(), &'static str> {
    let mut platform = GuestPlatform::new(boot, status);
    match boot.random_seed {
        case::DOORBELLS => measured(status, &mut platform, |_| {
            for _ in 0..100 {
                doorbell::wait(0);
            }
            Ok(())
        })?,
        case::FRAMES => frames(boot, status, &mut platform)?,
        case::INTERRUPTS => measured(status, &mut platform, |platform| interrupts(boot, status, platform))?,
        case::SPIN => {
            doorbell::phase(phase::READY);
            loop {
                core::hint::spin_loop();
            }
        }
        case::NULL_WRITE => faulting!(status, "mov qword ptr [0x18], rax"),
        case::EXECUTE_DATA => {
            static CODE: [u8; 1] = [0xc3];
            doorbell::phase(phase::READY);
            status.now.received.store(CODE.as_ptr() as u64, Ordering::Relaxed);
            // SAFETY: none: data is not executable, so this faults, which is the point of the case.
            let function = unsafe { core::mem::transmute::<*const u8, extern "C" fn()>(CODE.as_ptr()) };
            function();
        }
        case::WRITE_CODE => faulting!(status, "mov byte ptr [rip + 2b], al"),
        case::INVALID_OPCODE => faulting!(status, "ud2"),
        case::DIVIDE_BY_ZERO => faulting!(status, "div cl"),
        case::BREAKPOINT => faulting!(status, "int3"),
        case::NON_CANONICAL => faulting!(status, "mov al, byte ptr [rax]"),
        case::PRIVILEGED => faulting!(status, "hlt"),
        case::UNKNOWN_PORT => faulting!(status, "out 0x80, al"),
        case::FORGED_FAULT => faulting!(status, "out 0xee, al"),
        case::FAULT_WHEN_STARTED => {
            doorbell::phase(phase::READY);
            while command.start.load(Ordering::Acquire) == 0 {
                doorbell::wait(u32::MAX);
            }
            faulting!(status, "ud2", phase::WARM_UP);
        }
        case::PANIC => panic!("the case that panics, {}", boot.mtu),
        case::HOSTILE_STATUS => {
            measured(status, &mut platform, |_| Ok(()))?;
            status.now.received.store(u64::MAX, Ordering::Relaxed);
            status.end.received.store(u64::MAX, Ordering::Relaxed);
            status.in_service.store(u32::MAX, Ordering::Relaxed);
        }
        case::HOSTILE_PHASE => doorbell::phase(u32::MAX),
        case::HOSTILE_MESSAGE => {
            for byte in &status.message {
                byte.store(0xff, Ordering::Relaxed);
            }
            status.message_length.store(u32::MAX, Ordering::Relaxed);
            doorbell::end_failed();
        }
        case::STACK_OVERFLOW => {
            doorbell::phase(phase::READY);
            status.now.received.store(dive(boot.tsc_hz), Ordering::Relaxed);
        }
        case::WAIT_FOR_START => {
            doorbell::phase(phase::READY);
            while command.start.load(Ordering::Acquire) == 0 {
                doorbell::wait(u32::MAX);
            }
            let peer = command.peer_address.load(Ordering::Acquire);
            status.now.received.store(u64::from(peer), Ordering::Release);
        }
        case::ACCESSES => measured(status, &mut platform, |platform| {
            // RAP of pcnet, MagicValue of virtio-mmio.
            let (offset, width) = if boot.adapter == adapter::PCNET { (0x12, 2) } else { (0, 4) };
            for _ in 0..2000 {
                platform.read_register(offset, width);
            }
            Ok(())
        })?,
        _ => return Err("no such case"),
    }
    Ok(())
}

/// Does `work` as the measured interval.
fn measured(
    status: &Status,
    platform: &mut GuestPlatform,
    work: impl FnOnce(&mut GuestPlatform) -> Result<(), &'static str>,
) -> Result<(), &'static str> {
    platform.phase(phase::READY);
    platform.phase(phase::MEASURE);
    status.start_ns.store(platform.now_ns(), Ordering::Release);
    work(platform)?;
    status.end_ns.store(platform.now_ns(), Ordering::Release);
    platform.phase(phase::MEASURED);
    Ok(())
}

/// Recurses until the stack has no page left.
#[expect(unconditional_recursion, reason = "the case ends in the page below the stack")]
fn dive(depth: u64) -> u64 {
    core::hint::black_box(dive(core::hint::black_box(depth + 1)) + depth)
}

/// Sends frames by the driver that trials have, without a stack: each is to interrupt once, through the gate, before
/// the program's next instruction.
fn frames(
    boot: &'static BootInfo,
    status: &'static Status,
    platform: &mut GuestPlatform,
) -> Result<(), &'static str> {
    const TINT: u32 = 1 << 9;
    let handler =
        driver::interrupt_handler(boot.adapter).ok_or("the adapter's driver has no interrupt handler")?;
    gate::install(boot, handler);
    let mut driver = PcnetDriver::open(platform, boot.mac).map_err(|_| "the adapter does not come up")?;
    platform.take_interrupt();
    measured(status, platform, |platform| {
        for _ in 0..1000 {
            if !driver.can_transmit(platform) {
                return Err("a frame sent is still the adapter's");
            }
            driver.transmit(platform, 60, |frame| frame.fill(0xff));
            if platform.take_interrupt() & TINT == 0 {
                return Err("no interrupt came");
            }
            status.now.received.fetch_add(1, Ordering::AcqRel);
        }
        Ok(())
    })
}

/// Provokes pcnet's initialisation-done interrupt (CSR0 IDON with IENA) time after time, and checks that each is
/// delivered through the gate, once.
fn interrupts(
    boot: &'static BootInfo,
    status: &'static Status,
    platform: &mut GuestPlatform,
) -> Result<(), &'static str> {
    const RDP: u64 = 0x10;
    const RAP: u64 = 0x12;
    const IDON: u32 = 1 << 8;
    gate::install(boot, |mut registers| {
        registers.write_register(RAP, 2, 0);
        let csr0 = registers.read_register(RDP, 2);
        // Write-1-to-clear of all causes; IENA stays.
        registers.write_register(RDP, 2, (csr0 & 0x7f00) | 0x0040);
        csr0
    });
    let block = platform.allocate(28, 16);
    let rings = platform.allocate(32, 16);
    // 32-bit initialisation block: one descriptor each way, none of them the adapter's.
    let (receive, transmit) = (rings.address as u32, rings.address as u32 + 16);
    let words = [0_u32, 0x0054_5200, 0, 0, 0, receive, transmit];
    for (index, word) in words.into_iter().enumerate() {
        // SAFETY: within the 28 bytes just allocated.
        unsafe { block.pointer.cast::<u32>().add(index).write_volatile(word) };
    }
    let mut csr = |index: u32, value: u32| {
        platform.write_register(RAP, 2, index);
        platform.write_register(RDP, 2, value);
    };
    csr(58, 2);
    csr(1, block.address as u32 & 0xffff);
    csr(2, block.address as u32 >> 16);
    for _ in 0..1000 {
        csr(0, 0x0004);
        csr(0, 0x0041);
        if status.interrupt_causes.swap(0, Ordering::AcqRel) & IDON == 0 {
            return Err("no interrupt came");
        }
        status.now.received.fetch_add(1, Ordering::AcqRel);
    }
    Ok(())
}
