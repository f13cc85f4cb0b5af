//! KVM's own counters of a vCPU, by `KVM_GET_STATS_FD` (Linux Documentation/virt/kvm/api.rst, 4.133): a
//! descriptor that holds a header, descriptions (each with a name) and data. Reading it needs no privilege.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;

use kvm_bindings::{kvm_stats_desc, kvm_stats_header};
use kvm_ioctls::VcpuFd;

/// `_IO(KVMIO, 0xce)`.
const KVM_GET_STATS_FD: libc::c_ulong = 0xaece;

/// More bytes of descriptions than any kernel has: what is longer is not read.
const DESCRIPTIONS_MAX: usize = 1 << 20;

/// Counters at a moment; `None` where this kernel doesn't offer one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KvmCounts {
    /// All exits from the guest, those answered in the kernel too.
    pub exits: Option<u64>,
    /// Loads of the guest's FPU state: one for each call of `KVM_RUN`.
    pub fpu_reload: Option<u64>,
}

/// A vCPU's counters, opened once and read at will.
#[derive(Debug)]
pub struct Stats {
    file: File,
    exits: Option<u64>,
    fpu_reload: Option<u64>,
}

impl Stats {
    /// The counters of `vcpu`, or `None` where the kernel has no statistics descriptors (before Linux 5.14).
    pub fn open(vcpu: &VcpuFd) -> Option<Self> {
        // SAFETY: the ioctl takes no argument and returns a new descriptor or -1.
        let fd = unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_GET_STATS_FD, 0) };
        if fd < 0 {
            return None;
        }
        // SAFETY: the kernel just gave us this descriptor; nobody else has it.
        let file = unsafe { File::from_raw_fd(fd) };
        let find = offsets(&file)?;
        Some(Self { exits: find("exits"), fpu_reload: find("fpu_reload"), file })
    }

    /// Reads the counters.
    pub fn read(&self) -> KvmCounts {
        let value = |offset: Option<u64>| {
            let mut bytes = [0; 8];
            self.file.read_exact_at(&mut bytes, offset?).ok()?;
            Some(u64::from_ne_bytes(bytes))
        };
        KvmCounts { exits: value(self.exits), fpu_reload: value(self.fpu_reload) }
    }
}

/// A function from a counter's name to where its value is in `file`.
fn offsets(file: &File) -> Option<impl Fn(&str) -> Option<u64> + use<>> {
    const HEADER: usize = size_of::<kvm_stats_header>();
    const DESCRIPTION: usize = size_of::<kvm_stats_desc>();
    let mut header = [0; HEADER];
    file.read_exact_at(&mut header, 0).ok()?;
    let word = |bytes: &[u8], at: usize| Some(u32::from_ne_bytes(*bytes.get(at..at + 4)?.first_chunk()?));
    // struct kvm_stats_header: flags, name_size, num_desc, id_offset, desc_offset, data_offset.
    let (name_size, count) = (word(&header, 4)? as usize, word(&header, 8)? as usize);
    let (descriptions_at, data_at) = (word(&header, 16)?, word(&header, 20)?);
    let stride = DESCRIPTION.checked_add(name_size)?;
    let length = stride.checked_mul(count).filter(|length| *length <= DESCRIPTIONS_MAX)?;
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, u64::from(descriptions_at)).ok()?;
    Some(move |wanted: &str| {
        bytes.chunks_exact(stride).find_map(|description| {
            let name = description.get(DESCRIPTION..)?.split(|byte| *byte == 0).next()?;
            // struct kvm_stats_desc: flags, exponent and size (16 bits each), offset, bucket_size, name.
            (name == wanted.as_bytes()).then_some(())?;
            Some(u64::from(data_at) + u64::from(word(description, 8)?))
        })
    })
}
