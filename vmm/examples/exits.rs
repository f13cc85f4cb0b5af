//! What an exit costs here: the self-test program's accesses, timed by the guest itself.
//! `cargo run --release -p toll-vmm --example exits`

use std::time::{Duration, Instant};

use toll_protocol::child::{VmmConfig, VmmPort};
use toll_protocol::engine::Engine;
use toll_protocol::traffic::stream::Stream;
use toll_protocol::traffic::{Job, Timing, Traffic};
use toll_protocol::trial::{Adapter, Direction, Open, TrialId};
use toll_protocol::units::{Bytes, MacAddress, Span};
use toll_vmm::boot::Program;
use toll_vmm::channel::Event;
use toll_vmm::config::EndConfig;
use toll_vmm::runner::{Devices, start};
use toll_vnic::port::memory;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Cases of guest/payload/src/bin/self_test.rs.
    for (name, adapter, case) in [
        ("pcnet RAP reads (PIO)", Adapter::Pcnet(Default::default()), 11),
        ("virtio-mmio MagicValue reads (MMIO)", Adapter::VirtioNet(Default::default()), 11),
        ("INIT and its interrupt through the gate", Adapter::Pcnet(Default::default()), 2),
    ] {
        let job = Job {
            open: Open::Connect,
            direction: Direction::Receive,
            timing: Timing { warm_up: Span(0), duration: Span(1) },
            traffic: Traffic::Stream(Stream { write_size: Bytes(1), ..Stream::default() }),
        };
        let config = EndConfig::try_from(VmmConfig {
            trial: TrialId::new(1),
            engine: Engine::Payload,
            adapter,
            port: VmmPort::Tap { name: "unused".into() },
            impairments: None,
            capture: None,
            mac: MacAddress([0x52, 0x54, 0, 0, 0, 1]),
            address: "10.77.0.2/24".parse()?,
            gateway: None,
            mtu: 1500,
            memory: Bytes(4 << 20),
            job: job.clone(),
            cpu: None,
            io_cpu: None,
            deadline: Span::from_millis(1),
        })?;
        let (port, _other) = memory::pair(1)?;
        let runner = start(&config, Program::SelfTest(case), Devices::open(&config, vec![Box::new(port)])?)?;
        let recording = loop {
            match runner.next_event(Instant::now() + Duration::from_secs(20)) {
                Some(Event::Ended(Ok(recording))) => break recording,
                Some(Event::Phase(..)) => {}
                other => return Err(format!("{other:?}").into()),
            }
        };
        let report = recording.report(&job, Vec::new())?;
        let exits = report.exits.ok_or("a guest has exits")?;
        let each = report.interval.seconds() * 1e6 / exits.total() as f64;
        let kvm = (exits.kvm_userspace, exits.kvm_all);
        println!(
            "{name}: {} exits, {each:.1} us each; KVM counts {kvm:?}; CPU {:?}",
            exits.total(),
            report.cpu
        );
    }
    Ok(())
}
