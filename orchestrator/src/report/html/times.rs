//! Where the time of virtual ends goes: parts of threads, stages of frames, the kernel's account, and what optimisations
//! spared; a table for each, with rows for each cell.

use maud::{Markup, html};
use toll_protocol::result::{CampaignResult, CellResult};

use crate::format;
use crate::report::account::{TOGETHER, accounts, spared};
use crate::report::breakdown::{breakdowns, columns};
use crate::report::path;
use crate::report::stages::{self, describe};

/// The section, if any run says what its threads did.
pub fn section(result: &CampaignResult) -> Markup {
    html! {
        (parts(result))
        (frames(result))
        (saved(result))
        (kernel(result))
    }
}

/// A cell's name, in the first of its rows.
fn name(cell: &CellResult, row: usize) -> Markup {
    html! { @if row == 0 { (cell.key.arm) " " (path(cell)) ", " (cell.key.workload) } }
}

/// Parts of each thread.
fn parts(result: &CampaignResult) -> Markup {
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
                                td { (name(breakdown.cell, index)) }
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

/// Stages of single frames.
fn frames(result: &CampaignResult) -> Markup {
    let cells = stages::of_campaign(result);
    if cells.is_empty() {
        return html! {};
    }
    let paper = cells.iter().flat_map(|cell| &cell.rows).any(|row| row.paper.is_some());
    html! {
        h2 { "A frame's way" }
        p.note {
            "Of one call of the port in 64, drawn at random: when the frame was where. A stage that a frame has for itself has a "
            "share of the interval: its mean times all frames. In the others frames wait together. "
            code { "toll trace" } " with the id of a trial shows single frames"
            @if let Some(run) = cells.iter().find_map(|cell| cell.cell.runs.iter().find(|run| run.a.is_some())) {
                ": " code { "toll trace " (run.trial) }
            } "."
            @if paper { " What the paper of 2001 says of its own stages stands beside the arm that stands for its optimised virtual \
                          machine." }
        }
        div.wide {
            table {
                thead {
                    tr {
                        th { "cell" } th { "frames" } th { "stage" } th.r { "µs each" } th.r { "share" }
                        @if paper { th { "the paper's" } }
                    }
                }
                tbody {
                    @for cell in &cells {
                        @for (index, row) in cell.rows.iter().enumerate() {
                            tr {
                                td { (name(cell.cell, index)) }
                                td {
                                    @if index == 0 {
                                        (cell.way.verb())
                                        ", " (format::count(cell.noted)) " noted"
                                    }
                                }
                                td { (describe(row.stage)) }
                                td.r { (format::significant(row.microseconds)) }
                                td.r { (row.share.map_or_else(|| format::ABSENT.to_owned(), format::percent)) }
                                @if paper { td { (row.paper.unwrap_or_default()) } }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// What the optimisations of an adapter spared.
fn saved(result: &CampaignResult) -> Markup {
    let cells = spared(result);
    if cells.is_empty() {
        return html! {};
    }
    html! {
        h2 { "What the optimisations spared" }
        p.note {
            "For a frame in the direction of the payload: accesses that did not leave the kernel (each would have been an exit), and "
            "looks at the port without a system call. Then the transmissions by how many frames each sent together."
        }
        div.wide {
            table {
                thead {
                    tr {
                        th { "cell" } th.r { "exits a frame" } th.r { "looks a frame" }
                        @for together in TOGETHER { th.r { (together) } }
                    }
                }
                tbody {
                    @for cell in &cells {
                        tr {
                            td { (name(cell.cell, 0)) }
                            td.r { (format::significant(cell.exits)) }
                            td.r { (format::significant(cell.looks)) }
                            @for place in 0..TOGETHER.len() {
                                td.r {
                                    @match cell.combined {
                                        Some(shares) => { (format::percent(shares[place])) }
                                        None => { (format::ABSENT) }
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// The kernel's account of threads and of the whole host.
fn kernel(result: &CampaignResult) -> Markup {
    let accounts = accounts(result);
    if accounts.is_empty() {
        return html! {};
    }
    let names: Vec<&str> = accounts
        .iter()
        .find(|account| !account.host.is_empty())
        .map_or_else(Vec::new, |account| account.host.iter().map(|(name, _)| *name).collect());
    html! {
        h2 { "CPU time by the kernel's account" }
        p.note {
            "Of each thread of the arm's end that carries traffic, user time (of a vCPU the guest's too) and system time, as "
            "shares of the interval; then the time of all the host's CPUs, of which a soft interrupt is most of what receiving "
            "takes and steal what the hypervisor below took. Hosts of a lab share one machine. Steps of 10 ms."
        }
        div.wide {
            table {
                thead {
                    tr {
                        th { "cell" } th { "thread" } th.r { "user" } th.r { "system" }
                        @for name in &names { th.r { "host: " (name) } }
                    }
                }
                tbody {
                    @for account in &accounts {
                        @for row in 0..account.threads.len().max(1) {
                            tr {
                                td { (name(account.cell, row)) }
                                @if let Some((thread, user, system)) = account.threads.get(row) {
                                    td { (thread) }
                                    td.r { (format::percent(*user)) }
                                    td.r { (format::percent(*system)) }
                                } @else {
                                    td { (format::ABSENT) } td {} td {}
                                }
                                @for place in 0..names.len() {
                                    td.r {
                                        @if let Some((_, share)) = account.host.get(place).filter(|_| row == 0) {
                                            (format::percent(*share))
                                        }
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}
