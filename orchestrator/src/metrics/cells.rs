//! Figures of the latest campaigns as series. They are not counted but copied from results, so this is a collector
//! of its own: what a result does not have, or what belongs to a campaign that is no longer shown, is absent from
//! the next scrape, and a scrape never sees half a result.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use prometheus::Error;
use prometheus::core::{Collector, Desc};
use prometheus::proto;
use toll_protocol::figure::{GOODPUT, Metric};
use toll_protocol::metrics::{Family, Label};
use toll_protocol::result::{CampaignResult, CellKey, CellResult, GateResult, Verdict};

use super::families as f;

/// Campaigns that are shown.
pub const MOST_CAMPAIGNS: usize = 10;
/// Cells that are shown, of all campaigns together, those of later campaigns first. One has up to 27 series.
pub const MOST_CELLS: usize = 5_000;
/// Families of this collector: those of figures, and the rest.
pub fn families() -> Vec<&'static Family> {
    let rest = [&f::CELL_TOLL, &f::CELL_TOLL_LIMIT, &f::CELL_RUNS, &f::GATE, &f::CELLS_OMITTED];
    f::FIGURES.iter().chain(rest).collect()
}

/// One series: values of the labels, and the figure.
type Series = (Vec<String>, f64);

/// What is shown of one campaign.
#[derive(Debug)]
struct Shown {
    id: String,
    started_unix_ms: u64,
    /// By name of the family.
    series: BTreeMap<&'static str, Vec<Series>>,
    cells: usize,
    omitted: usize,
}

/// The collector. Clones are one.
#[derive(Debug, Clone)]
pub struct Cells {
    descriptions: Arc<Vec<Desc>>,
    /// By name of the campaign.
    campaigns: Arc<Mutex<BTreeMap<String, Shown>>>,
}

impl Cells {
    /// A collector that shows nothing.
    ///
    /// # Errors
    /// When a family's name or labels are none.
    pub fn new() -> Result<Self, Error> {
        let describe = |family: &&Family| {
            let labels = family.label_names().into_iter().map(str::to_owned).collect();
            Desc::new(family.name.to_owned(), family.help.to_owned(), labels, HashMap::new())
        };
        let descriptions = families().iter().map(describe).collect::<Result<_, _>>()?;
        Ok(Self { descriptions: Arc::new(descriptions), campaigns: Arc::default() })
    }

    /// Shows a campaign, in place of an earlier one of its name.
    pub fn observe(&self, id: &str, result: &CampaignResult) {
        let mut campaigns = self.campaigns.lock().unwrap_or_else(PoisonError::into_inner);
        let started_unix_ms = result.provenance.started_unix_ms;
        if campaigns.get(&result.campaign).is_some_and(|shown| shown.started_unix_ms > started_unix_ms) {
            return;
        }
        campaigns.insert(result.campaign.clone(), show(id, result));
        while campaigns.len() > MOST_CAMPAIGNS {
            let oldest = campaigns.iter().min_by_key(|(_, shown)| shown.started_unix_ms);
            let Some(name) = oldest.map(|(name, _)| name.clone()) else { break };
            campaigns.remove(&name);
        }
    }

    /// Shows a campaign no more.
    pub fn forget(&self, id: &str) {
        let mut campaigns = self.campaigns.lock().unwrap_or_else(PoisonError::into_inner);
        campaigns.retain(|_, shown| shown.id != id);
    }
}

impl Collector for Cells {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<proto::MetricFamily> {
        let campaigns = self.campaigns.lock().unwrap_or_else(PoisonError::into_inner);
        let mut latest: Vec<&Shown> = campaigns.values().collect();
        latest.sort_by_key(|shown| std::cmp::Reverse(shown.started_unix_ms));
        let (mut left, mut omitted, mut taken) = (MOST_CELLS, 0, Vec::new());
        for shown in latest {
            omitted += shown.omitted;
            // Whole campaigns only: one with a part of its cells would look as if that was all.
            if shown.cells <= left {
                left -= shown.cells;
                taken.push(shown);
            } else {
                omitted += shown.cells;
            }
        }
        let of_family = |family: &'static Family| {
            let series = taken.iter().flat_map(|shown| shown.series.get(family.name)).flatten();
            let mut metrics: Vec<proto::Metric> =
                series.map(|(labels, figure)| metric(family.labels, labels, *figure)).collect();
            if family.name == f::CELLS_OMITTED.name {
                metrics.push(metric(&[], &[], omitted as f64));
            }
            let mut written = proto::MetricFamily::default();
            written.set_name(family.name.to_owned());
            written.set_help(family.help.to_owned());
            written.set_field_type(proto::MetricType::GAUGE);
            written.set_metric(metrics);
            written
        };
        families().into_iter().map(of_family).filter(|family| !family.get_metric().is_empty()).collect()
    }
}

