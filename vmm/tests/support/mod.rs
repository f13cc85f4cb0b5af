//! A `toll-vmm` process in a network namespace of the caller's own, as an agent would run it, with the kernel's TCP
//! at the other end of its TAP.
#![allow(dead_code, reason = "each user of this module needs a part of it")]

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::mem::zeroed;
use std::net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use libtest_mimic::Failed;
use nix::sched::{CloneFlags, setns, unshare};
use toll_guest::pattern;
use toll_protocol::child::{ChildCommand, ChildEvent, Outside, VmmConfig, VmmPort};
use toll_protocol::decorators::Impairments;
use toll_protocol::engine::Engine;
use toll_protocol::frame::{Decoder, encode};
use toll_protocol::report::{EndReport, Failure, Sample};
use toll_protocol::traffic::stream::Stream;
use toll_protocol::traffic::{Job, Timing, Traffic};
use toll_protocol::trial::{Adapter, Direction, Open, TrialId};
use toll_protocol::units::{Bytes, MacAddress, Span};

/// What a test may take at most.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Moves the calling thread, and all that it starts, into a network namespace of its own; as a plain user into a
/// user namespace as well. Called before any other thread exists.
pub fn enter_namespace() -> Result<(), String> {
    unshare(CloneFlags::CLONE_NEWNET)
        .or_else(|_| unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET))
        .map_err(|error| format!("no network namespace: {error}"))?;
    OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .map(drop)
        .map_err(|error| format!("no TUN: {error}"))
}

/// Fails with what is seen unless the condition holds.
pub fn check(condition: bool, what: &dyn std::fmt::Debug) -> Result<(), Failed> {
    if condition { Ok(()) } else { Err(format!("{what:#?}").into()) }
}

/// Gives interface `name` an address in a network of 24 bits and brings it up.
pub fn bring_up(name: &str, address: Ipv4Addr, mtu: u16) -> io::Result<()> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    let request = |call: libc::c_ulong, fill: &dyn Fn(&mut libc::ifreq)| {
        // SAFETY: an ifreq of zeros is valid.
        let mut ifreq: libc::ifreq = unsafe { zeroed() };
        for (to, from) in ifreq.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        fill(&mut ifreq);
        // SAFETY: these calls read an ifreq.
        match unsafe { libc::ioctl(socket.as_raw_fd(), call, &raw const ifreq) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    let inet = |address: Ipv4Addr| {
        let address = libc::sockaddr_in {
            sin_family: libc::AF_INET as libc::sa_family_t,
            sin_port: 0,
            sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address.octets()) },
            sin_zero: [0; 8],
        };
        // SAFETY: sockaddr is the generic form of sockaddr_in, of the same size.
        unsafe { std::mem::transmute::<libc::sockaddr_in, libc::sockaddr>(address) }
    };
    request(libc::SIOCSIFMTU, &|ifreq| ifreq.ifr_ifru.ifru_mtu = i32::from(mtu))?;
    request(libc::SIOCSIFADDR, &|ifreq| ifreq.ifr_ifru.ifru_addr = inet(address))?;
    request(libc::SIOCSIFNETMASK, &|ifreq| {
        ifreq.ifr_ifru.ifru_netmask = inet(Ipv4Addr::new(255, 255, 255, 0));
    })?;
    request(libc::SIOCSIFFLAGS, &|ifreq| {
        ifreq.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
    })
}

/// A `toll-vmm` process and the socket to it.
pub struct Vmm {
    child: Child,
    socket: UnixStream,
    decoder: Decoder,
}

impl Vmm {
    /// Starts `program`.
    pub fn spawn(program: &str) -> io::Result<Self> {
        let (socket, theirs) = UnixStream::pair()?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let inherited = OwnedFd::from(theirs);
        // SAFETY: F_SETFD changes flags of a descriptor that is ours.
        unsafe { libc::fcntl(inherited.as_raw_fd(), libc::F_SETFD, 0) };
        let child = Command::new(program)
            .arg("--control-fd")
            .arg(inherited.as_raw_fd().to_string())
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        Ok(Self { child, socket, decoder: Decoder::default() })
    }

    /// Sends a command.
    pub fn send(&mut self, command: &ChildCommand<VmmConfig>) -> io::Result<()> {
        self.socket.write_all(&encode(command).map_err(io::Error::other)?)
    }

