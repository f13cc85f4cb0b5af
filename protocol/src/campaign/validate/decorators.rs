//! What stands between a virtual end's adapter and its port.

use super::{Findings, below, schema};
use crate::decorators::{Capture, Decorators, Impairments, Millionths};
use crate::findings::Step::{self, Field};
use crate::units::{BitRate, Bytes, Percent, Span};

/// A wire that is slower than this carries no trial to its end.
const SLOWEST: BitRate = BitRate(64_000);
const FASTEST: BitRate = BitRate(1_000_000_000_000);
const LONGEST_DELAY: Span = Span(1_000_000_000);
const CAPTURE_LEAST: Bytes = Bytes(64 << 10);
const CAPTURE_MOST: Bytes = Bytes(1 << 30);
const CAPTURE_DEFAULT: Bytes = Bytes(64 << 20);

pub(super) fn decorators(
    impairments: Option<&schema::Impairments>,
    capture: Option<&schema::Capture>,
    path: &[Step],
    out: &mut Findings,
) -> Decorators {
    let impairments = impairments.map(|written| wire(written, &below(path, &[Field("impairments")]), out));
    let capture = capture.map(|written| {
        let limit = written.limit.unwrap_or(CAPTURE_DEFAULT);
        if !(CAPTURE_LEAST..=CAPTURE_MOST).contains(&limit) {
            let path = below(path, &[Field("capture"), Field("limit")]);
            out.add(&path, format!("{limit} is out of range: write {CAPTURE_LEAST} to {CAPTURE_MOST}"));
        }
        Capture { limit }
    });
    Decorators { impairments, capture }
}

fn wire(written: &schema::Impairments, path: &[Step], out: &mut Findings) -> Impairments {
    let mut share = |written: Option<Percent>, field| {
        let share = written.map(|percent| (percent, Millionths::from_percent(percent)));
        if let Some((percent, None)) = share {
            out.add(&below(path, &[Field(field)]), format!("{percent} is out of range: write 0% to 100%"));
        }
        share.and_then(|(_, share)| share).unwrap_or_default()
    };
    let (loss, duplicate) = (share(written.loss, "loss"), share(written.duplicate, "duplicate"));
    let reorder = share(written.reorder, "reorder");
    if let Some(rate) = written.rate.filter(|rate| !(SLOWEST..=FASTEST).contains(rate)) {
        let message = format!("{rate} is out of range: write {SLOWEST} to {FASTEST}");
        out.add(&below(path, &[Field("rate")]), message);
    }
    let delay = written.delay.unwrap_or_default();
    if delay > LONGEST_DELAY {
        out.add(
            &below(path, &[Field("delay")]),
            format!("{delay} is out of range: write 0s to {LONGEST_DELAY}"),
        );
    }
    if written.reorder.is_some() && written.delay.is_none() {
        let message = "needs a delay: a frame overtakes others by not being delayed";
        out.add(&below(path, &[Field("reorder")]), message);
    }
    let wire = Impairments { rate: written.rate, delay, loss, duplicate, reorder };
    let schema::Impairments { rate, delay, loss, duplicate, reorder } = written;
    let shares = [loss, duplicate, reorder];
    if rate.is_none() && delay.is_none() && shares.iter().all(|share| share.is_none()) {
        out.add(
            path,
            "changes nothing: write `rate`, `delay`, `loss`, `duplicate` or `reorder`, or leave it out",
        );
    }
    wire
}
