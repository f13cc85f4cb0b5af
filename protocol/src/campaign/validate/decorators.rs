//! What stands between a virtual end's adapter and its port.

use super::{Findings, below, schema};
use crate::decorators::{Capture, Decorators, Impairments, Millionths};
use crate::findings::Step::{self, Field};
use crate::units::{Bytes, Percent};

/// Limit of a capture that says none.
const CAPTURE_DEFAULT: Bytes = Bytes(64 << 20);

pub(super) fn decorators(
    impairments: Option<&schema::Impairments>,
    capture: Option<&schema::Capture>,
    path: &[Step],
    out: &mut Findings,
) -> Decorators {
    let impairments = impairments.map(|written| wire(written, &below(path, &[Field("impairments")]), out));
    let capture = capture.map(|written| Capture { limit: written.limit.unwrap_or(CAPTURE_DEFAULT) });
    Decorators { impairments, capture }
}

fn wire(written: &schema::Impairments, path: &[Step], out: &mut Findings) -> Impairments {
    let share = |written: Option<Percent>| written.and_then(Millionths::from_percent).unwrap_or_default();
    let (loss, duplicate, reorder) = (share(written.loss), share(written.duplicate), share(written.reorder));
    let delay = written.delay.unwrap_or_default();
    if written.reorder.is_some() && written.delay.is_none() && !out.is_told_in_part(path) {
        let message = "needs a delay: a frame overtakes others by not being delayed";
        out.add(&below(path, &[Field("reorder")]), message);
    }
    let wire = Impairments { rate: written.rate, delay, loss, duplicate, reorder };
    let schema::Impairments { rate, delay, loss, duplicate, reorder } = written;
    let shares = [loss, duplicate, reorder];
    if rate.is_none() && delay.is_none() && shares.iter().all(|share| share.is_none()) {
        out.add_missing(
            path,
            "changes nothing: write `rate`, `delay`, `loss`, `duplicate` or `reorder`, or leave it out",
        );
    }
    wire
}