    /// Sends bytes that need be no message.
    pub fn send_bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.socket.write_all(bytes)
    }

    /// The next event; an error once the process has closed the socket.
    pub fn event(&mut self) -> io::Result<ChildEvent> {
        loop {
            if let Some(event) = self.decoder.next_message().map_err(io::Error::other)? {
                return Ok(event);
            }
            let mut bytes = [0; 65536];
            let length = self.socket.read(&mut bytes)?;
            if length == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.decoder.push(&bytes[..length]);
        }
    }

    /// Its process.
    pub fn pid(&self) -> i32 {
        // Process ids are positive and fit.
        self.child.id() as i32
    }

    /// Whether it says nothing for `time`; what it says before is lost.
    pub fn is_quiet_for(&mut self, time: Duration) -> io::Result<bool> {
        self.socket.set_read_timeout(Some(time))?;
        let read = self.socket.read(&mut [0; 65536]);
        self.socket.set_read_timeout(Some(PATIENCE))?;
        match read {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
            read => read.map(|_| false),
        }
    }

    /// Closes the socket and waits for the end of the process; how long that took and whether it ended well.
    pub fn hang_up(mut self) -> io::Result<(Duration, bool)> {
        drop(self.socket);
        let began = Instant::now();
        let status = self.child.wait()?;
        Ok((began.elapsed(), status.success()))
    }

    /// Waits for the end of a process that has said its last word; whether it ended well.
    pub fn wait(mut self) -> io::Result<bool> {
        Ok(self.child.wait()?.success())
    }
}

/// One transfer between a virtual end and the kernel.
#[derive(Clone)]
pub struct Transfer {
    pub engine: Engine,
    pub adapter: Adapter,
    /// Of the virtual end.
    pub direction: Direction,
    /// Of the virtual end.
    pub open: Open,
    pub write_size: u64,
    /// Each way.
    pub flows: u32,
    pub warm_up: Duration,
    pub duration: Duration,
    pub mtu: u16,
    pub cpu: Option<u32>,
    pub memory: u64,
    /// Whether the VMM's translator stands in for a TAP.
    pub translated: bool,
    /// What is wrong with the wire behind the port.
    pub impairments: Option<Impairments>,
    /// Where the kernel's end is, if it is not at the TAP itself.
    pub far: Option<Arc<Far>>,
    /// Distinguishes transfers of one process: TAP name and network.
    pub number: u8,
}

/// A kernel's end in another network namespace, which has the address.
#[derive(Debug)]
pub struct Far {
    pub namespace: File,
    /// That the TAP becomes a port of.
    pub bridge: String,
}

impl Transfer {
    /// A guest with virtio-net that connects and sends, for 400 ms.
    pub fn number(number: u8) -> Self {
        Self {
            engine: Engine::Payload,
            adapter: Adapter::VirtioNet(Default::default()),
            direction: Direction::Send,
            open: Open::Connect,
            write_size: 65_536,
            flows: 1,
            warm_up: Duration::from_millis(100),
            duration: Duration::from_millis(400),
            mtu: 1500,
            cpu: None,
            memory: 16 << 20,
            translated: false,
            impairments: None,
            far: None,
            number,
        }
    }

    pub fn config(&self) -> VmmConfig {
        VmmConfig {
            trial: TrialId::new(u64::from(self.number)),
            engine: self.engine,
            adapter: self.adapter.clone(),
            port: VmmPort::Tap { name: format!("toll{}", self.number) },
            impairments: self.impairments,
            capture: None,
            mac: MacAddress([0x52, 0x54, 0, 0, 0, self.number]),
            address: format!("10.77.{}.2/24", self.number).parse().expect("an address"),
            gateway: None,
            mtu: self.mtu,
            memory: Bytes(self.memory),
            job: Job {
                open: self.open,
                direction: self.direction,
                timing: Timing { warm_up: self.warm_up.into(), duration: self.duration.into() },
                traffic: Traffic::Stream(Stream {
                    write_size: Bytes(self.write_size),
                    flows: self.flows,
                    ..Stream::default()
                }),
            },
            cpu: self.cpu,
            io_cpu: None,
            deadline: Span::from_millis(15_000),
        }
    }

