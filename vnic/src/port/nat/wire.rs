//! The Ethernet between a guest and the translator's TCP: two bounded queues of frames.

use std::collections::VecDeque;

use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;
use smoltcp::wire::EthernetFrame;

/// Frames that wait in each direction at most: what a Linux interface queues.
const QUEUE: usize = 1000;

/// See the module.
#[derive(Debug)]
pub(super) struct Wire {
    to_stack: VecDeque<Vec<u8>>,
    to_guest: VecDeque<Vec<u8>>,
    /// Buffers of frames that are through, for those to come.
    spare: Vec<Vec<u8>>,
    /// Bytes of IP packet.
    mtu: usize,
}

impl Wire {
    pub fn new(mtu: u16) -> Self {
        let (to_stack, to_guest) = (VecDeque::new(), VecDeque::new());
        Self { to_stack, to_guest, spare: Vec::new(), mtu: mtu.into() }
    }

    /// An empty buffer.
    pub fn buffer(&mut self) -> Vec<u8> {
        let mut buffer = self.spare.pop().unwrap_or_default();
        buffer.clear();
        buffer
    }

    /// Takes a frame of the guest. Whether there was room for it.
    pub fn take(&mut self, frame: Vec<u8>) -> bool {
        let room = self.to_stack.len() < QUEUE;
        if room {
            self.to_stack.push_back(frame);
        }
        room
    }

    /// How many frames of the guest wait.
    pub fn waiting(&self) -> usize {
        self.to_stack.len()
    }

    /// The next frame for the guest; its buffer is to be given [back](Self::spare).
    pub fn for_guest(&mut self) -> Option<Vec<u8>> {
        self.to_guest.pop_front()
    }

    /// Takes a buffer back.
    pub fn spare(&mut self, buffer: Vec<u8>) {
        if self.spare.len() < QUEUE {
            self.spare.push(buffer);
        }
    }
}

/// A frame of the guest.
pub(super) struct Received<'w> {
    frame: Vec<u8>,
    spare: &'w mut Vec<Vec<u8>>,
}

/// Room for a frame to the guest.
pub(super) struct Room<'w> {
    queue: &'w mut VecDeque<Vec<u8>>,
    buffer: Vec<u8>,
}

impl Device for Wire {
    type RxToken<'w> = Received<'w>;
    type TxToken<'w> = Room<'w>;

    fn receive(&mut self, _: Instant) -> Option<(Self::RxToken<'_>, Self::TxToken<'_>)> {
        // The stack may answer at once.
        if self.to_guest.len() >= QUEUE {
            return None;
        }
        let frame = self.to_stack.pop_front()?;
        let buffer = self.buffer();
        let received = Received { frame, spare: &mut self.spare };
        Some((received, Room { queue: &mut self.to_guest, buffer }))
    }

    fn transmit(&mut self, _: Instant) -> Option<Self::TxToken<'_>> {
        if self.to_guest.len() >= QUEUE {
            return None;
        }
        let buffer = self.buffer();
        Some(Room { queue: &mut self.to_guest, buffer })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = self.mtu + EthernetFrame::<&[u8]>::header_len();
        capabilities
    }
}

impl RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        let result = f(&self.frame);
        if self.spare.len() < QUEUE {
            self.spare.push(self.frame);
        }
        result
    }
}

impl TxToken for Room<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(mut self, length: usize, f: F) -> R {
        self.buffer.resize(length, 0);
        let result = f(&mut self.buffer);
        self.queue.push_back(self.buffer);
        result
    }
}
