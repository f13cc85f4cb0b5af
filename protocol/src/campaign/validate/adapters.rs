//! Adapters and their switches.

use super::{Findings, below, schema};
use crate::findings::Step::{self, Field};
use crate::trial::{Adapter, PcnetSwitches, QueuePairs, SendCombining, VirtioNetSwitches};

pub(super) fn adapter(
    written: &schema::Adapter,
    path: &[Step],
    mtu: Option<u16>,
    out: &mut Findings,
) -> Option<Adapter> {
    let path = below(path, &[Field("adapter")]);
    let (path, adapter) = match (&written.pcnet, &written.virtio_net) {
        (Some(written), None) => {
            let path = below(&path, &[Field("pcnet")]);
            (path, pcnet(written))
        }
        (None, Some(written)) => {
            let path = below(&path, &[Field("virtioNet")]);
            (path, virtio_net(written))
        }
        // That is told by the schema.
        _ => return None,
    };
    for conflict in adapter.conflicts() {
        out.add(&below(&path, &[Field(conflict.switch())]), conflict.to_string());
    }
    let most = *adapter.mtus().end();
    if let Some(mtu) = mtu.filter(|mtu| *mtu > most) {
        let message = format!("carries frames of at most {most} bytes; the trials' MTU is {mtu}");
        out.add(&path, message);
    }
    Some(adapter)
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

fn virtio_net(written: &schema::VirtioNet) -> Adapter {
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
    Adapter::VirtioNet(switches)
}
