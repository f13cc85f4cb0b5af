//! Writes that KVM keeps instead of exiting for them (KVM_CAP_COALESCED_MMIO and KVM_CAP_COALESCED_PIO, Linux
//! Documentation/virt/kvm/api.rst, 4.116): a ring in memory that is shared with the kernel. When it is full, and for any
//! other access, the guest exits.

use std::os::fd::{AsFd, AsRawFd, IntoRawFd};

use kvm_ioctls::{Cap, IoEventAddress, VcpuFd, VmFd};

use super::{KvmError, failed, failed_errno};

/// A write that KVM has kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Posted {
    /// The port.
    pub port: u16,
    data: [u8; 8],
    length: usize,
}

impl Posted {
    /// What was written.
    pub fn data(&self) -> &[u8] {
        &self.data[..self.length]
    }
}

/// The ring of a vCPU.
pub struct Postbox {
    /// The vCPU once more: what `KVM_RUN` has returned borrows the other one while the ring is read.
    vcpu: VcpuFd,
}

impl Postbox {
    /// The ring of `vcpu`, for writes to each of `ports`, so many bytes wide.
    pub(super) fn new(
        vm: &VmFd,
        vcpu: &VcpuFd,
        ports: impl Iterator<Item = (u16, u32)>,
    ) -> Result<Self, KvmError> {
        // The machine is asked: /dev/kvm can't be opened any more, since the process has given its rights up.
        if !vm.check_extension(Cap::CoalescedMmio) || !vm.check_extension(Cap::CoalescedPio) {
            return Err(KvmError::Lacks("KVM_CAP_COALESCED_PIO (Linux 5.0)"));
        }
        // SAFETY: the descriptor is open, and is duplicated before anybody else can close it.
        let borrowed = unsafe { std::os::fd::BorrowedFd::borrow_raw(vcpu.as_raw_fd()) };
        let twin = borrowed.as_fd().try_clone_to_owned().map_err(|_| failed_errno("dup of a vCPU"))?;
        // SAFETY: a descriptor of a vCPU, which is given away.
        let mut twin =
            unsafe { vm.create_vcpu_from_rawfd(twin.into_raw_fd()) }.map_err(failed("mmap of a vCPU"))?;
        twin.map_coalesced_mmio_ring().map_err(failed("mmap of a ring"))?;
        for (port, width) in ports {
            let address = IoEventAddress::Pio(u64::from(port));
            vm.register_coalesced_mmio(address, width).map_err(failed("KVM_REGISTER_COALESCED_MMIO"))?;
        }
        Ok(Self { vcpu: twin })
    }

    /// The oldest write that has been kept.
    ///
    /// # Errors
    /// [`KvmError::Call`].
    pub fn take(&mut self) -> Result<Option<Posted>, KvmError> {
        let entry = self.vcpu.coalesced_mmio_read().map_err(failed("reading a ring"))?;
        Ok(entry.map(|entry| Posted {
            port: entry.phys_addr as u16,
            data: entry.data,
            length: (entry.len as usize).min(entry.data.len()),
        }))
    }
}
