//! What an agent knows of its host: the provenance of every figure measured on it. What could not be found out
//! is `None`.

mod found;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use crate::port::Wire;
use crate::units::{AddressRange, BitRate, InterfaceAddress, numbers};

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
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KvmFact {
    /// Guests have run for a moment.
    Usable(KvmKind),
    /// It can't be used, and why, with what to do.
    Unusable {
        /// One sentence.
        reason: String,
        /// The last words of a guest that did not run: its registers, its last exits, a line each.
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
    /// Its speed, where the driver says one.
    #[serde(rename = "speed_bits_per_second", with = "numbers")]
    #[schemars(with = "Option<u64>")]
    pub speed: Option<BitRate>,
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
    /// An interface of which no more is known.
    pub fn new(name: &str, mtu: u32) -> Self {
        let name = name.to_owned();
        Self { name, driver: None, mtu, speed: None, address: None, offloads: Vec::new() }
    }

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
    #[serde(rename = "memory_bytes")]
    pub memory: Option<u64>,
    /// KVM.
    #[serde(with = "found::kvm")]
    #[schemars(with = "found::Kvm")]
    pub kvm: KvmFact,
    /// Whether a TAP can be created, else why not.
    #[serde(with = "found::tun")]
    #[schemars(with = "found::Tun")]
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
    #[serde(with = "found::iperf3")]
    #[schemars(with = "found::Iperf3")]
    pub iperf3: Result<String, String>,
}

impl Default for HostFacts {
    /// A host with this Toll of which nothing is known: it can run neither guests nor iperf3.
    fn default() -> Self {
        let unknown = || "it was not looked for".to_owned();
        Self {
            kernel: String::new(),
            cpu: None,
            microcode: None,
            cpus: Vec::new(),
            memory: None,
            kvm: KvmFact::Unusable { reason: unknown(), last_words: Vec::new() },
            tun: Err(unknown()),
            nic: None,
            wire: None,
            guest_addresses: None,
            clock_source: None,
            governor: None,
            congestion_control: None,
            toll_version: env!("CARGO_PKG_VERSION").to_owned(),
            build_profile: if cfg!(debug_assertions) { "debug" } else { "release" }.to_owned(),
            iperf3: Err(unknown()),
        }
    }
}
