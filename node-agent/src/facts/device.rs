//! The two devices that virtual ends need. Each is opened for reading and writing, as its user will open it, and
//! closed again. That `/dev/kvm` also answers the API version is for the VMM to say: KVM's ioctls have one home.

use std::fs::OpenOptions;

use toll_protocol::facts::{KvmFact, KvmKind};

use crate::facts::advice;
use crate::facts::cpu::Processor;

/// Whether `/dev/kvm` opens, and which KVM must be behind it.
pub fn kvm(processor: &Processor) -> KvmFact {
    match open("/dev/kvm") {
        Ok(()) => KvmFact::Usable(kind(processor)),
        Err(error) => KvmFact::Unusable { reason: advice::kvm(&error, processor) },
    }
}

/// Whether `/dev/net/tun` opens, or why not and what to do.
///
/// # Errors
/// One sentence for a person.
pub fn tun() -> Result<(), String> {
    open("/dev/net/tun").map_err(|error| advice::tun(&error))
}

fn open(path: &str) -> std::io::Result<()> {
    OpenOptions::new().read(true).write(true).open(path).map(drop)
}

fn kind(processor: &Processor) -> KvmKind {
    match (processor.vmx, processor.svm) {
        (true, _) => KvmKind::Vmx,
        (false, true) => KvmKind::Svm,
        (false, false) => KvmKind::PageTable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kind_follows_from_the_processor() {
        let processor = |vmx, svm| Processor { vmx, svm, ..Processor::default() };
        assert_eq!(kind(&processor(true, false)), KvmKind::Vmx);
        assert_eq!(kind(&processor(false, true)), KvmKind::Svm);
        assert_eq!(kind(&processor(false, false)), KvmKind::PageTable);
    }

    #[test]
    fn a_device_that_is_not_there_is_an_error() {
        let error = open("/dev/no-such-device").expect_err("not there");
        assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
    }
}