    pub fn host_address(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, self.number, 1)
    }

    /// A translator's side of the host, whose loop-back has the address that the end talks to.
    pub fn outside(&self) -> Outside {
        let address = self.host_address();
        Outside { address, interface: "lo".to_owned(), peer: address, segment: None }
    }
}

/// What came of a transfer.
pub struct Transferred {
    pub report: EndReport,
    pub samples: Vec<Sample>,
    /// Bytes that the kernel end received or sent, over the whole connection.
    pub kernel_bytes: u64,
    /// Bits a second that it received after the warm-up.
    pub kernel_goodput: Option<f64>,
}

/// Runs a transfer through the protocol an agent speaks.
pub fn transfer(program: &str, config: &Transfer) -> Result<Transferred, String> {
    disturbed_transfer(program, config, |_, _| Ok(()))
}

/// As [`transfer`], with `disturb` called after each sample with the process and the number of samples so far.
pub fn disturbed_transfer(
    program: &str,
    transfer: &Transfer,
    mut disturb: impl FnMut(&mut Vmm, usize) -> io::Result<()>,
) -> Result<Transferred, String> {
    let text = |what: &'static str| move |error: io::Error| format!("{what}: {error}");
    let mut vmm = Vmm::spawn(program).map_err(text("spawn"))?;
    let mut config = transfer.config();
    if transfer.translated {
        config.port = VmmPort::Nat { outside: transfer.outside() };
        config.address = "10.0.2.15/24".parse().map_err(|_| "an address")?;
        config.gateway = Some(Ipv4Addr::new(10, 0, 2, 2));
    }
    // Behind a translator the kernel's end is another host's, which stands on an interface that is nobody's TAP.
    let interface = config.port.interface().map_or_else(|| format!("lo:{}", transfer.number), str::to_owned);
    vmm.send(&ChildCommand::Configure(config)).map_err(text("Configure"))?;
    expect(&mut vmm, |event| matches!(event, ChildEvent::PortOpened).then_some(()))?;
    if transfer.translated {
        // An alias is up if its interface is.
        bring_up("lo", Ipv4Addr::LOCALHOST, u16::MAX).map_err(text("lo"))?;
    }
    match &transfer.far {
        None => bring_up(&interface, transfer.host_address(), transfer.mtu).map_err(text("interface"))?,
        Some(far) => join(&interface, &far.bridge).map_err(text("bridge"))?,
    }
    vmm.send(&ChildCommand::PortAttached).map_err(text("PortAttached"))?;
    let ready = expect(&mut vmm, |event| match event {
        ChildEvent::Ready(ready) => Some(ready),
        _ => None,
    })?;
    let listener = listen(transfer).map_err(text("listen"))?;
    set_congestion_control(&listener);
    let port = listener.local_addr().map_err(text("listen"))?.port();
    let peer = SocketAddrV4::new(transfer.host_address(), port);
    vmm.send(&ChildCommand::Start { peer }).map_err(text("Start"))?;
    let (open, direction, write_size) = (transfer.open, transfer.direction, transfer.write_size as usize);
    let times = [transfer.warm_up, transfer.duration];
    let kernel = std::thread::spawn(move || -> io::Result<(u64, Option<f64>)> {
        let mut stream = match open {
            Open::Connect => listener.accept()?.0,
            Open::Listen => TcpStream::connect_timeout(&ready.address.into(), PATIENCE)?,
        };
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        set_congestion_control(&stream);
        match direction {
            Direction::Send => receive(&mut stream, times, write_size),
            Direction::Receive => send(&mut stream).map(|sent| (sent, None)),
            Direction::Both => Err(io::ErrorKind::Unsupported.into()),
        }
    });
    let mut samples = Vec::new();
    let report = loop {
        match vmm.event().map_err(text("event"))? {
            ChildEvent::Sample(sample) => {
                samples.push(sample);
                disturb(&mut vmm, samples.len()).map_err(text("disturb"))?;
            }
            ChildEvent::Done(report) => break *report,
            ChildEvent::Failed(failure) => return Err(format!("{failure:#?}")),
            other => return Err(format!("{other:?} came out of turn")),
        }
    };
    let (kernel_bytes, kernel_goodput) =
        kernel.join().map_err(|_| "the kernel end panicked")?.map_err(text("kernel end"))?;
    if !vmm.wait().map_err(text("wait"))? {
        return Err("toll-vmm did not end well".into());
    }
    Ok(Transferred { report, samples, kernel_bytes, kernel_goodput })
}

