//! The configuration of a virtual end, checked once. After that nothing re-checks it.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use toll_guest_abi::MAX_FLOWS;
use toll_protocol::adapters::Conflict;
use toll_protocol::child::{VmmConfig, VmmPort};
use toll_protocol::decorators::{Capture, Impairments};
use toll_protocol::engine::{Engine, UselessSwitch};
use toll_protocol::port::{NetworkMode, Traits};
use toll_protocol::traffic::stream::{PAYLOAD_CONGESTION_CONTROLS, WRITE_SIZE};
use toll_protocol::traffic::{Job, Traffic};
use toll_protocol::trial::{Adapter, Open, QueuePairs};
use toll_protocol::units::{Bytes, InterfaceAddress, MacAddress};

use crate::layout::{LARGE_PAGE, MEMORY_MAX, MEMORY_MIN};

/// TCP port of a listening payload program. The program is a host of its own, so any will do.
pub const LISTEN_PORT: u16 = 5201;

/// Longest name of an interface: IFNAMSIZ less the terminating zero.
const INTERFACE_NAME_MAX: usize = 15;

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConfigError {
    /// The payload program has no such traffic.
    #[error("the payload program has no traffic `{0}`")]
    Traffic(&'static str),
    /// A size is out of its range.
    #[error("{what} is {value}: from {least} to {most} is possible")]
    Range {
        /// Which.
        what: &'static str,
        /// What was asked for.
        value: String,
        /// The smallest possible.
        least: String,
        /// The largest possible.
        most: String,
    },
    /// Memory is no multiple of the pages that map it.
    #[error("guest memory is {0}: a multiple of 2MiB is possible")]
    MemoryMultiple(Bytes),
    /// The port's name is no interface name.
    #[error("`{0}` is no name of an interface: 1 to 15 printable characters without `/`, `%`, `:` and space")]
    PortName(String),
    /// Switches of the adapter that lack another.
    #[error("{switch}: {0}", switch = .0.switch())]
    Switches(Conflict),
    /// Several queue pairs without what they need.
    #[error("more than one queue pair and {0} don't go together")]
    QueuePairs(&'static str),
    /// The MAC address is a group address or zero.
    #[error("{0} is no MAC address of one adapter")]
    Mac(MacAddress),
    /// The IPv4 address is no host's address in its network.
    #[error("{0} is no address of a host in its network")]
    Address(InterfaceAddress),
    /// The gateway is no other host of that network.
    #[error("the gateway {0} is no other host of the end's network")]
    Gateway(Ipv4Addr),
    /// A switch that means nothing to its engine.
    #[error("the adapter's switch {} is on: {_0}", _0.switch)]
    Engine(UselessSwitch),
    /// Behind address translation.
    #[error("address translation and {0} don't go together")]
    Translation(&'static str),
    /// The payload program's TCP has none of that name.
    #[error("the payload program has no congestion control `{0}`: cubic and reno are possible")]
    CongestionControl(String),
    /// The job measures nothing or never ends.
    #[error("{0} must not be 0")]
    Zero(&'static str),
    /// The deadline comes before the job can end.
    #[error("the deadline of {deadline:?} comes before the job's end after {job:?}")]
    Deadline {
        /// The deadline.
        deadline: Duration,
        /// Warm-up and measured interval together.
        job: Duration,
    },
}

/// A virtual end that can be built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndConfig {
    /// What runs the program.
    pub engine: Engine,
    /// The adapter model.
    pub adapter: Adapter,
    /// The host side of it.
    pub port: VmmPort,
    /// What is wrong with the wire behind it.
    pub impairments: Option<Impairments>,
    /// What the fate of frames is drawn from: the trial and the end.
    pub seed: u64,
    /// A capture of what crosses it, and the file for that.
    pub capture: Option<(Capture, PathBuf)>,
    /// The adapter's MAC address.
    pub mac: MacAddress,
    /// The program's address.
    pub address: InterfaceAddress,
    /// Who takes what it sends to other networks.
    pub gateway: Option<Ipv4Addr>,
    /// MTU in bytes of IP packet.
    pub mtu: u16,
    /// Guest memory in bytes, a multiple of [`LARGE_PAGE`].
    pub memory: u64,
    /// Its part in the traffic.
    pub job: Job,
    /// CPU to pin to.
    pub cpu: Option<usize>,
    /// CPU to pin the adapter's own thread to.
    pub io_cpu: Option<usize>,
    /// Limit for booting, and again from `Start` to the end.
    pub deadline: Duration,
}

fn range<T: Copy + PartialOrd + ToString>(
    what: &'static str,
    value: T,
    least: T,
    most: T,
) -> Result<(), ConfigError> {
    if value >= least && value <= most {
        return Ok(());
    }
    let (value, least, most) = (value.to_string(), least.to_string(), most.to_string());
    Err(ConfigError::Range { what, value, least, most })
}

/// Whether the kernel would take `name` for an interface (dev_valid_name in net/core/dev.c) as it is: `%` would
/// make it number the interface.
fn is_interface_name(name: &str) -> bool {
    let reserved = |byte: u8| !byte.is_ascii_graphic() || matches!(byte, b'/' | b':' | b'%');
    (1..=INTERFACE_NAME_MAX).contains(&name.len())
        && name != "."
        && name != ".."
        && !name.bytes().any(reserved)
}

/// Whether `address` can be a host's: in 1 to 30 bits of network, neither its first nor its last address.
fn is_host_address(address: InterfaceAddress) -> bool {
    let InterfaceAddress { address: ip, prefix } = address;
    if !(1..=30).contains(&prefix) || ip.is_multicast() || ip.is_loopback() || ip == Ipv4Addr::BROADCAST {
        return false;
    }
    let host_mask = u32::MAX >> prefix;
    let host = ip.to_bits() & host_mask;
    host != 0 && host != host_mask
}

impl TryFrom<VmmConfig> for EndConfig {
    type Error = ConfigError;

    fn try_from(config: VmmConfig) -> Result<Self, ConfigError> {
        let VmmConfig {
            trial,
            engine,
            adapter,
            port,
            impairments,
            capture,
            mac,
            address,
            gateway,
            mtu,
            memory,
            job,
            cpu,
            io_cpu,
            deadline,
        } = config;
        match &job.traffic {
            Traffic::Stream(stream) => {
                range("the number of flows", stream.flows, 1, MAX_FLOWS as u32)?;
                range("the write size", stream.write_size, *WRITE_SIZE.start(), *WRITE_SIZE.end())?;
                let asked = stream.congestion_control.as_deref();
                if let Some(name) = asked.filter(|name| !PAYLOAD_CONGESTION_CONTROLS.contains(name)) {
                    return Err(ConfigError::CongestionControl(name.to_owned()));
                }
            }
            traffic @ (Traffic::Datagram(_) | Traffic::RequestResponse(_)) => {
                return Err(ConfigError::Traffic(traffic.field()));
            }
        }
        range("guest memory", memory, Bytes(MEMORY_MIN), Bytes(MEMORY_MAX))?;
        if !memory.0.is_multiple_of(LARGE_PAGE) {
            return Err(ConfigError::MemoryMultiple(memory));
        }
        let (least, most) = adapter.mtus().into_inner();
        range("the MTU of the adapter", mtu, least, most)?;
        if let Some(conflict) = adapter.conflicts().into_iter().next() {
            return Err(ConfigError::Switches(conflict));
        }
        if let Some(useless) = engine.useless_switch(&adapter) {
            return Err(ConfigError::Engine(useless));
        }
        let Traits { mode, multi_queue, offloads, .. } = port.port().traits();
        if let Adapter::VirtioNet(switches) = &adapter
            && switches.queue_pairs > QueuePairs::ONE
        {
            let lacking = match () {
                () if !multi_queue => Some("a port of one queue"),
                () if impairments.is_some() => Some("impairments"),
                () if capture.is_some() => Some("a capture"),
                () => None,
            };
            if let Some(lacking) = lacking {
                return Err(ConfigError::QueuePairs(lacking));
            }
        }
        if let Some(name) = port.interface().filter(|name| !is_interface_name(name)) {
            return Err(ConfigError::PortName(name.to_owned()));
        }
        if adapter.offloads() && !offloads {
            return Err(ConfigError::Translation("offloads"));
        }
        if mode == NetworkMode::Nat && gateway.is_none() {
            return Err(ConfigError::Translation("no gateway"));
        }
        if mode == NetworkMode::Nat && job.open == Open::Listen {
            return Err(ConfigError::Translation("a listening end"));
        }
        // IEEE 802: the lowest bit of the first byte marks a group address.
        if mac.0[0] & 1 != 0 || mac.0 == [0; 6] {
            return Err(ConfigError::Mac(mac));
        }
        if !is_host_address(address) {
            return Err(ConfigError::Address(address));
        }
        if let Some(gateway) = gateway {
            let there = InterfaceAddress { address: gateway, ..address };
            let network = |address: InterfaceAddress| {
                u64::from(address.address.to_bits()) >> (32 - u32::from(address.prefix))
            };
            if !is_host_address(there) || gateway == address.address || network(there) != network(address) {
                return Err(ConfigError::Gateway(gateway));
            }
        }
        if job.timing.duration.0 == 0 {
            return Err(ConfigError::Zero("the measured interval"));
        }
        let (total, deadline) = (job.timing.total().duration(), deadline.duration());
        if deadline <= total {
            return Err(ConfigError::Deadline { deadline, job: total });
        }
        Ok(Self {
            engine,
            adapter,
            port,
            impairments,
            // Two ends of a trial have two fates.
            seed: trial.bits() ^ u64::from(address.address.to_bits()),
            capture,
            mac,
            address,
            gateway,
            mtu,
            memory: memory.0,
            job,
            cpu: cpu.map(|cpu| cpu as usize),
            io_cpu: io_cpu.map(|cpu| cpu as usize),
            deadline,
        })
    }
}

#[cfg(test)]
mod tests {
    use toll_protocol::child::Outside;
    use toll_protocol::traffic::Timing;
    use toll_protocol::traffic::stream::Stream;
    use toll_protocol::trial::{Direction, PcnetSwitches, TrialId, VirtioNetSwitches};
    use toll_protocol::units::Span;

    use super::*;

    fn good() -> VmmConfig {
        VmmConfig {
            trial: TrialId::new(1),
            engine: Engine::Payload,
            adapter: Adapter::Pcnet(Default::default()),
            port: VmmPort::Tap { name: "toll0".into() },
            impairments: None,
            capture: None,
            mac: MacAddress([0x52, 0x54, 0, 0, 0, 1]),
            address: "10.77.0.2/24".parse().expect("an address"),
            gateway: None,
            mtu: 1500,
            memory: Bytes(16 << 20),
            job: Job {
                direction: Direction::Send,
                open: Open::Connect,
                timing: Timing { warm_up: Span::from_millis(500), duration: Span::from_millis(2000) },
                traffic: Traffic::Stream(Stream { write_size: Bytes(65_536), ..Stream::default() }),
            },
            cpu: None,
            io_cpu: None,
            deadline: Span::from_millis(10_000),
        }
    }

    fn translated() -> VmmPort {
        VmmPort::Nat {
            outside: Outside {
                address: Ipv4Addr::new(192, 0, 2, 1),
                interface: "eth0".into(),
                peer: Ipv4Addr::new(192, 0, 2, 2),
                segment: None,
            },
        }
    }

    fn refused(change: impl Fn(&mut VmmConfig)) -> String {
        let mut config = good();
        change(&mut config);
        EndConfig::try_from(config).expect_err("refused").to_string()
    }

    #[test]
    fn a_good_configuration_is_taken_as_it_is() {
        let config = EndConfig::try_from(good()).expect("good");
        assert_eq!((config.memory, config.mtu), (16 << 20, 1500));
        assert_eq!(config.job, good().job);
    }

    #[test]
    fn what_is_out_of_range_is_refused_and_the_range_named() {
        assert_eq!(
            refused(|c| c.job.traffic = Traffic::Stream(Stream { write_size: Bytes(0), ..Stream::default() })),
            "the write size is 0B: from 1B to 1MiB is possible"
        );
        let large = Traffic::Stream(Stream { write_size: Bytes((1 << 20) + 1), ..Stream::default() });
        assert!(refused(|c| c.job.traffic = large.clone()).contains("1MiB"));
        let vegas = Stream { congestion_control: Some("vegas".into()), ..Stream::default() };
        assert!(
            refused(|c| c.job.traffic = Traffic::Stream(vegas.clone())).contains("`vegas`: cubic and reno")
        );
        assert!(refused(|c| c.memory = Bytes(2 << 20)).contains("from 4MiB to 1GiB"));
        assert!(refused(|c| c.memory = Bytes(u64::MAX)).contains("1GiB"));
        assert!(refused(|c| c.memory = Bytes(5 << 20)).contains("multiple of 2MiB"));
        assert!(refused(|c| c.mtu = 575).contains("576"));
        assert!(refused(|c| c.mtu = 1501).contains("1500"));
        assert!(
            refused(|c| (c.adapter, c.mtu) = (Adapter::VirtioNet(Default::default()), 9001)).contains("9000")
        );
        assert!(refused(|c| c.job.timing.duration = Span(0)).contains("must not be 0"));
        assert!(refused(|c| c.deadline = Span::from_millis(2500)).contains("deadline"));
    }

    #[test]
    fn what_address_translation_can_not_be_is_refused() {
        let behind = |change: fn(&mut VmmConfig)| {
            refused(|c| {
                (c.port, c.gateway) = (translated(), Some(Ipv4Addr::new(10, 77, 0, 1)));
                change(c);
            })
        };
        assert!(behind(|c| c.gateway = None).contains("no gateway"));
        assert!(behind(|c| c.job.open = Open::Listen).contains("a listening end"));
        let offload = VirtioNetSwitches { checksum_offload: true, ..Default::default() };
        let mut config = good();
        (config.port, config.gateway) = (translated(), Some(Ipv4Addr::new(10, 77, 0, 1)));
        assert!(EndConfig::try_from(config.clone()).is_ok());
        config.adapter = Adapter::VirtioNet(offload);
        assert_eq!(EndConfig::try_from(config), Err(ConfigError::Translation("offloads")));
        for gateway in [[10, 77, 0, 2], [10, 77, 1, 1], [10, 77, 0, 255], [0; 4]] {
            let gateway = Ipv4Addr::from(gateway);
            assert!(refused(|c| c.gateway = Some(gateway)).contains("is no other host"), "{gateway}");
        }
    }

    #[test]
    fn several_queue_pairs_need_a_control_queue_and_a_port_of_as_many_queues() {
        let pairs = |control_queue| {
            let queue_pairs = QueuePairs::new(2).expect("two");
            Adapter::VirtioNet(VirtioNetSwitches { control_queue, queue_pairs, ..Default::default() })
        };
        assert!(
            refused(|c| c.adapter = pairs(false))
                .contains("queuePairs: more than one need the control queue")
        );
        let several = |change: fn(&mut VmmConfig)| {
            refused(|c| {
                c.adapter = pairs(true);
                change(c);
            })
        };
        assert!(several(|c| c.port = VmmPort::Hub { descriptor: 3 }).contains("one queue"));
        assert!(several(|c| c.impairments = Some(Impairments::default())).contains("impairments"));
    }

    #[test]
    fn a_switch_that_means_nothing_to_the_engine_is_refused() {
        let in_kernel = PcnetSwitches { io_in_kernel: true, ..PcnetSwitches::OFF };
        let engine =
            |engine| EndConfig::try_from(VmmConfig { engine, adapter: Adapter::Pcnet(in_kernel), ..good() });
        assert!(engine(Engine::Payload).is_ok());
        let refused = engine(Engine::SameStack).expect_err("refused").to_string();
        assert!(refused.contains("ioInKernel") && refused.contains("no exits"), "{refused}");
    }

    #[test]
    fn names_and_addresses_that_can_not_be_are_refused() {
        for name in ["", "sixteen-letters-", "a b", "a/b", "tap%d", "..", "a\0", "ä"] {
            let tap = || VmmPort::Tap { name: name.into() };
            let macvtap = || VmmPort::Macvtap { name: name.into(), major: 246, minor: 1 };
            assert!(refused(|c| c.port = tap()).contains("interface"), "{name}");
            assert!(refused(|c| c.port = macvtap()).contains("interface"), "{name}");
        }
        assert!(refused(|c| c.mac = MacAddress([1, 0, 0, 0, 0, 1])).contains("MAC"));
        assert!(refused(|c| c.mac = MacAddress([0; 6])).contains("MAC"));
        for address in ["10.77.0.0/24", "10.77.0.255/24", "224.0.0.1/24", "127.0.0.1/8"] {
            assert!(refused(|c| c.address = address.parse().expect(address)).contains("host"), "{address}");
        }
        let prefix = |prefix: u8| move |c: &mut VmmConfig| c.address.prefix = prefix;
        assert!(refused(prefix(31)).contains("host") && refused(prefix(0)).contains("host"));
    }
}
