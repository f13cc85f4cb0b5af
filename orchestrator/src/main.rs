//! `toll`: runs campaigns, and says what they found.

use clap::Parser;
use toll_orchestrator::cli::Cli;
use toll_orchestrator::exit::Exit;
use tracing_subscriber::EnvFilter;

fn main() -> Exit {
    // Logs on stderr, for whoever asks (TOLL_LOG=debug); stdout is for results.
    let filter = EnvFilter::try_from_env("TOLL_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match Cli::parse().execute() {
        Ok(exit) => exit,
        Err(error) => {
            eprintln!("toll: {error:#}");
            Exit::Infrastructure
        }
    }
}
