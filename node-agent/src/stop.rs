//! The signals that end an agent in good order: what it has made is removed first.

use std::io;

use tokio::signal::unix::{SignalKind, signal};

/// Waits for SIGTERM, SIGINT or SIGHUP, from now on. A SIGHUP that the agent was started to ignore (nohup(1)) is still
/// ignored.
///
/// # Errors
/// The system's word on sigaction(2).
pub fn requested() -> io::Result<impl Future<Output = ()>> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let hangup = SignalKind::hangup();
    let mut hangup = if is_ignored(&status, hangup.as_raw_value()) { None } else { Some(signal(hangup)?) };
    Ok(async move {
        let hung_up = async {
            match &mut hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {}, _ = hung_up => {} }
    })
}

/// Whether a process with this /proc/PID/status (proc_pid_status(5)) ignores the signal.
fn is_ignored(status: &str, signal: i32) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    // Bit 0 is signal 1.
    signal
        .checked_sub(1)
        .and_then(|bit| u32::try_from(bit).ok())
        .and_then(|bit| mask.checked_shr(bit))
        .is_some_and(|mask| mask & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_ignored_is_a_bit_of_a_mask() {
        let status = "SigBlk:\t0000000000000000\nSigIgn:\t0000000000001001\nSigCgt:\t0000000000000002\n";
        assert!(is_ignored(status, libc::SIGHUP) && is_ignored(status, libc::SIGPIPE));
        assert!(!is_ignored(status, libc::SIGINT) && !is_ignored(status, 0) && !is_ignored(status, 65));
        assert!(!is_ignored("", libc::SIGHUP));
    }
}
