//! transmitq: chains of device-readable buffers, each a header and a frame, gathered into one call of the port
//! (virtio 1.2, 5.1.6.2).

use std::io::IoSlice;
use std::time::Instant;

use virtio_queue::{Queue, QueueOwnedT, QueueT};

use super::chain::{broken, pieces, read_header};
use super::header::{self, Asks};
use super::{Bus, LONGEST_SEGMENT, MINIMUM_FRAME, bad};
use crate::GuestMemory;
use crate::adapter::AdapterError;
use crate::gather::{self, Parts};
use crate::port::{Framing, PortError, Sent};

const WHAT: &str = "transmit chain";

impl Bus {
    /// Sends what `queue` holds; how many chains it used.
    pub(super) fn transmit(&mut self, queue: &mut Queue) -> Result<usize, AdapterError> {
        let Self { memory, port, counters, port_time, longest, features, .. } = self;
        let memory: &GuestMemory = memory;
        let with_headers = port.framing() == Framing::VirtioNetHeader;
        let mut used = 0;
        // A driver on another CPU could go on for ever: one turn takes no more than the queue holds.
        for _ in 0..queue.size() {
            let chain = queue.iter(memory).map_err(|error| broken("transmit queue", &error))?.next();
            let Some(chain) = chain else { break };
            // The port gets the bytes that were looked at, not what the guest makes of them meanwhile.
            let mut head = read_header(&chain, memory)?;
            let mut parts = Parts::new();
            if with_headers {
                parts.push(IoSlice::new(&[]));
            }
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
            if let Some(first) = parts.first_mut().filter(|_| with_headers) {
                *first = IoSlice::new(&head);
            }
            let began = Instant::now();
            let sent = port.send(&parts);
            *port_time += began.elapsed();
            match sent {
                Ok(Sent::Taken) => {
                    counters.transmit_frames += 1;
                    counters.transmit_bytes += length as u64;
                }
                Ok(Sent::Dropped) => counters.transmit_drops += 1,
                Err(PortError::Refused { port }) => {
                    return Err(bad(WHAT, format!("its header doesn't fit its frame: {port} refuses it")));
                }
                Err(error) => return Err(error.into()),
            }
            queue
                .add_used(memory, chain.head_index(), 0)
                .map_err(|error| broken("transmit queue", &error))?;
            used += 1;
        }
        Ok(used)
    }
}
