//! The end of a campaign on the terminal: one table a pair and workload, then what failed, the gates, and where
//! the page is. At most 100 columns wide unless words and figures need more. Without a terminal it has no styles, and
//! without UTF-8 it is ASCII.

use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::path::Path;

use comfy_table::{
    Attribute, Cell, CellAlignment, Color, ColumnConstraint, ContentArrangement, LineStyle, Table,
    TableStyle, Width,
};
use toll_protocol::figure::{
    CPU_GUEST, CPU_HOST, CPU_VMM, EXITS_PER_FRAME, Figure, GOODPUT, LATENCY_MAX, LATENCY_P50, LATENCY_P99,
    LATENCY_P999, TRANSACTIONS, Unit,
};
use toll_protocol::printable::printable;
use toll_protocol::result::{
    CampaignResult, CellResult, Compared, DifferenceEstimate, GateResult, MedianEstimate,
};

use super::paper;
use super::{Group, explain, failures, groups, headline, is_baseline, path, status, verdict, without_figure};
use crate::format;

/// The widest table, in columns.
pub const WIDEST: u16 = 100;
/// The narrowest that is tried: on a narrower terminal lines wrap.
const NARROWEST: u16 = 72;
/// Characters of an arm's name that are kept in one line on any terminal.
const LONGEST_ARM: usize = 14;
/// Of the table.
const COLUMNS: usize = 10;

/// What the terminal can show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalOptions {
    /// Columns, at most [`WIDEST`] of which are used.
    pub width: u16,
    /// Bold, dim and colours.
    pub styled: bool,
    /// Characters other than ASCII.
    pub unicode: bool,
}

impl TerminalOptions {
    /// What standard output can show: no styles if it is not a terminal or `NO_COLOR` is set (no-color.org); ASCII
    /// only if the locale names an encoding that is not UTF-8.
    pub fn of_stdout() -> Self {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(variable);
        let ascii = locale.is_some_and(|locale| {
            let upper = locale.to_uppercase();
            matches!(upper.as_str(), "C" | "POSIX") || (upper.contains('.') && !upper.contains("UTF"))
        });
        let terminal = std::io::stdout().is_terminal();
        Self {
            width: Table::new().width().filter(|_| terminal).unwrap_or(WIDEST),
            styled: terminal && variable("NO_COLOR").is_none(),
            unicode: !(ascii && terminal),
        }
    }
}

/// The table, ending with a line feed. `page` is where `report.html` is.
pub fn render(result: &CampaignResult, page: Option<&Path>, options: TerminalOptions) -> String {
    let screen = Screen(options);
    let mut out = String::new();
    for group in groups(result) {
        let heading = format!("{}  ·  {}", printable(&group.hosts), printable(group.workload));
        // Writing to a String can't fail.
        let _ = writeln!(out, "{}\n{}\n", screen.text(&heading), screen.table(result, &group).trim_fmt());
    }
    out.push_str(&screen.notes(result));
    for comparison in paper::comparisons(result) {
        let heading = format!("Beside the paper of 2001: {}", printable(&comparison.title));
        let table = screen.paper(&comparison);
        let _ = writeln!(out, "{}\n{}\n", screen.text(&heading), table.trim_fmt());
    }
    if !result.gates.is_empty() {
        out.push_str("Gates\n");
        for gate in &result.gates {
            let _ = writeln!(out, "  {}", screen.text(&gate_line(gate)));
        }
        out.push('\n');
    }
    if let Some(page) = page {
        let _ = writeln!(out, "Report: {}", printable(&page.display().to_string()));
    }
    out
}

/// A gate in a line: `pass  virtio → native: toll at most 90% (84.6 % [84.4–84.8])`.
fn gate_line(gate: &GateResult) -> String {
    let cell = gate.cell.as_ref().map_or_else(
        || "no cell is selected".to_owned(),
        |key| {
            let hosts = format!("{} ⇄ {}", key.pair.a, key.pair.b);
            printable(&format!(
                "{} {} to/from {}, {}, {hosts}",
                key.arm, key.direction, key.peer, key.workload
            ))
            .into_owned()
        },
    );
    let figure = gate_figure(gate).map_or_else(String::new, |figure| format!(" (is {figure})"));
    format!("{:<12}  {cell}: {}{figure}", verdict(gate.verdict), printable(&gate.condition))
}

