//! KVM: the only place that talks to /dev/kvm. Works with hardware virtualisation (VMX, SVM) and with a
//! page-table based KVM, which runs CPL3 code natively and emulates the rest: a guest here never leaves CPL3.

mod entry;
mod fault;
mod postbox;
mod stats;
mod vcpu;
mod vm;

pub use entry::{Entry, Pages};
pub use fault::Fault;
pub use kvm_ioctls::Kvm;
pub use postbox::{Postbox, Posted};
pub use stats::{KvmCounts, Stats};
pub use vcpu::{Exit, Kicker, Registers, Vcpu};
pub use vm::{Vm, open, probe};

/// Why KVM can't run a guest.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// /dev/kvm can't be opened.
    #[error("/dev/kvm could not be opened: {advice}")]
    Open {
        /// What to do.
        advice: &'static str,
        /// The system's word.
        source: std::io::Error,
    },
    /// /dev/kvm speaks another version of the API than 12, the only one since Linux 2.6.22.
    #[error("/dev/kvm speaks API version {0}, not 12")]
    Version(i32),
    /// This KVM lacks what every guest here needs. Linux has had it on x86 since 4.17.
    #[error("/dev/kvm lacks {0}: run on Linux 4.17 or later")]
    Lacks(&'static str),
    /// KVM doesn't know the frequency of the time stamp counter, which is the guest's clock.
    #[error("KVM_GET_TSC_KHZ gives no frequency: a guest would have no clock")]
    NoClock,
    /// A request was refused.
    #[error("{call} failed")]
    Call {
        /// The ioctl or system call.
        call: &'static str,
        /// The system's word.
        source: std::io::Error,
    },
    /// Guest memory could not be mapped or written.
    #[error("guest memory could not be prepared: {what}")]
    Memory {
        /// What was being done.
        what: &'static str,
    },
}

/// The error of a failed call of kvm-ioctls.
fn failed(call: &'static str) -> impl Fn(kvm_ioctls::Error) -> KvmError {
    move |error| KvmError::Call { call, source: std::io::Error::from_raw_os_error(error.errno()) }
}

/// The error of a failed system call, from `errno`.
fn failed_errno(call: &'static str) -> KvmError {
    KvmError::Call { call, source: std::io::Error::last_os_error() }
}
