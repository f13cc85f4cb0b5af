//! A capture, read by tshark as a user would.
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use std::fs::File;
use std::io::BufWriter;
use std::process::Command;

use libtest_mimic::{Arguments, Failed, Trial};
use toll_vnic::piece::{Piece, PieceMut};
use toll_vnic::port::Port;
use toll_vnic::port::capture::Capture;
use toll_vnic::port::memory::pair;

/// An ARP request (RFC 826) for 10.9.8.1 from 10.9.8.`last`, padded as Ethernet asks.
fn arp_request(last: u8) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend([0x52, 0x54, 0, 0, 0, last, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 0x52, 0x54, 0, 0, 0, last]);
    frame.extend([10, 9, 8, last, 0, 0, 0, 0, 0, 0, 10, 9, 8, 1]);
    frame.resize(60, 0);
    frame
}

fn tshark_understands_a_capture() -> Result<(), Failed> {
    let path = std::env::temp_dir().join(format!("toll-capture-{}.pcap", std::process::id()));
    let (near, mut far) = pair(16)?;
    let file = BufWriter::new(File::create(&path)?);
    let mut port = Capture::new(Box::new(near), Box::new(file), 1 << 20)?;
    for last in [2, 3] {
        let frame = arp_request(last);
        let (head, tail) = frame.split_at(14);
        port.send(&[Piece::new(head), Piece::new(tail)])?;
    }
    far.send(&[Piece::new(&arp_request(4))])?;
    let mut room = [0; 2000];
    assert_eq!(port.receive(&mut [PieceMut::new(&mut room)])?, Some(60));
    drop(port);
    let output = Command::new("tshark")
        .args(["-n", "-r"])
        .arg(&path)
        .args(["-T", "fields", "-e", "frame.number", "-e", "frame.len", "-e", "arp.src.proto_ipv4"])
        .args(["-e", "arp.dst.proto_ipv4", "-e", "_ws.expert"])
        .output()?;
    std::fs::remove_file(&path)?;
    let (text, error) =
        (String::from_utf8(output.stdout)?, String::from_utf8_lossy(&output.stderr).into_owned());
    assert!(output.status.success(), "{error}");
    let expected = [2, 3, 4].map(|last| format!("{}\t60\t10.9.8.{last}\t10.9.8.1\t", last - 1));
    assert_eq!(text.lines().collect::<Vec<_>>(), expected, "{error}");
    Ok(())
}

fn main() {
    let arguments = Arguments::from_args();
    let there = Command::new("tshark").arg("--version").output().is_ok_and(|output| output.status.success());
    let name = "tshark_understands_a_capture";
    let test = if there {
        Trial::test(name, tshark_understands_a_capture)
    } else {
        Trial::test(format!("{name} (left out: tshark)"), || Ok(())).with_ignored_flag(true)
    };
    libtest_mimic::run(&arguments, vec![test]).exit();
}
