//! Where the time of virtual ends goes: a table for each cell.

use maud::{Markup, html};
use toll_protocol::result::CampaignResult;

use crate::format;
use crate::report::breakdown::{breakdowns, columns};
use crate::report::path;

/// The section, if any run says what its threads did.
pub fn section(result: &CampaignResult) -> Markup {
    let breakdowns = breakdowns(result);
    if breakdowns.is_empty() {
        return html! {};
    }
    html! {
        h2 { "Where the time goes" }
        p.note {
            "By the clock, over the measured intervals of all runs; the parts of a thread add up to 100 % within 1 %. Time in "
            "which a thread had no CPU is in the part that it was in. A frame is one in the direction of the payload."
        }
        div.wide {
            table {
                thead {
                    tr {
                        th { "cell" } th { "thread" } th { "part" } th.r { "share" } th.r { "µs a frame" }
                        th.r { "exits in KVM a frame" }
                    }
                }
                tbody {
                    @for breakdown in &breakdowns {
                        @for (index, row) in breakdown.rows.iter().enumerate() {
                            @let [thread, part, share, frame] = columns(row);
                            tr {
                                td {
                                    @if index == 0 {
                                        (breakdown.cell.key.arm) " " (path(breakdown.cell)) ", "
                                        (breakdown.cell.key.workload)
                                    }
                                }
                                td { (thread) }
                                td { (part) }
                                td.r { (share) }
                                td.r { (frame) }
                                td.r { @if index == 0 { (format::optional(breakdown.in_kernel_a_frame)) } }
                            }
                        }
                    }
                }
            }
        }
    }
}
