//! What an agent knows of its host: the provenance of every figure measured on it. What could not be found out
//! is `None`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use crate::port::Wire;
use crate::units::{AddressRange, InterfaceAddress};

/// Which KVM the host offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum KvmKind {
    /// Intel VT-x.
    Vmx,
    /// AMD-V.
    Svm,
    /// /dev/kvm works and the CPU offers neither VMX nor SVM: a page-table based KVM (PVM).
    PageTable,
}

/// KVM on a host, or why there is none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum KvmFact {
    /// Guests have run for a moment.
    Usable(KvmKind),
    /// It can't be used, and why, with what to do.
    Unusable {
        /// One sentence.
        reason: String,
        /// The last words of a guest that did not run: its registers, its last exits, a line each.
        #[serde(default)]
        #[serde(deserialize_with = "crate::bounded::last_lines::<_, { crate::bounded::MOST_WORDS }>")]
        last_words: Vec<String>,
    },
}

/// A network interface that trials run over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NicFacts {
    /// Its name on the host.
    pub name: String,
    /// Kernel driver, from ethtool: `veth`, `ixgbe`.
    pub driver: Option<String>,
    /// MTU in bytes.
    pub mtu: u32,
    /// Speed in Mb/s, where the driver says one.
    pub speed_megabits: Option<u32>,
    /// Its IPv4 address.
    pub address: Option<InterfaceAddress>,
    /// Offloads that are on, by their ethtool names.
    #[serde(deserialize_with = "crate::bounded::list::<_, _, MOST_OFFLOADS>")]
    pub offloads: Vec<String>,
}

/// Longest name or word of an interface's facts, in bytes: the kernel's are shorter (ETH_GSTRING_LEN, IFNAMSIZ).
const LONGEST_WORD: usize = 64;
/// Offloads of an interface at most: the kernel has no more features than this.
const MOST_OFFLOADS: usize = 128;

impl NicFacts {
    /// Whether it is no longer than what a kernel says of an interface. What an agent says is kept for as long as its host
    /// is known.
    pub fn is_bounded(&self) -> bool {
        let words = self.driver.iter().chain([&self.name]).chain(&self.offloads);
        self.offloads.len() <= MOST_OFFLOADS && words.into_iter().all(|word| word.len() <= LONGEST_WORD)
    }
}

/// A host and the software on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HostFacts {
    /// Kernel release and version.
    pub kernel: String,
    /// CPU model.
    pub cpu: Option<String>,
    /// CPU microcode revision.
    pub microcode: Option<String>,
    /// CPUs this agent may use, by number.
    #[serde(deserialize_with = "crate::bounded::list::<_, _, { crate::bounded::MOST_CPUS }>")]
    pub cpus: Vec<u32>,
    /// Memory in bytes.
    pub memory: Option<u64>,
    /// KVM.
    pub kvm: KvmFact,
    /// Whether a TAP can be created, else why not.
    pub tun: Result<(), String>,
    /// The test NIC.
    pub nic: Option<NicFacts>,
    /// How virtual ends reach the wire; `None` where no test NIC was named.
    pub wire: Option<Wire>,
    /// Addresses that virtual ends may have on the NIC's network: nobody else may use them.
    pub guest_addresses: Option<AddressRange>,
    /// Clock source of the kernel.
    pub clock_source: Option<String>,
    /// Frequency governor of the first CPU.
    pub governor: Option<String>,
    /// TCP congestion control that trials use.
    pub congestion_control: Option<String>,
    /// Version of Toll's binaries.
    pub toll_version: String,
    /// `release` or `debug`.
    pub build_profile: String,
    /// Version of iperf3, and its congestion control if that is not the native ends'; or why no end may run it, with what to do.
    #[serde(with = "iperf3")]
    #[schemars(with = "iperf3::Written")]
    pub iperf3: Result<String, String>,
}

/// What is written of iperf3: the same fields whether there is one or not.
mod iperf3 {
    use schemars::JsonSchema;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    /// One of the two.
    #[derive(Serialize, Deserialize, JsonSchema)]
    pub struct Written {
        /// The version of it that ends run, and its congestion control if that is not the native ends'.
        version: Option<String>,
        /// Why no end may run it, with what to do.
        reason: Option<String>,
    }

    pub fn serialize<S: Serializer>(
        found: &Result<String, String>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let found = found.clone();
        Written { reason: found.clone().err(), version: found.ok() }.serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Result<String, String>, D::Error> {
        /// Older ledgers have a version or nothing.
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Known {
            Now(Written),
            Version(Option<String>),
        }
        let (version, reason) = match Known::deserialize(deserializer)? {
            Known::Now(Written { version, reason }) => (version, reason),
            Known::Version(version) => (version, None),
        };
        Ok(version.ok_or_else(|| reason.unwrap_or_else(|| "why is not known".to_owned())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_of_iperf3_is_read_from_older_ledgers_too() {
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        struct Facts {
            #[serde(with = "iperf3")]
            iperf3: Result<String, String>,
        }
        let read = |json: &str| serde_json::from_str::<Facts>(json).map(|facts| facts.iperf3);
        for iperf3 in [Ok("iperf 3.12".to_owned()), Err("none".to_owned())] {
            let json = serde_json::to_string(&Facts { iperf3: iperf3.clone() }).expect("encodes");
            assert!(json.contains("version") && json.contains("reason"), "{json}");
            assert_eq!(read(&json).expect("is read"), iperf3);
        }
        assert_eq!(read(r#"{"iperf3": "iperf 3.12"}"#).expect("is read"), Ok("iperf 3.12".to_owned()));
        assert_eq!(read(r#"{"iperf3": null}"#).expect("is read"), Err("why is not known".to_owned()));
        read(r#"{"iperf3": 3}"#).expect_err("is nothing");
    }
}
