//! transmitq: chains of device-readable buffers, each a header and a frame, gathered into one call of the port
//! (virtio 1.2, 5.1.6.2); or, with combining, one call for the frames of a [`Train`].

use toll_protocol::report::FrameCounters;

use super::chain::pieces;
use super::header::{self, Asks};
use super::ring::Ring;
use super::train::{Car, Train};
use super::{Bus, LONGEST_SEGMENT, MINIMUM_FRAME, bad};
use crate::GuestMemory;
use crate::adapter::AdapterError;
use crate::gather::{self, Parts};
use crate::piece::Piece;
use crate::port::{Framing, Port, PortError, Sent};
use crate::stages::{Mark, Stages};
use crate::vnet_header;

const WHAT: &str = "transmit chain";

/// Where frames leave.
struct Outlet<'b> {
    port: &'b mut dyn Port,
    counters: &'b mut FrameCounters,
    stages: &'b mut Stages,
}

impl Outlet<'_> {
    /// One call of the port, for what the guest sent as `frames` frames of `bytes` bytes.
    fn send(
        &mut self,
        mark: &mut Mark,
        parts: &[Piece<'_>],
        frames: u64,
        bytes: usize,
    ) -> Result<(), AdapterError> {
        let Self { port, stages, .. } = self;
        match stages.in_port(mark, || port.send(parts)) {
            Ok(Sent::Taken) => {
                self.counters.transmit_frames += frames;
                self.counters.transmit_bytes += bytes as u64;
            }
            Ok(Sent::Dropped) => self.counters.transmit_drops += frames,
            Err(PortError::Refused { port }) => {
                return Err(bad(WHAT, format!("its header doesn't fit its frame: {port} refuses it")));
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Sends a train, if there is one, and gives its chains back.
    fn dispatch(
        &mut self,
        train: &mut Train<'_>,
        mark: &mut Mark,
        ring: &mut Ring,
    ) -> Result<(), AdapterError> {
        if !train.couple() {
            return Ok(());
        }
        let mut mark = std::mem::take(mark);
        self.send(&mut mark, &train.parts(), train.chains().len() as u64, train.bytes())?;
        ring.publish(train.chains().iter().map(|head| (*head, 0)));
        self.stages.transmitted(mark, self.counters.transmit_frames, train.bytes());
        train.clear();
        Ok(())
    }
}

impl Bus {
    /// Sends what `ring`, that of this pair, holds.
    pub(super) fn transmit(&mut self, pair: usize, ring: &mut Ring) -> Result<(), AdapterError> {
        let Self { memory, pairs, counters, stages, longest, features, combines, .. } = self;
        let memory: &GuestMemory = memory;
        let port = &mut pairs.get(pair).port;
        let with_headers = port.framing() == Framing::VirtioNetHeader;
        let mut outlet = Outlet { port: &mut **port, counters, stages };
        // That of a train is its first frame's.
        let (mut train, mut of_train) = (Train::new(), Mark::default());
        // A driver on another CPU could go on for ever: one turn takes no more than the queue holds.
        for _ in 0..ring.size() {
            let Some(index) = ring.take("transmit queue")? else { break };
            let mut mark = outlet.stages.transmits();
            let mut parts = Parts::new();
            if with_headers {
                parts.push(Piece::new(&[]));
            }
            let length =
                pieces(ring.chain(index), false, WHAT, (0, vnet_header::LENGTH), |address, length| {
                    gather::push(&mut parts, memory, address, length)
                })? - vnet_header::LENGTH;
            // The port gets the bytes that were looked at, not what the guest makes of them meanwhile.
            let mut head: [u8; vnet_header::LENGTH] = gather::take_head(&mut parts);
            let asks = header::read(&head, *features).map_err(|why| bad(WHAT, why.to_owned()))?;
            let longest = if asks == Asks::Segmentation { LONGEST_SEGMENT } else { *longest };
            if length < MINIMUM_FRAME || length > longest {
                let detail = format!("a frame of {length} bytes; it has {MINIMUM_FRAME} to {longest}");
                return Err(bad(WHAT, detail));
            }
            header::clean(&mut head, asks, length);
            let car = combines.then(|| Car::of(&parts, length, asks, &head)).flatten();
            if let Some(car) = car {
                if !train.append(&car, &parts, index) {
                    outlet.dispatch(&mut train, &mut of_train, ring)?;
                    train.begin(&car, &parts, head, index);
                    of_train = mark;
                }
                continue;
            }
            // In the order of the guest.
            outlet.dispatch(&mut train, &mut of_train, ring)?;
            let mut framed: Parts<'_> = parts;
            if let Some(first) = framed.first_mut().filter(|_| with_headers) {
                *first = Piece::new(&head);
            }
            outlet.send(&mut mark, &framed, 1, length)?;
            ring.publish([(index, 0)]);
            outlet.stages.transmitted(mark, outlet.counters.transmit_frames, length);
        }
        outlet.dispatch(&mut train, &mut of_train, ring)
    }
}
