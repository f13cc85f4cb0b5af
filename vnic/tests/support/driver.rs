//! A small virtio-net driver: one pair and a control queue, a frame at a time.

use std::sync::atomic::{AtomicU64, Ordering};

use toll_protocol::trial::VirtioNetSwitches;
use toll_protocol::units::MacAddress;
use toll_vnic::GuestMemory;
use toll_vnic::adapter::Adapter;
use toll_vnic::adapter::virtio_net::VirtioNet;
use toll_vnic::port::Port;
use vm_memory::{Bytes, GuestAddress};

/// Descriptors of a queue.
const SIZE: u16 = 4;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
/// A buffer for each queue.
const BUFFER: u64 = 0x2_0000;
/// Longest that a buffer holds.
const ROOM: usize = 65_562;

/// A device with its driver.
pub struct Guest {
    device: VirtioNet,
    memory: GuestMemory,
    available: [u16; 3],
    used: [u16; 3],
}

impl Guest {
    /// Brings a device up on `port` with all that `switches` offer.
    pub fn new(port: impl Port + 'static, host: u8, switches: VirtioNetSwitches) -> Self {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap();
        let mac = MacAddress([0x52, 0x54, 0, 0, 0, host]);
        let device = VirtioNet::new(memory.clone(), vec![Box::new(port)], mac, 1500, switches).unwrap();
        let mut guest = Self { device, memory, available: [0; 3], used: [0; 3] };
        let offered = guest.read(0x10);
        for (register, value) in [(0x70, 1), (0x70, 3), (0x20, offered), (0x24, 1), (0x20, 1), (0x70, 11)] {
            guest.write(register, value);
        }
        let queues = if switches.control_queue { 3 } else { 2 };
        for queue in 0..queues {
            let base = 0x1000 * (1 + u64::from(queue));
            guest.write(0x30, queue);
            guest.write(0x38, SIZE.into());
            for (register, offset) in [(0x80, 0), (0x90, 0x400), (0xa0, 0x800)] {
                guest.write(register, (base + offset) as u32);
            }
            guest.write(0x44, 1);
        }
        guest.write(0x70, 15);
        assert_eq!(guest.read(0x70), 15);
        guest
    }

    fn read(&mut self, register: u64) -> u32 {
        let mut data = [0; 4];
        self.device.read(register, &mut data).unwrap();
        u32::from_le_bytes(data)
    }

    fn write(&mut self, register: u64, value: u32) {
        self.device.write(register, &value.to_le_bytes()).unwrap();
    }

    fn describe(&self, queue: usize, index: u16, (at, length): (u64, usize), flags: u16) {
        let at_table = 0x1000 * (1 + queue as u64) + 16 * u64::from(index);
        self.memory.write_obj(at, GuestAddress(at_table)).unwrap();
        self.memory.write_obj(length as u32, GuestAddress(at_table + 8)).unwrap();
        self.memory.write_obj([flags, index + 1], GuestAddress(at_table + 12)).unwrap();
    }

    fn give(&mut self, queue: usize) {
        let ring = 0x1400 + 0x1000 * queue as u64;
        let slot = u64::from(self.available[queue] % SIZE);
        self.memory.write_obj(0_u16, GuestAddress(ring + 4 + 2 * slot)).unwrap();
        self.available[queue] = self.available[queue].wrapping_add(1);
        self.memory.write_obj(self.available[queue], GuestAddress(ring + 2)).unwrap();
    }

    /// Bytes that the device wrote to the chain that it has used, if it has.
    fn taken(&mut self, queue: usize) -> Option<usize> {
        let ring = 0x1800 + 0x1000 * queue as u64;
        let index: u16 = self.memory.read_obj(GuestAddress(ring + 2)).unwrap();
        if index == self.used[queue] {
            return None;
        }
        let at = ring + 4 + 8 * u64::from(self.used[queue] % SIZE);
        let length: u32 = self.memory.read_obj(GuestAddress(at + 4)).unwrap();
        self.used[queue] = index;
        Some(length as usize)
    }

    /// Sends a frame behind its header.
    pub fn send(&mut self, frame: &[u8]) {
        self.memory.write_slice(frame, GuestAddress(2 * BUFFER)).unwrap();
        self.describe(1, 0, (2 * BUFFER, frame.len()), 0);
        self.give(1);
        self.write(0x50, 1);
        assert_eq!(self.taken(1), Some(0));
    }

    /// The next frame to this guest, behind its header, as it comes.
    pub fn receive(&mut self) -> Vec<u8> {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        if self.available[0] == self.used[0] {
            self.describe(0, 0, (4 * BUFFER, ROOM), WRITE);
            self.give(0);
        }
        loop {
            self.device.service().unwrap();
            if let Some(length) = self.taken(0) {
                let mut frame = vec![0; length];
                self.memory.read_slice(&mut frame, GuestAddress(4 * BUFFER)).unwrap();
                return frame;
            }
            let mut fds = [PollFd::new(self.device.port_fd().unwrap(), PollFlags::POLLIN)];
            assert_eq!(
                poll(&mut fds, PollTimeout::from(5000_u16)).unwrap(),
                1,
                "nothing within five seconds"
            );
        }
    }

    /// Sends a command and takes its answer.
    pub fn command(&mut self, command: &[u8]) {
        let (at, answer) = (0x8000, 0x9000);
        self.memory.write_slice(command, GuestAddress(at)).unwrap();
        self.describe(2, 0, (at, command.len()), NEXT);
        self.describe(2, 1, (answer, 1), WRITE);
        self.give(2);
        self.write(0x50, 2);
        assert_eq!(self.taken(2), Some(1));
        assert_eq!(self.memory.read_obj::<u8>(GuestAddress(answer)).unwrap(), 0, "VIRTIO_NET_OK");
    }
}

/// Names for interfaces of one process.
pub fn name() -> String {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    format!("toll-guest{}", NUMBER.fetch_add(1, Ordering::Relaxed))
}
