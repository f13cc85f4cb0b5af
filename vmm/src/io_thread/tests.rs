//! A thread that panics, and what is read of one that goes on.

use super::*;

/// An adapter whose service panics at its second call.
struct Faulty {
    calls: u32,
}

impl Adapter for Faulty {
    fn window(&self) -> Window {
        Window::Mmio(4096)
    }

    fn read(&mut self, _offset: u64, _data: &mut [u8]) -> Result<(), AdapterError> {
        Ok(())
    }

    fn write(&mut self, _offset: u64, _data: &[u8]) -> Result<(), AdapterError> {
        Ok(())
    }

    fn service(&mut self) -> Result<bool, AdapterError> {
        self.calls += 1;
        assert!(self.calls < 2, "a fault of the adapter");
        Ok(false)
    }

    fn can_receive(&self) -> bool {
        true
    }

    fn interrupt(&self) -> bool {
        false
    }

    fn counters(&self) -> FrameCounters {
        FrameCounters::default()
    }

    fn register_name(&self, _offset: u64) -> &'static str {
        "register"
    }

    fn port_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn with_stages(&mut self, _act: &mut dyn FnMut(&mut Stages)) {}
}

/// An adapter each of whose looks counts a frame, in two places.
#[derive(Default)]
struct Counting {
    frames: u64,
    stages: Stages,
}

impl Adapter for Counting {
    fn window(&self) -> Window {
        Window::Mmio(4096)
    }

    fn read(&mut self, _offset: u64, _data: &mut [u8]) -> Result<(), AdapterError> {
        Ok(())
    }

    fn write(&mut self, _offset: u64, _data: &[u8]) -> Result<(), AdapterError> {
        Ok(())
    }

    fn service(&mut self) -> Result<bool, AdapterError> {
        self.frames += 1;
        let mut mark = self.stages.transmits();
        self.stages.in_port(&mut mark, || std::hint::black_box(ticks()));
        Ok(true)
    }

    fn can_receive(&self) -> bool {
        true
    }

    fn interrupt(&self) -> bool {
        false
    }

    fn counters(&self) -> FrameCounters {
        // The ticks in the port are there twice: those of one moment are equal.
        FrameCounters {
            transmit_frames: self.frames,
            transmit_bytes: self.stages.port_ticks(),
            ..FrameCounters::default()
        }
    }

    fn register_name(&self, _offset: u64) -> &'static str {
        "register"
    }

    fn port_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn with_stages(&mut self, act: &mut dyn FnMut(&mut Stages)) {
        act(&mut self.stages);
    }
}

#[test]
fn what_is_read_beside_frames_is_of_the_same_moment() {
    let mut remote = Remote::start(Box::new(Counting::default()), None).expect("a thread");
    let first = remote.counters().transmit_frames;
    // Until the thread has looked so often meanwhile that two readings would not have been of one look.
    while remote.counters().transmit_frames < first + 10_000 {
        let mut ticks = 0;
        let counters = remote.reading(&mut |stages| ticks = stages.port_ticks());
        assert_eq!(ticks, counters.transmit_bytes, "frames are of another moment");
    }
}

#[test]
fn a_panic_of_the_thread_wakes_the_program_and_is_its_error() {
    let mut remote = Remote::start(Box::new(Faulty { calls: 0 }), None).expect("a thread");
    let mut fds = [PollFd::new(remote.shared.done.as_fd(), PollFlags::POLLIN)];
    assert_eq!(ppoll(&mut fds, Some(nix::sys::time::TimeSpec::new(10, 0)), None), Ok(1), "nobody is told");
    let error = remote.service().expect_err("the thread has ended");
    assert!(format!("{error:?}").contains("panicked"), "{error:?}");
}