/// The figure that a gate compared, with its interval, in the unit of its condition.
pub fn gate_figure(gate: &GateResult) -> Option<String> {
    let unit = match gate.compared {
        Compared::Median => gate.figure.figure().unit,
        Compared::Ratio | Compared::Toll => Unit::Fraction,
    };
    gate.value.map(|value| format::figure_with_interval(unit, value, gate.ci95))
}

/// What the cells of a group are about, and what else there is room for: titles and figures.
fn columns(group: &Group<'_>) -> [(&'static str, &'static Figure); 5] {
    if group.cells.iter().any(|cell| *headline(cell) == TRANSACTIONS) {
        return [
            ("transactions\n/s", &TRANSACTIONS),
            ("latency\np50", &LATENCY_P50),
            ("\np99", &LATENCY_P99),
            ("\np99.9", &LATENCY_P999),
            ("\nmax", &LATENCY_MAX),
        ];
    }
    [
        ("goodput", &GOODPUT),
        ("exits\n/frame", &EXITS_PER_FRAME),
        ("CPU s/GB\nguest", &CPU_GUEST),
        ("\nvmm", &CPU_VMM),
        ("\nhost", &CPU_HOST),
    ]
}

struct Screen(TerminalOptions);

impl Screen {
    /// `text` in the characters that the terminal has.
    fn text(&self, text: &str) -> String {
        if self.0.unicode {
            return text.to_owned();
        }
        let ascii = |c: char| match c {
            '→' => "->".to_owned(),
            '←' => "<-".to_owned(),
            '⇄' | '↔' => "<->".to_owned(),
            '–' | '—' => "-".to_owned(),
            '·' => "|".to_owned(),
            'µ' => "u".to_owned(),
            c if c.is_ascii() => c.to_string(),
            _ => "?".to_owned(),
        };
        text.chars().map(ascii).collect()
    }

