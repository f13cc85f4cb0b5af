//! The control queue's driver: one command at a time, waited for (virtio 1.2, 5.1.6.5).
//!
//! ```text
//!  descriptor 0: class | command | what it is about --NEXT--> descriptor 1: ack, written by the device
//!  made available, QueueNotify, then looked for until it is used
//! ```

use super::queue::{ALIGN, Layout, Queue};
use super::{WRITE, register};
use crate::dma::Dma;
use crate::driver::DriverError;
use crate::platform::{Platform, Registers};

pub(super) const LAYOUT: Layout = Layout { size: 2, stride: ALIGN };
/// VIRTQ_DESC_F_NEXT (2.7.5).
const NEXT: u16 = 1;
/// The descriptor of a command, and that of its answer.
const COMMAND: u16 = 0;
const ANSWER: u16 = 1;

/// VIRTIO_NET_CTRL_RX_PROMISC: class and command.
const PROMISCUOUS: [u8; 2] = [0, 0];
/// VIRTIO_NET_CTRL_MAC_TABLE_SET.
const MAC_TABLE: [u8; 2] = [1, 0];
/// VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET.
const PAIRS: [u8; 2] = [4, 0];
/// Longest command.
const LONGEST: usize = 2 + 8;
/// VIRTIO_NET_OK.
const OK: u8 = 0;

/// How often, and how far apart in microseconds, an answer is looked for: a second in all.
const LOOKS: u32 = 10_000;
const WAIT: u32 = 100;

/// The control queue.
#[derive(Debug)]
pub(super) struct Control {
    queue: Queue,
    index: u32,
}

impl Control {
    /// The queue of this index.
    pub(super) fn new(memory: &mut Dma, event_index: bool, index: u32) -> Self {
        let queue = Queue::new(memory, LAYOUT, 0, event_index);
        queue.chain(COMMAND, NEXT, ANSWER);
        queue.chain(ANSWER, WRITE, 0);
        Self { queue, index }
    }

    /// Hands it to the device.
    pub(super) fn set_up(self, registers: &mut impl Registers) -> Result<Self, DriverError> {
        self.queue.set_up(registers, self.index)?;
        Ok(self)
    }

    /// Wants frames to the device's own address and to all, and no others: a bridge floods what is for others.
    pub(super) fn receive_own(&mut self, platform: &mut impl Platform) -> Result<(), DriverError> {
        self.command(platform, PROMISCUOUS, &[0])?;
        // No unicast addresses and no multicast ones.
        self.command(platform, MAC_TABLE, &[0; 8])
    }

    /// Uses so many queue pairs.
    pub(super) fn use_pairs(&mut self, platform: &mut impl Platform, pairs: u16) -> Result<(), DriverError> {
        self.command(platform, PAIRS, &pairs.to_le_bytes())
    }

    fn command(
        &mut self,
        platform: &mut impl Platform,
        what: [u8; 2],
        about: &[u8],
    ) -> Result<(), DriverError> {
        let length = what.len() + about.len();
        assert!(length <= LONGEST, "a command over its buffer");
        let mut bytes = self.queue.buffers.bytes(0, length);
        // SAFETY: the device has given the descriptor back, or never had it; no other reference to its buffer exists.
        let bytes = unsafe { bytes.as_mut() };
        let (head, rest) = bytes.split_at_mut(what.len());
        head.copy_from_slice(&what);
        rest.copy_from_slice(about);
        self.queue.set_length(COMMAND, length);
        self.queue.set_length(ANSWER, 1);
        self.queue.give(COMMAND);
        platform.write_register(register::QUEUE_NOTIFY, 4, self.index);
        for _ in 0..LOOKS {
            if self.queue.take().is_some() {
                let answer = self.queue.buffers.read32(usize::from(ANSWER) * LAYOUT.stride) as u8;
                let refused = DriverError::Unsupported { what: "a command of the control queue" };
                return if answer == OK { Ok(()) } else { Err(refused) };
            }
            platform.wait(WAIT);
        }
        Err(DriverError::NotReady { what: "an answer of the control queue" })
    }
}
