use toll_protocol::decorators::Decorators;
use toll_protocol::traffic::stream::Stream;
use toll_protocol::traffic::{Job, Timing, Traffic};
use toll_protocol::trial::{
    Adapter, Direction, EndKind, Engine, NativeProgram, Nic, Port, VirtioNetSwitches,
};
use toll_protocol::units::{MacAddress, Span};

use super::*;

fn end(open: Open, limit: u64) -> EndSpec {
    let capture = Some(Capture { limit: Bytes(limit) });
    let decorators = Decorators { capture, ..Decorators::default() };
    let nic = Nic { adapter: Adapter::VirtioNet(VirtioNetSwitches::OFF), port: Port::Hub, decorators };
    EndSpec::new(
        EndKind::Virtual { engine: Engine::SameStack, nic },
        Job {
            open,
            direction: Direction::Send,
            timing: Timing { warm_up: Span(0), duration: Span(1) },
            traffic: Traffic::Stream(Stream { write_size: Bytes(1), ..Stream::default() }),
        },
        "10.77.0.101/24".parse().expect("an address"),
        MacAddress([2; 6]),
        1500,
        Span(1),
    )
}

#[tokio::test]
async fn both_ends_of_a_trial_on_one_host_can_not_have_the_same_room() {
    let folder = tempfile::tempdir().expect("a folder");
    let captures = Captures::new(folder.path(), Bytes(1_500)).expect("it is there");
    let trial = TrialId::new(7);
    let (near_end, far_end) = (end(Open::Connect, 1_000), end(Open::Listen, 1_000));
    let (near, far) = tokio::join!(
        reserve(Some(&captures), trial, &near_end),
        reserve(Some(&captures), trial.far(), &far_end),
    );
    let near = near.expect("room").expect("a capture is wanted");
    assert!(near.file().ends_with("000000000007-a.pcap"), "{:?}", near.file());
    let full = far.expect_err("neither file has grown, and both would not fit").to_string();
    assert!(full.contains("take 1kB of the 1500B") && full.contains("may take 1kB"), "{full}");
    // From now on the file counts, as long as it has become.
    std::fs::write(near.file(), [0; 500]).expect("written");
    drop(near);
    let far = reserve(Some(&captures), trial.far(), &far_end).await.expect("there is room now");
    std::fs::write(far.as_ref().expect("a capture is wanted").file(), [0; 900]).expect("written");
    // What is reserved counts once, however much of it is written.
    assert!(reserve(Some(&captures), TrialId::new(8), &end(Open::Listen, 1)).await.is_err());
    drop(far);
    assert!(reserve(Some(&captures), TrialId::new(8), &end(Open::Listen, 100)).await.is_ok());
}

#[tokio::test]
async fn a_capture_needs_a_folder_and_an_end_without_one_needs_nothing() {
    let trial = TrialId::new(7);
    let kind = EndKind::Native { program: NativeProgram::Endpoint };
    let none = EndSpec { kind, ..end(Open::Listen, 1) };
    assert!(reserve(None, trial, &none).await.expect("nothing is wanted").is_none());
    let error = reserve(None, trial, &end(Open::Listen, 1)).await.expect_err("no folder");
    assert!(matches!(error, CaptureError::None));
}
