//! The two devices that virtual ends need. Each is opened for reading and writing, as its user will open it, and
//! closed again. What `/dev/kvm` is worth is for the VMM to say, since KVM's ioctls have one home: it runs guests for a
//! moment.

use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::time::Duration;

use toll_protocol::facts::{KvmFact, KvmKind};

use crate::facts::cpu::Processor;
use crate::facts::{Asking, advice};

/// How long guests may take to run for a moment. It takes milliseconds, and seconds on a host that is overloaded when it
/// boots; what is found here holds as long as the agent runs.
const PROBE_LIMIT: Duration = Duration::from_secs(60);

/// Most lines of last words.
const LAST_WORDS: usize = 64;

/// Whether `/dev/kvm` opens and guests of `toll-vmm` run on it, and which KVM must be behind it.
pub async fn kvm(processor: &Processor, asking: &Asking<'_>) -> KvmFact {
    match open("/dev/kvm") {
        Ok(()) => match probe("toll-vmm", asking).await {
            Ok(()) => KvmFact::Usable(kind(processor)),
            Err(unusable) => unusable,
        },
        Err(error) => unusable(advice::kvm(&error, processor)),
    }
}

fn unusable(reason: String) -> KvmFact {
    KvmFact::Unusable { reason, last_words: Vec::new() }
}

/// Lets `vmm` run guests, or says why it can't.
async fn probe(vmm: &str, asking: &Asking<'_>) -> Result<(), KvmFact> {
    let output = asking.ask(vmm, "probe", PROBE_LIMIT).await.map_err(|error| {
        let path = asking.programs.join(vmm);
        let path = path.display();
        unusable(match error.kind() {
            ErrorKind::TimedOut => format!("/dev/kvm opens, but {path} probe does not answer: {error}"),
            ErrorKind::NotFound => format!("{path} is missing: install all of Toll's programs in one folder"),
            _ => format!("{path} can't be run: {error}"),
        })
    })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let mut last_words: Vec<String> = said.lines().map(str::to_owned).collect();
    let last = last_words.pop().unwrap_or_else(|| "it said nothing".to_owned());
    last_words.truncate(LAST_WORDS);
    for line in &last_words {
        tracing::warn!("a guest's last words: {line}");
    }
    let reason =
        format!("/dev/kvm opens, but guests don't run ({}): {last}{}", output.status, advice::GUESTS);
    Err(KvmFact::Unusable { reason, last_words })
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
    use std::path::Path;

    use super::*;
    use crate::child::Spawner;
    use crate::users::Users;

    #[test]
    fn the_kind_follows_from_the_processor() {
        let processor = |vmx, svm| Processor { vmx, svm, ..Processor::default() };
        assert_eq!(kind(&processor(true, false)), KvmKind::Vmx);
        assert_eq!(kind(&processor(false, true)), KvmKind::Svm);
        assert_eq!(kind(&processor(false, false)), KvmKind::PageTable);
    }

    #[tokio::test]
    async fn a_vmm_whose_guests_dont_run_makes_kvm_unusable_with_its_words() {
        let spawner = Spawner::new(tokio::runtime::Handle::current()).expect("a spawner");
        let users = Users::open(None, "a").expect("nobody has the default range");
        // A path from the root is that, whatever the folder.
        let asking = Asking { programs: Path::new("/"), spawner: &spawner, users: &users };
        let probe = async |program: &str| super::probe(program, &asking).await;
        assert_eq!(probe("/bin/true").await, Ok(()));
        let reason = async |program: &str| match probe(program).await.expect_err("it fails") {
            KvmFact::Unusable { reason, .. } => reason,
            usable @ KvmFact::Usable(_) => panic!("{usable:?}"),
        };
        let failed = reason("/bin/false").await;
        assert!(failed.contains("exit status: 1") && failed.contains("it said nothing"), "{failed}");
        let missing = reason("/no/such/toll-vmm").await;
        assert!(missing.contains("/no/such/toll-vmm is missing"), "{missing}");
        // It takes `probe` for a script that it can't open, or `--user` for an option that it has not, and says so in one line.
        let KvmFact::Unusable { reason, last_words } = probe("/bin/sh").await.expect_err("it fails") else {
            panic!("a shell runs no guests");
        };
        assert!(reason.contains("sh: ") && last_words.is_empty(), "{reason} {last_words:?}");
    }

    #[test]
    fn a_device_that_is_not_there_is_an_error() {
        let error = open("/dev/no-such-device").expect_err("not there");
        assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
    }
}
