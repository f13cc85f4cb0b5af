//! transmitq: chains of device-readable buffers, each a header and a frame, gathered into one call of the port
//! (virtio 1.2, 5.1.6.2); or, with combining, one call for the frames of a [`Train`].

use std::io::IoSlice;
use std::time::{Duration, Instant};

use toll_protocol::report::FrameCounters;
use virtio_queue::{Queue, QueueOwnedT, QueueT};

use super::chain::{broken, pieces, read_header};
use super::header::{self, Asks};
use super::train::{Car, Train};
use super::{Bus, LONGEST_SEGMENT, MINIMUM_FRAME, bad, notify};
use crate::GuestMemory;
use crate::adapter::AdapterError;
use crate::gather::{self, Parts};
use crate::port::{Framing, Port, PortError, Sent};

const WHAT: &str = "transmit chain";

/// Where frames leave.
struct Outlet<'b> {
    port: &'b mut dyn Port,
    counters: &'b mut FrameCounters,
    port_time: &'b mut Duration,
}

impl Outlet<'_> {
    /// One call of the port, for what the guest sent as `frames` frames of `bytes` bytes.
    fn send(&mut self, parts: &[IoSlice<'_>], frames: u64, bytes: usize) -> Result<(), AdapterError> {
        let began = Instant::now();
        let sent = self.port.send(parts);
        *self.port_time += began.elapsed();
        match sent {
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

    /// Sends a train and gives its chains back.
    fn dispatch(
        &mut self,
        train: Option<Train<'_>>,
        queue: &mut Queue,
        memory: &GuestMemory,
    ) -> Result<(), AdapterError> {
        let Some(mut train) = train else { return Ok(()) };
        train.couple();
        self.send(&train.parts(), train.chains().len() as u64, train.bytes())?;
        let elements = train.chains().iter().map(|head| (*head, 0));
        notify::publish(queue, memory, elements)
    }
}

impl Bus {
    /// Sends what `queue` holds; how many chains it used.
    pub(super) fn transmit(&mut self, queue: &mut Queue) -> Result<usize, AdapterError> {
        let Self { memory, port, counters, port_time, longest, features, combines, .. } = self;
        let memory: &GuestMemory = memory;
        let with_headers = port.framing() == Framing::VirtioNetHeader;
        let mut outlet = Outlet { port: &mut **port, counters, port_time };
        let mut train: Option<Train<'_>> = None;
        let mut used = 0;
        // A driver on another CPU could go on for ever: one turn takes no more than the queue holds.
        for _ in 0..queue.size() {
            let chain = queue.iter(memory).map_err(|error| broken("transmit queue", &error))?.next();
            let Some(chain) = chain else { break };
            // The port gets the bytes that were looked at, not what the guest makes of them meanwhile.
            let mut head = read_header(&chain, memory)?;
            let mut parts = Parts::new();
            let length = pieces(&chain, false, WHAT, (header::LENGTH, header::LENGTH), |address, length| {
                gather::push(&mut parts, memory, address, length)
            })? - header::LENGTH;
            let asks = header::read(&head, *features).map_err(|why| bad(WHAT, why.to_owned()))?;
            let longest = if asks == Asks::Segmentation { LONGEST_SEGMENT } else { *longest };
            if length < MINIMUM_FRAME || length > longest {
                let detail = format!("a frame of {length} bytes; it has {MINIMUM_FRAME} to {longest}");
                return Err(bad(WHAT, detail));
            }
            if asks == Asks::Nothing {
                // The other fields mean nothing then, and the kernel would look at them.
                head = [0; header::LENGTH];
            }
            used += 1;
            let car = combines.then(|| Car::of(&parts, length, asks, &head)).flatten();
            if let Some(car) = car {
                let index = chain.head_index();
                let alone = match &mut train {
                    Some(train) => train.append(car, index).err(),
                    None => Some(car),
                };
                if let Some(car) = alone {
                    outlet.dispatch(train.replace(Train::new(car, head, index)), queue, memory)?;
                }
                continue;
            }
            // In the order of the guest.
            outlet.dispatch(train.take(), queue, memory)?;
            let mut framed: Parts<'_> = parts;
            if with_headers {
                framed
                    .try_insert(0, IoSlice::new(&head))
                    .map_err(|_| bad(WHAT, super::chain::too_many(gather::MAX_PARTS - 1)))?;
            }
            outlet.send(&framed, 1, length)?;
            queue
                .add_used(memory, chain.head_index(), 0)
                .map_err(|error| broken("transmit queue", &error))?;
        }
        outlet.dispatch(train, queue, memory)?;
        Ok(used)
    }
}
