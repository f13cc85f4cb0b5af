//! A folder of captures that does not answer: a file system that the kernel asks and nobody serves, as one on the network
//! whose server is gone.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::path::Path;

use libtest_mimic::Failed;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use toll_protocol::decorators::{Capture, Decorators};
use toll_protocol::trial::{
    Adapter, Direction, EndKind, EndSpec, Engine, Nic, Open, Port, TrialId, VirtioNetSwitches,
};
use toll_protocol::units::{Bytes, Span};

use crate::Test;
use crate::host::{Fleet, native};
use crate::orchestrator::Server;

pub const TESTS: &[Test] =
    &[("captures::a_folder_that_hangs_costs_its_trial_alone", a_folder_that_hangs_costs_its_trial_alone)];

const FUSE: &str = "/dev/fuse";

/// Why there can be no such file system.
pub fn lacking() -> Option<String> {
    let root = std::fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| map.contains("4294967295"));
    (!root || File::options().read(true).write(true).open(FUSE).is_err())
        .then(|| format!("needs root and {FUSE}"))
}

/// A mount whose requests nobody answers, until it is dropped.
struct Hanging<'a> {
    requests: Option<File>,
    folder: &'a Path,
}

impl<'a> Hanging<'a> {
    fn over(folder: &'a Path) -> Self {
        let requests = File::options().read(true).write(true).open(FUSE).expect("opens");
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", requests.as_raw_fd());
        mount(Some("hanging"), folder, Some("fuse"), MsFlags::empty(), Some(&*options)).expect("mounted");
        Self { requests: Some(requests), folder }
    }
}

impl Drop for Hanging<'_> {
    fn drop(&mut self) {
        // Whoever waits gets an error.
        self.requests = None;
        umount2(self.folder, MntFlags::MNT_DETACH).expect("unmounted");
    }
}

fn a_folder_that_hangs_costs_its_trial_alone() -> Result<(), Failed> {
    let (fleet, folder) = (Fleet::new(), tempfile::tempdir()?);
    fleet.control.run(async || {
        let server = Server::listen(&fleet.authority, 0);
        let agent = fleet.start_a_with(server.port, &["--captures", folder.path().to_str().expect("UTF-8")]);
        let mut peer = server.accept().await;
        let hanging = Hanging::over(folder.path());
        let plain = native(Direction::Receive, Open::Listen, Span::from_millis(100));
        let capture = Some(Capture { limit: Bytes(1 << 20) });
        let decorators = Decorators { capture, ..Decorators::default() };
        let nic = Nic { adapter: Adapter::VirtioNet(VirtioNetSwitches::OFF), port: Port::Hub, decorators };
        let kind = EndKind::Virtual { engine: Engine::SameStack, nic };
        let captured =
            EndSpec { kind, address: "10.0.2.15/24".parse().expect("an address"), ..plain.clone() };
        // The second waits for the first one's thread.
        for trial in [0x0f01, 0x0f02].map(TrialId::new) {
            peer.prepare(trial, captured.clone()).await;
            let failure = peer.ready(trial).await.expect_err("it can't be captured");
            assert!(failure.reason.contains("could not be read within 5 s"), "{}", failure.reason);
            assert_eq!(peer.tear_down(trial).await, Vec::<String>::new());
        }
        // Nor does it keep the host from trials that want no capture.
        let trial = TrialId::new(0x0f03);
        peer.prepare(trial, plain).await;
        peer.ready(trial).await.expect("ready");
        assert_eq!(peer.tear_down(trial).await, Vec::<String>::new());
        drop(hanging);
        let trial = TrialId::new(0x0f04);
        peer.prepare(trial, captured).await;
        peer.ready(trial).await.expect("there is a folder again");
        assert_eq!(peer.tear_down(trial).await, Vec::<String>::new());
        assert!(agent.terminate().await.success());
    });
    Ok(())
}
