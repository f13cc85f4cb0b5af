//! Exit codes of `toll`. A benchmark that failed never exits 0.

use std::io::{self, Write as _};
use std::process::{ExitCode, Termination};

/// How the program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Everything asked for was measured, and every gate passed.
    Ok = 0,
    /// Everything was measured, and a gate was not passed: missed, or not shown to hold.
    GateMissed = 1,
    /// The command line is wrong.
    Usage = 2,
    /// The campaign is wrong.
    InvalidCampaign = 3,
    /// The machine, an agent or a trial failed: at least one trial has no figures.
    Infrastructure = 4,
    /// The campaign was refused: it is valid, and the hosts that it selects can't do what it asks for.
    Refused = 5,
    /// The user interrupted it (128 + SIGINT).
    Interrupted = 130,
}

/// Prints on stdout. A reader that has closed its end, such as `head`, wants no more: that is no fault.
///
/// # Errors
/// What else keeps stdout from being written.
pub fn print_out(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
        _ => Ok(()),
    }
}

impl Termination for Exit {
    fn report(self) -> ExitCode {
        ExitCode::from(self as u8)
    }
}
