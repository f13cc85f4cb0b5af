use toll_protocol::result::CampaignResult;

use super::*;
use crate::summary::summarise;
use crate::test_support;

fn result() -> CampaignResult {
    let (header, records) = test_support::campaign();
    summarise(&header, &records, &test_support::gates()).expect("belongs together")
}

#[test]
fn the_page_says_what_the_result_says() {
    let page = render(&result());
    // To look at the page while changing it: TOLL_TEST_REPORT=/tmp/report.html cargo test -p toll-orchestrator page
    if let Some(path) = std::env::var_os("TOLL_TEST_REPORT") {
        std::fs::write(path, &page).expect("writes");
    }
    for text in
        ["64 of 70 runs measured", "1.41 Gb/s against native's 9.09 Gb/s", "inconclusive", "pio-write rap"]
    {
        assert!(page.contains(text), "{text}");
    }
    assert!(page.contains("the guest faulted: page fault at 0x7f00_0010"), "reasons are shown");
    assert!(page.contains("10.77.0.2/24") && page.contains("Debian 6.1.128-1"), "provenance is shown");
    assert!(!page.contains("NaN") && !page.contains(">inf"), "no figure that is none");
}

#[test]
fn a_native_arm_that_filled_the_link_is_said_before_the_shares() {
    let mut result = result();
    for cell in &mut result.cells {
        cell.flags.clear();
    }
    assert!(!render(&result).contains("Native filled the link"));
    let native = result.arms.iter().find(|arm| arm.baseline).expect("a baseline").name.clone();
    let cell = result.cells.iter_mut().find(|cell| cell.key.arm == native).expect("its cell");
    cell.flags.insert(toll_protocol::report::Flag::LinkBound, 1);
    let measured = cell.counts.measured;
    assert!(measured > 2 && !render(&result).contains("Native filled the link"), "one run of {measured}");
    let cell = result.cells.iter_mut().find(|cell| cell.key.arm == native).expect("its cell");
    cell.flags.insert(toll_protocol::report::Flag::LinkBound, measured);
    assert!(render(&result).contains("Native filled the link in 1 of its "));
}

#[test]
fn the_page_needs_nothing_else() {
    let page = render(&result());
    for forbidden in ["<script", "<link", "src=", "url(", "@import", "http://", "https://"] {
        assert!(!page.contains(forbidden), "{forbidden}");
    }
    assert!(page.contains("Content-Security-Policy"));
    assert!(page.contains("prefers-color-scheme: dark") && page.contains("@media print"));
}

#[test]
fn words_from_outside_are_escaped() {
    let hostile = "<script>alert(1)</script><b a=\"'\">&";
    let page = render(&result());
    assert!(page.contains("&lt;script&gt;alert('csr0')&lt;/script&gt;"), "a guest's last words");
    let mut result = result();
    result.campaign = hostile.to_owned();
    result.manifest = hostile.to_owned();
    result.provenance.environment = hostile.to_owned();
    for arm in &mut result.arms {
        arm.name = format!("{hostile}{}", arm.name);
    }
    for cell in &mut result.cells {
        cell.key.arm = format!("{hostile}{}", cell.key.arm);
        cell.key.pair.a = hostile.to_owned();
        cell.key.workload = hostile.to_owned();
        for run in &mut cell.runs {
            run.reason = run.reason.as_ref().map(|_| hostile.to_owned());
        }
        if let Some(causes) = &mut cell.exits_by_cause {
            *causes = std::mem::take(causes)
                .into_iter()
                .map(|(name, cause)| (format!("{hostile}{name}"), cause))
                .collect();
        }
    }
    for host in &mut result.provenance.hosts {
        host.name = hostile.to_owned();
        host.facts.kernel = hostile.to_owned();
        host.facts.tun = Err(hostile.to_owned());
    }
    for gate in &mut result.gates {
        gate.condition = hostile.to_owned();
    }
    let page = render(&result);
    assert!(!page.contains("<script") && !page.contains("<b a="), "escaped everywhere");
}

#[test]
fn a_campaign_without_figures_has_a_page() {
    let (header, _) = test_support::campaign();
    let mut result = summarise(&header, &[], &[]).expect("belongs together");
    result.provenance.interrupted = true;
    result.provenance.ended_unix_ms = None;
    result.provenance.hosts.clear();
    let page = render(&result);
    assert!(
        page.contains("0 of 70 runs measured")
            && page.contains("interrupted")
            && page.contains("not reached")
    );
    assert!(!page.contains("0 b/s"), "absent is not 0");
    let (mut header, _) = test_support::campaign();
    (header.arms, header.planned) = (Vec::new(), Vec::new());
    let page = render(&summarise(&header, &[], &[]).expect("belongs together"));
    assert!(page.contains("0 of 0 runs measured"));
}

#[test]
fn several_pairs_are_told_apart() {
    let mut result = result();
    let mut others = result.cells.clone();
    for cell in &mut others {
        cell.key.pair.a = "rack-7".to_owned();
    }
    result.cells.extend(others);
    let page = render(&result);
    assert!(page.contains("rack-7 ⇄ lab-2 · bulk") && page.contains("the median of 2 of 2 cells"), "{page}");
}

#[test]
fn few_blocks_show_no_interval() {
    let (mut header, mut records) = test_support::campaign();
    header.planned.retain(|planned| planned.block < 2);
    records.retain(|record| record.block < 2);
    let page = render(&summarise(&header, &records, &test_support::gates()).expect("belongs together"));
    assert!(page.contains("2 blocks: too few for an interval"), "{page}");
}
