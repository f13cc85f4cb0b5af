//! Adapters and their switches.

use super::{Findings, below, schema};
use crate::findings::Step::{self, Field};
use crate::trial::{Adapter, PcnetSwitches, QueuePairs, SendCombining, VirtioNetSwitches};
use crate::units::Span;

/// pcnet is an Ethernet chip: frames of 1518 bytes with FCS (IEEE 802.3).
const PCNET_MTU: u32 = 1500;
/// Frames that send combining may hold back: a ring's.
const COMBINED: std::ops::RangeInclusive<u32> = 1..=512;
const MAX_EXIT_RATE: u32 = 1_000_000;
const TICK: std::ops::RangeInclusive<u64> = 100_000..=1_000_000_000;

pub(super) fn adapter(
    written: &schema::Adapter,
    path: &[Step],
    mtu: Option<u32>,
    out: &mut Findings,
) -> Option<Adapter> {
    let path = below(path, &[Field("adapter")]);
    match (&written.pcnet, &written.virtio_net) {
        (Some(written), None) => {
            if let Some(mtu) = mtu.filter(|mtu| *mtu > PCNET_MTU) {
                let message =
                    format!("carries frames of at most {PCNET_MTU} bytes; the trials' MTU is {mtu}");
                out.add(&below(&path, &[Field("pcnet")]), message);
            }
            Some(pcnet(written, &below(&path, &[Field("pcnet")]), out))
        }
        (None, Some(written)) => Some(virtio_net(written, &below(&path, &[Field("virtioNet")]), out)),
        _ => {
            out.add(&path, "must be exactly one adapter: `{pcnet: {}}` or `{virtioNet: {}}`");
            None
        }
    }
}

fn pcnet(written: &schema::Pcnet, path: &[Step], out: &mut Findings) -> Adapter {
    let send_combining = written.send_combining.as_ref().map(|written| {
        let path = below(path, &[Field("sendCombining")]);
        let default = SendCombining::default();
        let threshold = written.threshold.unwrap_or(default.threshold);
        if !COMBINED.contains(&threshold) {
            let message =
                format!("{threshold} is out of range: write {} to {}", COMBINED.start(), COMBINED.end());
            out.add(&below(&path, &[Field("threshold")]), message);
        }
        let rate = written.rate.unwrap_or(default.rate);
        if rate > MAX_EXIT_RATE {
            out.add(
                &below(&path, &[Field("rate")]),
                format!("{rate} is out of range: write 0 to {MAX_EXIT_RATE}"),
            );
        }
        let tick = written.tick.unwrap_or(default.tick);
        if !TICK.contains(&tick.0) {
            let (least, most) = (Span(*TICK.start()), Span(*TICK.end()));
            out.add(
                &below(&path, &[Field("tick")]),
                format!("{tick} is out of range: write {least} to {most}"),
            );
        }
        SendCombining { threshold, rate, tick }
    });
    Adapter::Pcnet(PcnetSwitches {
        io_in_kernel: written.io_in_kernel.unwrap_or(false),
        send_combining,
        irq_notification: written.irq_notification.unwrap_or(false),
    })
}

fn virtio_net(written: &schema::VirtioNet, path: &[Step], out: &mut Findings) -> Adapter {
    let on = |switch: Option<bool>| switch.unwrap_or(false);
    let count = written.queue_pairs.unwrap_or(1);
    let queue_pairs = QueuePairs::new(count).unwrap_or_else(|| {
        let message = format!("{count} is out of range: write 1 to {}", QueuePairs::MAX);
        out.add(&below(path, &[Field("queuePairs")]), message);
        QueuePairs::ONE
    });
    let switches = VirtioNetSwitches {
        checksum_offload: on(written.checksum_offload),
        tso: on(written.tso),
        mergeable_buffers: on(written.mergeable_buffers),
        event_index: on(written.event_index),
        segment_combining: on(written.segment_combining),
        io_thread: on(written.io_thread),
        control_queue: on(written.control_queue),
        queue_pairs,
    };
    // virtio 1.2, 5.1.3.1: VIRTIO_NET_F_HOST_TSO4 requires VIRTIO_NET_F_CSUM.
    if switches.tso && !switches.checksum_offload {
        out.add(
            &below(path, &[Field("tso")]),
            "needs the checksum offload (virtio 1.2, 5.1.3.1): write `checksumOffload: true, tso: true`",
        );
    }
    // VIRTIO_NET_F_MQ requires VIRTIO_NET_F_CTRL_VQ.
    if switches.queue_pairs > QueuePairs::ONE && !switches.control_queue {
        let message =
            "more than one need the control queue (virtio 1.2, 5.1.3.1): write `controlQueue: true` too";
        out.add(&below(path, &[Field("queuePairs")]), message);
    }
    Adapter::VirtioNet(switches)
}
