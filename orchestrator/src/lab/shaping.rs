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
/// The longest GSO frame with its Ethernet header.
const LARGEST_FRAME: u64 = 65_536 + ETHERNET_HEADER;
const ETHERNET_HEADER: u64 = 14;
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

/// The bucket's depth in bytes: a millisecond at the rate, so that timer slack doesn't cost throughput, and a whole
/// GSO frame, which passes unsegmented only if it fits. But no more than 10 ms for that: at 1 Mb/s a frame of 64 KiB
/// is half a second of traffic, and whether it falls into an interval or not would be seen in the goodput. Two
/// frames of the MTU always fit.
fn burst(bytes_per_second: u64, mtu: u16) -> u64 {
    let frame = u64::from(mtu) + ETHERNET_HEADER;
    (bytes_per_second / 1000).max(LARGEST_FRAME.min(bytes_per_second / 100)).max(2 * frame)
}

/// `tc_tbf_qopt` and its 64-bit companions. Rates are in bytes per second there.
fn options(rate: BitRate, mtu: u16) -> Vec<TcOption> {
    let bytes_per_second = rate.0 / 8;
    let burst = burst(bytes_per_second, mtu);
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

#[cfg(test)]
mod tests {
    use super::{LARGEST_FRAME, burst};

    #[test]
    fn a_bucket_is_small_beside_what_is_measured_and_holds_a_frame() {
        assert_eq!(burst(10_000_000_000 / 8, 1500), 1_250_000);
        assert_eq!(burst(100_000_000 / 8, 1500), LARGEST_FRAME);
        assert_eq!(burst(10_000_000 / 8, 1500), 12_500);
        assert_eq!(burst(1_000_000 / 8, 1500), 2 * 1514);
        assert_eq!(burst(1_000_000 / 8, 9000), 2 * 9014);
    }
}