    fn table(&self, result: &CampaignResult, group: &Group<'_>) -> Table {
        let mut table = Table::new();
        let rule = if self.0.unicode { '─' } else { '-' };
        let line = LineStyle::none().fill(rule).junction(rule);
        table.load_style(TableStyle::new().header_separator(line).bottom_border(line));
        table.set_content_arrangement(ContentArrangement::Dynamic);
        table.set_width(self.0.width.clamp(NARROWEST, WIDEST));
        table.force_no_tty();
        if self.0.styled {
            table.enforce_styling();
        }
        let figures = columns(group);
        let [first, others @ ..] = figures;
        let of_figures = others.map(|(title, _)| title);
        let [a, b, c, d] = of_figures;
        let titles: [&str; COLUMNS] = ["arm", "payload", first.0, "of native", a, b, c, d, "runs", "flags"];
        table.set_header(titles.map(|title| self.bold(title)));
        let mut last = None;
        for cell in &group.cells {
            if last.replace(cell.key.direction).is_some_and(|direction| direction != cell.key.direction) {
                table.add_row([""; COLUMNS]);
            }
            table.add_row(self.row(result, cell, figures.map(|(_, figure)| figure)));
        }
        for column in table.column_iter_mut().skip(2).take(COLUMNS - 3) {
            column.set_cell_alignment(CellAlignment::Right);
            column.set_constraint(ColumnConstraint::ContentWidth);
        }
        // What can't be broken between words must not be broken within one. Names of arms are the users': a long
        // one is.
        let words =
            |cell: &&CellResult| cell.flags.keys().map(|flag| explain(*flag).0).max_by_key(|name| name.len());
        let longest =
            |names: Vec<&str>| names.into_iter().map(|name| name.chars().count()).max().unwrap_or(0);
        let arm = longest(group.cells.iter().map(|cell| cell.key.arm.as_str()).collect()).min(LONGEST_ARM);
        let flag = longest(group.cells.iter().filter_map(words).collect());
        // With the padding below.
        let at_least = |width: usize| {
            ColumnConstraint::LowerBoundary(Width::Fixed(u16::try_from(width + 1).unwrap_or(u16::MAX)))
        };
        let constraints =
            [(0, at_least(arm)), (1, ColumnConstraint::ContentWidth), (COLUMNS - 1, at_least(flag))];
        for (index, constraint) in constraints {
            if let Some(column) = table.column_mut(index) {
                column.set_constraint(constraint);
            }
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, 1));
        }
        if let Some(last) = table.column_mut(COLUMNS - 1) {
            last.set_padding((0, 0));
        }
        table
    }

    fn row(&self, result: &CampaignResult, cell: &CellResult, figures: [&'static Figure; 5]) -> Vec<Cell> {
        let lines = |figure: String, interval: Option<String>| match interval {
            Some(interval) => format!("{figure}\n{interval}"),
            None => figure,
        };
        let [first, others @ ..] = figures;
        let headline = match cell.estimate(first) {
            Some(MedianEstimate { median, ci95 }) => {
                let interval = ci95.map(|ci95| format::figure_interval(first.unit, median, ci95));
                self.cell(&lines(format::figure(first.unit, median), interval))
            }
            None => self.coloured(without_figure(cell), Color::Red),
        };
        let ratio = match cell.to_native(first) {
            Some(ratio) => {
                let interval = ratio.ci95.map(|ci95| format::percent_interval(ratio.estimate, ci95));
                lines(format::percent(ratio.estimate), interval)
            }
            None if is_baseline(result, cell) && cell.estimate(first).is_some() => "baseline".to_owned(),
            None => format::ABSENT.to_owned(),
        };
        let optional = |figure: &'static Figure| {
            let text = match cell.median(figure) {
                // What a time is of is its own to say; the others have it in their heading.
                Some(number) if figure.unit == Unit::Seconds => format::figure(figure.unit, number),
                number => format::optional(number),
            };
            // There is no room for its interval, which the page has.
            let over = cell.over_native(figure).map(|over| DifferenceEstimate { ci95: None, ..over });
            let over = over.map(|over| format::difference(figure.unit, &over));
            self.cell(&lines(text, over))
        };
        let runs = format!("{}/{}", cell.counts.measured, cell.counts.planned);
        let runs = if cell.counts.measured == cell.counts.planned {
            self.cell(&runs)
        } else {
            self.coloured(&runs, Color::Red)
        };
        let flags: Vec<&str> = cell.flags.keys().map(|flag| explain(*flag).0).collect();
        let mut cells =
            vec![self.bold(&printable(&cell.key.arm)), self.cell(&path(cell)), headline, self.cell(&ratio)];
        cells.extend(others.map(optional));
        cells.extend([runs, self.cell(&flags.join("\n"))]);
        cells
    }

    fn paper(&self, comparison: &paper::Comparison) -> Table {
        let mut table = Table::new();
        table.load_style(TableStyle::new());
        table.set_content_arrangement(ContentArrangement::Dynamic);
        table.set_width(self.0.width.clamp(NARROWEST, WIDEST));
        table.force_no_tty();
        table.set_header(paper::TITLES.map(|title| self.cell(title)));
        for row in &comparison.rows {
            table.add_row(paper::columns(row).map(|text| self.cell(&printable(&text))));
        }
        if let Some(names) = table.column_mut(0) {
            names.set_constraint(ColumnConstraint::ContentWidth);
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, 1));
        }
        table
    }

    /// How many runs have figures, and why others have none.
    fn notes(&self, result: &CampaignResult) -> String {
        let (mut planned, mut measured) = (0, 0);
        let mut lines = String::new();
        for cell in &result.cells {
            planned += cell.counts.planned;
            measured += cell.counts.measured;
            for (kind, reason, count) in failures(cell) {
                let name = printable(&cell.key.arm);
                let line = format!(
                    "  {}  {name} {} ({count} of {}): {}",
                    status(kind),
                    path(cell),
                    cell.counts.planned,
                    printable(reason)
                );
                lines.push_str(&self.text(&line));
                lines.push('\n');
            }
        }
        let interrupted = if result.provenance.interrupted { ", interrupted" } else { "" };
        let differences = result.cells.iter().any(|cell| cell.over_native(&LATENCY_P50).is_some());
        let of_latency = if differences { "; of a latency, what it is over native's" } else { "" };
        let intervals = format!("Second lines are 95 % intervals{of_latency}.");
        let head = format!("{measured} of {planned} runs measured{interrupted}. {intervals}\n");
        let gap = if lines.is_empty() { "" } else { "\n" };
        format!("{head}{lines}{gap}")
    }

    fn cell(&self, text: &str) -> Cell {
        Cell::new(self.text(text))
    }

    fn bold(&self, text: &str) -> Cell {
        self.cell(text).add_attribute(Attribute::Bold)
    }

    fn coloured(&self, text: &str, colour: Color) -> Cell {
        self.cell(text).fg(colour)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::summary::summarise;
    use crate::test_support;
    use toll_protocol::report::Flag;

    const PLAIN: TerminalOptions = TerminalOptions { width: 100, styled: false, unicode: true };

    fn result() -> CampaignResult {
        let (header, records) = test_support::campaign();
        summarise(&header, &records, &test_support::gates()).expect("belongs together")
    }

    fn columns(line: &str) -> usize {
        line.chars().count()
    }

    #[test]
    fn the_table_fits_a_hundred_columns_and_shows_every_cell() {
        let text = render(&result(), Some(Path::new("out/report.html")), PLAIN);
        println!("{text}");
        let table: Vec<&str> = text.lines().take_while(|line| !line.contains("runs measured")).collect();
        assert!(table.iter().all(|line| columns(line) <= 100), "{text}");
        assert_eq!(table.iter().filter(|line| line.contains("5/5")).count(), 12, "{text}");
        assert!(text.contains("Report: out/report.html\n"));
        assert!(text.contains("12.4"), "exits per frame of pcnet: {text}");
    }

    #[test]
    fn a_failed_cell_says_so_and_is_never_zero() {
        let text = render(&result(), None, PLAIN);
        let line = text
            .lines()
            .find(|line| line.contains("pcnet") && line.contains("0/5"))
            .expect("the failed cell");
        assert!(line.contains("failed") && !line.contains("b/s"), "{line}");
        assert!(text.contains("failed  pcnet ← same arm (5 of 5): lab-2: the guest faulted"), "{text}");
        assert!(text.contains("64 of 70 runs measured"), "{text}");
    }

    #[test]
    fn without_a_terminal_there_are_no_styles_and_with_one_there_are() {
        assert!(!render(&result(), None, PLAIN).contains('\u{1b}'));
        assert!(render(&result(), None, TerminalOptions { styled: true, ..PLAIN }).contains('\u{1b}'));
    }

    #[test]
    fn no_word_is_broken_on_a_narrow_terminal() {
        let mut result = result();
        let flags = [Flag::CpuBound, Flag::LinkBound, Flag::Retransmits, Flag::DebugBuild];
        for cell in &mut result.cells {
            cell.flags = flags.into_iter().map(|flag| (flag, 5)).collect();
        }
        let arms: Vec<String> = result.arms.iter().map(|arm| arm.name.clone()).collect();
        for width in [1, 72, 80, 90, 100] {
            let text = render(&result, None, TerminalOptions { width, ..PLAIN });
            for word in arms.iter().map(String::as_str).chain(flags.map(|flag| explain(flag).0)) {
                // The debug build's flag may wrap between its two words.
                assert!(word.contains(' ') || text.contains(word), "{word} is broken at {width}:\n{text}");
            }
        }
    }

    #[test]
    fn without_utf8_it_is_ascii() {
        let text = render(&result(), None, TerminalOptions { unicode: false, ..PLAIN });
        assert!(text.is_ascii(), "{text}");
        assert!(text.lines().all(|line| columns(line) <= 130));
    }

    #[test]
    fn words_from_outside_can_not_command_the_terminal() {
        let mut result = result();
        result.cells[0].key.arm = "x\u{1b}]0;y\u{7}".to_owned();
        result.cells[0].key.pair.a = "h\u{1b}[31m".to_owned();
        assert!(!render(&result, None, PLAIN).contains('\u{1b}'));
    }

    #[test]
    fn an_empty_result_is_no_empty_claim() {
        let (header, _) = test_support::campaign();
        let mut result = summarise(&header, &[], &[]).expect("belongs together");
        result.provenance.interrupted = true;
        let text = render(&result, None, PLAIN);
        assert!(text.contains("0 of 70 runs measured, interrupted."), "{text}");
        assert!(text.contains("not run") && text.contains("not reached"), "{text}");
    }
}
