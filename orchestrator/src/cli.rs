//! The command line of `toll`.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::exit::{Exit, print_out};
use crate::manifest::{self, ManifestError};
use crate::run::{self, Format};
use crate::{doctor, kube, show_plan};

/// Measures what virtualisation takes on a network.
#[derive(Debug, Parser)]
#[command(name = "toll", version, about, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 ok, 1 a gate was not passed, 2 usage, 3 invalid campaign, \
                          4 infrastructure (a trial has no figures), 130 interrupted.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a campaign in a lab on this machine
    Run {
        /// The campaign (YAML)
        file: PathBuf,
        /// Where results go: report.html, result.json, ledger.sqlite, logs [default: ./toll-NAME-TIME]
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
        /// What to print on stdout
        #[arg(long, value_enum, default_value = "text")]
        format: Format,
    },
    /// Check a campaign
    Validate {
        /// The campaign (YAML)
        file: PathBuf,
    },
    /// Show the cells of a campaign and how long it takes
    Plan {
        /// The campaign (YAML)
        file: PathBuf,
    },
    /// Print the definition of the Kubernetes object `Campaign` (YAML)
    Crd,
    /// Say what this machine offers, and what to do about what it lacks
    Doctor,
}

impl Cli {
    /// Does what was asked.
    ///
    /// # Errors
    /// What went wrong, when it is the machine's or Toll's own; an invalid campaign is told here.
    pub fn execute(self) -> Result<Exit> {
        match self.command {
            Command::Run { file, out, format } => match manifest::load(&file) {
                Ok((_, campaign)) if campaign.lab.is_none() => Ok(no_lab(&file)),
                Ok((text, campaign)) => run::run(&text, &campaign, out, format),
                Err(error) => Ok(told(&error)),
            },
            Command::Validate { file } => match manifest::load(&file) {
                Ok((_, campaign)) => {
                    print_out(&format!("{}: campaign {} is valid\n", file.display(), campaign.name))?;
                    Ok(Exit::Ok)
                }
                Err(error) => Ok(told(&error)),
            },
            Command::Plan { file } => match manifest::load(&file) {
                Ok((_, campaign)) => {
                    let Some(lab) = campaign.lab else {
                        return Ok(no_lab(&file));
                    };
                    print_out(&show_plan::show(&campaign, &lab))?;
                    Ok(Exit::Ok)
                }
                Err(error) => Ok(told(&error)),
            },
            Command::Crd => {
                print_out(&kube::crd::yaml().map_err(anyhow::Error::msg)?)?;
                Ok(Exit::Ok)
            }
            Command::Doctor => doctor::run(),
        }
    }
}

/// Tells that a campaign has no hosts on this machine.
fn no_lab(file: &Path) -> Exit {
    eprintln!("{}: spec.hosts names no lab: write `lab: {{count: 2}}` there", file.display());
    Exit::InvalidCampaign
}

/// Tells what is wrong with a manifest.
fn told(error: &ManifestError) -> Exit {
    match error {
        ManifestError::Invalid(problems) => {
            eprintln!("{problems}");
            Exit::InvalidCampaign
        }
        ManifestError::TooLong { .. } | ManifestError::NotText { .. } => {
            eprintln!("{error}");
            Exit::InvalidCampaign
        }
        ManifestError::Read { source, .. } => {
            eprintln!("{error}: {source}");
            Exit::Usage
        }
    }
}
