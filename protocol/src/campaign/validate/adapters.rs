//! Adapters and their switches.

use super::Step::{self, Field};
use super::limits::PCNET_MTU;
use super::{Findings, below, schema};
use crate::trial::{Adapter, PcnetSwitches, QueuePairs, SendCombining, VirtioNetSwitches};

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
            Some(pcnet(written))
        }
        (None, Some(written)) => Some(virtio_net(written, &below(&path, &[Field("virtioNet")]), out)),
        // That is told by the schema.
        _ => None,
    }
}

fn pcnet(written: &schema::Pcnet) -> Adapter {
    let send_combining = written.send_combining.as_ref().map(|written| {
        let default = SendCombining::default();
        SendCombining {
            threshold: written.threshold.unwrap_or(default.threshold),
            rate: written.rate.unwrap_or(default.rate),
            tick: written.tick.unwrap_or(default.tick),
        }
    });
    Adapter::Pcnet(PcnetSwitches {
        io_in_kernel: written.io_in_kernel.unwrap_or(false),
        send_combining,
        irq_notification: written.irq_notification.unwrap_or(false),
    })
}

fn virtio_net(written: &schema::VirtioNet, path: &[Step], out: &mut Findings) -> Adapter {
    let on = |switch: Option<bool>| switch.unwrap_or(false);
    let queue_pairs = written.queue_pairs.and_then(QueuePairs::new).unwrap_or(QueuePairs::ONE);
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
