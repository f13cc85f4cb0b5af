//! controlq: commands of the driver, each answered at once (virtio 1.2, 5.1.6.5).
//!
//! ```text
//!  chain = class | command | what it is about      device-readable, cut as the driver likes
//!        | ack                                     device-writable: VIRTIO_NET_OK or VIRTIO_NET_ERR
//! ```
//! A command that is unknown, was not negotiated or makes no sense is answered VIRTIO_NET_ERR and changes nothing
//! (5.1.6.5.1.1 and its like). A chain without room for an answer is the driver's fault.

use toll_protocol::units::MacAddress;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_GUEST_OFFLOADS, VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET, VIRTIO_NET_CTRL_MAC,
    VIRTIO_NET_CTRL_MAC_ADDR_SET, VIRTIO_NET_CTRL_MAC_TABLE_SET, VIRTIO_NET_CTRL_MQ,
    VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_ALLMULTI,
    VIRTIO_NET_CTRL_RX_ALLUNI, VIRTIO_NET_CTRL_RX_NOBCAST, VIRTIO_NET_CTRL_RX_NOMULTI,
    VIRTIO_NET_CTRL_RX_NOUNI, VIRTIO_NET_CTRL_RX_PROMISC, VIRTIO_NET_CTRL_VLAN, VIRTIO_NET_CTRL_VLAN_ADD,
    VIRTIO_NET_CTRL_VLAN_DEL, VIRTIO_NET_ERR, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_MAC_ADDR,
    VIRTIO_NET_F_CTRL_RX, VIRTIO_NET_F_CTRL_RX_EXTRA, VIRTIO_NET_F_CTRL_VLAN, VIRTIO_NET_F_MQ, VIRTIO_NET_OK,
};
use vm_memory::{Bytes, GuestAddress};

use super::bad;
use super::chain::{INDIRECT, too_many};
use super::features::Features;
use super::filter::{MacTable, Mode};
use super::ring::Ring;
use crate::GuestMemory;
use crate::adapter::AdapterError;
use crate::gather::MAX_PARTS;

const WHAT: &str = "control chain";
/// Bytes of a command at most: a table of over 1300 addresses.
const LONGEST: usize = 8192;

/// A command that makes sense.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// Receive mode, on or off.
    Receive(Mode, bool),
    /// The addresses beside the device's own.
    MacTable(MacTable),
    /// The device's own.
    MacAddress(MacAddress),
    /// A VLAN that is wanted, or no longer.
    Vlan(u16, bool),
    /// So many queue pairs are used.
    Pairs(u16),
    /// Of what was negotiated, these received frames may come unfinished.
    Offloads(Features),
}

/// One list of addresses and what follows it; sorted.
fn addresses(bytes: &[u8]) -> Option<(Vec<MacAddress>, &[u8])> {
    let (count, rest) = bytes.split_first_chunk()?;
    let length = usize::try_from(u32::from_le_bytes(*count)).ok()?.checked_mul(6)?;
    let (list, rest) = rest.split_at_checked(length)?;
    let mut list: Vec<_> = list.as_chunks().0.iter().map(|bytes| MacAddress(*bytes)).collect();
    list.sort_unstable();
    Some((list, rest))
}

