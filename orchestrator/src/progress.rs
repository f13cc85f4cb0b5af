//! What a person sees while a campaign runs: a bar with the time left, and a line for each trial that failed.

use std::collections::BTreeSet;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use toll_protocol::printable::printable;
use toll_protocol::result::{Outcome, TrialRecord};
use toll_protocol::service::CampaignStatus;
use toll_protocol::units::Span;

use crate::scheduler;

const TEMPLATE: &str = "{bar:30.cyan/dim} {pos}/{len} trials, {prefix} left  {wide_msg}";

/// A bar on stderr; on a stderr that is no terminal, lines for failures only.
pub struct Progress {
    bar: ProgressBar,
    /// Reasons already told: an arm that can't run is told once.
    told: BTreeSet<String>,
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

impl Progress {
    /// A bar of which nobody knows yet how long it is.
    pub fn new() -> Self {
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template(TEMPLATE) {
            bar.set_style(style.progress_chars("━╸ "));
        }
        Self { bar, told: BTreeSet::new() }
    }

    /// Shows how far the campaign is.
    pub fn show(&self, progress: &scheduler::Progress) {
        self.bar.set_length(u64::from(progress.counts.planned));
        self.bar.set_position(u64::from(progress.counts.over()));
        self.bar.set_prefix(left(progress.left));
        self.bar.set_message(progress.running.join("; "));
    }

    /// Shows how far a campaign of a service is.
    pub fn watch(&self, status: &CampaignStatus) {
        if let Some(counts) = status.counts {
            self.bar.set_length(u64::from(counts.planned));
            self.bar.set_position(u64::from(counts.over()));
        }
        self.bar.set_prefix(status.left.map_or_else(|| "?".to_owned(), left));
        let waits = status.reason.as_deref().unwrap_or_default();
        let message = if status.running.is_empty() { waits.to_owned() } else { status.running.join("; ") };
        self.bar.set_message(message);
    }

    /// Tells of a trial without figures.
    pub fn recorded(&mut self, record: &TrialRecord) {
        let (what, reason) = match &record.outcome {
            Outcome::Measured { .. } => return,
            Outcome::Failed { host, failure } => ("failed", format!("{host}: {}", failure.reason)),
            Outcome::Skipped { reason } => ("not run", reason.clone()),
            Outcome::Lost { reason } => ("lost", reason.clone()),
        };
        let cell = &record.cell;
        // The reason may quote a guest.
        let reason = printable(&reason);
        let line = format!("{} {} to {}: {what}: {reason}", cell.arm, cell.direction, cell.peer);
        if self.told.insert(line.clone()) {
            self.line(&line);
        }
    }

    /// A line above the bar.
    pub fn line(&self, line: &str) {
        if self.bar.is_hidden() {
            eprintln!("{line}");
        } else {
            self.bar.println(line);
        }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// `1m 05s`, `12s`.
pub fn left(span: Span) -> String {
    let seconds = (span.duration() + Duration::from_millis(999)).as_secs();
    if seconds >= 60 { format!("{}m {:02}s", seconds / 60, seconds % 60) } else { format!("{seconds}s") }
}
