//! A path between two ends on 127.0.0.1: a relay that forwards datagrams both ways, loses, doubles and holds back those that it
//! draws, and notes what it did. It draws from a seed, so a test is the same each time but for the moments.

use std::net::{SocketAddr, SocketAddrV4, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use toll_protocol::traffic::datagram::HEADER;

/// What it does to datagrams of the measured interval of the way from the connecting to the listening end; all others pass.
#[derive(Debug, Clone, Copy, Default)]
pub struct Fate {
    /// One of so many is lost; 0: none.
    pub lose: u64,
    pub double: u64,
    /// One of so many comes after the next that passes.
    pub hold: u64,
    /// How long each is under way.
    pub delay: Duration,
    /// The first greetings and farewells of each way that are lost: the ends say them again.
    pub greetings: u32,
    /// Whether nothing but greetings passes.
    pub cut: bool,
}

/// What it did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Done {
    pub marked: u64,
    pub lost: u64,
    pub doubled: u64,
    pub held: u64,
}

pub struct Relay {
    /// Where the connecting end finds it.
    pub address: SocketAddrV4,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Done>>,
}

/// Kinds of datagrams, as ends write them into the third byte.
const MARKED: u8 = 4;
const IS_PAYLOAD: [u8; 4] = [3, 4, 5, 8];

impl Relay {
    /// A relay to the listening end at `listener`.
    pub fn start(listener: SocketAddrV4, fate: Fate) -> Self {
        let (near, far) = (socket(), socket());
        far.connect(listener).expect("connects");
        let SocketAddr::V4(address) = near.local_addr().expect("an address") else { unreachable!("IPv4") };
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || forward(&near, &far, fate, &stopped));
        Self { address, stop, thread: Some(thread) }
    }

    pub fn done(mut self) -> Done {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().expect("joined once").join().expect("the relay goes on")
    }
}

fn socket() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    socket.set_read_timeout(Some(Duration::from_micros(200))).expect("a time limit");
    nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::RcvBuf, &(4 << 20)).expect("a buffer");
    socket
}

/// splitmix64 (Steele, Lea, Flood 2014).
fn draw(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn forward(near: &UdpSocket, far: &UdpSocket, fate: Fate, stopped: &AtomicBool) -> Done {
    let (mut done, mut state, mut buffer) = (Done::default(), 7, [0; 9_000]);
    let mut greetings = [fate.greetings; 2];
    let mut under_way = std::collections::VecDeque::<(Instant, Vec<u8>)>::new();
    let (mut held, mut client) = (None::<Vec<u8>>, None);
    let one_of = |state: &mut u64, many: u64| many > 0 && draw(state).is_multiple_of(many);
    while !stopped.load(Ordering::Relaxed) {
        // To the connecting end: all of it, but for greetings.
        if let Some(client) = client
            && let Ok(length) = far.recv(&mut buffer)
        {
            let payload = IS_PAYLOAD.contains(&buffer[2]);
            if payload && fate.cut {
            } else if !payload && greetings[1] > 0 {
                greetings[1] -= 1;
            } else {
                let _ = near.send_to(&buffer[..length], client);
            }
        }
        for _ in 0..64 {
            let Ok((length, from)) = near.recv_from(&mut buffer) else { break };
            client = Some(from);
            assert!(length >= usize::from(HEADER), "{length} bytes");
            let datagram = buffer[..length].to_vec();
            let payload = IS_PAYLOAD.contains(&datagram[2]);
            if payload && fate.cut {
                continue;
            }
            if !payload && greetings[0] > 0 {
                greetings[0] -= 1;
                continue;
            }
            let due = Instant::now() + fate.delay;
            if datagram[2] != MARKED {
                under_way.extend(held.take().map(|held| (due, held)));
                under_way.push_back((due, datagram));
                continue;
            }
            done.marked += 1;
            if one_of(&mut state, fate.lose) {
                done.lost += 1;
                continue;
            }
            if held.is_none() && one_of(&mut state, fate.hold) {
                held = Some(datagram);
                continue;
            }
            if one_of(&mut state, fate.double) {
                done.doubled += 1;
                under_way.push_back((due, datagram.clone()));
            }
            under_way.push_back((due, datagram));
            if let Some(held) = held.take() {
                // It comes after one that was sent later.
                done.held += 1;
                under_way.push_back((due, held));
            }
        }
        let now = Instant::now();
        while under_way.front().is_some_and(|(due, _)| *due <= now) {
            let (_, datagram) = under_way.pop_front().expect("there is one");
            let _ = far.send(&datagram);
        }
    }
    done
}
