//! The machine that a payload program runs on, whichever engine runs it: an adapter, doorbells, an interrupt line.
//! A guest reaches it by exits, a same-stack process by calls; behind that seam nothing differs.
//!
//! ```text
//! BOOT --READY--> 1 --WARM_UP--> 2 --MEASURE--> 3 --MEASURED--> 4 --CLOSED--> 5 --END--> ended
//!                                    (snapshot)     (snapshot)
//! ```
//! A phase may be left out, but never comes late or twice.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use toll_child::contention::ThreadFiles;
use toll_guest_abi::phase;
use toll_vnic::adapter::{Adapter, AdapterError, ClockTick};

use crate::alarm::Alarm;
use crate::channel::{Event, EventSender};
use crate::clock::{CpuClock, Timebase, ticks};
use crate::dialogue::Dialogue;
use crate::exits::Exits;
use crate::io_thread::{Io, IoClocks};
use crate::kvm::KvmCounts;
use crate::memory::SharedPages;
use crate::recording::Recording;
use crate::snapshot::Snapshot;
use crate::thread::STOP_SIGNAL;

/// Why the program can't go on.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The adapter, its rings or its port.
    #[error("the program's adapter can't go on")]
    Adapter(#[from] AdapterError),
    /// A phase out of order.
    #[error("the program announced phase {announced} after phase {current}")]
    Phase {
        /// What it announced.
        announced: u32,
        /// What it was in.
        current: u32,
    },
    /// The program ended before the measured interval did.
    #[error("the program ended in phase {phase}, before it had measured")]
    Early {
        /// The phase it was in.
        phase: u32,
    },
    /// The program gave up.
    #[error("the program failed: {words}")]
    Program {
        /// Its last words.
        words: String,
    },
    /// The program's thread can't be given a clock tick.
    #[error("no clock tick can be had for the program's thread")]
    Alarm(#[source] io::Error),
    /// Waiting failed.
    #[error("waiting for the port failed")]
    Poll(#[source] io::Error),
    /// The control thread has asked for the end.
    #[error("the program was stopped")]
    Stopped,
}

/// What the engine adds to a snapshot.
#[derive(Debug)]
pub struct EngineView<'a> {
    /// Ticks in the program.
    pub program_ticks: u64,
    /// Ticks in the model, time asleep left out.
    pub model_ticks: u64,
    /// Ticks between the end of an exit and the next entry.
    pub loop_ticks: u64,
    /// Exits and KVM's counts, of a guest.
    pub exits: Option<(&'a Exits, KvmCounts)>,
}

/// The machine.
pub struct Machine {
    adapter: Box<dyn Adapter>,
    /// The clock tick of this thread, if the adapter wants one.
    alarm: Option<Alarm>,
    pages: SharedPages,
    dialogue: Arc<dyn Dialogue>,
    events: EventSender,
    cpu: Option<CpuClock>,
    control_cpu: Option<CpuClock>,
    io: Option<IoClocks>,
    files: ThreadFiles,
    memory: u64,
    phase: u32,
    snapshots: (Option<Snapshot>, Option<Snapshot>),
    asleep: u64,
    created: Instant,
    first_frame: Option<Instant>,
}

/// What a machine is made of, whatever runs its program.
pub struct Components {
    /// The chip.
    pub adapter: Box<dyn Adapter>,
    /// The shared pages and, through them, memory.
    pub pages: SharedPages,
    /// What the program says, and is told.
    pub dialogue: Arc<dyn Dialogue>,
    /// Where events go.
    pub events: EventSender,
    /// CPU clock of the thread that controls the program.
    pub control_cpu: Option<CpuClock>,
    /// The adapter's own thread, if it has one.
    pub io: Option<Io>,
}

impl Machine {
    /// A machine for a program that the calling thread runs, created at `created`.
    ///
    /// # Errors
    /// [`MachineError::Adapter`] or [`MachineError::Alarm`] if the host lacks what an optimisation takes.
    pub fn new(components: Components, created: Instant) -> Result<Self, MachineError> {
        let Components { mut adapter, pages, dialogue, events, control_cpu, io } = components;
        let alarm = |period| Alarm::of_this_thread(STOP_SIGNAL, period);
        let alarm =
            adapter.begin()?.map(alarm).transpose().map_err(|errno| MachineError::Alarm(errno.into()))?;
        Ok(Self {
            memory: pages.length(),
            adapter,
            alarm,
            pages,
            dialogue,
            events,
            cpu: CpuClock::of_this_thread(),
            control_cpu,
            io: io.map(|io| io.clocks),
            files: ThreadFiles::of_this_thread(),
            phase: 0,
            snapshots: (None, None),
            asleep: 0,
            created,
            first_frame: None,
        })
    }

    /// The adapter.
    pub fn adapter(&self) -> &dyn Adapter {
        &*self.adapter
    }

    /// The shared pages.
    pub fn pages(&self) -> &SharedPages {
        &self.pages
    }

    /// Ticks spent asleep so far.
    pub fn asleep_ticks(&self) -> u64 {
        self.asleep
    }

    /// The program reads the adapter's registers.
    ///
    /// # Errors
    /// [`MachineError::Adapter`].
    pub fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), MachineError> {
        self.adapter.read(offset, data)?;
        self.after_access()
    }

    /// The program writes the adapter's registers.
    ///
    /// # Errors
    /// [`MachineError::Adapter`].
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), MachineError> {
        self.adapter.write(offset, data)?;
        self.after_access()
    }

    /// The program goes on after an access.
    fn after_access(&mut self) -> Result<(), MachineError> {
        let tick = self.adapter.accessed()?;
        self.set_alarm(tick)?;
        self.note_first_frame();
        Ok(())
    }

    fn set_alarm(&mut self, tick: ClockTick) -> Result<(), MachineError> {
        let Some(alarm) = &mut self.alarm else { return Ok(()) };
        let ticks = match tick {
            ClockTick::AsItIs => return Ok(()),
            ClockTick::On => true,
            ClockTick::Off => false,
        };
        alarm.tick(ticks).map_err(|errno| MachineError::Alarm(errno.into()))
    }

    /// The clock has ticked, or whoever else interrupted the program.
    ///
    /// # Errors
    /// [`MachineError::Adapter`].
    pub fn interrupted(&mut self) -> Result<(), MachineError> {
        let tick = self.adapter.interrupted()?;
        self.set_alarm(tick)
    }

    /// The program has written the adapter's registers, and KVM has kept it until now.
    ///
    /// # Errors
    /// [`MachineError::Adapter`].
    pub fn posted(&mut self, offset: u64, data: &[u8]) -> Result<(), MachineError> {
        Ok(self.adapter.write_posted(offset, data)?)
    }

    fn note_first_frame(&mut self) {
        if self.first_frame.is_none() && self.adapter.counters().transmit_frames > 0 {
            self.first_frame = Some(Instant::now());
        }
    }

    /// Whether an interrupt is to be raised: the line is high and no handler runs.
    pub fn interrupt_pending(&self) -> bool {
        self.adapter.interrupt() && self.pages.status().in_service.load(Ordering::Acquire) == 0
    }

    fn has_work(&mut self) -> Result<bool, MachineError> {
        let work = self.adapter.service()?;
        self.note_first_frame();
        Ok(work
            || self.adapter.interrupt()
            || self.pages.status().interrupt_causes.load(Ordering::Acquire) != 0)
    }

    /// The WAIT doorbell: the adapter takes what the rings hold; then, unless there is something for the program,
    /// this sleeps until the port has a frame, a kick comes, or `timeout_us` has passed.
    ///
    /// # Errors
    /// [`MachineError::Adapter`], [`MachineError::Poll`], or [`MachineError::Stopped`] if that is what woke it.
    pub fn wait(&mut self, timeout_us: u32) -> Result<(), MachineError> {
        if self.has_work()? || timeout_us == 0 {
            return self.check_stop();
        }
        let asleep = ticks();
        // The program has nothing to go on with: no frame waits for it.
        self.turn_ended(asleep);
        let woken = self.sleep(Duration::from_micros(u64::from(timeout_us)));
        self.asleep = self.asleep.saturating_add(ticks().saturating_sub(asleep));
        let (kicked, readable) = woken?;
        self.turn_began(ticks());
        if kicked {
            self.events.signals().drain_kicks();
            self.check_stop()?;
        }
        if readable {
            self.has_work()?;
        }
        Ok(())
    }

    /// [`MachineError::Stopped`] once the control thread has asked for the end.
    ///
    /// # Errors
    /// As said.
    pub fn check_stop(&self) -> Result<(), MachineError> {
        if self.events.signals().stopped() { Err(MachineError::Stopped) } else { Ok(()) }
    }

    /// Sleeps; says whether a kick came and whether the port is readable.
    fn sleep(&self, timeout: Duration) -> Result<(bool, bool), MachineError> {
        let kick = self.events.signals().kick_fd();
        // A port that the adapter can't take frames from would wake us time after time for nothing.
        let port = self.adapter.port_fd().filter(|_| self.adapter.can_receive());
        let mut fds = [kick, port.unwrap_or(kick)].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        let polled = if port.is_some() { &mut fds[..] } else { &mut fds[..1] };
        match ppoll(polled, Some(TimeSpec::from_duration(timeout)), None) {
            Ok(_) => {}
            // A signal says `stop` or nothing: either way the program looks again.
            Err(Errno::EINTR) => return Ok((true, false)),
            Err(errno) => return Err(MachineError::Poll(errno.into())),
        }
        let ready = |fd: &PollFd<'_>| fd.revents().is_some_and(|events| !events.is_empty());
        Ok((ready(&fds[0]), port.is_some() && ready(&fds[1])))
    }

    /// The PHASE doorbell.
    ///
    /// # Errors
    /// [`MachineError::Phase`] for one that doesn't exist, or doesn't follow.
    pub fn phase(&mut self, announced: u32, view: &EngineView<'_>) -> Result<(), MachineError> {
        let current = self.phase;
        if announced <= current || announced > phase::CLOSED {
            return Err(MachineError::Phase { announced, current });
        }
        let at = match announced {
            phase::READY => {
                let at = Instant::now();
                self.pages.prefer_large();
                at
            }
            phase::MEASURE => {
                let taken = self.snapshot(view);
                self.snapshots.0.insert(taken).at.instant()
            }
            phase::MEASURED if current == phase::MEASURE => {
                let taken = self.snapshot(view);
                self.snapshots.1.insert(taken).at.instant()
            }
            phase::MEASURED => return Err(MachineError::Phase { announced, current }),
            _ => Instant::now(),
        };
        self.phase = announced;
        self.events.send(Event::Phase(announced, at));
        Ok(())
    }

    /// The END doorbell: what was recorded, or why the program failed.
    ///
    /// # Errors
    /// [`MachineError::Program`] or [`MachineError::Early`].
    pub fn end(&mut self, value: u32) -> Result<Box<Recording>, MachineError> {
        if value != 0 {
            let words = self.pages.message().unwrap_or_else(|| "it left no last words".into());
            return Err(MachineError::Program { words });
        }
        let (Some(start), Some(end)) = (self.snapshots.0.take(), self.snapshots.1.take()) else {
            return Err(MachineError::Early { phase: self.phase });
        };
        let claim = self.dialogue.finish();
        let (created, first_frame, memory) = (self.created, self.first_frame, self.memory);
        Ok(Box::new(Recording { start, end, claim, created, first_frame, memory }))
    }

    /// The program has stopped at `now`: an exit, or a call that stands for one.
    pub fn turn_began(&mut self, now: u64) {
        // Of what a thread of its own does, that thread says it.
        if self.io.is_none() {
            self.adapter.with_stages(&mut |stages| stages.turn_began(now));
        }
    }

    /// The program goes on at `now`.
    pub fn turn_ended(&mut self, now: u64) {
        if self.io.is_none() {
            self.adapter.with_stages(&mut |stages| stages.turn_ended(now));
        }
    }

    fn snapshot(&mut self, view: &EngineView<'_>) -> Snapshot {
        let entered = ticks();
        let (mut port_ticks, mut noted, begins) = (0, Default::default(), self.phase < phase::MEASURE);
        let frames = self.adapter.reading(&mut |stages| {
            port_ticks = stages.port_ticks();
            if begins {
                stages.restart();
            } else {
                noted = stages.noted();
            }
        });
        // After the reading, which may have waited for a look of the adapter's thread to end: frames are of this moment.
        // So is the rest, as the program stood still meanwhile; the wait was the model's.
        let at = Timebase::now();
        let waited = ticks().saturating_sub(entered);
        Snapshot {
            at,
            cpu: self.cpu.and_then(CpuClock::read),
            control_cpu: self.control_cpu.and_then(CpuClock::read),
            io: self.io.as_ref().map(|io| (io.cpu(), io.ticks())),
            io_thread: self.io.as_ref().and_then(IoClocks::times),
            asleep_ticks: self.asleep,
            loop_ticks: view.loop_ticks,
            run_delay: self.files.run_delay(),
            thread: self.files.times(),
            program_ticks: view.program_ticks,
            model_ticks: view.model_ticks.saturating_add(waited),
            port_ticks,
            noted,
            retransmits: self.pages.status().retransmits.load(Ordering::Relaxed),
            window_bound_ns: self.pages.status().window_bound_ns.load(Ordering::Relaxed),
            frames,
            spared: self.adapter.spared(),
            exits: view.exits.as_ref().map(|(exits, counts)| ((*exits).clone(), *counts)),
        }
    }
}
