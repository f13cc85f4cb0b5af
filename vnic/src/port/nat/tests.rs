//! What a guest's frames can make the translator do. Whole transfers are in `vmm/tests/ports.rs`, in a network namespace.

use std::net::TcpListener;

use nix::sys::socket::{getsockopt, sockopt};

use super::*;

fn syn(source: [u8; 4], destination: [u8; 4]) -> Vec<u8> {
    let mut frame = vec![0; 54];
    frame[12..15].copy_from_slice(&[8, 0, 0x45]);
    frame[16..18].copy_from_slice(&40_u16.to_be_bytes());
    frame[23] = 6;
    frame[26..30].copy_from_slice(&source);
    frame[30..34].copy_from_slice(&destination);
    frame[34..38].copy_from_slice(&[0x13, 0x88, 0x14, 0x51]);
    (frame[46], frame[47]) = (0x50, 2);
    frame
}

const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);

#[test]
fn a_frame_is_seen_for_what_it_is() {
    let mut frame = syn([10, 0, 2, 15], [10, 77, 0, 1]);
    let ends = Ends {
        guest: SocketAddrV4::new([10, 0, 2, 15].into(), 5000),
        far: SocketAddrV4::new([10, 77, 0, 1].into(), 5201),
    };
    assert_eq!(look(&frame, GATEWAY), Seen::Syn(ends));
    frame[47] = 0x12;
    assert_eq!(look(&frame, GATEWAY), Seen::Segment);
    frame[23] = 17;
    assert_eq!(look(&frame, GATEWAY), Seen::Foreign, "UDP");
    for length in 0..54 {
        assert!(matches!(look(&frame[..length], GATEWAY), Seen::Foreign), "{length}");
    }
    let mut arp = vec![0; 42];
    arp[12..22].copy_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    arp[38..42].copy_from_slice(&[10, 0, 2, 15]);
    assert_eq!(look(&arp, GATEWAY), Seen::Foreign, "an announcement of the guest's own address");
    arp[38..42].copy_from_slice(&GATEWAY.octets());
    assert_eq!(look(&arp, GATEWAY), Seen::Arp);
}

fn nat(peer: Ipv4Addr) -> Nat {
    let outside = Outside { address: Ipv4Addr::LOCALHOST, interface: "lo".to_owned(), peer, segment: None };
    Nat::new(InterfaceAddress { address: GATEWAY, prefix: 24 }, outside, 1500).unwrap()
}

#[test]
fn a_guest_reaches_its_peer_and_nobody_else() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port().to_be_bytes();
    let peer = Ipv4Addr::new(192, 0, 2, 1);
    let connections = |peer: Ipv4Addr, to: Ipv4Addr| {
        let mut nat = nat(peer);
        let mut frame = syn([10, 0, 2, 15], to.octets());
        frame[36..38].copy_from_slice(&port);
        assert_eq!(nat.send(&[Piece::new(&frame)]).unwrap(), Sent::Taken);
        nat.connections.len()
    };
    assert_eq!(connections(peer, peer), 1);
    for address in
        ["192.0.2.2", "10.0.2.2", "127.0.0.1", "0.0.0.0", "169.254.169.254", "224.0.0.1", "255.255.255.255"]
    {
        assert_eq!(connections(peer, address.parse().unwrap()), 0, "{address}");
    }
    // Not even if somebody says that it is the peer.
    for address in ["10.0.2.2", "127.0.0.1", "0.0.0.0", "169.254.169.254", "224.0.0.1", "255.255.255.255"] {
        let address = address.parse().unwrap();
        assert_eq!(connections(address, address), 0, "{address}");
    }
    assert!(listener.accept().is_err());
}

/// In a network namespace of its own, whose default is not the first of those that trials use.
#[test]
fn the_hosts_socket_has_the_congestion_control_of_native_ends() {
    let seen = std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).ok()?;
        let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status();
        assert!(up.unwrap().success());
        std::fs::write("/proc/sys/net/ipv4/tcp_congestion_control", "reno").unwrap();
        let peer = Ipv4Addr::new(192, 0, 2, 1);
        let mut nat = nat(peer);
        nat.send(&[Piece::new(&syn([10, 0, 2, 15], peer.octets()))]).unwrap();
        let set = getsockopt(&nat.connections[0].outside(), sockopt::TcpCongestion).unwrap();
        Some((getsockopt(&connection::outer().unwrap(), sockopt::TcpCongestion).unwrap(), set))
    });
    match seen.join().unwrap() {
        Some((default, set)) => assert_eq!((default.to_str(), set.to_str()), (Some("reno"), Some("cubic"))),
        None => eprintln!("left out: no network namespace of its own"),
    }
}

#[test]
fn no_frame_of_a_guest_makes_it_hold_more_than_its_bounds() {
    let mut nat = nat(Ipv4Addr::new(192, 0, 2, 1));
    // From the loop-back to an address for documentation (RFC 5737): no packet leaves this host, and nobody answers.
    for port in 0..200_u16 {
        let mut frame = syn([10, 0, 2, 15], [192, 0, 2, 1]);
        frame[34..36].copy_from_slice(&port.to_be_bytes());
        nat.send(&[Piece::new(&frame)]).unwrap();
    }
    assert!(nat.connections.len() <= CONNECTIONS);
    let mut room = [0; 2048];
    while nat.receive(&mut [PieceMut::new(&mut room)]).unwrap().is_some() {}
    assert_eq!(nat.wire.waiting(), 0);
}