impl Command {
    /// The command in `bytes`, if the driver has negotiated it.
    pub(super) fn parse(bytes: &[u8], features: Features) -> Option<Self> {
        let ([class, command], about) = bytes.split_first_chunk()?;
        let (needs, command) = match (u32::from(*class), u32::from(*command)) {
            (VIRTIO_NET_CTRL_RX, command) => {
                let (needs, mode) = match command {
                    VIRTIO_NET_CTRL_RX_PROMISC => (VIRTIO_NET_F_CTRL_RX, Mode::Promiscuous),
                    VIRTIO_NET_CTRL_RX_ALLMULTI => (VIRTIO_NET_F_CTRL_RX, Mode::AllMulticast),
                    VIRTIO_NET_CTRL_RX_ALLUNI => (VIRTIO_NET_F_CTRL_RX_EXTRA, Mode::AllUnicast),
                    VIRTIO_NET_CTRL_RX_NOMULTI => (VIRTIO_NET_F_CTRL_RX_EXTRA, Mode::NoMulticast),
                    VIRTIO_NET_CTRL_RX_NOUNI => (VIRTIO_NET_F_CTRL_RX_EXTRA, Mode::NoUnicast),
                    VIRTIO_NET_CTRL_RX_NOBCAST => (VIRTIO_NET_F_CTRL_RX_EXTRA, Mode::NoBroadcast),
                    _ => return None,
                };
                match about {
                    [on @ (0 | 1)] => (needs, Self::Receive(mode, *on == 1)),
                    _ => return None,
                }
            }
            (VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET) => {
                let (unicast, rest) = addresses(about)?;
                let (multicast, rest) = addresses(rest)?;
                let table = MacTable { unicast, multicast };
                (VIRTIO_NET_F_CTRL_RX, rest.is_empty().then_some(Self::MacTable(table))?)
            }
            (VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET) => {
                (VIRTIO_NET_F_CTRL_MAC_ADDR, Self::MacAddress(MacAddress(about.try_into().ok()?)))
            }
            (VIRTIO_NET_CTRL_VLAN, command @ (VIRTIO_NET_CTRL_VLAN_ADD | VIRTIO_NET_CTRL_VLAN_DEL)) => {
                let id = u16::from_le_bytes(about.try_into().ok()?);
                (VIRTIO_NET_F_CTRL_VLAN, Self::Vlan(id, command == VIRTIO_NET_CTRL_VLAN_ADD))
            }
            (VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET) => {
                (VIRTIO_NET_F_MQ, Self::Pairs(u16::from_le_bytes(about.try_into().ok()?)))
            }
            (VIRTIO_NET_CTRL_GUEST_OFFLOADS, VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET) => {
                let offloads = features.with_guest_offloads(u64::from_le_bytes(about.try_into().ok()?))?;
                (VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, Self::Offloads(offloads))
            }
            _ => return None,
        };
        features.has(needs).then_some(command)
    }
}

/// A chain of the control queue.
pub(super) struct Request {
    head: u16,
    /// The command, unless it is too long to be one.
    bytes: Option<Vec<u8>>,
    answer: GuestAddress,
}

impl Request {
    /// The next one, if the driver has made any available.
    pub(super) fn take(ring: &mut Ring, memory: &GuestMemory) -> Result<Option<Self>, AdapterError> {
        let head = ring.take("control queue")?;
        head.map(|head| Self::read(ring, head, memory)).transpose()
    }

    fn read(ring: &Ring, head: u16, memory: &GuestMemory) -> Result<Self, AdapterError> {
        let (mut bytes, mut fits) = (Vec::new(), true);
        for (index, descriptor) in ring.chain(head).enumerate() {
            if index == MAX_PARTS {
                return Err(bad(WHAT, too_many(MAX_PARTS)));
            }
            if descriptor.is_indirect() {
                return Err(bad(WHAT, INDIRECT.to_owned()));
            }
            let (address, length) = (GuestAddress(descriptor.address), descriptor.length as usize);
            if length == 0 {
                continue;
            }
            if descriptor.is_writable() {
                return Ok(Self { head, bytes: fits.then_some(bytes), answer: address });
            }
            let filled = bytes.len();
            fits &= length <= LONGEST - filled;
            if fits {
                bytes.resize(filled + length, 0);
                let copied = memory.read_slice(&mut bytes[filled..], address);
                copied.map_err(|_| bad(WHAT, "part of it is outside of guest memory".to_owned()))?;
            }
        }
        Err(bad(WHAT, "it has no room for an answer".to_owned()))
    }

    /// What it asks for, if that makes sense after what was negotiated.
    pub(super) fn command(&self, features: Features) -> Option<Command> {
        self.bytes.as_deref().and_then(|bytes| Command::parse(bytes, features))
    }

    /// Gives the chain back, with the answer whether its command was `done`.
    pub(super) fn answer(
        self,
        ring: &mut Ring,
        memory: &GuestMemory,
        done: bool,
    ) -> Result<(), AdapterError> {
        let ack = if done { VIRTIO_NET_OK } else { VIRTIO_NET_ERR } as u8;
        let written = memory.write_obj(ack, self.answer);
        written.map_err(|_| bad(WHAT, "its answer is outside of guest memory".to_owned()))?;
        ring.publish([(self.head, 1)]);
        Ok(())
    }
}