fn metric(labels: &[Label], values: &[String], figure: f64) -> proto::Metric {
    let pair = |(label, value): (&Label, &String)| {
        let mut pair = proto::LabelPair::default();
        pair.set_name(label.name.to_owned());
        pair.set_value(value.clone());
        pair
    };
    let mut gauge = proto::Gauge::default();
    gauge.set_value(figure);
    let mut pairs: Vec<_> = labels.iter().zip(values).map(pair).collect();
    // As in all other families.
    pairs.sort_by(|one, other| one.name().cmp(other.name()));
    let mut metric = proto::Metric::from_label(pairs);
    metric.set_gauge(gauge);
    metric
}

/// The series of a campaign; none of its cells if they alone are too many.
fn show(id: &str, result: &CampaignResult) -> Shown {
    let mut shown = Shown {
        id: id.to_owned(),
        started_unix_ms: result.provenance.started_unix_ms,
        series: BTreeMap::new(),
        cells: result.cells.len(),
        omitted: 0,
    };
    if shown.cells > MOST_CELLS {
        (shown.cells, shown.omitted) = (0, result.cells.len());
    } else {
        for cell in &result.cells {
            show_cell(&mut shown, &labels(result, Some(&cell.key)), cell);
        }
    }
    // One condition may be asked of a cell by two gates; the verdict is the same.
    let mut gates: BTreeMap<(Vec<String>, &str), &GateResult> = BTreeMap::new();
    for gate in result.gates.iter().take(MOST_CELLS) {
        gates.insert((labels(result, gate.cell.as_ref()), &gate.condition), gate);
    }
    for ((labels, condition), gate) in gates {
        for (verdict, name) in
            [(Verdict::Pass, "pass"), (Verdict::Fail, "fail"), (Verdict::Inconclusive, "inconclusive")]
        {
            let figure = if gate.verdict == verdict { 1.0 } else { 0.0 };
            shown.add(&f::GATE, &labels, &[condition, name], Some(figure));
        }
    }
    shown
}

fn show_cell(shown: &mut Shown, labels: &[String], cell: &CellResult) {
    let limits = |ci95: Option<[f64; 2]>| {
        let [lower, upper] = ci95.map_or([None, None], |limits| limits.map(Some));
        [("lower", lower), ("upper", upper)]
    };
    for (id, estimate) in &cell.figures {
        let figure = id.figure();
        let Some(Metric { name, limit, part, .. }) = figure.metric else { continue };
        let base = |number: f64| number * figure.unit.base();
        shown.add_named(name, labels, part.as_slice(), Some(base(estimate.median.median)));
        for (side, number) in limits(estimate.median.ci95).into_iter().filter(|_| limit.is_some()) {
            let name = limit.map_or(name, |limit| limit.name);
            shown.add_named(name, labels, &[side], number.map(base));
        }
    }
    let ratio = cell.to_native(&GOODPUT);
    shown.add(&f::CELL_TOLL, labels, &[], ratio.map(|ratio| 1.0 - ratio.estimate));
    // The toll is least where the ratio is greatest.
    let interval = ratio.and_then(|ratio| ratio.ci95).map(|[lower, upper]| [1.0 - upper, 1.0 - lower]);
    for (limit, figure) in limits(interval) {
        shown.add(&f::CELL_TOLL_LIMIT, labels, &[limit], figure);
    }
    let counts = cell.counts;
    for (status, count) in [
        ("measured", counts.measured),
        ("failed", counts.failed),
        ("skipped", counts.skipped),
        ("lost", counts.lost),
    ] {
        shown.add(&f::CELL_RUNS, labels, &[status], Some(f64::from(count)));
    }
}

impl Shown {
    /// Adds a series, if there is a figure.
    fn add(&mut self, family: &'static Family, labels: &[String], more: &[&str], figure: Option<f64>) {
        self.add_named(family.name, labels, more, figure);
    }

    fn add_named(&mut self, family: &'static str, labels: &[String], more: &[&str], figure: Option<f64>) {
        if let Some(figure) = figure.filter(|figure| figure.is_finite()) {
            let labels = labels.iter().cloned().chain(more.iter().map(|&value| value.to_owned())).collect();
            self.series.entry(family).or_default().push((labels, figure));
        }
    }
}

/// Values of [`f::CELL`]; all but the campaign's are empty without a cell.
fn labels(result: &CampaignResult, key: Option<&CellKey>) -> Vec<String> {
    let end = |arm: &str| {
        let known = result.arms.iter().find(|known| known.name == arm);
        known.map_or("", |known| known.kind.label()).to_owned()
    };
    let mut labels = vec![result.campaign.clone()];
    match key {
        Some(CellKey { pair, workload, direction, arm, peer }) => labels.extend([
            pair.a.clone(),
            pair.b.clone(),
            workload.clone(),
            direction.to_string(),
            arm.clone(),
            end(arm),
            peer.to_string(),
        ]),
        None => labels.resize(f::CELL.len(), String::new()),
    }
    labels
}
