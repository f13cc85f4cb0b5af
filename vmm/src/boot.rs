//! What a payload program is told before its first instruction.

use std::hash::{BuildHasher, Hasher};
use std::time::Duration;

use toll_guest_abi::{BootInfo, MAGIC, VERSION, adapter, congestion, direction, kind, open, virtio_net};
use toll_protocol::traffic::Traffic;
use toll_protocol::trial::{Adapter, Direction, Open, VirtioNetSwitches};

use crate::config::{EndConfig, LISTEN_PORT};
use crate::image;
use crate::layout::ARENA;

/// The closing of a connection is no part of what is measured: an end whose peer has gone doesn't wait for it. Of the
/// stack's retransmissions, each twice as long after the one before, it sees three or more.
const PATIENCE: Duration = Duration::from_secs(3);

/// The program that a guest runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// The traffic program.
    Traffic,
    /// A case of the VMM's own tests, by its number in `payload/src/bin/self_test.rs`.
    #[doc(hidden)]
    SelfTest(u64),
}

impl Program {
    /// Its ELF image.
    pub fn image(&self) -> &'static [u8] {
        match self {
            Self::Traffic => image::PAYLOAD,
            Self::SelfTest(_) => image::SELF_TEST,
        }
    }
}

/// Boot information for `config`; the adapter's registers are at `adapter_base`.
pub fn boot_info(config: &EndConfig, program: &Program, adapter_base: u64, tsc_hz: u64) -> BootInfo {
    let nanoseconds = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    BootInfo {
        magic: MAGIC,
        version: VERSION,
        adapter: match config.adapter {
            Adapter::Pcnet(_) => adapter::PCNET,
            Adapter::VirtioNet(_) => adapter::VIRTIO_NET,
        },
        adapter_base,
        tsc_hz,
        arena_base: ARENA,
        arena_length: config.memory - ARENA,
        warm_up_ns: config.job.timing.warm_up.0,
        duration_ns: config.job.timing.duration.0,
        patience_ns: nanoseconds(PATIENCE),
        traffic: traffic(config),
        open: match config.job.open {
            Open::Listen => open::LISTEN,
            Open::Connect => open::CONNECT,
        },
        mtu: u32::from(config.mtu),
        address: config.address.address.octets(),
        prefix: u32::from(config.address.prefix),
        gateway: config.gateway.map_or([0; 4], |gateway| gateway.octets()),
        queue_pairs: queue_pairs(&config.adapter),
        listen_port: LISTEN_PORT,
        mac: config.mac.0,
        random_seed: match program {
            // The standard library seeds its hash maps from the system's random numbers.
            Program::Traffic => std::collections::hash_map::RandomState::new().build_hasher().finish(),
            Program::SelfTest(case) => *case,
        },
        switches: switches(&config.adapter),
    }
}

fn traffic(config: &EndConfig) -> toll_guest_abi::Traffic {
    let direction = match config.job.direction {
        Direction::Send => direction::SEND,
        Direction::Receive => direction::RECEIVE,
        Direction::Both => direction::BOTH,
    };
    match &config.job.traffic {
        Traffic::Stream(stream) => toll_guest_abi::Traffic {
            kind: kind::STREAM,
            direction,
            flows: stream.flows,
            write_size: u32::try_from(stream.write_size.0).unwrap_or(u32::MAX),
            congestion_control: match stream.congestion_control.as_deref() {
                Some("reno") => congestion::RENO,
                _ => congestion::CUBIC,
            },
            reserved: 0,
        },
        // Refused with the configuration, and no kind that the program knows.
        Traffic::Datagram(_) | Traffic::RequestResponse(_) => {
            let (kind, flows, write_size, congestion_control) = (0, 0, 0, 0);
            toll_guest_abi::Traffic { kind, direction, flows, write_size, congestion_control, reserved: 0 }
        }
    }
}

fn switches(adapter: &Adapter) -> u64 {
    let Adapter::VirtioNet(switches) = adapter else { return 0 };
    // The guest knows nothing of `segment_combining`.
    let VirtioNetSwitches {
        checksum_offload,
        tso,
        mergeable_buffers,
        event_index,
        io_thread,
        control_queue,
        ..
    } = *switches;
    let bits = [
        (checksum_offload, virtio_net::CHECKSUM_OFFLOAD),
        (tso, virtio_net::TSO),
        (mergeable_buffers, virtio_net::MERGEABLE_BUFFERS),
        (event_index, virtio_net::EVENT_INDEX),
        (io_thread, virtio_net::IO_THREAD),
        (control_queue, virtio_net::CONTROL_QUEUE),
    ];
    bits.into_iter().filter(|(on, _)| *on).fold(0, |bits, (_, bit)| bits | bit)
}

fn queue_pairs(adapter: &Adapter) -> u32 {
    match adapter {
        Adapter::Pcnet(_) => 1,
        Adapter::VirtioNet(switches) => switches.queue_pairs.into(),
    }
}