/// Makes `interface` a port of `bridge`.
fn join(interface: &str, bridge: &str) -> io::Result<()> {
    let status = Command::new("ip").args(["link", "set", interface, "master", bridge, "up"]).status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other("ip link set failed")) }
}

/// A listener of the kernel's end: a socket stays in the namespace that it was made in.
fn listen(transfer: &Transfer) -> io::Result<TcpListener> {
    let (address, far) = (transfer.host_address(), transfer.far.clone());
    let bind = move || {
        if let Some(far) = far {
            setns(&far.namespace, CloneFlags::CLONE_NEWNET)?;
        }
        TcpListener::bind((address, 0))
    };
    std::thread::spawn(bind).join().map_err(|_| io::Error::other("a thread panicked"))?
}

/// The next event, as far as `wanted` takes it.
pub fn expect<T>(vmm: &mut Vmm, wanted: impl Fn(ChildEvent) -> Option<T>) -> Result<T, String> {
    let event = vmm.event().map_err(|error| format!("no event: {error}"))?;
    let text = format!("{event:#?}");
    wanted(event).ok_or_else(|| format!("another event was due: {text}"))
}

/// The failure that ends an attempt.
pub fn failure(vmm: &mut Vmm) -> Result<Failure, String> {
    expect(vmm, |event| match event {
        ChildEvent::Failed(failure) => Some(failure),
        _ => None,
    })
}

/// Receives until warm-up and duration have passed since the first byte, then half-closes and drains; checks every byte. The
/// payload program sends the same `write_size` bytes again and again. Bytes, and bits a second after the warm-up.
fn receive(
    stream: &mut TcpStream,
    [warm_up, duration]: [Duration; 2],
    write_size: usize,
) -> io::Result<(u64, Option<f64>)> {
    let mut buffer = vec![0; 1 << 20];
    // A period more than the longest read, so that any part of the stream is a slice of it.
    let expected: Vec<u8> = (0..write_size).map(pattern).cycle().take(buffer.len() + write_size).collect();
    let (mut total, mut first, mut closed) = (0_u64, None, false);
    let (mut warm, mut goodput) = (None, None);
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return Ok((total, goodput));
        }
        let phase = (total % write_size as u64) as usize;
        if buffer[..length] != expected[phase..phase + length] {
            return Err(io::Error::other(format!("other bytes than the pattern's after {total}")));
        }
        total += length as u64;
        let elapsed = first.get_or_insert_with(Instant::now).elapsed();
        if elapsed >= warm_up {
            let (since, before) = *warm.get_or_insert((elapsed, total));
            if goodput.is_none() && elapsed >= warm_up + duration {
                goodput = Some((total - before) as f64 * 8.0 / (elapsed - since).as_secs_f64());
            }
        }
        if elapsed > warm_up + duration + Duration::from_millis(50) && !closed {
            closed = true;
            stream.shutdown(Shutdown::Write)?;
        }
    }
}

/// Sends until the peer half-closes, then closes.
fn send(stream: &mut TcpStream) -> io::Result<u64> {
    let buffer: Vec<u8> = (0..128 << 10).map(pattern).collect();
    let mut total = 0;
    stream.set_nonblocking(true)?;
    let mut offset = 0;
    loop {
        let mut fd =
            libc::pollfd { fd: stream.as_raw_fd(), events: libc::POLLIN | libc::POLLOUT, revents: 0 };
        // SAFETY: one valid pollfd.
        if unsafe { libc::poll(&raw mut fd, 1, PATIENCE.as_millis() as i32) } <= 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        if fd.revents & libc::POLLIN != 0 {
            match stream.read(&mut [0; 16]) {
                Ok(0) => return Ok(total),
                Ok(_) => return Err(io::Error::other("a receiver has nothing to say")),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        match stream.write(&buffer[offset..]) {
            Ok(length) => {
                total += length as u64;
                offset = (offset + length) % buffer.len();
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

/// CUBIC, whatever the host's default is: figures depend on it.
fn set_congestion_control(socket: &impl AsRawFd) {
    let name = b"cubic";
    // SAFETY: reads `name.len()` bytes of `name`. A kernel without CUBIC keeps its default.
    unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_CONGESTION,
            name.as_ptr().cast(),
            name.len() as libc::socklen_t,
        )
    };
}
