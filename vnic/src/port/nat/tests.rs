//! What a guest's frames can make the translator do. Whole transfers are in `vmm/tests/ports.rs`, in a network namespace.

use std::net::TcpListener;

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

#[test]
fn the_hosts_own_loop_back_is_out_of_reach() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let mut nat =
        Nat::new(InterfaceAddress { address: GATEWAY, prefix: 24 }, Ipv4Addr::LOCALHOST, 1500).unwrap();
    let mut frame = syn([10, 0, 2, 15], [127, 0, 0, 1]);
    frame[36..38].copy_from_slice(&listener.local_addr().unwrap().port().to_be_bytes());
    assert_eq!(nat.send(&[Piece::new(&frame)]).unwrap(), Sent::Taken);
    assert!(nat.connections.is_empty());
    assert!(listener.accept().is_err());
    for address in ["0.0.0.0", "0.1.2.3", "127.9.9.9", "224.0.0.1", "255.255.255.255"] {
        assert!(!may_be_reached(address.parse().unwrap()), "{address}");
    }
    assert!(may_be_reached(Ipv4Addr::new(192, 0, 2, 7)));
}

#[test]
fn no_frame_of_a_guest_makes_it_hold_more_than_its_bounds() {
    let mut nat =
        Nat::new(InterfaceAddress { address: GATEWAY, prefix: 24 }, Ipv4Addr::LOCALHOST, 1500).unwrap();
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
