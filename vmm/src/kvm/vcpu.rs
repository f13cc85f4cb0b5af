//! A vCPU: one call of `KVM_RUN` at a time, as a value that says why it returned.

use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_bindings::{kvm_run, kvm_vcpu_events};
use kvm_ioctls::{SyncReg, VcpuExit, VcpuFd};
use toll_vnic::GuestMemory;

use super::{Fault, KvmCounts, KvmError, Stats, failed, failed_errno};

/// CR0.PG.
const PAGING: u64 = 1 << 31;

/// Why `KVM_RUN` returned.
#[derive(Debug)]
pub enum Exit<'a> {
    /// The guest reads I/O ports: the answer goes into the slice.
    PioRead(u16, &'a mut [u8]),
    /// The guest writes I/O ports.
    PioWrite(u16, &'a [u8]),
    /// The guest reads memory that is none: the answer goes into the slice.
    MmioRead(u64, &'a mut [u8]),
    /// The guest writes memory that is none.
    MmioWrite(u64, &'a [u8]),
    /// A signal came.
    Signal,
    /// The guest can't go on: `what` names KVM's reason.
    Fault {
        /// `KVM_EXIT_SHUTDOWN` and what is known of it.
        what: String,
    },
}

/// What is known of a guest that can't go on.
#[derive(Debug, Clone)]
pub struct Registers {
    /// Instruction pointer of the program; `None` if it is lost.
    pub rip: Option<u64>,
    /// The fault that the vCPU is telling of, if it is.
    pub fault: Option<Fault>,
    /// For people, one line each.
    pub lines: Vec<String>,
}

/// The `kvm_run` page of a vCPU, mapped once more, so that another thread can reach it for as long as it likes.
#[derive(Debug)]
struct RunPage(NonNull<libc::c_void>);

// SAFETY: the mapping belongs to this value. Other threads reach `immediate_exit` only, which is accessed as an
// atomic; `internal_suberror` is called by the vCPU's own thread.
unsafe impl Send for RunPage {}
// SAFETY: as above.
unsafe impl Sync for RunPage {}

impl RunPage {
    fn map(vcpu: &VcpuFd) -> Result<Self, KvmError> {
        // SAFETY: a new shared mapping at an address of the kernel's choice.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size_of::<kvm_run>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                vcpu.as_raw_fd(),
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(failed_errno("mmap of a vCPU"));
        }
        NonNull::new(address).map(Self).ok_or_else(|| failed_errno("mmap of a vCPU"))
    }

    fn immediate_exit(&self) -> &AtomicU8 {
        let byte = self.0.as_ptr().cast::<u8>().wrapping_add(std::mem::offset_of!(kvm_run, immediate_exit));
        // SAFETY: within the mapping, which lives as long as `self`; the kernel reads it as one byte.
        unsafe { AtomicU8::from_ptr(byte) }
    }

    /// Meaningful after KVM_EXIT_INTERNAL_ERROR only: the first word of that exit's part of the page.
    fn internal_suberror(&self) -> u32 {
        let word = self.0.as_ptr().cast::<u8>().wrapping_add(std::mem::offset_of!(kvm_run, __bindgen_anon_1));
        // SAFETY: within the mapping and aligned (the union holds 64-bit members); the kernel writes it during
        // KVM_RUN only, which is not under way.
        unsafe { word.cast::<u32>().read_volatile() }
    }
}

impl Drop for RunPage {
    fn drop(&mut self) {
        // SAFETY: the mapping that `map` made; no reference to it outlives `self`.
        unsafe { libc::munmap(self.0.as_ptr(), size_of::<kvm_run>()) };
    }
}

/// Makes the vCPU's next (or current, if a signal follows) `KVM_RUN` return at once, from any thread.
#[derive(Debug, Clone)]
pub struct Kicker(Arc<RunPage>);

impl Kicker {
    /// From now on `KVM_RUN` returns with [`Exit::Signal`]; one that is under way does once its thread gets a
    /// signal.
    pub fn stop(&self) {
        self.0.immediate_exit().store(1, Ordering::Release);
    }
}

/// A vCPU.
pub struct Vcpu {
    fd: VcpuFd,
    memory: GuestMemory,
    page: Arc<RunPage>,
    stats: Option<Stats>,
}

impl Vcpu {
    pub(super) fn new(fd: VcpuFd, memory: GuestMemory) -> Result<Self, KvmError> {
        let page = Arc::new(RunPage::map(&fd)?);
        Ok(Self { stats: Stats::open(&fd), page, fd, memory })
    }

    /// Enters the guest until it exits.
    ///
    /// # Errors
    /// [`KvmError::Call`] if the kernel refuses to run the guest at all.
    pub fn run(&mut self) -> Result<Exit<'_>, KvmError> {
        let fault = |what: String| Ok(Exit::Fault { what });
        match self.fd.run() {
            Ok(VcpuExit::IoIn(port, data)) => Ok(Exit::PioRead(port, data)),
            Ok(VcpuExit::IoOut(port, data)) => Ok(Exit::PioWrite(port, data)),
            Ok(VcpuExit::MmioRead(address, data)) => Ok(Exit::MmioRead(address, data)),
            Ok(VcpuExit::MmioWrite(address, data)) => Ok(Exit::MmioWrite(address, data)),
            Ok(VcpuExit::Intr) => Ok(Exit::Signal),
            Ok(VcpuExit::Shutdown) => fault("KVM_EXIT_SHUTDOWN: a fault while a fault was delivered".into()),
            Ok(VcpuExit::Hlt) => fault("KVM_EXIT_HLT: the guest halted".into()),
            Ok(VcpuExit::FailEntry(reason, cpu)) => {
                fault(format!("KVM_EXIT_FAIL_ENTRY: hardware reason {reason:#x} on CPU {cpu}"))
            }
            Ok(VcpuExit::InternalError) => {
                let suberror = self.page.internal_suberror();
                fault(format!("KVM_EXIT_INTERNAL_ERROR: suberror {suberror} ({})", suberror_name(suberror)))
            }
            Ok(other) => {
                let what = format!("{other:?}");
                fault(format!("an exit that no guest of this VMM has a use for: {what}"))
            }
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => Ok(Exit::Signal),
            Err(error) => Err(failed("KVM_RUN")(error)),
        }
    }

    /// Whether [`interrupt`](Self::interrupt) would be taken at once.
    pub fn can_take_interrupt(&mut self) -> bool {
        let run = self.fd.get_kvm_run();
        run.ready_for_interrupt_injection != 0 && run.if_flag != 0
    }

    /// Raises an external interrupt: delivered at the next entry, before another instruction of the guest. It goes
    /// along with the next `KVM_RUN` (KVM_CAP_SYNC_REGS, Linux Documentation/virt/kvm/api.rst, 6.74): `KVM_INTERRUPT`
    /// does the same by a system call of its own.
    ///
    /// Only after an access of the guest: no exception is under way then, which this would take back.
    pub fn interrupt(&mut self, vector: u8) {
        let mut events = kvm_vcpu_events::default();
        (events.interrupt.injected, events.interrupt.nr) = (1, vector);
        self.fd.sync_regs_mut().events = events;
        self.fd.set_sync_dirty_reg(SyncReg::VcpuEvents);
    }

    pub(super) fn descriptor(&self) -> &VcpuFd {
        &self.fd
    }

    /// What makes this vCPU return from another thread.
    pub fn kicker(&self) -> Kicker {
        Kicker(Arc::clone(&self.page))
    }

    /// KVM's own counters.
    pub fn counts(&self) -> KvmCounts {
        self.stats.as_ref().map(Stats::read).unwrap_or_default()
    }

    /// Frequency of the guest's time stamp counter in Hz.
    ///
    /// # Errors
    /// [`KvmError::Call`], [`KvmError::NoClock`].
    pub fn tsc_hz(&self) -> Result<u64, KvmError> {
        match self.fd.get_tsc_khz().map_err(failed("KVM_GET_TSC_KHZ"))? {
            0 => Err(KvmError::NoClock),
            khz => Ok(u64::from(khz) * 1000),
        }
    }

    /// The registers, for last words.
    ///
    /// # Errors
    /// [`KvmError::Call`].
    pub fn registers(&self) -> Result<Registers, KvmError> {
        let regs = self.fd.get_regs().map_err(failed("KVM_GET_REGS"))?;
        let sregs = self.fd.get_sregs().map_err(failed("KVM_GET_SREGS"))?;
        let kvm_bindings::kvm_sregs { cr0, cr2, cr3, cr4, cs, ss, .. } = sregs;
        if cr0 & PAGING == 0 {
            // No guest can switch paging off. AMD-V leaves the state of a guest that has shut down undefined, so KVM resets
            // its vCPU (Linux arch/x86/kvm/svm/svm.c, shutdown_interception).
            let lost =
                "registers are lost: KVM has reset the vCPU, as it does on AMD-V when a guest shuts down";
            return Ok(Registers { rip: None, fault: None, lines: vec![lost.into()] });
        }
        let kvm_bindings::kvm_regs { rax, rbx, rcx, rdx, rsi, rdi, rbp, .. } = regs;
        let kvm_bindings::kvm_regs { r8, r9, r10, r11, r12, r13, r14, r15, .. } = regs;
        let fault = Fault::under_way(&regs, &sregs, &self.memory);
        // Of the program, not of what tells of its fault.
        let (rip, rflags, rsp) =
            fault.map_or((regs.rip, regs.rflags, regs.rsp), |fault| (fault.rip, fault.rflags, fault.rsp));
        let mut lines: Vec<String> = fault.iter().map(|fault| format!("fault: {fault}")).collect();
        lines.extend([
            format!("rip {rip:#018x} cs {:#06x} rflags {rflags:#x} cr2 {cr2:#018x}", cs.selector),
            format!("rax {rax:#018x} rbx {rbx:#018x} rcx {rcx:#018x} rdx {rdx:#018x}"),
            format!("rsi {rsi:#018x} rdi {rdi:#018x} rbp {rbp:#018x} rsp {rsp:#018x}"),
            format!("r8  {r8:#018x} r9  {r9:#018x} r10 {r10:#018x} r11 {r11:#018x}"),
            format!("r12 {r12:#018x} r13 {r13:#018x} r14 {r14:#018x} r15 {r15:#018x}"),
            format!("cr0 {cr0:#x} cr3 {cr3:#x} cr4 {cr4:#x} ss {:#06x}", ss.selector),
        ]);
        Ok(Registers { rip: Some(rip), fault, lines })
    }
}

/// Name of a `KVM_INTERNAL_ERROR_*` (Linux include/uapi/linux/kvm.h).
fn suberror_name(suberror: u32) -> &'static str {
    match suberror {
        1 => "an instruction could not be emulated",
        2 => "simultaneous exceptions",
        3 => "delivery of an event failed",
        4 => "unexpected exit reason",
        _ => "unknown",
    }
}
