use super::*;
use crate::campaign::{Campaign, parse};
use crate::traffic::Traffic;

/// A campaign of native arms with this workload, on a lab of this link.
fn text(workload: &str, link: &str) -> String {
    format!(
        "apiVersion: toll.dev/v1alpha1\nkind: Campaign\nmetadata: {{name: udp}}\nspec:\n  hosts: {{lab: {{count: 2, link: \
         {link}}}}}\n  arms:\n    - {{name: native, native: {{}}}}\n  workloads:\n    - {{name: udp, datagram: {workload}}}\n"
    )
}

fn taken(workload: &str) -> Datagram {
    let text = text(workload, "{rate: 10Gbit, mtu: 1500}");
    let campaign: Campaign = parse(&text).unwrap_or_else(|errors| panic!("{workload}: {errors:?}"));
    match &campaign.workloads[0].asks.traffic {
        Traffic::Datagram(datagram) => {
            assert_eq!(datagram.unfit(), None, "{workload}");
            datagram.clone()
        }
        other => panic!("{other}"),
    }
}

fn refused(workload: &str) -> String {
    let text = text(workload, "{rate: 1Gbit, mtu: 1500}");
    let errors: Vec<_> = parse(&text).expect_err(workload).iter().map(ToString::to_string).collect();
    assert!(errors.iter().all(|error| error.starts_with("line ")), "{errors:?}");
    errors.join("\n")
}

fn runs(datagram: &Datagram) -> Vec<(u16, u16)> {
    datagram.sizes.iter().map(|run| (run.size, run.count)).collect()
}

#[test]
fn sizes_are_of_payload_or_of_the_frame() {
    let plain = taken("{size: 512B}");
    assert_eq!((runs(&plain), plain.rate, plain.search, plain.batch), (vec![(512, 1)], None, None, 64));
    assert!(plain.segmentation_offload);
    // RFC 2544, 9.1, over IPv4: the smallest leaves 18 bytes, the largest an MTU of 1500.
    for (frame, payload) in
        [(64, 18), (128, 82), (256, 210), (512, 466), (1024, 978), (1280, 1234), (1518, 1472)]
    {
        assert_eq!(runs(&taken(&format!("{{frameSize: {frame}B}}"))), [(payload, 1)]);
    }
    assert_eq!(runs(&taken("{imix: aaaaaaaddddg}")), [(18, 7), (466, 4), (1472, 1)]);
    let mix = taken("{sizes: [{size: 100B, share: 60%}, {size: 1000B, share: 40%}]}");
    assert_eq!(runs(&mix), [(100, 3), (1000, 2)]);
    assert_eq!((mix.period(), mix.period_bytes()), (5, 2_300));
}

#[test]
fn switches_and_a_search_are_taken() {
    let single = taken("{size: 64B, segmentationOffload: false, batch: 1, rate: 10Mbit}");
    assert_eq!(
        (single.segmentation_offload, single.batch, single.rate),
        (false, 1, Some(BitRate(10_000_000)))
    );
    assert_eq!(single.preparation(), Span(0));
    let search = taken("{size: 64B, lossSearch: {atMost: 0.1%}}");
    let expected = Search { at_most_ppm: 1_000, precision_ppm: 10_000, trial: Span::from_millis(500) };
    assert_eq!(search.search, Some(expected));
    assert_eq!(search.preparation(), Span::from_millis(24 * 1_100));
}

