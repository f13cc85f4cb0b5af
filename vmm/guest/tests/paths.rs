//! TCP of the payload program over long and bad paths: slow start, paths that are filled, windows that are too small, bursts
//! of loss.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

#[allow(dead_code, reason = "each test uses a part")]
mod support;

use std::os::fd::BorrowedFd;
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use support::{End, LONG_PATIENCE, Outcome, VIRTIO_NET};
use toll_vnic::piece::{Piece, PieceMut, collect};
use toll_vnic::port::impaired::{Impaired, Impairments};
use toll_vnic::port::memory::pair;
use toll_vnic::port::{Port, PortError, Sent};

/// A port that tells when segments of payload leave, and loses a burst of them.
struct Watched {
    port: Box<dyn Port>,
    left: Sender<Instant>,
    segments: usize,
    lost: std::ops::Range<usize>,
}

impl Port for Watched {
    fn send(&mut self, parts: &[Piece<'_>]) -> Result<Sent, PortError> {
        if collect(parts).len() > 200 {
            let _ = self.left.send(Instant::now());
            self.segments += 1;
            if self.lost.contains(&(self.segments - 1)) {
                return Ok(Sent::Taken);
            }
        }
        self.port.send(parts)
    }

    fn receive(&mut self, parts: &mut [PieceMut<'_>]) -> Result<Option<usize>, PortError> {
        self.port.receive(parts)
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.port.fd()
    }
}

/// A transfer between two ends like `end` over a path, whose sender loses the segments `lost`; and when its segments left.
fn transfer(end: End, path: Impairments, lost: std::ops::Range<usize>) -> ((Outcome, Outcome), Vec<Instant>) {
    let (one, other) = pair(4000).unwrap();
    let (left, times) = channel();
    let port = Box::new(Impaired::new(Box::new(one), path).unwrap());
    let port = Watched { port, left, segments: 0, lost };
    let sender = End { verifies: false, patience: LONG_PATIENCE, ..end };
    let receiver =
        End { direction: toll_guest_abi::direction::RECEIVE, listens: true, host: 2, peer: 1, ..sender };
    let outcomes = thread::scope(|scope| {
        let receiving = scope.spawn(|| receiver.run(Box::new(other)));
        let (result, sent) = sender.run(Box::new(port));
        result.unwrap();
        let (result, received) = receiving.join().unwrap();
        result.unwrap();
        (sent, received)
    });
    (outcomes, times.iter().collect())
}

/// Each way half of the round trip.
fn path(round_trip: Duration, rate: u64) -> Impairments {
    Impairments { delay: round_trip / 2, rate, ..Default::default() }
}

#[test]
fn rfc_6928_slow_start_begins_with_ten_segments_and_doubles_each_round_trip() {
    let round_trip = Duration::from_millis(200);
    let (warm_up, duration) = (Duration::ZERO, 6 * round_trip);
    let end = End { warm_up, duration, write_size: 64 << 10, arena: 8 << 20, ..End::sender(VIRTIO_NET) };
    let (_, left) = transfer(end, path(round_trip, 0), 0..0);
    let mut rounds = vec![0_u32; 5];
    for time in &left {
        let round = (time.duration_since(left[0]).as_secs_f64() / round_trip.as_secs_f64()) as usize;
        if let Some(count) = rounds.get_mut(round) {
            *count += 1;
        }
    }
    println!("segments a round trip: {rounds:?}");
    assert!(rounds[0] >= 9, "RFC 6928, 2: 14600 bytes: {rounds:?}");
    // A turn that comes late moves segments into the next round.
    for (round, least) in [(1, 15), (2, 30), (3, 60), (4, 120)] {
        assert!(rounds[..=round].iter().sum::<u32>() >= 2 * least - 10, "{rounds:?}");
    }
}

#[test]
fn a_path_of_50_ms_and_100_mb_a_second_is_filled_or_the_window_is_told_of() {
    // A debug build does not carry as much; what the path holds is the same.
    let (round_trip, rate) = if cfg!(debug_assertions) { (200, 25_000_000) } else { (50, 100_000_000) };
    let long = path(Duration::from_millis(round_trip), rate);
    let (warm_up, duration) = (Duration::from_millis(2500), Duration::from_secs(1));
    let end = End { warm_up, duration, write_size: 64 << 10, arena: 32 << 20, ..End::sender(VIRTIO_NET) };
    let ((sent, received), _) = transfer(end, long, 0..0);
    println!(
        "{:.1} Mb/s, {} retransmissions, {:?} waited for a window",
        received.bits_per_second() / 1e6,
        sent.retransmits,
        sent.window_bound
    );
    assert!(received.bits_per_second() > 0.88 * rate as f64, "{received:?}");
    assert!(sent.window_bound < (warm_up + duration) / 2, "{sent:?}");

    // The sender's buffer, with the least memory that there may be, holds a third of what the path does.
    let small = End { arena: 1_900_000, ..end };
    let ((sent, received), _) = transfer(small, long, 0..0);
    println!("{:.1} Mb/s, {:?} waited for a window", received.bits_per_second() / 1e6, sent.window_bound);
    assert!(received.bits_per_second() < 0.6 * rate as f64, "{received:?}");
    assert!(sent.window_bound > (warm_up + duration) / 2, "{sent:?}");
}

#[test]
fn rfc_6675_a_burst_of_losses_costs_no_timeout() {
    let round_trip = Duration::from_millis(80);
    let (warm_up, duration) = (Duration::from_millis(200), Duration::from_secs(2));
    let end = End { warm_up, duration, write_size: 64 << 10, arena: 8 << 20, ..End::sender(VIRTIO_NET) };
    // 40 of some hundred in flight: more than the three ranges of a SACK option tell, and single ones at its ends.
    let ((sent, received), left) = transfer(end, path(round_trip, 20_000_000), 300..340);
    // Until the interval is over: what an end waits for then is its peer's last word.
    let measured = left.iter().take_while(|time| **time < left[0] + warm_up + duration);
    let measured: Vec<Instant> = measured.copied().collect();
    let gap = measured.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
    println!(
        "longest silence {gap:?}, {} retransmissions, {:.1} Mb/s",
        sent.retransmits,
        received.bits_per_second() / 1e6
    );
    assert!((40..80).contains(&sent.retransmits), "each is sent again once: {sent:?}");
    assert!(gap < Duration::from_millis(400), "{gap:?}");
    assert!(received.bits_per_second() > 12e6, "{received:?}");
}
