//! The chip in a hosted VMM of 2001, with the three optimisations of the paper (Sugerman, Venkitachalam, Lim, USENIX 2001),
//! each of them a switch:
//!
//! ```text
//!  ioInKernel       a write of RAP may be kept in the kernel and is done before the next access   (posts)
//!  sendCombining    a demand waits for others while the guest exits often                         (combining)
//!  irqNotification  a look at the port is a look at shared memory                                 (arrivals)
//!
//!  access --> chip --> combining: transmit, or the clock tick runs --> look at the port, 10 us apart --> transmit
//! ```
//! The chip itself ([`Pcnet`]) knows nothing of them but how to hold back what it is to transmit.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use toll_protocol::report::{FrameCounters, Spared};
use toll_protocol::trial::PcnetSwitches;

use super::Pcnet;
use super::combining::{Combining, Settings};
use crate::adapter::{Adapter, AdapterError, ClockTick, Window};
use crate::port::arrivals::Arrivals;
use crate::stages::{Stages, ticks};

/// Least distance of two looks at the port: about 10 us at the 2 to 4 GHz of any host.
const LOOK_TICKS: u64 = 30_000;

/// The chip and what stands around it. `C` is a clock: the time since some moment.
pub struct Hosted<C> {
    chip: Pcnet,
    switches: PcnetSwitches,
    clock: C,
    combining: Option<Held>,
    arrivals: Option<Arrivals>,
    /// Accesses that did not leave the kernel.
    posted: u64,
    /// When the port was last looked at, in ticks.
    looked: u64,
}

/// Sends that are held back.
struct Held {
    combining: Combining,
    /// Period of the clock tick: half of the longest time that a frame waits, so that none waits for longer.
    tick: Duration,
    /// Demands that the combining knows of.
    demands: u64,
}

impl<C: Fn() -> Duration> Hosted<C> {
    /// `chip` with the optimisations that `switches` says, by `clock`.
    pub fn new(chip: Pcnet, switches: PcnetSwitches, clock: C) -> Self {
        let now = clock();
        let combining = switches.send_combining.map(|combining| {
            let tick = combining.tick.duration();
            let settings = Settings { threshold: combining.threshold, rate: combining.rate, tick };
            Held { combining: Combining::new(settings, now), tick: tick / 2, demands: 0 }
        });
        let chip = if combining.is_some() { chip.holding_back() } else { chip };
        Self { chip, switches, clock, combining, arrivals: None, posted: 0, looked: 0 }
    }

    /// After an exit: sends what is held back, if it is time.
    fn combine(&mut self) -> Result<ClockTick, AdapterError> {
        let Some(Held { combining, demands, .. }) = &mut self.combining else { return Ok(ClockTick::AsItIs) };
        let now = (self.clock)();
        combining.exited(now);
        let mut due = false;
        while *demands < self.chip.held_back() {
            *demands += 1;
            due |= combining.demanded(now);
        }
        // A program that nothing interrupts, as on the same stack, learns of the time here.
        if combining.due().is_some_and(|due| due <= now) {
            combining.overdue();
            due = true;
        }
        if due {
            self.transmit()?;
            return Ok(ClockTick::AsItIs);
        }
        Ok(if combining.due().is_some() { ClockTick::On } else { ClockTick::Off })
    }

    /// A hosted VMM of 2001 looks at its port (`select`) after each world switch, since nothing else tells it of a
    /// frame while the guest computes; so does the straightforward chip. A look that finds nothing is a system
    /// call of about 0.3 us. That is little after an exit, and too much after the call that stands for one in a
    /// same-stack process, so looks are [`LOOK_TICKS`] apart in both. There is no look while the chip could not
    /// take a frame.
    fn look_in_time(&mut self) -> Result<(), AdapterError> {
        if !self.chip.can_receive() {
            return Ok(());
        }
        let now = ticks();
        if now.wrapping_sub(self.looked) >= LOOK_TICKS {
            self.looked = now;
            if self.look()? {
                // The host was interrupted: what waits goes along.
                self.transmit()?;
            }
        }
        Ok(())
    }