#[test]
fn what_is_wrong_is_told_where_it_stands() {
    for (workload, place, words) in [
        ("{}", "datagram: ", "must have exactly one size: `size: 512B` (UDP payload)"),
        ("{size: 64B, imix: a}", "datagram: ", "must have exactly one size"),
        ("{size: 15B}", "datagram.size: ", "write 16B to 8972B"),
        (
            "{size: 1473B}",
            "datagram.size: ",
            "28 bytes of IPv4 and UDP headers are over the MTU of 1500: write 1472B at most",
        ),
        ("{frameSize: 61B}", "datagram.frameSize: ", "write 62B to 9018B"),
        (
            "{frameSize: 1519B}",
            "datagram.frameSize: ",
            "a frame of 1519B is over the MTU of 1500 with 18 bytes of Ethernet header and FCS: write 1518B",
        ),
        ("{imix: aax}", "datagram.imix: ", "`x` is no frame of RFC 6985"),
        ("{imix: aah}", "datagram.imix: ", "a frame of 2112B is over the MTU"),
        ("{imix: ''}", "datagram.imix: ", "1 to 100 letters"),
        (
            "{sizes: [{size: 64B, share: 58%}, {size: 570B, share: 33%}]}",
            "datagram.sizes: ",
            "adds up to 91%: the shares of a mix are 100% together",
        ),
        ("{sizes: [{size: 64B, share: 0.5%}]}", "sizes[0].share: ", "write 1% to 100%"),
        ("{sizes: [{size: 64B, share: 50.5%}]}", "sizes[0].share: ", "no whole number of a hundred"),
        ("{size: 64B, lossSearch: {atMost: 0.00001%}}", "lossSearch.atMost: ", "no multiple of 0.0001%"),
        ("{sizes: []}", "datagram.sizes: ", "is empty"),
        (
            "{size: 512B, rate: 1Gbit}",
            "datagram.rate: ",
            "of frames: over 1Gbit, the rate of the lab's links",
        ),
        ("{size: 1000B, rate: 79kbit}", "datagram.rate: ", "is below 80kbit, 10 datagrams a second"),
        ("{size: 64B, batch: 0}", "datagram.batch: ", "write 1 to 1024"),
        (
            "{size: 64B, directions: [both], lossSearch: {}}",
            "datagram.directions: ",
            "find each other's load",
        ),
        ("{size: 64B, lossSearch: {atMost: 51%}}", "lossSearch.atMost: ", "write 0% to 50%"),
        ("{size: 64B, lossSearch: {precision: 0%}}", "lossSearch.precision: ", "write 0.1% to 50%"),
        ("{size: 64B, lossSearch: {trial: 1ms}}", "lossSearch.trial: ", "write 100ms to 1m"),
        ("{size: 64}", "datagram", "has no unit"),
        ("{size: 64B, duration: 1ms}", "datagram.duration: ", "is out of range"),
    ] {
        let told = refused(workload);
        assert!(told.contains(place) && told.contains(words), "{workload}: {told}");
    }
}

#[test]
fn a_rate_of_payload_is_compared_with_the_link_as_frames() {
    // 1472 bytes of payload are frames of 1514 bytes, FCS left out as the kernel's shaper does.
    let link = "{rate: 1Gbit, mtu: 1500}";
    assert!(parse(&text("{size: 1472B, rate: 972Mbit}", link)).is_ok());
    assert!(parse(&text("{size: 1472B, rate: 973Mbit}", link)).is_err());
    assert!(parse(&text("{size: 1472B, rate: 973Mbit}", "{}")).is_ok(), "a link without a rate");
}

#[test]
fn arms_that_have_no_datagrams_are_refused() {
    let good = text("{size: 512B}", "{rate: 1Gbit}");
    for (arm, words) in [
        ("{name: virtio, guest: {os: payload, adapter: {virtioNet: {}}}}", "sent by native ends only"),
        ("{name: same, sameStack: {adapter: {virtioNet: {}}}}", "sent by native ends only"),
        ("{name: iperf3, native: {program: iperf3}}", "iperf3 tells no loss"),
    ] {
        let text = good.replace("  workloads:", &format!("    - {arm}\n  workloads:"));
        let errors: Vec<_> = parse(&text).expect_err(arm).iter().map(ToString::to_string).collect();
        assert!(errors.len() == 1 && errors[0].contains(words), "{errors:?}");
        assert!(
            errors[0].starts_with("line 10, ") && errors[0].contains("workloads[0].datagram"),
            "{errors:?}"
        );
    }
}

#[test]
fn a_receiver_that_was_not_told_has_no_figure() {
    let untold = Report { received: 5, ..Report::default() };
    assert!(
        untold.no_figure(Direction::Receive).is_some_and(|failure| failure.reason.contains("never told"))
    );
    assert_eq!(untold.no_figure(Direction::Send), None);
    let told = Report { delivery: Some(Delivery::default()), ..untold };
    assert_eq!(told.no_figure(Direction::Both), None);
}
