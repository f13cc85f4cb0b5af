//! A virtual machine: one slot of memory, no in-kernel interrupt controller.

use std::io::ErrorKind;
use std::os::fd::{BorrowedFd, FromRawFd, IntoRawFd};
use std::time::Instant;

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, KVM_SYNC_X86_EVENTS, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, NoDatamatch, VmFd};
use toll_vnic::GuestMemory;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use super::{Entry, KvmError, Postbox, Vcpu, failed};

/// Where VMX without unrestricted guests keeps its own pages when the guest is in real mode (three pages, and one
/// below them): an address that no guest memory has. Every hosted VMM chooses this one.
const TSS_ADDRESS: usize = 0xfffb_d000;
const IDENTITY_MAP_ADDRESS: u64 = 0xfffb_c000;

/// A virtual machine.
pub struct Vm {
    fd: VmFd,
    cpuid: CpuId,
    memory: GuestMemory,
    created: Instant,
}

/// Opens /dev/kvm and checks its version. That takes a right, and nothing that is done with it does.
///
/// # Errors
/// [`KvmError`], with what to do.
pub fn open() -> Result<Kvm, KvmError> {
    let kvm = Kvm::new().map_err(|error| {
        let source = std::io::Error::from_raw_os_error(error.errno());
        let advice = match source.kind() {
            ErrorKind::NotFound => "load the module kvm_intel or kvm_amd, or run on a host that offers KVM",
            ErrorKind::PermissionDenied => {
                "add the user to the group that owns it (usually `kvm`) and log in again"
            }
            _ => "see what the kernel log says about kvm",
        };
        KvmError::Open { advice, source }
    })?;
    match kvm.get_api_version() {
        12 => {}
        other => return Err(KvmError::Version(other)),
    }
    // The fields that can be given along with KVM_RUN, as bits: Vcpu::interrupt needs that of events.
    if kvm.check_extension_int(Cap::SyncRegs) & KVM_SYNC_X86_EVENTS as i32 == 0 {
        return Err(KvmError::Lacks("KVM_CAP_SYNC_REGS with events"));
    }
    Ok(kvm)
}

/// Whether guests can be created here.
///
/// # Errors
/// [`KvmError`], with what to do.
pub fn probe() -> Result<(), KvmError> {
    open()?.create_vm().map(drop).map_err(failed("KVM_CREATE_VM"))
}

impl Vm {
    /// A machine with `memory`, which starts at address 0.
    ///
    /// # Errors
    /// [`KvmError`].
    pub fn new(kvm: &Kvm, memory: GuestMemory) -> Result<Self, KvmError> {
        // A property of the host, not of the machine: a third of a millisecond where CPUID itself is virtual.
        let cpuid =
            kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(failed("KVM_GET_SUPPORTED_CPUID"))?;
        let created = Instant::now();
        let fd = kvm.create_vm().map_err(failed("KVM_CREATE_VM"))?;
        fd.set_identity_map_address(IDENTITY_MAP_ADDRESS).map_err(failed("KVM_SET_IDENTITY_MAP_ADDR"))?;
        fd.set_tss_address(TSS_ADDRESS).map_err(failed("KVM_SET_TSS_ADDR"))?;
        for (slot, region) in (0..).zip(memory.iter()) {
            let region = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: the mapping is held by `self.memory` for as long as the machine exists, and only accessed
            // as volatile by this process.
            unsafe { fd.set_user_memory_region(region) }.map_err(failed("KVM_SET_USER_MEMORY_REGION"))?;
        }
        Ok(Self { fd, cpuid, memory, created })
    }

    /// When `KVM_CREATE_VM` was called.
    pub fn created(&self) -> Instant {
        self.created
    }

    /// The machine's memory.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Lets KVM keep writes of `vcpu` to `ports`, so many bytes wide, until they are asked for.
    ///
    /// # Errors
    /// [`KvmError::Lacks`] or [`KvmError::Call`].
    pub fn postbox(&self, vcpu: &Vcpu, ports: impl Iterator<Item = (u16, u32)>) -> Result<Postbox, KvmError> {
        Postbox::new(&self.fd, vcpu.descriptor(), ports)
    }

    /// Makes writes to the physical address `address`, of any width and value, notify `fd` and not exit
    /// (KVM_IOEVENTFD).
    ///
    /// # Errors
    /// [`KvmError::Call`].
    pub fn notifies(&self, address: u64, fd: BorrowedFd<'_>) -> Result<(), KvmError> {
        let own = fd.try_clone_to_owned().map_err(|source| KvmError::Call { call: "dup", source })?;
        // SAFETY: the descriptor is this call's own; KVM takes a reference of its own to what is behind it.
        let event = unsafe { EventFd::from_raw_fd(own.into_raw_fd()) };
        let address = IoEventAddress::Mmio(address);
        self.fd.register_ioevent(&event, &address, NoDatamatch).map_err(failed("KVM_IOEVENTFD"))
    }

    /// The machine's vCPU.
    ///
    /// # Errors
    /// [`KvmError`].
    pub fn vcpu(&self) -> Result<Vcpu, KvmError> {
        let fd = self.fd.create_vcpu(0).map_err(failed("KVM_CREATE_VCPU"))?;
        fd.set_cpuid2(&self.cpuid).map_err(failed("KVM_SET_CPUID2"))?;
        Vcpu::new(fd, self.memory.clone())
    }

    /// Makes the first instruction of `entry` the one that `vcpu` executes next.
    ///
    /// # Errors
    /// [`KvmError`].
    pub fn enter(&self, vcpu: &Vcpu, entry: &Entry) -> Result<(), KvmError> {
        let fd = vcpu.descriptor();
        entry.write_tables(&self.memory)?;
        let mut sregs = fd.get_sregs().map_err(failed("KVM_GET_SREGS"))?;
        entry.system_registers(&self.cpuid, &mut sregs);
        fd.set_sregs(&sregs).map_err(failed("KVM_SET_SREGS"))?;
        fd.set_regs(&entry.registers()).map_err(failed("KVM_SET_REGS"))
    }
}
