//! A link's rate: the token bucket filter of tc (sch_tbf) at a veth's egress, as `tc qdisc add root tbf` would
//! set it. rtnetlink has no builder for it, so its attributes are written here (linux/pkt_sched.h).

use futures_util::StreamExt;
use rtnetlink::packet_core::{
    DefaultNla, NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::tc::{TcAttribute, TcHandle, TcMessage, TcOption};
use rtnetlink::{Error, Handle};
use toll_protocol::units::BitRate;

const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;
const TC_LINKLAYER_ETHERNET: u8 = 1;
/// A GSO frame passes whole only if it fits the bucket; a NIC with segmentation offload takes it whole too.
const LARGEST_FRAME: u64 = 65_536 + 14;
/// What a NIC's default transmit queue holds.
const QUEUE_FRAMES: u64 = 1000;

/// Limits what leaves interface `index` to `rate`.
pub(super) async fn limit(handle: &Handle, index: u32, rate: BitRate, mtu: u16) -> Result<(), Error> {
    let mut message = TcMessage::with_index(i32::try_from(index).unwrap_or(i32::MAX));
    message.header.parent = TcHandle::ROOT;
    message.attributes.push(TcAttribute::Kind("tbf".into()));
    message.attributes.push(TcAttribute::Options(options(rate, mtu)));
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::NewQueueDiscipline(message));
    request.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
    let mut answers = handle.clone().request(request)?;
    while let Some(answer) = answers.next().await {
        if let NetlinkPayload::Error(error) = answer.payload
            && error.code.is_some()
        {
            return Err(Error::NetlinkError(error));
        }
    }
    Ok(())
}

/// `tc_tbf_qopt` and its 64-bit companions. Rates are in bytes per second there.
fn options(rate: BitRate, mtu: u16) -> Vec<TcOption> {
    let bytes_per_second = rate.0 / 8;
    // A millisecond at the rate, so that timer slack doesn't cost throughput, and one whole frame at least.
    let burst = (bytes_per_second / 1000).max(LARGEST_FRAME);
    let limit = (QUEUE_FRAMES * u64::from(mtu)).max(burst);
    let word = |value: u64| u32::try_from(value).unwrap_or(u32::MAX).to_ne_bytes();
    let mut parameters = Vec::with_capacity(36);
    // struct tc_ratespec rate: cell_log, linklayer, overhead, cell_align, mpu, rate
    parameters.extend([0, TC_LINKLAYER_ETHERNET, 0, 0, 0, 0, 0, 0]);
    parameters.extend(word(bytes_per_second));
    // struct tc_ratespec peakrate: none
    parameters.extend([0; 12]);
    parameters.extend(word(limit));
    // buffer and mtu, in ticks: replaced by TCA_TBF_BURST
    parameters.extend([0; 8]);
    let attribute = |kind, value: Vec<u8>| TcOption::Other(DefaultNla::new(kind, value));
    vec![
        attribute(TCA_TBF_PARMS, parameters),
        attribute(TCA_TBF_RATE64, bytes_per_second.to_ne_bytes().to_vec()),
        attribute(TCA_TBF_BURST, word(burst).to_vec()),
    ]
}