    /// Takes what the port has, unless shared memory says that it has nothing. Whether something came.
    fn look(&mut self) -> Result<bool, AdapterError> {
        let Some(arrivals) = &mut self.arrivals else { return self.chip.look() };
        if !arrivals.pending()? {
            return Ok(false);
        }
        let came = self.chip.look()?;
        if self.chip.can_receive() {
            // There was room for more, and nothing more.
            arrivals.emptied();
        }
        Ok(came)
    }

    /// Sends what is held back.
    fn transmit(&mut self) -> Result<(), AdapterError> {
        let before = self.sent_until_now();
        self.chip.transmit_held()?;
        self.was_sent(before);
        Ok(())
    }

    fn sent_until_now(&self) -> u64 {
        let counters = self.chip.counters();
        counters.transmit_frames + counters.transmit_drops
    }

    /// What was held back has been sent; `before` are the frames until then.
    fn was_sent(&mut self, before: u64) {
        let sent = self.sent_until_now().saturating_sub(before);
        if let Some(Held { combining, .. }) = &mut self.combining {
            combining.sent(u32::try_from(sent).unwrap_or(u32::MAX));
        }
    }
}

impl<C: Fn() -> Duration + Send> Adapter for Hosted<C> {
    fn window(&self) -> Window {
        self.chip.window()
    }

    fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), AdapterError> {
        self.chip.read(offset, data)
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), AdapterError> {
        self.chip.write(offset, data)
    }

    fn begin(&mut self) -> Result<Option<Duration>, AdapterError> {
        let watched = self.chip.port_fd().filter(|_| self.switches.irq_notification);
        self.arrivals = watched.map(Arrivals::of).transpose()?;
        Ok(self.combining.as_ref().map(|held| held.tick))
    }

    fn accessed(&mut self) -> Result<ClockTick, AdapterError> {
        // Before the look, which may send what this access has asked for.
        let tick = self.combine()?;
        self.look_in_time()?;
        Ok(tick)
    }

    fn interrupted(&mut self) -> Result<ClockTick, AdapterError> {
        let Some(Held { combining, tick, .. }) = &mut self.combining else { return Ok(ClockTick::AsItIs) };
        match combining.due() {
            // The next tick would be too late for what has waited for half of one.
            Some(due) if due <= (self.clock)() + *tick => {
                combining.overdue();
                self.transmit()?;
                Ok(ClockTick::AsItIs)
            }
            Some(_) => Ok(ClockTick::AsItIs),
            None => Ok(ClockTick::Off),
        }
    }

    fn service(&mut self) -> Result<bool, AdapterError> {
        let before = self.sent_until_now();
        let news = self.chip.service()?;
        // An idle guest waits for nothing.
        self.was_sent(before);
        Ok(news)
    }

    fn posts(&self, offset: u64, width: usize) -> bool {
        self.switches.io_in_kernel && self.chip.posts(offset, width)
    }

    fn write_posted(&mut self, offset: u64, data: &[u8]) -> Result<(), AdapterError> {
        self.posted += 1;
        self.chip.write(offset, data)
    }

    fn spared(&self) -> Option<Spared> {
        (self.switches != PcnetSwitches::OFF).then(|| Spared {
            exits: self.posted,
            combined: self.combining.as_ref().map_or([0; 6], |held| held.combining.combined().0),
            looks: self.arrivals.as_ref().map_or(0, Arrivals::skipped),
        })
    }

    fn can_receive(&self) -> bool {
        self.chip.can_receive()
    }

    fn interrupt(&self) -> bool {
        self.chip.interrupt()
    }

    fn counters(&self) -> FrameCounters {
        self.chip.counters()
    }

    fn register_name(&self, offset: u64) -> &'static str {
        self.chip.register_name(offset)
    }

    fn port_fd(&self) -> Option<BorrowedFd<'_>> {
        self.chip.port_fd()
    }

    fn with_stages(&mut self, act: &mut dyn FnMut(&mut Stages)) {
        self.chip.with_stages(act);
    }
}
