//! The two devices that virtual ends need. Each is opened for reading and writing, as its user will open it, and
//! closed again. What `/dev/kvm` answers is for the VMM to say, since KVM's ioctls have one home: it is run to see
//! whether it can create a guest.

use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use toll_protocol::facts::{KvmFact, KvmKind};

use crate::child::Spawner;
use crate::facts::advice;
use crate::facts::cpu::Processor;

/// How long the creation of a guest may take. It takes milliseconds, and seconds on a host that is overloaded when it
/// boots; what is found here holds as long as the agent runs.
const PROBE_LIMIT: Duration = Duration::from_secs(60);

/// Whether `/dev/kvm` opens and `vmm` can create a guest with it, and which KVM must be behind it.
pub async fn kvm(processor: &Processor, vmm: &Path, spawner: &Spawner) -> KvmFact {
    match open("/dev/kvm") {
        Ok(()) => match probe(vmm, spawner).await {
            Ok(()) => KvmFact::Usable(kind(processor)),
            Err(reason) => KvmFact::Unusable { reason },
        },
        Err(error) => KvmFact::Unusable { reason: advice::kvm(&error, processor) },
    }
}

/// Lets `vmm` create a guest, or says why it can't.
async fn probe(vmm: &Path, spawner: &Spawner) -> Result<(), String> {
    let output = spawner.output(vmm, &["probe"], PROBE_LIMIT).await.map_err(|error| {
        let path = vmm.display();
        match error.kind() {
            ErrorKind::TimedOut => format!("/dev/kvm opens, but {path} probe does not answer: {error}"),
            ErrorKind::NotFound => format!("{path} is missing: install all of Toll's programs in one folder"),
            _ => format!("{path} can't be run: {error}"),
        }
    })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.lines().last().unwrap_or("it said nothing");
    Err(format!("/dev/kvm opens, but no guest can be created ({}): {last}", output.status))
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

    #[tokio::test]
    async fn a_vmm_that_can_create_no_guest_makes_kvm_unusable_with_its_words() {
        let spawner = Spawner::new(tokio::runtime::Handle::current()).expect("a spawner");
        let probe = async |program: &str| super::probe(Path::new(program), &spawner).await;
        assert_eq!(probe("/bin/true").await, Ok(()));
        let failed = probe("/bin/false").await.expect_err("false fails");
        assert!(failed.contains("exit status: 1") && failed.contains("it said nothing"), "{failed}");
        let missing = probe("/no/such/toll-vmm").await.expect_err("not there");
        assert!(missing.contains("/no/such/toll-vmm is missing"), "{missing}");
    }

    #[test]
    fn a_device_that_is_not_there_is_an_error() {
        let error = open("/dev/no-such-device").expect_err("not there");
        assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
    }
}
