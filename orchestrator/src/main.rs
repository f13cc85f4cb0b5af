//! `toll`: runs campaigns, and says what they found.

use std::io::IsTerminal;

use clap::Parser;
use toll_orchestrator::cli::Cli;
use toll_orchestrator::exit::Exit;
use toll_protocol::printable;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::MakeExt as _;
use tracing_subscriber::fmt::format::debug_fn;

fn main() -> Exit {
    let cli = Cli::parse();
    // Logs on stderr, for whoever asks (TOLL_LOG=debug; an empty value is none); stdout is for results.
    let wanted = std::env::var("TOLL_LOG").ok().filter(|wanted| !wanted.is_empty());
    let filter = match EnvFilter::try_new(wanted.as_deref().unwrap_or(cli.log_level())) {
        Ok(filter) => filter,
        Err(error) => {
            let why = printable::printable(&error.to_string()).into_owned();
            eprintln!("toll: TOLL_LOG can't be used ({why}): write a level such as debug, or target=level");
            return Exit::Usage;
        }
    };
    let colours = std::io::stderr().is_terminal();
    // What is told may quote anybody.
    let fields = debug_fn(|writer, field, value| write!(writer, "{}", printable::field(field.name(), value)));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(colours)
        .with_writer(std::io::stderr)
        .fmt_fields(fields.delimited(" "))
        .init();
    match cli.execute() {
        Ok(exit) => exit,
        Err(error) => {
            eprintln!("toll: {}", printable::printable(&format!("{error:#}")));
            Exit::Infrastructure
        }
    }
}
